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

from circuits.building.crypto import BuildCrypto, OpenedBuild, Reference
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
from circuits.building.records import DIGESTS_BYTES, MESSAGE_BYTES
from circuits.building.replay import HOURS_EITHER_SIDE, ReplayMemory
from circuits.errors import DecodeError
from circuits.handshake import X25519_BYTES, Encapsulate, Rng, encapsulate

REPLY_TIMEOUT_S = (
    8.0  # longer than a driver's attempt to dial (3 s), so that the relay next to the fault names it
)
_NO_DIGESTS = bytes(DIGESTS_BYTES)  # the ciphers fill them in
MAX_PENDING = 4096  # builds under way at once: about 6 KB each


class PendingBuild:
    """One build under way at this relay. Opaque but for `request`, `root`, `deadline`."""

    __slots__ = ("deadline", "opened", "request", "root")

    def __init__(self, opened: OpenedBuild, request: ClientMessage, deadline: float) -> None:
        """Made by RelayBuild; `opened` is for it alone."""
        self.opened = opened
        self.root = opened.root
        self.request = request
        self.deadline = deadline


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
        crypto: BuildCrypto | None = None,
    ) -> None:
        """Set up for the relay of identity `node_id`; `rng` must be fit for keys. `suites`: the cipher
        suites it offers. The ciphers are those of `crypto`, or the reference's with `rng` and `encapsulate`.
        """
        self._node_id = node_id
        self._keys = keys
        self._suites = frozenset(suites)
        self._crypto = crypto or Reference(rng, encapsulate)
        self._loaded = self._crypto.load_keys(node_id, keys)
        self._reply_timeout_s = reply_timeout_s
        self._max_pending = max_pending
        self._memory = memory if memory is not None else ReplayMemory(rng)
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
        self._loaded = self._crypto.load_keys(self._node_id, keys)

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
        opened = self._crypto.open(self._loaded, records)
        if opened is None:
            return Reject(RejectCode.UNREADABLE)
        told = opened.message
        try:
            if decode_version(told) != VERSION:
                return self._refuse_at_once(opened, Refusal.VERSION, f"this relay speaks version {VERSION}")
            request = decode_client_message(told)
        except DecodeError as error:
            return self._refuse_at_once(opened, Refusal.MALFORMED, str(error))
        refusal = self._check(request, records[:X25519_BYTES], int(unix_s // HOUR_S))
        if refusal is not None:
            return self._refuse_at_once(opened, *refusal)
        pending = PendingBuild(opened, request, now + self._reply_timeout_s)
        self._pending[pending] = None
        if isinstance(request.what, ExitHere):
            return BecomeExit(pending, request.what)
        return Extend(pending, request.what, opened.onward(records))

    def accept_exit(self, pending: PendingBuild, addresses: ExitAddresses) -> Built | None:
        """Accept as the exit with these inner addresses; None if the build is over already (time-out,
        forgotten).
        """
        return self._accept(pending, None, addresses)

    def handle_built(self, pending: PendingBuild, records: bytes) -> Built | Refuse | None:
        """Take the BUILT of the next relay, and accept; a BUILT of a wrong length becomes a refusal.

        None if the build is over already. Whether the relays behind accepted stays hidden: a client that
        finds a refusal destroys the circuit.
        """
        if len(records) != MESSAGE_BYTES:
            return self.refuse(pending, Refusal.NEXT_REFUSED, "the next relay's answer has a wrong length")
        return self._accept(pending, records, None)

    def refuse(self, pending: PendingBuild, refusal: Refusal, text: str = "") -> Refuse | None:
        """Refuse for the driver's reason; `text` (160 bytes at most) is for the client's user. None if the
        build is over.
        """
        if pending not in self._pending:
            return None
        del self._pending[pending]
        return Refuse(_refusal_records(pending.opened, refusal, text), refusal, pending)

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

    def _accept(
        self, pending: PendingBuild, built: bytes | None, addresses: ExitAddresses | None
    ) -> Built | None:
        if pending not in self._pending:
            return None
        del self._pending[pending]
        message = encode_server_message(ServerMessage(None, "", _NO_DIGESTS, addresses))
        return Built(pending.opened.answer(message, built), pending)

    def _refuse_at_once(self, opened: OpenedBuild, refusal: Refusal, text: str) -> Refuse:
        return Refuse(_refusal_records(opened, refusal, text), refusal, None)


def _refusal_records(opened: OpenedBuild, refusal: Refusal, text: str) -> bytes:
    return opened.answer(encode_server_message(ServerMessage(refusal, text, _NO_DIGESTS, None)), None)
