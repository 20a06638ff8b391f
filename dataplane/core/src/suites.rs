//! The two cipher suites of a circuit (docs/protocol/onion.md, "Suites"), over aws-lc-rs and chacha20.

use aws_lc_rs::aead::{Aad, Algorithm, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, CHACHA20_POLY1305};
use aws_lc_rs::cipher::{EncryptingKey, EncryptionContext, UnboundCipherKey, AES_256};
use aws_lc_rs::iv::FixedLength;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use zeroize::Zeroizing;

use crate::params::{KEY_BYTES, TAG_BYTES};

/// Which ciphers a circuit uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305 and ChaCha20.
    ChaCha = 1,
    /// AES-256-GCM and AES-256-CTR.
    Aes = 2,
}

impl Suite {
    /// The suite of this number, if there is one.
    pub fn from_number(number: u8) -> Option<Suite> {
        match number {
            1 => Some(Suite::ChaCha),
            2 => Some(Suite::Aes),
            _ => None,
        }
    }

    fn aead(self) -> &'static Algorithm {
        match self {
            Suite::ChaCha => &CHACHA20_POLY1305,
            Suite::Aes => &AES_256_GCM,
        }
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// A body cipher: both directions in place, the tag apart.
pub struct Aead(LessSafeKey);

impl Aead {
    /// The AEAD of a suite for one key.
    pub fn new(suite: Suite, key: &[u8; KEY_BYTES]) -> Aead {
        // Fails for a key of another length only, which the type excludes.
        Aead(LessSafeKey::new(UnboundKey::new(suite.aead(), key).expect("32 bytes are a key")))
    }

    /// Encrypt `body` in place; the tag.
    pub fn seal(&self, counter: u64, associated: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce(counter)),
                Aad::from(associated),
                body,
            )
            // Fails above 2^36 bytes only.
            .expect("a body is short enough to seal");
        tag.as_ref().try_into().expect("both tags have 16 bytes")
    }

    /// Decrypt `body` in place; false, with `body` undefined, if it is not authentic.
    #[must_use]
    pub fn open(&self, counter: u64, associated: &[u8], tag: &[u8], body: &mut [u8]) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        self.0.open_in_place_separate_tag(nonce, Aad::from(associated), tag, body).is_ok()
    }

    /// Decrypt `sealed` to `body`, of the same length; false, with `body` undefined, if it is not authentic.
    #[must_use]
    pub fn open_to(
        &self,
        counter: u64,
        associated: &[u8],
        tag: &[u8],
        sealed: &[u8],
        body: &mut [u8],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        self.0.open_separate_gather(nonce, Aad::from(associated), sealed, tag, body).is_ok()
    }
}

/// A stream cipher: the header's, and backward the one over whole packets.
pub enum Stream {
    /// ChaCha20 is set up anew for each packet, which costs nothing; this is its key.
    ChaCha(Zeroizing<[u8; KEY_BYTES]>),
    /// AES-256-CTR with an expanded key.
    Aes(Box<EncryptingKey>),
}

impl Stream {
    /// The stream cipher of a suite for one key.
    pub fn new(suite: Suite, key: &[u8; KEY_BYTES]) -> Stream {
        match suite {
            Suite::ChaCha => Stream::ChaCha(Zeroizing::new(*key)),
            Suite::Aes => {
                let key = UnboundCipherKey::new(&AES_256, key).expect("32 bytes are a key");
                Stream::Aes(Box::new(EncryptingKey::ctr(key).expect("AES has a counter mode")))
            }
        }
    }

    /// XOR the stream of `counter`, from its beginning, into `data`.
    pub fn apply(&self, counter: u64, data: &mut [u8]) {
        match self {
            Stream::ChaCha(key) => {
                chacha20::ChaCha20::new((&**key).into(), &nonce(counter).into()).apply_keystream(data);
            }
            Stream::Aes(key) => {
                let mut block = [0; 16];
                block[..12].copy_from_slice(&nonce(counter));
                let start = EncryptionContext::Iv128(FixedLength::from(&block));
                key.less_safe_encrypt(data, start).expect("a counter block has 16 bytes");
            }
        }
    }
}
