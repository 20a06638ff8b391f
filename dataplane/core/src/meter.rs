//! Meters: a credit in wei per neighbour, charged before a packet is forwarded.
//!
//! A meter without a limit only counts: networks without payments, and the side that is paid later. Amounts
//! are u128 wei: what does not fit is 10^20 ether away, and is held at the limit rather than wrapped.

/// A meter's number, never used twice.
pub type MeterId = u32;

/// What one packet costs on one side of a flow, and the meter that it is taken from.
#[derive(Clone, Copy, Debug)]
pub struct Price {
    /// The meter.
    pub meter: MeterId,
    /// Wei per packet.
    pub wei: u128,
}

/// A neighbour's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Wei that may still be charged; None is no limit.
    pub credit: Option<u128>,
    /// The mark under which a notice is wanted.
    pub low: u128,
    /// Wei charged so far.
    pub charged: u128,
    /// Packets charged so far.
    pub packets: u64,
    /// Packets that the credit did not cover.
    pub refused_packets: u64,
}

#[derive(Default)]
struct Entry {
    meter: Meter,
    was_told: bool,
    is_watched: bool,
    is_dirty: bool,
}

/// All meters of a core.
#[derive(Default)]
pub struct Meters {
    entries: Vec<Option<Box<Entry>>>,
    dirty: Vec<MeterId>,
    low: Vec<MeterId>,
}

impl Meters {
    /// A new meter.
    pub fn add(&mut self, credit: Option<u128>, low: u128) -> MeterId {
        let meter = Meter { credit, low, ..Meter::default() };
        self.entries.push(Some(Box::new(Entry { meter, ..Entry::default() })));
        (self.entries.len() - 1) as MeterId
    }

    /// Forget a meter: flows that still name it forward nothing.
    pub fn free(&mut self, id: MeterId) {
        if let Some(entry) = self.entries.get_mut(id as usize) {
            *entry = None;
        }
    }

    /// A meter's present state; None if it was freed.
    pub fn get(&self, id: MeterId) -> Option<Meter> {
        Some(self.entries.get(id as usize)?.as_ref()?.meter)
    }

    #[inline]
    fn entry(&mut self, id: MeterId) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_deref_mut()
    }

    /// Add to the credit of a limited meter; a meter without a limit stays so.
    pub fn add_credit(&mut self, id: MeterId, wei: u128) {
        if let Some(entry) = self.entry(id) {
            if let Some(credit) = &mut entry.meter.credit {
                *credit = credit.saturating_add(wei);
                if *credit > entry.meter.low {
                    entry.was_told = false;
                }
            }
        }
        self.touch(id);
    }

    /// Move the mark under which a notice is wanted.
    pub fn set_low(&mut self, id: MeterId, low: u128) {
        if let Some(entry) = self.entry(id) {
            entry.meter.low = low;
            entry.was_told = false;
        }
        self.touch(id);
    }

    /// Whether a notice is wanted each time the credit falls to the mark.
    pub fn watch(&mut self, id: MeterId, is_watched: bool) {
        if let Some(entry) = self.entry(id) {
            entry.is_watched = is_watched;
        }
        self.touch(id);
    }

    /// How many of `wanted` packets the credit covers.
    #[inline]
    pub fn affordable(&self, price: Price, wanted: usize) -> usize {
        let Some(Some(entry)) = self.entries.get(price.meter as usize) else { return 0 };
        match entry.meter.credit {
            Some(credit) if price.wei > 0 => {
                usize::try_from(credit / price.wei).unwrap_or(usize::MAX).min(wanted)
            }
            _ => wanted,
        }
    }

    /// Whether the credit covers `packets`; if not, they are counted as refused.
    #[inline]
    pub fn can_pay(&mut self, price: Price, packets: usize) -> bool {
        let is_covered = match self.entries.get(price.meter as usize) {
            Some(Some(entry)) => entry.meter.credit.is_none_or(|credit| credit >= cost(price.wei, packets)),
            _ => false,
        };
        if !is_covered {
            self.refuse(price.meter, packets);
        }
        is_covered
    }

    /// Take the price of `packets`; false, and nothing taken, when the credit does not cover all of them.
    #[inline]
    pub fn charge(&mut self, price: Price, packets: usize) -> bool {
        let Some(entry) = self.entries.get_mut(price.meter as usize).and_then(|entry| entry.as_deref_mut())
        else {
            return false;
        };
        let meter = &mut entry.meter;
        let cost = cost(price.wei, packets);
        if let Some(credit) = &mut meter.credit {
            match credit.checked_sub(cost) {
                Some(left) => *credit = left,
                None => {
                    self.refuse(price.meter, packets);
                    return false;
                }
            }
        }
        meter.charged = meter.charged.saturating_add(cost);
        meter.packets += packets as u64;
        if !entry.is_dirty {
            entry.is_dirty = true;
            self.dirty.push(price.meter);
        }
        true
    }

    /// Count packets that the credit did not cover.
    #[cold]
    pub fn refuse(&mut self, id: MeterId, packets: usize) {
        if let Some(entry) = self.entry(id) {
            entry.meter.refused_packets += packets as u64;
        }
        self.touch(id);
    }

    fn touch(&mut self, id: MeterId) {
        if let Some(entry) = self.entry(id) {
            if !entry.is_dirty {
                entry.is_dirty = true;
                self.dirty.push(id);
            }
        }
    }

    /// Append the meters that changed since the last call.
    pub fn take_dirty(&mut self, out: &mut Vec<MeterId>) {
        self.find_low();
        for &id in &self.dirty {
            if let Some(Some(entry)) = self.entries.get_mut(id as usize) {
                entry.is_dirty = false;
                out.push(id);
            }
        }
        self.dirty.clear();
    }

    /// Append the watched meters that fell to their mark since they last rose above it, each once.
    pub fn take_low(&mut self, out: &mut Vec<MeterId>) {
        self.find_low();
        out.append(&mut self.low);
    }

    fn find_low(&mut self) {
        for &id in &self.dirty {
            let Some(Some(entry)) = self.entries.get_mut(id as usize) else { continue };
            let is_low = entry.meter.credit.is_some_and(|credit| credit <= entry.meter.low);
            if entry.is_watched && is_low && !entry.was_told {
                entry.was_told = true;
                self.low.push(id);
            }
        }
    }
}

fn cost(wei: u128, packets: usize) -> u128 {
    wei.saturating_mul(packets as u128)
}
