//! Key chains: the keys and counters of one hop, direction and lane (docs/protocol/onion.md, "Keys" and
//! "Epochs").
//!
//! A chain is made from the circuit's root and keeps only its own 32 bytes, from which past keys cannot be
//! had. Ciphers are made when the first packet needs them: most circuits are spares. Chain keys are
//! overwritten when dropped, and so are the ciphers' own copies.

use aws_lc_rs::hkdf::{KeyType, Prk, HKDF_SHA256};
use zeroize::Zeroizing;

use crate::params::{EPOCHS_AHEAD, EPOCH_AGE_NS, EPOCH_BITS, EPOCH_LIMIT, KEY_BYTES, PREVIOUS_KEYS_NS};
use crate::suites::{Aead, Stream, Suite};
use crate::window::ReplayWindow;

/// 32 secret bytes that are overwritten when dropped.
pub type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// Which of a circuit's four pairs of lanes and directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Client to exit, single packets.
    Forward,
    /// Exit to client, single packets.
    Backward,
    /// Client to exit, trains.
    ForwardStream,
    /// Exit to client, trains.
    BackwardStream,
}

impl Label {
    fn text(self) -> &'static str {
        match self {
            Label::Forward => "fwd",
            Label::Backward => "bwd",
            Label::ForwardStream => "fwd stream",
            Label::BackwardStream => "bwd stream",
        }
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(secret: &[u8; KEY_BYTES], label: &[&str], out: &mut [u8]) {
    let mut info = [&[][..]; 3];
    info[0] = b"onion/1 ";
    for (place, part) in info[1..].iter_mut().zip(label) {
        *place = part.as_bytes();
    }
    Prk::new_less_safe(HKDF_SHA256, secret)
        .expand(&info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("HKDF gives up to 8160 bytes");
}

/// The first chain key, and the counter before the first.
pub fn derive_chain(root: &[u8; KEY_BYTES], label: Label) -> (Secret, u64) {
    let mut chain = Secret::default();
    expand(root, &[label.text(), " chain"], &mut *chain);
    let mut start = [0; 8];
    expand(root, &[label.text(), " ctr0"], &mut start[..6]);
    (chain, u64::from_le_bytes(start))
}

/// The body's key and the header's key of a chain key.
pub fn derive_keys(chain: &[u8; KEY_BYTES]) -> (Secret, Secret) {
    let mut both = Zeroizing::new([0; 2 * KEY_BYTES]);
    expand(chain, &["keys"], &mut *both);
    let (mut body, mut header) = (Secret::default(), Secret::default());
    body.copy_from_slice(&both[..KEY_BYTES]);
    header.copy_from_slice(&both[KEY_BYTES..]);
    (body, header)
}

/// The keys of one epoch; its ciphers, each made at its first use, and what was received in it.
pub struct EpochKeys {
    suite: Suite,
    chain: Secret,
    /// The epoch.
    pub epoch: u64,
    aead: Option<Box<Aead>>,
    stream: Option<Stream>,
    /// The counters of this epoch that were accepted.
    pub window: ReplayWindow,
}

impl EpochKeys {
    /// The keys of `epoch`, whose chain key is `chain`.
    pub fn new(suite: Suite, chain: Secret, epoch: u64) -> EpochKeys {
        let window = ReplayWindow::new(epoch << EPOCH_BITS);
        EpochKeys { suite, chain, epoch, aead: None, stream: None, window }
    }

    /// The body cipher.
    #[inline]
    pub fn aead(&mut self) -> &Aead {
        let (suite, chain) = (self.suite, &self.chain);
        self.aead.get_or_insert_with(|| Box::new(Aead::new(suite, &derive_keys(chain).0)))
    }

    /// The header's cipher; backward, also that of the layers over a whole packet.
    #[inline]
    pub fn stream(&mut self) -> &Stream {
        let (suite, chain) = (self.suite, &self.chain);
        self.stream.get_or_insert_with(|| Stream::new(suite, &derive_keys(chain).1))
    }

    /// The keys `steps` epochs on.
    pub fn following(&self, steps: u64) -> EpochKeys {
        let mut chain = self.chain.clone();
        for _ in 0..steps {
            let mut next = Secret::default();
            expand(&chain, &["ratchet"], &mut *next);
            chain = next;
        }
        EpochKeys::new(self.suite, chain, self.epoch + steps)
    }
}

/// A sender's keys and counter.
pub struct SendChain {
    /// The keys of the epoch that `prepare` chose.
    pub keys: EpochKeys,
    counter: u64,
    started_ns: Option<u64>,
}

impl SendChain {
    /// The sender's chain of a root.
    pub fn new(root: &[u8; KEY_BYTES], label: Label, suite: Suite) -> SendChain {
        let (chain, counter) = derive_chain(root, label);
        let keys = EpochKeys::new(suite, chain, counter >> EPOCH_BITS);
        SendChain { keys, counter, started_ns: None }
    }

    /// Make `keys` those of the next packet; false when the counters are used up.
    #[inline]
    #[must_use]
    pub fn prepare(&mut self, now: u64) -> bool {
        if let Some(started) = self.started_ns {
            if (self.counter + 1) >> EPOCH_BITS == self.keys.epoch
                && now.saturating_sub(started) < EPOCH_AGE_NS
            {
                return true;
            }
        }
        self.prepare_slowly(now)
    }

    fn prepare_slowly(&mut self, now: u64) -> bool {
        self.expire(now);
        let epoch = (self.counter + 1) >> EPOCH_BITS;
        if epoch >= EPOCH_LIMIT {
            return false;
        }
        if epoch != self.keys.epoch {
            self.keys = self.keys.following(1);
            self.started_ns = None;
        }
        self.started_ns.get_or_insert(now);
        true
    }

    /// The counter of the next packet, after `prepare`.
    #[inline]
    pub fn take(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Leave an epoch that is EPOCH_AGE_NS old and was used, for the next one's first counter. May be called
    /// any time.
    pub fn expire(&mut self, now: u64) {
        let Some(started) = self.started_ns else { return };
        if now.saturating_sub(started) < EPOCH_AGE_NS {
            return;
        }
        let epoch = self.keys.epoch + 1;
        self.counter = (epoch << EPOCH_BITS) - 1;
        if epoch < EPOCH_LIMIT {
            self.keys = self.keys.following(1);
        }
        self.started_ns = None;
    }
}

/// Which counters a receiver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any of an epoch in reach: another hop proves the packet.
    Unchecked,
    /// Each once, in any order: single packets.
    Window,
    /// One after the other, but for the sender's jump to the next epoch: trains.
    Strict,
}

/// Which keys of a receiver fit a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The present epoch's.
    Current,
    /// A later epoch's.
    Ahead,
    /// The keys of the epoch before.
    Previous,
}

/// A receiver's keys: the current epoch's, and for a while those of the one before it.
///
/// `find` changes nothing that a forged packet could abuse; `accept` takes note of a packet that proved
/// authentic.
pub struct ReceiveChain {
    order: Order,
    last: u64,
    current: EpochKeys,
    ahead: Option<Box<EpochKeys>>,
    previous: Option<Box<EpochKeys>>,
    previous_until_ns: u64,
}

impl ReceiveChain {
    /// The receiver's chain of a root.
    pub fn new(root: &[u8; KEY_BYTES], label: Label, suite: Suite, order: Order) -> ReceiveChain {
        let (chain, last) = derive_chain(root, label);
        let current = EpochKeys::new(suite, chain, last >> EPOCH_BITS);
        ReceiveChain { order, last, current, ahead: None, previous: None, previous_until_ns: 0 }
    }

    /// The keys for `counter`; None when it may not be accepted (`is_old` says whether that is a fault).
    #[inline]
    pub fn find(&mut self, counter: u64) -> Option<Found> {
        if self.order == Order::Strict
            && counter != self.last + 1
            && counter != ((self.last >> EPOCH_BITS) + 1) << EPOCH_BITS
        {
            return None;
        }
        let found = if counter >> EPOCH_BITS == self.current.epoch {
            Found::Current
        } else {
            self.find_other(counter)?
        };
        if self.order == Order::Window && !self.keys(found).window.is_fresh(counter) {
            return None;
        }
        Some(found)
    }

    fn find_other(&mut self, counter: u64) -> Option<Found> {
        let epoch = counter >> EPOCH_BITS;
        if epoch < self.current.epoch {
            return match &self.previous {
                Some(previous) if previous.epoch == epoch => Some(Found::Previous),
                _ => None,
            };
        }
        if epoch - self.current.epoch > EPOCHS_AHEAD || epoch >= EPOCH_LIMIT {
            return None;
        }
        if self.ahead.as_ref().is_none_or(|ahead| ahead.epoch != epoch) {
            self.ahead = Some(Box::new(self.current.following(epoch - self.current.epoch)));
        }
        Some(Found::Ahead)
    }

    /// The keys that `find` named; nothing was accepted in between.
    #[inline]
    pub fn keys(&mut self, found: Found) -> &mut EpochKeys {
        let other = match found {
            Found::Current => None,
            Found::Ahead => self.ahead.as_deref_mut(),
            Found::Previous => self.previous.as_deref_mut(),
        };
        other.unwrap_or(&mut self.current)
    }

    /// Note that the packet of `counter`, opened with the keys `found`, was authentic.
    #[inline]
    pub fn accept(&mut self, counter: u64, found: Found, now: u64) {
        self.last = counter;
        if found == Found::Ahead {
            if let Some(ahead) = self.ahead.take() {
                let former = std::mem::replace(&mut self.current, *ahead);
                if self.order != Order::Strict {
                    // Nothing comes late on a stream: there the old keys end at once.
                    self.previous = Some(Box::new(former));
                    self.previous_until_ns = now.saturating_add(PREVIOUS_KEYS_NS);
                }
            }
        }
        if self.order == Order::Window {
            if found == Found::Previous {
                self.keys(found).window.mark(counter);
            } else {
                self.current.window.mark(counter);
            }
            if self.previous.is_some() && self.current.window.has_left(self.current.epoch << EPOCH_BITS) {
                self.previous = None;
            }
        }
    }

    /// Whether an honest packet that was overtaken or doubled on its way may carry `counter`, for which
    /// `find` said None.
    pub fn is_old(&self, counter: u64) -> bool {
        self.order != Order::Strict && counter >> EPOCH_BITS <= self.current.epoch
    }

    /// Erase the keys of the epoch before when they are past their time. May be called any time.
    #[inline]
    pub fn expire(&mut self, now: u64) {
        if self.previous.is_some() && now >= self.previous_until_ns {
            self.previous = None;
        }
    }
}
