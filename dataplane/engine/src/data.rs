//! The data thread: sockets, QUIC, TUN and the core in one loop, without a lock on the way of a packet.
//!
//! One turn takes what the sockets and the TUN have (bounded), lets every connection hand it up, has the core move
//! what waits, and then sends what all connections have to send: one wake-up, one pump, one flush. Where there are
//! several such threads, each is a shard (`sharded`).

mod sharded;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hopfare_core::{Core, Event as CoreEvent, FlowCounters, FlowId, MeterId, Now, Price, ShardId};
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint,
    Event as QuicEvent, Incoming, ReadError, ReadableError, StreamEvent, StreamId, VarInt,
};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustc_hash::FxHashMap;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::thread::{set_capabilities, CapabilitySet, CapabilitySets};

use crate::net::{publish, Conn, Net, CODE_FLOOD, CODE_PROTOCOL};
use crate::probes::{random_cid, Probes};
use crate::router::SHARD_BITS;
use crate::shared::{
    Charged, Command, Event, FlowCell, FlowKind, Inbox, LinkCell, MeterCell, Name, NamedPrice, Shared,
    MAX_WAITING_CONTROL, MAX_WAITING_CONTROL_OF_LINK, MAX_WAITING_ECHOES,
};
use crate::tls::{Settings, LINK_FRAME};

pub use sharded::Peers;

/// System calls per socket and turn (up to 64 KB each, several per call): bounds a batch.
const RECEIVES_PER_TURN: usize = 8;
const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 65_535;
/// Reads of the TUN per turn, and bytes after which it ends: with many flows what waits is many small packets, which
/// the core joins while it has them all.
const TUN_READS_PER_TURN: usize = 512;
const TUN_BYTES_PER_TURN: usize = 2 << 20;
/// Super-datagrams of one connection per turn (64 KB each).
const TRANSMITS_PER_TURN: usize = 16;
/// Rounds of flushing and filling again before the sockets have their turn.
const FLUSH_ROUNDS: usize = 4;
/// A super-datagram must fit an IPv4 packet with its headers.
const MAX_SEGMENTS: usize = 44;
const MAX_PENDING_SENDS: usize = 64;
/// Retry, Version Negotiation and Stateless Reset packets per second.
const ANSWERS_PER_S: f64 = 200.0;
const TUN_REST: Duration = Duration::from_millis(5);
const TUN_RESTS: u32 = 4;
const MAX_BAD_DATAGRAMS: u32 = 16;
const MOVES_APART: Duration = Duration::from_secs(1);
/// Incoming handshakes that wait for Python's word.
const MAX_INCOMING: usize = 512;

struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    is_ipv6: bool,
    /// Sends that found the buffer full.
    pending: Vec<Pending>,
}

struct Pending {
    contents: Vec<u8>,
    destination: SocketAddr,
    segment_size: Option<usize>,
    ecn: Option<quinn_udp::EcnCodepoint>,
    src_ip: Option<std::net::IpAddr>,
}

pub struct DataThread {
    shared: Arc<Shared>,
    /// Its number among the shards; 0 where there is one.
    shard: ShardId,
    /// The other shards; None where there are none.
    peers: Option<Peers>,
    settings: Settings,
    endpoint: Endpoint,
    sockets: Vec<Socket>,
    net: Net,
    core: Core,
    epoch: Instant,
    links: FxHashMap<Name, u32>,
    incoming: FxHashMap<Name, Incoming>,
    next_incoming: Name,
    probes: Probes,
    flows: FxHashMap<Name, FlowId>,
    flow_cells: FxHashMap<FlowId, (Name, Arc<FlowCell>)>,
    meters: FxHashMap<Name, MeterId>,
    meter_cells: FxHashMap<MeterId, (Name, Arc<MeterCell>)>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    touched: Vec<u32>,
    stalled: Vec<u32>,
    answers: f64,
    answers_at: Instant,
    tun_rest_until: Option<Instant>,
    tun_rests: u32,
    stopping: bool,
    // Buffers that live as long as the thread.
    receive_buffers: Vec<Vec<u8>>,
    tun_buffer: Vec<u8>,
    transmit_buffer: Vec<u8>,
    answer_buffer: Vec<u8>,
    frames: Vec<Bytes>,
    chunks: Vec<Bytes>,
    core_events: Vec<CoreEvent>,
    dirty_flows: Vec<FlowId>,
    dirty_meters: Vec<MeterId>,
}

impl DataThread {
    pub fn new(
        shared: Arc<Shared>,
        settings: Settings,
        sockets: Vec<UdpSocket>,
        core: Core,
        peers: Option<Peers>,
        epoch: Instant,
    ) -> io::Result<Self> {
        let sockets = sockets
            .into_iter()
            .map(|udp| {
                let state = UdpSocketState::new(UdpSockRef::from(&udp))?;
                let is_ipv6 = udp.local_addr()?.is_ipv6();
                Ok(Socket { udp, state, is_ipv6, pending: Vec::new() })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            endpoint: Endpoint::new(settings.endpoint.clone(), settings.server.clone(), false, None),
            shared,
            shard: peers.as_ref().map_or(0, Peers::shard),
            peers,
            settings,
            sockets,
            net: Net::new(),
            core,
            epoch,
            links: FxHashMap::default(),
            incoming: FxHashMap::default(),
            next_incoming: 1,
            probes: Probes::default(),
            flows: FxHashMap::default(),
            flow_cells: FxHashMap::default(),
            meters: FxHashMap::default(),
            meter_cells: FxHashMap::default(),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            stalled: Vec::new(),
            answers: ANSWERS_PER_S,
            answers_at: epoch,
            tun_rest_until: None,
            tun_rests: 0,
            stopping: false,
            receive_buffers: vec![vec![0; BUFFER_BYTES]; BUFFERS],
            tun_buffer: vec![0; 65_536 + 10],
            transmit_buffer: Vec::with_capacity(BUFFER_BYTES),
            answer_buffer: Vec::new(),
            frames: Vec::new(),
            chunks: Vec::new(),
            core_events: Vec::new(),
            dirty_flows: Vec::new(),
            dirty_meters: Vec::new(),
        })
    }

    /// Runs until `Command::Stop`.
    pub fn run(&mut self) {
        // Sockets and TUN are open: this thread, which reads what strangers send, needs no privilege.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        let _ = set_capabilities(None, none);
        let mut commands = Vec::new();
        while !self.stopping {
            let ready = self.wait();
            let now = Instant::now();
            self.inbox().totals.loops.fetch_add(1, Ordering::Relaxed);
            self.note_crossings();
            for at in 0..self.sockets.len() {
                if ready.writable & (1 << at) != 0 {
                    self.send_pending(at);
                }
                if ready.readable & (1 << at) != 0 {
                    self.receive(at, now);
                }
            }
            // After all that others have sent, and before it is looked at: they may have sent it because of these.
            if ready.commands {
                self.inbox().take_commands(&mut commands);
            } else if self.peers.is_some() {
                self.inbox().take_given(&mut commands);
            }
            for command in commands.drain(..) {
                self.carry_out(command, now);
            }
            self.take_crossings(now);
            self.expire_timers(now);
            self.hand_up(now);
            if ready.tun {
                self.read_tun(now);
            }
            self.core.pump(self.ns(now), &mut self.net);
            self.send_crossings();
            let has_packets = std::mem::take(&mut self.net.has_packets);
            if !has_packets && (!self.net.events.is_empty() || self.core.has_events()) {
                // Python works on it while this thread sends its acknowledgements.
                self.report();
            }
            self.flush();
            self.forget_stopped();
            self.send_crossings();
            self.report();
        }
    }

    fn inbox(&self) -> &Inbox {
        &self.shared.inboxes[usize::from(self.shard)]
    }

    fn ns(&self, now: Instant) -> Now {
        // Not zero at the start: cells use 0 for "never".
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX) + 1
    }

    // -- waiting

    fn wait(&mut self) -> Ready {
        let now = Instant::now();
        let mut deadline = self.timers.peek().map(|Reverse((at, _))| *at);
        let sooner = |deadline: &mut Option<Instant>, at: Instant| {
            *deadline = Some(deadline.map_or(at, |old| old.min(at)));
        };
        let tun_rests = self.tun_rest_until.is_some_and(|until| until > now);
        if let (true, Some(until)) = (tun_rests, self.tun_rest_until) {
            sooner(&mut deadline, until);
        }
        if !self.stalled.is_empty() {
            sooner(&mut deadline, now + Duration::from_millis(5));
        }
        if !self.net.dirty.is_empty() && self.sockets.iter().all(|socket| socket.pending.is_empty()) {
            deadline = Some(now);
        }
        if self.peers.is_some() && !self.lie_down() {
            deadline = Some(now);
        }
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut fds = Vec::with_capacity(4);
        let inbox = &self.shared.inboxes[usize::from(self.shard)];
        fds.push(PollFd::from_borrowed_fd(inbox.command_fd().as_fd(), PollFlags::IN));
        for socket in &self.sockets {
            let mut flags = PollFlags::IN;
            if !socket.pending.is_empty() {
                flags |= PollFlags::OUT;
            }
            fds.push(PollFd::from_borrowed_fd(socket.udp.as_fd(), flags));
        }
        let tun_at = match &self.net.tun {
            Some(tun) if tun.is_read && !tun_rests => {
                fds.push(PollFd::from_borrowed_fd(tun.file.as_fd(), PollFlags::IN));
                Some(fds.len() - 1)
            }
            _ => None,
        };
        let mut ready = Ready::default();
        let polled = poll(&mut fds, timeout.as_ref());
        if self.peers.is_some() {
            inbox.bed.get_up();
        }
        if polled.is_err() {
            return ready; // a signal: the loop comes back here
        }
        for at in 0..self.sockets.len() {
            let events = fds[at + 1].revents();
            if events.contains(PollFlags::OUT) {
                ready.writable |= 1 << at;
            }
            // An error on the socket is read away like data.
            if events.intersects(PollFlags::IN | PollFlags::ERR) {
                ready.readable |= 1 << at;
            }
        }
        ready.commands = !fds[0].revents().is_empty();
        ready.tun = tun_at.is_some_and(|at| !fds[at].revents().is_empty());
        ready
    }

    // -- commands

    fn carry_out(&mut self, command: Command, now: Instant) {
        match command {
            Command::Dial { link, remote, cell } => self.dial(link, remote, cell, now),
            Command::Probe { link, remote } => {
                let peers = self.peers.as_ref();
                let packets = self.probes.make(link, || peers.map_or_else(random_cid, Peers::cid));
                for packet in packets {
                    self.send_answer(packet, remote, None);
                }
            }
            Command::Accept { incoming, link, cell } => self.accept(incoming, link, cell, now),
            Command::Retry { incoming } => {
                if let Some(incoming) = self.incoming.remove(&incoming) {
                    let mut buffer = std::mem::take(&mut self.answer_buffer);
                    buffer.clear();
                    if let Ok(transmit) = self.endpoint.retry(incoming, &mut buffer) {
                        self.answer(&buffer, &transmit, now);
                    }
                    self.answer_buffer = buffer;
                }
            }
            Command::Ignore { incoming } => {
                if let Some(incoming) = self.incoming.remove(&incoming) {
                    self.endpoint.ignore(incoming);
                }
            }
            Command::Control { link, data } => {
                if let Some(&id) = self.links.get(&link) {
                    self.net.send_control(id, data);
                }
            }
            Command::Up { link, is_relay } => self.link_up(link, is_relay, now),
            Command::Close { link, code, reason, tell_peer } => {
                self.close(link, code, reason, tell_peer, now)
            }
            Command::AddFlow { flow, suite, kind, cell } => self.add_flow(flow, suite, *kind, cell),
            Command::DropFlow { flow } => {
                if let Some(id) = self.flows.remove(&flow) {
                    let cell = self.flow_cells.remove(&id);
                    let counters = self.core.drop_flow(id, &mut self.net);
                    if let (Some((_, cell)), Some(counters)) = (cell, counters) {
                        store(&cell, &counters);
                    }
                }
            }
            Command::Echo { flow, token } => {
                if let Some(&id) = self.flows.get(&flow) {
                    let now = self.ns(now);
                    self.core.echo(id, token, now, &mut self.net);
                }
            }
            Command::NewMeter { meter, credit, low, cell } => {
                let id = self.core.new_meter(credit, low);
                self.meters.insert(meter, id);
                self.meter_cells.insert(id, (meter, cell));
            }
            Command::FreeMeter { meter } => {
                if let Some(id) = self.meters.remove(&meter) {
                    self.meter_cells.remove(&id);
                    self.core.free_meter(id);
                }
            }
            Command::AddCredit { meter, wei, flows } => {
                if let Some(&id) = self.meters.get(&meter) {
                    self.core.add_credit(id, wei);
                    self.publish_meter(id);
                    let now = self.ns(now);
                    for flow in flows {
                        if let Some(&flow) = self.flows.get(&flow) {
                            self.core.wake(flow, now, &mut self.net);
                        }
                    }
                }
            }
            Command::WatchMeter { meter, on } => {
                if let Some(&id) = self.meters.get(&meter) {
                    self.core.watch_meter(id, on);
                }
            }
            Command::SetLow { meter, wei } => {
                if let Some(&id) = self.meters.get(&meter) {
                    self.core.set_low(id, wei);
                }
            }
            Command::SetPolicy(policy) => self.core.set_policy(*policy),
            Command::AttachTun(tun) => {
                self.core.attach_tun(tun.has_offload, tun.by_source);
                self.core.join_packets(tun.has_offload, tun.has_uso);
                self.net.tun = Some(tun);
            }
            Command::Foreign { flow, addresses, shard } => self.core.set_foreign(addresses, shard, flow),
            Command::NoForeign { flow, addresses } => self.core.forget_foreign(addresses, flow),
            Command::Expire => {
                let now = self.ns(now);
                self.core.expire(now);
            }
            Command::Fail => panic!("asked to fail"),
            Command::Stop => self.stopping = true,
        }
    }

    fn dial(&mut self, link: Name, remote: SocketAddr, cell: Arc<LinkCell>, now: Instant) {
        match self.endpoint.connect(now, self.settings.client.clone(), remote, "hopfare") {
            Ok((handle, quic)) => {
                self.register(handle, quic, link, cell, true);
            }
            Err(error) => {
                self.net.events.push(Event::Ended {
                    link,
                    by_peer: false,
                    code: 11,
                    reason: error.to_string(),
                });
            }
        }
    }

    fn accept(&mut self, incoming: Name, link: Name, cell: Arc<LinkCell>, now: Instant) {
        let Some(incoming) = self.incoming.remove(&incoming) else {
            self.net.events.push(Event::Ended { link, by_peer: false, code: 7, reason: "too late".into() });
            return;
        };
        let mut buffer = std::mem::take(&mut self.answer_buffer);
        buffer.clear();
        match self.endpoint.accept(incoming, now, &mut buffer, None) {
            Ok((handle, quic)) => self.register(handle, quic, link, cell, false),
            Err(error) => {
                if let Some(transmit) = error.response {
                    self.answer(&buffer, &transmit, now);
                }
                let reason = "an Initial that cannot be opened".to_owned();
                self.net.events.push(Event::Ended { link, by_peer: false, code: CODE_PROTOCOL, reason });
            }
        }
        self.answer_buffer = buffer;
    }

    fn register(
        &mut self,
        handle: ConnectionHandle,
        quic: Connection,
        link: Name,
        cell: Arc<LinkCell>,
        is_dialler: bool,
    ) {
        let id = u32::try_from(handle.0).expect("the library counts connections from 0");
        if self.net.conns.len() <= handle.0 {
            self.net.conns.resize_with(handle.0 + 1, || None);
        }
        self.net.conns[handle.0] = Some(Box::new(Conn::new(quic, link, cell, is_dialler)));
        self.links.insert(link, id);
        self.net.mark_dirty(id);
        self.touch(id);
    }

    fn link_up(&mut self, link: Name, is_relay: bool, now: Instant) {
        let Some(&id) = self.links.get(&link) else { return };
        let Some(conn) = self.net.conn(id) else { return };
        if conn.is_gone {
            return;
        }
        conn.come_up(is_relay);
        let early = std::mem::take(&mut conn.early);
        self.core.link_up(id);
        for stream in early {
            self.read_stream(id, stream, now);
        }
        self.net.mark_dirty(id);
    }

    fn close(&mut self, link: Name, code: u64, reason: String, tell_peer: bool, now: Instant) {
        self.probes.forget(link);
        let Some(id) = self.links.remove(&link) else { return };
        self.leave(id);
        let Some(conn) = self.net.conn(id) else { return };
        if tell_peer {
            let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
            conn.quic.close(now, code, Bytes::from(reason));
        }
        self.net.mark_dirty(id);
    }

    /// Take a connection's link out of the core; the connection itself lives until QUIC has drained it.
    fn leave(&mut self, id: u32) {
        let Some(conn) = self.net.conn(id) else { return };
        if conn.is_gone {
            return;
        }
        conn.is_gone = true;
        conn.forget_all_out();
        if conn.is_up {
            conn.is_up = false;
            self.core.link_down(id, &mut self.net);
        }
    }

    fn price(&self, price: &NamedPrice) -> Option<Price> {
        Some(Price { meter: *self.meters.get(&price.meter)?, wei: price.wei })
    }

    fn add_flow(&mut self, flow: Name, suite: u8, kind: FlowKind, cell: Arc<FlowCell>) {
        let added = self.try_add_flow(flow, suite, &kind);
        match added {
            Some(id) => {
                self.flows.insert(flow, id);
                self.flow_cells.insert(id, (flow, cell));
            }
            // Python checks ids and suites before; what is left is a link that went down meanwhile.
            None => self.net.events.push(Event::FlowLost { flow, fault: 1 }),
        }
    }

    fn try_add_flow(&mut self, name: Name, suite: u8, kind: &FlowKind) -> Option<FlowId> {
        self.free_circuit_ids(name, kind);
        match kind {
            FlowKind::Relay {
                root,
                link_in,
                id_in,
                price_in,
                link_out,
                id_out,
                price_out,
                across: Some(shard),
            } => {
                let front = *self.links.get(link_in)?;
                let (price_in, price_out) = (self.price(price_in)?, self.price(price_out)?);
                self.core
                    .relay_across(
                        root, suite, front, *id_in, price_in, *shard, name, *link_out, *id_out, price_out,
                    )
                    .ok()
            }
            FlowKind::Relay { root, link_in, id_in, price_in, link_out, id_out, price_out, across: None } => {
                let (front, back) = (*self.links.get(link_in)?, *self.links.get(link_out)?);
                let (price_in, price_out) = (self.price(price_in)?, self.price(price_out)?);
                self.core.relay(root, suite, front, *id_in, price_in, back, *id_out, price_out).ok()
            }
            FlowKind::Exit { root, link, id, price, addresses } => {
                let (link, price) = (*self.links.get(link)?, self.price(price)?);
                self.core.exit(root, suite, link, *id, price, *addresses).ok()
            }
            FlowKind::Client { roots, link, id, price, addresses } => {
                let (link, price) = (*self.links.get(link)?, self.price(price)?);
                self.core.client(roots, suite, link, *id, price, *addresses).ok()
            }
        }
    }

    // -- coming in

    fn receive(&mut self, at: usize, now: Instant) {
        let mut buffers = std::mem::take(&mut self.receive_buffers);
        let mut metas = [RecvMeta::default(); BUFFERS];
        for _ in 0..RECEIVES_PER_TURN {
            let socket = &self.sockets[at];
            let mut slices: Vec<IoSliceMut<'_>> =
                buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let count = match socket.state.recv(UdpSockRef::from(&socket.udp), &mut slices, &mut metas) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error that the kernel reports here; there is nothing to be done about it.
                Err(_) => continue,
            };
            drop(slices);
            self.inbox().totals.receives.fetch_add(1, Ordering::Relaxed);
            for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
                if meta.len > 0 {
                    self.feed(meta, &buffer[..meta.len], now);
                }
            }
            if count < BUFFERS {
                break;
            }
        }
        self.receive_buffers = buffers;
    }

    fn feed(&mut self, meta: &RecvMeta, received: &[u8], now: Instant) {
        let mut data = BytesMut::from(received);
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        let stride = meta.stride.max(1);
        while !data.is_empty() {
            let datagram = data.split_to(stride.min(data.len()));
            if datagram[0] & 0x80 != 0 {
                if let Some((link, size)) = self.probes.answered(&datagram) {
                    self.net.events.push(Event::ProbeAnswered { link, size });
                    continue;
                }
            }
            if self.peers.is_none() {
                self.feed_one(meta.addr, meta.dst_ip, ecn, datagram, now);
            } else {
                self.feed_or_pass_on(meta.addr, meta.dst_ip, ecn, datagram, now);
            }
        }
    }

    /// Hand one datagram to its connection; false when it has none.
    fn feed_one(
        &mut self,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        datagram: BytesMut,
        now: Instant,
    ) -> bool {
        self.answer_buffer.clear();
        match self.endpoint.handle(now, remote, local_ip, ecn, datagram, &mut self.answer_buffer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let id = handle.0 as u32;
                if let Some(conn) = self.net.conn(id) {
                    conn.quic.handle_event(event);
                    self.touch(id);
                }
                return true;
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.ask_about(incoming),
            Some(DatagramEvent::Response(transmit)) => {
                let buffer = std::mem::take(&mut self.answer_buffer);
                self.answer(&buffer, &transmit, now);
                self.answer_buffer = buffer;
            }
            None => {
                self.inbox().totals.unknown_quic.fetch_add(1, Ordering::Relaxed);
            }
        }
        false
    }

    fn ask_about(&mut self, incoming: Incoming) {
        if self.incoming.len() >= MAX_INCOMING {
            self.inbox().totals.dropped_handshakes.fetch_add(1, Ordering::Relaxed);
            self.endpoint.ignore(incoming);
            return;
        }
        let name = self.next_incoming << SHARD_BITS | Name::from(self.shard);
        self.next_incoming += 1;
        self.net.events.push(Event::Incoming {
            incoming: name,
            remote: incoming.remote_address(),
            validated: incoming.remote_address_validated(),
        });
        self.incoming.insert(name, incoming);
    }

    fn touch(&mut self, id: u32) {
        if let Some(conn) = self.net.conn(id) {
            if !conn.is_touched {
                conn.is_touched = true;
                self.touched.push(id);
            }
        }
    }

    /// Let every connection that got something hand it up.
    fn hand_up(&mut self, now: Instant) {
        if !self.stalled.is_empty()
            && self.shared.waiting_control.load(Ordering::Relaxed) < MAX_WAITING_CONTROL / 2
        {
            for id in std::mem::take(&mut self.stalled) {
                if let Some(conn) = self.net.conn(id) {
                    if conn.cell.waiting_control.load(Ordering::Relaxed) >= MAX_WAITING_CONTROL_OF_LINK / 2 {
                        self.stalled.push(id);
                        continue;
                    }
                    conn.control_stalled = false;
                    if let Some(stream) = conn.control {
                        self.read_control(id, stream);
                        // What was read opens the peer's window again.
                        self.net.mark_dirty(id);
                    }
                }
            }
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if let Some(conn) = self.net.conn(id) {
                conn.is_touched = false;
                self.hand_up_one(id, now);
                self.net.mark_dirty(id);
            }
        }
        self.touched = touched;
    }

    fn hand_up_one(&mut self, id: u32, now: Instant) {
        self.endpoint_events(id);
        loop {
            let Some(conn) = self.net.conn(id) else { return };
            let Some(event) = conn.quic.poll() else { break };
            if conn.is_gone {
                continue;
            }
            let link = conn.link;
            match event {
                QuicEvent::HandshakeDataReady => {}
                QuicEvent::Connected => {
                    let mut certificate = None;
                    if conn.is_dialler {
                        if let Some(stream) = conn.quic.streams().open(Dir::Bi) {
                            conn.set_control(stream);
                        }
                        certificate = peer_certificate(&conn.quic);
                    }
                    let carries = conn.quic.datagrams().max_size();
                    self.net.events.push(Event::Connected { link, certificate });
                    if carries.is_none_or(|size| size < LINK_FRAME) {
                        let size = carries.unwrap_or(0);
                        let reason = format!(
                            "the other node takes datagrams of {size} bytes at most, and {LINK_FRAME} are needed"
                        );
                        self.net.fault(id, CODE_PROTOCOL, &reason);
                    }
                }
                QuicEvent::ConnectionLost { reason } => {
                    if let Some(event) = ended(link, &reason) {
                        self.net.events.push(event);
                    }
                    self.links.remove(&link);
                    self.probes.forget(link);
                    self.leave(id);
                }
                QuicEvent::DatagramReceived => self.read_datagrams(id, now),
                QuicEvent::DatagramsUnblocked => {}
                QuicEvent::Stream(event) => self.on_stream_event(id, event, now),
            }
        }
        // Datagrams that came behind the first are not announced again.
        self.read_datagrams(id, now);
        let ns = self.ns(now);
        if let Some(conn) = self.net.conn(id) {
            let has_heard = conn.has_heard();
            publish(conn, ns, has_heard);
            let remote = conn.quic.remote_address();
            // A peer may move with every packet: what Python is told is bounded.
            if remote != conn.remote && conn.moved_at.is_none_or(|at| now >= at + MOVES_APART) {
                conn.remote = remote;
                conn.moved_at = Some(now);
                let link = conn.link;
                self.net.events.push(Event::Moved { link, remote });
            }
        }
    }

    fn endpoint_events(&mut self, id: u32) {
        let handle = ConnectionHandle(id as usize);
        loop {
            let Some(conn) = self.net.conn(id) else { return };
            let Some(event) = conn.quic.poll_endpoint_events() else { return };
            let is_last = event.is_drained();
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                if let Some(conn) = self.net.conn(id) {
                    conn.quic.handle_event(event);
                }
            }
            if is_last {
                self.note_end(id);
                if let Some(conn) = self.net.conns[id as usize].take() {
                    self.links.remove(&conn.link);
                    self.probes.forget(conn.link);
                }
                return;
            }
        }
    }

    /// A connection that a Stateless Reset ended is drained before its event was taken.
    fn note_end(&mut self, id: u32) {
        let Some(conn) = self.net.conn(id) else { return };
        if conn.is_gone {
            return;
        }
        let link = conn.link;
        let mut reason = ConnectionError::Reset;
        while let Some(event) = conn.quic.poll() {
            if let QuicEvent::ConnectionLost { reason: found } = event {
                reason = found;
            }
        }
        self.net.events.extend(ended(link, &reason));
        self.leave(id);
    }

    fn read_datagrams(&mut self, id: u32, now: Instant) {
        let ns = self.ns(now);
        let Some(conn) = self.net.conns.get_mut(id as usize).and_then(Option::as_deref_mut) else { return };
        let mut dropped = 0;
        let mut bad = 0;
        while let Some(frame) = conn.quic.datagrams().recv() {
            if !conn.is_up {
                dropped += 1;
            } else if frame.len() == LINK_FRAME {
                self.frames.push(frame);
            } else {
                bad += 1;
            }
        }
        if dropped + bad > 0 {
            conn.cell.dropped_datagrams.fetch_add(u64::from(dropped + bad), Ordering::Relaxed);
            conn.bad_datagrams += bad;
            if conn.bad_datagrams > MAX_BAD_DATAGRAMS {
                self.net.fault(id, CODE_PROTOCOL, "datagrams of a wrong size");
            }
        }
        if !self.frames.is_empty() {
            let mut frames = std::mem::take(&mut self.frames);
            self.core.on_datagrams(id, &frames, ns, &mut self.net);
            frames.clear();
            self.frames = frames;
        }
    }

    fn on_stream_event(&mut self, id: u32, event: StreamEvent, now: Instant) {
        let Some(conn) = self.net.conn(id) else { return };
        match event {
            StreamEvent::Opened { dir: Dir::Bi } => {
                while let Some(conn) = self.net.conn(id) {
                    let Some(stream) = conn.quic.streams().accept(Dir::Bi) else { return };
                    if stream.index() != 0 || conn.is_dialler {
                        self.net.fault(id, CODE_PROTOCOL, "a stream of a kind that is not used");
                        return;
                    }
                    conn.set_control(stream);
                    self.read_control(id, stream);
                }
            }
            StreamEvent::Opened { dir: Dir::Uni } => {
                let mut fresh = Vec::new();
                while let Some(stream) = conn.quic.streams().accept(Dir::Uni) {
                    fresh.push(stream);
                }
                if conn.is_up {
                    conn.widen();
                    for stream in fresh {
                        self.read_stream(id, stream, now);
                    }
                } else {
                    conn.early.extend(fresh);
                }
            }
            StreamEvent::Readable { id: stream } => {
                if stream.dir() == Dir::Bi {
                    self.read_control(id, stream);
                } else if conn.is_up {
                    self.read_stream(id, stream, now);
                }
            }
            StreamEvent::Writable { id: stream } => conn.resume(stream),
            StreamEvent::Stopped { id: stream, .. } => {
                if stream.dir() == Dir::Bi {
                    self.net.fault(id, CODE_PROTOCOL, "the control stream was ended");
                } else {
                    conn.forget_out(u64::from(stream));
                    // Frees the stream in QUIC also when the core does not know it any more.
                    let _ = conn.quic.send_stream(stream).reset(VarInt::from_u32(0));
                    self.core.on_stream_reset(id, u64::from(stream), &mut self.net);
                }
            }
            StreamEvent::Finished { .. } | StreamEvent::Available { .. } => {}
        }
    }

    fn read_control(&mut self, id: u32, stream: StreamId) {
        let is_full = self.shared.waiting_control.load(Ordering::Relaxed) > MAX_WAITING_CONTROL;
        let Some(conn) = self.net.conn(id) else { return };
        let is_link_full = conn.cell.waiting_control.load(Ordering::Relaxed) > MAX_WAITING_CONTROL_OF_LINK;
        if is_full || is_link_full {
            self.stall_control(id);
            if is_full {
                self.end_floods();
            }
            return;
        }
        let outcome = self.take_chunks(id, stream, MAX_WAITING_CONTROL_OF_LINK);
        let mut data = Vec::with_capacity(self.chunks.iter().map(Bytes::len).sum());
        for chunk in self.chunks.drain(..) {
            data.extend_from_slice(&chunk);
        }
        let Some(conn) = self.net.conn(id) else { return };
        if !data.is_empty() && !conn.is_gone {
            let (link, cell) = (conn.link, conn.cell.clone());
            self.shared.hold_control(&cell, data.len());
            self.net.events.push(Event::Control { link, data, cell });
        }
        match outcome {
            Taken::Open => {}
            Taken::Some => self.stall_control(id),
            Taken::Finished | Taken::Reset => {
                self.net.fault(id, CODE_PROTOCOL, "the control stream was ended");
            }
        }
    }

    /// Those who hold all they may of what is all held: what QUIC keeps of them must have an end, too.
    fn end_floods(&mut self) {
        for &id in &self.stalled {
            let Some(conn) = self.net.conn(id) else { continue };
            if conn.cell.waiting_control.load(Ordering::Relaxed) > MAX_WAITING_CONTROL_OF_LINK {
                self.net.fault(id, CODE_FLOOD, "control messages come faster than they can be read");
            }
        }
    }

    /// Read on when Python has taken what waits.
    fn stall_control(&mut self, id: u32) {
        let Some(conn) = self.net.conn(id) else { return };
        if !std::mem::replace(&mut conn.control_stalled, true) {
            self.stalled.push(id);
        }
    }

    fn read_stream(&mut self, id: u32, stream: StreamId, now: Instant) {
        let outcome = self.take_chunks(id, stream, usize::MAX);
        let ns = self.ns(now);
        let key = u64::from(stream);
        let mut chunks = std::mem::take(&mut self.chunks);
        for chunk in chunks.drain(..) {
            if self.net.conn(id).is_some_and(|conn| conn.is_up) {
                self.core.on_stream(id, key, &chunk, false, ns, &mut self.net);
            }
        }
        self.chunks = chunks;
        if !self.net.conn(id).is_some_and(|conn| conn.is_up) {
            return;
        }
        match outcome {
            Taken::Open | Taken::Some => {}
            Taken::Finished => self.core.on_stream(id, key, &[], true, ns, &mut self.net),
            Taken::Reset => self.core.on_stream_reset(id, key, &mut self.net),
        }
    }

    /// QUIC tells nothing more of streams that the core has had stopped: it must not keep them.
    fn forget_stopped(&mut self) {
        for (id, stream) in std::mem::take(&mut self.net.stopped) {
            self.core.on_stream_reset(id, stream, &mut self.net);
        }
    }

    /// Read what a stream has into `self.chunks`, until `most_bytes` have come.
    fn take_chunks(&mut self, id: u32, stream: StreamId, most_bytes: usize) -> Taken {
        let Some(conn) = self.net.conns.get_mut(id as usize).and_then(Option::as_deref_mut) else {
            return Taken::Open;
        };
        let mut receiving = conn.quic.recv_stream(stream);
        let mut reading = match receiving.read(true) {
            Ok(reading) => reading,
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => return Taken::Open,
        };
        let mut taken = 0;
        let outcome = loop {
            if taken >= most_bytes {
                break Taken::Some;
            }
            match reading.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    taken += chunk.bytes.len();
                    self.chunks.push(chunk.bytes);
                }
                Ok(None) => break Taken::Finished,
                Err(ReadError::Blocked) => break Taken::Open,
                Err(ReadError::Reset(_)) => break Taken::Reset,
            }
        };
        // The connection is flushed at the end of this turn in any case.
        let _ = reading.finalize();
        outcome
    }

    fn read_tun(&mut self, now: Instant) {
        let ns = self.ns(now);
        let mut bytes = 0;
        for _ in 0..TUN_READS_PER_TURN {
            if bytes >= TUN_BYTES_PER_TURN {
                break;
            }
            let Some(tun) = &self.net.tun else { return };
            let may_rest = tun.may_rest;
            match rustix::io::read(&tun.file, &mut self.tun_buffer) {
                Ok(0) => break,
                Ok(count) => {
                    bytes += count;
                    self.core.on_tun(&self.tun_buffer[..count], ns);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    self.net.note_tun_error(error);
                    break;
                }
            }
            if may_rest && self.entry_is_full() {
                // Not for long: one stalled circuit must not stop the others.
                if self.tun_rests < TUN_RESTS {
                    self.tun_rests += 1;
                    self.tun_rest_until = Some(now + TUN_REST);
                    return;
                }
                break;
            }
        }
        self.tun_rests = 0;
        self.tun_rest_until = None;
    }

    // -- going out

    fn flush(&mut self) {
        for _ in 0..FLUSH_ROUNDS {
            if self.net.dirty.is_empty() {
                return;
            }
            let now = Instant::now();
            let ns = self.ns(now);
            let mut dirty = std::mem::take(&mut self.net.dirty);
            for id in dirty.drain(..) {
                let Some(conn) = self.net.conn(id) else { continue };
                conn.is_dirty = false;
                let more = self.flush_one(id, now);
                if let Some(conn) = self.net.conn(id) {
                    if conn.is_up && conn.has_room_again() {
                        self.core.on_writable(id, ns, &mut self.net);
                    }
                }
                if more {
                    self.net.mark_dirty(id);
                }
            }
            // Keep the allocation, and what was marked meanwhile.
            dirty.append(&mut self.net.dirty);
            self.net.dirty = dirty;
            self.core.pump(ns, &mut self.net);
        }
    }

    /// Send what a connection has; true when it has more than its turn allows, or its socket is full.
    fn flush_one(&mut self, id: u32, now: Instant) -> bool {
        let ns = self.ns(now);
        let mut more = true;
        let mut buffer = std::mem::take(&mut self.transmit_buffer);
        for _ in 0..TRANSMITS_PER_TURN {
            let Some(conn) = self.net.conn(id) else { break };
            if !conn.is_gone {
                conn.trim_send_window();
                conn.resume_control();
            }
            let remote = conn.quic.remote_address();
            let Some(at) = self.sockets.iter().position(|socket| socket.is_ipv6 == remote.is_ipv6()) else {
                more = false;
                break;
            };
            if !self.sockets[at].pending.is_empty() {
                break;
            }
            let segments = self.sockets[at].state.max_gso_segments().min(MAX_SEGMENTS);
            buffer.clear();
            let Some(conn) = self.net.conn(id) else { break };
            let Some(transmit) = conn.quic.poll_transmit(now, segments, &mut buffer) else {
                more = false;
                break;
            };
            self.send(id, at, &buffer, &transmit);
        }
        self.transmit_buffer = buffer;
        self.endpoint_events(id);
        if let Some(conn) = self.net.conns.get_mut(id as usize).and_then(Option::as_deref_mut) {
            publish(conn, ns, false);
            let due = conn.quic.poll_timeout();
            if let Some(due) = due {
                if conn.scheduled.is_none_or(|scheduled| due < scheduled) {
                    conn.scheduled = Some(due);
                    self.timers.push(Reverse((due, id)));
                }
            }
        }
        more
    }

    fn send(&mut self, id: u32, at: usize, contents: &[u8], transmit: &quinn_proto::Transmit) {
        let socket = &mut self.sockets[at];
        let out = Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match socket.state.try_send(UdpSockRef::from(&socket.udp), &out) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.pending.push(Pending {
                    contents: out.contents.to_vec(),
                    destination: out.destination,
                    segment_size: out.segment_size,
                    ecn: out.ecn,
                    src_ip: out.src_ip,
                });
            }
            Err(error) => {
                self.shared.inboxes[usize::from(self.shard)]
                    .totals
                    .send_failures
                    .fetch_add(1, Ordering::Relaxed);
                if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
                    let size = transmit.segment_size.unwrap_or(transmit.size);
                    let reason = format!(
                        "path MTU too small: a UDP payload of {size} bytes does not fit the interface"
                    );
                    self.net.fault(id, 6, &reason);
                }
            }
        }
    }

    fn send_pending(&mut self, at: usize) {
        let socket = &mut self.sockets[at];
        let mut sent = 0;
        for pending in &socket.pending {
            let out = Transmit {
                destination: pending.destination,
                ecn: pending.ecn,
                contents: &pending.contents,
                segment_size: pending.segment_size,
                src_ip: pending.src_ip,
            };
            match socket.state.try_send(UdpSockRef::from(&socket.udp), &out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => sent += 1,
            }
        }
        socket.pending.drain(..sent);
    }

    /// Whether one more thing may be done for a stranger.
    fn may_answer(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.answers_at).as_secs_f64();
        self.answers = (self.answers + passed * ANSWERS_PER_S).min(ANSWERS_PER_S);
        self.answers_at = now;
        let may = self.answers >= 1.0;
        if may {
            self.answers -= 1.0;
        }
        may
    }

    /// Send an answer that no connection owns, at a bounded rate.
    fn answer(&mut self, contents: &[u8], transmit: &quinn_proto::Transmit, now: Instant) {
        if !self.may_answer(now) {
            return;
        }
        self.send_answer(contents[..transmit.size].to_vec(), transmit.destination, transmit.src_ip);
    }

    fn send_answer(&mut self, contents: Vec<u8>, destination: SocketAddr, src_ip: Option<std::net::IpAddr>) {
        let Some(socket) = self.sockets.iter_mut().find(|socket| socket.is_ipv6 == destination.is_ipv6())
        else {
            return;
        };
        if socket.pending.len() >= MAX_PENDING_SENDS {
            return;
        }
        let out = Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip };
        // What cannot be sent is lost, as any datagram may be.
        let _ = socket.state.try_send(UdpSockRef::from(&socket.udp), &out);
    }

    fn expire_timers(&mut self, now: Instant) {
        // Times that were overtaken by earlier ones stay until they are due: up to the idle time.
        if self.timers.len() > 4 * self.net.conns.len() + 256 {
            self.timers.clear();
            for (id, conn) in self.net.conns.iter().enumerate() {
                if let Some(at) = conn.as_deref().and_then(|conn| conn.scheduled) {
                    self.timers.push(Reverse((at, id as u32)));
                }
            }
        }
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(conn) = self.net.conns.get_mut(id as usize).and_then(Option::as_deref_mut) else {
                continue;
            };
            if conn.scheduled != Some(at) {
                continue;
            }
            conn.scheduled = None;
            match conn.quic.poll_timeout() {
                // What this was set for has been done meanwhile.
                Some(due) if due > now => {
                    conn.scheduled = Some(due);
                    self.timers.push(Reverse((due, id)));
                }
                Some(_) => {
                    conn.quic.handle_timeout(now);
                    self.timed_out(id, now);
                }
                None => {}
            }
        }
    }

    /// A timer may have lost the connection or set packets free.
    fn timed_out(&mut self, id: u32, now: Instant) {
        loop {
            let Some(conn) = self.net.conn(id) else { return };
            let Some(event) = conn.quic.poll() else { break };
            if let QuicEvent::ConnectionLost { reason } = event {
                if !conn.is_gone {
                    let link = conn.link;
                    if let Some(event) = ended(link, &reason) {
                        self.net.events.push(event);
                    }
                    self.links.remove(&link);
                    self.probes.forget(link);
                    self.leave(id);
                }
            } else if let QuicEvent::Stream(event) = event {
                self.on_stream_event(id, event, now);
            }
        }
        self.endpoint_events(id);
        self.net.mark_dirty(id);
    }

    // -- telling Python

    fn publish_meter(&self, id: MeterId) {
        if let (Some((_, cell)), Some(meter)) = (self.meter_cells.get(&id), self.core.meter(id)) {
            let charged = Charged {
                wei: meter.charged,
                packets: meter.packets,
                refused_packets: meter.refused_packets,
            };
            cell.publish(self.shard, meter.credit, charged);
        }
    }

    fn report(&mut self) {
        let mut meters = std::mem::take(&mut self.dirty_meters);
        self.core.dirty_meters(&mut meters);
        for id in meters.drain(..) {
            self.publish_meter(id);
        }
        self.dirty_meters = meters;
        self.core.dirty_flows(&mut self.dirty_flows);
        for id in self.dirty_flows.drain(..) {
            if let (Some((_, cell)), Some(counters)) = (self.flow_cells.get(&id), self.core.counters(id)) {
                store(cell, &counters);
            }
        }
        self.core.take_events(&mut self.core_events);
        for event in self.core_events.drain(..) {
            match event {
                CoreEvent::FlowLost { flow, fault, counters } => {
                    if let Some((name, cell)) = self.flow_cells.remove(&flow) {
                        store(&cell, &counters);
                        self.flows.remove(&name);
                        self.net.events.push(Event::FlowLost { flow: name, fault: fault as u8 });
                    }
                }
                CoreEvent::EchoReply { flow, token } => {
                    // One train may carry thousands; whoever asked for none has no use for them.
                    if self.shared.waiting_echoes.load(Ordering::Relaxed) >= MAX_WAITING_ECHOES {
                        continue;
                    }
                    if let Some((name, _)) = self.flow_cells.get(&flow) {
                        self.shared.waiting_echoes.fetch_add(1, Ordering::Relaxed);
                        self.net.events.push(Event::EchoReply { flow: *name, token });
                    }
                }
                CoreEvent::MeterLow { meter } => {
                    if let Some((name, _)) = self.meter_cells.get(&meter) {
                        self.net.events.push(Event::MeterLow { meter: *name });
                    }
                }
            }
        }
        if let Some(reason) = self.net.tun_error.take() {
            self.net.tun = None;
            self.net.events.push(Event::TunGone { reason });
        }
        let totals = &self.shared.inboxes[usize::from(self.shard)].totals;
        totals.used_bytes.store(self.core.own_bytes() as u64, Ordering::Relaxed);
        totals.unknown_packets.store(self.core.unknown_packets(), Ordering::Relaxed);
        let gate = self.core.gate_counters();
        for (cell, value) in totals.gate.iter().zip([gate.malformed, gate.spoofed, gate.refused]) {
            cell.store(value, Ordering::Relaxed);
        }
        self.shared.post(&mut self.net.events);
    }
}

#[derive(Default)]
struct Ready {
    readable: u32,
    writable: u32,
    commands: bool,
    tun: bool,
}

enum Taken {
    Open,
    /// There is more, of which QUIC will not tell again.
    Some,
    Finished,
    Reset,
}

fn store(cell: &FlowCell, counters: &FlowCounters) {
    let (forward, backward) = (&counters.forward, &counters.backward);
    let values = [
        forward.packets,
        forward.failures,
        forward.dropped,
        backward.packets,
        backward.failures,
        backward.dropped,
    ];
    for (cell, value) in cell.0.iter().zip(values) {
        cell.store(value, Ordering::Relaxed);
    }
}

fn peer_certificate(quic: &Connection) -> Option<Vec<u8>> {
    let identity = quic.crypto_session().peer_identity()?;
    let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

/// TLS alert 120 as a QUIC error: no ALPN in common (RFC 9001 section 8.1).
const NO_ALPN: u64 = 0x178;
const CODE_TIMEOUT: u64 = 7;
const CODE_TRANSPORT: u64 = 11;
const CODE_VERSION: u64 = 12;
const OTHER_VERSION: &str = "the other side speaks another version of the link protocol";

/// How the end of a connection is told to Python; None for one that Python asked for.
fn ended(link: Name, reason: &ConnectionError) -> Option<Event> {
    let transport = |code: u64, text: &str| {
        if code == NO_ALPN || (code == 0x128 && text.contains("ALPN")) {
            (CODE_VERSION, OTHER_VERSION.to_owned())
        } else if text.is_empty() {
            (CODE_TRANSPORT, format!("QUIC: {code}"))
        } else {
            (CODE_TRANSPORT, format!("QUIC: {text}"))
        }
    };
    let (by_peer, (code, reason)) = match reason {
        ConnectionError::ApplicationClosed(close) => {
            (true, (u64::from(close.error_code), String::from_utf8_lossy(&close.reason).into_owned()))
        }
        ConnectionError::ConnectionClosed(close) => {
            (false, transport(u64::from(close.error_code), &String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::TransportError(error) => (false, transport(u64::from(error.code), &error.reason)),
        ConnectionError::TimedOut => (false, (CODE_TIMEOUT, "nothing was received for too long".to_owned())),
        ConnectionError::VersionMismatch => (false, (CODE_VERSION, OTHER_VERSION.to_owned())),
        ConnectionError::Reset => {
            (false, (CODE_TRANSPORT, "QUIC: the other node has started anew".to_owned()))
        }
        ConnectionError::CidsExhausted => {
            (false, (CODE_TRANSPORT, "QUIC: no connection ids are left".to_owned()))
        }
        ConnectionError::LocallyClosed => return None,
    };
    Some(Event::Ended { link, by_peer, code, reason })
}
