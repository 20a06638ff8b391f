"""Who is avoided after a failure: turns failed builds and dead circuits into entries of the back-off.

A rule throughout: the guard is only blamed where nobody else can be the cause, or where builds over it
keep failing with others in the other places. Else any relay further on could drive a customer from guard
to guard.
"""

from __future__ import annotations

from collections import Counter, deque

from circuits.backoff import BackOff
from circuits.path import Path

GUARD_STRIKES = 4  # failures in a row over one guard that nobody answers for
GUARD_BROKEN = 6  # circuits over one guard that were built and then broke, ...
BROKEN_SPAN_S = 120.0  # ... within so long, ...
BROKEN_SHARE = 0.5  # ... no other relay having been on more than this share of them
GUARD_REST_S = 900.0
MAX_GUARDS_WATCHED = 64


class Blame:
    """The book of failures."""

    __slots__ = ("_backoff", "_broken", "_strikes")

    def __init__(self, backoff: BackOff) -> None:
        """Report to `backoff`."""
        self._backoff = backoff
        self._strikes: dict[bytes, int] = {}
        self._broken: dict[bytes, deque[tuple[float, tuple[bytes, ...]]]] = {}

    def note_works(self, path: Path) -> None:
        """A build succeeded, or an echo came back: everyone on the path works."""
        for node_id in path.node_ids:
            self._backoff.note_success(node_id)
        self._strikes.pop(path.node_ids[0], None)

    def note_build_failed(self, path: Path, suspects: tuple[int, ...], now: float) -> None:
        """One of `suspects` (indices) made a build fail."""
        if suspects == (0,):
            self._backoff.note_failure(path.node_ids[0], now)
            return
        for index in suspects:
            if 0 < index < len(path.node_ids):
                self._backoff.note_failure(path.node_ids[index], now)
        if 0 in suspects:
            self._strike(path.node_ids[0], now)

    def note_died(self, path: Path, now: float) -> None:
        """A circuit went silent and nobody knows at whom: all but the guard are avoided for a moment."""
        for node_id in path.node_ids[1:] or path.node_ids:
            self._backoff.note_failure(node_id, now)

    def note_broken(self, path: Path, now: float) -> bool:
        """A circuit that stood broke, its guard being reachable; True when the guard is passed over now.

        Not left to `note_works`: a guard that builds well and garbles packets would never fail there.
        """
        guard, *others = path.node_ids
        if not others:
            return False
        if len(self._broken) >= MAX_GUARDS_WATCHED:
            self._broken.clear()
        broken = self._broken.setdefault(guard, deque(maxlen=GUARD_BROKEN))
        broken.append((now, tuple(others)))
        if len(broken) < GUARD_BROKEN or now - broken[0][0] > BROKEN_SPAN_S:
            return False
        counts = Counter(node_id for _, relays in broken for node_id in relays)
        if max(counts.values()) > BROKEN_SHARE * GUARD_BROKEN:
            return False
        del self._broken[guard]
        self._backoff.rest(guard, now + GUARD_REST_S)
        return True

    def note_guard_lost(self, node_id: bytes, now: float) -> None:
        """The link to a guard failed."""
        self._strikes.pop(node_id, None)
        self._backoff.note_failure(node_id, now)

    def _strike(self, guard: bytes, now: float) -> None:
        strikes = self._strikes.get(guard, 0) + 1
        if strikes >= GUARD_STRIKES:
            self._strikes.pop(guard, None)
            self._backoff.note_failure(guard, now)
        else:
            # Guards are few; the bound only holds back a caller that changes them all the time.
            if len(self._strikes) >= 64:
                self._strikes.clear()
            self._strikes[guard] = strikes
