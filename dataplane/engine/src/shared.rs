//! What the data thread and Python share: two queues with an eventfd each, and figures as atomics.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hopfare_core::{InnerAddresses, Policy};
use rustix::event::{eventfd, EventfdFlags};

/// Python's names for links, flows and meters: numbers that are never used again.
pub type Name = u64;

/// What control messages may hold while they wait for Python, in all and of one link: beyond it control streams are not
/// read, and QUIC's flow control holds the peer back.
pub const MAX_WAITING_CONTROL: usize = 16 << 20;
pub const MAX_WAITING_CONTROL_OF_LINK: usize = 1 << 20;
/// What one event costs beyond its bytes, about: so that the bounds are of events, too.
pub const CONTROL_EVENT_COST: usize = 256;
/// Echo replies that may wait for Python before more are dropped.
pub const MAX_WAITING_ECHOES: usize = 4096;

/// A price as Python gives it.
pub struct NamedPrice {
    pub meter: Name,
    pub wei: u128,
}

pub struct TunFile {
    pub file: OwnedFd,
    pub has_offload: bool,
    /// It takes and gives UDP super-packets too.
    pub has_uso: bool,
    pub by_source: bool,
    /// A customer's TUN rests while its circuits are full, so that the kernel holds TCP back.
    pub may_rest: bool,
}

pub enum FlowKind {
    Relay {
        root: [u8; 32],
        link_in: Name,
        id_in: u32,
        price_in: NamedPrice,
        link_out: Name,
        id_out: u32,
        price_out: NamedPrice,
    },
    Exit {
        root: [u8; 32],
        link: Name,
        id: u32,
        price: NamedPrice,
        addresses: InnerAddresses,
    },
    Client {
        roots: Vec<[u8; 32]>,
        link: Name,
        id: u32,
        price: NamedPrice,
        addresses: InnerAddresses,
    },
}

/// What Python asks of the data thread; carried out in order.
pub enum Command {
    Dial {
        link: Name,
        remote: SocketAddr,
        cell: Arc<LinkCell>,
    },
    /// Ask with a small and with a full packet whether anything is there.
    Probe {
        link: Name,
        remote: SocketAddr,
    },
    Accept {
        incoming: Name,
        link: Name,
        cell: Arc<LinkCell>,
    },
    Retry {
        incoming: Name,
    },
    Ignore {
        incoming: Name,
    },
    Control {
        link: Name,
        data: Bytes,
    },
    Up {
        link: Name,
        is_relay: bool,
    },
    Close {
        link: Name,
        code: u64,
        reason: String,
        tell_peer: bool,
    },
    AddFlow {
        flow: Name,
        suite: u8,
        kind: Box<FlowKind>,
        cell: Arc<FlowCell>,
    },
    DropFlow {
        flow: Name,
    },
    Echo {
        flow: Name,
        token: [u8; 8],
    },
    NewMeter {
        meter: Name,
        credit: Option<u128>,
        low: u128,
        cell: Arc<MeterCell>,
    },
    FreeMeter {
        meter: Name,
    },
    AddCredit {
        meter: Name,
        wei: u128,
        flows: Vec<Name>,
    },
    WatchMeter {
        meter: Name,
        on: bool,
    },
    SetLow {
        meter: Name,
        wei: u128,
    },
    SetPolicy(Box<Policy>),
    AttachTun(TunFile),
    Expire,
    /// Fails on purpose: the test that a fault in this thread ends the node.
    Fail,
    Stop,
}

/// What the data thread tells Python.
pub enum Event {
    Incoming {
        incoming: Name,
        remote: SocketAddr,
        validated: bool,
    },
    Connected {
        link: Name,
        certificate: Option<Vec<u8>>,
    },
    Control {
        link: Name,
        data: Vec<u8>,
        /// Where it is counted as waiting.
        cell: Arc<LinkCell>,
    },
    /// The link is gone in QUIC; `by_peer` says that `code` is the peer's own.
    Ended {
        link: Name,
        by_peer: bool,
        code: u64,
        reason: String,
    },
    /// The peer broke a rule that is checked here: Python closes the link with this code.
    Fault {
        link: Name,
        code: u64,
        reason: String,
    },
    Moved {
        link: Name,
        remote: SocketAddr,
    },
    ProbeAnswered {
        link: Name,
        size: usize,
    },
    FlowLost {
        flow: Name,
        fault: u8,
    },
    EchoReply {
        flow: Name,
        token: [u8; 8],
    },
    MeterLow {
        meter: Name,
    },
    TunGone {
        reason: String,
    },
    Died {
        reason: String,
    },
}

/// A link's figures.
#[derive(Default)]
pub struct LinkCell {
    pub rtt_us: AtomicU64,
    /// Nanoseconds of the engine's clock.
    pub last_receive_ns: AtomicU64,
    /// Since when data is under way without any packet of the peer's in answer; 0 when none is.
    pub waiting_since_ns: AtomicU64,
    pub sent: AtomicU64,
    pub lost: AtomicU64,
    pub dropped_datagrams: AtomicU64,
    /// Bytes of control messages, with what each costs, that wait for Python.
    pub waiting_control: AtomicUsize,
}

/// A flow's counters: packets, failures, dropped; forward and backward.
#[derive(Default)]
pub struct FlowCell(pub [AtomicU64; 6]);

#[derive(Clone, Copy, Default)]
pub struct MeterFigures {
    pub credit: Option<u128>,
    pub charged: u128,
    pub packets: u64,
    pub refused_packets: u64,
}

/// A meter's figures as of the last batch.
#[derive(Default)]
pub struct MeterCell(pub Mutex<MeterFigures>);

/// Figures of the whole engine.
#[derive(Default)]
pub struct Totals {
    pub used_bytes: AtomicU64,
    pub unknown_packets: AtomicU64,
    pub gate: [AtomicU64; 3],
    pub loops: AtomicU64,
    pub receives: AtomicU64,
    pub send_failures: AtomicU64,
    pub unknown_quic: AtomicU64,
    pub dropped_handshakes: AtomicU64,
}

pub struct Shared {
    commands: Mutex<Vec<Command>>,
    command_fd: OwnedFd,
    command_flag: AtomicBool,
    events: Mutex<Vec<Event>>,
    event_fd: OwnedFd,
    pub waiting_control: AtomicUsize,
    pub waiting_echoes: AtomicUsize,
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
            waiting_control: AtomicUsize::new(0),
            waiting_echoes: AtomicUsize::new(0),
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

    /// Take all commands; for when `command_fd` is readable, and then only: whoever set the flag may not have written
    /// yet, and a write that nobody reads would wake the thread for ever.
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

    /// Count what a link's control message holds until Python has it.
    pub fn hold_control(&self, cell: &LinkCell, bytes: usize) {
        let cost = bytes + CONTROL_EVENT_COST;
        self.waiting_control.fetch_add(cost, Ordering::Relaxed);
        cell.waiting_control.fetch_add(cost, Ordering::Relaxed);
    }

    /// Python has it.
    pub fn release_control(&self, cell: &LinkCell, bytes: usize) {
        let cost = bytes + CONTROL_EVENT_COST;
        self.waiting_control.fetch_sub(cost, Ordering::Relaxed);
        cell.waiting_control.fetch_sub(cost, Ordering::Relaxed);
    }

    pub fn take_events(&self) -> Vec<Event> {
        let mut buffer = [0; 8];
        let _ = rustix::io::read(&self.event_fd, &mut buffer);
        std::mem::take(&mut lock(&self.events))
    }
}
