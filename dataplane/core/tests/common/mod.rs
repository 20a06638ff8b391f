//! Cores joined in memory: links are queues, time is a number, what goes wrong is a filter.
#![allow(dead_code)] // each test uses its part

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use hopfare_core::ip::{Sum, TCP, UDP};
use hopfare_core::{
    Core, Driver, Event, Fault, FlowId, InnerAddresses, LinkId, MeterId, Policy, Price, Rule,
};

pub const SECOND: u64 = 1_000_000_000;
pub const CLIENT: InnerAddresses = InnerAddresses { v4: [100, 64, 1, 2], v6: Some([0xfd; 16]) };
pub const DNS: [u8; 4] = [100, 64, 0, 1];
pub const SERVER: [u8; 4] = [93, 184, 216, 34];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Datagram(Bytes),
    Stream(u64, Bytes),
    Reset(u64),
    Stop(u64),
}

/// One node's outside.
#[derive(Default)]
pub struct Outside {
    pub outbox: BTreeMap<LinkId, VecDeque<Sent>>,
    pub written: Vec<([u8; 10], Vec<u8>)>,
    pub closed: Vec<(LinkId, &'static str)>,
    pub room: usize,
    pub backlog: usize,
    pub streams_left: u64,
    /// Own streams that are open, of all links.
    pub open_streams: BTreeSet<(LinkId, u64)>,
    pub stopped: Vec<(LinkId, u64)>,
    next_stream: u64,
    next_random: u8,
}

impl Outside {
    pub fn new() -> Outside {
        Outside { room: 64, streams_left: u64::MAX, ..Outside::default() }
    }

    fn push(&mut self, link: LinkId, sent: Sent) {
        self.outbox.entry(link).or_default().push_back(sent);
    }
}

impl Driver for Outside {
    fn rtt_ns(&self, _: LinkId) -> u64 {
        20_000_000
    }
    fn datagram_room(&mut self, _: LinkId) -> usize {
        self.room
    }
    fn send_datagram(&mut self, link: LinkId, frame: Bytes) {
        assert_eq!(frame.len(), 1388);
        self.push(link, Sent::Datagram(frame));
    }
    fn open_stream(&mut self, link: LinkId) -> Option<u64> {
        self.streams_left = self.streams_left.checked_sub(1)?;
        self.next_stream += 4;
        // As in QUIC, the two sides of a link number theirs apart.
        let stream = self.next_stream + u64::from(link == 0);
        self.open_streams.insert((link, stream));
        Some(stream)
    }
    fn send_stream(&mut self, link: LinkId, stream: u64, data: Bytes) {
        self.push(link, Sent::Stream(stream, data));
    }
    fn reset_stream(&mut self, link: LinkId, stream: u64) {
        assert!(self.open_streams.remove(&(link, stream)), "reset of a stream that is not open");
        self.streams_left = self.streams_left.saturating_add(1);
        self.push(link, Sent::Reset(stream));
    }
    fn stop_stream(&mut self, link: LinkId, stream: u64) {
        self.stopped.push((link, stream));
        self.push(link, Sent::Stop(stream));
    }
    fn stream_backlog(&mut self, _: LinkId) -> usize {
        self.backlog
    }
    fn close_link(&mut self, link: LinkId, _: u64, reason: &'static str) {
        self.closed.push((link, reason));
    }
    fn tun_write(&mut self, header: &[u8; 10], packet: &[u8]) -> bool {
        self.written.push((*header, packet.to_vec()));
        true
    }
    fn random(&mut self, out: &mut [u8]) {
        for byte in out {
            self.next_random = self.next_random.wrapping_mul(5).wrapping_add(1);
            *byte = self.next_random;
        }
    }
}

pub struct Node {
    pub core: Core,
    pub outside: Outside,
    pub meter: MeterId,
    pub events: Vec<Event>,
}

impl Node {
    pub fn new(memory: usize) -> Node {
        let mut core = Core::new(memory);
        let meter = core.new_meter(None, 0);
        Node { core, outside: Outside::new(), meter, events: Vec::new() }
    }

    pub fn price(&self) -> Price {
        Price { meter: self.meter, wei: 1 }
    }

    pub fn faults(&mut self) -> Vec<Fault> {
        self.core.take_events(&mut self.events);
        let faults = self.events.iter().filter_map(|event| match event {
            Event::FlowLost { fault, .. } => Some(*fault),
            _ => None,
        });
        faults.collect()
    }

    pub fn packets(&self) -> Vec<Vec<u8>> {
        self.outside.written.iter().map(|(_, packet)| packet.clone()).collect()
    }
}

pub fn open_policy() -> Policy {
    let all = |accept, port: Option<u16>| Rule {
        accept,
        network: 0,
        mask: 0,
        min_port: port.unwrap_or(1),
        max_port: port.unwrap_or(65535),
    };
    Policy {
        rules4: vec![all(false, Some(25)), all(true, None)],
        rules6: vec![all(false, Some(25)), all(true, None)],
        has_ipv6: true,
        dns4: DNS,
        ..Policy::default()
    }
}

type Tamper = Box<dyn FnMut(usize, usize, Sent) -> Vec<Sent>>;

/// A path: node 0 is the client, the last one the exit. Link i joins node i (as its link 1) and node i + 1 (as
/// its link 0).
pub struct Net {
    pub nodes: Vec<Node>,
    pub flows: Vec<FlowId>,
    pub now: u64,
    /// (from, to, what) gives what really arrives.
    pub tamper: Tamper,
}

pub fn roots(hops: usize) -> Vec<[u8; 32]> {
    (1..=hops as u8).map(|hop| [hop; 32]).collect()
}

impl Net {
    pub fn new(hops: usize, suite: u8, has_offload: bool, memory: usize) -> Net {
        let mut nodes: Vec<Node> = (0..=hops).map(|_| Node::new(memory)).collect();
        let mut flows = Vec::new();
        for (index, node) in nodes.iter_mut().enumerate() {
            if index > 0 {
                node.core.link_up(0);
            }
            if index < hops {
                node.core.link_up(1);
            }
        }
        nodes[0].core.attach_tun(has_offload, true);
        nodes[hops].core.attach_tun(has_offload, false);
        nodes[hops].core.set_policy(open_policy());
        let roots = roots(hops);
        let price = nodes[0].price();
        flows.push(nodes[0].core.client(&roots, suite, 1, 7, price, CLIENT).unwrap());
        for hop in 1..hops {
            let price = nodes[hop].price();
            let root = &roots[hop - 1];
            let id = hop as u32;
            let (id_in, id_out) = (if hop == 1 { 7 } else { id + 10 }, id + 11);
            flows.push(nodes[hop].core.relay(root, suite, 0, id_in, price, 1, id_out, price).unwrap());
        }
        let id = if hops == 1 { 7 } else { hops as u32 + 10 };
        let price = nodes[hops].price();
        flows.push(nodes[hops].core.exit(&roots[hops - 1], suite, 0, id, price, CLIENT).unwrap());
        Net { nodes, flows, now: 1000 * SECOND, tamper: Box::new(|_, _, sent| vec![sent]) }
    }

    pub fn tun_in(&mut self, node: usize, raw: &[u8]) {
        let now = self.now;
        let node = &mut self.nodes[node];
        node.core.on_tun(raw, now);
        node.core.pump(now, &mut node.outside);
    }

    /// Carry what waits until nothing does.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            let mut is_busy = false;
            for from in 0..self.nodes.len() {
                for link in [0, 1] {
                    let Some(sent) =
                        self.nodes[from].outside.outbox.get_mut(&link).and_then(VecDeque::pop_front)
                    else {
                        continue;
                    };
                    is_busy = true;
                    let to = if link == 0 { from - 1 } else { from + 1 };
                    for arrived in (self.tamper)(from, to, sent) {
                        self.arrive(to, 1 - link, arrived);
                    }
                }
            }
            self.now += 1000;
            if !is_busy {
                return;
            }
        }
        panic!("the net does not come to rest");
    }

    pub fn arrive(&mut self, to: usize, link: LinkId, arrived: Sent) {
        let now = self.now;
        let Node { core, outside, .. } = &mut self.nodes[to];
        match arrived {
            Sent::Datagram(frame) => core.on_datagrams(link, &[frame], now, outside),
            Sent::Stream(stream, data) => {
                // In pieces, as QUIC gives them.
                for piece in data.chunks(1173) {
                    core.on_stream(link, stream, piece, false, now, outside);
                }
            }
            Sent::Reset(stream) | Sent::Stop(stream) => core.on_stream_reset(link, stream, outside),
        }
        core.pump(now, outside);
        // QUIC tells nothing more of streams that were stopped.
        for (link, stream) in std::mem::take(&mut outside.stopped) {
            core.on_stream_reset(link, stream, outside);
        }
    }

    pub fn faults(&mut self) -> Vec<Vec<Fault>> {
        self.nodes.iter_mut().map(Node::faults).collect()
    }
}

pub fn ip4(source: [u8; 4], destination: [u8; 4], protocol: u8, segment: &[u8]) -> Vec<u8> {
    let total = (20 + segment.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&destination);
    let sum = Sum::default().bytes(&packet).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(segment);
    packet
}

pub fn udp4(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut segment = [[40000, port, length, 0].map(u16::to_be_bytes).concat(), payload.to_vec()].concat();
    let sum = pseudo(&source, &destination, UDP, &segment).checksum();
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    ip4(source, destination, UDP, &segment)
}

pub fn tcp4(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8], sequence: u32) -> Vec<u8> {
    let mut segment = [40000u16, port].map(u16::to_be_bytes).concat();
    segment.extend_from_slice(&sequence.to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    let sum = pseudo(&source, &destination, TCP, &segment).checksum();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip4(source, destination, TCP, &segment)
}

pub fn pseudo(source: &[u8], destination: &[u8], protocol: u8, segment: &[u8]) -> Sum {
    Sum::default()
        .bytes(source)
        .bytes(destination)
        .number(u64::from(protocol) + segment.len() as u64)
        .bytes(segment)
}
