//! The 10-byte `virtio_net_hdr` in front of packets on a TUN with offloads, little endian: its codec and the
//! check of headers that come from peers (exit/tun/vnet.py gives the reasons and sources).

use crate::ip::{tcp_flag, Packet, TCP, UDP};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 10;
/// Flag: the checksum is to be finished.
pub const NEEDS_CSUM: u8 = 1;
/// Segment type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Segment type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Segment type: UDP datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// Bit of the segment type: CWR on the first segment only.
pub const GSO_ECN: u8 = 0x80;
/// Goes in front of a whole packet with a finished checksum.
pub const PLAIN: [u8; HEADER_BYTES] = [0; HEADER_BYTES];
/// Smallest segment size taken from a peer.
pub const MIN_SEGMENT_PAYLOAD_BYTES: usize = 500;
/// Largest segment, headers included.
pub const MAX_SEGMENT_BYTES: usize = 1500;

/// The decoded header. `gso_type` still holds the ECN bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl Header {
    /// Read the header's bytes.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        Header {
            flags: raw[0],
            gso_type: raw[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, word) in
            raw[2..].chunks_exact_mut(2).zip([self.hdr_len, self.gso_size, self.csum_start, self.csum_offset])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        raw
    }

    /// Whether the packet behind this header is whole and needs nothing done. A forwarded packet may say that
    /// its checksum was verified.
    pub fn is_plain(&self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == 0
    }
}

/// Whether a header and its packet, as a peer sent them, may be written to a TUN. `packet` is what
/// `ip::parse(raw)` gave.
pub fn is_valid(header: &Header, raw: &[u8], packet: &Packet) -> bool {
    let start = packet.transport;
    if header.flags > NEEDS_CSUM {
        return false;
    }
    if header.flags != 0 {
        let wanted = match packet.protocol {
            TCP => 16,
            UDP => 6,
            _ => return false,
        };
        if packet.is_fragment || usize::from(header.csum_start) != start || header.csum_offset != wanted {
            return false;
        }
    } else if header.csum_start != 0 || header.csum_offset != 0 {
        return false;
    }
    if header.gso_type == 0 {
        return header.gso_size == 0 && header.hdr_len == 0;
    }
    let wanted = if packet.is_v4() { GSO_TCPV4 } else { GSO_TCPV6 };
    let flags = packet.detail;
    if header.gso_type & !GSO_ECN != wanted
        || packet.protocol != TCP
        || header.flags == 0
        || flags & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::URG) != 0
        || flags & tcp_flag::ACK == 0
        || (header.gso_type & GSO_ECN != 0 && flags & tcp_flag::CWR == 0)
    {
        return false;
    }
    let Some(&offset) = raw.get(start + 12) else { return false };
    let headers = start + usize::from(offset >> 4) * 4;
    let hdr_len = usize::from(header.hdr_len);
    let size = usize::from(header.gso_size);
    headers <= hdr_len
        && hdr_len <= raw.len()
        && size >= MIN_SEGMENT_PAYLOAD_BYTES
        && headers + size <= MAX_SEGMENT_BYTES
}
