"""The relay's side of the build: opens a BUILD, says what to do next, and makes the BUILT.

Pure. `handle_build` returns one of

    Reject      not readable, replayed, or no room: nothing can be sealed; send Destroy with the code to the
    previous link Refuse      readable but refused by the protocol's own rules: send `.records` as BUILT and
    forget the circuit Extend      reach `.next` and send it `.records` as BUILD on a new circuit id; then,
    one of handle_built(pending, records)   its BUILT came refuse(pending, reason, text)    it cannot be
    reached, closed the circuit, prices do not suit, ... handle_timeout(now)              it stays silent
    BecomeExit  then accept_exit(pending, addresses) or refuse(pending, reason, text)

The driver's own rules (price, addresses, which relays it may go on to) come after `handle_build` and are
told by `refuse`. A relay does not learn its place, the path's length, or whether the relays behind it
accepted. Specification: docs/protocol/build.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from circuits.building.messages import (
    HOUR_S,
    VERSION,
    ClientMessage,
    ExitAddresses,
    ExitHere,
    NextHop,
    Refusal,
    RejectCode,
    ServerMessage,
    decode_client_message,
    decode_version,
    encode_server_message,
)
from circuits.building.onion_keys import OnionKeys
from circuits.building.records import MESSAGE_BYTES, RECORD_BYTES, RECORDS, apply_stream, digests
from circuits.building.replay import HOURS_EITHER_SIDE, ReplayMemory
from circuits.errors import DecodeError
from circuits.handshake import X25519_BYTES, Encapsulate, RelayHandshake, Rng, encapsulate, open_first

REPLY_TIMEOUT_S = (
    8.0  # longer than a driver's attempt to dial (3 s), so that the relay next to the fault names it
)
MAX_PENDING = 4096  # builds under way at once: about 6 KB each


class PendingBuild:
    """One build under way at this relay. Opaque but for `request`, `root`, `deadline`."""

    __slots__ = ("_handshake", "deadline", "request", "root")

    def __init__(
        self, handshake: RelayHandshake, root: bytes, request: ClientMessage, deadline: float
    ) -> None:
        """Made by RelayBuild."""
        self._handshake = handshake
        self.root = root
        self.request = request
        self.deadline = deadline

    def seal(self, message: ServerMessage) -> bytes:
        """Return the record that answers; for RelayBuild."""
        return self._handshake.seal(encode_server_message(message))

    @property
    def handshake(self) -> RelayHandshake:
        """Return the key agreement; for RelayBuild."""
        return self._handshake


@dataclass(frozen=True, slots=True)
class Reject:
    """Give the circuit up without a sealed answer."""

    code: RejectCode


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send `records` back as BUILT, then forget the circuit. `pending` is None where the driver never saw
    one.
    """

    records: bytes
    refusal: Refusal
    pending: PendingBuild | None


@dataclass(frozen=True, slots=True)
class Extend:
    """Carry the circuit on. `records` is the BUILD for the next relay."""

    pending: PendingBuild
    next: NextHop
    records: bytes


@dataclass(frozen=True, slots=True)
class BecomeExit:
    """The circuit ends here; `wanted` is what the client proposes."""

    pending: PendingBuild
    wanted: ExitHere


@dataclass(frozen=True, slots=True)
class Built:
    """Send `records` back as BUILT and carry the circuit's packets with the root of `pending`."""

    records: bytes
    pending: PendingBuild


class RelayBuild:
    """All builds of one relay. Bounded by `max_pending` and the replay memory's capacity."""

    def __init__(
        self,
        node_id: bytes,
        keys: OnionKeys,
        suites: Collection[int],
        rng: Rng,
        *,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        max_pending: int = MAX_PENDING,
        memory: ReplayMemory | None = None,
        encapsulate: Encapsulate = encapsulate,
    ) -> None:
        """Set up for the relay of identity `node_id`; `rng` must be fit for keys. `suites`: the cipher
        suites it offers.
        """
        self._node_id = node_id
        self._keys = keys
        self._suites = frozenset(suites)
        self._rng = rng
        self._reply_timeout_s = reply_timeout_s
        self._max_pending = max_pending
        self._memory = memory if memory is not None else ReplayMemory(rng)
        self._encapsulate = encapsulate
        # Insertion order is deadline order, because all have the same time-out.
        self._pending: dict[PendingBuild, None] = {}

    @property
    def pending_count(self) -> int:
        """Return how many builds wait for the next relay or the driver."""
        return len(self._pending)

    @property
    def keys(self) -> OnionKeys:
        """The onion keys in use."""
        return self._keys

    def set_keys(self, keys: OnionKeys) -> None:
        """Use these onion keys from now on."""
        self._keys = keys

    def handle_build(
        self, records: bytes, now: float, unix_s: float
    ) -> Reject | Refuse | Extend | BecomeExit:
        """Open a BUILD (5952 bytes) from a neighbour.

        `now` is a steady clock for the time-out, `unix_s` the time of day for the client's hour. What is
        rejected costs at most one hash (wrong length, full, replayed) or one X25519 for each onion key
        (unreadable).
        """
        if len(records) != MESSAGE_BYTES:
            return Reject(RejectCode.MALFORMED)
        if len(self._pending) >= self._max_pending:
            return Reject(RejectCode.BUSY)
        if self._memory.contains(records[:X25519_BYTES]):
            return Reject(RejectCode.REPLAYED)
        first, others = records[:RECORD_BYTES], records[RECORD_BYTES:]
        for key in self._keys.readable():
            handshake = open_first(self._node_id, key.private, key.public, first, others)
            if handshake is not None:
                break
        else:
            return Reject(RejectCode.UNREADABLE)
        session = handshake.agree(self._rng, self._encapsulate)
        if session is None:
            return Reject(RejectCode.UNREADABLE)
        try:
            if decode_version(handshake.message) != VERSION:
                return self._refuse_at_once(
                    handshake, Refusal.VERSION, f"this relay speaks version {VERSION}"
                )
            request = decode_client_message(handshake.message)
        except DecodeError as error:
            return self._refuse_at_once(handshake, Refusal.MALFORMED, str(error))
        refusal = self._check(request, records[:X25519_BYTES], int(unix_s // HOUR_S))
        if refusal is not None:
            return self._refuse_at_once(handshake, *refusal)
        pending = PendingBuild(handshake, session.root, request, now + self._reply_timeout_s)
        self._pending[pending] = None
        if isinstance(request.what, ExitHere):
            return BecomeExit(pending, request.what)
        onward = apply_stream(handshake.keys.forward_stream, others + bytes(RECORD_BYTES))
        return Extend(pending, request.what, onward)

    def accept_exit(self, pending: PendingBuild, addresses: ExitAddresses) -> Built | None:
        """Accept as the exit with these inner addresses; None if the build is over already (time-out,
        forgotten).
        """
        return self._accept(pending, self._rng((RECORDS - 1) * RECORD_BYTES), addresses)

    def handle_built(self, pending: PendingBuild, records: bytes) -> Built | Refuse | None:
        """Take the BUILT of the next relay, and accept; a BUILT of a wrong length becomes a refusal.

        None if the build is over already. Whether the relays behind accepted stays hidden: a client that
        finds a refusal destroys the circuit.
        """
        if len(records) != MESSAGE_BYTES:
            return self.refuse(pending, Refusal.NEXT_REFUSED, "the next relay's answer has a wrong length")
        session = pending.handshake.session
        assert session is not None, "a pending build has agreed on keys"
        others = apply_stream(session.backward_stream, records[: (RECORDS - 1) * RECORD_BYTES])
        return self._accept(pending, others, None)

    def refuse(self, pending: PendingBuild, refusal: Refusal, text: str = "") -> Refuse | None:
        """Refuse for the driver's reason; `text` (160 bytes at most) is for the client's user. None if the
        build is over.
        """
        if pending not in self._pending:
            return None
        del self._pending[pending]
        return Refuse(self._refusal_records(pending.handshake, refusal, text), refusal, pending)

    def handle_next_closed(self, pending: PendingBuild, code: int | None = None) -> Refuse | None:
        """Take a Destroy of the next relay (with its code) or the loss of the link to it (None); refuse
        accordingly.
        """
        if code is None:
            return self.refuse(pending, Refusal.NEXT_UNREACHABLE, "the link was lost")
        if code == RejectCode.UNREADABLE:
            return self.refuse(pending, Refusal.NEXT_UNREADABLE)
        return self.refuse(pending, Refusal.NEXT_REFUSED, f"code {code}")

    def forget(self, pending: PendingBuild) -> None:
        """Drop a build whose previous link is gone or destroyed it. Harmless if it is over."""
        self._pending.pop(pending, None)

    def handle_timeout(self, now: float) -> list[Refuse]:
        """Refuse every build whose next relay (or driver) stayed silent too long."""
        due = []
        for pending in self._pending:
            if pending.deadline > now:
                break
            due.append(pending)
        results = []
        for pending in due:
            result = self.refuse(pending, Refusal.NEXT_SILENT)
            if result is not None:
                results.append(result)
        return results

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` has something to do, or None."""
        return next((pending.deadline for pending in self._pending), None)

    def _check(self, request: ClientMessage, x: bytes, hour: int) -> tuple[Refusal, str] | None:
        if abs(request.hour - hour) > HOURS_EITHER_SIDE:
            return Refusal.CLOCK, f"relay's clock: hour {hour}, client's: hour {request.hour}"
        if not self._memory.remember(x, request.hour, hour):
            return Refusal.BUSY, "too many builds in the last hours"
        if request.suite not in self._suites:
            return Refusal.SUITE, "suites offered: " + ", ".join(str(suite) for suite in sorted(self._suites))
        if isinstance(request.what, NextHop) and request.what.node_id == self._node_id:
            return Refusal.NEXT_FORBIDDEN, "the next relay is this one"
        return None

    def _accept(self, pending: PendingBuild, others: bytes, addresses: ExitAddresses | None) -> Built | None:
        if pending not in self._pending:
            return None
        del self._pending[pending]
        reply = pending.seal(ServerMessage(None, "", digests(others), addresses))
        return Built(reply + others, pending)

    def _refuse_at_once(self, handshake: RelayHandshake, refusal: Refusal, text: str) -> Refuse:
        return Refuse(self._refusal_records(handshake, refusal, text), refusal, None)

    def _refusal_records(self, handshake: RelayHandshake, refusal: Refusal, text: str) -> bytes:
        others = self._rng((RECORDS - 1) * RECORD_BYTES)
        return (
            handshake.seal(encode_server_message(ServerMessage(refusal, text, digests(others), None)))
            + others
        )
