//! What makes TCP segments and datagrams of one flow one super-packet, and one acknowledgement as good as two: the
//! rules that `coalesce` (in front of a TUN) and `entry` (in front of a circuit) share.

use crate::ip::{self, tcp_flag, Sum, TCP, UDP};
use crate::vnet::{Header, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

/// Longest IP packet.
pub(crate) const MAX_PACKET_BYTES: usize = 65_535;

/// Where header and payload of a TCP or UDP packet begin.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub is_tcp: bool,
    pub start: usize,
    pub payload_at: usize,
}

/// The shape of a TCP or UDP packet; None for another, for fragments and what is malformed.
pub(crate) fn shape_of(packet: &[u8]) -> Option<Shape> {
    shape_from(&ip::parse(packet)?, packet)
}

/// The same, of what `ip::parse` gave.
pub(crate) fn shape_from(parsed: &ip::Packet, packet: &[u8]) -> Option<Shape> {
    if parsed.is_fragment {
        return None;
    }
    let start = parsed.transport;
    match parsed.protocol {
        TCP => {
            let payload_at = start + usize::from(packet[start + 12] >> 4) * 4;
            Some(Shape { is_tcp: true, start, payload_at })
        }
        UDP => Some(Shape { is_tcp: false, start, payload_at: start + 8 }),
        _ => None,
    }
}

pub(crate) fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    }
}

pub(crate) fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn number(packet: &[u8], at: usize) -> u32 {
    u32::from(word(packet, at)) << 16 | u32::from(word(packet, at + 2))
}

pub(crate) fn sequence(packet: &[u8], start: usize) -> u32 {
    number(packet, start + 4)
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A number that packets of one flow share, and few others.
pub(crate) fn key_of(packet: &[u8], shape: Shape) -> u64 {
    let start = shape.start;
    let ports = u64::from(word(packet, start)) << 16 | u64::from(word(packet, start + 2));
    let ends = addresses(packet).chunks_exact(4).fold(u64::from(shape.is_tcp), |key, part| {
        key.rotate_left(13) ^ u64::from(u32::from_ne_bytes([part[0], part[1], part[2], part[3]]))
    });
    (ends.rotate_left(32) ^ ports).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether two packets have the same ends.
pub(crate) fn is_same_flow(one: &[u8], shape_one: Shape, other: &[u8], shape_other: Shape) -> bool {
    let start = shape_one.start;
    shape_one.is_tcp == shape_other.is_tcp
        && start == shape_other.start
        && addresses(one) == addresses(other)
        && one[start..start + 4] == other[start..start + 4]
}

/// Whether the IPv4 header's checksum is right, and the transport's unless it is left to the kernel.
pub(crate) fn has_right_sums(packet: &[u8], shape: Shape, is_partial: bool) -> bool {
    if packet[0] >> 4 == 4 && Sum::default().bytes(&packet[..20]).folded() != 0xffff {
        return false;
    }
    if is_partial {
        return true;
    }
    if !shape.is_tcp && word(packet, shape.start + 6) == 0 {
        return false;
    }
    let protocol = if shape.is_tcp { TCP } else { UDP };
    let sum = Sum::default()
        .bytes(addresses(packet))
        .number(u64::from(protocol) + (packet.len() - shape.start) as u64)
        .bytes(&packet[shape.start..]);
    sum.folded() == 0xffff
}

/// Whether the network headers of `packet` continue those of `mine`: what routers look at is the same, and the
/// identification counts up, `ahead` later. With `any_id` it may be anything where fragments are forbidden: it says
/// nothing there (RFC 6864, section 4.1).
pub(crate) fn continues_network(mine: &[u8], packet: &[u8], ahead: usize, any_id: bool) -> bool {
    if mine[0] >> 4 == 4 {
        mine[..2] == packet[..2]
            && mine[6..10] == packet[6..10]
            && (word(packet, 4) == word(mine, 4).wrapping_add(ahead as u16)
                || (any_id && mine[6] & 0x40 != 0))
    } else {
        mine[..4] == packet[..4] && mine[6..8] == packet[6..8]
    }
}

/// Make `packet`, to whose payload that of others of its flow was appended, one super-packet with segments of
/// `size`: lengths, the IPv4 checksum, the pseudo header's sum. Gives its header.
pub(crate) fn finish(packet: &mut [u8], shape: Shape, size: usize) -> Header {
    let Shape { is_tcp, start, payload_at } = shape;
    let length = packet.len();
    let is_v4 = packet[0] >> 4 == 4;
    if is_v4 {
        put(packet, 2, length as u16);
        put(packet, 10, 0);
        let sum = Sum::default().bytes(&packet[..20]).checksum();
        put(packet, 10, sum);
    } else {
        put(packet, 4, (length - 40) as u16);
    }
    let (protocol, csum_offset) = if is_tcp { (TCP, 16) } else { (UDP, 6) };
    let pseudo =
        Sum::default().bytes(addresses(packet)).number(u64::from(protocol) + (length - start) as u64);
    put(packet, start + csum_offset, pseudo.folded());
    if !is_tcp {
        put(packet, start + 4, (length - start) as u16);
    }
    Header {
        flags: NEEDS_CSUM,
        gso_type: match (is_tcp, is_v4) {
            (true, true) => GSO_TCPV4,
            (true, false) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        },
        hdr_len: payload_at as u16,
        gso_size: size as u16,
        csum_start: start as u16,
        csum_offset: csum_offset as u16,
    }
}

/// Whether `packet` does nothing but acknowledge: no payload, no flag but ACK (and so neither ECN's nor an accurate
/// ECN counter), no option (and so neither SACK nor a timestamp).
pub(crate) fn is_bare_ack(packet: &[u8], shape: Shape) -> bool {
    shape.is_tcp
        && packet.len() == shape.payload_at
        && shape.payload_at == shape.start + 20
        && packet[shape.start + 12] == 0x50
        && packet[shape.start + 13] == tcp_flag::ACK
}

/// Whether `new`, a bare acknowledgement, makes `old`, an earlier one of its flow, superfluous: it acknowledges more,
/// and its window is the later word (RFC 3449, section 5.2.1). One that acknowledges the same is a duplicate, by
/// whose number a sender notices a loss, or a window's update: both stay.
pub(crate) fn supersedes(new: &[u8], old: &[u8], shape: Shape) -> bool {
    let start = shape.start;
    let progress = number(new, start + 8).wrapping_sub(number(old, start + 8));
    new.len() == old.len()
        && continues_network(old, new, 1, true)
        && new[start + 4..start + 8] == old[start + 4..start + 8]
        && new[start + 18..start + 20] == old[start + 18..start + 20]
        && (1..1 << 31).contains(&progress)
}
