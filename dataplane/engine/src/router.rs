//! Where Python's words go: which shard has a link, a flow, a meter (docs/decisions/0017-engine-threads.md).

use std::sync::Arc;

use hopfare_core::{InnerAddresses, ShardId};
use rustc_hash::FxHashMap;

use crate::shared::{Command, FlowKind, MeterCell, Name, Shared};

/// Of a name that an `Incoming` event gives, these bits are the shard.
pub const SHARD_BITS: u32 = 6;
pub const MAX_SHARDS: usize = 1 << SHARD_BITS;

/// A circuit would need two meters with limits that are charged on different shards.
pub struct Divided;

struct Place {
    cell: Arc<MeterCell>,
    credit: Option<u128>,
    low: u128,
    is_watched: bool,
    /// One bit for each shard that has it.
    shards: u64,
    /// A meter with a limit has a shard of its own once a circuit names it; until then it is on the first.
    is_settled: bool,
}

struct Home {
    shard: usize,
    addresses: Option<InnerAddresses>,
}

/// See the module.
pub struct Router {
    links: FxHashMap<Name, usize>,
    loads: Vec<usize>,
    flows: FxHashMap<Name, Home>,
    meters: FxHashMap<Name, Place>,
}

impl Router {
    pub fn new(shards: usize) -> Self {
        Self {
            links: FxHashMap::default(),
            loads: vec![0; shards],
            flows: FxHashMap::default(),
            meters: FxHashMap::default(),
        }
    }

    /// Send a command to whom it concerns; what concerns nobody is dropped.
    pub fn route(&mut self, shared: &Shared, command: Command) -> Result<(), Divided> {
        match command {
            Command::Dial { link, remote, cell } => {
                let shard = (0..self.loads.len()).min_by_key(|shard| self.loads[*shard]).unwrap_or(0);
                self.place_link(link, shard);
                shared.send(shard, Command::Dial { link, remote, cell });
            }
            Command::Accept { incoming, link, cell } => {
                let shard = self.shard_of(incoming);
                self.place_link(link, shard);
                shared.send(shard, Command::Accept { incoming, link, cell });
            }
            Command::Retry { incoming } | Command::Ignore { incoming } => {
                shared.send(self.shard_of(incoming), command);
            }
            Command::Probe { link, .. } | Command::Control { link, .. } | Command::Up { link, .. } => {
                if let Some(&shard) = self.links.get(&link) {
                    shared.send(shard, command);
                }
            }
            Command::Close { link, .. } => {
                if let Some(shard) = self.links.remove(&link) {
                    self.loads[shard] -= 1;
                    shared.send(shard, command);
                }
            }
            Command::AddFlow { flow, suite, kind, cell } => {
                let kind = self.place_flow(shared, flow, kind)?;
                let shard = self.flows[&flow].shard;
                shared.send(shard, Command::AddFlow { flow, suite, kind, cell });
            }
            Command::DropFlow { flow } => {
                if let Some(shard) = self.forget_flow(shared, flow) {
                    shared.send(shard, command);
                }
            }
            Command::Echo { flow, .. } => {
                if let Some(home) = self.flows.get(&flow) {
                    shared.send(home.shard, command);
                }
            }
            Command::AddCredit { meter, wei, flows } => self.add_credit(shared, meter, wei, flows),
            Command::NewMeter { meter, credit, low, cell } => {
                let mut place = Place { cell, credit, low, is_watched: false, shards: 0, is_settled: false };
                if credit.is_some() {
                    place.put(shared, meter, 0);
                }
                self.meters.insert(meter, place);
            }
            Command::FreeMeter { meter } => {
                if let Some(place) = self.meters.remove(&meter) {
                    place.each(|shard| shared.send(shard, Command::FreeMeter { meter }));
                }
            }
            Command::WatchMeter { meter, on } => {
                if let Some(place) = self.meters.get_mut(&meter) {
                    place.is_watched = on;
                    place.each(|shard| shared.send(shard, Command::WatchMeter { meter, on }));
                }
            }
            Command::SetLow { meter, wei } => {
                if let Some(place) = self.meters.get_mut(&meter) {
                    place.low = wei;
                    place.each(|shard| shared.send(shard, Command::SetLow { meter, wei }));
                }
            }
            Command::SetPolicy(policy) => {
                for shard in 0..self.loads.len() {
                    shared.send(shard, Command::SetPolicy(policy.clone()));
                }
            }
            Command::Expire => self.to_all(shared, || Command::Expire),
            Command::Stop => self.to_all(shared, || Command::Stop),
            // The others are made here, or sent to all by the binding.
            Command::Fail | Command::AttachTun(_) | Command::Foreign { .. } | Command::NoForeign { .. } => {
                shared.send(0, command);
            }
        }
        Ok(())
    }

    fn to_all(&self, shared: &Shared, make: impl Fn() -> Command) {
        for shard in 0..self.loads.len() {
            shared.send(shard, make());
        }
    }

    fn shard_of(&self, incoming: Name) -> usize {
        (incoming as usize % MAX_SHARDS).min(self.loads.len() - 1)
    }

    fn place_link(&mut self, link: Name, shard: usize) {
        self.links.insert(link, shard);
        self.loads[shard] += 1;
    }

    /// The shard of a link; None when it is gone.
    pub fn link_shard(&self, link: Name) -> Option<usize> {
        self.links.get(&link).copied()
    }

    fn place_flow(
        &mut self,
        shared: &Shared,
        flow: Name,
        mut kind: Box<FlowKind>,
    ) -> Result<Box<FlowKind>, Divided> {
        let (link, meters, addresses) = match &mut *kind {
            FlowKind::Relay { link_in, link_out, price_in, price_out, across, .. } => {
                let home = self.links.get(link_in);
                *across = match (home, self.links.get(link_out)) {
                    (Some(home), Some(other)) if home != other => Some(*other as ShardId),
                    _ => None,
                };
                (*link_in, vec![price_in.meter, price_out.meter], None)
            }
            FlowKind::Exit { link, price, addresses, .. }
            | FlowKind::Client { link, price, addresses, .. } => (*link, vec![price.meter], Some(*addresses)),
        };
        // A link that has gone meanwhile is gone on any shard: the flow is reported lost there.
        let shard = self.links.get(&link).copied().unwrap_or(0);
        let is_divided = |name: &Name| {
            self.meters
                .get(name)
                .is_some_and(|place| place.credit.is_some() && place.is_settled && !place.is_on(shard))
        };
        if meters.iter().any(is_divided) {
            return Err(Divided);
        }
        for meter in meters {
            if let Some(place) = self.meters.get_mut(&meter) {
                place.settle(shared, meter, shard);
            }
        }
        if let (Some(addresses), true) = (addresses, shard != 0) {
            shared.send(0, Command::Foreign { flow, addresses, shard: shard as ShardId });
        }
        self.flows.insert(flow, Home { shard, addresses });
        Ok(kind)
    }

    /// A flow is gone; the shard that it was on.
    pub fn forget_flow(&mut self, shared: &Shared, flow: Name) -> Option<usize> {
        let home = self.flows.remove(&flow)?;
        if let (Some(addresses), true) = (home.addresses, home.shard != 0) {
            shared.send(0, Command::NoForeign { flow, addresses });
        }
        Some(home.shard)
    }

    fn add_credit(&mut self, shared: &Shared, meter: Name, wei: u128, flows: Vec<Name>) {
        let Some(place) = self.meters.get_mut(&meter) else { return };
        if let (Some(credit), false) = (&mut place.credit, place.is_settled) {
            *credit = credit.saturating_add(wei);
        }
        let homes: Vec<(Name, usize)> =
            flows.iter().filter_map(|flow| Some((*flow, self.flows.get(flow)?.shard))).collect();
        // Only a meter without a limit is on several shards, and adding to it changes nothing.
        place.each(|shard| {
            let flows = homes.iter().filter(|(_, home)| *home == shard).map(|(flow, _)| *flow).collect();
            shared.send(shard, Command::AddCredit { meter, wei, flows });
        });
    }
}

impl Place {
    fn is_on(&self, shard: usize) -> bool {
        self.shards & 1 << shard != 0
    }

    fn each(&self, mut visit: impl FnMut(usize)) {
        (0..MAX_SHARDS).filter(|shard| self.is_on(*shard)).for_each(&mut visit);
    }

    fn put(&mut self, shared: &Shared, meter: Name, shard: usize) {
        self.shards |= 1 << shard;
        if let Some(credit) = self.credit {
            self.cell.settle(shard, credit);
        }
        let (credit, low, cell) = (self.credit, self.low, self.cell.clone());
        shared.send(shard, Command::NewMeter { meter, credit, low, cell });
        if self.is_watched {
            shared.send(shard, Command::WatchMeter { meter, on: true });
        }
    }

    /// A circuit of a shard is to be charged to this.
    fn settle(&mut self, shared: &Shared, meter: Name, shard: usize) {
        self.is_settled = true;
        if self.is_on(shard) {
            return;
        }
        if self.credit.is_some() {
            // Nothing was charged to it yet, so its credit is known here.
            self.each(|old| shared.send(old, Command::FreeMeter { meter }));
            self.shards = 0;
        }
        self.put(shared, meter, shard);
    }
}
