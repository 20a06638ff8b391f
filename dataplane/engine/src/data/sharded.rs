//! A data thread among others: what crosses between them, and datagrams that came to the wrong one
//! (docs/decisions/0017-engine-threads.md).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use hopfare_core::core::ENTRY_REST_BYTES;
use hopfare_core::crossing::TUN_BYTES;
use hopfare_core::{Crossing, Receiver, ShardId, Unit};
use quinn_proto::EcnCodepoint;

use super::DataThread;
use crate::handover::{Handover, Message, Strayed};
use crate::probes::Cid;
use crate::shared::{FlowKind, Name};
use crate::steer::Steer;

const RESET_TOKEN_BYTES: usize = 16;
/// A short header, a connection id and more: the least that QUIC takes for a Stateless Reset is 21 bytes.
const RESET_HEAD: [u8; 32] = {
    let mut head = [0; 32];
    head[0] = 0x40;
    head
};

/// What a data thread has of the others.
pub struct Peers {
    handover: Handover,
    steer: Steer,
    messages: Vec<Message>,
}

impl Peers {
    pub fn new(handover: Handover, steer: Steer) -> Self {
        Self { handover, steer, messages: Vec::new() }
    }

    /// This thread's own number.
    pub fn shard(&self) -> ShardId {
        self.handover.shard()
    }

    /// A connection id that leads here.
    pub fn cid(&self) -> Cid {
        self.steer.cid(self.shard())
    }
}

impl DataThread {
    /// Say that this thread sleeps; false when it must not, because something has come.
    pub(super) fn lie_down(&self) -> bool {
        let Some(peers) = &self.peers else { return true };
        self.inbox().bed.lie_down();
        peers.handover.is_empty()
    }

    /// See what has come from others. Words of Python's that were given before it was sent can be taken after this.
    pub(super) fn note_crossings(&mut self) {
        if let Some(peers) = &mut self.peers {
            peers.handover.note();
        }
    }

    pub(super) fn take_crossings(&mut self, now: Instant) {
        let Some(peers) = &mut self.peers else { return };
        let mut messages = std::mem::take(&mut peers.messages);
        let shards = peers.handover.shards();
        for from in 0..shards {
            let Some(peers) = &mut self.peers else { break };
            if peers.handover.take(from, &mut messages) {
                self.shared.inboxes[from].wake();
            }
            if messages.is_empty() {
                continue;
            }
            self.inbox().totals.crossed.fetch_add(messages.len() as u64, Ordering::Relaxed);
            for message in messages.drain(..) {
                self.take_message(from as ShardId, message, now);
            }
        }
        if let Some(peers) = &mut self.peers {
            peers.messages = messages;
        }
    }

    fn take_message(&mut self, from: ShardId, message: Message, now: Instant) {
        match message {
            Message::Crossing(Crossing {
                to: Receiver::Outpost(home),
                unit: Unit::Open { name, link, circuit_id },
            }) => {
                let link = self.links.get(&link).copied();
                self.core.add_outpost(from, home, name, link, circuit_id, &mut self.net);
            }
            Message::Crossing(crossing) => {
                let ns = self.ns(now);
                self.core.on_crossing(from, crossing, ns, &mut self.net);
            }
            Message::Datagram(Strayed { remote, local_ip, ecn, data }) => {
                self.feed_known(remote, local_ip, ecn, data, now);
            }
            Message::Reset { remote, token } => {
                let mut packet = BytesMut::from(&RESET_HEAD[..]);
                packet.extend_from_slice(&token);
                self.answer_buffer.clear();
                let event = self.endpoint.handle(now, remote, None, None, packet, &mut self.answer_buffer);
                if let Some(quinn_proto::DatagramEvent::ConnectionEvent(handle, event)) = event {
                    let id = handle.0 as u32;
                    if let Some(conn) = self.net.conn(id) {
                        conn.quic.handle_event(event);
                        self.touch(id);
                    }
                }
            }
        }
    }

    /// Hand what others are to have to them, and wake who sleeps.
    pub(super) fn send_crossings(&mut self) {
        let Some(peers) = &mut self.peers else { return };
        let now = Instant::now();
        let ns = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX) + 1;
        for to in 0..peers.handover.shards() {
            if peers.handover.send(to, &mut self.core, ns) && self.shared.inboxes[to].bed.must_wake() {
                self.shared.inboxes[to].wake();
            }
        }
        self.core.share_memory();
        if self.net.tun.as_ref().is_some_and(|tun| tun.may_rest) {
            let waiting = self.core.entry_bytes() + self.core.crossing_tun_bytes();
            self.inbox().totals.entry_bytes.store(waiting, Ordering::Relaxed);
        }
    }

    /// Whether a customer's TUN should rest, for what waits at the entries of all shards.
    pub(super) fn entry_is_full(&self) -> bool {
        if self.peers.is_none() {
            return self.core.entry_is_full();
        }
        let others = self.shared.inboxes.iter().enumerate().filter(|(at, _)| *at != usize::from(self.shard));
        let waiting: usize = others.map(|(_, inbox)| inbox.totals.entry_bytes.load(Ordering::Relaxed)).sum();
        let crossing = self.core.crossing_tun_bytes();
        // What crosses has less room than an entry.
        crossing > TUN_BYTES / 2 || waiting + self.core.entry_bytes() + crossing > ENTRY_REST_BYTES
    }

    /// Hand a datagram to its connection here, or to the shard that its connection id names.
    pub(super) fn feed_or_pass_on(
        &mut self,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        datagram: BytesMut,
        now: Instant,
    ) {
        let Some(peers) = &mut self.peers else { return };
        match peers.steer.shard_of(&datagram) {
            Some(shard) if shard != self.shard => {
                // Copied, for it may lie in a buffer of many, which would be held as long as it waits.
                let data = BytesMut::from(&datagram[..]);
                peers.handover.stray(shard, Strayed { remote, local_ip, ecn, data });
                self.inbox().totals.strayed.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.feed_known(remote, local_ip, ecn, datagram, now),
        }
    }

    /// Hand a datagram to its connection here. One of no connection may be a Stateless Reset, which names none.
    fn feed_known(
        &mut self,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        datagram: BytesMut,
        now: Instant,
    ) {
        let is_short = datagram.first().is_some_and(|first| first & 0x80 == 0);
        let end = datagram.last_chunk::<RESET_TOKEN_BYTES>().copied();
        if self.feed_one(remote, local_ip, ecn, datagram, now) || !is_short {
            return;
        }
        if let (Some(token), true) = (end, self.may_answer(now)) {
            if let Some(peers) = &mut self.peers {
                peers.handover.tell_reset(remote, token);
            }
        }
    }

    /// Remove outposts that stand where a new flow's ends will be: the word that they are over is under way.
    pub(super) fn free_circuit_ids(&mut self, name: Name, kind: &FlowKind) {
        if self.peers.is_none() {
            return;
        }
        let ends = match kind {
            FlowKind::Relay { link_in, id_in, link_out, id_out, .. } => {
                [Some((link_in, id_in)), Some((link_out, id_out))]
            }
            FlowKind::Exit { link, id, .. } | FlowKind::Client { link, id, .. } => [Some((link, id)), None],
        };
        for (link, id) in ends.into_iter().flatten() {
            if let Some(&link) = self.links.get(link) {
                self.core.free_circuit_id(link, *id, name, &mut self.net);
            }
        }
    }
}
