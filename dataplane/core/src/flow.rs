//! A circuit's entry: its ends, what it carried, and its kind. Hands what links and the TUN bring to the kind.

use bytes::BytesMut;

use crate::crossing::Outpost;
use crate::driver::{Driver, Fault, FlowCounters, FlowId, Now};
use crate::endpoint::Endpoint;
use crate::relay::Relay;
use crate::shared::{End, EndRef, Pulled, Shared};

/// What a flow joins.
pub(crate) enum Kind {
    /// Two links.
    Relay(Relay),
    /// A link and the TUN.
    Endpoint(Endpoint),
    /// A link and the flow on another shard.
    Outpost(Outpost),
}

/// See the module.
pub(crate) struct Flow {
    pub id: FlowId,
    pub counters: FlowCounters,
    pub is_dirty: bool,
    /// Two of a relay, the client's side first; one of an endpoint.
    pub ends: Vec<End>,
    pub kind: Kind,
}

impl Flow {
    pub fn end(&mut self, place: EndRef) -> &mut End {
        &mut self.ends[usize::from(place.side)]
    }

    fn touch(&mut self, shared: &mut Shared) {
        if !self.is_dirty && !matches!(self.kind, Kind::Outpost(_)) {
            self.is_dirty = true;
            shared.dirty_flows.push(self.id);
        }
    }

    pub fn queued_bytes(&self) -> usize {
        let inside = match &self.kind {
            Kind::Relay(relay) => relay.held.bytes(),
            Kind::Endpoint(endpoint) => endpoint.queued_bytes(),
            Kind::Outpost(_) => 0,
        };
        inside + self.ends.iter().map(End::queued_bytes).sum::<usize>()
    }

    pub fn expire(&mut self, now: Now) {
        match &mut self.kind {
            Kind::Relay(relay) => relay.expire(now),
            Kind::Endpoint(endpoint) => endpoint.expire(now),
            Kind::Outpost(_) => {}
        }
    }

    pub fn has_trains(&self, place: EndRef) -> bool {
        match &self.kind {
            Kind::Relay(_) | Kind::Outpost(_) => !self.ends[usize::from(place.side)].trains.is_empty(),
            Kind::Endpoint(endpoint) => endpoint.has_trains(),
        }
    }

    /// A whole frame (units, packet) came in on `place`.
    pub fn on_train(
        &mut self,
        shared: &mut Shared,
        place: EndRef,
        frame: BytesMut,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<(), Fault> {
        self.touch(shared);
        match &mut self.kind {
            Kind::Relay(relay) => {
                relay.on_train(shared, &mut self.ends, &mut self.counters, place, frame, now, d)
            }
            Kind::Endpoint(endpoint) => endpoint.on_train(
                shared,
                &mut self.ends[0],
                &mut self.counters,
                self.id,
                place,
                frame,
                now,
                d,
            ),
            Kind::Outpost(outpost) => {
                outpost.on_train(shared, frame);
                Ok(())
            }
        }
    }

    /// A single packet came in on `place`.
    pub fn on_single(
        &mut self,
        shared: &mut Shared,
        place: EndRef,
        packet: &[u8],
        now: Now,
        d: &mut impl Driver,
    ) -> Result<(), Fault> {
        self.touch(shared);
        match &mut self.kind {
            Kind::Relay(relay) => {
                relay.on_single(shared, &mut self.ends, &mut self.counters, place, packet, now)
            }
            Kind::Endpoint(endpoint) => endpoint.on_single(
                shared,
                &mut self.ends[0],
                &mut self.counters,
                self.id,
                place,
                packet,
                now,
                d,
            ),
            Kind::Outpost(outpost) => {
                outpost.on_single(shared, packet, now);
                Ok(())
            }
        }
    }

    /// The next frame (units, packet) of at most `max_units` for the stream of `place`.
    pub fn pull_train(
        &mut self,
        shared: &mut Shared,
        place: EndRef,
        max_units: usize,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<Option<BytesMut>, Fault> {
        match &mut self.kind {
            Kind::Relay(relay) => Ok(relay.pull_train(shared, &mut self.ends, place, max_units, now, d)),
            Kind::Outpost(outpost) => Ok(outpost.pull_train(shared, &mut self.ends[0], max_units)),
            Kind::Endpoint(endpoint) => {
                let frame = endpoint.pull_train(shared, &mut self.counters, max_units, now, d);
                self.touch(shared);
                frame
            }
        }
    }

    /// The next frame (circuit id, packet) for the datagrams of `place`.
    pub fn pull_single(
        &mut self,
        shared: &mut Shared,
        place: EndRef,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<Pulled, Fault> {
        match &mut self.kind {
            Kind::Relay(relay) => {
                Ok(relay.pull_single(shared, &mut self.ends, &mut self.counters, place, now))
            }
            Kind::Outpost(outpost) => Ok(outpost.pull_single(shared, &mut self.ends[0], now)),
            Kind::Endpoint(endpoint) => {
                let pulled = endpoint.pull_single(shared, &self.ends[0], &mut self.counters, now, d);
                self.touch(shared);
                pulled
            }
        }
    }
}
