"""Is a circuit alive, how fast, how lossy: echoes sent, echoes back, anything else heard.

One object per circuit. Pure: the pool asks when an echo is due and what silence means.
"""

from __future__ import annotations

from circuits.pool.types import PoolSettings

_OUTSTANDING = 8  # echoes remembered; an older one's answer no longer counts
_SLOW_FACTOR = 3.0  # slow: this many times the best round trip seen ...
_SLOW_EXTRA_S = 0.3  # ... and this much more,
_SLOW_COUNT = 4  # so many times in a row
_LOSSY = 0.3


class Health:
    """Liveness and round trip of one circuit."""

    __slots__ = (
        "_answered_at",
        "_awaiting_since",
        "_last_sent",
        "_outstanding",
        "_probes",
        "_settings",
        "_slow",
        "best_rtt_s",
        "last_activity",
        "last_heard",
        "last_rtt_s",
        "loss",
        "lost",
        "rtt_s",
        "sent",
    )

    def __init__(self, settings: PoolSettings, now: float) -> None:
        """Start at the moment the circuit was built, which is a sign of life."""
        self._settings = settings
        self._outstanding: dict[bytes, float] = {}
        self._answered_at: float | None = None
        self._awaiting_since: float | None = None
        self._probes = 0
        self._last_sent: float | None = None
        self._slow = 0
        self.last_heard = now
        self.last_activity = now
        self.rtt_s: float | None = None
        self.last_rtt_s: float | None = None
        self.best_rtt_s: float | None = None
        self.loss = 0.0
        self.lost = 0  # echoes, of `sent` whose end is known
        self.sent = 0

    def note_sent_echo(self, token: bytes, now: float) -> None:
        """Count an echo that goes out now."""
        if len(self._outstanding) >= _OUTSTANDING:
            self._note_lost(self._outstanding.pop(next(iter(self._outstanding))))
        self._outstanding[token] = now
        self._last_sent = now
        if self._awaiting_since is None:
            self._awaiting_since = now
            self._probes = 0
        self._probes += 1

    def note_echo(self, token: bytes, now: float) -> bool:
        """Take an echo that came back; False if it is none of ours or too old."""
        sent = self._outstanding.pop(token, None)
        if sent is None:
            return False
        rtt_s = self.last_rtt_s = max(0.0, now - sent)
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) / 8
        self.best_rtt_s = rtt_s if self.best_rtt_s is None else min(self.best_rtt_s, rtt_s)
        slow = rtt_s > self.best_rtt_s * _SLOW_FACTOR + _SLOW_EXTRA_S
        self._slow = self._slow + 1 if slow else 0
        if self._answered_at is None:
            self._answered_at = now
        self._note_outcome(lost=False)
        # The order is kept, so what was sent before this one and is still out is lost or late.
        for older in [t for t, at in self._outstanding.items() if at < sent]:
            self._note_lost(self._outstanding.pop(older))
        self.note_heard(now)
        return True

    def note_heard(self, now: float) -> None:
        """Take anything authentic from the exit as a sign of life."""
        self.last_heard = max(self.last_heard, now)
        self._awaiting_since = None
        self._probes = 0

    def is_suspect(self, now: float) -> bool:
        """Tell whether the silence is too long for new flows."""
        since = self._awaiting_since
        return since is not None and self._probes >= 2 and now - since >= self._settings.suspect_s

    def is_dead(self, now: float) -> bool:
        """Tell whether the silence is too long altogether."""
        since = self._awaiting_since
        # Never on one echo alone: after a stall of this very process the answer may lie unread.
        return since is not None and self._probes >= 3 and now - since >= self._settings.dead_s

    def is_slow(self) -> bool:
        """Tell whether the circuit became much slower than it was, or loses much."""
        return self._slow >= _SLOW_COUNT or self.loss > _LOSSY

    def next_echo(self, leases: int, now: float) -> float:
        """Return when the next echo is due, for a circuit with so many leases."""
        settings = self._settings
        if self._last_sent is None:
            return now
        if self._awaiting_since is not None:
            return self._last_sent + settings.repeat_s
        if leases and now - self.last_activity < settings.in_use_s:
            silent = max(self.last_heard, self._last_sent) + settings.silent_s
            return min(self._last_sent + settings.measure_s, silent)
        return self._last_sent + (settings.leased_idle_s if leases else settings.spare_idle_s)

    def next_change(self, now: float) -> float | None:
        """Return when silence will next mean something new, or None."""
        since = self._awaiting_since
        if since is None:
            return None
        if not self.is_suspect(now) and self._probes >= 2:
            return since + self._settings.suspect_s
        return since + self._settings.dead_s if self._probes >= 3 else None

    def _note_lost(self, sent: float) -> None:
        """Count a lost echo, unless the circuit had answered none when it was sent: where relays are paid,
        nothing passes before each has a purse towards the next.
        """
        if self._answered_at is not None and sent >= self._answered_at:
            self._note_outcome(lost=True)

    def _note_outcome(self, *, lost: bool) -> None:
        self.sent += 1
        self.lost += lost
        self.loss += ((1.0 if lost else 0.0) - self.loss) / 8
