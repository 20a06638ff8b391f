"""The circuit build's key agreement: X25519 and ML-KEM-768 together, shaped like ntor-v3.

Owns: the first message's key schedule, the answer's, and the two sealed messages. Knows nothing of records,
positions or what the messages say (`circuits.building`). Specification: docs/protocol/build.md, section
"Handshake".

One round trip. The client knows the relay's identity ID (Ed25519, only bound in) and its onion key B
(X25519); the first message is readable by whoever holds B's private half (not forward secret), the answer
and everything after need, besides, both sides' ephemeral keys and the ML-KEM secret.

Randomness comes from the caller's `rng(length) -> bytes`, with one exception: `cryptography` offers no
ML-KEM encapsulation with given randomness, so `encapsulate` draws from the library's own generator. Tests
hand in a function of their own.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

Rng = Callable[[int], bytes]
Encapsulate = Callable[[bytes], tuple[bytes, bytes]]

PROTOCOL = b"hopfare build 1 x25519 mlkem768 sha256 chacha20poly1305"
KEY_BYTES = 32
NODE_ID_BYTES = 32
X25519_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184  # FIPS 203, ML-KEM-768
MLKEM_CIPHERTEXT_BYTES = 1088  # FIPS 203, ML-KEM-768
MLKEM_SEED_BYTES = 64  # d | z of FIPS 203
MAC_BYTES = 32
TAG_BYTES = 16
FIRST_OVERHEAD_BYTES = X25519_BYTES + MLKEM_PUBLIC_BYTES + TAG_BYTES  # 1232
ANSWER_OVERHEAD_BYTES = X25519_BYTES + MLKEM_CIPHERTEXT_BYTES + MAC_BYTES + TAG_BYTES  # 1168

_NONCE_0 = bytes(12)  # every key seals exactly one message
_FIRST_HEAD = X25519_BYTES + MLKEM_PUBLIC_BYTES
_ANSWER_HEAD = X25519_BYTES + MLKEM_CIPHERTEXT_BYTES


def expand(key: bytes, label: bytes) -> bytes:
    """Derive 32 bytes: HKDF-Expand-SHA256 (RFC 5869) of one block."""
    return hmac.digest(key, label + b"\x01", "sha256")


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """Make an ML-KEM-768 secret (32 bytes) and its ciphertext (1088 bytes) for a 1184-byte public key.

    Raises ValueError if the key is not one (FIPS 203's modulus check).
    """
    return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """Return the X25519 secret, or None for a peer's point of small order (all-zero result)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


class FirstKeys(NamedTuple):
    """What both sides share after the first message: the key that seals it, and one for the build's forward
    stream.
    """

    message: bytes
    forward_stream: bytes

    def __repr__(self) -> str:
        """Hide the keys."""
        return "FirstKeys(...)"


class SessionKeys(NamedTuple):
    """What both sides share after the answer; all forward secret and hybrid."""

    root: bytes
    authentication: bytes
    answer: bytes
    backward_stream: bytes

    def __repr__(self) -> str:
        """Hide the keys."""
        return "SessionKeys(...)"


def _first_keys(transcript: bytes, shared: bytes) -> FirstKeys:
    secret = hmac.digest(transcript, shared, "sha256")
    return FirstKeys(expand(secret, b"msg1"), expand(secret, b"build forward"))


def _session_keys(transcript: bytes, ephemeral: bytes, static: bytes, kem: bytes) -> SessionKeys:
    seed = hmac.digest(transcript, ephemeral + static + kem, "sha256")
    return SessionKeys(
        expand(seed, b"root"), expand(seed, b"auth"), expand(seed, b"msg2"), expand(seed, b"build backward")
    )


def _first_transcript(node_id: bytes, onion_key: bytes, head: bytes) -> bytes:
    return hashlib.sha256(PROTOCOL + node_id + onion_key + head).digest()


def _second_transcript(first: bytes, client_message: bytes, head: bytes) -> bytes:
    return hashlib.sha256(first + client_message + head).digest()


class Answered(NamedTuple):
    """A checked answer: the relay's message and the keys shared with it."""

    message: bytes
    keys: SessionKeys


class ClientHandshake:
    """The client's half with one relay. One `seal`, then one `finish`."""

    __slots__ = (
        "_decapsulation",
        "_head",
        "_message",
        "_onion_key",
        "_private",
        "_static",
        "_transcript",
        "keys",
    )

    def __init__(self, node_id: bytes, onion_key: bytes, rng: Rng) -> None:
        """Make the ephemeral keys for a relay of identity `node_id` and X25519 onion key `onion_key` (32
        bytes each).

        Draws 32, then 64 bytes from `rng`. Raises ValueError for a wrong length and for an onion key of
        small order: the caller took it from a descriptor and must have refused that.
        """
        if len(node_id) != NODE_ID_BYTES or len(onion_key) != X25519_BYTES:
            raise ValueError("a node identity and an onion key have 32 bytes each")
        self._private = X25519PrivateKey.from_private_bytes(rng(X25519_BYTES))
        self._decapsulation = MLKEM768PrivateKey.from_seed_bytes(rng(MLKEM_SEED_BYTES))
        static = _exchange(self._private, onion_key)
        if static is None:
            raise ValueError("the onion key is a point of small order")
        self._static = static
        self._head = (
            self._private.public_key().public_bytes_raw()
            + self._decapsulation.public_key().public_bytes_raw()
        )
        self._onion_key = node_id + onion_key
        self._transcript = _first_transcript(node_id, onion_key, self._head)
        self.keys = _first_keys(self._transcript, static)
        self._message = b""

    def seal(self, message: bytes, associated: bytes = b"") -> bytes:
        """Return the first message, 1232 bytes longer than `message`; `associated` must be the same at the
        relay.
        """
        self._message = message
        sealed = ChaCha20Poly1305(self.keys.message).encrypt(_NONCE_0, message, self._onion_key + associated)
        return self._head + sealed

    def finish(self, answer: bytes) -> Answered | None:
        """Check the relay's answer; None if it is not the answer of the holder of ID's onion key to this
        first message.
        """
        if len(answer) < ANSWER_OVERHEAD_BYTES:
            return None
        head = answer[:_ANSWER_HEAD]
        ephemeral = _exchange(self._private, head[:X25519_BYTES])
        if ephemeral is None:
            return None
        kem = self._decapsulation.decapsulate(head[X25519_BYTES:])
        transcript = _second_transcript(self._transcript, self._message, head)
        keys = _session_keys(transcript, ephemeral, self._static, kem)
        expected = hmac.digest(keys.authentication, transcript + b"server", "sha256")
        if not hmac.compare_digest(expected, answer[_ANSWER_HEAD : _ANSWER_HEAD + MAC_BYTES]):
            return None
        try:
            message = ChaCha20Poly1305(keys.answer).decrypt(
                _NONCE_0, answer[_ANSWER_HEAD + MAC_BYTES :], transcript
            )
        except InvalidTag:
            return None
        return Answered(message, keys)


class RelayHandshake:
    """The relay's half for one first message that opened: its text, the first keys, and the means to answer
    once.
    """

    __slots__ = (
        "_client_head",
        "_head",
        "_static",
        "_transcript",
        "_transcript_2",
        "keys",
        "message",
        "session",
    )

    def __init__(
        self, message: bytes, keys: FirstKeys, head: bytes, static: bytes, transcript: bytes
    ) -> None:
        """Made by `open_first`."""
        self.message = message
        self.keys = keys
        self.session: SessionKeys | None = None
        self._client_head = head
        self._static = static
        self._transcript = transcript
        self._head = b""
        self._transcript_2 = b""

    def agree(self, rng: Rng, encapsulate: Encapsulate = encapsulate) -> SessionKeys | None:
        """Make this side's ephemeral keys and the session keys; None if the client's ephemeral keys are no
        keys.

        Draws 32 bytes from `rng`. A second call returns the same keys.
        """
        if self.session is not None:
            return self.session
        private = X25519PrivateKey.from_private_bytes(rng(X25519_BYTES))
        ephemeral = _exchange(private, self._client_head[:X25519_BYTES])
        if ephemeral is None:
            return None
        try:
            kem, ciphertext = encapsulate(self._client_head[X25519_BYTES:])
        except ValueError:
            return None
        self._head = private.public_key().public_bytes_raw() + ciphertext
        self._transcript_2 = _second_transcript(self._transcript, self.message, self._head)
        self.session = _session_keys(self._transcript_2, ephemeral, self._static, kem)
        return self.session

    def seal(self, message: bytes) -> bytes:
        """Return the answer, 1168 bytes longer than `message`. Call once, after `agree` succeeded; else
        ValueError.
        """
        if self.session is None:
            raise ValueError("seal before agree")
        mac = hmac.digest(self.session.authentication, self._transcript_2 + b"server", "sha256")
        sealed = ChaCha20Poly1305(self.session.answer).encrypt(_NONCE_0, message, self._transcript_2)
        return self._head + mac + sealed


def open_first(
    node_id: bytes, private: X25519PrivateKey, onion_key: bytes, first: bytes, associated: bytes = b""
) -> RelayHandshake | None:
    """Open a first message with one onion key (`onion_key` is its public half, 32 bytes).

    None if it was not sealed for this identity and key with this associated text, was changed, is too short,
    or its X25519 key is a point of small order.
    """
    if len(first) < FIRST_OVERHEAD_BYTES:
        return None
    head = first[:_FIRST_HEAD]
    static = _exchange(private, head[:X25519_BYTES])
    if static is None:
        return None
    transcript = _first_transcript(node_id, onion_key, head)
    keys = _first_keys(transcript, static)
    try:
        message = ChaCha20Poly1305(keys.message).decrypt(
            _NONCE_0, first[_FIRST_HEAD:], node_id + onion_key + associated
        )
    except InvalidTag:
        return None
    return RelayHandshake(message, keys, head, static, transcript)
