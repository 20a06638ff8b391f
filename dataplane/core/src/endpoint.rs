//! A circuit's end at a client or an exit: inner packets on one side, all layers or the last one on the other.

use bytes::{BufMut, BytesMut};

use crate::driver::{Driver, Event, Fault, FlowCounters, FlowId, InnerAddresses, Now, Root, Traffic};
use crate::entry::{Fresh, Joined};
use crate::icmp::{refusal, IcmpRate};
use crate::inner::{decode_body, Direction, ItemKind, ItemRef, ITEM_HEADER_BYTES};
use crate::ip::{self, Address, TCP};
use crate::join::{key_of, shape_from};
use crate::layers::{
    ClientBackward, ClientForward, Command, ExitBackward, Health, Lane, Opened, RelayForward,
};
use crate::meter::Price;
use crate::params::{
    BACKWARD_OVERHEAD_BYTES, CIRCUIT_ID_BYTES, FORWARD_OVERHEAD_BYTES, LINK_FRAME, MAX_TRAIN_UNITS, UNIT,
};
use crate::policy::Verdict;
use crate::queue::CodelQueue;
use crate::shared::{End, EndRef, Held, Item, Pulled, Shared};
use crate::suites::Suite;
use crate::vnet;

/// Inner TCP packets of one circuit that wait at its entry at an exit.
pub const ENTRY_LIMIT_BYTES: usize = 2 * 1024 * 1024;
/// The same at a client, whose TUN rests before that: CoDel and joining do better with what waits than the TUN's
/// queue, which drops what many flows send at once.
pub const CLIENT_ENTRY_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// Other inner packets of one circuit that wait at its entry.
pub const ENTRY_SINGLES_LIMIT_BYTES: usize = 256 * 1024;
/// An item of at least this size keeps room in front, to become a train without being copied again.
const HEADROOM_FROM_BYTES: usize = 4096;

struct Client {
    forward_trains: ClientForward,
    forward_singles: ClientForward,
    backward_trains: ClientBackward,
    backward_singles: ClientBackward,
}

struct Exit {
    forward_trains: RelayForward,
    forward_singles: RelayForward,
    backward_trains: ExitBackward,
    backward_singles: ExitBackward,
    rate: IcmpRate,
}

enum Role {
    Client(Client),
    Exit(Exit),
}

/// See the module. It has one end.
pub(crate) struct Endpoint {
    role: Role,
    price: Price,
    pub addresses: InnerAddresses,
    entry_trains: CodelQueue<Item>,
    entry_singles: CodelQueue<Item>,
    /// Of an exit: a client's guard is paid for what it sends.
    pub held: Held,
}

impl Endpoint {
    /// A client's flow; None for a path of no or too many hops. The roots are not kept.
    pub fn client(roots: &[Root], suite: Suite, price: Price, addresses: InnerAddresses) -> Option<Endpoint> {
        let role = Role::Client(Client {
            forward_trains: ClientForward::new(roots, suite, Lane::Stream)?,
            forward_singles: ClientForward::new(roots, suite, Lane::Datagram)?,
            backward_trains: ClientBackward::new(roots, suite, Lane::Stream)?,
            backward_singles: ClientBackward::new(roots, suite, Lane::Datagram)?,
        });
        Some(Endpoint::new(role, price, addresses))
    }

    /// An exit's flow. The root is not kept.
    pub fn exit(root: &Root, suite: Suite, price: Price, addresses: InnerAddresses) -> Endpoint {
        let role = Role::Exit(Exit {
            forward_trains: RelayForward::new(root, suite, Lane::Stream),
            forward_singles: RelayForward::new(root, suite, Lane::Datagram),
            backward_trains: ExitBackward::new(root, suite, Lane::Stream),
            backward_singles: ExitBackward::new(root, suite, Lane::Datagram),
            rate: IcmpRate::default(),
        });
        Endpoint::new(role, price, addresses)
    }

    fn new(role: Role, price: Price, addresses: InnerAddresses) -> Endpoint {
        let entry_trains = CodelQueue::new(entry_limit_bytes(&role));
        Endpoint {
            role,
            price,
            addresses,
            entry_trains,
            entry_singles: CodelQueue::new(ENTRY_SINGLES_LIMIT_BYTES),
            held: Held::default(),
        }
    }

    /// Which way this side's packets travel.
    fn direction(&self) -> Direction {
        match self.role {
            Role::Client(_) => Direction::Forward,
            Role::Exit(_) => Direction::Backward,
        }
    }

    pub fn is_client(&self) -> bool {
        matches!(self.role, Role::Client(_))
    }

    pub fn queued_bytes(&self) -> usize {
        self.entry_trains.bytes() + self.entry_singles.bytes() + self.held.bytes()
    }

    pub fn entry_bytes(&self) -> usize {
        self.entry_trains.bytes()
    }

    pub fn has_trains(&self) -> bool {
        !self.entry_trains.is_empty()
    }

    pub fn has_singles(&self) -> bool {
        !self.entry_singles.is_empty()
    }

    pub fn clear(&mut self, shared: &mut Shared) {
        self.entry_trains.clear(&mut shared.budget);
        self.entry_singles.clear(&mut shared.budget);
        self.held.take(&mut shared.budget);
    }

    pub fn expire(&mut self, now: Now) {
        match &mut self.role {
            Role::Client(client) => {
                client.forward_trains.expire(now);
                client.forward_singles.expire(now);
                client.backward_trains.expire(now);
                client.backward_singles.expire(now);
            }
            Role::Exit(exit) => {
                exit.forward_trains.expire(now);
                exit.forward_singles.expire(now);
                exit.backward_trains.expire(now);
                exit.backward_singles.expire(now);
            }
        }
    }

    // -- into the circuit

    /// Take one inner item, its data in `parts`, into the circuit: TCP, and what fits no single packet, by
    /// train; the rest single.
    pub fn enqueue(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        place: EndRef,
        kind: ItemKind,
        parts: [&[u8]; 2],
        protocol: u8,
        now: Now,
    ) {
        let data_bytes = parts[0].len() + parts[1].len();
        let size = ITEM_HEADER_BYTES + data_bytes;
        if kind.header(data_bytes).is_none() {
            return; // our own kernel gives no such packet
        }
        let direction = self.direction();
        let by_train = protocol == TCP || size > direction.capacity(1);
        let (queue, limit) = if by_train {
            (&mut self.entry_trains, entry_limit_bytes(&self.role))
        } else {
            (&mut self.entry_singles, ENTRY_SINGLES_LIMIT_BYTES)
        };
        if queue.bytes() + size > limit {
            queue.dropped += 1;
            return;
        }
        let (headroom, mut data) = if by_train && size >= HEADROOM_FROM_BYTES {
            let headroom = headroom_of(direction);
            let mut data = shared.train_buffer(1 + UNIT * direction.units_for(size));
            data.put_bytes(0, headroom);
            (headroom, data)
        } else {
            (0, shared.arena.empty(data_bytes))
        };
        data.extend_from_slice(parts[0]);
        data.extend_from_slice(parts[1]);
        if queue.push(Item { kind, headroom, has_vnet: false, data }, size, now, &mut shared.budget) {
            if by_train {
                shared.want_trains(end, place);
            } else {
                shared.want_singles(end, place);
            }
        }
    }

    /// Take one TCP packet as the TUN gave it into the circuit, joined with what waits of its flow; false if that is not
    /// done here, or the packet has to be cut first.
    pub fn enqueue_tcp(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        place: EndRef,
        header: &vnet::Header,
        packet: &[u8],
        now: Now,
    ) -> bool {
        if !shared.tails.is_on {
            return false;
        }
        let Some(parsed) = ip::parse(packet) else { return false };
        let Some(shape) = shape_from(&parsed, packet).filter(|shape| shape.is_tcp) else { return false };
        let header = if header.is_plain() { vnet::Header::default() } else { *header };
        if !header.is_plain() && !vnet::is_valid(&header, packet, &parsed) {
            return false;
        }
        let key = key_of(packet, shape);
        let fresh = Fresh { header, packet, shape };
        let headroom = headroom_of(self.direction());
        let queue = &mut self.entry_trains;
        let room = entry_limit_bytes(&self.role).saturating_sub(queue.bytes());
        let number = shared.tails.find(key, place.flow);
        if let Some((number, item)) =
            number.and_then(|number| Some((number, queue.get_mut(number).filter(|item| item.has_vnet)?)))
        {
            if let Joined::Grown(bytes) = fresh.join(item, room, headroom, |size| shared.train_buffer(size)) {
                queue.grow(number, bytes, &mut shared.budget);
                return true;
            }
        }
        let hidden = if header.is_plain() { 0 } else { vnet::HEADER_BYTES };
        let size = ITEM_HEADER_BYTES + hidden + packet.len();
        if size > room {
            queue.dropped += 1;
            return true;
        }
        let whole = vnet::HEADER_BYTES + packet.len();
        let (headroom, data) = if size >= HEADROOM_FROM_BYTES {
            (headroom, shared.train_buffer(1 + UNIT * self.direction().units_for(size)))
        } else {
            (0, shared.arena.empty(whole))
        };
        let number = self.entry_trains.next_number();
        if self.entry_trains.push(fresh.into_item(data, headroom), size, now, &mut shared.budget) {
            shared.tails.put(key, place.flow, number);
            shared.want_trains(end, place);
        }
        true
    }

    /// Queue an echo request on the datagram lane.
    pub fn echo(&mut self, shared: &mut Shared, end: &mut End, place: EndRef, token: &[u8; 8], now: Now) {
        self.enqueue(shared, end, place, ItemKind::EchoRequest, [token, &[]], 0, now);
    }

    /// Fill one train from what is waiting: as many items as fit, in as few units as they need.
    pub fn pull_train(
        &mut self,
        shared: &mut Shared,
        counters: &mut FlowCounters,
        max_units: usize,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<Option<BytesMut>, Fault> {
        let direction = self.direction();
        let max_units = max_units.min(MAX_TRAIN_UNITS);
        let paid = shared.meters.affordable(self.price, max_units);
        let room = direction.capacity(paid);
        if paid < max_units && self.entry_trains.peek_bytes() > room {
            shared.meters.refuse(self.price.meter, 1);
        }
        let size = collect(&mut self.entry_trains, shared, room, now);
        if shared.items.is_empty() {
            return Ok(None);
        }
        let units = direction.units_for(size);
        if !shared.meters.charge(self.price, units) {
            shared.items.clear();
            return Ok(None);
        }
        let headroom = headroom_of(direction);
        let mut frame = if shared.items.len() == 1 && shared.items[0].headroom == headroom {
            let Item { kind, mut data, .. } = shared.items.remove(0);
            write_header(kind, data.len() - headroom, &mut data[headroom - ITEM_HEADER_BYTES..headroom]);
            data
        } else {
            let mut frame = shared.train_buffer(1 + UNIT * units);
            frame.put_bytes(0, headroom - ITEM_HEADER_BYTES);
            append_items(shared, &mut frame);
            frame
        };
        frame.resize(1 + UNIT * units, 0);
        frame[0] = units as u8;
        let random = &mut |out: &mut [u8]| d.random(out);
        let sealed = match &mut self.role {
            Role::Client(client) => {
                counters.forward.packets += units as u64;
                client.forward_trains.seal(&mut frame[1..], now, None, Command::Deliver, random)
            }
            Role::Exit(exit) => {
                counters.backward.packets += units as u64;
                exit.backward_trains.seal(&mut frame[1..], now, random)
            }
        };
        if sealed {
            Ok(Some(frame))
        } else {
            Err(Fault::Exhausted)
        }
    }

    /// Fill one single packet from what is waiting; small items share it. The frame has the circuit id of
    /// `end`.
    pub fn pull_single(
        &mut self,
        shared: &mut Shared,
        end: &End,
        counters: &mut FlowCounters,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<Pulled, Fault> {
        let direction = self.direction();
        if self.entry_singles.is_empty() || !shared.meters.can_pay(self.price, 1) {
            return Ok(Pulled::Nothing);
        }
        collect(&mut self.entry_singles, shared, direction.capacity(1), now);
        if shared.items.is_empty() {
            return Ok(Pulled::Nothing);
        }
        shared.meters.charge(self.price, 1);
        let mut frame = shared.arena.empty(LINK_FRAME);
        frame.put_u32(end.circuit_id);
        frame.put_bytes(0, direction.overhead_bytes());
        append_items(shared, &mut frame);
        frame.resize(LINK_FRAME, 0);
        let packet = &mut frame[CIRCUIT_ID_BYTES..];
        let random = &mut |out: &mut [u8]| d.random(out);
        let sealed = match &mut self.role {
            Role::Client(client) => {
                counters.forward.packets += 1;
                client.forward_singles.seal(packet, now, None, Command::Deliver, random)
            }
            Role::Exit(exit) => {
                counters.backward.packets += 1;
                exit.backward_singles.seal(packet, now, random)
            }
        };
        if sealed {
            Ok(Pulled::Frame(frame))
        } else {
            Err(Fault::Exhausted)
        }
    }

    // -- out of the circuit

    /// A whole frame came in.
    pub fn on_train(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        counters: &mut FlowCounters,
        flow: FlowId,
        place: EndRef,
        mut frame: BytesMut,
        now: Now,
        d: &mut impl Driver,
    ) -> Result<(), Fault> {
        let units = (frame.len() - 1) / UNIT;
        let price = self.price;
        match &mut self.role {
            Role::Client(client) => {
                let is_good = client.backward_trains.open(&mut frame[1..], now)
                    && self.receive(
                        shared,
                        end,
                        counters,
                        flow,
                        place,
                        &frame[1 + BACKWARD_OVERHEAD_BYTES..],
                        now,
                        d,
                    );
                if !is_good {
                    counters.backward.failures += 1;
                    return Err(Fault::BadPackets);
                }
                counters.backward.packets += units as u64;
                // The customer pays for both directions: what came is charged to what is owed to the guard.
                shared.meters.charge(price, units);
            }
            Role::Exit(exit) => {
                if !self.held.is_empty() || !shared.meters.can_pay(price, units) {
                    self.held.push(place.side, frame, &mut shared.budget);
                    return Ok(());
                }
                let opened = exit.forward_trains.open(&mut frame[1..], now);
                if matches!(opened, Opened::Refused | Opened::Forward) {
                    counters.forward.failures += 1;
                    return Err(Fault::BadPackets);
                }
                shared.meters.charge(price, units);
                if opened == Opened::Deliver
                    && !self.receive(
                        shared,
                        end,
                        counters,
                        flow,
                        place,
                        &frame[1 + FORWARD_OVERHEAD_BYTES..],
                        now,
                        d,
                    )
                {
                    counters.forward.failures += 1;
                } else {
                    counters.forward.packets += units as u64;
                }
            }
        }
        shared.consume(end, place, units, now, d);
        shared.give_back(frame);
        Ok(())
    }

    /// A single packet came in.
    pub fn on_single(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        counters: &mut FlowCounters,
        flow: FlowId,
        place: EndRef,
        packet: &[u8],
        now: Now,
        d: &mut impl Driver,
    ) -> Result<(), Fault> {
        let mut scratch = std::mem::take(&mut shared.scratch);
        scratch.clear();
        scratch.extend_from_slice(packet);
        let result = self.open_single(shared, end, counters, flow, place, &mut scratch, now, d);
        shared.scratch = scratch;
        result
    }

    fn open_single(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        counters: &mut FlowCounters,
        flow: FlowId,
        place: EndRef,
        packet: &mut [u8],
        now: Now,
        d: &mut impl Driver,
    ) -> Result<(), Fault> {
        let price = self.price;
        match &mut self.role {
            Role::Client(client) => {
                let lane = &mut client.backward_singles;
                let before = lane.health;
                let is_open = lane.open(packet, now);
                count(&mut counters.backward, before, lane.health)?;
                if is_open {
                    counters.backward.packets += 1;
                    shared.meters.charge(price, 1);
                    let body = &packet[BACKWARD_OVERHEAD_BYTES..];
                    if !self.receive(shared, end, counters, flow, place, body, now, d) {
                        counters.backward.failures += 1;
                    }
                }
            }
            Role::Exit(exit) => {
                if !shared.meters.can_pay(price, 1) {
                    counters.forward.dropped += 1;
                    return Ok(());
                }
                let lane = &mut exit.forward_singles;
                let before = lane.health;
                let opened = lane.open(packet, now);
                count(&mut counters.forward, before, lane.health)?;
                if opened == Opened::Refused {
                    return Ok(());
                }
                counters.forward.packets += 1;
                shared.meters.charge(price, 1);
                let body = &packet[FORWARD_OVERHEAD_BYTES..];
                if opened == Opened::Forward
                    || (opened == Opened::Deliver
                        && !self.receive(shared, end, counters, flow, place, body, now, d))
                {
                    counters.forward.failures += 1;
                }
            }
        }
        Ok(())
    }

    /// Carry out one body; false when it is malformed.
    fn receive(
        &mut self,
        shared: &mut Shared,
        end: &mut End,
        counters: &mut FlowCounters,
        flow: FlowId,
        place: EndRef,
        body: &[u8],
        now: Now,
        d: &mut impl Driver,
    ) -> bool {
        let Ok(items) = decode_body(body) else { return false };
        for ItemRef { kind, data } in items {
            let (header, packet) = match kind {
                ItemKind::Ip => (&vnet::PLAIN, data),
                ItemKind::Offload => match data.split_first_chunk() {
                    Some(parts) => parts,
                    None => continue,
                },
                ItemKind::EchoRequest if !self.is_client() => {
                    self.enqueue(shared, end, place, ItemKind::EchoReply, [data, &[]], 0, now);
                    continue;
                }
                ItemKind::EchoReply if self.is_client() => {
                    if let Ok(token) = data.try_into() {
                        shared.events.push(Event::EchoReply { flow, token });
                    }
                    continue;
                }
                _ => continue,
            };
            if self.is_client() {
                self.deliver(shared, &mut counters.backward, kind, header, packet, d);
            } else if let Some(answer) =
                self.leave(shared, &mut counters.forward, kind, header, packet, now, d)
            {
                self.enqueue(shared, end, place, ItemKind::Ip, [&answer, &[]], 0, now);
            }
        }
        true
    }

    /// An inner packet reached the client. An exit may only speak to the addresses that it gave this circuit.
    fn deliver(
        &self,
        shared: &mut Shared,
        traffic: &mut Traffic,
        kind: ItemKind,
        header: &[u8; 10],
        packet: &[u8],
        d: &mut impl Driver,
    ) {
        let is_mine = match ip::addresses(packet) {
            Some((_, _, Address::V4(to))) => to == self.addresses.v4,
            Some((_, _, Address::V6(to))) => Some(to) == self.addresses.v6,
            None => false,
        };
        if !is_mine {
            traffic.dropped += 1;
            return;
        }
        let is_safe = kind == ItemKind::Ip
            || ip::parse(packet)
                .is_some_and(|parsed| vnet::is_valid(&vnet::Header::decode(header), packet, &parsed));
        if is_safe {
            shared.write_tun(header, packet, d);
        } else {
            shared.tun_refused += 1;
        }
    }

    /// An inner packet wants to leave: source check, offload check, policy. An ICMP answer for some refused
    /// ones.
    fn leave(
        &mut self,
        shared: &mut Shared,
        traffic: &mut Traffic,
        kind: ItemKind,
        header: &[u8; 10],
        packet: &[u8],
        now: Now,
        d: &mut impl Driver,
    ) -> Option<Vec<u8>> {
        let Role::Exit(exit) = &mut self.role else { return None };
        let table = shared.policy.as_mut()?;
        let parsed = ip::parse(packet).filter(|parsed| {
            kind == ItemKind::Ip || vnet::is_valid(&vnet::Header::decode(header), packet, parsed)
        });
        let Some(parsed) = parsed else {
            shared.gate.malformed += 1;
            traffic.dropped += 1;
            return None;
        };
        let is_own = match parsed.source {
            Address::V4(from) => from == self.addresses.v4,
            Address::V6(from) => Some(from) == self.addresses.v6,
        };
        if !is_own {
            shared.gate.spoofed += 1;
            traffic.dropped += 1;
            return None;
        }
        let verdict = table.verdict(&parsed);
        if verdict == Verdict::Accept {
            shared.write_tun(header, packet, d);
            return None;
        }
        shared.gate.refused += 1;
        traffic.dropped += 1;
        let sources = (table.policy().dns4, table.policy().dns6);
        refusal(&mut exit.rate, sources, packet, &parsed, verdict, now)
    }
}

fn entry_limit_bytes(role: &Role) -> usize {
    match role {
        Role::Client(_) => CLIENT_ENTRY_LIMIT_BYTES,
        Role::Exit(_) => ENTRY_LIMIT_BYTES,
    }
}

fn headroom_of(direction: Direction) -> usize {
    1 + direction.overhead_bytes() + ITEM_HEADER_BYTES
}

fn count(traffic: &mut Traffic, before: Health, after: Health) -> Result<(), Fault> {
    traffic.failures += after.failures - before.failures;
    traffic.dropped += after.dropped - before.dropped;
    if after.broken {
        return Err(Fault::BadPackets);
    }
    Ok(())
}

/// Move what fits `room` bytes from the queue to `shared.items`; their size in a body.
fn collect(queue: &mut CodelQueue<Item>, shared: &mut Shared, room: usize, now: Now) -> usize {
    shared.items.clear();
    let mut size = 0;
    while !queue.is_empty() && size + queue.peek_bytes() <= room {
        let Some(item) = queue.pop(now, &mut shared.budget) else { break };
        let needed = ITEM_HEADER_BYTES + item.data.len() - item.headroom;
        if size + needed > room {
            // CoDel dropped the head, and the next one is larger.
            queue.unpop(item, needed, now, &mut shared.budget);
            break;
        }
        size += needed;
        shared.items.push(item);
    }
    size
}

fn write_header(kind: ItemKind, data_bytes: usize, out: &mut [u8]) {
    // `enqueue` took no item that has none.
    if let Some(header) = kind.header(data_bytes) {
        out.copy_from_slice(&header);
    }
}

fn append_items(shared: &mut Shared, frame: &mut BytesMut) {
    for item in shared.items.drain(..) {
        let data = &item.data[item.headroom..];
        let mut header = [0; ITEM_HEADER_BYTES];
        write_header(item.kind, data.len(), &mut header);
        frame.extend_from_slice(&header);
        frame.extend_from_slice(data);
    }
}
