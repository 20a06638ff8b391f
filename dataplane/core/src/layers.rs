//! What every hop does to a packet of one lane: open or add layers (docs/protocol/onion.md, "Packets").
//!
//! One object per hop, direction and lane; all of a circuit's are made when it is built, then the roots are
//! forgotten. `packet` is one whole packet without its circuit id; `now` is in nanoseconds.

mod client;
mod lane;
mod relay;

pub use client::{ClientBackward, ClientForward};
pub use lane::{Command, Health, Lane, Opened};
pub use relay::{ExitBackward, RelayBackward, RelayForward};
