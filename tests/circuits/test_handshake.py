import hashlib
import hmac
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import handshake

NODE_ID = b"\x07" * 32
SECRET = bytes(range(32))
PRIVATE = X25519PrivateKey.from_private_bytes(SECRET)
ONION_KEY = PRIVATE.public_key().public_bytes_raw()
# Points of small order, from RFC 7748's security considerations and the list of the libraries that refuse
# them.
SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def seeded(seed: int) -> handshake.Rng:
    return random.Random(seed).randbytes


def start(seed: int = 1, message: bytes = b"to the relay", associated: bytes = b"rest"):
    client = handshake.ClientHandshake(NODE_ID, ONION_KEY, seeded(seed))
    return client, client.seal(message, associated)


def test_both_sides_agree():
    client, first = start()
    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, first, b"rest")
    assert relay is not None
    assert relay.message == b"to the relay"
    assert relay.keys == client.keys
    session = relay.agree(seeded(2))
    assert session is not None
    assert relay.agree(seeded(3)) is session
    answered = client.finish(relay.seal(b"to the client"))
    assert answered is not None
    assert answered.message == b"to the client"
    assert answered.keys == session
    assert len({session.root, session.answer, session.authentication, session.backward_stream}) == 4


def test_sizes():
    client, first = start(message=b"m" * 10)
    assert len(first) == 10 + handshake.FIRST_OVERHEAD_BYTES == 10 + 1232
    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, first, b"rest")
    relay.agree(seeded(2))
    answer = relay.seal(b"m" * 10)
    assert len(answer) == 10 + handshake.ANSWER_OVERHEAD_BYTES == 10 + 1168
    assert client.finish(answer) is not None


def test_key_schedule_follows_the_document():
    """The schedule written a second time from docs/protocol/build.md, with another HKDF and the KEM's own
    secret.
    """
    client, first = start(seed=9)
    rng = seeded(9)
    x, dk = X25519PrivateKey.from_private_bytes(rng(32)), MLKEM768PrivateKey.from_seed_bytes(rng(64))
    head = first[: 32 + 1184]
    assert head == x.public_key().public_bytes_raw() + dk.public_key().public_bytes_raw()

    def expand(key: bytes, info: bytes) -> bytes:
        return HKDFExpand(SHA256(), 32, info).derive(key)

    th = hashlib.sha256(handshake.PROTOCOL + NODE_ID + ONION_KEY + head).digest()
    static = PRIVATE.exchange(x.public_key())
    secret = hmac.new(th, static, hashlib.sha256).digest()
    assert client.keys.forward_stream == expand(secret, b"build forward")
    opened = ChaCha20Poly1305(expand(secret, b"msg1")).decrypt(
        bytes(12), first[1216:], NODE_ID + ONION_KEY + b"rest"
    )
    assert opened == b"to the relay"

    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, first, b"rest")
    session = relay.agree(seeded(4))
    answer = relay.seal(b"hello")
    y, ct, mac, sealed = answer[:32], answer[32:1120], answer[1120:1152], answer[1152:]
    th2 = hashlib.sha256(th + b"to the relay" + y + ct).digest()
    shared = x.exchange(X25519PublicKey.from_public_bytes(y)) + static + dk.decapsulate(ct)
    seed = hmac.new(th2, shared, hashlib.sha256).digest()
    assert session.root == expand(seed, b"root")
    assert session.backward_stream == expand(seed, b"build backward")
    assert mac == hmac.new(expand(seed, b"auth"), th2 + b"server", hashlib.sha256).digest()
    assert ChaCha20Poly1305(expand(seed, b"msg2")).decrypt(bytes(12), sealed, th2) == b"hello"


def test_first_message_of_small_order_is_refused():
    _, first = start()
    for point in SMALL_ORDER:
        assert handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, point + first[32:], b"rest") is None


def test_answer_of_small_order_is_refused():
    for point in SMALL_ORDER:
        client, first = start()
        relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, first, b"rest")
        relay.agree(seeded(2))
        assert client.finish(point + relay.seal(b"x")[32:]) is None


def test_onion_key_of_small_order_or_wrong_length_is_our_misuse():
    for point in [*SMALL_ORDER, b"short"]:
        with pytest.raises(ValueError):
            handshake.ClientHandshake(NODE_ID, point, seeded(1))


def test_bad_kem_key_is_refused_by_the_relay():
    """A client that seals correctly over a key outside the field gets no answer, and raises nothing."""

    class BadKem(handshake.ClientHandshake):
        def __init__(self) -> None:
            super().__init__(NODE_ID, ONION_KEY, seeded(1))
            self._head = self._head[:32] + b"\xff" * 1184
            self._transcript = handshake._first_transcript(NODE_ID, ONION_KEY, self._head)
            self.keys = handshake._first_keys(self._transcript, self._static)

    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, BadKem().seal(b"m"))
    assert relay is not None
    assert relay.agree(seeded(2)) is None


@pytest.mark.parametrize(
    ("node_id", "associated"), [(b"\x08" * 32, b"rest"), (NODE_ID, b"rest "), (NODE_ID, b"")]
)
def test_other_identity_or_associated_text_does_not_open(node_id, associated):
    _, first = start()
    assert handshake.open_first(node_id, PRIVATE, ONION_KEY, first, associated) is None


@settings(max_examples=60, print_blob=True, deadline=None)
@given(st.integers(0, 1243), st.integers(1, 255))
def test_any_changed_byte_of_the_first_message_is_refused(position, change):
    _, first = start()
    changed = bytearray(first)
    changed[position] ^= change
    assert handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, bytes(changed), b"rest") is None


@settings(max_examples=60, print_blob=True, deadline=None)
@given(st.integers(0, 1179), st.integers(1, 255))
def test_any_changed_byte_of_the_answer_is_refused(position, change):
    client, first = start()
    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, first, b"rest")
    relay.agree(seeded(2))
    changed = bytearray(relay.seal(b"to the relay"))
    changed[position] ^= change
    assert client.finish(bytes(changed)) is None


@settings(max_examples=60, print_blob=True, deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_is_refused_on_both_sides(garbage):
    client, _ = start()
    assert handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, garbage) is None
    assert client.finish(garbage) is None


def test_answer_to_another_first_message_is_refused():
    client, _ = start(seed=1)
    _, other = start(seed=5)
    relay = handshake.open_first(NODE_ID, PRIVATE, ONION_KEY, other, b"rest")
    relay.agree(seeded(2))
    assert client.finish(relay.seal(b"x")) is None


def test_relay_without_the_onion_key_cannot_answer():
    """An impostor that knows everything but b: it can neither open the message nor make an answer that
    passes.
    """
    impostor = X25519PrivateKey.from_private_bytes(b"\x55" * 32)
    _, first = start()
    assert handshake.open_first(NODE_ID, impostor, ONION_KEY, first, b"rest") is None


def test_keys_do_not_show_in_repr():
    client, _first = start()
    assert "..." in repr(client.keys)
    assert client.keys.message.hex() not in repr(client.keys)
    assert repr(client.keys.message) not in repr(client.keys)
