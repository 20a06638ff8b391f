//! The packets of hopfare, without sockets and without a clock.
//!
//! Owns what the native engine does to packets: onion layers with their keys and replay windows, trains and
//! bodies, the TUN's packets, queues, credits, meters and the flows that join them. It is told the time in
//! nanoseconds, and reaches the outside through one trait (`Driver`). The Python engine (overlay/engine,
//! circuits, exit) is its reference; docs/protocol is the law for both.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
// What a packet meets on its way is passed down one by one, so that each can be borrowed by itself.
#![allow(clippy::too_many_arguments)]

pub mod budget;
pub mod build;
pub mod coalesce;
pub mod core;
pub mod credit;
pub mod crossing;
pub mod driver;
pub mod endpoint;
mod entry;
mod flow;
pub mod icmp;
pub mod inner;
pub mod ip;
mod join;
pub mod keychain;
pub mod lanes;
pub mod layers;
pub mod meter;
pub mod params;
pub mod policy;
pub mod queue;
pub mod relay;
pub mod ring;
pub mod segment;
mod shared;
pub mod suites;
pub mod trains;
pub mod vnet;
pub mod window;

pub use crate::core::Core;
pub use crate::crossing::{Crossing, Receiver, ShardId, Unit};
pub use crate::driver::{
    AddError, Driver, Event, Fault, FlowCounters, FlowId, InnerAddresses, LinkId, Now, Root, Traffic,
};
pub use crate::meter::{Meter, MeterId, Price};
pub use crate::policy::{Policy, Rule};
pub use crate::shared::GateCounters;
