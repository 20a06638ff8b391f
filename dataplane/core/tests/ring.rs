//! Rings between threads: everything arrives once and in order, bounds hold, and nobody sleeps for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use hopfare_core::ring::{ring, Bed, Sender, Taker, Weigh};
use proptest::prelude::*;

#[derive(Debug, PartialEq)]
struct Thing(u64, usize);

impl Weigh for Thing {
    fn bytes(&self) -> usize {
        self.1
    }
}

/// A thread's sleep, as an eventfd is one: a wake that comes before it is not lost.
#[derive(Default)]
struct Sleeper {
    bed: Bed,
    thread: std::sync::OnceLock<Thread>,
}

impl Sleeper {
    fn wake(&self) {
        self.thread.get_or_init(thread::current).unpark();
    }
}

fn sleep(deadline: Instant) {
    thread::park_timeout(Duration::from_secs(20));
    assert!(Instant::now() < deadline, "nobody woke a thread for whom there was work");
}

fn produce(mut out: Sender<Thing>, sizes: &[usize], me: &Sleeper, other: &Sleeper) {
    let deadline = Instant::now() + Duration::from_secs(20);
    me.thread.get_or_init(thread::current);
    for (at, size) in sizes.iter().enumerate() {
        while out.must_wait() {
            sleep(deadline);
        }
        assert!(out.push(Thing(at as u64, *size)));
        if other.bed.must_wake() {
            other.wake();
        }
    }
}

fn consume(mut from: Taker<Thing>, count: usize, me: &Sleeper, other: &Sleeper) -> Vec<Thing> {
    let deadline = Instant::now() + Duration::from_secs(20);
    me.thread.get_or_init(thread::current);
    let mut got = Vec::new();
    while got.len() < count {
        me.bed.lie_down();
        if from.is_empty() {
            sleep(deadline);
        }
        me.bed.get_up();
        from.note();
        if from.take(&mut got) {
            other.wake();
        }
    }
    got
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn all_arrives_in_order_and_nobody_sleeps_on(
        places in 1usize..9,
        limit in 1usize..4000,
        sizes in proptest::collection::vec(0usize..1500, 1..600),
    ) {
        let (out, from) = ring(places, limit);
        let (front, back) = (Arc::new(Sleeper::default()), Arc::new(Sleeper::default()));
        // Both have a thread to wake before either starts.
        let started = Arc::new(AtomicBool::new(false));
        let producer = {
            let (sizes, front, back, started) = (sizes.clone(), front.clone(), back.clone(), started.clone());
            thread::spawn(move || {
                front.thread.get_or_init(thread::current);
                while !started.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                produce(out, &sizes, &front, &back);
            })
        };
        back.thread.get_or_init(thread::current);
        while front.thread.get().is_none() {
            thread::yield_now();
        }
        started.store(true, Ordering::Release);
        let got = consume(from, sizes.len(), &back, &front);
        producer.join().unwrap();
        let wanted: Vec<Thing> = sizes.iter().enumerate().map(|(at, size)| Thing(at as u64, *size)).collect();
        prop_assert_eq!(got, wanted);
        // Each case runs in a thread of the test's: leave no wake behind for the next.
        thread::park_timeout(Duration::ZERO);
    }
}

#[test]
fn bytes_and_places_bound_a_ring() {
    let (mut out, mut from) = ring(4, 100);
    assert!(out.push(Thing(0, 99)) && !out.must_wait());
    assert!(out.push(Thing(1, 50)));
    assert!(out.must_wait());
    from.note();
    assert!(out.push(Thing(2, 0)));
    let mut got = Vec::new();
    assert!(from.take(&mut got), "the producer waits");
    assert_eq!(got, [Thing(0, 99), Thing(1, 50)], "what came after the note stays");
    assert!(!out.must_wait());
    for at in 3..6 {
        assert!(out.push(Thing(at, 0)));
    }
    assert!(out.must_wait() && !out.push(Thing(9, 0)));
}
