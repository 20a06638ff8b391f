//! The replay window of one epoch: which of the last WINDOW counters were accepted (docs/protocol/onion.md,
//! "Replay").

use crate::params::WINDOW;

const WORDS: usize = WINDOW as usize / 64 + 1; // one more than the window: the highest word may be partly ahead

/// Accepts each counter of an epoch once, and none that is WINDOW or more below the highest accepted.
pub struct ReplayWindow {
    /// One above the highest counter marked; the epoch's first counter before any.
    next: u64,
    ring: Option<Box<[u64; WORDS]>>,
}

impl ReplayWindow {
    /// A window whose lowest counter is `first`, a multiple of 64.
    pub fn new(first: u64) -> ReplayWindow {
        debug_assert_eq!(first % 64, 0);
        ReplayWindow { next: first, ring: None }
    }

    /// Whether WINDOW counters of this epoch, which starts at `first`, have been passed.
    pub fn has_left(&self, first: u64) -> bool {
        self.next > first + WINDOW
    }

    /// Whether `counter`, which is in this window's epoch, may still be accepted.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        counter + WINDOW >= self.next
            && self.ring.as_ref().is_none_or(|ring| ring[slot(counter)] >> (counter % 64) & 1 == 0)
    }

    /// Mark a fresh counter as used and move the window up to it.
    pub fn mark(&mut self, counter: u64) {
        let ring = self.ring.get_or_insert_with(|| Box::new([0; WORDS]));
        if counter >= self.next {
            // `next` may start a word: that word is then cleared again, as is right.
            let passed = counter / 64 - self.next / 64 + u64::from(self.next % 64 == 0);
            if passed >= WORDS as u64 {
                ring.fill(0);
            } else {
                for place in 0..passed {
                    ring[slot(counter - 64 * place)] = 0;
                }
            }
            self.next = counter + 1;
        }
        ring[slot(counter)] |= 1 << (counter % 64);
    }
}

fn slot(counter: u64) -> usize {
    ((counter / 64) % WORDS as u64) as usize
}
