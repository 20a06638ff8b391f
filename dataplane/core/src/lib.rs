//! The packets of hopfare, without sockets and without a clock.
//!
//! Owns what the native engine does to packets: onion layers with their keys and replay windows, trains and
//! bodies, the TUN's packets, queues, credits, meters and the flows that join them. It is told the time in
//! nanoseconds, and reaches the outside through one trait. The Python engine (overlay/engine, circuits,
//! exit) is its reference; docs/protocol is the law for both.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod keychain;
pub mod layers;
pub mod params;
pub mod suites;
pub mod window;
