//! The client's part: seal all layers of forward packets, open all layers of backward ones.

use super::lane::{Command, Health, Lane};
use crate::keychain::{Found, Order, ReceiveChain, SendChain};
use crate::params::{
    BACKWARD_COUNTER_BYTES, BACKWARD_HEADER_BYTES, BACKWARD_OVERHEAD_BYTES, COUNTER_FIELD_BYTES,
    FORWARD_HEADER_BYTES, KEY_BYTES, N_MAX, REST_BYTES, SLOT_BYTES, STREAM_HEADER_BYTES,
};
use crate::suites::Suite;

const TAG_AT: usize = COUNTER_FIELD_BYTES + 1;

/// Seals bodies for a path of 1 to N_MAX hops.
pub struct ClientForward {
    /// Whether the counters are used up.
    pub health: Health,
    chains: Vec<SendChain>,
}

impl ClientForward {
    /// `roots`: the guard's first. None for a path of no or too many hops.
    pub fn new(roots: &[[u8; KEY_BYTES]], suite: Suite, lane: Lane) -> Option<ClientForward> {
        if roots.is_empty() || roots.len() > N_MAX {
            return None;
        }
        let chains = roots.iter().map(|root| SendChain::new(root, lane.forward(), suite)).collect();
        Some(ClientForward { health: Health::new(lane), chains })
    }

    /// Leave epochs that have had their time. May be called any time.
    pub fn expire(&mut self, now: u64) {
        for chain in &mut self.chains {
            chain.expire(now);
        }
    }

    /// Seal the body that stands behind `packet`'s forward header, in place, for the first link.
    ///
    /// `hop`, 1 for the guard, is where `command` is carried out; None is the last one. `random` fills the
    /// header's unused slots. False if the lane is broken, or there is no such hop or length.
    #[must_use]
    pub fn seal(
        &mut self,
        packet: &mut [u8],
        now: u64,
        hop: Option<usize>,
        command: Command,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        let hops = hop.unwrap_or(self.chains.len());
        if self.health.broken || !self.health.has_size(packet.len()) || hops == 0 || hops > self.chains.len()
        {
            return false;
        }
        let chains = &mut self.chains[..hops];
        for chain in chains.iter_mut() {
            if !chain.prepare(now) {
                self.health.broken = true;
                return false;
            }
        }
        let mut streams = [[0; STREAM_HEADER_BYTES]; N_MAX];
        let mut counters = [0; N_MAX];
        let mut rest = [0; REST_BYTES];
        let filler = SLOT_BYTES * (N_MAX - hops);
        for (index, chain) in chains.iter_mut().enumerate() {
            counters[index] = chain.take();
            chain.keys.stream().apply(counters[index], &mut streams[index]);
            if index + 1 < hops {
                // What this relay will have appended when the packet leaves it.
                let from = FORWARD_HEADER_BYTES - SLOT_BYTES * (index + 1);
                xor(&mut rest[filler..], &streams[index][from..FORWARD_HEADER_BYTES]);
            }
        }
        random(&mut rest[..filler]);
        let (header, body) = packet.split_at_mut(FORWARD_HEADER_BYTES);
        for at in (0..hops).rev() {
            let ordered = if at + 1 == hops { command } else { Command::Forward };
            let mut head = counters[at].to_le_bytes();
            head[COUNTER_FIELD_BYTES] = ordered as u8 ^ streams[at][FORWARD_HEADER_BYTES];
            let mut associated = [0; TAG_AT + REST_BYTES];
            associated[..TAG_AT].copy_from_slice(&head);
            associated[TAG_AT..].copy_from_slice(&rest);
            let tag = chains[at].keys.aead().seal(counters[at], &associated, body);
            header[..TAG_AT].copy_from_slice(&head);
            header[TAG_AT..SLOT_BYTES].copy_from_slice(&tag);
            header[SLOT_BYTES..].copy_from_slice(&rest);
            if at > 0 {
                rest.copy_from_slice(&header[..REST_BYTES]);
                xor(&mut rest, &streams[at - 1][..REST_BYTES]);
            }
        }
        true
    }
}

fn xor(data: &mut [u8], stream: &[u8]) {
    for (byte, key) in data.iter_mut().zip(stream) {
        *byte ^= key;
    }
}

/// Opens packets that come back over a path of 1 to N_MAX hops.
pub struct ClientBackward {
    /// What was refused so far.
    pub health: Health,
    relays: Vec<ReceiveChain>,
    exit: ReceiveChain,
}

impl ClientBackward {
    /// `roots`: the guard's first. None for a path of no or too many hops.
    pub fn new(roots: &[[u8; KEY_BYTES]], suite: Suite, lane: Lane) -> Option<ClientBackward> {
        if roots.len() > N_MAX {
            return None;
        }
        let (exit, relays) = roots.split_last()?;
        let label = lane.backward();
        // Only the exit's packets are authentic in themselves: a relay's counter is proved by what it
        // decrypts to.
        let relays =
            relays.iter().map(|root| ReceiveChain::new(root, label, suite, Order::Unchecked)).collect();
        let exit = ReceiveChain::new(exit, label, suite, lane.order());
        Some(ClientBackward { health: Health::new(lane), relays, exit })
    }

    /// Erase keys that are past their time; opening does so too. May be called any time.
    pub fn expire(&mut self, now: u64) {
        for chain in &mut self.relays {
            chain.expire(now);
        }
        self.exit.expire(now);
    }

    /// Open `packet` in place: its body then stands behind backward header and tag. False if it was refused,
    /// which is counted; its bytes are undefined then.
    #[must_use]
    pub fn open(&mut self, packet: &mut [u8], now: u64) -> bool {
        self.expire(now);
        if self.health.broken {
            return false;
        }
        if !self.health.has_size(packet.len()) {
            self.health.fail();
            return false;
        }
        let mut found = [(Found::Current, 0); N_MAX];
        for (chain, place) in self.relays.iter_mut().zip(&mut found) {
            let counter = read_counter(packet);
            let Some(keys) = chain.find(counter) else {
                self.health.refuse(chain, counter);
                return false;
            };
            *place = (keys, counter);
            chain.keys(keys).stream().apply(counter, &mut packet[BACKWARD_COUNTER_BYTES..]);
            // The relay dropped the last 8 bytes of the header that it got. They stay unknown, and no later
            // hop's counter is among them.
            packet.copy_within(BACKWARD_COUNTER_BYTES..BACKWARD_HEADER_BYTES, 0);
            packet[BACKWARD_HEADER_BYTES - BACKWARD_COUNTER_BYTES..BACKWARD_HEADER_BYTES].fill(0);
        }
        let counter = read_counter(packet);
        let Some(keys) = self.exit.find(counter) else {
            self.health.refuse(&self.exit, counter);
            return false;
        };
        let (head, body) = packet.split_at_mut(BACKWARD_OVERHEAD_BYTES);
        let tag = &head[BACKWARD_HEADER_BYTES..];
        if !self.exit.keys(keys).aead().open(counter, &counter.to_le_bytes(), tag, body) {
            self.health.fail();
            return false;
        }
        self.exit.accept(counter, keys, now);
        for (chain, (keys, counter)) in self.relays.iter_mut().zip(found) {
            chain.accept(counter, keys, now);
        }
        true
    }
}

fn read_counter(packet: &[u8]) -> u64 {
    let mut counter = [0; BACKWARD_COUNTER_BYTES];
    counter.copy_from_slice(&packet[..BACKWARD_COUNTER_BYTES]);
    u64::from_le_bytes(counter)
}
