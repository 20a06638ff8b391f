//! The circuit build's ciphers: both sides of the handshake, and the records of BUILD and BUILT
//! (docs/protocol/build.md). `circuits/handshake.py` and `circuits/building/crypto.py` are its reference.
//!
//! Knows what is sealed as bytes only: what a build says and whether it is accepted is Python's. Randomness is
//! aws-lc's. Keys are overwritten when dropped.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, CHACHA20_POLY1305};
use aws_lc_rs::agreement::{agree, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use aws_lc_rs::{constant_time, digest, hmac, rand};
use chacha20::cipher::{KeyIvInit, StreamCipher};
use zeroize::Zeroizing;

use crate::keychain::Secret;
use crate::params::{KEY_BYTES, N_MAX, TAG_BYTES};

/// Records of a message: the longest path.
pub const RECORDS: usize = N_MAX;
/// Bytes of one record.
pub const RECORD_BYTES: usize = 1488;
/// Bytes of BUILD and of BUILT.
pub const MESSAGE_BYTES: usize = RECORDS * RECORD_BYTES;
/// Bytes of the three records behind the first.
pub const OTHERS_BYTES: usize = MESSAGE_BYTES - RECORD_BYTES;
/// Bytes of what the client tells one relay.
pub const CLIENT_MESSAGE_BYTES: usize = RECORD_BYTES - FIRST_HEAD - TAG_BYTES;
/// Bytes of a relay's answer.
pub const SERVER_MESSAGE_BYTES: usize = RECORD_BYTES - ANSWER_HEAD - MAC_BYTES - TAG_BYTES;
/// Where an answer has its digests.
pub const DIGESTS_AT: usize = 4;
const DIGEST_BYTES: usize = 16;
const MLKEM_PUBLIC_BYTES: usize = 1184;
const MLKEM_CIPHERTEXT_BYTES: usize = 1088;
const FIRST_HEAD: usize = KEY_BYTES + MLKEM_PUBLIC_BYTES;
const ANSWER_HEAD: usize = KEY_BYTES + MLKEM_CIPHERTEXT_BYTES;
const MAC_BYTES: usize = 32;
const PROTOCOL: &[u8] = b"hopfare build 1 x25519 mlkem768 sha256 chacha20poly1305";

/// A whole BUILD or BUILT.
pub type Message = [u8; MESSAGE_BYTES];
type Key = [u8; KEY_BYTES];

fn hash(parts: &[&[u8]]) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn mac(key: &Key, parts: &[&[u8]]) -> Secret {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    Zeroizing::new(context.sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes"))
}

/// HKDF-Expand-SHA256 (RFC 5869) of one block.
fn expand(key: &Key, label: &[u8]) -> Secret {
    mac(key, &[label, &[1]])
}

/// The X25519 secret; None for a peer's point of small order.
fn exchange(private: &PrivateKey, public: &[u8]) -> Option<Secret> {
    agree(private, UnparsedPublicKey::new(&X25519, public), (), |secret| {
        Ok(Zeroizing::new(secret.try_into().map_err(|_| ())?))
    })
    .ok()
}

fn public_bytes(private: &PrivateKey) -> Option<Key> {
    private.compute_public_key().ok()?.as_ref().try_into().ok()
}

fn aead(key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key"))
}

/// Every key seals exactly one message.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// XOR the ChaCha20 stream of a key, from its beginning.
fn apply_stream(key: &Key, data: &mut [u8]) {
    chacha20::ChaCha20::new(key.into(), &[0; 12].into()).apply_keystream(data);
}

/// The digests of the first, the first two and all three records of `others`.
fn digests(others: &[u8]) -> [u8; (RECORDS - 1) * DIGEST_BYTES] {
    let mut running = digest::Context::new(&digest::SHA256);
    let mut result = [0; (RECORDS - 1) * DIGEST_BYTES];
    for (place, record) in result.chunks_exact_mut(DIGEST_BYTES).zip(others.chunks_exact(RECORD_BYTES)) {
        running.update(record);
        place.copy_from_slice(&running.clone().finish().as_ref()[..DIGEST_BYTES]);
    }
    result
}

struct FirstKeys {
    message: Secret,
    forward_stream: Secret,
}

fn first_keys(transcript: &Key, shared: &Key) -> FirstKeys {
    let secret = mac(transcript, &[shared]);
    FirstKeys { message: expand(&secret, b"msg1"), forward_stream: expand(&secret, b"build forward") }
}

struct SessionKeys {
    root: Secret,
    authentication: Secret,
    answer: Secret,
    backward_stream: Secret,
}

fn session_keys(transcript: &Key, ephemeral: &Key, fixed: &Key, kem: &[u8]) -> SessionKeys {
    let seed = mac(transcript, &[ephemeral, fixed, kem]);
    SessionKeys {
        root: expand(&seed, b"root"),
        authentication: expand(&seed, b"auth"),
        answer: expand(&seed, b"msg2"),
        backward_stream: expand(&seed, b"build backward"),
    }
}

/// A client's ephemeral keys for one relay; may be made long before they are used, once.
pub struct Ephemeral {
    private: PrivateKey,
    decapsulation: DecapsulationKey,
    head: [u8; FIRST_HEAD],
}

impl Ephemeral {
    /// New keys; None when the library has none, which it has.
    pub fn generate() -> Option<Ephemeral> {
        let private = PrivateKey::generate(&X25519).ok()?;
        let decapsulation = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let mut head = [0; FIRST_HEAD];
        head[..KEY_BYTES].copy_from_slice(&public_bytes(&private)?);
        let public = decapsulation.encapsulation_key().ok()?.key_bytes().ok()?;
        head[KEY_BYTES..].copy_from_slice(public.as_ref());
        Some(Ephemeral { private, decapsulation, head })
    }
}

struct ClientHop {
    keys: Ephemeral,
    fixed: Secret,
    transcript: Key,
    message: [u8; CLIENT_MESSAGE_BYTES],
}

/// One hop's answer as the client finds it.
pub struct Answer {
    /// What the relay says.
    pub message: [u8; SERVER_MESSAGE_BYTES],
    /// Whether the records that reach the client from there are those that it sent.
    pub intact: bool,
    /// The key shared with it.
    pub root: Secret,
}

/// A client's half of one build.
pub struct ClientBuild(Vec<ClientHop>);

impl ClientBuild {
    /// Seal one client message for each relay, given as (identity, onion key, message), 1 to 4. None for an onion
    /// key of small order.
    pub fn seal(
        hops: &[(Key, Key, [u8; CLIENT_MESSAGE_BYTES])],
        mut keys: impl FnMut() -> Option<Ephemeral>,
    ) -> Option<(ClientBuild, Box<Message>)> {
        debug_assert!((1..=RECORDS).contains(&hops.len()));
        let count = hops.len();
        let mut states = Vec::with_capacity(count);
        let mut firsts = Vec::with_capacity(count);
        let mut streams = Vec::with_capacity(count);
        for (node_id, onion_key, message) in hops {
            let keys = keys()?;
            let fixed = exchange(&keys.private, onion_key)?;
            let transcript = hash(&[PROTOCOL, node_id, onion_key, &keys.head]);
            let first = first_keys(&transcript, &fixed);
            let mut stream = Zeroizing::new(vec![0; MESSAGE_BYTES]);
            apply_stream(&first.forward_stream, &mut stream);
            states.push(ClientHop { keys, fixed, transcript, message: *message });
            firsts.push(first);
            streams.push(stream);
        }
        // What the relays before the last append, as it arrives there: the end of the message.
        let mut filler: Vec<u8> = Vec::with_capacity(OTHERS_BYTES);
        for (index, stream) in streams[..count - 1].iter().enumerate() {
            filler.resize((index + 1) * RECORD_BYTES, 0);
            let at = MESSAGE_BYTES - filler.len();
            xor(&mut filler, &stream[at..]);
        }
        let mut whole = Box::new([0; MESSAGE_BYTES]);
        let unused = MESSAGE_BYTES - filler.len();
        rand::fill(&mut whole[RECORD_BYTES..unused]).ok()?;
        whole[unused..].copy_from_slice(&filler);
        for index in (0..count).rev() {
            if index < count - 1 {
                xor(&mut whole[..], &streams[index]);
                whole.copy_within(..OTHERS_BYTES, RECORD_BYTES);
            }
            let (node_id, onion_key, message) = &hops[index];
            let mut associated = [0; 2 * KEY_BYTES + OTHERS_BYTES];
            associated[..KEY_BYTES].copy_from_slice(node_id);
            associated[KEY_BYTES..2 * KEY_BYTES].copy_from_slice(onion_key);
            associated[2 * KEY_BYTES..].copy_from_slice(&whole[RECORD_BYTES..]);
            let record = &mut whole[..RECORD_BYTES];
            record[..FIRST_HEAD].copy_from_slice(&states[index].keys.head);
            let (body, tag_place) = record[FIRST_HEAD..].split_at_mut(CLIENT_MESSAGE_BYTES);
            body.copy_from_slice(message);
            let tag = aead(&firsts[index].message)
                .seal_in_place_separate_tag(nonce(), Aad::from(&associated[..]), body)
                .ok()?;
            tag_place.copy_from_slice(tag.as_ref());
        }
        Some((ClientBuild(states), whole))
    }

    /// Open a BUILT: the answers of the first hops, as many as are theirs.
    pub fn open(&self, built: &Message) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(self.0.len());
        let mut rest = *built;
        for (index, hop) in self.0.iter().enumerate() {
            let Some((message, keys)) = hop.finish(&rest[..RECORD_BYTES]) else { break };
            let reaching = RECORDS - 1 - index;
            let others = &rest[RECORD_BYTES..RECORD_BYTES + reaching * RECORD_BYTES];
            let intact = reaching == 0 || {
                let end = DIGESTS_AT + reaching * DIGEST_BYTES;
                hash(&[others])[..DIGEST_BYTES] == message[end - DIGEST_BYTES..end]
            };
            answers.push(Answer { message, intact, root: keys.root });
            rest.copy_within(RECORD_BYTES.., 0);
            apply_stream(&keys.backward_stream, &mut rest[..OTHERS_BYTES]);
        }
        answers
    }
}

impl ClientHop {
    fn finish(&self, answer: &[u8]) -> Option<([u8; SERVER_MESSAGE_BYTES], SessionKeys)> {
        let (head, sealed) = answer.split_at(ANSWER_HEAD);
        let ephemeral = exchange(&self.keys.private, &head[..KEY_BYTES])?;
        let kem = self.keys.decapsulation.decapsulate(Ciphertext::from(&head[KEY_BYTES..])).ok()?;
        let transcript = hash(&[&self.transcript, &self.message, head]);
        let keys = session_keys(&transcript, &ephemeral, &self.fixed, kem.as_ref());
        let expected = mac(&keys.authentication, &[&transcript, b"server"]);
        let (authenticator, sealed) = sealed.split_at(MAC_BYTES);
        constant_time::verify_slices_are_equal(&*expected, authenticator).ok()?;
        let (body, tag) = sealed.split_at(SERVER_MESSAGE_BYTES);
        let mut message = [0; SERVER_MESSAGE_BYTES];
        aead(&keys.answer)
            .open_separate_gather(nonce(), Aad::from(&transcript[..]), body, tag, &mut message)
            .ok()?;
        Some((message, keys))
    }
}

/// A relay's identity and one of its onion keys.
pub struct OnionKey {
    node_id: Key,
    private: PrivateKey,
    public: Key,
}

impl OnionKey {
    /// From the identity and the key's 32 secret bytes.
    pub fn new(node_id: Key, secret: &Key) -> Option<OnionKey> {
        let private = PrivateKey::from_private_key(&X25519, secret).ok()?;
        let public = public_bytes(&private)?;
        Some(OnionKey { node_id, private, public })
    }
}

/// A relay's half of one build that opened: the client's message, and the means to answer once.
pub struct RelayBuild {
    /// What the client says.
    pub message: [u8; CLIENT_MESSAGE_BYTES],
    forward_stream: Secret,
    head: [u8; ANSWER_HEAD],
    transcript: Key,
    session: SessionKeys,
}

impl RelayBuild {
    /// Open a BUILD with the first of `keys` that fits it. None if none does, it was changed, or the client's keys are
    /// no keys.
    pub fn open<'a>(keys: impl IntoIterator<Item = &'a OnionKey>, build: &Message) -> Option<RelayBuild> {
        keys.into_iter().find_map(|key| Self::open_first(key, build))?.agree(build)
    }

    fn open_first(key: &OnionKey, build: &Message) -> Option<Opened> {
        let (head, sealed) = build[..RECORD_BYTES].split_at(FIRST_HEAD);
        let fixed = exchange(&key.private, &head[..KEY_BYTES])?;
        let transcript = hash(&[PROTOCOL, &key.node_id, &key.public, head]);
        let keys = first_keys(&transcript, &fixed);
        let mut associated = [0; 2 * KEY_BYTES + OTHERS_BYTES];
        associated[..KEY_BYTES].copy_from_slice(&key.node_id);
        associated[KEY_BYTES..2 * KEY_BYTES].copy_from_slice(&key.public);
        associated[2 * KEY_BYTES..].copy_from_slice(&build[RECORD_BYTES..]);
        let (body, tag) = sealed.split_at(CLIENT_MESSAGE_BYTES);
        let mut message = [0; CLIENT_MESSAGE_BYTES];
        aead(&keys.message)
            .open_separate_gather(nonce(), Aad::from(&associated[..]), body, tag, &mut message)
            .ok()?;
        Some(Opened { message, fixed, transcript, forward_stream: keys.forward_stream })
    }

    /// The key shared with the client.
    pub fn root(&self) -> &Key {
        &self.session.root
    }

    /// The BUILD for the next relay, of the one that was opened.
    pub fn onward(&self, build: &Message) -> Box<Message> {
        let mut onward = Box::new([0; MESSAGE_BYTES]);
        onward[..OTHERS_BYTES].copy_from_slice(&build[RECORD_BYTES..]);
        apply_stream(&self.forward_stream, &mut onward[..]);
        onward
    }

    /// The BUILT that says `message`, whose digests are filled in, before the next relay's BUILT or random bytes.
    /// Call once.
    pub fn answer(
        &self,
        mut message: [u8; SERVER_MESSAGE_BYTES],
        built: Option<&Message>,
    ) -> Option<Box<Message>> {
        let mut whole = Box::new([0; MESSAGE_BYTES]);
        let (record, others) = whole.split_at_mut(RECORD_BYTES);
        match built {
            Some(built) => {
                others.copy_from_slice(&built[..OTHERS_BYTES]);
                apply_stream(&self.session.backward_stream, others);
            }
            None => rand::fill(others).ok()?,
        }
        let own = digests(others);
        message[DIGESTS_AT..DIGESTS_AT + own.len()].copy_from_slice(&own);
        record[..ANSWER_HEAD].copy_from_slice(&self.head);
        let (authenticator, sealed) = record[ANSWER_HEAD..].split_at_mut(MAC_BYTES);
        authenticator.copy_from_slice(&*mac(&self.session.authentication, &[&self.transcript, b"server"]));
        let (body, tag_place) = sealed.split_at_mut(SERVER_MESSAGE_BYTES);
        body.copy_from_slice(&message);
        let tag = aead(&self.session.answer)
            .seal_in_place_separate_tag(nonce(), Aad::from(&self.transcript[..]), body)
            .ok()?;
        tag_place.copy_from_slice(tag.as_ref());
        Some(whole)
    }
}

struct Opened {
    message: [u8; CLIENT_MESSAGE_BYTES],
    fixed: Secret,
    transcript: Key,
    forward_stream: Secret,
}

impl Opened {
    fn agree(self, build: &Message) -> Option<RelayBuild> {
        let private = PrivateKey::generate(&X25519).ok()?;
        let ephemeral = exchange(&private, &build[..KEY_BYTES])?;
        let public = EncapsulationKey::new(&ML_KEM_768, &build[KEY_BYTES..FIRST_HEAD]).ok()?;
        let (ciphertext, kem) = public.encapsulate().ok()?;
        let mut head = [0; ANSWER_HEAD];
        head[..KEY_BYTES].copy_from_slice(&public_bytes(&private)?);
        head[KEY_BYTES..].copy_from_slice(ciphertext.as_ref());
        let transcript = hash(&[&self.transcript, &self.message, &head]);
        let session = session_keys(&transcript, &ephemeral, &self.fixed, kem.as_ref());
        let Opened { message, forward_stream, .. } = self;
        Some(RelayBuild { message, forward_stream, head, transcript, session })
    }
}

fn xor(into: &mut [u8], with: &[u8]) {
    for (left, right) in into.iter_mut().zip(with) {
        *left ^= right;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay() -> (Key, Key, OnionKey) {
        let (mut node_id, mut secret) = ([0; 32], [0; 32]);
        rand::fill(&mut node_id).unwrap();
        rand::fill(&mut secret).unwrap();
        let key = OnionKey::new(node_id, &secret).unwrap();
        (node_id, key.public, key)
    }

    /// All relays' halves of a build, and the client's BUILT.
    fn run(count: usize, spoil: impl Fn(usize, &mut Message)) -> (Vec<Answer>, Vec<Key>) {
        let relays: Vec<_> = (0..count).map(|_| relay()).collect();
        let hops: Vec<_> = relays
            .iter()
            .enumerate()
            .map(|(at, relay)| (relay.0, relay.1, [at as u8; CLIENT_MESSAGE_BYTES]))
            .collect();
        let (client, mut message) = ClientBuild::seal(&hops, Ephemeral::generate).unwrap();
        let mut opened = Vec::new();
        for (at, relay) in relays.iter().enumerate() {
            let build = RelayBuild::open([&relay.2], &message).unwrap();
            assert_eq!(build.message, [at as u8; CLIENT_MESSAGE_BYTES]);
            message = build.onward(&message);
            opened.push(build);
        }
        let mut built: Option<Box<Message>> = None;
        for (at, build) in opened.iter().enumerate().rev() {
            let mut own = build.answer([at as u8; SERVER_MESSAGE_BYTES], built.as_deref()).unwrap();
            spoil(at, &mut own);
            built = Some(own);
        }
        (client.open(&built.unwrap()), opened.iter().map(|build| *build.root()).collect())
    }

    #[test]
    fn every_length_of_path_agrees_on_its_keys() {
        for count in 1..=RECORDS {
            let (answers, roots) = run(count, |_, _| {});
            assert_eq!(answers.len(), count);
            for (at, (answer, root)) in answers.iter().zip(&roots).enumerate() {
                assert!(answer.intact);
                assert_eq!(*answer.root, *root);
                assert_eq!(answer.message[0], at as u8);
            }
        }
    }

    #[test]
    fn a_changed_build_does_not_open() {
        let (node_id, public, key) = relay();
        let (_, message) =
            ClientBuild::seal(&[(node_id, public, [7; CLIENT_MESSAGE_BYTES])], Ephemeral::generate).unwrap();
        for at in [0, 40, FIRST_HEAD + 3, RECORD_BYTES - 1, RECORD_BYTES, MESSAGE_BYTES - 1] {
            let mut changed = *message;
            changed[at] ^= 1;
            assert!(RelayBuild::open([&key], &changed).is_none(), "byte {at}");
        }
        let (_, _, other) = relay();
        assert!(RelayBuild::open([&other], &message).is_none());
        assert!(RelayBuild::open([&other, &key], &message).is_some());
    }

    #[test]
    fn a_client_with_no_keys_is_refused() {
        let (_, _, key) = relay();
        let mut message = [0; MESSAGE_BYTES];
        rand::fill(&mut message).unwrap();
        message[..KEY_BYTES].fill(0);
        assert!(RelayBuild::open([&key], &message).is_none());
        assert!(exchange(&PrivateKey::generate(&X25519).unwrap(), &[0; KEY_BYTES]).is_none());
    }

    #[test]
    fn a_changed_answer_is_seen_where_it_was_changed() {
        let (answers, _) = run(3, |at, built| {
            if at == 1 {
                built[RECORD_BYTES + 5] ^= 1;
            }
        });
        // Hop 1 digested what it got, hop 2's digests are of what it sent, hop 3's own record is broken.
        assert_eq!(answers.iter().map(|answer| answer.intact).collect::<Vec<_>>(), [true, false]);
        let (answers, _) = run(2, |at, built| {
            if at == 0 {
                built[0] ^= 1;
            }
        });
        assert!(answers.is_empty());
    }
}
