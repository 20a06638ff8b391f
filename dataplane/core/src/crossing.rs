//! Circuits whose two links are on different shards: what crosses between their cores, and the outpost, which is
//! the end of such a circuit on the shard of its onward link (docs/decisions/0017-engine-threads.md).
//!
//! The flow with its keys and meters is on the shard of the link towards the client, its home. An outpost has the
//! circuit's id, streams, credits and queues on the other link, and passes packets on as they are.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::core::Core;
use crate::driver::{AddError, Driver, Fault, FlowId, InnerAddresses, LinkId, Now, Root};
use crate::flow::Kind;
use crate::ip::Address;
use crate::meter::Price;
use crate::params::UNIT;
use crate::queue::CodelQueue;
use crate::relay::{Relay, SINGLES_LIMIT_BYTES};
use crate::shared::{End, EndRef, Pulled, Shared};
use crate::suites::Suite;

/// A shard's number, from 0.
pub type ShardId = u8;

/// The link of an end that is on another shard: none of this core's.
pub(crate) const NO_LINK: LinkId = LinkId::MAX;
/// Single packets that may wait for another shard.
const SINGLES_BYTES: usize = 1 << 20;
/// Packets of the TUN that may wait for another shard.
pub const TUN_BYTES: usize = 2 << 20;

/// Whom something is for, on the other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A flow of the receiving shard.
    Home(FlowId),
    /// The outpost there of this flow of the sending shard.
    Outpost(FlowId),
    /// The circuit of an inner address.
    Tun,
}

/// What crosses.
#[derive(Debug)]
pub enum Unit {
    /// An outpost is wanted on a link, which has this name; the driver calls `Core::add_outpost`.
    Open {
        /// The flow's name: later ones are larger.
        name: u64,
        /// The link's name.
        link: u64,
        /// The circuit's id on it.
        circuit_id: u32,
    },
    /// A train: its first byte, then units.
    Train(BytesMut),
    /// A single packet, to an outpost behind its circuit id.
    Single(BytesMut),
    /// So many units of trains have gone on their way.
    Taken(usize),
    /// The sender's end of the circuit is gone.
    Ended(Fault),
    /// A raw read of the TUN.
    Tun(BytesMut),
}

impl Unit {
    /// Bytes that are counted as held.
    pub fn bytes(&self) -> usize {
        match self {
            Unit::Train(frame) => frame.len(),
            Unit::Tun(raw) => raw.len(),
            Unit::Single(_) => UNIT,
            Unit::Open { .. } | Unit::Taken(_) | Unit::Ended(_) => 0,
        }
    }
}

/// One thing on its way to another shard.
#[derive(Debug)]
pub struct Crossing {
    /// Whom it is for.
    pub to: Receiver,
    /// What it is.
    pub unit: Unit,
}

/// What waits for one other shard.
pub(crate) struct Outbox {
    words: VecDeque<Crossing>,
    singles: CodelQueue<Crossing>,
    tun: VecDeque<Crossing>,
    tun_bytes: usize,
    trains: VecDeque<Crossing>,
}

impl Outbox {
    pub fn new() -> Outbox {
        Outbox {
            words: VecDeque::new(),
            singles: CodelQueue::new(SINGLES_BYTES),
            tun: VecDeque::new(),
            tun_bytes: 0,
            trains: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty() && self.singles.is_empty() && self.tun.is_empty() && self.trains.is_empty()
    }
}

impl Shared {
    fn outbox(&mut self, shard: ShardId) -> Option<&mut Outbox> {
        self.outboxes.get_mut(usize::from(shard))
    }

    /// Send what is short and must not wait.
    pub fn cross_word(&mut self, shard: ShardId, to: Receiver, unit: Unit) {
        if let Some(outbox) = self.outbox(shard) {
            outbox.words.push_back(Crossing { to, unit });
        }
    }

    /// Send a train. Credits bound how many wait.
    pub fn cross_train(&mut self, shard: ShardId, to: Receiver, frame: BytesMut) {
        let bytes = frame.len();
        if let Some(outbox) = self.outbox(shard) {
            outbox.trains.push_back(Crossing { to, unit: Unit::Train(frame) });
            self.budget.add(bytes);
        }
    }

    /// Send a single packet; false when too many wait.
    pub fn cross_single(&mut self, shard: ShardId, to: Receiver, unit: Unit, now: Now) -> bool {
        match self.outboxes.get_mut(usize::from(shard)) {
            Some(outbox) => outbox.singles.push(Crossing { to, unit }, UNIT, now, &mut self.budget),
            None => false,
        }
    }

    /// Send a raw read of the TUN; false when too much waits.
    pub fn cross_tun(&mut self, shard: ShardId, raw: &[u8]) -> bool {
        if self.budget.is_over() {
            return false;
        }
        match self.outboxes.get_mut(usize::from(shard)) {
            Some(outbox) if outbox.tun_bytes + raw.len() <= TUN_BYTES => {
                outbox.tun.push_back(Crossing { to: Receiver::Tun, unit: Unit::Tun(BytesMut::from(raw)) });
                outbox.tun_bytes += raw.len();
                self.budget.add(raw.len());
                true
            }
            _ => false,
        }
    }
}

/// A circuit's end on the shard of its onward link.
pub(crate) struct Outpost {
    shard: ShardId,
    home: FlowId,
    name: u64,
}

impl Outpost {
    pub fn key(&self) -> (ShardId, FlowId) {
        (self.shard, self.home)
    }

    /// A whole frame came in from the link.
    pub fn on_train(&self, shared: &mut Shared, frame: BytesMut) {
        shared.cross_train(self.shard, Receiver::Home(self.home), frame);
    }

    /// A single packet came in from the link. What finds no room is lost, as on a link.
    pub fn on_single(&self, shared: &mut Shared, packet: &[u8], now: Now) {
        // Copied, for a packet may lie in a buffer of many, which would be held as long as it waits.
        let mut copy = shared.arena.empty(packet.len());
        copy.extend_from_slice(packet);
        shared.cross_single(self.shard, Receiver::Home(self.home), Unit::Single(copy), now);
    }

    /// The next train for the link. Its home then gives credit back to where it came from.
    pub fn pull_train(&self, shared: &mut Shared, end: &mut End, max_units: usize) -> Option<BytesMut> {
        let (frame, units) = end.take_train(&mut shared.budget, max_units)?;
        shared.cross_word(self.shard, Receiver::Home(self.home), Unit::Taken(units));
        Some(frame)
    }

    /// The next single packet for the link.
    pub fn pull_single(&self, shared: &mut Shared, end: &mut End, now: Now) -> Pulled {
        let frame = end.singles.as_mut().and_then(|queue| queue.pop(now, &mut shared.budget));
        frame.map_or(Pulled::Nothing, Pulled::Frame)
    }
}

impl Core {
    /// Have `shards` in all: this core may then send to the others.
    pub fn set_shards(&mut self, shards: usize) {
        self.shared.outboxes.resize_with(shards, Outbox::new);
    }

    /// As `relay`, where the onward link is on another shard; `Unit::Open` goes there with the names.
    pub fn relay_across(
        &mut self,
        root: &Root,
        suite: u8,
        link_in: LinkId,
        id_in: u32,
        price_in: Price,
        shard: ShardId,
        name: u64,
        link_out: u64,
        id_out: u32,
        price_out: Price,
    ) -> Result<FlowId, AddError> {
        let suite = Suite::from_number(suite).ok_or(AddError::BadSuite)?;
        if self.has_end(link_in, id_in)? || id_out == 0 {
            return Err(AddError::IdInUse);
        }
        let kind = Kind::Relay(Relay::new(root, suite, price_in, price_out));
        let flow = self.add(vec![End::new(link_in, id_in), End::new(NO_LINK, id_out)], kind);
        if let Some((entry, shared)) = self.flow_at(flow as u32) {
            let to = Receiver::Outpost(flow);
            if let Kind::Relay(relay) = &mut entry.kind {
                relay.across = Some((shard, to));
            }
            shared.cross_word(shard, to, Unit::Open { name, link: link_out, circuit_id: id_out });
        }
        Ok(flow)
    }

    /// Make the outpost that another shard asked for (`Unit::Open`); `link` is None when it is not there. The home
    /// is told when it cannot be.
    pub fn add_outpost(
        &mut self,
        from: ShardId,
        home: FlowId,
        name: u64,
        link: Option<LinkId>,
        circuit_id: u32,
        d: &mut impl Driver,
    ) {
        if let Some(link) = link {
            self.free_circuit_id(link, circuit_id, name, d);
            if self.has_end(link, circuit_id) == Ok(false) {
                let outpost = Kind::Outpost(Outpost { shard: from, home, name });
                let flow = self.add(vec![End::new(link, circuit_id)], outpost);
                self.shared.outposts.insert((from, home), flow as u32);
                return;
            }
        }
        self.shared.cross_word(from, Receiver::Home(home), Unit::Ended(Fault::LinkClosed));
    }

    /// Remove an older outpost that has this circuit id, for the flow of this name: its home has dropped it, or the
    /// node would not use the id again, but the word is still on its way.
    pub fn free_circuit_id(&mut self, link: LinkId, circuit_id: u32, name: u64, d: &mut impl Driver) {
        let found = self.shared.link(link).and_then(|known| known.ends.get(&circuit_id).copied());
        let Some(EndRef { flow: place, .. }) = found else { return };
        let is_older = |kind: &Kind| matches!(kind, Kind::Outpost(outpost) if outpost.name < name);
        if self.flow_at(place).is_some_and(|(flow, _)| is_older(&flow.kind)) {
            self.remove(place, d);
        }
    }

    /// Something came from another shard.
    pub fn on_crossing(&mut self, from: ShardId, crossing: Crossing, now: Now, d: &mut impl Driver) {
        let Crossing { to, unit } = crossing;
        self.shared.budget.arrive(unit.bytes());
        match to {
            Receiver::Home(flow) => {
                if let Some(place) = self.find(flow) {
                    self.home_takes(place, unit, now, d);
                }
            }
            Receiver::Outpost(flow) => {
                if let Some(&place) = self.shared.outposts.get(&(from, flow)) {
                    self.outpost_takes(place, unit, now, d);
                }
            }
            Receiver::Tun => {
                if let Unit::Tun(raw) = unit {
                    self.take_tun(&raw, now, false);
                }
            }
        }
    }

    fn home_takes(&mut self, place: u32, unit: Unit, now: Now, d: &mut impl Driver) {
        let Some((flow, shared)) = self.flow_at(place) else { return };
        let far = EndRef { flow: place, side: 1 };
        let taken = match unit {
            Unit::Train(frame) => flow.on_train(shared, far, frame, now, d),
            Unit::Single(packet) => flow.on_single(shared, far, &packet, now, d),
            Unit::Taken(units) => {
                let near = EndRef { flow: place, side: 0 };
                shared.consume(flow.end(near), near, units, now, d);
                Ok(())
            }
            Unit::Ended(fault) => Err(fault),
            Unit::Open { .. } | Unit::Tun(_) => Ok(()),
        };
        if let Err(fault) = taken {
            self.fail(place, fault, d);
        }
    }

    fn outpost_takes(&mut self, place: u32, unit: Unit, now: Now, d: &mut impl Driver) {
        let Some((flow, shared)) = self.flow_at(place) else { return };
        let at = EndRef { flow: place, side: 0 };
        let end = flow.end(at);
        match unit {
            Unit::Train(frame) => {
                end.put_train(&mut shared.budget, frame);
                shared.want_trains(end, at);
            }
            Unit::Single(frame) => {
                let queue = end.singles.get_or_insert_with(|| Box::new(CodelQueue::new(SINGLES_LIMIT_BYTES)));
                if queue.push(frame, UNIT, now, &mut shared.budget) {
                    shared.want_singles(end, at);
                }
            }
            Unit::Taken(units) => shared.consume(end, at, units, now, d),
            Unit::Ended(_) => {
                self.remove(place, d);
            }
            Unit::Open { .. } | Unit::Tun(_) => {}
        }
    }

    /// Whether anything waits for another shard.
    pub fn has_crossings(&self, shard: ShardId) -> bool {
        self.shared.outboxes.get(usize::from(shard)).is_some_and(|outbox| !outbox.is_empty())
    }

    /// The next thing for another shard: words, single packets, the TUN's packets, trains.
    pub fn next_crossing(&mut self, shard: ShardId, now: Now) -> Option<Crossing> {
        let Shared { outboxes, budget, .. } = &mut self.shared;
        let outbox = outboxes.get_mut(usize::from(shard))?;
        if let Some(word) = outbox.words.pop_front() {
            return Some(word);
        }
        if let Some(single) = outbox.singles.pop(now, budget) {
            budget.depart(UNIT);
            return Some(single);
        }
        let next = match outbox.tun.pop_front() {
            Some(packet) => {
                outbox.tun_bytes -= packet.unit.bytes();
                packet
            }
            None => outbox.trains.pop_front()?,
        };
        budget.remove(next.unit.bytes());
        budget.depart(next.unit.bytes());
        Some(next)
    }

    /// Bytes of the TUN that wait for other shards.
    pub fn crossing_tun_bytes(&self) -> usize {
        self.shared.outboxes.iter().map(|outbox| outbox.tun_bytes).sum()
    }

    /// Inner addresses belong to a circuit of another shard from now on.
    pub fn set_foreign(&mut self, addresses: InnerAddresses, shard: ShardId, name: u64) {
        for address in all(addresses) {
            self.by_address.remove(&address);
            self.foreign.insert(address, (shard, name));
        }
    }

    /// A circuit of another shard, of this name, is gone.
    pub fn forget_foreign(&mut self, addresses: InnerAddresses, name: u64) {
        for address in all(addresses) {
            if self.foreign.get(&address).is_some_and(|(_, known)| *known == name) {
                self.foreign.remove(&address);
            }
        }
    }

    /// Tell the other shards how much memory is held here, and learn what they hold; for once a turn.
    pub fn share_memory(&mut self) {
        self.shared.budget.share();
    }

    /// What this shard alone holds.
    pub fn own_bytes(&self) -> usize {
        self.shared.budget.own_bytes()
    }
}

pub(crate) fn all(addresses: InnerAddresses) -> impl Iterator<Item = Address> {
    [Some(Address::V4(addresses.v4)), addresses.v6.map(Address::V6)].into_iter().flatten()
}
