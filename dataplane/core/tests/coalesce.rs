//! Joining packets and cutting them again gives the same packets, in the same order for each flow.

mod common;

use common::{tcp4, udp4};
use hopfare_core::coalesce::Coalescer;
use hopfare_core::ip;
use hopfare_core::segment::to_packets;
use hopfare_core::vnet::{Header, GSO_ECN};
use proptest::collection::vec;
use proptest::prelude::*;

const CLIENT: [u8; 4] = [100, 64, 1, 2];
const SERVER: [u8; 4] = [93, 184, 216, 34];

/// What comes out of a coalescer: its writes, and the packets that they stand for.
fn joined(packets: &[Vec<u8>], flush_each: usize) -> (usize, Vec<Vec<u8>>) {
    let mut coalescer = Coalescer::default();
    (coalescer.tcp, coalescer.udp) = (true, true);
    let (mut writes, mut cut) = (0, Vec::new());
    let mut out = |header: &[u8; 10], packet: &[u8]| {
        writes += 1;
        let header = Header::decode(header);
        assert!(packet.len() <= 65_535 && header.gso_type & GSO_ECN == 0);
        to_packets(&header, packet, &mut Vec::new(), &mut |piece| cut.push(piece.to_vec()));
    };
    for (number, packet) in packets.iter().enumerate() {
        coalescer.offer(&[0; 10], packet, &mut out);
        if (number + 1) % flush_each == 0 {
            coalescer.flush(&mut out);
        }
    }
    coalescer.flush(&mut out);
    (writes, cut)
}

/// Whose order counts: the packets of one pair of addresses and ports.
fn flows(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<Vec<u8>>)> {
    let mut flows: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    for packet in packets {
        let key = match ip::parse(packet) {
            Some(parsed) => [
                parsed.source.bytes(),
                parsed.destination.bytes(),
                &packet[parsed.transport..parsed.transport + 4],
                &[parsed.protocol],
            ]
            .concat(),
            None => Vec::new(),
        };
        match flows.iter_mut().find(|(known, _)| *known == key) {
            Some((_, row)) => row.push(packet.clone()),
            None => flows.push((key, vec![packet.clone()])),
        }
    }
    flows.sort();
    flows
}

fn with_sums(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    let is_v4 = packet[0] >> 4 == 4;
    let (start, protocol) = if is_v4 { (20, packet[9]) } else { (40, packet[6]) };
    if is_v4 {
        packet[10..12].fill(0);
        let sum = ip::Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = start + if protocol == ip::TCP { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let (addresses, segment) = (packet[addresses].to_vec(), packet[start..].to_vec());
    let sum = common::pseudo(&addresses, &[], protocol, &segment).checksum();
    let sum = if sum == 0 && protocol == ip::UDP { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The same packet over IPv6.
fn over_v6(packet: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend_from_slice(&((packet.len() - 20) as u16).to_be_bytes());
    out.extend_from_slice(&[packet[9], 64]);
    out.extend_from_slice(&[0xfd; 16]);
    out.extend_from_slice(&[0xfe; 16]);
    out.extend_from_slice(&packet[20..]);
    with_sums(out, |_| {})
}

/// A row of segments as a sender's kernel makes them; flags of the last as given.
fn row(port: u16, is_tcp: bool, count: usize, size: usize, last: usize, flags: u8, v6: bool) -> Vec<Vec<u8>> {
    let packets = (0..count).map(|index| {
        let is_last = index + 1 == count;
        let payload: Vec<u8> =
            (0..if is_last { last } else { size }).map(|i| (i * 7 + index) as u8).collect();
        let packet = if is_tcp {
            tcp4(SERVER, CLIENT, port, &payload, (index * size) as u32)
        } else {
            udp4(SERVER, CLIENT, port, &payload)
        };
        let packet = with_sums(packet, |packet| {
            packet[4..6].copy_from_slice(&(500 + index as u16).to_be_bytes());
            if is_tcp {
                packet[33] = if is_last { flags } else { 0x10 };
            }
        });
        if v6 {
            over_v6(&packet)
        } else {
            packet
        }
    });
    packets.collect()
}

#[test]
fn a_row_of_segments_is_written_once() {
    for v6 in [false, true] {
        for is_tcp in [true, false] {
            for last in [1, 700, 1200] {
                let packets = row(443, is_tcp, 40, 1200, last, 0x18, v6);
                assert_eq!(joined(&packets, 1000), (1, packets));
            }
        }
    }
    // As many as fit 65,535 bytes or 64 segments.
    let packets = row(443, true, 200, 1200, 1200, 0x10, false);
    let (writes, cut) = joined(&packets, 1000);
    assert_eq!((writes, cut == packets), (4, true));
}

/// The writes of `packets` joined in groups, as another kernel made super-packets of them.
fn regrouped(packets: &[Vec<u8>], groups: &[usize]) -> Vec<([u8; 10], Vec<u8>)> {
    let mut writes = Vec::new();
    let mut rest = packets;
    for &group in groups {
        let (part, following) = rest.split_at(group.min(rest.len()));
        rest = following;
        let mut coalescer = Coalescer::default();
        coalescer.tcp = true;
        let mut out = |header: &[u8; 10], packet: &[u8]| writes.push((*header, packet.to_vec()));
        for packet in part {
            coalescer.offer(&[0; 10], packet, &mut out);
        }
        coalescer.flush(&mut out);
    }
    writes
}

#[test]
fn super_packets_are_joined_as_well() {
    for v6 in [false, true] {
        let packets = row(443, true, 30, 1200, 900, 0x18, v6);
        let supers = regrouped(&packets, &[4, 1, 2, 2, 1, 1, 10, 9]);
        assert!(supers.len() == 8);
        let mut coalescer = Coalescer::default();
        coalescer.tcp = true;
        let (mut writes, mut cut) = (0, Vec::new());
        let mut out = |header: &[u8; 10], packet: &[u8]| {
            writes += 1;
            let parsed = ip::parse(packet).unwrap();
            let header = Header::decode(header);
            assert!(hopfare_core::vnet::is_valid(&header, packet, &parsed));
            to_packets(&header, packet, &mut Vec::new(), &mut |piece| cut.push(piece.to_vec()));
        };
        for (header, packet) in &supers {
            coalescer.offer(header, packet, &mut out);
        }
        coalescer.flush(&mut out);
        assert!((writes, cut) == (1, packets));
    }
    // One that ends short is the last; a large one is not copied.
    let packets = row(443, true, 9, 1200, 700, 0x10, false);
    let more = row(443, true, 29, 1200, 1200, 0x10, false);
    let mut supers = regrouped(&packets, &[9]);
    supers.extend(regrouped(&more, &[29]));
    let mut coalescer = Coalescer::default();
    coalescer.tcp = true;
    let mut writes = Vec::new();
    for (header, packet) in &supers {
        coalescer.offer(header, packet, &mut |header, packet| writes.push((*header, packet.to_vec())));
    }
    assert!(writes == supers);
}

#[test]
fn what_cannot_be_cut_alike_is_not_joined() {
    type Change = fn(&mut [u8]);
    let changes: [Change; 9] = [
        |packet| packet[1] = 3,                                 // ECN mark
        |packet| packet[8] = 9,                                 // TTL
        |packet| packet[4..6].copy_from_slice(&[9, 9]),         // identification
        |packet| packet[24..28].copy_from_slice(&[0, 9, 9, 9]), // sequence
        |packet| packet[28..32].copy_from_slice(&[0, 9, 9, 9]), // acknowledgement
        |packet| packet[34..36].copy_from_slice(&[1, 1]),       // window
        |packet| packet[33] |= 0x80,                            // CWR
        |packet| packet[33] |= 1,                               // FIN
        |packet| packet[6..8].copy_from_slice(&[0, 0]),         // DF
    ];
    for change in changes {
        let mut packets = row(443, true, 2, 1000, 1000, 0x10, false);
        packets[1] = with_sums(packets[1].clone(), change);
        assert!(joined(&packets, 1000) == (2, packets));
    }
    // A wrong checksum must stay wrong, in either packet and in the IPv4 header.
    for (which, at) in [(0, 60), (1, 60), (0, 11), (1, 11)] {
        let mut packets = row(443, true, 2, 1000, 1000, 0x10, false);
        packets[which][at] ^= 1;
        assert_eq!(joined(&packets, 1000), (2, packets));
    }
    // UDP without a checksum stays without.
    let mut packets = row(443, false, 2, 1000, 1000, 0, false);
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(joined(&packets, 1000), (2, packets));
}

/// What is written of bare acknowledgements of these numbers on one flow, some changed.
fn acknowledged(numbers: &[u32], thin: bool, change: impl Fn(u32, &mut [u8])) -> Vec<u32> {
    let mut coalescer = Coalescer::default();
    (coalescer.tcp, coalescer.acks) = (true, thin);
    let mut written = Vec::new();
    let mut out =
        |_: &[u8; 10], packet: &[u8]| written.push(u32::from_be_bytes(packet[28..32].try_into().unwrap()));
    for &number in numbers {
        let packet = with_sums(tcp4(CLIENT, SERVER, 443, &[], 7), |packet| {
            packet[33] = 0x10;
            packet[28..32].copy_from_slice(&number.to_be_bytes());
            change(number, packet);
        });
        coalescer.offer(&[0; 10], &packet, &mut out);
    }
    coalescer.flush(&mut out);
    written
}

#[test]
fn of_acknowledgements_in_a_row_the_last_one_is_written() {
    let numbers: Vec<u32> = (0..40).map(|round| (round * 3000u32).wrapping_sub(50_000)).collect();
    assert_eq!(acknowledged(&numbers, true, |_, _| {}), [67_000]);
    assert_eq!(acknowledged(&numbers, false, |_, _| {}), numbers);
    // Duplicates, older ones, and those with a flag of their own.
    assert_eq!(acknowledged(&[1, 5, 5, 5, 3, 6], true, |_, _| {}), [5, 5, 5, 6]);
    let echo = |number: u32, packet: &mut [u8]| packet[33] |= if number == 3 { 0x40 } else { 0 };
    assert_eq!(acknowledged(&[1, 2, 3, 4, 5], true, echo), [2, 3, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mixture_comes_out_as_it_went_in(
        rows in vec((0u16..12, any::<bool>(), 1usize..70, 1usize..1400, 1usize..1400, any::<bool>(),
            prop_oneof![Just(0x10u8), Just(0x18), Just(0x11), Just(0x50), Just(0x90), Just(0x02)]), 1..12),
        order in vec(any::<u16>(), 0..200),
        changes in vec((any::<u16>(), any::<u16>(), any::<u8>()), 0..6),
        flush_each in prop_oneof![Just(1000usize), 1usize..40],
    ) {
        let mut rows: Vec<_> = rows
            .into_iter()
            .map(|(port, is_tcp, count, size, last, v6, flags)| {
                let mut packets = row(port, is_tcp, count, size, last.min(size), flags, v6);
                packets.reverse();
                packets
            })
            .collect();
        let mut packets = Vec::new();
        for choice in order {
            let place = usize::from(choice) % rows.len();
            packets.extend(rows[place].pop());
        }
        for mut row in rows {
            row.reverse();
            packets.append(&mut row);
        }
        for (which, at, value) in changes {
            let which = usize::from(which) % packets.len();
            let packet = &mut packets[which];
            // Not the ports: a changed one is another flow, whose order is its own.
            let at = usize::from(at) % packet.len().min(80);
            if !(8..44).contains(&at) || packet[0] >> 4 == 4 && at > 23 {
                packet[at] = value;
            }
        }
        let (writes, cut) = joined(&packets, flush_each);
        prop_assert!(writes <= packets.len());
        prop_assert!(flows(&cut) == flows(&packets), "other packets came out");
    }
}
