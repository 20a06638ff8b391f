//! Joins packets of one flow into super-packets for a TUN with offloads: the inverse of `segment`.
//!
//! Packets, plain or super-packets already, are joined only if cutting the result gives exactly the bytes of their
//! segments again: same headers but for lengths, sequence number, checksums and the identification, which counts up;
//! the same size but for the last; no PSH but on the last, no CWR; finished checksums right, because the kernel will
//! make new ones. Packets of one flow keep their order; flows may overtake each other within a batch.

use crate::ip::{self, tcp_flag, Sum, TCP, UDP};
use crate::vnet::{Header, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HEADER_BYTES, NEEDS_CSUM};

/// Flows that are joined at the same time; more only cost writes.
const FLOWS: usize = 64;
/// A packet of this size is worth a write of its own, and not a copy.
const LARGE_BYTES: usize = 24 * 1024;
/// Buffers that wait to be used again.
const SPARES: usize = 16;
/// Linux' UDP_MAX_SEGMENTS; for TCP as well it is enough to save the writes.
const SEGMENTS: usize = 64;
const MAX_PACKET_BYTES: usize = 65_535;

/// Where packets go.
pub type Out<'a> = &'a mut dyn FnMut(&[u8; HEADER_BYTES], &[u8]);

#[derive(Clone, Copy)]
struct Shape {
    is_tcp: bool,
    start: usize,
    payload_at: usize,
}

/// A packet, or several of one flow, that wait for the next.
struct Pending {
    key: u64,
    /// What stands before the packet as long as it is the only one.
    header: [u8; HEADER_BYTES],
    packet: Vec<u8>,
    shape: Shape,
    /// Payload of each segment but the last.
    size: usize,
    segments: usize,
    is_joined: bool,
}

/// See the module.
#[derive(Default)]
pub struct Coalescer {
    /// Whether the TUN takes TCP super-packets.
    pub tcp: bool,
    /// Whether the TUN takes UDP super-packets.
    pub udp: bool,
    pending: Vec<Pending>,
    spare: Vec<Vec<u8>>,
}

/// Where header and payload of a TCP or UDP packet begin; None for another, for fragments and what is malformed.
fn shape_of(packet: &[u8]) -> Option<Shape> {
    let parsed = ip::parse(packet)?;
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

fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    }
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn sequence(packet: &[u8], start: usize) -> u32 {
    u32::from(word(packet, start + 4)) << 16 | u32::from(word(packet, start + 6))
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A number that packets of one flow share, and few others.
fn key_of(packet: &[u8], shape: Shape) -> u64 {
    let start = shape.start;
    let ports = u64::from(word(packet, start)) << 16 | u64::from(word(packet, start + 2));
    let ends = addresses(packet).chunks_exact(4).fold(u64::from(shape.is_tcp), |key, part| {
        key.rotate_left(13) ^ u64::from(u32::from_ne_bytes([part[0], part[1], part[2], part[3]]))
    });
    (ends.rotate_left(32) ^ ports).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether the IPv4 header's checksum is right, and the transport's unless it is left to the kernel.
fn has_right_sums(packet: &[u8], shape: Shape, is_partial: bool) -> bool {
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

impl Pending {
    fn is_flow_of(&self, packet: &[u8], shape: Shape) -> bool {
        self.shape.is_tcp == shape.is_tcp
            && self.shape.start == shape.start
            && addresses(&self.packet) == addresses(packet)
            && self.packet[shape.start..shape.start + 4] == packet[shape.start..shape.start + 4]
    }

    /// Whether `packet`, of the same flow and with segments of `size`, continues this one.
    fn may_take(&self, packet: &[u8], shape: Shape, size: usize, segments: usize) -> bool {
        let (mine, start) = (&self.packet, shape.start);
        let payload = packet.len() - shape.payload_at;
        if self.shape.payload_at != shape.payload_at
            || payload == 0
            || size > self.size
            || (size < self.size && segments > 1)
            || self.segments + segments > SEGMENTS
            || mine.len() + payload > MAX_PACKET_BYTES
            || mine.len() - shape.payload_at != self.size * self.segments
        {
            return false;
        }
        let has_same_network = if mine[0] >> 4 == 4 {
            mine[..2] == packet[..2]
                && mine[6..10] == packet[6..10]
                && word(packet, 4) == word(mine, 4).wrapping_add(self.segments as u16)
        } else {
            mine[..4] == packet[..4] && mine[6..8] == packet[6..8]
        };
        if !has_same_network || !shape.is_tcp {
            return has_same_network;
        }
        let flags = packet[start + 13];
        mine[start + 8..start + 13] == packet[start + 8..start + 13]
            && mine[start + 13] == flags & !tcp_flag::PSH
            && mine[start + 14..start + 16] == packet[start + 14..start + 16]
            && mine[start + 18..shape.payload_at] == packet[start + 18..shape.payload_at]
            && sequence(packet, start)
                == sequence(mine, start).wrapping_add((self.size * self.segments) as u32)
    }

    fn is_partial(&self) -> bool {
        self.header[0] & NEEDS_CSUM != 0
    }

    /// Write it out as one packet or one super-packet.
    fn write(&mut self, out: Out<'_>) {
        if !self.is_joined {
            out(&self.header, &self.packet);
            return;
        }
        let Shape { is_tcp, start, payload_at } = self.shape;
        let packet = &mut self.packet;
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
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: match (is_tcp, is_v4) {
                (true, true) => GSO_TCPV4,
                (true, false) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: payload_at as u16,
            gso_size: self.size as u16,
            csum_start: start as u16,
            csum_offset: csum_offset as u16,
        };
        out(&header.encode(), packet);
    }
}

impl Coalescer {
    /// Take one packet, checked against its header (`vnet::is_valid`) or plain; it goes to `out` now or in a later
    /// call.
    pub fn offer(&mut self, raw: &[u8; HEADER_BYTES], packet: &[u8], out: Out<'_>) {
        if !self.tcp && !self.udp {
            return out(raw, packet);
        }
        let Some(shape) = shape_of(packet) else {
            // It may belong to any flow, as a fragment does.
            self.flush(out);
            return out(raw, packet);
        };
        if !(if shape.is_tcp { self.tcp } else { self.udp }) {
            return out(raw, packet);
        }
        let header = Header::decode(raw);
        let is_partial = header.flags & NEEDS_CSUM != 0;
        let payload = packet.len() - shape.payload_at;
        let is_super = header.gso_type != 0;
        let size = if is_super { usize::from(header.gso_size) } else { payload };
        let segments = payload.div_ceil(size.max(1));
        let flags = if shape.is_tcp { packet[shape.start + 13] } else { tcp_flag::ACK };
        let is_last = flags & tcp_flag::PSH != 0 || payload < size * segments;
        // Of super-packets only the usual kinds of TCP: no ECN type, whose CWR is the first segment's alone.
        let is_known = !is_super || matches!((shape.is_tcp, header.gso_type), (true, GSO_TCPV4 | GSO_TCPV6));
        let key = key_of(packet, shape);
        let known =
            self.pending.iter().position(|pending| pending.key == key && pending.is_flow_of(packet, shape));
        if let Some(place) = known {
            let pending = &mut self.pending[place];
            if is_known
                && pending.may_take(packet, shape, size, segments)
                && (pending.is_joined || has_right_sums(&pending.packet, shape, pending.is_partial()))
                && has_right_sums(packet, shape, is_partial)
            {
                pending.packet.extend_from_slice(&packet[shape.payload_at..]);
                pending.segments += segments;
                pending.is_joined = true;
                if shape.is_tcp {
                    pending.packet[shape.start + 13] = flags;
                }
                if is_last || size < pending.size || pending.packet.len() >= MAX_PACKET_BYTES - pending.size {
                    self.write(place, out);
                }
                return;
            }
            self.write(place, out);
        }
        // Neither a control packet nor one that wants to be seen at once is kept waiting.
        if !is_known
            || is_last
            || payload == 0
            || packet.len() >= LARGE_BYTES
            || flags & !tcp_flag::ECE != tcp_flag::ACK
        {
            return out(raw, packet);
        }
        if self.pending.len() == FLOWS {
            self.write(0, out);
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(packet);
        let header = *raw;
        self.pending.push(Pending { key, header, packet: kept, shape, size, segments, is_joined: false });
    }

    /// Write out all that waits.
    pub fn flush(&mut self, out: Out<'_>) {
        for mut pending in self.pending.drain(..) {
            pending.write(out);
            keep(&mut self.spare, pending.packet);
        }
    }

    fn write(&mut self, place: usize, out: Out<'_>) {
        let mut pending = self.pending.remove(place);
        pending.write(out);
        keep(&mut self.spare, pending.packet);
    }
}

fn keep(spare: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if spare.len() < SPARES {
        buffer.clear();
        spare.push(buffer);
    }
}
