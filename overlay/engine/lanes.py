"""Both lanes of every circuit on one link: fair queues out, credits in, trains and single packets.

Owns what a link and its circuits share: which circuit sends next, how many units each neighbour may still
send, and which QUIC stream belongs to which circuit. Knows nothing of keys, meters or the TUN: those are
the flows'.

Credits (docs/protocol/engine.md, "Credits"): a receiver of trains grants cumulative units per circuit,
INITIAL_WINDOW_UNITS being granted without a word. Grants travel on a unidirectional stream of their own
whose first four bytes are the reserved circuit id 0, as records ``circuit id (4) | units (8)``,
big-endian.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Protocol

from circuits.errors import DecodeError
from circuits.params import UNIT
from circuits.trains import TrainReader
from overlay.engine.interface import FlowFault
from overlay.links.backends.base import StreamLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlay.engine.queues import MemoryBudget

GRANT_CIRCUIT_ID = 0
INITIAL_WINDOW_UNITS = 512
"""About 700 KB: 70 ms of round trip at 10 MB/s.

A receiver grows it for circuits that use it up within two round trips.
"""
MAX_WINDOW_UNITS = 4096
"""About 5.6 MB: 100 ms of round trip at 56 MB/s."""
BACKLOG_HIGH_BYTES = 512 * 1024
"""A link takes no further train while QUIC holds this much that it has not sent once."""
QUANTUM_UNITS = 48
"""What one circuit may send before the next has its turn: one full train."""

_GRANT = struct.Struct(">IQ")
_ID = struct.Struct(">I")


class DataLink(Protocol):
    """What this module needs of a link (overlay.links)."""

    @property
    def rtt_s(self) -> float:
        """Smoothed round-trip time in seconds."""

    def send_datagrams(self, frames: list[bytes]) -> int:
        """Queue frames of LINK_FRAME bytes each; how many were taken."""

    def datagram_room(self) -> int:
        """How many frames may be queued now."""

    def open_stream(self) -> int:
        """A new unidirectional stream's id. Raises StreamLimitError when the peer allows no more."""

    def send_stream(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Append to a stream."""

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending on a stream."""

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to give up a stream of its own."""

    def stream_backlog(self, stream_id: int | None = None) -> int:
        """Bytes that were appended and not sent once."""

    def close(self, code: int = 0, reason: str = "") -> None:
        """Close the link."""


class End:
    """One circuit's end on one link: its outgoing lanes and its incoming credits.

    ``flow`` is asked for what to send (``pull_train``, ``pull_singles``) and given what came
    (``on_trains``, ``on_singles``).
    """

    __slots__ = (
        "circuit_id",
        "consumed",
        "flow",
        "granted_in",
        "granted_out",
        "held_bytes",
        "in_singles",
        "in_trains",
        "inbound_stream",
        "lanes",
        "last_grant_s",
        "received",
        "sent",
        "stream_id",
        "window",
    )

    def __init__(self, lanes: LinkLanes, circuit_id: int, flow: LaneFlow) -> None:
        self.lanes = lanes
        self.circuit_id = circuit_id
        self.flow = flow
        self.stream_id: int | None = None
        self.inbound_stream: int | None = None
        self.sent = 0
        self.granted_out = INITIAL_WINDOW_UNITS
        self.received = 0
        self.consumed = 0
        self.window = INITIAL_WINDOW_UNITS
        self.granted_in = INITIAL_WINDOW_UNITS
        self.last_grant_s = 0.0
        self.in_trains = False
        self.in_singles = False
        self.held_bytes = 0
        """Bytes of a train that has begun to come in: they count as memory like any that wait."""

    def want_trains(self) -> None:
        """Note that the flow has trains to send on this end."""
        if not self.in_trains and self.granted_out > self.sent:
            self.in_trains = True
            self.lanes.trains.append(self)
            self.lanes.touch()

    def want_singles(self) -> None:
        """Note that the flow has single packets to send on this end."""
        if not self.in_singles:
            self.in_singles = True
            self.lanes.singles.append(self)
            self.lanes.touch()

    def consume(self, units: int, now: float) -> None:
        """Give the peer credit back for ``units`` that went on their way."""
        self.consumed += units
        if self.consumed + self.window - self.granted_in < self.window >> 2:
            return
        if not self.lanes.budget.tight:
            # Used up within two round trips: the window is what holds this circuit back.
            if now - self.last_grant_s < 0.5 * self.lanes.link.rtt_s and self.window < MAX_WINDOW_UNITS:
                self.window *= 2
        elif self.window > INITIAL_WINDOW_UNITS:
            self.window //= 2
        self.last_grant_s = now
        granted = self.consumed + self.window
        if granted > self.granted_in:
            self.granted_in = granted
            self.lanes.grants[self.circuit_id] = granted
            self.lanes.touch()


class LaneFlow(Protocol):
    """What a flow offers to the lanes."""

    def on_trains(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Trains came in on ``end``, in order."""

    def on_singles(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Single packets came in on ``end``."""

    def pull_train(self, end: End, max_units: int, now: float) -> tuple[int, bytes] | None:
        """The next train of at most ``max_units`` units to send on ``end``, with its units; None when
        there is none that fits.
        """

    def pull_singles(self, end: End, max_packets: int, now: float) -> list[bytes]:
        """Up to ``max_packets`` single packets to send on ``end``."""

    def has_trains(self, end: End) -> bool:
        """Whether a train waits for ``end``."""

    def queued_bytes(self) -> int:
        """Bytes that wait in this flow."""

    def expire(self, now: float) -> None:
        """Erase keys that are past their time."""

    def fail(self, fault: FlowFault) -> None:
        """The lanes found a fault of this flow's peer: the flow ends."""


class LinkLanes:
    """All circuits of one link."""

    __slots__ = (
        "_grant_in",
        "_grant_out",
        "_inbound",
        "blocked",
        "budget",
        "ends",
        "grants",
        "link",
        "on_touch",
        "singles",
        "touched",
        "trains",
        "unknown_frames",
    )

    def __init__(self, link: DataLink, budget: MemoryBudget, on_touch: Callable[[LinkLanes], None]) -> None:
        self.link = link
        self.budget = budget
        self.on_touch = on_touch
        self.ends: dict[int, End] = {}
        self.trains: deque[End] = deque()
        self.singles: deque[End] = deque()
        self.grants: dict[int, int] = {}
        self.touched = False
        self.blocked = False
        self.unknown_frames = 0
        self._inbound: dict[int, _Inbound] = {}
        self._grant_out: int | None = None
        self._grant_in: bytearray | None = None

    def touch(self) -> None:
        """Have the engine pump this link before the batch ends."""
        if not self.touched:
            self.touched = True
            self.on_touch(self)

    def attach(self, circuit_id: int, flow: LaneFlow) -> End:
        """Add a circuit. Raises ValueError when the id is in use or reserved: the caller checks first."""
        if circuit_id in self.ends or circuit_id == GRANT_CIRCUIT_ID:
            raise ValueError(f"circuit id {circuit_id} is in use on this link")
        end = End(self, circuit_id, flow)
        self.ends[circuit_id] = end
        return end

    def detach(self, end: End) -> None:
        """Remove a circuit and give up its streams in both directions."""
        if self.ends.pop(end.circuit_id, None) is None:
            return
        self.grants.pop(end.circuit_id, None)
        self.budget.used_bytes -= end.held_bytes
        end.held_bytes = 0
        if end.stream_id is not None:
            self.link.reset_stream(end.stream_id, 0)
            end.stream_id = None
        if end.inbound_stream is not None:
            inbound = self._inbound.get(end.inbound_stream)
            if inbound is not None:
                inbound.end, inbound.reader, inbound.dead = None, None, True
            self.link.stop_stream(end.inbound_stream, 0)
            end.inbound_stream = None

    # -- coming in
    # ----------------------------------------------------------------------------------------------

    def on_datagrams(self, frames: Sequence[bytes], now: float) -> None:
        """Sort a batch of frames of LINK_FRAME bytes to their circuits; unknown circuits are counted and
        dropped.
        """
        first = frames[0][:4]
        for frame in frames:
            if frame[:4] != first:
                break
        else:  # the usual case: one circuit's burst
            self._singles(first, [frame[4:] for frame in frames], now)
            return
        groups: dict[bytes, list[bytes]] = {}
        for frame in frames:
            groups.setdefault(frame[:4], []).append(frame[4:])
        for key, packets in groups.items():
            self._singles(key, packets, now)

    def _singles(self, key: bytes, packets: list[bytes], now: float) -> None:
        end = self.ends.get(_ID.unpack(key)[0])
        if end is None:
            self.unknown_frames += len(packets)
        else:
            end.flow.on_singles(end, packets, now)

    def on_stream(self, stream_id: int, chunks: Sequence[bytes], fin: bool, now: float) -> None:
        """Bytes of one of the peer's unidirectional streams, in order."""
        inbound = self._inbound.get(stream_id)
        if inbound is None:
            inbound = self._inbound[stream_id] = _Inbound()
        if not inbound.dead:
            if inbound.reader is not None:
                self._frames(inbound, chunks, now)
            elif inbound.is_grants:
                self._read_grants(b"".join(chunks), now)
            else:
                self._name(stream_id, inbound, b"".join(chunks), now)
        if fin:
            self._inbound.pop(stream_id, None)
            if inbound.end is not None and not inbound.dead:
                inbound.end.inbound_stream = None
                inbound.end.flow.fail(FlowFault.STREAM_RESET)

    def on_stream_reset(self, stream_id: int) -> None:
        """The peer gave up one of its streams, or asks us to give up one of ours."""
        inbound = self._inbound.pop(stream_id, None)
        if inbound is not None:
            if inbound.end is not None and not inbound.dead:
                inbound.end.inbound_stream = None
                inbound.end.flow.fail(FlowFault.STREAM_RESET)
            return
        for end in self.ends.values():
            if end.stream_id == stream_id:
                end.flow.fail(FlowFault.STREAM_RESET)
                return

    def _name(self, stream_id: int, inbound: _Inbound, data: bytes, now: float) -> None:
        inbound.head += data
        if len(inbound.head) < 4:
            return
        circuit_id = _ID.unpack_from(inbound.head)[0]
        rest = bytes(inbound.head[4:])
        inbound.head.clear()
        if circuit_id == GRANT_CIRCUIT_ID:
            if self._grant_in is not None:
                self.link.close(1, "second stream of credits")
                return
            self._grant_in = bytearray()
            inbound.is_grants = True
            self._read_grants(rest, now)
            return
        end = self.ends.get(circuit_id)
        if end is None or end.inbound_stream is not None:
            # A circuit that was given up a moment ago, or a second stream for one: nothing to read there.
            self.unknown_frames += 1
            inbound.dead = True
            self.link.stop_stream(stream_id, 0)
            return
        end.inbound_stream = stream_id
        inbound.end = end
        inbound.reader = TrainReader()
        self._frames(inbound, (rest,), now)

    def _frames(self, inbound: _Inbound, chunks: Sequence[bytes], now: float) -> None:
        end, reader = inbound.end, inbound.reader
        assert end is not None and reader is not None
        try:
            packets = reader.feed(chunks)
        except DecodeError:
            end.flow.fail(FlowFault.BAD_FRAMING)
            return
        self.budget.used_bytes += reader.held_bytes - end.held_bytes
        end.held_bytes = reader.held_bytes
        if not packets:
            return
        end.received += sum(map(len, packets)) // UNIT
        if end.received > end.granted_in:
            end.flow.fail(FlowFault.FLOW_CONTROL)
            return
        end.flow.on_trains(end, packets, now)

    def _read_grants(self, data: bytes, now: float) -> None:
        buffer = self._grant_in
        assert buffer is not None
        buffer += data
        whole = len(buffer) - len(buffer) % _GRANT.size
        for circuit_id, units in _GRANT.iter_unpack(bytes(buffer[:whole])):
            end = self.ends.get(circuit_id)
            if end is None or units <= end.granted_out:
                continue
            if units - end.sent > 4 * MAX_WINDOW_UNITS:
                end.flow.fail(FlowFault.FLOW_CONTROL)
                continue
            end.granted_out = units
            if end.flow.has_trains(end):
                end.want_trains()
        del buffer[:whole]

    # -- going out
    # ----------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Move what waits into QUIC: credits first, then single packets, then trains, circuits taking
        turns.
        """
        self.touched = False
        link = self.link
        if self.grants:
            self._send_grants()
        singles = self.singles
        if singles:
            room = link.datagram_room()
            while singles and room > 0:
                end = singles.popleft()
                end.in_singles = False
                packets = end.flow.pull_singles(end, min(room, 64), now)
                if not packets:
                    continue
                prefix = _ID.pack(end.circuit_id)
                room -= link.send_datagrams([prefix + packet for packet in packets])
                end.in_singles = True
                singles.append(end)
        trains = self.trains
        while trains:
            if link.stream_backlog() >= BACKLOG_HIGH_BYTES:
                break
            end = trains.popleft()
            end.in_trains = False
            credit = end.granted_out - end.sent
            if credit <= 0:
                continue
            stream_id = end.stream_id
            if stream_id is None:
                if not end.flow.has_trains(end):
                    continue
                try:
                    end.stream_id = stream_id = link.open_stream()
                except StreamLimitError:
                    # An honest peer allows more streams than it takes circuits.
                    end.flow.fail(FlowFault.FLOW_CONTROL)
                    continue
                link.send_stream(stream_id, _ID.pack(end.circuit_id))
            train = end.flow.pull_train(end, min(credit, QUANTUM_UNITS), now)
            if train is None:
                continue
            units, packet = train
            link.send_stream(stream_id, bytes((units,)) + packet)
            end.sent += units
            end.in_trains = True
            trains.append(end)
        self.blocked = bool(trains or singles)

    def _send_grants(self) -> None:
        data = b"".join([_GRANT.pack(circuit_id, units) for circuit_id, units in self.grants.items()])
        self.grants.clear()
        if self._grant_out is None:
            try:
                self._grant_out = self.link.open_stream()
            except StreamLimitError:
                self.link.close(1, "no stream is allowed for credits")
                return
            data = _ID.pack(GRANT_CIRCUIT_ID) + data
        self.link.send_stream(self._grant_out, data)


class _Inbound:
    """One of the peer's unidirectional streams."""

    __slots__ = ("dead", "end", "head", "is_grants", "reader")

    def __init__(self) -> None:
        self.head = bytearray()
        self.reader: TrainReader | None = None
        self.end: End | None = None
        self.is_grants = False
        self.dead = False
