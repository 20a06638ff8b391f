//! What flows share: links with their circuits' turns, meters, memory, buffers, the TUN and the exit's rules.

use std::collections::{HashMap, VecDeque};

use bytes::{BufMut, BytesMut};
use foldhash::fast::RandomState;

use crate::budget::Budget;
use crate::coalesce::Coalescer;
use crate::credit::{Credit, GrantReader};
use crate::crossing::{Outbox, ShardId};
use crate::driver::{Driver, Event, FlowId, LinkId, Now};
use crate::entry::Tails;
use crate::inner::ItemKind;
use crate::meter::Meters;
use crate::params::UNIT;
use crate::policy::PolicyTable;
use crate::queue::CodelQueue;
use crate::segment::to_packets;
use crate::trains::TrainReader;
use crate::vnet;

/// A hash map whose seed no peer knows.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// One end of a flow: its place among the flows, and 0 for the client's side, 1 for the exit's side of a
/// relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndRef {
    pub flow: u32,
    pub side: u8,
}

/// One circuit's end on one link: its lanes out, its credits, and what waits there for the link.
pub(crate) struct End {
    pub link: LinkId,
    pub circuit_id: u32,
    pub credit: Credit,
    pub stream_out: Option<u64>,
    pub stream_in: Option<u64>,
    pub reader: TrainReader,
    pub in_trains: bool,
    pub in_singles: bool,
    pub grant: Option<u64>,
    /// Sealed trains of a relay, each with its first byte.
    pub trains: VecDeque<BytesMut>,
    pub train_bytes: usize,
    /// Sealed single packets of a relay, each with its circuit id.
    pub singles: Option<Box<CodelQueue<BytesMut>>>,
}

impl End {
    pub fn new(link: LinkId, circuit_id: u32) -> End {
        End {
            link,
            circuit_id,
            credit: Credit::default(),
            stream_out: None,
            stream_in: None,
            reader: TrainReader::default(),
            in_trains: false,
            in_singles: false,
            grant: None,
            trains: VecDeque::new(),
            train_bytes: 0,
            singles: None,
        }
    }

    /// Have a sealed train wait for the link.
    pub fn put_train(&mut self, budget: &mut Budget, frame: BytesMut) {
        self.train_bytes += frame.len();
        budget.add(frame.len());
        self.trains.push_back(frame);
    }

    /// The next sealed train and its units, if it has at most `max_units`.
    pub fn take_train(&mut self, budget: &mut Budget, max_units: usize) -> Option<(BytesMut, usize)> {
        let units = (self.trains.front()?.len() - 1) / UNIT;
        if units > max_units {
            return None;
        }
        let frame = self.trains.pop_front()?;
        self.train_bytes -= frame.len();
        budget.remove(frame.len());
        if self.trains.is_empty() && self.trains.capacity() > 16 {
            self.trains = VecDeque::new();
        }
        Some((frame, units))
    }

    pub fn queued_bytes(&self) -> usize {
        self.train_bytes
            + self.reader.held_bytes()
            + self.singles.as_ref().map_or(0, |singles| singles.bytes())
    }
}

/// Trains that wait for a neighbour's payment, with the side that they came in on.
#[derive(Default)]
pub(crate) struct Held {
    frames: VecDeque<(u8, BytesMut)>,
    bytes: usize,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, side: u8, frame: BytesMut, budget: &mut Budget) {
        budget.add(frame.len());
        self.bytes += frame.len();
        self.frames.push_back((side, frame));
    }

    /// All of them, to be handed in again.
    pub fn take(&mut self, budget: &mut Budget) -> VecDeque<(u8, BytesMut)> {
        budget.remove(self.bytes);
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }
}

/// What an end gives to the datagrams of its link.
pub(crate) enum Pulled {
    /// A frame (circuit id, packet).
    Frame(BytesMut),
    /// A packet that nobody pays for: it is gone.
    Unpaid,
    /// Nothing waits, or it must not go yet.
    Nothing,
}

/// One of the peer's unidirectional streams.
#[derive(Clone)]
pub(crate) enum Inbound {
    Unnamed { head: [u8; 4], filled: usize },
    Grants(GrantReader),
    Frames(EndRef),
    Dead,
}

/// All circuits of one link.
#[derive(Default)]
pub(crate) struct Link {
    pub ends: Map<u32, EndRef>,
    pub trains: VecDeque<EndRef>,
    pub singles: VecDeque<EndRef>,
    pub grants: Vec<EndRef>,
    pub inbound: Map<u64, Inbound>,
    pub outbound: Map<u64, EndRef>,
    pub grant_out: Option<u64>,
    pub has_grants_in: bool,
    pub is_touched: bool,
    pub is_blocked: bool,
}

/// What an exit's gate refused, by cause. Never where to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// No packet that this exit carries.
    pub malformed: u64,
    /// A source that is not the circuit's.
    pub spoofed: u64,
    /// Refused by policy.
    pub refused: u64,
}

/// The TUN as the driver described it.
#[derive(Clone, Copy)]
pub(crate) struct Tun {
    pub has_offload: bool,
    pub by_source: bool,
}

/// An inner item on its way into a circuit. `data` starts with `headroom` bytes for what stands before it in a
/// train.
pub(crate) struct Item {
    pub kind: ItemKind,
    pub headroom: usize,
    /// A vnet header stands in front of the packet, as a part of the data or of the headroom (`entry`).
    pub has_vnet: bool,
    pub data: BytesMut,
}

/// Buffers cut from larger ones, so that few packets cost an allocation. A larger one is used again when all
/// its packets are gone.
pub(crate) struct Arena {
    chunk: BytesMut,
}

/// Small enough that one waiting packet does not hold much more than itself.
const ARENA_BYTES: usize = 16 * 1024;

impl Arena {
    fn new() -> Arena {
        Arena { chunk: BytesMut::new() }
    }

    /// A buffer of `size` zero bytes.
    #[inline]
    pub fn zeroed(&mut self, size: usize) -> BytesMut {
        self.make_room(size);
        self.chunk.put_bytes(0, size);
        self.chunk.split()
    }

    /// An empty buffer with room for `size` bytes, which the caller fills.
    #[inline]
    pub fn empty(&mut self, size: usize) -> BytesMut {
        // Only written bytes can be split off, so these are written twice.
        let mut buffer = self.zeroed(size);
        buffer.clear();
        buffer
    }

    fn make_room(&mut self, size: usize) {
        if self.chunk.capacity() < size && !self.chunk.try_reclaim(size) {
            self.chunk = BytesMut::with_capacity(size.max(ARENA_BYTES));
        }
    }
}

/// How many buffers of trains wait to be used again.
const SPARE_TRAINS: usize = 16;
/// Smaller ones are not worth it, and must not lie in large buffers.
const SPARE_FROM_BYTES: usize = 16 * 1024;

/// See the module.
pub(crate) struct Shared {
    pub links: Vec<Option<Box<Link>>>,
    pub meters: Meters,
    pub budget: Budget,
    pub arena: Arena,
    pub events: Vec<Event>,
    pub touched: Vec<LinkId>,
    pub blocked: Vec<LinkId>,
    pub dirty_flows: Vec<FlowId>,
    pub tun: Option<Tun>,
    pub policy: Option<PolicyTable>,
    pub gate: GateCounters,
    pub tun_refused: u64,
    pub coalescer: Coalescer,
    pub tails: Tails,
    /// What waits for each other shard; none where there is one only.
    pub outboxes: Vec<Outbox>,
    /// Outposts here of other shards' flows.
    pub outposts: Map<(ShardId, FlowId), u32>,
    /// Items on their way into one packet; empty between calls.
    pub items: Vec<Item>,
    /// A packet that is being looked at; meaningless between calls.
    pub scratch: Vec<u8>,
    spare: Vec<BytesMut>,
}

impl Shared {
    pub fn new(budget: Budget) -> Shared {
        Shared {
            links: Vec::new(),
            meters: Meters::default(),
            budget,
            arena: Arena::new(),
            events: Vec::new(),
            touched: Vec::new(),
            blocked: Vec::new(),
            dirty_flows: Vec::new(),
            tun: None,
            policy: None,
            gate: GateCounters::default(),
            tun_refused: 0,
            coalescer: Coalescer::default(),
            tails: Tails::default(),
            outboxes: Vec::new(),
            outposts: Map::default(),
            items: Vec::new(),
            scratch: Vec::new(),
            spare: Vec::new(),
        }
    }

    #[inline]
    pub fn link(&mut self, link: LinkId) -> Option<&mut Link> {
        self.links.get_mut(link as usize)?.as_deref_mut()
    }

    /// Have the link pumped before the batch ends.
    #[inline]
    fn touch(touched: &mut Vec<LinkId>, link: &mut Link, id: LinkId) {
        if !link.is_touched {
            link.is_touched = true;
            touched.push(id);
        }
    }

    /// Note that trains wait at an end.
    #[inline]
    pub fn want_trains(&mut self, end: &mut End, place: EndRef) {
        if end.in_trains || end.credit.sendable() == 0 {
            return;
        }
        if let Some(Some(link)) = self.links.get_mut(end.link as usize) {
            end.in_trains = true;
            link.trains.push_back(place);
            Self::touch(&mut self.touched, link, end.link);
        }
    }

    /// Note that single packets wait at an end.
    #[inline]
    pub fn want_singles(&mut self, end: &mut End, place: EndRef) {
        if end.in_singles {
            return;
        }
        if let Some(Some(link)) = self.links.get_mut(end.link as usize) {
            end.in_singles = true;
            link.singles.push_back(place);
            Self::touch(&mut self.touched, link, end.link);
        }
    }

    /// Give the peer credit back for units that went on their way.
    #[inline]
    pub fn consume(&mut self, end: &mut End, place: EndRef, units: usize, now: Now, d: &impl Driver) {
        let Some(Some(link)) = self.links.get_mut(end.link as usize) else { return };
        let rtt_ns = d.rtt_ns(end.link);
        if let Some(granted) = end.credit.consume(units, now, rtt_ns, self.budget.is_tight()) {
            if end.grant.replace(granted).is_none() {
                link.grants.push(place);
            }
            Self::touch(&mut self.touched, link, end.link);
        }
    }

    /// An empty buffer with room for `size` bytes.
    pub fn train_buffer(&mut self, size: usize) -> BytesMut {
        if size >= SPARE_FROM_BYTES && self.spare.last().is_some_and(|spare| spare.capacity() >= size) {
            self.spare.pop().unwrap_or_default()
        } else {
            BytesMut::with_capacity(size)
        }
    }

    /// Keep a train's buffer for the next one.
    pub fn give_back(&mut self, mut buffer: BytesMut) {
        if self.spare.len() < SPARE_TRAINS && buffer.capacity() >= SPARE_FROM_BYTES {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Hand one checked packet to the TUN, now or when the batch ends.
    pub fn write_tun(&mut self, header: &[u8; 10], packet: &[u8], d: &mut impl Driver) {
        let has_offload = self.tun.is_some_and(|tun| tun.has_offload);
        let mut refused = 0;
        let write =
            &mut |header: &[u8; 10], packet: &[u8]| refused += u64::from(!d.tun_write(header, packet));
        if has_offload {
            self.coalescer.offer(header, packet, write);
        } else if *header == vnet::PLAIN {
            write(header, packet);
        } else {
            let mut scratch = Vec::new();
            to_packets(&vnet::Header::decode(header), packet, &mut scratch, &mut |packet| {
                write(&vnet::PLAIN, packet);
            });
        }
        self.tun_refused += refused;
    }

    /// Hand what was kept for the TUN to it.
    pub fn flush_tun(&mut self, d: &mut impl Driver) {
        let mut refused = 0;
        self.coalescer.flush(&mut |header, packet| refused += u64::from(!d.tun_write(header, packet)));
        self.tun_refused += refused;
    }
}
