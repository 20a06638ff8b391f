//! One shard's rings to and from all others (docs/decisions/0017-engine-threads.md, "Crossing").

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use hopfare_core::ring::{ring, Sender, Taker, Weigh};
use hopfare_core::{Core, Crossing, Now, ShardId};
use quinn_proto::EcnCodepoint;

const PLACES: usize = 1024;
const RING_BYTES: usize = 4 << 20;
/// Datagrams of another shard's connections that may wait for their ring.
const STRAYED_BYTES: usize = 1 << 20;

/// A datagram that arrived at the wrong shard.
pub struct Strayed {
    pub remote: SocketAddr,
    pub local_ip: Option<IpAddr>,
    pub ecn: Option<EcnCodepoint>,
    pub data: BytesMut,
}

/// What one shard tells another.
pub enum Message {
    Crossing(Crossing),
    Datagram(Strayed),
    /// A packet of no connection of ours, which may be a Stateless Reset for one of yours.
    Reset {
        remote: SocketAddr,
        token: [u8; 16],
    },
}

impl Weigh for Message {
    fn bytes(&self) -> usize {
        match self {
            Message::Crossing(crossing) => crossing.unit.bytes(),
            Message::Datagram(strayed) => strayed.data.len(),
            Message::Reset { .. } => 0,
        }
    }
}

struct Outgoing {
    ring: Sender<Message>,
    /// Strayed datagrams, and resets.
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
}

/// See the module. There is none to oneself.
pub struct Handover {
    shard: ShardId,
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Option<Taker<Message>>>,
}

/// The rings between this many shards, for each shard its ends.
pub fn connect(shards: usize) -> Vec<Handover> {
    let mut all: Vec<Handover> = (0..shards)
        .map(|shard| Handover {
            shard: shard as ShardId,
            outgoing: (0..shards).map(|_| None).collect(),
            incoming: (0..shards).map(|_| None).collect(),
        })
        .collect();
    for from in 0..shards {
        for to in (0..shards).filter(|to| *to != from) {
            let (sender, taker) = ring(PLACES, RING_BYTES);
            all[from].outgoing[to] =
                Some(Outgoing { ring: sender, waiting: VecDeque::new(), waiting_bytes: 0 });
            all[to].incoming[from] = Some(taker);
        }
    }
    all
}

impl Handover {
    /// This shard's number.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.outgoing.len()
    }

    /// Note what has come. Python's words that were given before any of it was sent can be taken after this.
    pub fn note(&mut self) {
        for taker in self.incoming.iter_mut().flatten() {
            taker.note();
        }
    }

    /// Whether nothing has come.
    pub fn is_empty(&self) -> bool {
        self.incoming.iter().flatten().all(Taker::is_empty)
    }

    /// Take what was noted of one shard; true when that shard waits for room and must be woken.
    pub fn take(&mut self, from: usize, into: &mut Vec<Message>) -> bool {
        self.incoming[from].as_mut().is_some_and(|taker| taker.take(into))
    }

    /// Have a datagram wait for its shard; false when too many do.
    pub fn stray(&mut self, to: ShardId, strayed: Strayed) -> bool {
        let Some(Some(outgoing)) = self.outgoing.get_mut(usize::from(to)) else { return false };
        if outgoing.waiting_bytes + strayed.data.len() > STRAYED_BYTES {
            return false;
        }
        outgoing.waiting_bytes += strayed.data.len();
        outgoing.waiting.push_back(Message::Datagram(strayed));
        true
    }

    /// Tell all others of a packet that may be a Stateless Reset; the caller bounds how often.
    pub fn tell_reset(&mut self, remote: SocketAddr, token: [u8; 16]) {
        for outgoing in self.outgoing.iter_mut().flatten() {
            outgoing.waiting.push_back(Message::Reset { remote, token });
        }
    }

    /// Move what waits for one shard, here and in the core, to its ring; whether anything was.
    pub fn send(&mut self, to: usize, core: &mut Core, now: Now) -> bool {
        let Some(outgoing) = self.outgoing[to].as_mut() else { return false };
        let mut has_sent = false;
        while (!outgoing.waiting.is_empty() || core.has_crossings(to as ShardId))
            && !outgoing.ring.must_wait()
        {
            let message = if let Some(message) = outgoing.waiting.pop_front() {
                outgoing.waiting_bytes -= message.bytes();
                message
            } else if let Some(crossing) = core.next_crossing(to as ShardId, now) {
                Message::Crossing(crossing)
            } else {
                break;
            };
            has_sent |= outgoing.ring.push(message);
        }
        has_sent
    }
}
