//! A ring from one thread to another, bounded by places and by bytes, with a word back when a full one has room
//! (docs/decisions/0017-engine-threads.md, "Crossing").
//!
//! Waking is the caller's: a consumer that means to sleep says so in a `Bed`, then looks once more; a producer
//! that has sent looks at the bed. Each does so after a fence, so that one of both sees the other.

use std::sync::atomic::{fence, AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

/// What a ring counts of a thing.
pub trait Weigh {
    /// Bytes that it holds.
    fn bytes(&self) -> usize;
}

#[derive(Default)]
struct Gauge {
    bytes: AtomicUsize,
    is_wanted: AtomicBool,
}

/// The producer's end.
pub struct Sender<T> {
    ring: Producer<T>,
    gauge: Arc<Gauge>,
    limit_bytes: usize,
}

/// The consumer's end.
pub struct Taker<T> {
    ring: Consumer<T>,
    gauge: Arc<Gauge>,
    noted: usize,
}

/// A ring of so many places that takes nothing more once it holds `limit_bytes`.
pub fn ring<T: Weigh>(places: usize, limit_bytes: usize) -> (Sender<T>, Taker<T>) {
    let (producer, consumer) = RingBuffer::new(places);
    let gauge = Arc::new(Gauge::default());
    (Sender { ring: producer, gauge: gauge.clone(), limit_bytes }, Taker { ring: consumer, gauge, noted: 0 })
}

impl<T: Weigh> Sender<T> {
    fn is_full(&self) -> bool {
        self.ring.is_full() || self.gauge.bytes.load(Ordering::Acquire) >= self.limit_bytes
    }

    /// Whether there is no room; if so, the consumer's next `take` says that somebody waits.
    pub fn must_wait(&self) -> bool {
        if !self.is_full() {
            return false;
        }
        self.gauge.is_wanted.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_full()
    }

    /// Append; False, and the thing is lost, when there is no place, which `must_wait` tells before.
    pub fn push(&mut self, thing: T) -> bool {
        // Before it can be taken, and its bytes with it.
        let bytes = thing.bytes();
        self.gauge.bytes.fetch_add(bytes, Ordering::AcqRel);
        let is_in = self.ring.push(thing).is_ok();
        if !is_in {
            self.gauge.bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        is_in
    }
}

impl<T: Weigh> Taker<T> {
    /// Remember how much there is: `take` gives that and nothing that came later.
    pub fn note(&mut self) {
        self.noted = self.ring.slots();
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Take what was noted; true when the producer waits for room, and must be woken.
    pub fn take(&mut self, into: &mut Vec<T>) -> bool {
        let count = std::mem::take(&mut self.noted);
        if count == 0 {
            return false;
        }
        let Ok(chunk) = self.ring.read_chunk(count) else { return false };
        let mut bytes = 0;
        into.extend(chunk.into_iter().inspect(|thing| bytes += thing.bytes()));
        self.gauge.bytes.fetch_sub(bytes, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.gauge.is_wanted.swap(false, Ordering::Relaxed)
    }
}

/// Where one thread says that it sleeps.
#[derive(Default)]
pub struct Bed(AtomicBool);

impl Bed {
    /// The thread is about to sleep; it must look at its rings once more after this.
    pub fn lie_down(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The thread is awake.
    pub fn get_up(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// For whoever has sent something: whether the thread must be woken, told to one only.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
