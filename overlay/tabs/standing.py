"""Who cheated lately: neighbours and purses with which nothing is done for a while. Bounded."""

from __future__ import annotations

FIRST_BAR_S = 60.0
LONGEST_BAR_S = 6 * 3600.0
MAX_REMEMBERED = 4096
"""When full, the one whose bar ends first is forgotten: a flood of new names shortens nobody's by much."""


class Standing:
    """Bars by name (an identity or a purse's payer). Each further fault doubles the time."""

    __slots__ = ("_bars",)

    def __init__(self) -> None:
        self._bars: dict[bytes, tuple[float, float]] = {}

    def note(self, name: bytes, now: float) -> float:
        """Bar `name` from `now` on; return for how many seconds."""
        until, length = self._bars.get(name, (0.0, FIRST_BAR_S / 2))
        if now > until + LONGEST_BAR_S:
            length = FIRST_BAR_S / 2
        length = min(2 * length, LONGEST_BAR_S)
        if name not in self._bars and len(self._bars) >= MAX_REMEMBERED:
            del self._bars[min(self._bars, key=lambda key: self._bars[key][0])]
        self._bars[name] = (now + length, length)
        return length

    def is_barred(self, name: bytes, now: float) -> bool:
        """Whether nothing is to be done with `name` at `now`."""
        return now < self._bars.get(name, (0.0, 0.0))[0]
