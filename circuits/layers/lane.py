"""What the parts of a lane share: its two kinds, commands, sizes, and the count of failures that breaks
it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from circuits.keychain import (
    BACKWARD,
    BACKWARD_STREAM,
    FORWARD,
    FORWARD_STREAM,
    OrderedReceiveChain,
    ReceiveChain,
    WindowReceiveChain,
)
from circuits.params import (
    DATAGRAM_FAILURES_LIMIT,
    MAX_TRAIN_BYTES,
    STREAM_FAILURES_LIMIT,
    UNIT,
)
from circuits.suites import Suite, get_suite

LANE_DATAGRAM: Final = 1
"""Single packets of one unit, in any order."""
LANE_STREAM: Final = 2
"""Packets of 1 to MAX_TRAIN_UNITS units, in order."""


class Command(IntEnum):
    """What a client tells a hop to do with a packet: pass it on, take its body, or drop it (cover
    traffic)."""

    FORWARD = 0
    DELIVER = 1
    DROP = 2


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A forward packet that proved authentic. `data`: FORWARD the next link's packet, DELIVER the body,
    DROP nothing."""

    command: Command
    data: bytes


class Lane:
    """One hop's part in one direction and lane. Once `broken`, it opens and makes nothing more: destroy the
    circuit."""

    __slots__ = ("_failures_limit", "_sizes", "_suite", "broken", "dropped", "failures")

    def __init__(self, suite: int, lane: int) -> None:
        """Raises ValueError for a suite or lane that there is not."""
        if lane not in (LANE_DATAGRAM, LANE_STREAM):
            raise ValueError(f"no lane has the number {lane!r}")
        self._suite: Suite = get_suite(suite)
        self._sizes = range(UNIT, (UNIT if lane == LANE_DATAGRAM else MAX_TRAIN_BYTES) + 1, UNIT)
        self._failures_limit = DATAGRAM_FAILURES_LIMIT if lane == LANE_DATAGRAM else STREAM_FAILURES_LIMIT
        self.failures = 0
        """Packets that no honest neighbour sends: wrong length, not authentic, or of no epoch in reach."""
        self.dropped = 0
        """Packets that came too late or twice, and were dropped without blame (datagram lane only)."""
        self.broken = False

    def _fail(self) -> None:
        self.failures += 1
        if self.failures >= self._failures_limit:
            self.broken = True

    def _refuse(self, chain: ReceiveChain, counter: int) -> None:
        """Count a packet for which `chain` has no keys."""
        if chain.is_old(counter):
            self.dropped += 1
        else:
            self._fail()


def forward_label(lane: int) -> str:
    """The label of the forward key chain of a lane."""
    return FORWARD if lane == LANE_DATAGRAM else FORWARD_STREAM


def backward_label(lane: int) -> str:
    """The label of the backward key chain of a lane."""
    return BACKWARD if lane == LANE_DATAGRAM else BACKWARD_STREAM


def checked_receive_chain(root: bytes, label: str, suite: Suite, lane: int) -> ReceiveChain:
    """The receiver of a lane that accepts no counter twice."""
    if lane == LANE_DATAGRAM:
        return WindowReceiveChain(root, label, suite)
    return OrderedReceiveChain(root, label, suite)
