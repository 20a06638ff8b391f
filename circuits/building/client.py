"""The client's side of the build: one BUILD for a whole path, and the reading of its BUILT.

Pure; one object per attempt. Specification: docs/protocol/build.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from circuits.building.crypto import BuildCrypto, Hop, Reference
from circuits.building.messages import (
    HOUR_S,
    REFUSAL_SENTENCES,
    Address,
    ClientMessage,
    ExitAddresses,
    ExitHere,
    NextHop,
    Refusal,
    RejectCode,
    ServerMessage,
    decode_server_message,
    encode_client_message,
    price_chain,
)
from circuits.building.records import MESSAGE_BYTES, RECORDS
from circuits.errors import DecodeError
from circuits.handshake import Rng

BUILD_TIMEOUT_S = 10.0  # longer than a relay's own wait for the next one, so that its refusal still arrives


@dataclass(frozen=True, slots=True)
class BuildHop:
    """One relay of the path: identity and current onion key (32 bytes each), address, and price asked in wei
    per packet.
    """

    node_id: bytes
    onion_key: bytes
    address: Address
    price_wei_per_packet: int


_ABOUT_THE_NEXT = frozenset(
    (Refusal.NEXT_UNREACHABLE, Refusal.NEXT_REFUSED, Refusal.NEXT_SILENT, Refusal.NEXT_UNREADABLE)
)


class FailureKind(Enum):
    """How a build failed."""

    REFUSED = "refused"  # a relay said no, sealed for the client
    GARBLED = "garbled"  # an answer that is not that relay's, or was changed on the way
    CLOSED = "closed"  # the circuit or the link was closed without an answer
    SILENT = "silent"  # no answer in time


@dataclass(frozen=True, slots=True)
class BuildFailed:
    """A failed build. `hop`: index of the relay that refused or whose answer was bad; 0 where only the first
    link spoke.

    `suspects`: indices of the relays one of which caused it. `refusal` is set for REFUSED. `sentence` is for
    the user.
    """

    kind: FailureKind
    hop: int
    suspects: tuple[int, ...]
    refusal: Refusal | None
    sentence: str


@dataclass(frozen=True, slots=True)
class BuildDone:
    """A circuit: the root keys (32 bytes each, first hop first) and what the exit gave."""

    roots: tuple[bytes, ...]
    addresses: ExitAddresses

    def __repr__(self) -> str:
        """Hide the keys."""
        return f"BuildDone(hops={len(self.roots)})"


class ClientBuild:
    """One attempt to build a circuit. Send `records` as BUILD to the first relay, then feed one of the
    `handle_` calls.
    """

    def __init__(
        self,
        hops: Sequence[BuildHop],
        wanted: ExitHere,
        *,
        suite: int,
        lifetime_s: int,
        rng: Rng,
        now: float,
        unix_s: float,
        timeout_s: float = BUILD_TIMEOUT_S,
        crypto: BuildCrypto | None = None,
    ) -> None:
        """Seal a BUILD for 1 to 4 relays, all different. `now`: steady clock; `unix_s`: time of day.

        The ciphers are those of `crypto`, or the reference's with randomness of `rng`. Raises ValueError for
        a wrong number of hops, a repeated relay, an unusable onion key, and prices or a lifetime out of
        range.
        """
        if not 1 <= len(hops) <= RECORDS:
            raise ValueError(f"a path has 1 to {RECORDS} relays")
        if len({hop.node_id for hop in hops}) != len(hops):
            raise ValueError("a path may not use one relay twice")
        self.prices = price_chain([hop.price_wei_per_packet for hop in hops])
        self.deadline = now + timeout_s
        self._hops = len(hops)
        self._over = False
        hour = int(unix_s // HOUR_S)
        sealed = []
        for index, (price_in, price_out) in enumerate(self.prices):
            last = index == len(hops) - 1
            what = wanted if last else NextHop(hops[index + 1].node_id, hops[index + 1].address)
            message = ClientMessage(suite, hour, lifetime_s, price_in, price_out, what)
            sealed.append(Hop(hops[index].node_id, hops[index].onion_key, encode_client_message(message)))
        self._sealed = (crypto or Reference(rng)).seal(sealed)
        self.records = self._sealed.records

    def handle_built(self, records: bytes) -> BuildDone | BuildFailed | None:
        """Read the BUILT. None if this build is over already. A failed circuit is to be destroyed by the
        driver.
        """
        if self._over:
            return None
        self._over = True
        if len(records) != MESSAGE_BYTES:
            return self._garbled(0, "the answer has a wrong length")
        roots = []
        last = self._hops - 1
        opened = self._sealed.open(records)
        for index in range(self._hops):
            if index >= len(opened):
                return self._garbled(index, "its answer was changed on the way or is not its own")
            message, intact, root = opened[index]
            try:
                answer = decode_server_message(message)
            except DecodeError:
                return self._garbled(index, "its answer makes no sense")
            if not intact:
                return self._garbled(index, "what followed its answer was changed on the way")
            if answer.refusal is not None:
                return self._refused(index, answer.refusal, answer.text)
            if (answer.exit is not None) != (index == last):
                return self._garbled(index, "its answer does not fit its place in the path")
            roots.append(root)
        addresses = _exit_addresses(answer)
        return BuildDone(tuple(roots), addresses)

    def handle_closed(self, code: int | None = None) -> BuildFailed | None:
        """Take a Destroy from the first relay (with its code), or the loss of its link (None)."""
        if self._over:
            return None
        self._over = True
        if code is None:
            sentence = "hop 1: the link to it was lost while the circuit was being built"
        elif code == RejectCode.UNREADABLE:
            sentence = "hop 1: it could not read the request (is the directory out of date?)"
        elif code == RejectCode.BUSY:
            sentence = "hop 1: it has too much to do"
        else:
            sentence = f"hop 1: it closed the circuit without an answer (code {code})"
        return BuildFailed(FailureKind.CLOSED, 0, (0,), None, sentence)

    def handle_timeout(self, now: float) -> BuildFailed | None:
        """Fail if the deadline has passed; None before it, and once the build is over."""
        if self._over or now < self.deadline:
            return None
        self._over = True
        everyone = tuple(range(self._hops))
        return BuildFailed(FailureKind.SILENT, 0, everyone, None, "no answer from the path in time")

    def next_timeout(self) -> float | None:
        """Return the deadline, or None once the build is over."""
        return None if self._over else self.deadline

    def _garbled(self, hop: int, what: str) -> BuildFailed:
        suspects = (hop,) if hop == 0 else (hop - 1, hop)
        return BuildFailed(FailureKind.GARBLED, hop, suspects, None, f"hop {hop + 1}: {what}")

    def _refused(self, hop: int, refusal: Refusal, text: str) -> BuildFailed:
        onward = refusal in _ABOUT_THE_NEXT
        suspects = tuple(i for i in (hop, hop + 1) if i < self._hops) if onward else (hop,)
        if refusal is Refusal.NEXT_SILENT:
            suspects = tuple(range(hop, self._hops))
        sentence = f"hop {hop + 1}: {REFUSAL_SENTENCES[refusal]}" + (f" ({text})" if text else "")
        return BuildFailed(FailureKind.REFUSED, hop, suspects, refusal, sentence)


def _exit_addresses(answer: ServerMessage) -> ExitAddresses:
    assert answer.exit is not None, "checked for the last hop"
    return answer.exit
