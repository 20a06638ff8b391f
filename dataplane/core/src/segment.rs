//! Segmentation and checksums in software: what the kernel's GSO would do with a super-packet (Linux
//! `tcp_gso_segment`, `inet_gso_segment`, `__udp_gso_segment`). Packets come out one after the other in a
//! buffer of the caller's.

use crate::ip::{tcp_flag, Sum, TCP, UDP};
use crate::vnet::{Header, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

/// Give each whole IP packet, with finished checksums, that `header` and `packet` stand for to `out`; none
/// for what is neither (unknown type, lengths that disagree). `scratch` is overwritten.
pub fn to_packets(header: &Header, packet: &[u8], scratch: &mut Vec<u8>, out: &mut dyn FnMut(&[u8])) {
    let start = usize::from(header.csum_start);
    let size = usize::from(header.gso_size);
    if packet.len() < 20 {
        return;
    }
    match header.gso_type & !GSO_ECN {
        0 if header.flags & NEEDS_CSUM == 0 => out(packet),
        0 => {
            scratch.clear();
            scratch.extend_from_slice(packet);
            if finish_checksum(scratch, start, usize::from(header.csum_offset)) {
                out(scratch);
            }
        }
        GSO_TCPV4 | GSO_TCPV6 if size > 0 => segment(packet, start, size, Transport::Tcp, scratch, out),
        GSO_UDP_L4 if size > 0 => segment(packet, start, size, Transport::Udp, scratch, out),
        _ => {}
    }
}

/// Finish a checksum: the sum over everything from `start`, stored at `start + offset`, where the pseudo
/// header's sum stands now. False when the field is outside.
pub fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = packet.get_mut(start..) else { return false };
    let mut value = Sum::default().bytes(covered).checksum();
    if value == 0 && offset == 6 {
        value = 0xffff; // UDP: zero means "no checksum" (RFC 768)
    }
    match offset.checked_add(2).and_then(|end| covered.get_mut(offset..end)) {
        Some(field) => {
            field.copy_from_slice(&value.to_be_bytes());
            true
        }
        None => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

fn put16(buffer: &mut [u8], at: usize, value: u16) {
    buffer[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn segment(
    packet: &[u8],
    start: usize,
    size: usize,
    transport: Transport,
    scratch: &mut Vec<u8>,
    out: &mut dyn FnMut(&[u8]),
) {
    let is_v4 = packet[0] >> 4 == 4;
    let ip_header = if is_v4 { 20 } else { 40 };
    let least = if transport == Transport::Tcp { 20 } else { 8 };
    if start < ip_header || packet.len() < start + least {
        return;
    }
    let payload_at = match transport {
        Transport::Tcp => start + usize::from(packet[start + 12] >> 4) * 4,
        Transport::Udp => start + 8,
    };
    if payload_at < start + least || payload_at > packet.len() {
        return;
    }
    let (headers, payload) = packet.split_at(payload_at);
    let (checksum_at, protocol) = match transport {
        Transport::Tcp => (start + 16, TCP),
        Transport::Udp => (start + 6, UDP),
    };
    // Everything that is the same in all segments is summed once; what differs counts as zero there.
    scratch.clear();
    scratch.extend_from_slice(headers);
    let sequence =
        u32::from_be_bytes([headers[start + 4], headers[start + 5], headers[start + 6], headers[start + 7]]);
    let flags = headers[start + if transport == Transport::Tcp { 13 } else { 0 }];
    put16(scratch, checksum_at, 0);
    match transport {
        Transport::Tcp => {
            scratch[start + 4..start + 8].fill(0);
            scratch[start + 13] = 0;
        }
        Transport::Udp => put16(scratch, start + 4, 0),
    }
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let transport_sum = Sum::default()
        .bytes(&headers[addresses])
        .number(u64::from(protocol))
        .bytes(&scratch[start..payload_at]);
    let identification = u16::from_be_bytes([headers[4], headers[5]]);
    let mut network_sum = Sum::default();
    if is_v4 {
        scratch[2..6].fill(0);
        scratch[10..12].fill(0);
        network_sum = network_sum.bytes(&scratch[..start]);
    }
    let mut at = 0;
    let mut index = 0u16;
    loop {
        let piece = &payload[at..payload.len().min(at + size)];
        let is_last = at + piece.len() == payload.len();
        let length = payload_at - start + piece.len();
        let mut sum = transport_sum.number(length as u64);
        match transport {
            Transport::Tcp => {
                let mut piece_flags = flags;
                if at > 0 {
                    piece_flags &= !tcp_flag::CWR;
                }
                if !is_last {
                    piece_flags &= !(tcp_flag::FIN | tcp_flag::PSH);
                }
                let piece_sequence = sequence.wrapping_add(at as u32);
                scratch[start + 4..start + 8].copy_from_slice(&piece_sequence.to_be_bytes());
                scratch[start + 13] = piece_flags;
                sum = sum
                    .number(u64::from(piece_sequence >> 16) + u64::from(piece_sequence & 0xffff))
                    .number(u64::from(piece_flags));
            }
            Transport::Udp => {
                put16(scratch, start + 4, length as u16);
                sum = sum.number(length as u64);
            }
        }
        let mut value = sum.bytes(piece).checksum();
        if value == 0 && transport == Transport::Udp {
            value = 0xffff;
        }
        put16(scratch, checksum_at, value);
        if is_v4 {
            let piece_id = identification.wrapping_add(index);
            let total = start + length;
            put16(scratch, 2, total as u16);
            put16(scratch, 4, piece_id);
            put16(scratch, 10, network_sum.number(total as u64).number(u64::from(piece_id)).checksum());
        } else {
            put16(scratch, 4, (start - 40 + length) as u16);
        }
        scratch.truncate(payload_at);
        scratch.extend_from_slice(piece);
        out(scratch);
        if is_last {
            return;
        }
        at += size;
        index = index.wrapping_add(1);
    }
}
