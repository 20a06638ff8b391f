//! Joins packets of one flow into super-packets for a TUN with offloads: the inverse of `segment`.
//!
//! Packets, plain or super-packets already, are joined only if cutting the result gives exactly the bytes of their
//! segments again: same headers but for lengths, sequence number, checksums and the identification, which counts up;
//! the same size but for the last; no PSH but on the last, no CWR; finished checksums right, because the kernel will
//! make new ones. Packets of one flow keep their order; flows may overtake each other within a batch.
//!
//! Of bare acknowledgements (`join::is_bare_ack`) of one flow that come without anything else between them only the
//! last is written (docs/decisions/0016-fewer-larger-packets.md).

use crate::ip::tcp_flag;
use crate::join::{
    continues_network, finish, has_right_sums, is_bare_ack, is_same_flow, key_of, sequence, shape_of,
    supersedes, Shape, MAX_PACKET_BYTES,
};
use crate::vnet::{Header, GSO_TCPV4, GSO_TCPV6, HEADER_BYTES, NEEDS_CSUM};

/// Flows that are joined at the same time; more only cost writes.
const FLOWS: usize = 64;
/// A packet of this size is worth a write of its own, and not a copy.
const LARGE_BYTES: usize = 24 * 1024;
/// Buffers that wait to be used again.
const SPARES: usize = 16;
/// Linux' UDP_MAX_SEGMENTS; for TCP as well it is enough to save the writes.
const SEGMENTS: usize = 64;

/// Where packets go.
pub type Out<'a> = &'a mut dyn FnMut(&[u8; HEADER_BYTES], &[u8]);

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
    /// A bare acknowledgement.
    is_ack: bool,
}

/// See the module.
#[derive(Default)]
pub struct Coalescer {
    /// Whether the TUN takes TCP super-packets.
    pub tcp: bool,
    /// Whether the TUN takes UDP super-packets.
    pub udp: bool,
    /// Whether acknowledgements that a later one supersedes are left out.
    pub acks: bool,
    pending: Vec<Pending>,
    spare: Vec<Vec<u8>>,
}

impl Pending {
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
        if !continues_network(mine, packet, self.segments, false) {
            return false;
        }
        if !shape.is_tcp {
            return true;
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
        let header = finish(&mut self.packet, self.shape, self.size);
        out(&header.encode(), &self.packet);
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
        // A wrong checksum must not take the place of a right one.
        let is_ack =
            self.acks && !is_super && is_bare_ack(packet, shape) && has_right_sums(packet, shape, is_partial);
        let key = key_of(packet, shape);
        let known = self.pending.iter().position(|pending| {
            pending.key == key && is_same_flow(&pending.packet, pending.shape, packet, shape)
        });
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
            if is_ack && pending.is_ack && supersedes(packet, &pending.packet, shape) {
                pending.header = *raw;
                pending.packet.clear();
                pending.packet.extend_from_slice(packet);
                return;
            }
            self.write(place, out);
        }
        // Neither a control packet nor one that wants to be seen at once is kept waiting.
        let may_wait = is_known
            && !is_last
            && payload > 0
            && packet.len() < LARGE_BYTES
            && flags & !tcp_flag::ECE == tcp_flag::ACK;
        if !may_wait && !is_ack {
            return out(raw, packet);
        }
        if self.pending.len() == FLOWS {
            self.write(0, out);
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(packet);
        let header = *raw;
        self.pending.push(Pending {
            key,
            header,
            packet: kept,
            shape,
            size,
            segments,
            is_joined: false,
            is_ack,
        });
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
