//! What the proxy's thread and Python share: two queues with an eventfd each, notes, and figures as atomics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{eventfd, EventfdFlags};

use crate::grants::{CircuitName, GrantCell, GrantName};

/// Different notes of each kind kept until Python takes them; beyond it, a note without its detail.
const MAX_NOTES: usize = 4096;

/// As `overlay.socks.io.server.ProxyLimits`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    /// Connections to different hosts never share a circuit.
    pub by_destination: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv6() {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// What Python asks of the thread; carried out in order.
pub enum Command {
    Grant {
        grant: GrantName,
        key: Vec<u8>,
        circuit: CircuitName,
        source_v4: Ipv4Addr,
        source_v6: Option<Ipv6Addr>,
        cell: Arc<GrantCell>,
    },
    /// No new connections. With `abort` the circuit is dead: those that stand are reset, the others handed over.
    Revoke {
        grant: GrantName,
        abort: bool,
    },
    Learn {
        circuit: CircuitName,
        host: String,
        addresses: Vec<IpAddr>,
        until: Instant,
    },
    /// Sockets of the namespace; none when there are none to be had.
    Sockets {
        family: Family,
        sockets: Vec<OwnedFd>,
    },
    /// A connection that Python has made and answered: carry it to its end. `early` goes upstream first.
    Carry {
        grant: GrantName,
        client: OwnedFd,
        upstream: OwnedFd,
        early: Vec<u8>,
    },
    /// A connection that was handed over has ended, or has come back with `Carry`.
    Returned,
    /// Fails on purpose: the test that a fault in this thread ends the node.
    Fail,
    Stop,
}

/// A client that Python serves from here on.
#[derive(Debug)]
pub struct HandOver {
    pub client: OwnedFd,
    /// All that the client sent.
    pub bytes: Vec<u8>,
    /// How much of the answers was sent already.
    pub answered: usize,
    /// More may be waiting on the socket, for which no event will come.
    pub has_input: bool,
    /// Since the client came, or since its request was complete.
    pub age: Duration,
    /// Set when the request was read and a grant would have served it, or one like it.
    pub key: Option<Vec<u8>>,
    pub attempt: Option<Attempt>,
}

/// A connection that was being made.
#[derive(Debug)]
pub struct Attempt {
    pub grant: GrantName,
    /// Sockets on their way to these addresses; none when their circuit is dead.
    pub sockets: Vec<(IpAddr, OwnedFd)>,
    /// Addresses not tried yet.
    pub addresses: Vec<IpAddr>,
}

/// What the thread tells Python.
#[derive(Debug)]
pub enum Event {
    HandOver(Box<HandOver>),
    /// The store of sockets is half empty.
    NeedSockets {
        family: Family,
        count: usize,
    },
    /// A revoked grant has no connection any more.
    Drained {
        grant: GrantName,
    },
    CannotAccept {
        errno: i32,
    },
    Died {
        reason: String,
    },
}

/// What Python should know some time.
#[derive(Default)]
pub struct Notes {
    /// Connections that came about, by grant and port.
    pub opened: FxHashMap<(GrantName, u16), u64>,
    /// Requests for an address, by address.
    pub addresses: FxHashMap<IpAddr, u64>,
}

/// Figures of the whole proxy.
#[derive(Default)]
pub struct Totals {
    pub accepted: AtomicU64,
    pub established: AtomicU64,
    pub handed_over: AtomicU64,
    pub bytes_up: AtomicU64,
    pub bytes_down: AtomicU64,
    /// Connections in the thread's hands now.
    pub connections: AtomicUsize,
}

pub struct Shared {
    commands: Mutex<Vec<Command>>,
    command_fd: OwnedFd,
    command_flag: AtomicBool,
    events: Mutex<Vec<Event>>,
    event_fd: OwnedFd,
    notes: Mutex<Notes>,
    pub totals: Totals,
}

/// A lock whose holder panicked: the queues are whole between any two operations, so go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new() -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            commands: Mutex::default(),
            command_fd: eventfd(0, flags)?,
            command_flag: AtomicBool::new(false),
            events: Mutex::default(),
            event_fd: eventfd(0, flags)?,
            notes: Mutex::default(),
            totals: Totals::default(),
        })
    }

    pub fn command_fd(&self) -> &OwnedFd {
        &self.command_fd
    }

    pub fn event_fd(&self) -> &OwnedFd {
        &self.event_fd
    }

    pub fn send(&self, command: Command) {
        lock(&self.commands).push(command);
        if !self.command_flag.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is full, which wakes as well.
            let _ = rustix::io::write(&self.command_fd, &1u64.to_ne_bytes());
        }
    }

    /// For when `command_fd` is readable, and then only: whoever set the flag may not have written yet.
    pub fn take_commands(&self, into: &mut Vec<Command>) {
        let mut buffer = [0; 8];
        let _ = rustix::io::read(&self.command_fd, &mut buffer);
        self.command_flag.store(false, Ordering::Release);
        into.append(&mut lock(&self.commands));
    }

    pub fn post(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut queue = lock(&self.events);
        let was_empty = queue.is_empty();
        queue.append(events);
        drop(queue);
        if was_empty {
            let _ = rustix::io::write(&self.event_fd, &1u64.to_ne_bytes());
        }
    }

    pub fn take_events(&self) -> Vec<Event> {
        let mut buffer = [0; 8];
        let _ = rustix::io::read(&self.event_fd, &mut buffer);
        std::mem::take(&mut lock(&self.events))
    }

    pub fn note_opened(&self, grant: GrantName, port: u16) {
        let opened = &mut lock(&self.notes).opened;
        if opened.len() < MAX_NOTES || opened.contains_key(&(grant, port)) {
            *opened.entry((grant, port)).or_default() += 1;
        }
    }

    pub fn note_address(&self, address: IpAddr) {
        let addresses = &mut lock(&self.notes).addresses;
        let is_kept = addresses.len() < MAX_NOTES || addresses.contains_key(&address);
        *addresses.entry(if is_kept { address } else { Ipv4Addr::UNSPECIFIED.into() }).or_default() += 1;
    }

    pub fn take_notes(&self) -> Notes {
        std::mem::take(&mut lock(&self.notes))
    }
}
