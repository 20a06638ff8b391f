//! Bounded queues with CoDel at their head (RFC 8289; docs/protocol/engine.md, "Queues").

use std::collections::VecDeque;

use crate::budget::Budget;

/// Standing delay that is tolerated.
pub const CODEL_TARGET_NS: u64 = 20_000_000;
/// A round trip over several hops that is not slow.
pub const CODEL_INTERVAL_NS: u64 = 150_000_000;

struct Entry<T> {
    entered_ns: u64,
    bytes: usize,
    item: T,
}

/// A FIFO with a hard limit in bytes: `push` refuses what does not fit, `pop` gives the next item that CoDel
/// lets pass.
pub struct CodelQueue<T> {
    items: VecDeque<Entry<T>>,
    /// Number of the item at the head; the others count up from it.
    first: u32,
    limit_bytes: u32,
    bytes: usize,
    /// Items that were refused or that CoDel dropped.
    pub dropped: u64,
    first_above_ns: Option<u64>,
    drop_next_ns: u64,
    count: u32,
    is_dropping: bool,
}

fn control_law(count: u32) -> u64 {
    (CODEL_INTERVAL_NS as f64 / f64::from(count).sqrt()) as u64
}

impl<T> CodelQueue<T> {
    /// An empty queue.
    pub fn new(limit_bytes: usize) -> CodelQueue<T> {
        CodelQueue {
            items: VecDeque::new(),
            first: 0,
            limit_bytes: u32::try_from(limit_bytes).unwrap_or(u32::MAX),
            bytes: 0,
            dropped: 0,
            first_above_ns: None,
            drop_next_ns: 0,
            count: 0,
            is_dropping: false,
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes that wait.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Append; false, with the item counted as dropped, when the queue or the process is full.
    #[inline]
    pub fn push(&mut self, item: T, bytes: usize, now: u64, budget: &mut Budget) -> bool {
        if self.bytes + bytes > self.limit_bytes as usize || budget.is_over() {
            self.dropped += 1;
            return false;
        }
        self.items.push_back(Entry { entered_ns: now, bytes, item });
        self.bytes += bytes;
        budget.add(bytes);
        true
    }

    /// Number of the next item that `push` takes: items are numbered as they come, and keep their number.
    #[inline]
    pub fn next_number(&self) -> u32 {
        self.first.wrapping_add(self.items.len() as u32)
    }

    /// An item that still waits, by its number.
    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.items.get_mut(number.wrapping_sub(self.first) as usize).map(|entry| &mut entry.item)
    }

    /// The item of this number, which waits, has so many bytes more.
    pub fn grow(&mut self, number: u32, bytes: usize, budget: &mut Budget) {
        let place = number.wrapping_sub(self.first) as usize;
        if let Some(entry) = self.items.get_mut(place) {
            entry.bytes += bytes;
            self.bytes += bytes;
            budget.add(bytes);
        }
    }

    /// Bytes of the item at the head; 0 when there is none. CoDel may still drop it.
    #[inline]
    pub fn peek_bytes(&self) -> usize {
        self.items.front().map_or(0, |entry| entry.bytes)
    }

    /// The next item, or None when the queue is empty.
    #[inline]
    pub fn pop(&mut self, now: u64, budget: &mut Budget) -> Option<T> {
        let Some((mut item, mut may_drop)) = self.take(now, budget) else {
            self.is_dropping = false;
            return None;
        };
        if self.is_dropping {
            if !may_drop {
                self.is_dropping = false;
            }
            while self.is_dropping && now >= self.drop_next_ns {
                self.dropped += 1;
                self.count += 1;
                let Some(next) = self.take(now, budget) else {
                    self.is_dropping = false;
                    return None;
                };
                (item, may_drop) = next;
                if may_drop {
                    self.drop_next_ns += control_law(self.count);
                } else {
                    self.is_dropping = false;
                }
            }
        } else if may_drop {
            self.dropped += 1;
            let next = self.take(now, budget);
            self.is_dropping = next.is_some();
            // A queue that was dropping a moment ago resumes near its last rate (RFC 8289 section 4.2).
            let is_recent = now < self.drop_next_ns.saturating_add(16 * CODEL_INTERVAL_NS);
            self.count = if is_recent && self.count > 2 { self.count - 2 } else { 1 };
            self.drop_next_ns = now + control_law(self.count);
            return next.map(|(item, _)| item);
        }
        Some(item)
    }

    /// Put an item back at the head, for a taker that found no room for it.
    pub fn unpop(&mut self, item: T, bytes: usize, now: u64, budget: &mut Budget) {
        self.first = self.first.wrapping_sub(1);
        self.items.push_front(Entry { entered_ns: now, bytes, item });
        self.bytes += bytes;
        budget.add(bytes);
    }

    /// Forget everything, without counting it as dropped.
    pub fn clear(&mut self, budget: &mut Budget) {
        self.first = self.first.wrapping_add(self.items.len() as u32);
        self.items = VecDeque::new();
        budget.remove(self.bytes);
        self.bytes = 0;
    }

    #[inline]
    fn take(&mut self, now: u64, budget: &mut Budget) -> Option<(T, bool)> {
        let Some(entry) = self.items.pop_front() else {
            self.first_above_ns = None;
            return None;
        };
        self.first = self.first.wrapping_add(1);
        self.bytes -= entry.bytes;
        budget.remove(entry.bytes);
        if now.saturating_sub(entry.entered_ns) < CODEL_TARGET_NS || self.items.is_empty() {
            self.first_above_ns = None;
            return Some((entry.item, false));
        }
        match self.first_above_ns {
            None => {
                self.first_above_ns = Some(now + CODEL_INTERVAL_NS);
                Some((entry.item, false))
            }
            Some(at) => Some((entry.item, now >= at)),
        }
    }
}
