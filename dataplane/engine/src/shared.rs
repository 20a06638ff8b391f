//! What the data threads and Python share: a queue with an eventfd to each thread and one from all, and figures as
//! atomics.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hopfare_core::ring::Bed;
use hopfare_core::{InnerAddresses, Policy, ShardId};
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
    /// All shards write, one reads.
    pub is_read: bool,
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
        /// The shard of the onward link, if it is another one.
        across: Option<ShardId>,
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
    /// Inner addresses belong to a flow of another shard.
    Foreign {
        flow: Name,
        addresses: InnerAddresses,
        shard: ShardId,
    },
    NoForeign {
        flow: Name,
        addresses: InnerAddresses,
    },
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

/// What one shard has charged.
#[derive(Clone, Copy, Default)]
pub struct Charged {
    pub wei: u128,
    pub packets: u64,
    pub refused_packets: u64,
}

#[derive(Default)]
struct MeterFigures {
    credit: Option<u128>,
    /// The shard whose word on the credit counts.
    owner: ShardId,
    charged: Vec<Charged>,
}

/// A meter's figures as of the shards' last batches.
#[derive(Default)]
pub struct MeterCell(Mutex<MeterFigures>);

impl MeterCell {
    /// From now on the credit is a shard's, and this much.
    pub fn settle(&self, owner: usize, credit: u128) {
        let mut figures = lock(&self.0);
        figures.owner = owner as ShardId;
        figures.credit = Some(credit);
    }

    /// What one shard has to say.
    pub fn publish(&self, shard: ShardId, credit: Option<u128>, charged: Charged) {
        let mut figures = lock(&self.0);
        if figures.owner == shard {
            figures.credit = credit;
        }
        let at = usize::from(shard);
        if figures.charged.len() <= at {
            figures.charged.resize(at + 1, Charged::default());
        }
        figures.charged[at] = charged;
    }

    /// Credit, and what all shards have charged.
    pub fn read(&self) -> (Option<u128>, Charged) {
        let figures = lock(&self.0);
        let sum = figures.charged.iter().fold(Charged::default(), |sum, one| Charged {
            wei: sum.wei.saturating_add(one.wei),
            packets: sum.packets + one.packets,
            refused_packets: sum.refused_packets + one.refused_packets,
        });
        (figures.credit, sum)
    }
}

/// Figures of one shard.
#[derive(Default)]
pub struct Totals {
    pub used_bytes: AtomicU64,
    /// Bytes of TCP at the entries of a customer's circuits.
    pub entry_bytes: AtomicUsize,
    pub unknown_packets: AtomicU64,
    pub gate: [AtomicU64; 3],
    pub loops: AtomicU64,
    pub receives: AtomicU64,
    pub send_failures: AtomicU64,
    pub unknown_quic: AtomicU64,
    pub dropped_handshakes: AtomicU64,
    /// Datagrams that arrived at the wrong shard.
    pub strayed: AtomicU64,
    /// Messages from other shards.
    pub crossed: AtomicU64,
}

/// What reaches one shard from Python, and what it says of itself.
pub struct Inbox {
    commands: Mutex<Vec<Command>>,
    command_fd: OwnedFd,
    command_flag: AtomicBool,
    /// Where it sleeps; other shards look at this.
    pub bed: Bed,
    pub totals: Totals,
}

pub struct Shared {
    pub inboxes: Vec<Inbox>,
    events: Mutex<Vec<Event>>,
    event_fd: OwnedFd,
    pub waiting_control: AtomicUsize,
    pub waiting_echoes: AtomicUsize,
}

/// A lock whose holder panicked: the queues are whole between any two operations, so go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const FLAGS: EventfdFlags = EventfdFlags::CLOEXEC.union(EventfdFlags::NONBLOCK);

impl Inbox {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            command_fd: eventfd(0, FLAGS)?,
            command_flag: AtomicBool::new(false),
            bed: Bed::default(),
            totals: Totals::default(),
        })
    }

    pub fn command_fd(&self) -> &OwnedFd {
        &self.command_fd
    }

    /// Wake the thread for another shard: it finds what there is.
    pub fn wake(&self) {
        // Fails only when the counter is full, which wakes as well.
        let _ = rustix::io::write(&self.command_fd, &1u64.to_ne_bytes());
    }

    fn send(&self, command: Command) {
        lock(&self.commands).push(command);
        if !self.command_flag.swap(true, Ordering::AcqRel) {
            self.wake();
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

    /// Take all commands that were given until now, and leave the descriptor as it is.
    pub fn take_given(&self, into: &mut Vec<Command>) {
        into.append(&mut lock(&self.commands));
    }
}

impl Shared {
    pub fn new(shards: usize) -> std::io::Result<Self> {
        Ok(Self {
            inboxes: (0..shards).map(|_| Inbox::new()).collect::<Result<_, _>>()?,
            events: Mutex::default(),
            event_fd: eventfd(0, FLAGS)?,
            waiting_control: AtomicUsize::new(0),
            waiting_echoes: AtomicUsize::new(0),
        })
    }

    pub fn event_fd(&self) -> &OwnedFd {
        &self.event_fd
    }

    pub fn send(&self, shard: usize, command: Command) {
        self.inboxes[shard].send(command);
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
