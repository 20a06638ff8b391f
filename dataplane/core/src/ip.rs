//! IP packets: who sends what to whom, and checksums. The strict parser of customers' packets is the rule set
//! of exit/packets.py, which says what is let through and why.

use std::net::IpAddr;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// Transmission control.
pub const TCP: u8 = 6;
/// User datagrams.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

/// TCP flag bits.
pub mod tcp_flag {
    #![allow(missing_docs)]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    pub const ECE: u8 = 64;
    pub const CWR: u8 = 128;
}

/// A packed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

impl Address {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Address::V4(bytes) => bytes,
            Address::V6(bytes) => bytes,
        }
    }

    /// As a number.
    pub fn number(&self) -> u128 {
        match self {
            Address::V4(bytes) => u128::from(u32::from_be_bytes(*bytes)),
            Address::V6(bytes) => u128::from_be_bytes(*bytes),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> IpAddr {
        match address {
            Address::V4(bytes) => bytes.into(),
            Address::V6(bytes) => bytes.into(),
        }
    }
}

/// What the data path needs of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The transport's number.
    pub protocol: u8,
    /// Who sends.
    pub source: Address,
    /// Who receives.
    pub destination: Address,
    /// 0 where there is none; the identifier of an echo.
    pub source_port: u16,
    /// None for later fragments and echo requests: "is anything at all let out to this address?". 0 for a
    /// protocol that has no ports, which no policy lets out.
    pub destination_port: Option<u16>,
    /// The TCP flag byte, the ICMP type, or 0.
    pub detail: u8,
    /// Where the transport's header starts.
    pub transport: usize,
    /// Whether it is a fragment, the first one included.
    pub is_fragment: bool,
}

impl Packet {
    /// Whether it is IPv4.
    pub fn is_v4(&self) -> bool {
        matches!(self.source, Address::V4(_))
    }
}

#[inline]
fn array<const N: usize>(raw: &[u8], at: usize) -> Option<[u8; N]> {
    raw.get(at..at + N)?.try_into().ok()
}

#[inline]
fn u16_at(raw: &[u8], at: usize) -> Option<u16> {
    array(raw, at).map(u16::from_be_bytes)
}

/// Read a customer's IP packet, super-packets included; None for anything that an exit does not carry.
pub fn parse(raw: &[u8]) -> Option<Packet> {
    let size = raw.len();
    if size < 28 {
        return None;
    }
    let mut packet = Packet {
        protocol: 0,
        source: Address::V4([0; 4]),
        destination: Address::V4([0; 4]),
        source_port: 0,
        destination_port: None,
        detail: 0,
        transport: 20,
        is_fragment: false,
    };
    if raw[0] == 0x45 {
        let fragment = u16_at(raw, 6)?;
        packet.protocol = raw[9];
        packet.source = Address::V4(array(raw, 12)?);
        packet.destination = Address::V4(array(raw, 16)?);
        if usize::from(u16_at(raw, 2)?) != size || fragment & 0x8000 != 0 {
            return None;
        }
        if fragment & 0x3fff != 0 {
            packet.is_fragment = true;
            let has_odd_size = (size - 20) % 8 != 0;
            if fragment & 0x1fff != 0 {
                // Only the last fragment may end anywhere.
                return (fragment & 0x2000 == 0 || !has_odd_size).then_some(packet);
            }
            if has_odd_size {
                return None;
            }
        }
    } else if raw[0] >> 4 == 6 {
        if size < 48 {
            return None;
        }
        let length = usize::from(u16_at(raw, 4)?);
        packet.protocol = raw[6];
        packet.source = Address::V6(array(raw, 8)?);
        packet.destination = Address::V6(array(raw, 24)?);
        packet.transport = 40;
        if length != size - 40 {
            return None;
        }
        if packet.protocol == FRAGMENT {
            let reserved = raw[41];
            let fragment = u16_at(raw, 42)?;
            packet.protocol = raw[40];
            packet.transport = 48;
            packet.is_fragment = true;
            let left = size - 48;
            if reserved != 0 || fragment & 6 != 0 || left == 0 || (fragment & 1 != 0 && left % 8 != 0) {
                return None;
            }
            if fragment & 0xfff8 != 0 {
                return Some(packet);
            }
            if left < 8 {
                return None;
            }
        }
    } else {
        return None;
    }
    read_transport(raw, packet)
}

fn read_transport(raw: &[u8], mut packet: Packet) -> Option<Packet> {
    let at = packet.transport;
    let left = raw.len() - at;
    match packet.protocol {
        TCP => {
            let header = usize::from(*raw.get(at + 12)? >> 4) * 4;
            if left < 20 || header < 20 || header > left {
                return None;
            }
            packet.source_port = u16_at(raw, at)?;
            packet.destination_port = Some(u16_at(raw, at + 2)?);
            packet.detail = raw[at + 13];
        }
        UDP => {
            let length = usize::from(u16_at(raw, at + 4)?);
            let is_right = if packet.is_fragment { length >= left } else { length == left };
            if length < 8 || !is_right {
                return None;
            }
            packet.source_port = u16_at(raw, at)?;
            packet.destination_port = Some(u16_at(raw, at + 2)?);
        }
        ICMP | ICMPV6 => {
            let wanted = if packet.is_v4() { 8 } else { 128 };
            if (packet.protocol == ICMP) != packet.is_v4() || *raw.get(at)? != wanted || raw[at + 1] != 0 {
                return None;
            }
            packet.source_port = u16_at(raw, at + 4)?;
            packet.detail = wanted;
        }
        _ => packet.destination_port = Some(0),
    }
    Some(packet)
}

/// The addresses of a packet from our own kernel, and its protocol (for IPv6 the first next-header value);
/// None if it is too short.
pub fn addresses(raw: &[u8]) -> Option<(u8, Address, Address)> {
    match raw.first()? >> 4 {
        4 if raw.len() >= 20 => Some((raw[9], Address::V4(array(raw, 12)?), Address::V4(array(raw, 16)?))),
        6 if raw.len() >= 40 => Some((raw[6], Address::V6(array(raw, 8)?), Address::V6(array(raw, 24)?))),
        _ => None,
    }
}

/// A running sum of 16-bit words (RFC 1071).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Add bytes as big-endian words; an odd last byte is padded with zero.
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Sum {
        // Four bytes at a time in memory's own order: ones' complement sums do not care, but for one swap.
        let mut sum = 0u64;
        let mut words = data.chunks_exact(32);
        for block in words.by_ref() {
            let mut part = 0u64;
            for word in block.chunks_exact(4) {
                part += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
            sum += part;
        }
        let mut pairs = words.remainder().chunks_exact(2);
        for pair in pairs.by_ref() {
            sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = pairs.remainder() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(self.0 + u64::from(u16::from_be(fold(sum))))
    }

    /// Add a number.
    #[must_use]
    pub fn number(self, value: u64) -> Sum {
        Sum(self.0 + value)
    }

    /// The sum itself, folded to 16 bits; 0 for "all words are zero" only.
    pub fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The checksum: the sum's complement.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
