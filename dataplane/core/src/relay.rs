//! A circuit through this relay: packets of one link, changed by one layer, for another.

use bytes::BytesMut;

use crate::crossing::{Receiver, ShardId, Unit};
use crate::driver::{Driver, Fault, FlowCounters, Now, Root};
use crate::layers::{Lane, Opened, RelayBackward, RelayForward};
use crate::meter::{Meters, Price};
use crate::params::{CIRCUIT_ID_BYTES, LINK_FRAME, UNIT};
use crate::queue::CodelQueue;
use crate::shared::{End, EndRef, Held, Pulled, Shared};
use crate::suites::Suite;

/// Single packets that one circuit may have waiting on one link.
pub const SINGLES_LIMIT_BYTES: usize = 256 * 1024;

/// See the module. Its ends are the flow's: 0 faces the client, 1 the exit.
pub(crate) struct Relay {
    price_in: Price,
    price_out: Price,
    forward_trains: RelayForward,
    forward_singles: RelayForward,
    backward_trains: RelayBackward,
    backward_singles: RelayBackward,
    /// Where its other end is, if not on this shard, and what it is called there.
    pub across: Option<(ShardId, Receiver)>,
    pub held: Held,
}

impl Relay {
    /// All lanes are made at once, so that nobody keeps the root.
    pub fn new(root: &Root, suite: Suite, price_in: Price, price_out: Price) -> Relay {
        Relay {
            price_in,
            price_out,
            forward_trains: RelayForward::new(root, suite, Lane::Stream),
            forward_singles: RelayForward::new(root, suite, Lane::Datagram),
            backward_trains: RelayBackward::new(root, suite, Lane::Stream),
            backward_singles: RelayBackward::new(root, suite, Lane::Datagram),
            across: None,
            held: Held::default(),
        }
    }

    pub fn expire(&mut self, now: Now) {
        self.forward_trains.expire(now);
        self.forward_singles.expire(now);
        self.backward_trains.expire(now);
        self.backward_singles.expire(now);
    }

    fn can_pay(&self, meters: &mut Meters, packets: usize) -> bool {
        meters.can_pay(self.price_in, packets) && meters.can_pay(self.price_out, packets)
    }

    fn charge(&self, meters: &mut Meters, packets: usize) {
        meters.charge(self.price_in, packets);
        meters.charge(self.price_out, packets);
    }

    /// Whether both meters cover one packet; each that does not counts it as refused.
    fn both_pay(&self, meters: &mut Meters) -> bool {
        let pays_in = meters.can_pay(self.price_in, 1);
        meters.can_pay(self.price_out, 1) && pays_in
    }

    /// A whole frame came in on `place`; unpaid ones are held, which stops their credits too.
    pub fn on_train(
        &mut self,
        shared: &mut Shared,
        ends: &mut [End],
        counters: &mut FlowCounters,
        place: EndRef,
        mut frame: BytesMut,
        now: Now,
        d: &impl Driver,
    ) -> Result<(), Fault> {
        let units = (frame.len() - 1) / UNIT;
        if !self.held.is_empty() || !self.can_pay(&mut shared.meters, units) {
            self.held.push(place.side, frame, &mut shared.budget);
            return Ok(());
        }
        let packet = &mut frame[1..];
        if place.side == 0 {
            let opened = self.forward_trains.open(packet, now);
            if matches!(opened, Opened::Refused | Opened::Deliver) {
                counters.forward.failures += 1;
                return Err(Fault::BadPackets);
            }
            self.charge(&mut shared.meters, units);
            counters.forward.packets += units as u64;
            if opened == Opened::Drop {
                shared.consume(&mut ends[0], place, units, now, d);
                return Ok(());
            }
        } else {
            if !self.backward_trains.wrap(packet, now) {
                return Err(Fault::Exhausted);
            }
            self.charge(&mut shared.meters, units);
            counters.backward.packets += units as u64;
        }
        let other = EndRef { flow: place.flow, side: 1 - place.side };
        if let (Some((shard, to)), 0) = (self.across, place.side) {
            shared.cross_train(shard, to, frame);
            return Ok(());
        }
        let end = &mut ends[usize::from(other.side)];
        end.put_train(&mut shared.budget, frame);
        shared.want_trains(end, other);
        Ok(())
    }

    /// A single packet came in on `place`; unpaid ones are dropped.
    pub fn on_single(
        &mut self,
        shared: &mut Shared,
        ends: &mut [End],
        counters: &mut FlowCounters,
        place: EndRef,
        packet: &[u8],
        now: Now,
    ) -> Result<(), Fault> {
        let is_forward = place.side == 0;
        let traffic = if is_forward { &mut counters.forward } else { &mut counters.backward };
        if !self.both_pay(&mut shared.meters) {
            traffic.dropped += 1;
            return Ok(());
        }
        let other = EndRef { flow: place.flow, side: 1 - place.side };
        let end = &mut ends[usize::from(other.side)];
        let mut frame = shared.arena.zeroed(LINK_FRAME);
        frame[..CIRCUIT_ID_BYTES].copy_from_slice(&end.circuit_id.to_be_bytes());
        let out = &mut frame[CIRCUIT_ID_BYTES..];
        let opened = if is_forward {
            let lane = &mut self.forward_singles;
            let before = (lane.health.failures, lane.health.dropped);
            let opened = lane.open_to(packet, out, now);
            traffic.failures += lane.health.failures - before.0;
            traffic.dropped += lane.health.dropped - before.1;
            if lane.health.broken {
                return Err(Fault::BadPackets);
            }
            opened
        } else if self.backward_singles.wrap_to(packet, out, now) {
            Opened::Forward
        } else {
            return Err(Fault::Exhausted);
        };
        // Only what is authentic and new is billed: replays must not run up anybody's account. What goes back is
        // billed to who pays for it as it leaves (`pull_single`): what CoDel drops was not delivered.
        match opened {
            Opened::Refused => return Ok(()),
            Opened::Deliver => traffic.failures += 1,
            Opened::Drop | Opened::Forward => {}
        }
        if is_forward {
            self.charge(&mut shared.meters, 1);
        } else {
            shared.meters.charge(self.price_out, 1);
        }
        traffic.packets += 1;
        if let (Opened::Forward, Some((shard, to)), true) = (opened, self.across, is_forward) {
            if !shared.cross_single(shard, to, Unit::Single(frame), now) {
                traffic.dropped += 1;
            }
        } else if opened == Opened::Forward {
            let queue = end.singles.get_or_insert_with(|| Box::new(CodelQueue::new(SINGLES_LIMIT_BYTES)));
            if queue.push(frame, UNIT, now, &mut shared.budget) {
                shared.want_singles(end, other);
            } else {
                traffic.dropped += 1;
            }
        }
        Ok(())
    }

    /// The next single packet for `place`.
    pub fn pull_single(
        &mut self,
        shared: &mut Shared,
        ends: &mut [End],
        counters: &mut FlowCounters,
        place: EndRef,
        now: Now,
    ) -> Pulled {
        let queue = &mut ends[usize::from(place.side)].singles;
        let Some(frame) = queue.as_mut().and_then(|queue| queue.pop(now, &mut shared.budget)) else {
            return Pulled::Nothing;
        };
        if place.side == 0 && !shared.meters.charge(self.price_in, 1) {
            counters.backward.dropped += 1;
            return Pulled::Unpaid;
        }
        Pulled::Frame(frame)
    }

    /// The next train for `place`; its units are given back as credit to where it came from.
    pub fn pull_train(
        &mut self,
        shared: &mut Shared,
        ends: &mut [End],
        place: EndRef,
        max_units: usize,
        now: Now,
        d: &impl Driver,
    ) -> Option<BytesMut> {
        let end = &mut ends[usize::from(place.side)];
        let (frame, units) = end.take_train(&mut shared.budget, max_units)?;
        let source = EndRef { flow: place.flow, side: 1 - place.side };
        match self.across {
            Some((shard, to)) => shared.cross_word(shard, to, Unit::Taken(units)),
            None => shared.consume(&mut ends[usize::from(source.side)], source, units, now, d),
        }
        Some(frame)
    }
}
