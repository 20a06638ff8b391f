//! What the parts of a lane share: its two kinds, commands, sizes, and the count of failures that breaks it.

use crate::keychain::{Label, Order, ReceiveChain};
use crate::params::{DATAGRAM_FAILURES_LIMIT, MAX_TRAIN_BYTES, STREAM_FAILURES_LIMIT, UNIT};

/// The two kinds of lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lane {
    /// Single packets of one unit, in any order.
    Datagram = 1,
    /// Packets of 1 to 48 units, in order.
    Stream = 2,
}

impl Lane {
    pub(super) fn forward(self) -> Label {
        match self {
            Lane::Datagram => Label::Forward,
            Lane::Stream => Label::ForwardStream,
        }
    }

    pub(super) fn backward(self) -> Label {
        match self {
            Lane::Datagram => Label::Backward,
            Lane::Stream => Label::BackwardStream,
        }
    }

    /// The order of a receiver that accepts no counter twice.
    pub(super) fn order(self) -> Order {
        match self {
            Lane::Datagram => Order::Window,
            Lane::Stream => Order::Strict,
        }
    }
}

/// What a client tells a hop to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Pass it on.
    Forward = 0,
    /// Take its body.
    Deliver = 1,
    /// Forget it: cover traffic.
    Drop = 2,
}

/// What became of a packet from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is now the next link's packet.
    Forward,
    /// Its body stands behind the forward header.
    Deliver,
    /// It was cover traffic.
    Drop,
    /// It was refused and counted; its bytes are undefined.
    Refused,
}

/// The failures of a lane. Once `broken`, it opens and makes nothing more: the circuit must end.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    lane: Lane,
    /// Packets that no honest neighbour sends: wrong length, not authentic, or of no epoch in reach.
    pub failures: u64,
    /// Packets that came too late or twice, and were dropped without blame (datagram lane only).
    pub dropped: u64,
    /// Whether there were too many failures, or the counters are used up.
    pub broken: bool,
}

impl Health {
    pub(super) fn new(lane: Lane) -> Health {
        Health { lane, failures: 0, dropped: 0, broken: false }
    }

    /// Whether a packet of this lane may have this length.
    #[inline]
    pub(super) fn has_size(&self, size: usize) -> bool {
        match self.lane {
            Lane::Datagram => size == UNIT,
            Lane::Stream => size > 0 && size % UNIT == 0 && size <= MAX_TRAIN_BYTES,
        }
    }

    #[cold]
    pub(super) fn fail(&mut self) {
        let limit = match self.lane {
            Lane::Datagram => DATAGRAM_FAILURES_LIMIT,
            Lane::Stream => STREAM_FAILURES_LIMIT,
        };
        self.failures += 1;
        self.broken |= self.failures >= limit;
    }

    /// Count a packet for which `chain` has no keys.
    #[cold]
    pub(super) fn refuse(&mut self, chain: &ReceiveChain, counter: u64) {
        if chain.is_old(counter) {
            self.dropped += 1;
        } else {
            self.fail();
        }
    }
}
