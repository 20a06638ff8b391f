//! Congestion controllers of quinn-proto behind one bound on their window.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// No link keeps more in flight than this (1 Gbit/s at 130 ms): beyond it only queues grow.
const MAX_WINDOW_BYTES: u64 = 16 << 20;

/// Makes bounded controllers of another kind.
#[derive(Default)]
pub struct Bounded<F>(Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Bounded<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(BoundedController { inner: self.0.clone().build(now, current_mtu) })
    }
}

struct BoundedController {
    inner: Box<dyn Controller>,
}

impl Controller for BoundedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // A window at its bound must not go on growing unseen.
        let app_limited = app_limited || self.inner.window() >= MAX_WINDOW_BYTES;
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(MAX_WINDOW_BYTES)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
