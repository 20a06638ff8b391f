//! QUIC streams of a core: every one that is opened is given up again, and a link that allows no more costs circuits,
//! not the link.

mod common;

use common::{roots, tcp4, Net, CLIENT, SERVER};
use hopfare_core::{Fault, FlowId};
use proptest::prelude::*;

const HOPS: usize = 3;

/// Add a circuit with ids of its own to all nodes.
fn add(net: &mut Net, number: u32) -> Vec<FlowId> {
    let roots = roots(HOPS);
    let id = |hop: usize| number * 10 + hop as u32;
    (0..=HOPS)
        .map(|at| {
            let price = net.nodes[at].price();
            let core = &mut net.nodes[at].core;
            let added = match at {
                0 => core.client(&roots, 2, 1, id(0), price, CLIENT),
                HOPS => core.exit(&roots[at - 1], 2, 0, id(at - 1), price, CLIENT),
                _ => core.relay(&roots[at - 1], 2, 0, id(at - 1), price, 1, id(at), price),
            };
            added.unwrap()
        })
        .collect()
}

fn drop_at(net: &mut Net, flows: &[FlowId], at: usize) {
    let node = &mut net.nodes[at];
    node.core.drop_flow(flows[at], &mut node.outside);
    for (link, stream) in std::mem::take(&mut node.outside.stopped) {
        node.core.on_stream_reset(link, stream, &mut node.outside);
    }
    net.run();
}

fn carry(net: &mut Net, number: u32) {
    net.tun_in(0, &tcp4(CLIENT.v4, SERVER, 80, &[7; 900], number));
    net.run();
    net.tun_in(HOPS, &tcp4(SERVER, CLIENT.v4, 80, &[8; 900], number));
    net.run();
}

/// Streams that a node remembers: the peers', its own.
fn counts(net: &Net, at: usize) -> (usize, usize) {
    let (left, right) = (net.nodes[at].core.stream_counts(0), net.nodes[at].core.stream_counts(1));
    (left.0 + right.0, left.1 + right.1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn circuits_that_come_and_go_leave_no_stream(days in proptest::collection::vec((0..=HOPS, any::<bool>()), 1..20)) {
        let mut net = Net::new(HOPS, 2, false, 1 << 24);
        let first = net.flows.clone();
        carry(&mut net, 0);
        drop_at(&mut net, &first, 0);
        for at in 1..=HOPS {
            drop_at(&mut net, &first, at);
        }
        for (number, (at, carries)) in (10u32..).zip(days) {
            let flows = add(&mut net, number);
            if carries {
                carry(&mut net, number);
                for node in 1..HOPS {
                    // One of the circuit's each way and side, and those of credits.
                    let (theirs, ours) = counts(&net, node);
                    prop_assert!((2..=4).contains(&theirs) && (2..=4).contains(&ours), "{theirs} {ours}");
                }
            }
            drop_at(&mut net, &flows, at);
            for other in 0..=HOPS {
                drop_at(&mut net, &flows, other);
            }
            for node in 0..=HOPS {
                let links = if node == 0 || node == HOPS { 1 } else { 2 };
                let (theirs, ours) = counts(&net, node);
                prop_assert!(theirs <= links && ours <= links, "{theirs} {ours}: more than the streams of credits");
                prop_assert_eq!(net.nodes[node].outside.open_streams.len(), ours);
                prop_assert_eq!(net.nodes[node].core.flow_count(), 0);
            }
        }
    }
}

#[test]
fn a_link_that_allows_no_more_streams_costs_the_circuit_that_wants_one() {
    let mut net = Net::new(HOPS, 2, false, 1 << 24);
    carry(&mut net, 0);
    net.nodes[1].outside.streams_left = 1;
    let second = add(&mut net, 10);
    let answer = tcp4(SERVER, CLIENT.v4, 80, &[8; 900], 1);
    for _ in 0..2 {
        // The newest circuit has the address: forward by one stream that is left, and back by none.
        net.tun_in(0, &tcp4(CLIENT.v4, SERVER, 80, &[7; 900], 1));
        net.run();
        net.tun_in(HOPS, &answer);
        net.run();
    }
    assert_eq!(net.nodes[1].faults(), [Fault::FlowControl]);
    assert!(net.nodes[1].outside.closed.is_empty());
    assert!(net.nodes[1].core.counters(second[1]).is_none());
    assert!(net.nodes[1].core.counters(net.flows[1]).is_some());
}

#[test]
fn streams_of_nobody_s_circuits_are_stopped_and_forgotten() {
    let mut net = Net::new(HOPS, 2, false, 1 << 24);
    for number in 0..2000u64 {
        let circuit_id = (1000 + number as u32).to_be_bytes();
        net.arrive(1, 0, common::Sent::Stream(2 + 4 * number, circuit_id.to_vec().into()));
        assert!(counts(&net, 1).0 <= 1);
    }
    assert_eq!(net.nodes[1].core.unknown_frames(), 2000);
}
