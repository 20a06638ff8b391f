//! UDP super-packets: cut when a TUN gives them, joined for a TUN that takes them, and never taken from a peer.

mod common;

use common::{pseudo, Net, CLIENT, SERVER};
use hopfare_core::ip::{self, Sum, UDP};
use hopfare_core::segment::to_packets;
use hopfare_core::vnet::{is_valid, Header, GSO_UDP_L4, NEEDS_CSUM};
use proptest::collection::vec;
use proptest::prelude::*;

const MEMORY: usize = 64 << 20;
const SERVER_V6: [u8; 16] = [0x26; 16];

/// A datagram of the client's, over IPv4 or IPv6, with ECN bits; its checksum is for the kernel to finish.
fn datagram(payload: &[u8], is_v6: bool, ecn: u8) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let (mut packet, source, destination) = if is_v6 {
        let mut packet = vec![0x60, ecn << 4, 0, 0];
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[UDP, 64]);
        (packet, CLIENT.v6.unwrap().to_vec(), SERVER_V6.to_vec())
    } else {
        let mut packet = vec![0x45, ecn, 0, 0, 0x12, 0x34, 0x40, 0, 64, UDP, 0, 0];
        packet[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        (packet, CLIENT.v4.to_vec(), SERVER.to_vec())
    };
    packet.extend_from_slice(&[&source[..], &destination].concat());
    if !is_v6 {
        let sum = Sum::default().bytes(&packet).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let sum = pseudo(&source, &destination, UDP, &[]).number(u64::from(length)).folded();
    for word in [40_000, 443, length, sum] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    packet.extend_from_slice(payload);
    packet
}

fn header_of(is_v6: bool, size: usize) -> Header {
    let start = if is_v6 { 40 } else { 20 };
    Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: start + 8,
        gso_size: size as u16,
        csum_start: start,
        csum_offset: 6,
    }
}

fn raw_of(header: &Header, packet: &[u8]) -> Vec<u8> {
    [&header.encode()[..], packet].concat()
}

/// What the exit's TUN gets of what the client's reads in one batch.
fn carried(raws: &[Vec<u8>], has_uso: bool) -> Vec<([u8; 10], Vec<u8>)> {
    let mut net = Net::new(2, 2, true, MEMORY);
    net.nodes[2].core.join_packets(true, has_uso);
    let now = net.now;
    for raw in raws {
        net.nodes[0].core.on_tun(raw, now);
    }
    let client = &mut net.nodes[0];
    client.core.pump(now, &mut client.outside);
    // All frames at once, as one wake-up brings them: only then is there anything to join.
    for from in [0usize, 1] {
        let sent = net.nodes[from].outside.outbox.remove(&1).unwrap_or_default();
        let frames: Vec<_> = sent
            .into_iter()
            .filter_map(|sent| match sent {
                common::Sent::Datagram(frame) => Some(frame),
                _ => None,
            })
            .collect();
        let common::Node { core, outside, .. } = &mut net.nodes[from + 1];
        core.on_datagrams(0, &frames, now, outside);
        core.pump(now, outside);
    }
    assert!(net.faults().iter().all(Vec::is_empty));
    std::mem::take(&mut net.nodes[2].outside.written)
}

fn cut(header: &Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    to_packets(header, packet, &mut Vec::new(), &mut |packet| packets.push(packet.to_vec()));
    packets
}

#[test]
fn a_super_packet_is_cut_for_the_way_and_joined_at_its_end() {
    for is_v6 in [false, true] {
        for ecn in [0, 1, 3] {
            for size in [9_600usize, 10_000] {
                let payload: Vec<u8> = (0..size).map(|at| (at * 7 / 5) as u8).collect();
                let packet = datagram(&payload, is_v6, ecn);
                let header = header_of(is_v6, 1200);
                let sent = cut(&header, &packet);
                assert_eq!(sent.len(), size.div_ceil(1200));
                let written = carried(&[raw_of(&header, &packet)], true);
                assert_eq!(written.len(), 1);
                let got = Header::decode(&written[0].0);
                assert_eq!((got.gso_type, got.gso_size), (GSO_UDP_L4, 1200));
                assert!(cut(&got, &written[0].1) == sent);
                // A TUN without USO gets them one by one.
                let written = carried(&[raw_of(&header, &packet)], false);
                assert!(written.into_iter().map(|(_, packet)| packet).eq(sent));
            }
        }
    }
}

#[test]
fn what_would_be_another_packet_is_not_joined() {
    for is_v6 in [false, true] {
        let marks = [0, 3, 0].map(|ecn| datagram(&[1; 1000], is_v6, ecn));
        let sizes = [900, 1000].map(|size| datagram(&vec![2; size], is_v6, 0));
        let single = Header { gso_type: 0, gso_size: 0, hdr_len: 0, ..header_of(is_v6, 0) };
        for packets in [&marks[..], &sizes[..]] {
            let raws: Vec<_> = packets.iter().map(|packet| raw_of(&single, packet)).collect();
            let sent: Vec<_> = packets.iter().flat_map(|packet| cut(&single, packet)).collect();
            let written = carried(&raws, true);
            assert!(written.into_iter().map(|(_, packet)| packet).eq(sent));
        }
    }
}

#[test]
fn a_peer_may_not_send_one() {
    for is_v6 in [false, true] {
        let packet = datagram(&[0; 4000], is_v6, 0);
        let parsed = ip::parse(&packet).unwrap();
        assert!(!is_valid(&header_of(is_v6, 1200), &packet, &parsed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn malformed_ones_become_nothing_or_datagrams_with_right_sums(
        is_v6 in any::<bool>(),
        size in 0usize..6000,
        segment in prop_oneof![Just(0u16), Just(1), Just(1200), any::<u16>()],
        changes in vec((0usize..60, any::<u8>()), 0..4),
        start in prop_oneof![Just(20u16), Just(40), any::<u16>()],
        shortened in 0usize..80,
    ) {
        let packet = datagram(&vec![5; size], is_v6, 0);
        let header = Header { gso_size: segment, csum_start: start, ..header_of(is_v6, 1) };
        let mut raw = raw_of(&header, &packet);
        for (at, value) in changes {
            // Not what makes it one of this customer's.
            if !(10..52).contains(&at) {
                raw[at.min(9)] = value;
            }
        }
        raw.truncate(raw.len().saturating_sub(shortened));
        for (header, packet) in carried(&[raw], true) {
            for packet in cut(&Header::decode(&header), &packet) {
                prop_assert!(packet.len() <= 65_535 && ip::parse(&packet).is_some());
            }
        }
    }
}
