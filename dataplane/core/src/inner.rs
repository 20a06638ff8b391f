//! What a body holds: items `type (1) | flags (1) | length (2) | data` and zero padding
//! (docs/protocol/onion.md, "Inner format"). Owns the framing only.

use crate::params::{BACKWARD_OVERHEAD_BYTES, FORWARD_OVERHEAD_BYTES, UNIT};

/// Bytes before an item's data.
pub const ITEM_HEADER_BYTES: usize = 4;
/// A virtio_net_hdr, not part of the item's length.
pub const OFFLOAD_HEADER_BYTES: usize = 10;
/// Bytes of an echo's token.
pub const ECHO_TOKEN_BYTES: usize = 8;
/// Shortest IP packet.
pub const MIN_IP_BYTES: usize = 20;
/// Longest IP packet.
pub const MAX_IP_BYTES: usize = 65_535;

/// Which way a body travels: its room depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Client to exit.
    Forward,
    /// Exit to client.
    Backward,
}

impl Direction {
    /// Bytes of a packet in front of its body.
    pub const fn overhead_bytes(self) -> usize {
        match self {
            Direction::Forward => FORWARD_OVERHEAD_BYTES,
            Direction::Backward => BACKWARD_OVERHEAD_BYTES,
        }
    }

    /// Bytes of a body of `units` units; 0 for none.
    pub const fn capacity(self, units: usize) -> usize {
        (UNIT * units).saturating_sub(self.overhead_bytes())
    }

    /// The fewest units whose body holds `size` bytes.
    pub const fn units_for(self, size: usize) -> usize {
        (size + self.overhead_bytes()).div_ceil(UNIT)
    }
}

/// The wire's type byte; 0 is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ItemKind {
    /// An IP packet.
    Ip = 1,
    /// A virtio_net_hdr and an IP packet.
    Offload = 2,
    /// A control message.
    Control = 3,
    /// A token that wants to come back.
    EchoRequest = 4,
    /// A token that came back.
    EchoReply = 5,
}

impl ItemKind {
    const fn from_number(number: u8) -> Option<ItemKind> {
        match number {
            1 => Some(ItemKind::Ip),
            2 => Some(ItemKind::Offload),
            3 => Some(ItemKind::Control),
            4 => Some(ItemKind::EchoRequest),
            5 => Some(ItemKind::EchoReply),
            _ => None,
        }
    }

    /// Shortest and longest length field, and the bytes of data that it does not count.
    const fn rule(self) -> (usize, usize, usize) {
        match self {
            ItemKind::Ip => (MIN_IP_BYTES, MAX_IP_BYTES, 0),
            ItemKind::Offload => (MIN_IP_BYTES, MAX_IP_BYTES, OFFLOAD_HEADER_BYTES),
            ItemKind::Control => (1, 65_535, 0),
            ItemKind::EchoRequest | ItemKind::EchoReply => (ECHO_TOKEN_BYTES, ECHO_TOKEN_BYTES, 0),
        }
    }

    /// The header of an item with this data length; None if no receiver would take such an item.
    pub fn header(self, data_bytes: usize) -> Option<[u8; ITEM_HEADER_BYTES]> {
        let (shortest, longest, extra) = self.rule();
        let length = data_bytes.checked_sub(extra)?;
        if length < shortest || length > longest {
            return None;
        }
        let [high, low] = u16::try_from(length).ok()?.to_be_bytes();
        Some([self as u8, 0, high, low])
    }
}

/// One item of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemRef<'a> {
    /// Its type.
    pub kind: ItemKind,
    /// Its data; of an offload item the header and the packet.
    pub data: &'a [u8],
}

/// A body that no honest sender makes; nothing of it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The items of a body that was checked whole.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    body: &'a [u8],
}

/// Check a body of any length and give its items. Strict: an unknown type, a flag, a length that the type or
/// the body does not allow, and padding that is not zero are `Malformed`.
pub fn decode_body(body: &[u8]) -> Result<Items<'_>, Malformed> {
    let mut rest = body;
    while let Some((_, following)) = split(rest)? {
        rest = following;
    }
    if rest.iter().fold(0, |any, byte| any | byte) == 0 {
        Ok(Items { body })
    } else {
        Err(Malformed)
    }
}

fn split(body: &[u8]) -> Result<Option<(ItemRef<'_>, &[u8])>, Malformed> {
    let Some((&[number, flags, high, low], rest)) = body.split_first_chunk() else { return Ok(None) };
    if number == 0 {
        return Ok(None);
    }
    let kind = ItemKind::from_number(number).ok_or(Malformed)?;
    let (shortest, longest, extra) = kind.rule();
    let length = usize::from(u16::from_be_bytes([high, low]));
    if flags != 0 || length < shortest || length > longest {
        return Err(Malformed);
    }
    let (data, rest) = rest.split_at_checked(extra + length).ok_or(Malformed)?;
    Ok(Some((ItemRef { kind, data }, rest)))
}

impl<'a> Iterator for Items<'a> {
    type Item = ItemRef<'a>;

    fn next(&mut self) -> Option<ItemRef<'a>> {
        let (item, rest) = split(self.body).ok()??;
        self.body = rest;
        Some(item)
    }
}
