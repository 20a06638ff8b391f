//! TCP packets that wait at a circuit's entry: those of one flow become one super-packet while they wait, and an
//! acknowledgement takes the place of the one before it.
//!
//! Many flows at once come as many small packets, in turn. Each costs a write, a way through the other end's kernel and
//! an acknowledgement, so here each flow's share of the queue becomes one item. Nothing is kept waiting for it. What is
//! joined is cut into the same segments again, but for PSH, which ends up on the last one, and the identification of
//! packets that may not be fragmented. Rules: docs/decisions/0016-fewer-larger-packets.md.

use bytes::{BufMut, BytesMut};

use crate::inner::ItemKind;
use crate::ip::tcp_flag;
use crate::join::{
    continues_network, finish, has_right_sums, is_bare_ack, is_same_flow, sequence, supersedes, Shape,
    MAX_PACKET_BYTES,
};
use crate::shared::Item;
use crate::vnet::{
    Header, GSO_TCPV4, GSO_TCPV6, HEADER_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_PAYLOAD_BYTES, NEEDS_CSUM,
};

const SETS: usize = 256;
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct Slot {
    key: u64,
    flow: u32,
    number: u32,
}

/// Which item of its circuit's queue is the last one of a TCP flow. A cache: what it forgets is not joined, and what it
/// finds is compared.
#[derive(Default)]
pub(crate) struct Tails {
    pub is_on: bool,
    slots: Vec<[Slot; WAYS]>,
    next: usize,
}

impl Tails {
    fn set(&mut self, key: u64) -> &mut [Slot; WAYS] {
        if self.slots.is_empty() {
            self.slots = vec![Default::default(); SETS];
        }
        &mut self.slots[(key >> 56) as usize % SETS]
    }

    /// Number of the last item of this flow (of TCP) of this flow (of circuits), if it may still wait.
    pub fn find(&mut self, key: u64, flow: u32) -> Option<u32> {
        let slot = self.set(key).iter().find(|slot| slot.key == key && slot.flow == flow);
        slot.map(|slot| slot.number)
    }

    /// Remember the last item.
    pub fn put(&mut self, key: u64, flow: u32, number: u32) {
        self.next = (self.next + 1) % WAYS;
        let next = self.next;
        let set = self.set(key);
        let way = set.iter().position(|slot| slot.key == key && slot.flow == flow).unwrap_or(next);
        set[way] = Slot { key, flow, number };
    }
}

/// A packet for the entry, looked at once.
pub(crate) struct Fresh<'a> {
    pub header: Header,
    pub packet: &'a [u8],
    pub shape: Shape,
}

/// What became of a packet that might join an item.
pub(crate) enum Joined {
    /// It is in the item, which has so many bytes more.
    Grown(usize),
    No,
}

impl Fresh<'_> {
    /// An item with this packet behind its vnet header, which stays hidden while it says nothing; `data` is empty and
    /// has room for both.
    pub fn into_item(self, mut data: BytesMut, headroom: usize) -> Item {
        let (kind, hidden) = match self.header.is_plain() {
            true => (ItemKind::Ip, HEADER_BYTES),
            false => (ItemKind::Offload, 0),
        };
        data.put_bytes(0, headroom);
        data.extend_from_slice(&self.header.encode());
        data.extend_from_slice(self.packet);
        Item { kind, headroom: headroom + hidden, has_vnet: true, data }
    }

    /// Put this packet into `item`, the last one of its flow, if they go together. `room`: bytes that may be added.
    /// `buffer` gives an empty buffer for a larger item, with room for so many bytes and `headroom` in front.
    pub fn join(
        &self,
        item: &mut Item,
        room: usize,
        headroom: usize,
        buffer: impl FnOnce(usize) -> BytesMut,
    ) -> Joined {
        let hidden = if item.kind == ItemKind::Ip { HEADER_BYTES } else { 0 };
        let at = item.headroom - hidden;
        let Some((raw, mine)) = item.data[at..].split_first_chunk() else { return Joined::No };
        let header = Header::decode(raw);
        if mine[0] >> 4 != self.packet[0] >> 4 || !is_same_flow(mine, self.shape, self.packet, self.shape) {
            return Joined::No;
        }
        if self.is_better_ack(&header, mine) {
            item.data[at + HEADER_BYTES..].copy_from_slice(self.packet);
            return Joined::Grown(0);
        }
        let Some(size) = self.segments_that_fit(&header, mine) else { return Joined::No };
        let payload = &self.packet[self.shape.payload_at..];
        if payload.len() + hidden > room {
            return Joined::No;
        }
        let wanted = item.data.len() + payload.len();
        if item.data.capacity() < wanted {
            let kept = wanted - at;
            let mut larger = buffer(headroom + (2 * kept).min(HEADER_BYTES + MAX_PACKET_BYTES));
            larger.put_bytes(0, headroom);
            larger.extend_from_slice(&item.data[at..]);
            item.data = larger;
            item.headroom = headroom;
        } else {
            item.headroom = at;
        }
        item.kind = ItemKind::Offload;
        item.data.extend_from_slice(payload);
        let (raw, joined) = item.data[item.headroom..].split_at_mut(HEADER_BYTES);
        let flags_at = self.shape.start + 13;
        joined[flags_at] |= self.packet[flags_at];
        raw.copy_from_slice(&finish(joined, self.shape, size).encode());
        Joined::Grown(payload.len() + hidden)
    }

    fn is_better_ack(&self, header: &Header, mine: &[u8]) -> bool {
        // Same length, so the same shape.
        *header == self.header
            && mine.len() == self.packet.len()
            && is_bare_ack(mine, self.shape)
            && is_bare_ack(self.packet, self.shape)
            && supersedes(self.packet, mine, self.shape)
            && has_right_sums(self.packet, self.shape, self.is_partial())
    }

    fn is_partial(&self) -> bool {
        self.header.flags & NEEDS_CSUM != 0
    }

    /// The size of the segments if this packet continues `mine`.
    fn segments_that_fit(&self, header: &Header, mine: &[u8]) -> Option<usize> {
        let (packet, Shape { start, payload_at, .. }) = (self.packet, self.shape);
        let own = packet.len() - payload_at;
        let others = mine.len().checked_sub(payload_at)?;
        let size_of = |header: &Header, payload| match header.gso_type {
            0 => Some(payload),
            GSO_TCPV4 | GSO_TCPV6 => Some(usize::from(header.gso_size)),
            _ => None, // an ECN type, whose CWR is the first segment's alone
        };
        let (size, own_size) = (size_of(header, others)?, size_of(&self.header, own)?);
        let is_data = |packet: &[u8]| packet[start + 13] & !tcp_flag::PSH == tcp_flag::ACK;
        let fits = own > 0
            && own_size <= size
            && (own_size == size || own <= own_size)
            && (MIN_SEGMENT_PAYLOAD_BYTES..=MAX_SEGMENT_BYTES - payload_at).contains(&size)
            && others % size == 0
            && mine.len() + own <= MAX_PACKET_BYTES
            && is_data(mine)
            && is_data(packet)
            && sequence(packet, start) == sequence(mine, start).wrapping_add(others as u32)
            && mine[start + 8..start + 13] == packet[start + 8..start + 13]
            && mine[start + 14..start + 16] == packet[start + 14..start + 16]
            && mine[start + 18..payload_at] == packet[start + 18..payload_at]
            && continues_network(mine, packet, others / size, true)
            && has_right_sums(mine, self.shape, header.flags & NEEDS_CSUM != 0)
            && has_right_sums(packet, self.shape, self.is_partial());
        fits.then_some(size)
    }
}
