//! What is done with bytes that anybody may have made: no panic, and what the specification promises. Used by the
//! property tests here and by the fuzz targets (dataplane/fuzz).
#![allow(dead_code)] // each user has its part

use bytes::{Bytes, BytesMut};
use hopfare_core::coalesce::Coalescer;
use hopfare_core::inner::{decode_body, ItemKind};
use hopfare_core::ip::{self, Sum};
use hopfare_core::layers::{
    ClientBackward, ClientForward, Command, ExitBackward, Lane, Opened, RelayBackward, RelayForward,
};
use hopfare_core::policy::{PolicyTable, Verdict};
use hopfare_core::suites::Suite;
use hopfare_core::trains::{Step, TrainReader};
use hopfare_core::{icmp, segment, vnet, Core, Driver, Event, InnerAddresses, LinkId, Policy, Price, Rule};

const UNIT: usize = 1384;
const CLIENT: InnerAddresses = InnerAddresses { v4: [100, 64, 1, 2], v6: Some([0xfd; 16]) };

/// A body: what is accepted is written in one way only.
pub fn body(data: &[u8]) {
    let Ok(items) = decode_body(data) else { return };
    let mut again = Vec::new();
    for item in items {
        again.extend_from_slice(&item.kind.header(item.data.len()).expect("an accepted item has a header"));
        again.extend_from_slice(item.data);
    }
    assert!(again.len() <= data.len());
    again.resize(data.len(), 0);
    assert_eq!(again, data);
    for kind in [ItemKind::Ip, ItemKind::Offload, ItemKind::Control, ItemKind::EchoReply] {
        let _ = kind.header(data.len());
    }
}

/// A stream of frames, in pieces whose sizes its first bytes tell: frames join to what was fed.
pub fn frames(data: &[u8]) {
    let Some((sizes, stream)) = data.split_at_checked(8) else { return };
    let mut reader = TrainReader::default();
    let mut joined = Vec::new();
    let mut rest = stream;
    let mut turn = 0;
    while !rest.is_empty() {
        let size = 1 + usize::from(sizes[turn % 8]) * 7;
        turn += 1;
        let (mut piece, following) = rest.split_at(size.min(rest.len()));
        rest = following;
        loop {
            match reader.step(&mut piece, BytesMut::with_capacity) {
                Err(bad) => {
                    assert!(bad.0 == 0 || bad.0 > 48);
                    return;
                }
                Ok(Step::More) => break,
                Ok(Step::Begins(units)) => assert!((1..=48).contains(&units)),
                Ok(Step::Frame(frame)) => {
                    assert_eq!(frame.len(), 1 + usize::from(frame[0]) * UNIT);
                    joined.extend_from_slice(&frame);
                }
            }
            assert!(reader.held_bytes() <= 48 * UNIT);
        }
    }
    assert_eq!(joined, stream[..joined.len()]);
}

/// A virtio_net_hdr and a packet: cutting never panics, and what was checked is cut into sound packets.
pub fn offload(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk() else { return };
    let decoded = vnet::Header::decode(header);
    assert_eq!(decoded.encode(), *header);
    let parsed = ip::parse(packet);
    let is_valid = parsed.is_some_and(|parsed| vnet::is_valid(&decoded, packet, &parsed));
    let mut joined = 0;
    let mut count = 0;
    segment::to_packets(&decoded, packet, &mut Vec::new(), &mut |piece| {
        count += 1;
        if !is_valid {
            return;
        }
        let parsed = ip::parse(piece).expect("a sound packet");
        if decoded.gso_type != 0 {
            assert!(piece.len() <= vnet::MAX_SEGMENT_BYTES);
            let addresses = if parsed.is_v4() { 12..20 } else { 8..40 };
            let sum = Sum::default()
                .bytes(&piece[addresses])
                .number(u64::from(parsed.protocol) + (piece.len() - parsed.transport) as u64)
                .bytes(&piece[parsed.transport..]);
            assert_eq!(sum.folded(), 0xffff);
        }
        joined += piece.len() - parsed.transport;
    });
    if is_valid {
        let headers = if decoded.gso_type == 0 {
            0
        } else {
            let at = usize::from(decoded.csum_start);
            usize::from(packet[at + 12] >> 4) * 4 * (count - 1)
        };
        let start = parsed.map_or(0, |parsed| parsed.transport);
        assert_eq!(joined, packet.len() - start + headers);
    }
}

fn a_policy() -> Policy {
    let rule = |accept, port: u16| Rule { accept, network: 0, mask: 0, min_port: port, max_port: 65535 };
    Policy {
        deny4: vec![(0x0a00_0000, 0x0aff_ffff), (0x7f00_0000, 0x7fff_ffff)],
        deny6: vec![(0, 1 << 120), (0xfc << 120, 0xff << 120)],
        rules4: vec![rule(true, 80)],
        rules6: vec![rule(true, 443), rule(false, 1)],
        has_ipv6: true,
        local: vec![[100, 64, 0, 1].into()],
        dns4: [100, 64, 0, 1],
        dns6: [0xfd; 16],
    }
}

/// A customer's packet: judged twice alike, and a refusal is a sound packet to its source.
pub fn packet(data: &[u8]) {
    let Some(parsed) = ip::parse(data) else { return };
    let (_, source, destination) = ip::addresses(data).expect("a parsed packet has addresses");
    assert_eq!((source, destination), (parsed.source, parsed.destination));
    let mut table = PolicyTable::new(a_policy());
    let verdict = table.verdict(&parsed);
    assert_eq!(table.verdict(&parsed), verdict);
    if verdict == Verdict::Accept {
        return;
    }
    let mut rate = icmp::IcmpRate::default();
    let sources = ([100, 64, 0, 1], [0xfd; 16]);
    if let Some(answer) = icmp::refusal(&mut rate, sources, data, &parsed, verdict, 0) {
        assert!(answer.len() <= if parsed.is_v4() { 576 } else { 1280 });
        let (_, _, to) = ip::addresses(&answer).expect("an answer is a packet");
        assert_eq!(to, parsed.source);
    }
}

/// Packets one after the other, each behind its length and with or without a header, into a coalescer: their
/// segments come out again.
pub fn join(data: &[u8]) {
    let mut coalescer = Coalescer::default();
    (coalescer.tcp, coalescer.udp) = (true, true);
    let mut joined = (0, 0);
    let mut offered = (0, 0);
    let cut = |total: &mut (usize, usize), header: &[u8; 10], packet: &[u8]| {
        let header = vnet::Header::decode(header);
        segment::to_packets(&header, packet, &mut Vec::new(), &mut |piece| {
            *total = (total.0 + 1, total.1 + piece.len());
        });
    };
    let mut out = |header: &[u8; 10], packet: &[u8]| {
        assert!(packet.len() <= 65_535);
        cut(&mut joined, header, packet);
    };
    let mut rest = data;
    while let Some((&size, following)) = rest.split_first() {
        let (part, following) = following.split_at(following.len().min(usize::from(size)));
        rest = following;
        let (header, packet) = match part.split_first_chunk() {
            Some((header, packet)) if size & 1 == 1 => (*header, packet),
            _ => ([0; 10], part),
        };
        let decoded = vnet::Header::decode(&header);
        let is_good = header == [0; 10]
            || ip::parse(packet).is_some_and(|parsed| vnet::is_valid(&decoded, packet, &parsed));
        if packet.len() >= 20 && is_good {
            cut(&mut offered, &header, packet);
            coalescer.offer(&header, packet, &mut out);
        }
    }
    coalescer.flush(&mut out);
    assert_eq!(joined, offered);
}

/// Bytes in place of packets, and packets with a byte changed, at every kind of hop.
pub fn onion(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let suite = if choice & 1 == 0 { Suite::Aes } else { Suite::ChaCha };
    let (lane, units) = if choice & 2 == 0 { (Lane::Datagram, 1) } else { (Lane::Stream, 2) };
    let roots = [[1; 32], [2; 32]];
    let mut client = ClientForward::new(&roots, suite, lane).expect("a path");
    let mut relay = RelayForward::new(&roots[0], suite, lane);
    let mut exit = ExitBackward::new(&roots[1], suite, lane);
    let mut wrap = RelayBackward::new(&roots[0], suite, lane);
    let mut end = ClientBackward::new(&roots, suite, lane).expect("a path");
    let mut raw = rest.to_vec();
    let is_size = raw.len() % UNIT == 0 && !raw.is_empty();
    assert_eq!(relay.open(&mut raw, 0), Opened::Refused);
    let mut raw = rest.to_vec();
    let _ = wrap.wrap(&mut raw, 0);
    assert!(!end.open(&mut raw, 0) || is_size);
    if choice & 4 != 0 {
        relay = RelayForward::new(&roots[0], suite, lane);
        end = ClientBackward::new(&roots, suite, lane).expect("a path");
    }
    let mut there = vec![7; units * UNIT];
    let mut back = there.clone();
    let random = &mut |out: &mut [u8]| out.fill(9);
    assert!(client.seal(&mut there, 0, None, Command::Deliver, random));
    assert!(exit.seal(&mut back, 0, random) && (wrap.health.broken || wrap.wrap(&mut back, 0)));
    // Each three bytes of the input: where and how to change.
    let mut is_changed = false;
    for change in rest.chunks_exact(3).take(8) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % there.len();
        there[at] ^= change[2];
        back[at] ^= change[2];
        is_changed |= change[2] != 0;
    }
    let opened = relay.open(&mut there, 0);
    let is_whole = end.open(&mut back, 0);
    if choice & 4 != 0 && !is_changed && !wrap.health.broken {
        assert_eq!(opened, Opened::Forward);
    }
    let _ = is_whole;
}

/// Takes everything; its link has little room now and then.
#[derive(Default)]
pub struct Outside {
    streams: u64,
    pub is_full: bool,
    pub sent: usize,
}

impl Driver for Outside {
    fn rtt_ns(&self, _: LinkId) -> u64 {
        5_000_000
    }
    fn datagram_room(&mut self, _: LinkId) -> usize {
        if self.is_full {
            0
        } else {
            5
        }
    }
    fn send_datagram(&mut self, _: LinkId, frame: Bytes) {
        assert_eq!(frame.len(), 4 + UNIT);
        self.sent += 1;
    }
    fn open_stream(&mut self, _: LinkId) -> Option<u64> {
        self.streams += 4;
        Some(self.streams)
    }
    fn send_stream(&mut self, _: LinkId, _: u64, data: Bytes) {
        self.sent += data.len();
    }
    fn reset_stream(&mut self, _: LinkId, _: u64) {}
    fn stop_stream(&mut self, _: LinkId, _: u64) {}
    fn stream_backlog(&mut self, _: LinkId) -> usize {
        if self.is_full {
            1 << 20
        } else {
            0
        }
    }
    fn close_link(&mut self, _: LinkId, _: u64, _: &'static str) {}
    fn tun_write(&mut self, _: &[u8; 10], packet: &[u8]) -> bool {
        assert!(packet.len() >= 20);
        true
    }
    fn random(&mut self, out: &mut [u8]) {
        out.fill(3);
    }
}

/// A relay, an exit and a client in one core, told to do whatever the bytes say: nothing panics, and when all
/// flows are gone nothing is held.
pub fn whole_core(data: &[u8]) {
    let mut d = Outside::default();
    let mut core = Core::new(300_000);
    core.attach_tun(true, true);
    core.join_packets(data.first().is_some_and(|first| first & 1 == 0), true);
    core.set_policy(a_policy());
    core.link_up(0);
    core.link_up(1);
    let meter = core.new_meter(Some(40), 10);
    core.watch_meter(meter, true);
    let free = core.new_meter(None, 0);
    let (limited, open) = (Price { meter, wei: 1 }, Price { meter: free, wei: 1 });
    let mut flows = vec![
        core.relay(&[1; 32], 2, 0, 1, limited, 1, 1, open).expect("a relay"),
        core.exit(&[2; 32], 2, 0, 2, open, CLIENT).expect("an exit"),
        core.client(&[[3; 32], [4; 32]], 1, 1, 3, open, CLIENT).expect("a client"),
    ];
    let mut sender = ClientForward::new(&[[1; 32]], Suite::Aes, Lane::Datagram).expect("a path");
    let mut trains = ClientForward::new(&[[2; 32]], Suite::Aes, Lane::Stream).expect("a path");
    let mut now = 1_000_000_000u64;
    let mut rest = data;
    while let Some((&[what, size], following)) = rest.split_first_chunk() {
        let (part, following) = following.split_at(following.len().min(usize::from(size)));
        rest = following;
        let link = LinkId::from(what >> 7);
        now += u64::from(size) * 1_000_000;
        match what & 0x0f {
            0 | 1 => core.on_stream(link, u64::from(what >> 4), part, size == 255, now, &mut d),
            2 => {
                let mut frame = part.to_vec();
                frame.resize(4 + UNIT, what);
                core.on_datagrams(link, &[frame.into(), Bytes::copy_from_slice(part)], now, &mut d);
            }
            3 => {
                // What an honest neighbour sends to the relay, for it or the next.
                let mut frame = vec![0; 4 + UNIT];
                frame[3] = 1;
                let random = &mut |out: &mut [u8]| out.fill(1);
                let command = if size & 1 == 0 { Command::Forward } else { Command::Drop };
                assert!(sender.seal(&mut frame[4..], now, None, command, random));
                core.on_datagrams(0, &[frame.into()], now, &mut d);
            }
            4 => {
                // A whole train to the exit, its body being the input.
                let mut frame = vec![1; 5 + UNIT];
                frame[..4].copy_from_slice(&[0, 0, 0, 2]);
                frame[5 + 96..].fill(0);
                let body = &mut frame[5 + 96..];
                let length = part.len().min(body.len());
                body[..length].copy_from_slice(&part[..length]);
                let random = &mut |out: &mut [u8]| out.fill(1);
                if trains.seal(&mut frame[5..], now, None, Command::Deliver, random) {
                    core.on_stream(0, 99, &frame[..4], false, now, &mut d);
                    for piece in frame[4..].chunks(1 + usize::from(size)) {
                        core.on_stream(0, 99, piece, false, now, &mut d);
                    }
                }
            }
            5 => core.on_tun(part, now),
            6 => {
                // A packet of the client's, padded to any size.
                let mut raw = vec![0; 10 + 20 * usize::from(size)];
                let length = raw.len() - 10;
                if let Some(packet) = raw.get_mut(10..).filter(|packet| packet.len() >= 28) {
                    packet[0] = 0x45;
                    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                    packet[9] = if what & 0x10 == 0 { 6 } else { 17 };
                    packet[12..16].copy_from_slice(&CLIENT.v4);
                    packet[32] = 0x50;
                }
                core.on_tun(&raw, now);
            }
            7 => core.on_stream_reset(link, u64::from(what >> 4), &mut d),
            8 => d.is_full = size & 1 == 0,
            9 => core.on_writable(link, now, &mut d),
            10 => {
                core.add_credit(meter, u128::from(size));
                for &flow in &flows {
                    core.wake(flow, now, &mut d);
                }
            }
            11 => core.echo(flows[usize::from(size) % flows.len()], [size; 8], now, &mut d),
            12 => {
                let place = usize::from(size) % flows.len();
                core.drop_flow(flows[place], &mut d);
            }
            13 => {
                if let Ok(flow) = core.relay(&[size; 32], 2, 1, u32::from(size), open, 0, 7, limited) {
                    flows.push(flow);
                }
            }
            14 => {
                now += 130_000_000_000;
                core.expire(now);
            }
            _ => {
                core.link_down(link, &mut d);
                core.link_up(link);
            }
        }
        if size % 3 != 0 {
            core.pump(now, &mut d);
        }
        assert!(core.used_bytes() < 3_000_000);
    }
    core.pump(now, &mut d);
    assert!(core.used_bytes() <= 300_000);
    let mut events = Vec::new();
    core.take_events(&mut events);
    let lost = events.iter().filter(|event| matches!(event, Event::FlowLost { .. })).count();
    assert!(lost <= flows.len());
    core.link_down(0, &mut d);
    core.link_down(1, &mut d);
    for flow in flows {
        core.drop_flow(flow, &mut d);
    }
    assert_eq!((core.used_bytes(), core.flow_count()), (0, 0));
}
