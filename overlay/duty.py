"""What a relay's operator lets it do: how much a month, and when it takes no more circuits.

Pure: totals and times in, a decision out. Does not own circuits (the switch does) nor the file that the
count is kept in.

=========  ============================================================================================
duty       what a relay does
=========  ============================================================================================
OPEN       takes new circuits
DRAINING   refuses new ones, says so in its descriptor, and carries on those it has
SHUT       carries nothing: the month's cap is reached; it opens again when the next month begins (UTC)
=========  ============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

import msgspec

from overlay.errors import DecodeError

WIRE_BYTES_PER_PACKET = 1480
"""A packet of 1384 bytes with its share of frames, QUIC, UDP and IP headers and acknowledgements."""
DRAIN_SHARE_PERCENT = 95
"""Of the cap: from there no new circuits are taken, so that those there are can end by themselves."""
MAX_USAGE_BYTES = 256
NOTICE_S = 3.0
"""A relay that leaves says so in its descriptor first, and gossip takes a second."""


class Duty(Enum):
    """What a relay does with circuits."""

    OPEN = "open"
    DRAINING = "draining"
    SHUT = "shut"


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    month: str
    carried_bytes: int


@dataclass(slots=True)
class Usage:
    """What was carried in a calendar month (UTC)."""

    month: str = ""
    """Such as ``2026-11``."""
    carried_bytes: int = 0

    def encode(self) -> bytes:
        """As it is stored."""
        return msgspec.json.encode(_Stored(self.month, self.carried_bytes))


def decode_usage(data: bytes) -> Usage:
    """Read a stored usage. Raises DecodeError for anything else."""
    try:
        stored = msgspec.json.decode(data, type=_Stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"no stored usage: {error}") from None
    if stored.carried_bytes < 0 or len(stored.month) > 16:
        raise DecodeError("no stored usage")
    return Usage(stored.month, stored.carried_bytes)


class DutyRoster:
    """Decides a relay's duty from what it has carried and what its operator asked."""

    def __init__(self, usage: Usage, cap_bytes: int) -> None:
        """``cap_bytes`` a month, both ways together; 0 for no cap."""
        self.usage = usage
        self.cap_bytes = cap_bytes
        self.drain_until_s: float | None = None
        self._drain_since_s = 0.0
        self._seen_packets = 0

    def note_carried(self, total_packets: int, unix_s: float) -> None:
        """Count what has been carried since the last call; ``total_packets`` since the start only grows.

        A clock that goes back to an earlier month does not begin that month anew.
        """
        month = datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m")
        if month > self.usage.month:
            self.usage.month, self.usage.carried_bytes = month, 0
        self.usage.carried_bytes += max(0, total_packets - self._seen_packets) * WIRE_BYTES_PER_PACKET
        self._seen_packets = max(self._seen_packets, total_packets)

    def drain(self, now: float, limit_s: float) -> None:
        """The operator wants to stop: no new circuits, and an end `limit_s` from now at the latest."""
        self._drain_since_s, self.drain_until_s = now, now + limit_s

    @property
    def duty(self) -> Duty:
        """What the relay does now."""
        if self.cap_bytes and self.usage.carried_bytes >= self.cap_bytes:
            return Duty.SHUT
        near = self.cap_bytes and self.usage.carried_bytes * 100 >= self.cap_bytes * DRAIN_SHARE_PERCENT
        if near or self.drain_until_s is not None:
            return Duty.DRAINING
        return Duty.OPEN

    def may_stop(self, circuits: int, now: float) -> bool:
        """Whether a drained relay can end: its last circuit is gone and others know, or its time is over."""
        if self.drain_until_s is None:
            return False
        return now >= self.drain_until_s or (circuits == 0 and now >= self._drain_since_s + NOTICE_S)

    def explain(self) -> str:
        """A sentence for the operator, empty while the relay is open."""
        if self.duty is Duty.SHUT:
            return "this month's cap (relay.monthly_cap) is reached: nothing is carried until next month"
        if self.drain_until_s is not None:
            return "it is draining: it stops when its last circuit has ended"
        if self.duty is Duty.DRAINING:
            return (
                f"{DRAIN_SHARE_PERCENT} % of this month's cap (relay.monthly_cap) is used: no new circuits "
                "are taken"
            )
        return ""
