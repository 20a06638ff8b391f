//! A relay on two shards: the same circuits as on one, what crosses, and who ends what.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{open_policy, roots, tcp4, udp4, Node, Sent, CLIENT, SECOND, SERVER};
use hopfare_core::budget::Pool;
use hopfare_core::{Core, Crossing, Event, Fault, FlowId, InnerAddresses, Price, Receiver, Unit};

const MEMORY: usize = 64 << 20;
const ID: u32 = 9;

/// Client and exit on one core each, and between them a relay whose link to the client (its 0) is on `shards[0]`
/// and whose link to the exit (its 1) on `shards[1]`.
struct Split {
    client: Node,
    shards: [Node; 2],
    exit: Node,
    client_flow: FlowId,
    flow: FlowId,
    now: u64,
    /// Nothing crosses while this is set: the other thread does not come to it.
    is_jammed: bool,
}

fn shard(at: u8, memory: usize, pool: &Arc<Pool>) -> Node {
    let mut node = Node::new(memory);
    node.core = Core::sharded(memory, pool.clone(), at, 2);
    node.meter = node.core.new_meter(None, 0);
    node
}

impl Split {
    fn new(memory: usize) -> Split {
        let pool = Arc::new(Pool::new(2));
        let (mut client, mut exit) = (Node::new(MEMORY), Node::new(MEMORY));
        let mut shards = [shard(0, memory, &pool), shard(1, memory, &pool)];
        client.core.link_up(1);
        shards[0].core.link_up(0);
        shards[1].core.link_up(1);
        exit.core.link_up(0);
        client.core.attach_tun(false, true);
        exit.core.attach_tun(false, false);
        exit.core.set_policy(open_policy());
        let roots = roots(2);
        let client_flow = client.core.client(&roots, 2, 1, 7, client.price(), CLIENT).unwrap();
        exit.core.exit(&roots[1], 2, 0, ID, exit.price(), CLIENT).unwrap();
        let mut split =
            Split { client, shards, exit, client_flow, flow: 0, now: 1000 * SECOND, is_jammed: false };
        split.flow = split.add(7, ID, 1);
        split.run();
        split
    }

    fn add(&mut self, id_in: u32, id_out: u32, name: u64) -> FlowId {
        let price = self.shards[0].price();
        let core = &mut self.shards[0].core;
        core.relay_across(&roots(2)[0], 2, 0, id_in, price, 1, name, 77, id_out, price).unwrap()
    }

    fn give(&mut self, to: usize, from: u8, crossing: Crossing) {
        let now = self.now;
        let Node { core, outside, .. } = &mut self.shards[to];
        match crossing {
            Crossing { to: Receiver::Outpost(flow), unit: Unit::Open { name, link, circuit_id } } => {
                assert_eq!(link, 77);
                core.add_outpost(from, flow, name, Some(1), circuit_id, outside);
            }
            crossing => core.on_crossing(from, crossing, now, outside),
        }
    }

    fn cross(&mut self) -> bool {
        let mut is_busy = false;
        for (from, to) in [(0, 1), (1, 0)] {
            while let Some(crossing) = self.shards[from].core.next_crossing(to as u8, self.now) {
                is_busy = true;
                self.give(to, from as u8, crossing);
            }
            let Node { core, outside, .. } = &mut self.shards[to];
            core.pump(self.now, outside);
        }
        for node in &mut self.shards {
            node.core.share_memory();
        }
        is_busy
    }

    fn run(&mut self) {
        for _ in 0..200_000 {
            let mut is_busy = !self.is_jammed && self.cross();
            for (from, link) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
                let sent = match from {
                    0 => &mut self.client,
                    1 => &mut self.shards[0],
                    2 => &mut self.shards[1],
                    _ => &mut self.exit,
                }
                .outside
                .outbox
                .get_mut(&link)
                .and_then(|outbox| outbox.pop_front());
                let Some(sent) = sent else { continue };
                is_busy = true;
                let now = self.now;
                let node = match from {
                    0 => &mut self.shards[0],
                    1 => &mut self.client,
                    2 => &mut self.exit,
                    _ => &mut self.shards[1],
                };
                arrive(node, 1 - link, sent, now);
            }
            self.now += 1000;
            if !is_busy {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn out(&mut self, packet: &[u8]) {
        let Node { core, outside, .. } = &mut self.client;
        core.on_tun(packet, self.now);
        core.pump(self.now, outside);
    }

    fn back(&mut self, packet: &[u8]) {
        let Node { core, outside, .. } = &mut self.exit;
        core.on_tun(packet, self.now);
        core.pump(self.now, outside);
    }

    fn used(&self) -> [usize; 2] {
        [self.shards[0].core.own_bytes(), self.shards[1].core.own_bytes()]
    }
}

fn arrive(node: &mut Node, link: u32, sent: Sent, now: u64) {
    let Node { core, outside, .. } = node;
    match sent {
        Sent::Datagram(frame) => core.on_datagrams(link, &[frame], now, outside),
        Sent::Stream(stream, data) => {
            for piece in data.chunks(1173) {
                core.on_stream(link, stream, piece, false, now, outside);
            }
        }
        Sent::Reset(stream) | Sent::Stop(stream) => core.on_stream_reset(link, stream, outside),
    }
    core.pump(now, outside);
}

fn train(n: u32) -> Vec<u8> {
    tcp4(CLIENT.v4, SERVER, 443, &[n as u8; 1300], n)
}

fn answer(n: u32) -> Vec<u8> {
    tcp4(SERVER, CLIENT.v4, 443, &[n as u8; 1300], n)
}

#[test]
fn both_lanes_go_both_ways_and_the_home_counts_and_charges() {
    let mut split = Split::new(MEMORY);
    for n in 0..3000 {
        split.out(&train(n));
        split.back(&answer(n));
        if n % 50 == 0 {
            split.out(&udp4(CLIENT.v4, SERVER, 53, &[1; 900]));
            split.back(&udp4(SERVER, CLIENT.v4, 53, &[2; 900]));
            split.run();
        }
    }
    split.run();
    assert_eq!((split.exit.packets().len(), split.client.packets().len()), (3060, 3060));
    let counters = split.shards[0].core.counters(split.flow).unwrap();
    assert!(counters.forward.packets >= 3060 && counters.backward.packets >= 3060);
    assert_eq!((counters.forward.failures, counters.backward.failures), (0, 0));
    let meters = split.shards.each_ref().map(|node| node.core.meter(node.meter).unwrap().packets);
    assert_eq!(meters, [2 * (counters.forward.packets + counters.backward.packets), 0]);
    assert_eq!(split.used(), [0, 0]);
    assert!(split.shards.iter_mut().all(|node| node.faults().is_empty()));
}

#[test]
fn a_shard_that_does_not_come_to_it_holds_trains_back_and_single_packets_are_dropped() {
    let mut split = Split::new(MEMORY);
    split.out(&train(0));
    split.run();
    split.is_jammed = true;
    for n in 0..4000 {
        split.out(&train(n));
        split.out(&udp4(CLIENT.v4, SERVER, 53, &[1; 1200]));
        if n % 16 == 0 {
            split.run();
        }
    }
    // One window of trains and the outbox of single packets, and no more.
    let most = 513 * 1385 + (1 << 20) + 1388;
    assert!(split.used()[0] <= most, "{:?}", split.used());
    let dropped = split.shards[0].core.counters(split.flow).unwrap().forward.dropped;
    assert!(dropped > 1000, "{dropped}");
    split.is_jammed = false;
    let before = split.exit.packets().len();
    split.run();
    assert!(split.exit.packets().len() > before + 500);
    assert_eq!(split.used(), [0, 0]);
    // What waited too long was dropped by CoDel or the entry; the circuit goes on.
    split.out(&train(9));
    split.run();
    assert_eq!(split.exit.packets().last(), Some(&train(9)));
    assert!(split.shards.iter_mut().all(|node| node.faults().is_empty()));
}

#[test]
fn a_full_link_of_the_outpost_holds_the_client_back() {
    let mut split = Split::new(MEMORY);
    split.out(&train(0));
    split.run();
    split.shards[1].outside.backlog = 1 << 20;
    for n in 0..4000 {
        split.out(&train(n));
        split.run();
    }
    assert!(split.used().iter().sum::<usize>() <= 4097 * 1385, "{:?}", split.used());
    split.shards[1].outside.backlog = 0;
    let Node { core, outside, .. } = &mut split.shards[1];
    core.on_writable(1, split.now, outside);
    split.run();
    assert_eq!(split.used(), [0, 0]);
    assert!(split.shards.iter_mut().all(|node| node.faults().is_empty()));
}

#[test]
fn the_end_of_either_link_ends_the_flow_once_and_frees_all() {
    for dies in [0, 1] {
        let mut split = Split::new(MEMORY);
        split.is_jammed = true;
        for n in 0..300 {
            split.out(&train(n));
            split.back(&answer(n));
            split.out(&udp4(CLIENT.v4, SERVER, 53, b"x"));
            split.back(&udp4(SERVER, CLIENT.v4, 53, b"x"));
        }
        split.run();
        let Node { core, outside, .. } = &mut split.shards[dies];
        core.link_down(dies as u32, outside);
        split.is_jammed = false;
        for _ in 0..3 {
            split.cross();
        }
        let faults = split.shards.each_mut().map(Node::faults);
        assert_eq!(faults, [vec![Fault::LinkClosed], vec![]], "{dies}");
        assert_eq!(split.shards.each_ref().map(|node| node.core.flow_count()), [0, 0]);
        assert_eq!(split.used(), [0, 0]);
    }
}

#[test]
fn a_dropped_flow_takes_its_outpost_along_and_resets_its_streams() {
    let mut split = Split::new(MEMORY);
    split.out(&train(1));
    split.back(&answer(1));
    split.run();
    let Node { core, outside, .. } = &mut split.shards[0];
    assert!(core.drop_flow(split.flow, outside).is_some());
    // On its way when the flow was gone: dropped, and not counted as held.
    split.back(&answer(2));
    split.run();
    assert_eq!(split.shards.each_ref().map(|node| node.core.flow_count()), [0, 0]);
    assert_eq!(split.exit.faults(), [Fault::StreamReset]);
    assert_eq!(split.client.faults(), [Fault::StreamReset]);
    assert!(split.shards.iter_mut().all(|node| node.faults().is_empty()));
    assert_eq!(split.used(), [0, 0]);
    let id = split.client_flow;
    assert!(split.client.core.counters(id).is_none());
}

#[test]
fn faults_of_the_far_peer_are_told_to_the_home() {
    let cases: [(&[u8], Fault); 2] = [(b"\0", Fault::BadFraming), (b"\x31", Fault::BadFraming)];
    for (bytes, fault) in cases {
        let mut split = Split::new(MEMORY);
        let data = [&ID.to_be_bytes()[..], bytes].concat();
        let now = split.now;
        arrive(&mut split.shards[1], 1, Sent::Stream(3, Bytes::from(data)), now);
        split.run();
        assert_eq!(split.shards.each_mut().map(Node::faults), [vec![fault], vec![]]);
    }
    // More units than were granted, while the home does not come to take them.
    let mut split = Split::new(MEMORY);
    split.is_jammed = true;
    let now = split.now;
    let mut data = ID.to_be_bytes().to_vec();
    for _ in 0..12 {
        data.push(48);
        data.extend_from_slice(&[0; 48 * 1384]);
    }
    arrive(&mut split.shards[1], 1, Sent::Stream(3, Bytes::from(data)), now);
    split.is_jammed = false;
    split.run();
    assert_eq!(split.shards.each_mut().map(Node::faults), [vec![Fault::FlowControl], vec![]]);
    assert_eq!(split.used(), [0, 0]);
}

#[test]
fn an_id_may_be_used_again_before_the_old_outpost_has_gone() {
    let mut split = Split::new(MEMORY);
    // The other way round: a flow whose home is where the outpost still is.
    let price = Price { meter: split.shards[1].meter, wei: 0 };
    let Node { core, outside, .. } = &mut split.shards[1];
    core.link_up(2);
    core.free_circuit_id(1, ID, 1, outside);
    assert_eq!(core.flow_count(), 1, "the outpost is not older");
    core.free_circuit_id(1, ID, 2, outside);
    assert_eq!(core.flow_count(), 0);
    assert!(core.relay(&[3; 32], 2, 2, 5, price, 1, ID, price).is_ok());
    let Node { core, outside, .. } = &mut split.shards[0];
    core.drop_flow(split.flow, outside);
    split.run();
    assert_eq!(split.shards.each_ref().map(|node| node.core.flow_count()), [0, 1]);
    // An outpost for an id that a flow has, or on no link: the home is told.
    let flow = split.add(8, ID, 3);
    split.run();
    assert_eq!(split.shards[1].core.flow_count(), 1);
    assert!(matches!(split.shards[0].faults()[..], [Fault::LinkClosed]));
    assert!(split.shards[0].core.counters(flow).is_none());
}

#[test]
fn a_packet_of_the_tun_goes_to_the_shard_of_its_newest_circuit() {
    let pool = Arc::new(Pool::new(2));
    let mut shards = [shard(0, MEMORY, &pool), shard(1, MEMORY, &pool)];
    for node in &mut shards {
        node.core.attach_tun(false, true);
        node.core.link_up(0);
    }
    let addresses = InnerAddresses { v6: None, ..CLIENT };
    let price = shards[1].price();
    let flow = shards[1].core.client(&roots(2), 2, 0, 7, price, addresses).unwrap();
    let packet = udp4(CLIENT.v4, SERVER, 53, b"question");
    let [first, second] = &mut shards;
    let carry = |first: &mut Node, second: &mut Node| {
        first.core.on_tun(&packet, 1);
        while let Some(crossing) = first.core.next_crossing(1, 1) {
            second.core.on_crossing(0, crossing, 1, &mut second.outside);
        }
        let mut sent = [0, 0];
        for (sent, node) in sent.iter_mut().zip([first, second]) {
            node.core.pump(1, &mut node.outside);
            *sent = node.outside.outbox.remove(&0).map_or(0, |outbox| outbox.len());
        }
        sent
    };
    assert_eq!((carry(first, second), first.core.unknown_packets()), ([0, 0], 1));
    first.core.set_foreign(addresses, 1, 40);
    assert_eq!(carry(first, second), [0, 1]);
    // A newer one here.
    let price = first.price();
    let newer = first.core.client(&roots(2), 2, 0, 7, price, addresses).unwrap();
    assert_eq!(carry(first, second), [1, 0]);
    first.core.forget_foreign(addresses, 40);
    assert_eq!(carry(first, second), [1, 0]);
    // And a newer one there again; the end of the older does not take it away.
    first.core.set_foreign(addresses, 1, 41);
    first.core.drop_flow(newer, &mut first.outside);
    first.core.forget_foreign(addresses, 40);
    assert_eq!(carry(first, second), [0, 1]);
    second.core.drop_flow(flow, &mut second.outside);
    assert_eq!(carry(first, second), [0, 0]);
    assert_eq!(second.core.unknown_packets(), 1, "it is not sent on and on");
    first.core.forget_foreign(addresses, 41);
    assert_eq!((carry(first, second), first.core.unknown_packets()), ([0, 0], 2));
}

#[test]
fn the_shard_that_holds_most_frees_memory() {
    let mut split = Split::new(300_000);
    let poor = split.shards[0].core.new_meter(Some(0), 0);
    let price = Price { meter: poor, wei: 1 };
    let data = |id: u32| {
        let mut data = id.to_be_bytes().to_vec();
        data.push(48);
        data.extend_from_slice(&[0; 48 * 1384]);
        Sent::Stream(u64::from(id) * 4, Bytes::from(data))
    };
    let now = split.now;
    for id in 20..26 {
        let core = &mut split.shards[0].core;
        core.relay_across(&[9; 32], 2, 0, id, price, 1, u64::from(id), 77, id, price).unwrap();
        split.run();
        arrive(&mut split.shards[id as usize % 2], id % 2, data(id), now);
        split.run();
    }
    assert!(split.used().iter().sum::<usize>() <= 300_000);
    let faults = split.shards.each_mut().map(Node::faults);
    assert!(
        !faults[0].is_empty()
            && faults[0].iter().all(|fault| *fault == Fault::Memory)
            && faults[1].is_empty()
    );
    assert!(split.shards[0].core.counters(split.flow).is_some());
    let mut events = Vec::new();
    split.shards[0].core.take_events(&mut events);
    assert!(!events.iter().any(|event| matches!(event, Event::EchoReply { .. })));
}
