//! The thread: one epoll descriptor for all sockets, edge-triggered, and a handful of deadlines.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event as Ready, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{accept_with, SocketFlags};
use rustix::thread::{set_capabilities, CapabilitySet, CapabilitySets};
use slab::Slab;

use crate::conn::{Conn, Connecting, Spliced, State};
use crate::grants::{key_of, Grant, GrantName, Grants};
use crate::handshake::{Handshake, Host, Request, Step, SUCCEEDED};
use crate::pipe::{send_some, Flow, Pipe, BUFFER_BYTES};
use crate::shared::{Attempt, Command, Event, Family, HandOver, Limits, Shared};
use crate::sys;

/// Room for one read of a handshake: greeting, request and some first data.
const HANDSHAKE_READ_BYTES: usize = 4096;
const ACCEPTS_PER_TURN: usize = 64;
const EVENTS_PER_TURN: usize = 256;
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Between the starts of two attempts (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long the last packet of TCP's handshake waits for the client's first data to go with it: most clients speak
/// first, and it is a packet less through all relays. A server that speaks first waits so much longer.
const SILENT: Duration = Duration::from_millis(20);
/// Sockets of the namespace kept here; more are asked for when half is gone.
const SOCKETS_V4: usize = 128;
const SOCKETS_V6: usize = 32;

const COMMANDS: u64 = u64::MAX;
const LISTENERS: u64 = u64::MAX - 0xffff;
const STREAM_EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);
const INPUT: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::HUP);
const ENDED: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP);

/// A connection: its place, and its round, which tells it from earlier ones there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id {
    slot: usize,
    round: u32,
}

/// Which socket of a connection: the client's, or the one on its way to an address.
const CLIENT: u8 = 0;

fn pack(id: Id, which: u8) -> EventData {
    EventData::new_u64(u64::from(id.round) << 32 | (id.slot as u64) << 8 | u64::from(which))
}

struct Store {
    sockets: Vec<OwnedFd>,
    target: usize,
    is_asked: bool,
}

impl Store {
    fn new(target: usize) -> Self {
        Self { sockets: Vec::new(), target, is_asked: false }
    }
}

pub struct ProxyThread {
    shared: Arc<Shared>,
    limits: Limits,
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    conns: Slab<Conn>,
    next_round: u32,
    /// Connections that Python has.
    handed_over: usize,
    is_accepting: bool,
    grants: Grants,
    stores: [Store; 2],
    /// Connections that wait for a socket, in the order they came.
    wanting: [VecDeque<Id>; 2],
    /// To be continued in the next turn.
    soon: Vec<(Id, bool)>,
    /// When to begin the next attempt.
    attempts: VecDeque<(Instant, Id)>,
    /// When to acknowledge a connection whose client has said nothing yet.
    silent: VecDeque<(Instant, Id)>,
    next_sweep: Instant,
    now: Instant,
    buffer: Vec<u8>,
    answer: Vec<u8>,
    events: Vec<Event>,
    is_stopping: bool,
}

impl ProxyThread {
    /// The listeners and all sockets given later must not block.
    pub fn new(shared: Arc<Shared>, limits: Limits, listeners: Vec<OwnedFd>) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, shared.command_fd(), EventData::new_u64(COMMANDS), EventFlags::IN)?;
        let now = Instant::now();
        Ok(Self {
            shared,
            limits,
            epoll,
            listeners,
            conns: Slab::new(),
            next_round: 0,
            handed_over: 0,
            is_accepting: false,
            grants: Grants::default(),
            stores: [Store::new(SOCKETS_V4), Store::new(SOCKETS_V6)],
            wanting: Default::default(),
            soon: Vec::new(),
            attempts: VecDeque::new(),
            silent: VecDeque::new(),
            next_sweep: now,
            now,
            buffer: vec![0; BUFFER_BYTES],
            answer: Vec::new(),
            events: Vec::new(),
            is_stopping: false,
        })
    }

    /// Runs until `Command::Stop`, and then resets all connections.
    pub fn run(&mut self) {
        // This thread reads what programs and strangers send, and needs no privilege.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        let _ = set_capabilities(None, none);
        self.accept_again();
        for family in [Family::V4, Family::V6] {
            self.ask_for_sockets(family);
        }
        self.shared.post(&mut self.events);
        let mut room = [MaybeUninit::<Ready>::uninit(); EVENTS_PER_TURN];
        let mut commands = Vec::new();
        while !self.is_stopping {
            let timeout = self.timeout();
            let (ready, _) = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => panic!("epoll: {error}"),
            };
            self.now = Instant::now();
            let again = std::mem::take(&mut self.soon);
            // What Python has taken back must not be used by a request that came after it.
            if ready.iter().any(|event| event.data.u64() == COMMANDS) {
                self.shared.take_commands(&mut commands);
                for command in commands.drain(..) {
                    self.carry_out(command);
                }
            }
            for event in ready.iter() {
                match event.data.u64() {
                    COMMANDS => {}
                    data if data >= LISTENERS => self.accept((data - LISTENERS) as usize),
                    data => {
                        let id = Id { slot: (data as u32 >> 8) as usize, round: (data >> 32) as u32 };
                        self.on_event(id, data as u8, event.flags);
                    }
                }
            }
            for (id, is_client) in again {
                self.go_on(id, is_client);
            }
            self.serve_deadlines();
            self.shared.totals.connections.store(self.conns.len(), Ordering::Relaxed);
            self.shared.post(&mut self.events);
        }
        for slot in self.conns.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.end(slot, true);
        }
        self.shared.totals.connections.store(0, Ordering::Relaxed);
    }

    fn timeout(&mut self) -> Option<Timespec> {
        if !self.soon.is_empty() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let conns = &self.conns;
        while self.silent.front().is_some_and(|(_, id)| !is_silent(conns, *id)) {
            self.silent.pop_front();
        }
        while self.attempts.front().is_some_and(|(_, id)| !is_connecting(conns, *id)) {
            self.attempts.pop_front();
        }
        let mut due = (!self.conns.is_empty() || !self.is_accepting).then_some(self.next_sweep);
        for line in [&self.silent, &self.attempts] {
            if let Some((at, _)) = line.front() {
                due = Some(due.map_or(*at, |due| due.min(*at)));
            }
        }
        let wait = due?.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    fn serve_deadlines(&mut self) {
        while let Some(&(at, id)) = self.silent.front() {
            // What is due a little later shares the wake-up.
            if at > self.now + SILENT / 2 {
                break;
            }
            self.silent.pop_front();
            if is_silent(&self.conns, id) {
                if let State::Spliced(spliced) = &self.conns[id.slot].state {
                    sys::acknowledge(&spliced.upstream);
                }
            }
        }
        while let Some(&(at, id)) = self.attempts.front() {
            if at > self.now {
                break;
            }
            self.attempts.pop_front();
            if is_connecting(&self.conns, id) {
                self.attempt(id);
            }
        }
        if self.now >= self.next_sweep {
            self.next_sweep = self.now + SWEEP_INTERVAL;
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let limits = self.limits;
        for slot in self.conns.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            let conn = &self.conns[slot];
            match &conn.state {
                State::Handshake(_) if self.now >= conn.began + limits.handshake_timeout => {
                    self.end(slot, false);
                }
                // Python says what there is to say.
                State::Connecting(it) if self.now >= it.since + limits.connect_timeout => {
                    self.hand_over(slot)
                }
                State::Spliced(_) if self.now >= conn.last_active + limits.idle_timeout => {
                    self.end(slot, false)
                }
                _ => {}
            }
        }
        self.accept_again();
    }

    // Clients.

    fn is_full(&self) -> bool {
        self.conns.len() + self.handed_over >= self.limits.max_connections
    }

    fn accept_again(&mut self) {
        if self.is_accepting || self.is_full() {
            return;
        }
        self.is_accepting = true;
        for (at, listener) in self.listeners.iter().enumerate() {
            let data = EventData::new_u64(LISTENERS + at as u64);
            epoll::add(&self.epoll, listener, data, EventFlags::IN).expect("a listener can be waited for");
        }
    }

    /// Leave clients in the listeners' queues until the next sweep.
    fn stop_accepting(&mut self) {
        self.is_accepting = false;
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, listener);
        }
    }

    fn accept(&mut self, at: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.is_full() {
                self.stop_accepting();
            }
            if !self.is_accepting {
                return;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let client = match accept_with(&self.listeners[at], flags) {
                Ok(client) => client,
                Err(Errno::AGAIN) => return,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    self.events.push(Event::CannotAccept { errno: error.raw_os_error() });
                    self.stop_accepting();
                    return;
                }
                // A client that was gone before we came.
                Err(_) => continue,
            };
            self.shared.totals.accepted.fetch_add(1, Ordering::Relaxed);
            let id = self.insert(client, State::Handshake(Handshake::default()));
            let client = &self.conns[id.slot].client;
            if epoll::add(&self.epoll, client, pack(id, CLIENT), STREAM_EVENTS).is_err() {
                self.end(id.slot, true);
            }
        }
    }

    fn on_event(&mut self, id: Id, which: u8, flags: EventFlags) {
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        if conn.round != id.round {
            return;
        }
        match &conn.state {
            // Attempts that lost may have had an event in this very turn.
            State::Spliced(it) if which != CLIENT && which != it.which => {}
            State::Spliced(_) => self.on_spliced(id, flags, which == CLIENT),
            State::Connecting(_) if which != CLIENT => self.on_attempt(id, usize::from(which) - 1, flags),
            _ if flags.contains(EventFlags::ERR) => self.end(id.slot, true),
            State::Handshake(_) => {
                if flags.intersects(INPUT) {
                    conn.has_input |= flags.contains(EventFlags::RDHUP);
                    self.read_handshake(id);
                }
            }
            State::Connecting(_) => {
                if flags.contains(EventFlags::HUP) {
                    self.end(id.slot, true);
                } else if flags.intersects(INPUT) {
                    conn.has_input = true;
                }
            }
        }
    }

    fn go_on(&mut self, id: Id, is_client: bool) {
        let Some(conn) = self.conns.get(id.slot) else { return };
        if conn.round != id.round {
            return;
        }
        match conn.state {
            State::Handshake(_) => self.read_handshake(id),
            State::Connecting(_) => {}
            State::Spliced(_) => self.on_spliced(id, EventFlags::empty(), is_client),
        }
    }

    // Handshake.

    fn read_handshake(&mut self, id: Id) {
        let conn = &mut self.conns[id.slot];
        let State::Handshake(handshake) = &mut conn.state else { return };
        let size = match rustix::io::read(&conn.client, &mut self.buffer[..HANDSHAKE_READ_BYTES]) {
            Ok(0) => return self.end(id.slot, false),
            Ok(size) => size,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.end(id.slot, true),
        };
        conn.has_input |= size == HANDSHAKE_READ_BYTES;
        self.answer.clear();
        match handshake.receive(&self.buffer[..size], &mut self.answer) {
            Step::Unusual => self.hand_over(id.slot),
            Step::More => {
                let has_input = conn.has_input;
                if self.send_answer(id.slot) && has_input {
                    self.soon.push((id, true));
                }
            }
            Step::Request(request, early_at) => {
                if self.send_answer(id.slot) {
                    self.begin(id, &request, early_at);
                }
            }
        }
    }

    /// False if the connection has ended: a socket that nothing was sent on takes these few bytes.
    fn send_answer(&mut self, slot: usize) -> bool {
        if self.answer.is_empty() {
            return true;
        }
        let conn = &mut self.conns[slot];
        conn.answered += self.answer.len();
        if send_some(&conn.client, &self.answer) == Ok(self.answer.len()) {
            return true;
        }
        self.end(slot, true);
        false
    }

    fn begin(&mut self, id: Id, request: &Request, early_at: usize) {
        let key = key_of(request, self.limits.by_destination);
        let found = self
            .grants
            .find(&key)
            .and_then(|(grant, entry)| Some((grant, self.grants.addresses(entry, &request.host, self.now)?)));
        let Some((grant, addresses)) = found else {
            return self.hand_over_with(id.slot, Some(key));
        };
        if let Host::Address(address) = request.host {
            self.shared.note_address(address);
        }
        self.grants.take(grant, true);
        let conn = &mut self.conns[id.slot];
        if let State::Handshake(handshake) = &mut conn.state {
            conn.state = State::Connecting(Box::new(Connecting {
                handshake: std::mem::take(handshake),
                early_at,
                key,
                grant,
                port: request.port,
                addresses,
                next: 0,
                attempts: Vec::new(),
                wants_socket: false,
                since: self.now,
            }));
        }
        self.attempt(id);
    }

    // Connecting.

    /// Begin the next attempt, if there is one.
    fn attempt(&mut self, id: Id) {
        let State::Connecting(it) = &mut self.conns[id.slot].state else { return };
        let Some(&address) = it.addresses.get(it.next) else { return };
        if it.wants_socket {
            return;
        }
        let family = Family::of(address);
        let store = &mut self.stores[family as usize];
        let Some(socket) = store.sockets.pop() else {
            it.wants_socket = true;
            self.wanting[family as usize].push_back(id);
            return self.ask_for_sockets(family);
        };
        let source = self.grants.by_name.get(&it.grant).and_then(|grant| grant.source(address));
        let begun = source.is_some_and(|source| {
            sys::begin_connect(&socket, source, SocketAddr::new(address, it.port)).is_ok()
        });
        let which = it.next as u8 + 1;
        if begun && epoll::add(&self.epoll, &socket, pack(id, which), STREAM_EVENTS).is_ok() {
            it.attempts.push((it.next, socket));
            it.next += 1;
            if it.next < it.addresses.len() {
                self.attempts.push_back((self.now + ATTEMPT_DELAY, id));
            }
        } else {
            // Python tries this address itself and learns why.
            drop(socket);
            self.hand_over(id.slot);
        }
        self.ask_for_sockets(family);
    }

    fn ask_for_sockets(&mut self, family: Family) {
        let store = &mut self.stores[family as usize];
        let wanted = store.target + self.wanting[family as usize].len().min(store.target);
        if !store.is_asked && store.sockets.len() <= store.target / 2 {
            store.is_asked = true;
            let count = wanted - store.sockets.len();
            self.events.push(Event::NeedSockets { family, count });
        }
    }

    fn take_sockets(&mut self, family: Family, sockets: Vec<OwnedFd>) {
        let store = &mut self.stores[family as usize];
        store.is_asked = false;
        let is_none = sockets.is_empty();
        store.sockets.extend(sockets);
        while is_none || !self.stores[family as usize].sockets.is_empty() {
            let Some(id) = self.wanting[family as usize].pop_front() else { break };
            let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.round == id.round) else {
                continue;
            };
            let State::Connecting(it) = &mut conn.state else { continue };
            it.wants_socket = false;
            if is_none {
                self.hand_over(id.slot);
            } else {
                self.attempt(id);
            }
        }
        // Without any, what comes next asks again.
        if !is_none {
            self.ask_for_sockets(family);
        }
    }

    fn on_attempt(&mut self, id: Id, place: usize, flags: EventFlags) {
        let conn = &mut self.conns[id.slot];
        let State::Connecting(it) = &mut conn.state else { return };
        let Some(at) = it.attempts.iter().position(|(attempt, _)| *attempt == place) else { return };
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            // Python reads from the socket why, and goes on with the other addresses.
            return self.hand_over(id.slot);
        }
        if !flags.contains(EventFlags::OUT) {
            return;
        }
        let upstream = it.attempts.swap_remove(at).1;
        it.attempts.clear();
        let is_ipv6 = it.addresses[place].is_ipv6();
        let (grant, port) = (it.grant, it.port);
        let early = it.handshake.bytes.split_off(it.early_at);
        sys::ignore_icmp(&upstream, is_ipv6);
        self.shared.note_opened(grant, port);
        let is_told = send_some(&conn.client, &SUCCEEDED) == Ok(SUCCEEDED.len());
        let has_input = !early.is_empty() || conn.has_input;
        let mut up = Pipe::new(early);
        // What came while we waited came with an event that is over.
        up.until_end = has_input;
        conn.state = State::Spliced(Box::new(Spliced {
            upstream,
            which: place as u8 + 1,
            grant,
            up,
            down: Pipe::new(Vec::new()),
        }));
        conn.last_active = self.now;
        self.shared.totals.established.fetch_add(1, Ordering::Relaxed);
        if !is_told {
            return self.end(id.slot, true);
        }
        if has_input {
            self.on_spliced(id, EventFlags::IN, true);
        }
        if is_silent(&self.conns, id) {
            self.silent.push_back((self.now + SILENT, id));
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP) && self.is_there(id) {
            self.on_spliced(id, flags, false);
        }
    }

    fn is_there(&self, id: Id) -> bool {
        self.conns.get(id.slot).is_some_and(|conn| conn.round == id.round)
    }

    // Established.

    /// Move bytes after an event of either socket (no flags: continue where the last turn stopped).
    fn on_spliced(&mut self, id: Id, flags: EventFlags, is_client: bool) {
        if flags.contains(EventFlags::ERR) {
            return self.end(id.slot, true);
        }
        let conn = &mut self.conns[id.slot];
        let State::Spliced(it) = &mut conn.state else { return };
        conn.last_active = self.now;
        let Spliced { upstream, up, down, .. } = &mut **it;
        let (inward, outward, near, far) = if is_client {
            (up, down, &conn.client, &*upstream)
        } else {
            (down, up, &*upstream, &conn.client)
        };
        if flags.intersects(ENDED) {
            inward.until_end = true;
        }
        let mut flow = Ok(Flow::Empty);
        if flags.is_empty() || flags.intersects(INPUT) {
            flow = inward.pump(near, far, &mut self.buffer);
        }
        let mut back = Ok(Flow::Empty);
        if flow.is_ok() && outward.is_full() {
            back = outward.pump(far, near, &mut self.buffer);
        }
        let is_over = inward.has_ended && outward.has_ended;
        let (Ok(flow), Ok(back)) = (flow, back) else { return self.end(id.slot, true) };
        if is_over {
            return self.end(id.slot, false);
        }
        if flow == Flow::More {
            self.soon.push((id, is_client));
        }
        if back == Flow::More {
            self.soon.push((id, !is_client));
        }
    }

    // The end.

    /// Close everything, in order or with resets.
    fn end(&mut self, slot: usize, is_reset: bool) {
        let conn = self.conns.remove(slot);
        let mut grant = None;
        match conn.state {
            State::Handshake(_) => {}
            State::Connecting(it) => grant = Some(it.grant),
            State::Spliced(it) => {
                grant = Some(it.grant);
                let totals = &self.shared.totals;
                totals.bytes_up.fetch_add(it.up.bytes_moved, Ordering::Relaxed);
                totals.bytes_down.fetch_add(it.down.bytes_moved, Ordering::Relaxed);
                if is_reset {
                    if it.up.bytes_moved == 0 {
                        // Or the server would never know that there was a connection.
                        sys::acknowledge(&it.upstream);
                    }
                    sys::reset(it.upstream);
                }
            }
        }
        if is_reset {
            sys::reset(conn.client);
        }
        self.gone(grant);
    }

    fn hand_over(&mut self, slot: usize) {
        self.hand_over_with(slot, None);
    }

    /// Python serves this client from here on.
    fn hand_over_with(&mut self, slot: usize, key: Option<Vec<u8>>) {
        let conn = self.conns.remove(slot);
        let _ = epoll::delete(&self.epoll, &conn.client);
        let mut grant = None;
        let (bytes, key, since, attempt) = match conn.state {
            State::Handshake(handshake) => (handshake.bytes, key, conn.began, None),
            State::Connecting(it) => {
                grant = Some(it.grant);
                let it = *it;
                let sockets = it.attempts.into_iter().map(|(place, socket)| {
                    let _ = epoll::delete(&self.epoll, &socket);
                    (it.addresses[place], socket)
                });
                let sockets = sockets.collect();
                let attempt =
                    Attempt { grant: it.grant, sockets, addresses: it.addresses[it.next..].to_vec() };
                (it.handshake.bytes, Some(it.key), it.since, Some(attempt))
            }
            State::Spliced(_) => unreachable!("what is established is never handed over"),
        };
        self.handed_over += 1;
        self.shared.totals.handed_over.fetch_add(1, Ordering::Relaxed);
        self.events.push(Event::HandOver(Box::new(HandOver {
            client: conn.client,
            bytes,
            answered: conn.answered,
            has_input: conn.has_input,
            age: self.now - since,
            key,
            attempt,
        })));
        self.gone(grant);
    }

    fn gone(&mut self, grant: Option<GrantName>) {
        if let Some(grant) = grant {
            if self.grants.give_back(grant) {
                self.events.push(Event::Drained { grant });
            }
        }
        self.room_again();
    }

    fn room_again(&mut self) {
        if self.conns.len() + self.handed_over <= self.limits.max_connections * 7 / 8 {
            self.accept_again();
        }
    }

    // Python's commands.

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Grant { grant, key, circuit, source_v4, source_v6, cell } => {
                let entry = Grant { key, circuit, source_v4, source_v6, cell, is_revoked: false };
                self.grants.add(grant, entry);
            }
            Command::Revoke { grant, abort } => {
                if self.grants.revoke(grant) {
                    self.events.push(Event::Drained { grant });
                } else if abort {
                    self.abort(grant);
                }
            }
            Command::Learn { circuit, host, addresses, until } => {
                self.grants.learn(circuit, host, addresses, until, self.now);
            }
            Command::Sockets { family, sockets } => self.take_sockets(family, sockets),
            Command::Carry { grant, client, upstream, early } => self.carry(grant, client, upstream, early),
            Command::Returned => {
                self.handed_over = self.handed_over.saturating_sub(1);
                self.room_again();
            }
            Command::Fail => panic!("told to fail"),
            Command::Stop => self.is_stopping = true,
        }
    }

    fn carry(&mut self, grant: GrantName, client: OwnedFd, upstream: OwnedFd, early: Vec<u8>) {
        if !self.grants.take(grant, false) {
            sys::reset(upstream);
            return sys::reset(client);
        }
        self.shared.totals.established.fetch_add(1, Ordering::Relaxed);
        let spliced =
            Spliced { upstream, which: 1, grant, up: Pipe::new(early), down: Pipe::new(Vec::new()) };
        let id = self.insert(client, State::Spliced(Box::new(spliced)));
        let State::Spliced(it) = &self.conns[id.slot].state else { return };
        // The first events tell all that both sockets have: what was not read, and that early data can be sent.
        if epoll::add(&self.epoll, &self.conns[id.slot].client, pack(id, CLIENT), STREAM_EVENTS).is_err()
            || epoll::add(&self.epoll, &it.upstream, pack(id, 1), STREAM_EVENTS).is_err()
        {
            return self.end(id.slot, true);
        }
        if is_silent(&self.conns, id) {
            self.silent.push_back((self.now + SILENT, id));
        }
    }

    fn insert(&mut self, client: OwnedFd, state: State) -> Id {
        self.next_round = self.next_round.wrapping_add(1) & 0x7fff_ffff;
        let round = self.next_round;
        let slot = self.conns.insert(Conn {
            round,
            client,
            state,
            answered: 0,
            has_input: false,
            began: self.now,
            last_active: self.now,
        });
        Id { slot, round }
    }

    /// A circuit is dead: nothing that it carried can go on.
    fn abort(&mut self, grant: GrantName) {
        for slot in self.conns.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            match &mut self.conns[slot].state {
                State::Connecting(it) if it.grant == grant => {
                    // Nothing has been promised yet: Python tries again on another circuit.
                    it.attempts.clear();
                    it.next = it.addresses.len();
                    self.hand_over(slot);
                }
                State::Spliced(it) if it.grant == grant => self.end(slot, true),
                _ => {}
            }
        }
    }
}

fn is_silent(conns: &Slab<Conn>, id: Id) -> bool {
    conns.get(id.slot).is_some_and(|conn| {
        conn.round == id.round && matches!(&conn.state, State::Spliced(it) if it.up.bytes_moved == 0)
    })
}

fn is_connecting(conns: &Slab<Conn>, id: Id) -> bool {
    conns.get(id.slot).is_some_and(|conn| {
        conn.round == id.round && matches!(&conn.state, State::Connecting(it) if it.next < it.addresses.len())
    })
}
