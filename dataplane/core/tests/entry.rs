//! What waits at a circuit's entry: flows get their segments in order and whole, joined or not; acknowledgements that
//! say something are never left out.

mod common;

use std::collections::BTreeMap;

use common::{pseudo, tcp4, Net, CLIENT, SERVER};
use hopfare_core::endpoint::{CLIENT_ENTRY_LIMIT_BYTES, ENTRY_LIMIT_BYTES};
use hopfare_core::ip::{self, Sum, TCP};
use hopfare_core::segment::to_packets;
use hopfare_core::vnet::{is_valid, Header, NEEDS_CSUM};
use proptest::collection::vec;
use proptest::prelude::*;

const MEMORY: usize = 64 << 20;
const MSS: usize = 1240;

/// What a TUN reads for a packet: its header, with the checksum left to the kernel if `is_partial`.
fn raw_of(mut packet: Vec<u8>, gso_size: usize, is_partial: bool) -> Vec<u8> {
    if !is_partial {
        return [&[0; 10][..], &packet].concat();
    }
    let is_super = gso_size > 0;
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: u8::from(is_super),
        hdr_len: if is_super { 40 } else { 0 },
        gso_size: gso_size as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    let sum = pseudo(&packet[12..16], &packet[16..20], TCP, &[]).number((packet.len() - 20) as u64).folded();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    [&header.encode()[..], &packet].concat()
}

fn with_sums(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    packet[10..12].fill(0);
    packet[36..38].fill(0);
    let sum = Sum::default().bytes(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = pseudo(&packet[12..16], &packet[16..20], TCP, &packet[20..]).checksum();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn content(port: u16, from: usize, size: usize) -> Vec<u8> {
    (from..from + size).map(|at| (at * 31 + usize::from(port)) as u8).collect()
}

/// `count` segments of a flow of the server's, from `from` on; one packet if `count` is 1, else a super-packet.
fn data(port: u16, from: usize, count: usize, is_partial: bool, has_push: bool) -> Vec<u8> {
    let size = count * MSS;
    let packet =
        with_sums(tcp4(SERVER, CLIENT.v4, port, &content(port, from, size), from as u32), |packet| {
            packet[33] = if has_push { 0x18 } else { 0x10 };
            packet[4..6].copy_from_slice(&((from / MSS) as u16).to_be_bytes());
        });
    raw_of(packet, if count > 1 { MSS } else { 0 }, is_partial || count > 1)
}

fn ack(port: u16, number: u32, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    with_sums(tcp4(SERVER, CLIENT.v4, port, &[], 7), |packet| {
        packet[33] = 0x10;
        packet[28..32].copy_from_slice(&number.to_be_bytes());
        change(packet);
    })
}

/// Everything is read by the exit's TUN at once, and what the client's TUN gets, in whole packets.
fn carried(raws: &[Vec<u8>]) -> (usize, Vec<Vec<u8>>) {
    let mut net = Net::new(2, 2, true, MEMORY);
    // Only the entry joins: the client's TUN shows what was in the trains.
    net.nodes[0].core.join_packets(false, false);
    let now = net.now;
    for raw in raws {
        net.nodes[2].core.on_tun(raw, now);
    }
    let exit = &mut net.nodes[2];
    exit.core.pump(now, &mut exit.outside);
    net.run();
    assert!(net.faults().iter().all(Vec::is_empty));
    assert_eq!(net.nodes[2].core.used_bytes(), 0);
    let mut cut = Vec::new();
    let written = &net.nodes[0].outside.written;
    for (header, packet) in written {
        let header = Header::decode(header);
        assert!(is_valid(&header, packet, &ip::parse(packet).unwrap()));
        to_packets(&header, packet, &mut Vec::new(), &mut |packet| cut.push(packet.to_vec()));
    }
    (written.len(), cut)
}

/// The bytes that each flow gets, in the order in which they come.
fn streams(packets: &[Vec<u8>]) -> BTreeMap<u16, Vec<(u32, Vec<u8>)>> {
    let mut found: BTreeMap<u16, Vec<(u32, Vec<u8>)>> = BTreeMap::new();
    for packet in packets {
        assert_eq!(pseudo(&packet[12..16], &packet[16..20], TCP, &packet[20..]).folded(), 0xffff);
        let port = u16::from_be_bytes([packet[22], packet[23]]);
        let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap());
        found.entry(port).or_default().push((sequence, packet[40..].to_vec()));
    }
    found
}

#[test]
fn flows_in_turn_become_one_item_each() {
    for (count, is_partial) in [(1, true), (1, false), (2, true), (3, true)] {
        let raws: Vec<Vec<u8>> = (0..12)
            .flat_map(|round| {
                (0..20).map(move |port| data(port, round * count * MSS, count, is_partial, round % 3 == 0))
            })
            .collect();
        let (writes, packets) = carried(&raws);
        assert_eq!(writes, 20);
        for (port, got) in streams(&packets) {
            assert_eq!(got.len(), 12 * count);
            assert!(got.iter().enumerate().all(|(index, (sequence, _))| *sequence as usize == index * MSS));
            let bytes: Vec<u8> = got.into_iter().flat_map(|(_, bytes)| bytes).collect();
            assert!(bytes == content(port, 0, 12 * count * MSS));
        }
        // PSH is on the last segment, where it cannot be missed.
        let pushed = packets.iter().filter(|packet| packet[33] & 8 != 0).count();
        assert_eq!(pushed, 20);
    }
}

#[test]
fn an_item_ends_where_a_super_packet_must() {
    let raws: Vec<Vec<u8>> = (0..60).map(|round| data(1, round * 2 * MSS, 2, true, false)).collect();
    let (writes, packets) = carried(&raws);
    assert_eq!((writes, packets.len()), (3, 120));
    // A short segment is the last of its item.
    let mut raws = vec![data(1, 0, 2, true, false)];
    raws.push(raw_of(with_sums(tcp4(SERVER, CLIENT.v4, 1, &[7; 100], 2 * MSS as u32), |_| {}), 0, true));
    raws.push(raw_of(
        with_sums(tcp4(SERVER, CLIENT.v4, 1, &[8; 100], 2 * MSS as u32 + 100), |_| {}),
        0,
        true,
    ));
    assert_eq!(carried(&raws).0, 2);
}

#[test]
fn what_differs_is_not_joined() {
    type Change = fn(&mut [u8]);
    let changes: [Change; 9] = [
        |packet| packet[1] = 3,                                 // ECN mark
        |packet| packet[8] = 9,                                 // TTL
        |packet| packet[6..8].copy_from_slice(&[0, 0]),         // fragments allowed
        |packet| packet[24..28].copy_from_slice(&[0, 9, 9, 9]), // sequence
        |packet| packet[28..32].copy_from_slice(&[0, 9, 9, 9]), // acknowledgement
        |packet| packet[34..36].copy_from_slice(&[1, 1]),       // window
        |packet| packet[33] = 0x90,                             // CWR
        |packet| packet[33] = 0x50,                             // ECE
        |packet| packet[33] = 0x11,                             // FIN
    ];
    for change in changes {
        let second = with_sums(data(1, MSS, 1, false, false)[10..].to_vec(), change);
        let raws = [data(1, 0, 1, false, false), raw_of(second.clone(), 0, false)];
        let (writes, packets) = carried(&raws);
        assert_eq!((writes, &packets[1]), (2, &second));
    }
    // A damaged packet stays damaged.
    let mut raws = [data(1, 0, 1, false, false), data(1, MSS, 1, false, false)];
    raws[1][100] ^= 1;
    let (writes, packets) = carried(&raws);
    assert_eq!((writes, &packets[1]), (2, &raws[1][10..].to_vec()));
}

#[test]
fn of_acknowledgements_the_last_one_goes() {
    for is_partial in [false, true] {
        let raws: Vec<Vec<u8>> = (1..=50)
            .flat_map(|round| (0..4).map(move |port| raw_of(ack(port, round * 3000, |_| {}), 0, is_partial)))
            .collect();
        let (_, packets) = carried(&raws);
        let expected: Vec<Vec<u8>> = (0..4).map(|port| ack(port, 150_000, |_| {})).collect();
        assert!(packets == expected);
    }
}

#[test]
fn acknowledgements_that_say_something_stay() {
    type Change = fn(&mut [u8]);
    let changes: [Change; 6] = [
        |packet| packet[28..32].copy_from_slice(&1000u32.to_be_bytes()), // a duplicate
        |packet| packet[28..32].copy_from_slice(&900u32.to_be_bytes()),  // an older one
        |packet| packet[33] = 0x50,                                      // ECN echo
        |packet| packet[32] = 0x51,                                      // accurate ECN
        |packet| packet[33] = 0x11,                                      // FIN
        |packet| packet[1] = 3,                                          // ECN mark
    ];
    for change in changes {
        for reversed in [false, true] {
            let changed = ack(1, 2000, change);
            let mut packets = [ack(1, 1000, |_| {}), changed];
            if reversed && !matches!(&packets[1][28..32], [0, 0, 3, _]) {
                packets[0][28..32].copy_from_slice(&3000u32.to_be_bytes());
                packets[0] = with_sums(packets[0].clone(), |_| {});
                packets.reverse();
            }
            let raws: Vec<Vec<u8>> = packets.iter().map(|packet| raw_of(packet.clone(), 0, false)).collect();
            assert!(carried(&raws).1 == packets);
        }
    }
    // SACK: an option of 12 bytes.
    let with_sack = |number: u32| {
        let mut packet = ack(1, number, |_| {});
        packet.extend_from_slice(&[1, 1, 5, 10, 0, 0, 9, 0, 0, 0, 10, 0]);
        with_sums(packet, |packet| {
            packet[2..4].copy_from_slice(&52u16.to_be_bytes());
            packet[32] = 0x80;
        })
    };
    let packets = [ack(1, 1000, |_| {}), with_sack(2000), with_sack(3000), ack(1, 4000, |_| {})];
    let raws: Vec<Vec<u8>> = packets.iter().map(|packet| raw_of(packet.clone(), 0, false)).collect();
    assert!(carried(&raws).1 == packets);
    // One that is damaged takes nobody's place.
    let mut raws = vec![raw_of(ack(1, 1000, |_| {}), 0, false), raw_of(ack(1, 2000, |_| {}), 0, false)];
    raws[1][47] ^= 1;
    assert_eq!(carried(&raws).1.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_arrive_whole_and_in_order(
        steps in vec((0u16..6, 0usize..5, any::<bool>(), any::<bool>(), 0u8..20), 1..160),
    ) {
        let mut ends = [0usize; 6];
        let mut acked = [1u32; 6];
        let mut raws = Vec::new();
        let mut last_ack = BTreeMap::new();
        for (port, count, is_partial, has_push, change) in steps {
            let place = usize::from(port);
            if count == 0 {
                acked[place] += u32::from(change) * 100;
                last_ack.insert(port, acked[place]);
                raws.push(raw_of(ack(port, acked[place], |_| {}), 0, is_partial));
                continue;
            }
            let mut raw = data(port, ends[place], count, is_partial, has_push);
            if change == 0 && count == 1 && !is_partial {
                // Another window: another header, so it stands alone.
                raw = raw_of(with_sums(raw[10..].to_vec(), |packet| packet[34] ^= 1), 0, false);
            }
            ends[place] += count * MSS;
            raws.push(raw);
        }
        let (writes, packets) = carried(&raws);
        prop_assert!(writes <= raws.len());
        let mut seen = BTreeMap::new();
        for packet in packets.iter().filter(|packet| packet.len() == 40) {
            let port = u16::from_be_bytes([packet[22], packet[23]]);
            seen.insert(port, u32::from_be_bytes(packet[28..32].try_into().unwrap()));
        }
        prop_assert_eq!(seen, last_ack);
        for (port, got) in streams(&packets) {
            let got: Vec<_> = got.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
            let mut at = 0;
            for (sequence, bytes) in got {
                prop_assert_eq!(sequence as usize, at);
                prop_assert!(bytes == content(port, at, bytes.len()));
                at += bytes.len();
            }
            prop_assert_eq!(at, ends[usize::from(port)]);
        }
    }
}

#[test]
fn a_client_holds_more_than_an_exit_and_its_tun_rests_before_it_drops() {
    // Super-packets that nobody takes out.
    for (node, limit) in [(0, CLIENT_ENTRY_LIMIT_BYTES), (2, ENTRY_LIMIT_BYTES)] {
        let mut net = Net::new(2, 2, true, MEMORY);
        net.nodes[node].core.join_packets(false, false);
        let now = net.now;
        let mut raw = data(1, 0, 12, true, false);
        if node == 0 {
            for byte in 0..4 {
                raw.swap(10 + 12 + byte, 10 + 16 + byte);
            }
        }
        let core = &mut net.nodes[node].core;
        let mut has_rested = false;
        for _ in 0..2 * CLIENT_ENTRY_LIMIT_BYTES / raw.len() {
            core.on_tun(&raw, now);
            if core.entry_is_full() && !has_rested {
                has_rested = true;
                assert!(core.used_bytes() < limit);
            }
        }
        let held = core.used_bytes();
        assert!(held <= limit && held + 70_000 > limit, "{node}: {held}");
        assert_eq!(has_rested, node == 0);
    }
}
