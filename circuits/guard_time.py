"""The guards' own time: how long they have been kept, by a clock that the time of day cannot make jump.

Why: a machine without a battery starts in 1970 and is set right minutes later, a wrong time server moves the
clock by months. By the time of day all guards would end at once and new ones be chosen, which is what guards
are there to prevent. So their lives are counted in a time of their own. It begins as the time of day, goes
on with the steady clock, and takes from the time of day only what is plausible: the time that the machine
slept or the client was not running, once, and up to a bound. It never goes back.

Specification: docs/protocol/pool.md, section "Guards".
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_PAUSE_S = 30 * 86_400.0
"""Most that is counted of the time between two runs: then guards kept for two to four months survive an
absence, or one wrong clock, of any length."""
LONGEST_SLEEP_S = 7 * 86_400.0
"""Further ahead of the steady clock while the client runs, the time of day was set, and nothing slept."""


@dataclass(slots=True)
class GuardTime:
    """Seconds, at first those since 1970. 0: not begun."""

    time_s: float = 0.0
    seen_s: float = 0.0
    """The latest time of day that was counted up to: what lies before it is not counted again."""
    _steady_s: float | None = None

    def advance(self, now: float, unix_s: float) -> float:
        """Return the guards' time. `now`: the steady clock, from any start; `unix_s`: the time of day."""
        ahead_s = max(0.0, unix_s - self.seen_s)
        if not self.time_s:
            self.time_s = unix_s
        elif self._steady_s is None:
            self.time_s += min(ahead_s, LONGEST_PAUSE_S)
        else:
            steady_s = max(0.0, now - self._steady_s)
            slept_s = ahead_s - steady_s
            self.time_s += ahead_s if 0 < slept_s <= LONGEST_SLEEP_S else steady_s
        self.seen_s = max(self.seen_s, unix_s)
        self._steady_s = now
        return self.time_s
