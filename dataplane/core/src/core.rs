//! The engine without its drivers: links, flows and the TUN joined. The driver hands in what arrived, then
//! calls `pump`; packets leave through the `Driver` within these calls, news through `take_events`.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::budget::{Budget, Pool};
use crate::crossing::{all, Receiver, ShardId, Unit};
use crate::driver::{
    AddError, Driver, Event, Fault, FlowCounters, FlowId, InnerAddresses, LinkId, Now, Root,
};
use crate::endpoint::Endpoint;
use crate::flow::{Flow, Kind};
use crate::inner::ItemKind;
use crate::ip::{self, Address};
use crate::meter::{Meter, MeterId, Price};
use crate::params::{CIRCUIT_ID_BYTES, LINK_FRAME};
use crate::policy::{Policy, PolicyTable};
use crate::relay::Relay;
use crate::segment::to_packets;
use crate::shared::{End, EndRef, GateCounters, Link, Map, Shared, Tun};
use crate::suites::Suite;
use crate::vnet;

/// Flows whose keys are looked at in one go: 0.2 ms if all of them have keys to change.
const SWEEP_FLOWS: usize = 128;
/// Above this a customer's TUN rests a moment.
pub const ENTRY_REST_BYTES: usize = 6 * 1024 * 1024;

struct Slot {
    generation: u32,
    flow: Option<Box<Flow>>,
}

/// See the module.
pub struct Core {
    flows: Vec<Slot>,
    free: VecDeque<u32>,
    pub(crate) by_address: Map<Address, u32>,
    /// Addresses whose circuits are on other shards, by the names of their flows.
    pub(crate) foreign: Map<Address, (ShardId, u64)>,
    /// Flows from here on have not been looked at by the present `expire`.
    sweep: usize,
    pub(crate) shared: Shared,
    /// Packets of the TUN that belong to no circuit.
    unknown_packets: u64,
    /// Frames and streams that belong to no circuit.
    pub(crate) unknown_frames: u64,
}

impl Core {
    /// An engine whose queues may hold this much in all.
    pub fn new(memory_limit_bytes: usize) -> Core {
        Core::with_budget(Budget::new(memory_limit_bytes))
    }

    /// One shard of an engine whose queues may hold this much in all.
    pub fn sharded(memory_limit_bytes: usize, pool: Arc<Pool>, shard: ShardId, shards: usize) -> Core {
        let mut core = Core::with_budget(Budget::shared(memory_limit_bytes, pool, usize::from(shard)));
        core.set_shards(shards);
        core
    }

    fn with_budget(budget: Budget) -> Core {
        Core {
            flows: Vec::new(),
            free: VecDeque::new(),
            by_address: Map::default(),
            foreign: Map::default(),
            sweep: 0,
            shared: Shared::new(budget),
            unknown_packets: 0,
            unknown_frames: 0,
        }
    }

    /// Say what the TUN is. `by_source`: packets that come from it belong to the circuit of their source
    /// address (a client), else of their destination (an exit).
    pub fn attach_tun(&mut self, has_offload: bool, by_source: bool) {
        self.shared.tun = Some(Tun { has_offload, by_source });
        self.join_packets(has_offload, false);
    }

    /// Whether packets of one flow are joined for a TUN with offloads (`coalesce`): TCP, as is usual, and UDP if
    /// the TUN has USO. They reach the TUN with the `pump` that ends their batch at the latest. TCP's are also joined
    /// while they wait at a circuit's entry (`entry`). In both places acknowledgements that a later one supersedes are
    /// left out.
    pub fn join_packets(&mut self, tcp: bool, udp: bool) {
        self.shared.coalescer.tcp = tcp;
        self.shared.coalescer.udp = udp;
        self.shared.coalescer.acks = tcp;
        self.shared.tails.is_on = tcp;
    }

    /// Set or change the exit's rules.
    pub fn set_policy(&mut self, policy: Policy) {
        self.shared.policy = Some(PolicyTable::new(policy));
    }

    // -- links

    /// A link is ready.
    pub fn link_up(&mut self, link: LinkId) {
        let place = link as usize;
        if self.shared.links.len() <= place {
            self.shared.links.resize_with(place + 1, || None);
        }
        self.shared.links[place] = Some(Box::default());
    }

    /// A link is gone, and with it its flows. The driver is not asked about it any more.
    pub fn link_down(&mut self, link: LinkId, d: &mut impl Driver) {
        let Some(gone) = self.shared.links.get_mut(link as usize).and_then(Option::take) else { return };
        for end in gone.ends.values() {
            self.fail(end.flow, Fault::LinkClosed, d);
        }
    }

    /// Frames of LINK_FRAME bytes came in; others are counted and dropped.
    pub fn on_datagrams(&mut self, link: LinkId, frames: &[Bytes], now: Now, d: &mut impl Driver) {
        // Most often all of a batch belong to one circuit.
        let mut last: Option<(u32, EndRef)> = None;
        for frame in frames {
            let Some((id, packet)) = frame.split_first_chunk::<CIRCUIT_ID_BYTES>() else {
                self.unknown_frames += 1;
                continue;
            };
            let id = u32::from_be_bytes(*id);
            let place = match last {
                Some((known, place)) if known == id => Some(place),
                _ => self.shared.link(link).and_then(|link| link.ends.get(&id).copied()),
            };
            let (Some(place), true) = (place, frame.len() == LINK_FRAME) else {
                self.unknown_frames += 1;
                continue;
            };
            last = Some((id, place));
            let Some(flow) = self.flows[place.flow as usize].flow.as_deref_mut() else { continue };
            if let Err(fault) = flow.on_single(&mut self.shared, place, packet, now, d) {
                last = None;
                self.fail(place.flow, fault, d);
            }
        }
    }

    // -- the TUN

    /// One raw read of the TUN: a packet, behind its virtio_net_hdr if it has offloads.
    pub fn on_tun(&mut self, raw: &[u8], now: Now) {
        self.take_tun(raw, now, true);
    }

    pub(crate) fn take_tun(&mut self, raw: &[u8], now: Now, may_cross: bool) {
        let Some(tun) = self.shared.tun else { return };
        let (header, packet) = if tun.has_offload {
            let Some((header, packet)) = raw.split_first_chunk() else { return };
            (vnet::Header::decode(header), packet)
        } else {
            (vnet::Header::default(), raw)
        };
        let Some((protocol, source, destination)) = ip::addresses(packet) else { return };
        let address = if tun.by_source { source } else { destination };
        let Some(&place) = self.by_address.get(&address) else {
            match self.foreign.get(&address) {
                Some(&(shard, _)) if may_cross => {
                    self.shared.cross_tun(shard, raw);
                }
                _ => self.unknown_packets += 1,
            }
            return;
        };
        let Some(flow) = self.flows[place as usize].flow.as_deref_mut() else { return };
        let Kind::Endpoint(endpoint) = &mut flow.kind else { return };
        let place = EndRef { flow: place, side: 0 };
        let (shared, end) = (&mut self.shared, &mut flow.ends[0]);
        if protocol == ip::TCP && endpoint.enqueue_tcp(shared, end, place, &header, packet, now) {
            return;
        }
        if header.is_plain() {
            endpoint.enqueue(shared, end, place, ItemKind::Ip, [packet, &[]], protocol, now);
            return;
        }
        // A single packet that only lacks its checksum is shorter without the header, and may then fit one
        // unit. What no peer would take is cut here.
        let is_super = header.gso_type != 0 || protocol == ip::TCP;
        if is_super && ip::parse(packet).is_some_and(|parsed| vnet::is_valid(&header, packet, &parsed)) {
            endpoint.enqueue(shared, end, place, ItemKind::Offload, [raw, &[]], protocol, now);
            return;
        }
        let mut scratch = std::mem::take(&mut shared.scratch);
        to_packets(&header, packet, &mut scratch, &mut |packet| {
            endpoint.enqueue(shared, end, place, ItemKind::Ip, [packet, &[]], protocol, now);
        });
        shared.scratch = scratch;
    }

    /// Whether a customer's TUN should rest a moment: its kernel then holds TCP back without a loss.
    pub fn entry_is_full(&self) -> bool {
        self.entry_bytes() > ENTRY_REST_BYTES
    }

    /// Bytes of TCP that wait at the entries of all circuits here.
    pub fn entry_bytes(&self) -> usize {
        let waiting = |&place: &u32| match self.flows[place as usize].flow.as_deref() {
            Some(Flow { kind: Kind::Endpoint(endpoint), .. }) => endpoint.entry_bytes(),
            _ => 0,
        };
        self.by_address.values().map(waiting).sum()
    }

    // -- flows

    pub(crate) fn has_end(&self, link: LinkId, id: u32) -> Result<bool, AddError> {
        match self.shared.links.get(link as usize) {
            Some(Some(link)) => Ok(id == 0 || link.ends.contains_key(&id)),
            _ => Err(AddError::UnknownLink),
        }
    }

    /// Whether a circuit id is taken on a link, or the link is down.
    pub fn circuit_id_in_use(&self, link: LinkId, id: u32) -> bool {
        self.has_end(link, id).unwrap_or(true)
    }

    pub(crate) fn add(&mut self, ends: Vec<End>, kind: Kind) -> FlowId {
        let place = self.free.pop_front().unwrap_or_else(|| {
            self.flows.push(Slot { generation: 0, flow: None });
            (self.flows.len() - 1) as u32
        });
        for (side, end) in ends.iter().enumerate() {
            if let Some(link) = self.shared.link(end.link) {
                link.ends.insert(end.circuit_id, EndRef { flow: place, side: side as u8 });
            }
        }
        let slot = &mut self.flows[place as usize];
        let id = FlowId::from(slot.generation) << 32 | FlowId::from(place);
        let counters = FlowCounters::default();
        slot.flow = Some(Box::new(Flow { id, counters, is_dirty: false, ends, kind }));
        id
    }

    /// Join two links: peel one forward layer, add one backward layer, charge both meters.
    pub fn relay(
        &mut self,
        root: &Root,
        suite: u8,
        link_in: LinkId,
        id_in: u32,
        price_in: Price,
        link_out: LinkId,
        id_out: u32,
        price_out: Price,
    ) -> Result<FlowId, AddError> {
        let suite = Suite::from_number(suite).ok_or(AddError::BadSuite)?;
        let is_same = link_in == link_out && id_in == id_out;
        if self.has_end(link_in, id_in)? || self.has_end(link_out, id_out)? || is_same {
            return Err(AddError::IdInUse);
        }
        let kind = Kind::Relay(Relay::new(root, suite, price_in, price_out));
        Ok(self.add(vec![End::new(link_in, id_in), End::new(link_out, id_out)], kind))
    }

    /// Join a link and the TUN: the last layer.
    pub fn exit(
        &mut self,
        root: &Root,
        suite: u8,
        link: LinkId,
        id: u32,
        price: Price,
        addresses: InnerAddresses,
    ) -> Result<FlowId, AddError> {
        let suite = Suite::from_number(suite).ok_or(AddError::BadSuite)?;
        if self.shared.tun.is_none() || self.shared.policy.is_none() {
            return Err(AddError::NoTun);
        }
        self.endpoint(link, id, Endpoint::exit(root, suite, price, addresses))
    }

    /// Join the TUN and a link: all layers. `roots`: the guard's first.
    pub fn client(
        &mut self,
        roots: &[Root],
        suite: u8,
        link: LinkId,
        id: u32,
        price: Price,
        addresses: InnerAddresses,
    ) -> Result<FlowId, AddError> {
        let suite = Suite::from_number(suite).ok_or(AddError::BadSuite)?;
        if self.shared.tun.is_none() {
            return Err(AddError::NoTun);
        }
        let endpoint = Endpoint::client(roots, suite, price, addresses).ok_or(AddError::BadPath)?;
        self.endpoint(link, id, endpoint)
    }

    fn endpoint(&mut self, link: LinkId, id: u32, endpoint: Endpoint) -> Result<FlowId, AddError> {
        if self.has_end(link, id)? {
            return Err(AddError::IdInUse);
        }
        let addresses = endpoint.addresses;
        let flow = self.add(vec![End::new(link, id)], Kind::Endpoint(endpoint));
        for address in all(addresses) {
            self.foreign.remove(&address);
            self.by_address.insert(address, flow as u32);
        }
        Ok(flow)
    }

    pub(crate) fn find(&self, flow: FlowId) -> Option<u32> {
        let place = flow as u32;
        let found = self.flows.get(place as usize)?.flow.as_deref()?;
        (found.id == flow).then_some(place)
    }

    /// Send an echo request through a client flow; nothing happens on a flow that is gone.
    pub fn echo(&mut self, flow: FlowId, token: [u8; 8], now: Now, d: &mut impl Driver) {
        if let Some(place) = self.find(flow) {
            if let Some(Flow { kind: Kind::Endpoint(endpoint), ends, .. }) =
                self.flows[place as usize].flow.as_deref_mut()
            {
                if endpoint.is_client() {
                    let place = EndRef { flow: place, side: 0 };
                    endpoint.echo(&mut self.shared, &mut ends[0], place, &token, now);
                }
            }
        }
        self.pump(now, d);
    }

    /// Forget a flow; its last counters, or None if it was gone. No event follows.
    pub fn drop_flow(&mut self, flow: FlowId, d: &mut impl Driver) -> Option<FlowCounters> {
        self.remove(self.find(flow)?, d).map(|flow| flow.counters)
    }

    /// Try again what waited for credit of a meter.
    pub fn wake(&mut self, flow: FlowId, now: Now, d: &mut impl Driver) {
        let Some(place) = self.find(flow) else { return };
        let Some(flow) = self.flows[place as usize].flow.as_deref_mut() else { return };
        let shared = &mut self.shared;
        let held = match &mut flow.kind {
            Kind::Endpoint(endpoint) => endpoint.held.take(&mut shared.budget),
            Kind::Relay(relay) => relay.held.take(&mut shared.budget),
            Kind::Outpost(_) => return,
        };
        for (side, frame) in held {
            if let Err(fault) = flow.on_train(shared, EndRef { flow: place, side }, frame, now, d) {
                self.fail(place, fault, d);
                self.pump(now, d);
                return;
            }
        }
        if let Kind::Endpoint(endpoint) = &mut flow.kind {
            let at = EndRef { flow: place, side: 0 };
            if endpoint.has_trains() {
                shared.want_trains(&mut flow.ends[0], at);
            }
            if endpoint.has_singles() {
                shared.want_singles(&mut flow.ends[0], at);
            }
        }
        self.pump(now, d);
    }

    pub(crate) fn flow_at(&mut self, place: u32) -> Option<(&mut Flow, &mut Shared)> {
        let flow = self.flows.get_mut(place as usize)?.flow.as_deref_mut()?;
        Some((flow, &mut self.shared))
    }

    /// End a flow because of a fault.
    pub(crate) fn fail(&mut self, place: u32, fault: Fault, d: &mut impl Driver) {
        let Some(flow) = self.remove(place, d) else { return };
        if let Kind::Outpost(outpost) = &flow.kind {
            let (shard, home) = outpost.key();
            self.shared.cross_word(shard, Receiver::Home(home), Unit::Ended(fault));
        } else {
            self.shared.events.push(Event::FlowLost { flow: flow.id, fault, counters: flow.counters });
        }
    }

    pub(crate) fn remove(&mut self, place: u32, d: &mut impl Driver) -> Option<Box<Flow>> {
        let slot = self.flows.get_mut(place as usize)?;
        let mut flow = slot.flow.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push_back(place);
        let shared = &mut self.shared;
        let ends = flow.ends.len();
        match &mut flow.kind {
            Kind::Relay(relay) => {
                relay.held.take(&mut shared.budget);
                if let Some((shard, to)) = relay.across {
                    shared.cross_word(shard, to, Unit::Ended(Fault::LinkClosed));
                }
            }
            Kind::Outpost(outpost) => {
                shared.outposts.remove(&outpost.key());
            }
            Kind::Endpoint(endpoint) => {
                endpoint.clear(shared);
                for address in all(endpoint.addresses) {
                    if self.by_address.get(&address) == Some(&place) {
                        self.by_address.remove(&address);
                    }
                }
            }
        }
        for side in 0..ends {
            shared.detach(&mut flow.ends[side], EndRef { flow: place, side: side as u8 }, d);
        }
        Some(flow)
    }

    // -- time, memory, news

    /// Have idle circuits erase old keys; for a clock of some ten seconds. A few are done now, the others by the
    /// `pump`s that follow, so that no packet waits for all of them; what is left then is done first next time.
    pub fn expire(&mut self, now: Now) {
        while self.sweep < self.flows.len() {
            self.expire_some(now);
        }
        self.sweep = 0;
        self.expire_some(now);
    }

    pub(crate) fn expire_some(&mut self, now: Now) {
        let slots = self.flows.iter_mut().skip(self.sweep).take(SWEEP_FLOWS);
        for flow in slots.filter_map(|slot| slot.flow.as_deref_mut()) {
            flow.expire(now);
        }
        self.sweep = self.flows.len().min(self.sweep + SWEEP_FLOWS);
    }

    /// Over the limit: end the flows that hold the most until it is kept.
    pub(crate) fn free_memory(&mut self, d: &mut impl Driver) {
        while self.shared.budget.is_over() && self.shared.budget.holds_most() {
            let sizes = self.flows.iter().enumerate().filter_map(|(place, slot)| {
                slot.flow.as_deref().map(|flow| (flow.queued_bytes(), place as u32))
            });
            match sizes.max() {
                Some((bytes, place)) if bytes > 0 => self.fail(place, Fault::Memory, d),
                _ => return,
            }
        }
    }

    /// Whether there is news to be taken.
    pub fn has_events(&self) -> bool {
        !self.shared.events.is_empty()
    }

    /// Move the news since the last call to `out`.
    pub fn take_events(&mut self, out: &mut Vec<Event>) {
        let mut low = Vec::new();
        self.shared.meters.take_low(&mut low);
        out.append(&mut self.shared.events);
        out.extend(low.into_iter().map(|meter| Event::MeterLow { meter }));
    }

    /// What a flow has carried; None if it is gone.
    pub fn counters(&self, flow: FlowId) -> Option<FlowCounters> {
        let place = self.find(flow)?;
        self.flows[place as usize].flow.as_deref().map(|flow| flow.counters)
    }

    /// Move the flows whose counters changed since the last call to `out`.
    pub fn dirty_flows(&mut self, out: &mut Vec<FlowId>) {
        for id in std::mem::take(&mut self.shared.dirty_flows) {
            let slot = &mut self.flows[id as u32 as usize];
            if let Some(flow) = slot.flow.as_deref_mut().filter(|flow| flow.id == id) {
                flow.is_dirty = false;
                out.push(id);
            }
        }
    }

    /// Flows that there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    /// Bytes that wait anywhere.
    pub fn used_bytes(&self) -> usize {
        self.shared.budget.used_bytes()
    }

    /// Packets of the TUN that belonged to no circuit.
    pub fn unknown_packets(&self) -> u64 {
        self.unknown_packets
    }

    /// Frames and streams of peers that belonged to no circuit.
    pub fn unknown_frames(&self) -> u64 {
        self.unknown_frames
    }

    /// Packets that the TUN did not take, or that must not be written to one.
    pub fn tun_refused(&self) -> u64 {
        self.shared.tun_refused
    }

    /// Streams of a link that are remembered: the peer's and our own, with those of credits.
    pub fn stream_counts(&self, link: LinkId) -> (usize, usize) {
        let link = self.shared.links.get(link as usize).and_then(Option::as_ref);
        link.map_or((0, 0), |link| {
            (link.inbound.len(), link.outbound.len() + usize::from(link.grant_out.is_some()))
        })
    }

    /// What the exit's gate refused.
    pub fn gate_counters(&self) -> GateCounters {
        self.shared.gate
    }

    // -- meters

    /// A new meter; None is no limit.
    pub fn new_meter(&mut self, credit: Option<u128>, low: u128) -> MeterId {
        self.shared.meters.add(credit, low)
    }

    /// Forget a meter: flows that still name it forward nothing.
    pub fn free_meter(&mut self, meter: MeterId) {
        self.shared.meters.free(meter);
    }

    /// Add to a limited meter's credit. Flows that waited for it want `wake`.
    pub fn add_credit(&mut self, meter: MeterId, wei: u128) {
        self.shared.meters.add_credit(meter, wei);
    }

    /// Want a notice (`MeterLow`) when the credit falls to the mark, or no more.
    pub fn watch_meter(&mut self, meter: MeterId, is_watched: bool) {
        self.shared.meters.watch(meter, is_watched);
    }

    /// Move a meter's mark.
    pub fn set_low(&mut self, meter: MeterId, low: u128) {
        self.shared.meters.set_low(meter, low);
    }

    /// A meter's present state; None if it was freed.
    pub fn meter(&self, meter: MeterId) -> Option<Meter> {
        self.shared.meters.get(meter)
    }

    /// Move the meters that changed since the last call to `out`.
    pub fn dirty_meters(&mut self, out: &mut Vec<MeterId>) {
        self.shared.meters.take_dirty(out);
    }
}

impl Shared {
    /// Take an end off its link and give up its streams in both directions.
    fn detach(&mut self, end: &mut End, place: EndRef, d: &mut impl Driver) {
        self.budget.remove(end.train_bytes + end.reader.held_bytes());
        end.train_bytes = 0;
        end.trains.clear();
        if let Some(mut singles) = end.singles.take() {
            singles.clear(&mut self.budget);
        }
        let Some(Some(link)) = self.links.get_mut(end.link as usize) else { return };
        let link: &mut Link = link;
        link.ends.remove(&end.circuit_id);
        if end.in_trains {
            link.trains.retain(|other| *other != place);
        }
        if end.in_singles {
            link.singles.retain(|other| *other != place);
        }
        if end.grant.is_some() {
            link.grants.retain(|other| *other != place);
        }
        if let Some(stream) = end.stream_out.take() {
            link.outbound.remove(&stream);
            d.reset_stream(end.link, stream);
        }
        if let Some(stream) = end.stream_in.take() {
            link.inbound.insert(stream, crate::shared::Inbound::Dead);
            d.stop_stream(end.link, stream);
        }
    }
}
