//! A relay's and an exit's part: open forward packets, wrap or seal backward ones.

use super::lane::{Command, Health, Lane, Opened};
use crate::keychain::{ReceiveChain, SendChain};
use crate::params::{
    BACKWARD_COUNTER_BYTES, BACKWARD_HEADER_BYTES, BACKWARD_KEPT_BYTES, COUNTER_FIELD_BYTES, COUNTER_LIMIT,
    FORWARD_HEADER_BYTES, KEY_BYTES, REST_BYTES, SLOT_BYTES, STREAM_HEADER_BYTES,
};
use crate::suites::Suite;

const TAG_AT: usize = COUNTER_FIELD_BYTES + 1;

/// Opens one layer of forward packets, at any hop.
pub struct RelayForward {
    /// What was refused so far.
    pub health: Health,
    chain: ReceiveChain,
}

/// The parts of a forward packet's own slot and rest, copied before its bytes are changed.
struct Slot {
    counter: u64,
    /// LE56 counter | encrypted command | rest: what the tag covers besides the body.
    associated: [u8; TAG_AT + REST_BYTES],
    tag: [u8; SLOT_BYTES - TAG_AT],
}

impl Slot {
    #[inline]
    fn read(packet: &[u8]) -> Slot {
        let mut associated = [0; TAG_AT + REST_BYTES];
        let mut tag = [0; SLOT_BYTES - TAG_AT];
        associated[..TAG_AT].copy_from_slice(&packet[..TAG_AT]);
        associated[TAG_AT..].copy_from_slice(&packet[SLOT_BYTES..FORWARD_HEADER_BYTES]);
        tag.copy_from_slice(&packet[TAG_AT..SLOT_BYTES]);
        let mut head = [0; TAG_AT];
        head.copy_from_slice(&packet[..TAG_AT]);
        Slot { counter: u64::from_le_bytes(head) & (COUNTER_LIMIT - 1), associated, tag }
    }
}

impl RelayForward {
    /// The opener of one hop; its root is not kept.
    pub fn new(root: &[u8; KEY_BYTES], suite: Suite, lane: Lane) -> RelayForward {
        let chain = ReceiveChain::new(root, lane.forward(), suite, lane.order());
        RelayForward { health: Health::new(lane), chain }
    }

    /// Erase keys that are past their time; opening does so too. May be called any time.
    pub fn expire(&mut self, now: u64) {
        self.chain.expire(now);
    }

    /// Open `packet` in place.
    pub fn open(&mut self, packet: &mut [u8], now: u64) -> Opened {
        if self.health.broken {
            return Opened::Refused;
        }
        if !self.health.has_size(packet.len()) {
            self.health.fail();
            return Opened::Refused;
        }
        let slot = Slot::read(packet);
        let (header, body) = packet.split_at_mut(FORWARD_HEADER_BYTES);
        self.finish(&slot, header, None, body, now)
    }

    /// Open `packet` to `out`. Their lengths must be the same; otherwise the packet is refused and counted.
    pub fn open_to(&mut self, packet: &[u8], out: &mut [u8], now: u64) -> Opened {
        if self.health.broken {
            return Opened::Refused;
        }
        if !self.health.has_size(packet.len()) || packet.len() != out.len() {
            self.health.fail();
            return Opened::Refused;
        }
        let slot = Slot::read(packet);
        let (header, body) = out.split_at_mut(FORWARD_HEADER_BYTES);
        self.finish(&slot, header, Some(&packet[FORWARD_HEADER_BYTES..]), body, now)
    }

    #[inline]
    fn finish(
        &mut self,
        slot: &Slot,
        header: &mut [u8],
        sealed: Option<&[u8]>,
        body: &mut [u8],
        now: u64,
    ) -> Opened {
        let chain = &mut self.chain;
        chain.expire(now);
        let counter = slot.counter;
        let Some(found) = chain.find(counter) else {
            self.health.refuse(&self.chain, counter);
            return Opened::Refused;
        };
        let keys = chain.keys(found);
        let authentic = match sealed {
            None => keys.aead().open(counter, &slot.associated, &slot.tag, body),
            Some(sealed) => keys.aead().open_to(counter, &slot.associated, &slot.tag, sealed, body),
        };
        if !authentic {
            self.health.fail();
            return Opened::Refused;
        }
        // The command's byte rides behind the header through the same stream.
        let mut next = [0; STREAM_HEADER_BYTES];
        next[..REST_BYTES].copy_from_slice(&slot.associated[TAG_AT..]);
        next[FORWARD_HEADER_BYTES] = slot.associated[COUNTER_FIELD_BYTES];
        keys.stream().apply(counter, &mut next);
        chain.accept(counter, found, now);
        match next[FORWARD_HEADER_BYTES] {
            command if command == Command::Forward as u8 => {
                header.copy_from_slice(&next[..FORWARD_HEADER_BYTES]);
                Opened::Forward
            }
            command if command == Command::Deliver as u8 => Opened::Deliver,
            command if command == Command::Drop as u8 => Opened::Drop,
            _ => {
                self.health.fail();
                Opened::Refused
            }
        }
    }
}

/// Adds a relay's stream layer to backward packets.
pub struct RelayBackward {
    /// What was refused so far.
    pub health: Health,
    chain: SendChain,
}

impl RelayBackward {
    /// The wrapper of one hop; its root is not kept.
    pub fn new(root: &[u8; KEY_BYTES], suite: Suite, lane: Lane) -> RelayBackward {
        let chain = SendChain::new(root, lane.backward(), suite);
        RelayBackward { health: Health::new(lane), chain }
    }

    /// Leave an epoch that has had its time. May be called any time.
    pub fn expire(&mut self, now: u64) {
        self.chain.expire(now);
    }

    /// Wrap `packet` in place for the next link towards the client; false if its length is wrong, which is
    /// counted, or if the lane is broken.
    #[must_use]
    pub fn wrap(&mut self, packet: &mut [u8], now: u64) -> bool {
        if !self.may_wrap(packet.len(), now) {
            return false;
        }
        packet.copy_within(..BACKWARD_KEPT_BYTES, BACKWARD_COUNTER_BYTES);
        self.finish(packet);
        true
    }

    /// As `wrap`, to `out`, which must have the packet's length.
    #[must_use]
    pub fn wrap_to(&mut self, packet: &[u8], out: &mut [u8], now: u64) -> bool {
        if packet.len() != out.len() || !self.may_wrap(packet.len(), now) {
            return false;
        }
        out[BACKWARD_COUNTER_BYTES..BACKWARD_HEADER_BYTES].copy_from_slice(&packet[..BACKWARD_KEPT_BYTES]);
        out[BACKWARD_HEADER_BYTES..].copy_from_slice(&packet[BACKWARD_HEADER_BYTES..]);
        self.finish(out);
        true
    }

    fn may_wrap(&mut self, size: usize, now: u64) -> bool {
        if !self.health.has_size(size) {
            self.health.fail();
            return false;
        }
        if !self.health.broken && !self.chain.prepare(now) {
            self.health.broken = true;
        }
        !self.health.broken
    }

    #[inline]
    fn finish(&mut self, packet: &mut [u8]) {
        let counter = self.chain.take();
        packet[..BACKWARD_COUNTER_BYTES].copy_from_slice(&counter.to_le_bytes());
        self.chain.keys.stream().apply(counter, &mut packet[BACKWARD_COUNTER_BYTES..]);
    }
}

/// Seals bodies for the way back to the client, at the last hop.
pub struct ExitBackward {
    /// Whether the counters are used up.
    pub health: Health,
    chain: SendChain,
}

impl ExitBackward {
    /// The sealer of the last hop; its root is not kept.
    pub fn new(root: &[u8; KEY_BYTES], suite: Suite, lane: Lane) -> ExitBackward {
        let chain = SendChain::new(root, lane.backward(), suite);
        ExitBackward { health: Health::new(lane), chain }
    }

    /// Leave an epoch that has had its time. May be called any time.
    pub fn expire(&mut self, now: u64) {
        self.chain.expire(now);
    }

    /// Seal the body that stands behind `packet`'s backward header and tag, in place. `random` fills what
    /// relays will drop. False if the lane is broken or the length is not one of a packet.
    #[must_use]
    pub fn seal(&mut self, packet: &mut [u8], now: u64, random: &mut dyn FnMut(&mut [u8])) -> bool {
        if self.health.broken || !self.health.has_size(packet.len()) {
            return false;
        }
        if !self.chain.prepare(now) {
            self.health.broken = true;
            return false;
        }
        let counter = self.chain.take();
        let head = counter.to_le_bytes();
        let (header, rest) = packet.split_at_mut(BACKWARD_HEADER_BYTES);
        let (tag, body) = rest.split_at_mut(crate::params::TAG_BYTES);
        tag.copy_from_slice(&self.chain.keys.aead().seal(counter, &head, body));
        header[..BACKWARD_COUNTER_BYTES].copy_from_slice(&head);
        random(&mut header[BACKWARD_COUNTER_BYTES..]);
        true
    }
}
