"""The ciphers of a build as whole messages: what makes, opens and answers BUILD, not what it says.

Owns the records: which key seals which, what a relay appends, what drops out. `Reference` does it with the
handshake of `circuits.handshake`; the native engine's crate does the same in one call for each message,
behind the same protocols. Neither knows what a message means. Specification: docs/protocol/build.md,
"Forward" and "Backward".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from circuits.building.messages import DIGESTS_AT
from circuits.building.onion_keys import OnionKeys
from circuits.building.records import (
    DIGESTS_BYTES,
    MESSAGE_BYTES,
    RECORD_BYTES,
    RECORDS,
    apply_stream,
    digest_matches,
    digests,
)
from circuits.handshake import ClientHandshake, Encapsulate, RelayHandshake, Rng, encapsulate, open_first


class Hop(NamedTuple):
    """One relay of a build: identity and onion key (32 bytes each), and the client message for it (256)."""

    node_id: bytes
    onion_key: bytes
    message: bytes


Answer = tuple[bytes, bool, bytes]
"""A relay's answer that opened: its server message (320 bytes), whether the records behind it are those that
it sent, and the root key shared with it.
"""


class SealedBuild(Protocol):
    """A client's half of one build."""

    @property
    def records(self) -> bytes:
        """The BUILD, 5952 bytes."""

    def open(self, built: bytes) -> Sequence[Answer]:
        """Open a BUILT of 5952 bytes: the answers of the first hops, as many as are those hops' own."""


class OpenedBuild(Protocol):
    """A relay's half of one BUILD that opened."""

    @property
    def message(self) -> bytes:
        """The client message, 256 bytes."""

    @property
    def root(self) -> bytes:
        """The 32-byte key shared with the client, if this relay accepts."""

    def onward(self, build: bytes) -> bytes:
        """Return the BUILD for the next relay, of the one that was opened."""

    def answer(self, message: bytes, built: bytes | None) -> bytes:
        """Return the BUILT with this server message (320 bytes, its digests are filled in) before the next
        relay's BUILT, or before random bytes. Call once.
        """


class BuildCrypto(Protocol):
    """Makes both halves."""

    def prepare(self, hops: int) -> None:
        """Make a client's ephemeral keys for the next build of so many relays, in a moment in which nobody
        waits.
        """

    def seal(self, hops: Sequence[Hop]) -> SealedBuild:
        """Seal a BUILD for 1 to 4 relays. Raises ValueError for an onion key that is none."""

    def load_keys(self, node_id: bytes, keys: OnionKeys) -> Any:
        """Return a relay's keys in the form that `open` takes."""

    def open(self, keys: Any, build: bytes) -> OpenedBuild | None:
        """Open a BUILD of 5952 bytes, with the first key that fits; None if none does, or the client's own
        keys are no keys.
        """


class Reference:
    """`BuildCrypto` by `circuits.handshake`."""

    def __init__(self, rng: Rng, encapsulate: Encapsulate = encapsulate) -> None:
        """`rng` must be fit for keys."""
        self._rng = rng
        self._encapsulate = encapsulate

    def prepare(self, hops: int) -> None:
        """Nothing is made ahead: what is drawn from `rng` comes in the order of the builds."""

    def seal(self, hops: Sequence[Hop]) -> SealedBuild:
        """Draw from `rng` 96 bytes for each hop, then 1488 for each unused record. Raises ValueError for an
        onion key of a wrong length or small order.
        """
        handshakes = [ClientHandshake(hop.node_id, hop.onion_key, self._rng) for hop in hops]
        streams = [
            apply_stream(handshake.keys.forward_stream, bytes(MESSAGE_BYTES)) for handshake in handshakes
        ]
        filler = b""
        for index, stream in enumerate(streams[:-1], start=1):
            filler = _xor(filler + bytes(RECORD_BYTES), stream[(RECORDS - index) * RECORD_BYTES :])
        rest = self._rng((RECORDS - len(hops)) * RECORD_BYTES) + filler
        message = b""
        for index in reversed(range(len(hops))):
            if message:
                rest = _xor(message, streams[index])[: (RECORDS - 1) * RECORD_BYTES]
            message = handshakes[index].seal(hops[index].message, rest) + rest
        return _Sealed(handshakes, message)

    def load_keys(self, node_id: bytes, keys: OnionKeys) -> Any:
        """Return what `open` takes."""
        return node_id, keys

    def open(self, keys: Any, build: bytes) -> OpenedBuild | None:
        """See ``BuildCrypto``; draws 32 bytes from `rng` where one opens."""
        node_id, own = keys
        first, others = build[:RECORD_BYTES], build[RECORD_BYTES:]
        for key in own.readable():
            handshake = open_first(node_id, key.private, key.public, first, others)
            if handshake is not None:
                session = handshake.agree(self._rng, self._encapsulate)
                return None if session is None else _Opened(handshake, session.root, self._rng)
        return None


class _Sealed:
    __slots__ = ("_handshakes", "records")

    def __init__(self, handshakes: Sequence[ClientHandshake], records: bytes) -> None:
        self._handshakes = handshakes
        self.records = records

    def open(self, built: bytes) -> Sequence[Answer]:
        """See ``SealedBuild``."""
        answers: list[Answer] = []
        for index, handshake in enumerate(self._handshakes):
            answered = handshake.finish(built[:RECORD_BYTES])
            if answered is None:
                break
            others = built[RECORD_BYTES:]
            own = answered.message[DIGESTS_AT : DIGESTS_AT + DIGESTS_BYTES]
            intact = digest_matches(own, others, RECORDS - 1 - index)
            answers.append((answered.message, intact, answered.keys.root))
            built = apply_stream(answered.keys.backward_stream, others)
        return answers


class _Opened:
    __slots__ = ("_handshake", "_rng", "message", "root")

    def __init__(self, handshake: RelayHandshake, root: bytes, rng: Rng) -> None:
        self._handshake = handshake
        self._rng = rng
        self.message = handshake.message
        self.root = root

    def onward(self, build: bytes) -> bytes:
        """See ``OpenedBuild``."""
        return apply_stream(self._handshake.keys.forward_stream, build[RECORD_BYTES:] + bytes(RECORD_BYTES))

    def answer(self, message: bytes, built: bytes | None) -> bytes:
        """See ``OpenedBuild``."""
        count = (RECORDS - 1) * RECORD_BYTES
        session = self._handshake.session
        assert session is not None, "an opened build has agreed on keys"
        others = self._rng(count) if built is None else apply_stream(session.backward_stream, built[:count])
        filled = message[:DIGESTS_AT] + digests(others) + message[DIGESTS_AT + DIGESTS_BYTES :]
        return self._handshake.seal(filled) + others


def _xor(left: bytes, right: bytes) -> bytes:
    """XOR two byte strings of one length."""
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
