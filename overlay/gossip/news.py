"""Announcements: what this node has to tell, and what others told of that it is fetching."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from overlay.gossip.limits import GossipLimits

MAX_OTHERS = 4
"""Peers remembered that announced the same: they are asked if the first does not answer."""
PEER_SHARE = 8
"""One peer's announcements may take one part in so many of what is fetched at a time."""


@dataclass(slots=True)
class _Wanted:
    """An announced descriptor that is being fetched."""

    asked: int
    deadline: float
    others: list[int] = field(default_factory=list)


class News:
    """One node's announcements. Peers are the driver's integers, descriptors their short hashes."""

    def __init__(self, limits: GossipLimits) -> None:
        """Begin with nothing to tell and nothing to fetch."""
        self._limits = limits
        self._wanted: dict[bytes, _Wanted] = {}
        """In the order of their deadlines."""
        self._asked: dict[int, int] = {}
        """How many are being fetched from each peer."""
        self._told: dict[bytes, int] = {}
        """What is to be announced, and the peer it came from (-1: this node itself)."""
        self._tell_at: float | None = None

    @property
    def wanted_count(self) -> int:
        """How many descriptors are being fetched."""
        return len(self._wanted)

    def next_timeout(self) -> float | None:
        """When `take_news` or `take_overdue` is wanted; None for never."""
        times = [] if self._tell_at is None else [self._tell_at]
        if self._wanted:
            times.append(next(iter(self._wanted.values())).deadline)
        return min(times) if times else None

    # -- telling --

    def announce(self, short: bytes, source: int, now: float) -> None:
        """Something new is held, and is to be told to all partners but its source."""
        self._told[short] = source
        if self._tell_at is None:
            self._tell_at = now + self._limits.announce_delay_s

    def take_news(self, now: float) -> dict[bytes, int]:
        """Return what is to be announced now, with its sources."""
        if self._tell_at is None or now < self._tell_at:
            return {}
        told, self._told, self._tell_at = self._told, {}, None
        return told

    # -- fetching --

    def want(self, short: bytes, peer: int, now: float) -> bool:
        """A peer announced what is not held. Tells whether to ask that peer for it now."""
        wanted = self._wanted.get(short)
        if wanted is not None:
            if peer != wanted.asked and peer not in wanted.others and len(wanted.others) < MAX_OTHERS:
                wanted.others.append(peer)
            return False
        most = self._limits.max_wanted
        if len(self._wanted) >= most or self._asked.get(peer, 0) >= most // PEER_SHARE:
            return False
        self._add(short, _Wanted(peer, now + self._limits.want_timeout_s))
        return True

    def take_arrived(self, short: bytes, peer: int) -> bool:
        """Tell whether what a peer sent was asked for; it is not wanted any more."""
        wanted = self._wanted.get(short)
        if wanted is None or (wanted.asked != peer and peer not in wanted.others):
            return False
        self._drop(short)
        return True

    def take_overdue(self, now: float, peers: Container[int]) -> list[tuple[int, bytes]]:
        """Return whom else of `peers` to ask for what did not come in time; forget what nobody else has."""
        again = []
        for short, wanted in list(self._wanted.items()):
            if now < wanted.deadline:
                break
            again += self._ask_another(short, now, peers)
        return again

    def handle_gone(self, peer: int, now: float, peers: Container[int]) -> list[tuple[int, bytes]]:
        """A peer's link is gone: return whom else of `peers` to ask for what it was asked for."""
        again = []
        for short, wanted in list(self._wanted.items()):
            if wanted.asked == peer:
                again += self._ask_another(short, now, peers)
        return again

    def _ask_another(self, short: bytes, now: float, peers: Container[int]) -> list[tuple[int, bytes]]:
        wanted = self._drop(short)
        while wanted.others:
            peer = wanted.others.pop(0)
            if peer in peers:
                self._add(short, _Wanted(peer, now + self._limits.want_timeout_s, wanted.others))
                return [(peer, short)]
        return []

    def _add(self, short: bytes, wanted: _Wanted) -> None:
        self._wanted[short] = wanted
        self._asked[wanted.asked] = self._asked.get(wanted.asked, 0) + 1

    def _drop(self, short: bytes) -> _Wanted:
        wanted = self._wanted.pop(short)
        left = self._asked[wanted.asked] - 1
        if left:
            self._asked[wanted.asked] = left
        else:
            del self._asked[wanted.asked]
        return wanted
