//! One memory limit for all packets that wait anywhere in the process.

/// Bytes of packets held by all queues, against one limit.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    limit_bytes: usize,
    used_bytes: usize,
}

impl Budget {
    /// An empty budget.
    pub fn new(limit_bytes: usize) -> Budget {
        Budget { limit_bytes, used_bytes: 0 }
    }

    /// Bytes held now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Note that `bytes` more are held.
    #[inline]
    pub fn add(&mut self, bytes: usize) {
        self.used_bytes += bytes;
    }

    /// Note that `bytes` are held no more.
    #[inline]
    pub fn remove(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used_bytes);
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// Whether more than the limit is held.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.used_bytes > self.limit_bytes
    }

    /// Whether three quarters are held: no window grows.
    #[inline]
    pub fn is_tight(&self) -> bool {
        self.used_bytes.saturating_mul(4) > self.limit_bytes.saturating_mul(3)
    }
}
