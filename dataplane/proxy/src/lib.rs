//! The data path of the local SOCKS5 proxy, without Python in the common case.
//!
//! One thread accepts clients and reads their handshakes. A CONNECT that Python has *granted* (who, where to, on which
//! circuit) is connected with a socket of the customer's namespace and carried to its end. Everything else is handed
//! over to Python with the client's socket and all bytes read so far, before anything was answered that Python would
//! not have answered itself. Python's half is `overlay/socks/io/native.py`; docs/protocol/socks.md says what is granted.
//! Behaviour and limits follow `overlay/socks/io/{connection,connect,pipe}.py`, which stay the reference.

mod conn;
mod grants;
pub mod handshake;
mod pipe;
mod shared;
mod sys;
mod thread;

pub use grants::{CircuitName, GrantCell, GrantName, NAMES_PER_CIRCUIT};
pub use shared::{Command, Event, Family, HandOver, Limits, Notes, Shared, Totals};
pub use thread::ProxyThread;
