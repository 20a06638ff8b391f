//! Whole paths of cores: what goes in at one end comes out at the other, and bad days.

mod common;

use bytes::Bytes;
use common::{pseudo, tcp4, udp4, Net, Sent, CLIENT, DNS, SECOND, SERVER};
use hopfare_core::ip::TCP;
use hopfare_core::vnet::{Header, GSO_TCPV4, NEEDS_CSUM};
use hopfare_core::{Event, Fault, Price};

const MEMORY: usize = 64 << 20;

fn net(hops: usize) -> Net {
    Net::new(hops, 2, false, MEMORY)
}

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 % 251) as u8).collect()
}

#[test]
fn packets_pass_both_ways_over_every_length_of_path_and_both_suites() {
    for hops in 1..=4 {
        for suite in [1, 2] {
            let mut net = Net::new(hops, suite, false, MEMORY);
            let out = [
                udp4(CLIENT.v4, SERVER, 53, b"question"),
                tcp4(CLIENT.v4, SERVER, 443, &payload(1200), 1),
                udp4(CLIENT.v4, SERVER, 53, &payload(1300)),
            ];
            let back = [udp4(SERVER, CLIENT.v4, 9, b"answer"), tcp4(SERVER, CLIENT.v4, 9, &payload(1340), 1)];
            for packet in &out {
                net.tun_in(0, packet);
            }
            net.run();
            for packet in &back {
                net.tun_in(hops, packet);
            }
            net.run();
            let mut arrived = net.nodes[hops].packets();
            arrived.sort();
            let mut expected = out.to_vec();
            expected.sort();
            assert_eq!(arrived, expected);
            assert_eq!(net.nodes[0].packets().len(), 2);
            assert!(net.faults().iter().all(Vec::is_empty));
            for hop in 1..hops {
                let counters = net.nodes[hop].core.counters(net.flows[hop]).unwrap();
                // Two packets of TCP or too large go by train, each of one or two units here.
                assert!(counters.forward.packets >= 3 && counters.backward.packets >= 2);
                assert_eq!((counters.forward.failures, counters.backward.failures), (0, 0));
                let meter = net.nodes[hop].core.meter(net.nodes[hop].meter).unwrap();
                assert_eq!(meter.packets, 2 * (counters.forward.packets + counters.backward.packets));
            }
            assert!(net.nodes.iter().all(|node| node.core.used_bytes() == 0));
        }
    }
}

fn super_packet(size: usize) -> (Vec<u8>, Vec<u8>) {
    let body = payload(size);
    let mut packet = tcp4(CLIENT.v4, SERVER, 443, &body, 77);
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 40,
        gso_size: 1240,
        csum_start: 20,
        csum_offset: 16,
    };
    // The kernel leaves the pseudo header's sum there.
    let sum = pseudo(&CLIENT.v4, &SERVER, TCP, &[]).number((packet.len() - 20) as u64).folded();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    ([&header.encode()[..], &packet[..]].concat(), body)
}

#[test]
fn super_packets_travel_whole_between_tuns_with_offload() {
    for size in [2000, 10_000, 40_000, 65_000] {
        let mut net = Net::new(3, 2, true, MEMORY);
        let (raw, _) = super_packet(size);
        for _ in 0..5 {
            net.tun_in(0, &raw);
        }
        net.run();
        let written = &net.nodes[3].outside.written;
        assert_eq!(written.len(), 5);
        for (header, packet) in written {
            assert_eq!([&header[..], packet].concat(), raw);
        }
        assert!(net.faults().iter().all(Vec::is_empty));
    }
}

#[test]
fn super_packets_are_cut_for_a_plain_tun() {
    let mut net = Net::new(2, 2, true, MEMORY);
    net.nodes[2].core.attach_tun(false, false);
    let (raw, body) = super_packet(20_000);
    net.tun_in(0, &raw);
    net.run();
    let packets = net.nodes[2].packets();
    assert_eq!(packets.len(), 20_000usize.div_ceil(1240));
    let mut joined = Vec::new();
    for packet in &packets {
        assert!(packet.len() <= 1280);
        assert_eq!(pseudo(&packet[12..16], &packet[16..20], TCP, &packet[20..]).folded(), 0xffff);
        joined.extend_from_slice(&packet[40..]);
    }
    assert_eq!(joined, body);
}

#[test]
fn plain_segments_are_joined_for_the_tun() {
    let mut net = Net::new(2, 2, false, MEMORY);
    net.nodes[2].core.attach_tun(true, false);
    net.nodes[2].core.join_packets(true, true);
    let (raw, body) = super_packet(12_400);
    let mut sent = Vec::new();
    let header = Header::decode(raw.first_chunk().unwrap());
    hopfare_core::segment::to_packets(&header, &raw[10..], &mut Vec::new(), &mut |packet| {
        sent.push(packet.to_vec());
    });
    let now = net.now;
    for packet in &sent {
        net.nodes[0].core.on_tun(packet, now);
    }
    let node = &mut net.nodes[0];
    node.core.pump(now, &mut node.outside);
    net.run();
    let written = &net.nodes[2].outside.written;
    assert!(written.len() <= 2, "{}", written.len());
    let mut arrived = Vec::new();
    for (header, packet) in written {
        hopfare_core::segment::to_packets(&Header::decode(header), packet, &mut Vec::new(), &mut |packet| {
            arrived.push(packet.to_vec());
        });
    }
    assert!(arrived == sent);
    assert!(arrived.iter().flat_map(|packet| packet[40..].to_vec()).eq(body));
}

#[test]
fn a_bulk_transfer_gets_credits_and_is_held_back_by_a_full_link() {
    let mut net = Net::new(3, 2, true, MEMORY);
    let (raw, _) = super_packet(60_000);
    let mut sent = 0;
    for _ in 0..400 {
        net.tun_in(0, &raw);
        sent += 1;
        if sent % 8 == 0 {
            net.run();
        }
    }
    net.run();
    assert_eq!(net.nodes[3].outside.written.len(), 400);
    net.nodes[1].outside.backlog = 1 << 20;
    for _ in 0..100 {
        net.tun_in(0, &raw);
        net.run();
    }
    let written = net.nodes[3].outside.written.len();
    assert!(written < 410, "{written}");
    // The relay holds a window at most, the entry its own limit.
    assert!(net.nodes[1].core.used_bytes() <= 4096 * 1384 + 4096);
    assert!(net.nodes[0].core.used_bytes() <= 2 << 20);
    net.nodes[1].outside.backlog = 0;
    let now = net.now;
    let node = &mut net.nodes[1];
    node.core.on_writable(1, now, &mut node.outside);
    net.run();
    assert!(net.nodes[3].outside.written.len() > written + 50);
    assert!(net.faults().iter().all(Vec::is_empty));
    assert!(net.nodes[1..].iter().all(|node| node.core.used_bytes() == 0));
}

#[test]
fn small_packets_share_a_datagram() {
    let mut net = net(3);
    let now = net.now;
    for port in 0..40 {
        net.nodes[0].core.on_tun(&udp4(CLIENT.v4, SERVER, 100 + port, b"x"), now);
    }
    let node = &mut net.nodes[0];
    node.core.pump(now, &mut node.outside);
    assert!(net.nodes[0].outside.outbox[&1].len() <= 2);
    net.run();
    assert_eq!(net.nodes[3].packets().len(), 40);
}

#[test]
fn echoes_come_back() {
    let mut net = net(3);
    let (now, flow) = (net.now, net.flows[0]);
    let node = &mut net.nodes[0];
    node.core.echo(flow, *b"token 42", now, &mut node.outside);
    net.run();
    let mut events = Vec::new();
    net.nodes[0].core.take_events(&mut events);
    assert_eq!(events, [Event::EchoReply { flow, token: *b"token 42" }]);
}

#[test]
fn refused_packets_are_answered_and_spoofed_ones_dropped() {
    let mut net = net(2);
    net.tun_in(0, &udp4(CLIENT.v4, SERVER, 25, b"spam"));
    net.run();
    let answers = net.nodes[0].packets();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0][12..20], [DNS, CLIENT.v4].concat());
    assert_eq!(answers[0][20..22], [3, 13]);
    assert!(net.nodes[2].packets().is_empty());
    // A client whose addresses differ from what the exit gave it.
    let other = hopfare_core::InnerAddresses { v4: [100, 64, 9, 9], v6: None };
    let price = net.nodes[0].price();
    let flow = net.flows[0];
    let node = &mut net.nodes[0];
    node.core.drop_flow(flow, &mut node.outside).unwrap();
    net.run();
    let mut net = net_with_addresses(other, price);
    net.tun_in(0, &udp4(other.v4, SERVER, 80, b"spoof"));
    net.run();
    assert_eq!(net.nodes[2].core.gate_counters().spoofed, 1);
    assert!(net.nodes[2].packets().is_empty());
}

fn net_with_addresses(addresses: hopfare_core::InnerAddresses, price: Price) -> Net {
    let mut net = net(2);
    let flow = net.flows[0];
    let node = &mut net.nodes[0];
    node.core.drop_flow(flow, &mut node.outside).unwrap();
    node.outside.outbox.clear();
    net.flows[0] = node.core.client(&common::roots(2), 2, 1, 7, price, addresses).unwrap();
    net
}

#[test]
fn a_changed_datagram_is_dropped_and_sixteen_end_the_circuit() {
    let mut net = net(3);
    net.tamper = Box::new(|from, _, sent| match sent {
        Sent::Datagram(frame) if from == 1 => {
            let mut changed = frame.to_vec();
            changed[700] ^= 1;
            vec![Sent::Datagram(Bytes::from(changed))]
        }
        other => vec![other],
    });
    for turn in 1..=16 {
        assert!(net.nodes[2].faults().is_empty(), "{turn}");
        net.tun_in(0, &udp4(CLIENT.v4, SERVER, 80, b"data"));
        net.run();
    }
    assert_eq!(net.nodes[2].faults(), [Fault::BadPackets]);
    assert!(net.nodes[3].packets().is_empty());
}

#[test]
fn doubled_and_reordered_datagrams_arrive_once() {
    let mut net = net(3);
    let mut held = Vec::new();
    net.tamper = Box::new(move |from, _, sent| match sent {
        Sent::Datagram(_) if from == 1 => {
            held.push(sent.clone());
            if held.len() == 4 {
                let mut out: Vec<Sent> = held.drain(..).rev().collect();
                out.push(out[0].clone());
                out
            } else {
                vec![sent]
            }
        }
        other => vec![other],
    });
    for port in 0..8 {
        net.tun_in(0, &udp4(CLIENT.v4, SERVER, 100 + port, b"data"));
        net.run();
    }
    assert_eq!(net.nodes[3].packets().len(), 8);
    assert!(net.faults().iter().all(Vec::is_empty));
    let counters = net.nodes[2].core.counters(net.flows[2]).unwrap();
    assert_eq!((counters.forward.packets, counters.forward.dropped), (8, 8));
}

#[test]
fn a_changed_train_ends_the_circuit_at_once_and_everywhere() {
    let mut net = net(3);
    net.tamper = Box::new(|from, _, sent| match sent {
        Sent::Stream(stream, data) if from == 0 && data.len() > 1000 => {
            let mut changed = data.to_vec();
            changed[500] ^= 1;
            vec![Sent::Stream(stream, Bytes::from(changed))]
        }
        other => vec![other],
    });
    net.tun_in(0, &tcp4(CLIENT.v4, SERVER, 80, b"data", 1));
    net.run();
    let faults = net.faults();
    assert_eq!(faults[1], [Fault::BadPackets]);
    assert_eq!(faults[0], [Fault::StreamReset]);
}

#[test]
fn a_sender_beyond_its_credit_loses_the_circuit() {
    let mut net = net(2);
    net.nodes[1].outside.backlog = 1 << 20;
    let mut frame = vec![48u8];
    frame.resize(1 + 48 * 1384, 0);
    // Not authentic either; the units alone are too many before the last one is whole.
    let node = &mut net.nodes[1];
    let id = 7u32.to_be_bytes();
    node.core.on_stream(0, 2, &id, false, 0, &mut node.outside);
    for _ in 0..11 {
        node.core.on_stream(0, 2, &frame[..1], false, 0, &mut node.outside);
    }
    assert_eq!(node.faults(), []);
    let mut net = Net::new(2, 2, true, MEMORY);
    net.nodes[1].outside.backlog = 1 << 20;
    let (raw, _) = super_packet(60_000);
    net.tamper = Box::new(|_, to, sent| match sent {
        // The client is told that it may send on and on.
        Sent::Stream(..) if to == 0 => vec![],
        other => vec![other],
    });
    let node = &mut net.nodes[0];
    let grant = [0u32.to_be_bytes().to_vec(), hopfare_core::credit::encode_grant(7, 2000).to_vec()].concat();
    node.core.on_stream(1, 3, &grant, false, 0, &mut node.outside);
    for _ in 0..30 {
        net.tun_in(0, &raw);
        net.run();
    }
    assert_eq!(net.nodes[1].faults(), [Fault::FlowControl]);
}

#[test]
fn bad_framing_second_streams_and_absurd_grants_are_faults() {
    let mut net = net(2);
    let node = &mut net.nodes[1];
    node.core.on_stream(0, 2, &[0, 0, 0, 7, 49], false, 0, &mut node.outside);
    assert_eq!(node.faults(), [Fault::BadFraming]);

    let mut net = common::Net::new(2, 2, false, MEMORY);
    let node = &mut net.nodes[1];
    node.core.on_stream(0, 2, &[0, 0, 0, 7], false, 0, &mut node.outside);
    node.core.on_stream(0, 6, &[0, 0, 0, 7, 1], false, 0, &mut node.outside);
    assert!(node.outside.outbox[&0].contains(&Sent::Stop(6)));
    assert_eq!(node.core.unknown_frames(), 1);
    node.core.on_stream(0, 10, &[0, 0, 0, 0], false, 0, &mut node.outside);
    node.core.on_stream(0, 14, &[0, 0, 0, 0], false, 0, &mut node.outside);
    assert_eq!(node.outside.closed, [(0, "second stream of credits")]);
    let grant = hopfare_core::credit::encode_grant(7, 1 << 40);
    for byte in grant {
        node.core.on_stream(0, 10, &[byte], false, 0, &mut node.outside);
    }
    assert_eq!(node.faults(), [Fault::FlowControl]);
}

#[test]
fn an_empty_meter_forwards_nothing_until_it_is_credited() {
    let mut net = net(2);
    let flow = net.flows[1];
    let now = net.now;
    let node = &mut net.nodes[1];
    node.core.drop_flow(flow, &mut node.outside);
    node.outside.outbox.clear();
    let limited = node.core.new_meter(Some(0), 5);
    node.core.watch_meter(limited, true);
    let price_in = Price { meter: limited, wei: 3 };
    let price_out = node.price();
    let flow = node.core.relay(&[1; 32], 2, 0, 7, price_in, 1, 12, price_out).unwrap();
    net.flows[1] = flow;
    net.tun_in(0, &udp4(CLIENT.v4, SERVER, 80, b"single"));
    net.tun_in(0, &tcp4(CLIENT.v4, SERVER, 80, b"train", 1));
    net.run();
    assert!(net.nodes[2].packets().is_empty());
    let node = &mut net.nodes[1];
    assert_eq!(node.core.meter(limited).unwrap().refused_packets, 2);
    assert!(node.core.used_bytes() > 1384);
    node.core.take_events(&mut node.events);
    assert_eq!(node.events, [Event::MeterLow { meter: limited }]);
    node.core.add_credit(limited, 100);
    node.core.wake(flow, now, &mut node.outside);
    net.run();
    // The train was held, the single packet is gone.
    assert_eq!(net.nodes[2].packets(), [tcp4(CLIENT.v4, SERVER, 80, b"train", 1)]);
    assert_eq!(net.nodes[1].core.meter(limited).unwrap().credit, Some(97));
    assert_eq!(net.nodes[1].core.used_bytes(), 0);
}

#[test]
fn a_lost_link_ends_its_flows_and_numbers_are_not_used_twice() {
    let mut net = net(3);
    let node = &mut net.nodes[1];
    let first = net.flows[1];
    node.core.link_down(1, &mut node.outside);
    assert_eq!(node.faults(), [Fault::LinkClosed]);
    assert_eq!(node.core.counters(first), None);
    assert!(node.core.circuit_id_in_use(1, 5));
    node.core.link_up(1);
    let price = node.price();
    let second = node.core.relay(&[1; 32], 2, 0, 7, price, 1, 12, price).unwrap();
    assert_ne!(first, second);
    assert!(node.core.drop_flow(first, &mut node.outside).is_none());
    assert!(node.core.drop_flow(second, &mut node.outside).is_some());
    assert_eq!(node.core.flow_count(), 0);
}

#[test]
fn the_flow_that_holds_the_most_goes_when_memory_is_short() {
    let mut net = Net::new(2, 2, true, 100_000);
    net.nodes[1].outside.backlog = 1 << 20;
    let (raw, _) = super_packet(60_000);
    for _ in 0..10 {
        net.tun_in(0, &raw);
        net.run();
    }
    assert_eq!(net.nodes[1].faults(), [Fault::Memory]);
    assert_eq!(net.nodes[1].core.used_bytes(), 0);
}

#[test]
fn trains_that_are_never_finished_count_as_memory() {
    let mut node = common::Node::new(1 << 20);
    node.core.link_up(0);
    node.core.link_up(1);
    let price = node.price();
    for id in 1..=100 {
        node.core.relay(&[1; 32], 2, 0, id, price, 1, id, price).unwrap();
        let mut begun = id.to_be_bytes().to_vec();
        begun.push(48);
        begun.resize(60_000, 1);
        node.core.on_stream(0, u64::from(id) * 4, &begun, false, 0, &mut node.outside);
        node.core.pump(0, &mut node.outside);
    }
    assert!(node.core.used_bytes() <= 1 << 20);
    assert_eq!(node.faults(), vec![Fault::Memory; 100 - node.core.flow_count()]);
    assert!((10..20).contains(&node.core.flow_count()));
}

#[test]
fn epochs_change_under_traffic() {
    let mut net = net(3);
    for turn in 0..6 {
        net.tun_in(0, &udp4(CLIENT.v4, SERVER, 80, b"single"));
        net.tun_in(0, &tcp4(CLIENT.v4, SERVER, 80, b"train", turn));
        net.tun_in(3, &udp4(SERVER, CLIENT.v4, 80, b"single"));
        net.tun_in(3, &tcp4(SERVER, CLIENT.v4, 80, b"train", turn));
        net.run();
        net.now += 130 * SECOND;
        let now = net.now;
        for node in &mut net.nodes {
            node.core.expire(now);
        }
    }
    assert!(net.faults().iter().all(Vec::is_empty));
    assert_eq!((net.nodes[3].packets().len(), net.nodes[0].packets().len()), (12, 12));
}
