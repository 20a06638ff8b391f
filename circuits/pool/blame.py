"""Who is avoided after a failure: turns failed builds and dead circuits into entries of the back-off and of
the quality book.

A rule throughout: the guard is only blamed where nobody else can be the cause, or where builds over it
keep failing with others in the other places. Else any relay further on could drive a customer from guard
to guard. Being passed over for breaking circuits is an experiment with bounds: see `_Rests` and
docs/protocol/pool.md, section "Guards".
"""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum

from circuits.backoff import BackOff
from circuits.path import Path
from circuits.quality import QualityBook

GUARD_STRIKES = 4  # failures in a row over one guard that nobody answers for
GUARD_BROKEN = 6  # circuits over one guard that were built and then broke, ...
BROKEN_SPAN_S = 120.0  # ... within so long, ...
BROKEN_SHARE = 0.5  # ... no other relay having been on more than this share of them
GUARD_REST_S = 900.0
RESTS_A_DAY = 4
HOLD_FIRST_S = 3600.0  # after a guard was found innocent: none is passed over for so long, then twice ...
DAY_S = 86_400.0  # ... and at most so long
MAX_GUARDS_WATCHED = 64
UPLINK_SPAN_S = 20.0  # a guard's failure counts in the book if another one worked so shortly before


class GuardVerdict(Enum):
    """What a broken circuit means for the guard in use."""

    NOTHING = "nothing"
    PASSED_OVER = "passed over"
    TAKEN_BACK = "taken back"  # circuits break over another guard as well: it was not the first one


class _Rests:
    """The guards passed over for breaking circuits: one at a time, RESTS_A_DAY in all, and none for a while
    after it turned out that circuits break over another guard as well.

    So whoever breaks circuits from further on gets a customer to its second guard for an hour a day at most,
    and never to a third.
    """

    __slots__ = ("_began", "_hold_until", "_innocent", "guard", "until")

    def __init__(self) -> None:
        self.guard: bytes | None = None
        self.until = 0.0
        self._began: deque[float] = deque(maxlen=RESTS_A_DAY)
        self._innocent: deque[float] = deque(maxlen=8)
        self._hold_until = 0.0

    def current(self, now: float) -> bytes | None:
        """Return the guard that rests now."""
        return self.guard if now < self.until else None

    def may_begin(self, now: float) -> bool:
        """Tell whether a guard may be passed over now."""
        spent = len(self._began) == RESTS_A_DAY and now - self._began[0] < DAY_S
        return self.current(now) is None and now >= self._hold_until and not spent

    def begin(self, guard: bytes, now: float) -> None:
        """Pass a guard over."""
        self.guard, self.until = guard, now + GUARD_REST_S
        self._began.append(now)

    def end_innocent(self, now: float) -> None:
        """Take the guard back: it was not the cause."""
        self.until = now
        self._innocent.append(now)
        lately = sum(now - at < DAY_S for at in self._innocent)
        self._hold_until = now + min(DAY_S, HOLD_FIRST_S * 2 ** (lately - 1))


class Blame:
    """The book of failures. `unix_offset_s`: time of day minus the steady clock."""

    __slots__ = ("_backoff", "_broken", "_quality", "_rests", "_strikes", "_worked", "unix_offset_s")

    def __init__(
        self, backoff: BackOff, quality: QualityBook | None = None, unix_offset_s: float = 0.0
    ) -> None:
        """Report to `backoff` and `quality`."""
        self._backoff = backoff
        self._quality = quality if quality is not None else QualityBook()
        self._strikes: dict[bytes, int] = {}
        self._broken: dict[bytes, deque[tuple[float, tuple[bytes, ...]]]] = {}
        self._rests = _Rests()
        self._worked: dict[bytes, float] = {}
        self.unix_offset_s = unix_offset_s

    def note_built(self, path: Path, now: float) -> None:
        """A build succeeded: everyone on the path works."""
        self._quality.note_works(path.node_ids, now + self.unix_offset_s)
        self._note_works(path, now)

    def note_echo(self, path: Path, now: float, rtt_s: float | None) -> None:
        """An echo came back, after `rtt_s` if it was timed: everyone on the path works."""
        unix_s = now + self.unix_offset_s
        self._quality.note_alive(path.node_ids, unix_s)
        if rtt_s is not None:
            self._quality.note_round_trip(path.node_ids, rtt_s, unix_s)
        self._note_works(path, now)

    def note_rate(self, path: Path, rate_bytes_per_s: float, now: float) -> None:
        """The path carried so much."""
        self._quality.note_rate(path.node_ids, rate_bytes_per_s, now + self.unix_offset_s)

    def note_build_failed(
        self, path: Path, suspects: tuple[int, ...], now: float, *, clock: bool = False
    ) -> None:
        """One of `suspects` (indices) made a build fail. `clock`: because its clock and ours differ, which
        may be our own fault and lowers nobody's quality.
        """
        if suspects == (0,) and len(path.node_ids) > 1:
            self._backoff.note_failure(path.node_ids[0], now)
            if not clock:
                self._note_unreachable(path.node_ids[0], now)
            return
        names = [path.node_ids[index] for index in suspects if index < len(path.node_ids)]
        if names and not clock:
            self._quality.note_failed(names, now + self.unix_offset_s)
        for index in suspects:
            if index < len(path.node_ids) and (index or len(path.node_ids) == 1):
                self._backoff.note_failure(path.node_ids[index], now)
        if 0 in suspects and len(path.node_ids) > 1:
            self._strike(path.node_ids[0], now)

    def note_died(self, path: Path, now: float) -> None:
        """A circuit went silent and nobody knows at whom: all but the guard are avoided for a moment."""
        for node_id in path.node_ids[1:] or path.node_ids:
            self._backoff.note_failure(node_id, now)

    def note_broken(self, path: Path, now: float) -> GuardVerdict:
        """A circuit that stood broke, its guard being reachable.

        Not left to successes elsewhere: a guard that builds well and garbles packets would never fail there.
        """
        self._quality.note_failed(path.node_ids, now + self.unix_offset_s)
        guard, *others = path.node_ids
        if not others:
            return GuardVerdict.NOTHING
        if len(self._broken) >= MAX_GUARDS_WATCHED:
            self._broken.clear()
        broken = self._broken.setdefault(guard, deque(maxlen=GUARD_BROKEN))
        broken.append((now, tuple(others)))
        if len(broken) < GUARD_BROKEN or now - broken[0][0] > BROKEN_SPAN_S:
            return GuardVerdict.NOTHING
        counts = Counter(node_id for _, relays in broken for node_id in relays)
        if max(counts.values()) > BROKEN_SHARE * GUARD_BROKEN:
            return GuardVerdict.NOTHING
        resting = self._rests.current(now)
        if resting is not None and resting != guard:
            del self._broken[guard]
            self._backoff.end_rest(resting)
            self._rests.end_innocent(now)
            return GuardVerdict.TAKEN_BACK
        if not self._rests.may_begin(now):
            return GuardVerdict.NOTHING
        del self._broken[guard]
        self._rests.begin(guard, now)
        self._backoff.rest(guard, self._rests.until)
        return GuardVerdict.PASSED_OVER

    def resting_guard(self, now: float) -> bytes | None:
        """Return the guard that is passed over now for breaking circuits."""
        return self._rests.current(now)

    def note_guard_lost(self, node_id: bytes, now: float) -> None:
        """The link to a guard failed."""
        self._strikes.pop(node_id, None)
        self._backoff.note_failure(node_id, now)
        self._note_unreachable(node_id, now)

    def _note_works(self, path: Path, now: float) -> None:
        if len(self._worked) >= MAX_GUARDS_WATCHED:
            self._worked.clear()
        self._worked[path.node_ids[0]] = now
        for node_id in path.node_ids:
            self._backoff.note_success(node_id)
        self._strikes.pop(path.node_ids[0], None)

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

    def _note_unreachable(self, guard: bytes, now: float) -> None:
        """A guard failed: its own fault only if the line was up just now, as another guard's answers show."""
        others = (at for node_id, at in self._worked.items() if node_id != guard)
        if any(now - at < UPLINK_SPAN_S for at in others):
            self._quality.note_failed((guard,), now + self.unix_offset_s)
