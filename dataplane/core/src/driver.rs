//! What the core asks of the outside, and what it tells it.

use bytes::Bytes;

use crate::params::KEY_BYTES;

/// Nanoseconds of a clock that never goes back.
pub type Now = u64;
/// A link's number, chosen by the driver: small, and not used again while the core knows it.
pub type LinkId = u32;
/// A flow's number, chosen by the core and never used twice.
pub type FlowId = u64;
/// A circuit's root at one hop.
pub type Root = [u8; KEY_BYTES];

/// The outside: QUIC links and the TUN. Calls must not block. A `link` is always one that is up.
pub trait Driver {
    /// Smoothed round-trip time.
    fn rtt_ns(&self, link: LinkId) -> u64;
    /// How many datagrams may be queued now; after 0, `Core::on_writable` follows.
    fn datagram_room(&mut self, link: LinkId) -> usize;
    /// Queue one frame of LINK_FRAME bytes; called with room only.
    fn send_datagram(&mut self, link: LinkId, frame: Bytes);
    /// A new unidirectional stream; None when the peer allows no more.
    fn open_stream(&mut self, link: LinkId) -> Option<u64>;
    /// Append to a stream, all of it.
    fn send_stream(&mut self, link: LinkId, stream: u64, data: Bytes);
    /// Give up sending on a stream.
    fn reset_stream(&mut self, link: LinkId, stream: u64);
    /// Ask the peer to give up a stream of its own.
    fn stop_stream(&mut self, link: LinkId, stream: u64);
    /// Bytes of all streams that were appended and not sent once; when too much of it made the core stop,
    /// `Core::on_writable` follows once there is little.
    fn stream_backlog(&mut self, link: LinkId) -> usize;
    /// Close a link because its peer broke a rule.
    fn close_link(&mut self, link: LinkId, code: u64, reason: &'static str);
    /// Hand one packet to the TUN; false when it was not taken. A TUN without offloads gets whole packets and
    /// must not look at the header.
    fn tun_write(&mut self, header: &[u8; 10], packet: &[u8]) -> bool;
    /// Fill with bytes fit for keys.
    fn random(&mut self, out: &mut [u8]);
}

/// Why the core gave up a flow; the numbers are the node's (`FlowFault` in overlay/engine/interface.py).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// One of the flow's links went down.
    LinkClosed = 1,
    /// Too many packets failed their authentication.
    BadPackets = 2,
    /// The peer's circuit stream could not be read.
    BadFraming = 3,
    /// The peer sent more units than it was granted.
    FlowControl = 4,
    /// The peer gave up the circuit's stream.
    StreamReset = 5,
    /// The process reached its memory limit and this flow held the most.
    Memory = 6,
    /// A packet counter reached its end.
    Exhausted = 7,
}

/// What one direction of a flow has carried. A train of k units counts k packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that went on.
    pub packets: u64,
    /// Packets that no honest neighbour sends.
    pub failures: u64,
    /// Packets dropped without blame.
    pub dropped: u64,
}

/// Both directions of a flow: forward is away from the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Away from the client.
    pub forward: Traffic,
    /// Towards the client.
    pub backward: Traffic,
}

/// What the core tells the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A flow was given up; its last counters.
    FlowLost {
        /// Which.
        flow: FlowId,
        /// Why.
        fault: Fault,
        /// What it carried.
        counters: FlowCounters,
    },
    /// A client flow's echo came back.
    EchoReply {
        /// Whose.
        flow: FlowId,
        /// The bytes that were sent.
        token: [u8; 8],
    },
    /// A watched meter fell to its mark.
    MeterLow {
        /// Which.
        meter: crate::meter::MeterId,
    },
}

/// Why a flow could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// A link is not up.
    UnknownLink,
    /// A circuit id is taken on a link, or 0.
    IdInUse,
    /// There is no TUN, or no policy for an exit.
    NoTun,
    /// There is no suite of this number.
    BadSuite,
    /// A path has 1 to 4 hops.
    BadPath,
}

/// A circuit's inner addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerAddresses {
    /// IPv4.
    pub v4: [u8; 4],
    /// IPv6, where the exit has it.
    pub v6: Option<[u8; 16]>,
}
