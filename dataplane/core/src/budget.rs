//! One memory limit for all packets that wait anywhere in the process.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::Arc;

/// What every shard of an engine holds, as of the end of its last turn, and what is between them.
#[derive(Debug)]
pub struct Pool {
    used: Box<[AtomicUsize]>,
    /// For a moment less than nothing, when the receiver was faster than the sender in saying so.
    crossing: AtomicIsize,
}

impl Pool {
    /// For this many shards.
    pub fn new(shards: usize) -> Pool {
        Pool { used: (0..shards).map(|_| AtomicUsize::new(0)).collect(), crossing: AtomicIsize::new(0) }
    }
}

/// Bytes of packets held by all queues, against one limit.
#[derive(Clone, Debug)]
pub struct Budget {
    limit_bytes: usize,
    own_bytes: usize,
    /// Of the other shards and between all, as of the last `share`.
    other_bytes: usize,
    /// Sent less received since the last `share`.
    crossed_bytes: isize,
    holds_most: bool,
    pool: Option<(Arc<Pool>, usize)>,
}

impl Budget {
    /// An empty budget.
    pub fn new(limit_bytes: usize) -> Budget {
        Budget { limit_bytes, own_bytes: 0, other_bytes: 0, crossed_bytes: 0, holds_most: true, pool: None }
    }

    /// One shard's part of a budget.
    pub fn shared(limit_bytes: usize, pool: Arc<Pool>, shard: usize) -> Budget {
        Budget { pool: Some((pool, shard)), ..Budget::new(limit_bytes) }
    }

    /// Tell the other shards what this one holds, and learn what they do. Costs a few atomics: once a turn.
    pub fn share(&mut self) {
        let Some((pool, shard)) = &self.pool else { return };
        pool.used[*shard].store(self.own_bytes, Ordering::Relaxed);
        let crossed = std::mem::take(&mut self.crossed_bytes);
        let crossing = if crossed == 0 {
            pool.crossing.load(Ordering::Relaxed)
        } else {
            pool.crossing.fetch_add(crossed, Ordering::Relaxed) + crossed
        };
        let mut sum = crossing.max(0) as usize;
        self.holds_most = true;
        for (at, used) in pool.used.iter().enumerate().filter(|(at, _)| at != shard) {
            let used = used.load(Ordering::Relaxed);
            sum += used;
            // Of two that hold the same, the first.
            self.holds_most &= used < self.own_bytes || (used == self.own_bytes && *shard < at);
        }
        self.other_bytes = sum;
    }

    /// Whether no other shard holds more: then it is this one that must free memory.
    pub fn holds_most(&self) -> bool {
        self.holds_most
    }

    /// Bytes held now, by all shards and between them.
    #[inline]
    pub fn used_bytes(&self) -> usize {
        self.own_bytes + self.other_bytes
    }

    /// What this shard holds.
    pub fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// `bytes` that were not held go to another shard.
    #[inline]
    pub fn depart(&mut self, bytes: usize) {
        self.crossed_bytes += bytes as isize;
    }

    /// `bytes` came from another shard, and are not held yet.
    #[inline]
    pub fn arrive(&mut self, bytes: usize) {
        self.crossed_bytes -= bytes as isize;
    }

    /// Note that `bytes` more are held.
    #[inline]
    pub fn add(&mut self, bytes: usize) {
        self.own_bytes += bytes;
    }

    /// Note that `bytes` are held no more.
    #[inline]
    pub fn remove(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.own_bytes);
        self.own_bytes = self.own_bytes.saturating_sub(bytes);
    }

    /// Whether more than the limit is held.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.used_bytes() > self.limit_bytes
    }

    /// Whether three quarters are held: no window grows.
    #[inline]
    pub fn is_tight(&self) -> bool {
        self.used_bytes().saturating_mul(4) > self.limit_bytes.saturating_mul(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_keep_one_limit() {
        let pool = Arc::new(Pool::new(2));
        let mut one = Budget::shared(100, pool.clone(), 0);
        let mut two = Budget::shared(100, pool, 1);
        one.add(70);
        two.add(40);
        for _ in 0..2 {
            one.share();
            two.share();
        }
        assert!(one.is_over() && two.is_over());
        assert!(one.holds_most() && !two.holds_most());
        // What is between them counts for both.
        one.remove(60);
        one.depart(60);
        for _ in 0..2 {
            one.share();
            two.share();
        }
        assert_eq!((one.used_bytes(), two.used_bytes()), (110, 110));
        assert!(two.holds_most() && !one.holds_most());
        two.arrive(60);
        two.add(30);
        two.remove(60);
        for _ in 0..2 {
            two.share();
            one.share();
        }
        assert_eq!((one.used_bytes(), two.used_bytes()), (20, 20));
        assert!(one.holds_most() && !two.holds_most() && !one.is_over());
    }
}
