"""What an emulated link does to packets: rate, delay, jitter, loss, reordering, duplication. Pure.

Owns the decision when a packet is delivered. The driver (`emulator.py`) owns devices and the clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a link. Shares are between 0 and 1; `rate_bit_per_s` 0 means unlimited."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # uniform, added; packets keep their order unless reordered
    loss: float = 0.0
    reorder: float = 0.0  # this share of packets skips the delay, and so overtakes
    duplicate: float = 0.0
    rate_bit_per_s: float = 0.0
    queue_ms: float = 200.0  # what waits longer for its turn at the rate is dropped, as by a full router

    def __post_init__(self) -> None:
        """Raise ValueError for what no link can do."""
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("delay_ms", "jitter_ms", "rate_bit_per_s", "queue_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative")


class Shaper:
    """Decides for one direction of one link; all randomness comes from `rng`."""

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        """Start with an idle link."""
        self.dropped = 0
        self.passed = 0
        self._conditions = conditions
        self._rng = rng
        self._free_at_s = 0.0
        self._last_due_s = 0.0

    def admit(self, now_s: float, size_bytes: int) -> list[float]:
        """When to deliver a packet that arrives now: no time if it is lost, two if it is duplicated.

        `now_s` must not go back. Times are on the same clock and never before `now_s`.
        """
        wanted = self._conditions
        if wanted.loss and self._rng.random() < wanted.loss:
            self.dropped += 1
            return []
        start_s = now_s
        if wanted.rate_bit_per_s:
            start_s = max(now_s, self._free_at_s)
            if (start_s - now_s) * 1000 > wanted.queue_ms:
                self.dropped += 1
                return []
            start_s += size_bytes * 8 / wanted.rate_bit_per_s
            self._free_at_s = start_s
        self.passed += 1
        if wanted.reorder and self._rng.random() < wanted.reorder:
            due_s = start_s
        else:
            jitter_ms = self._rng.random() * wanted.jitter_ms if wanted.jitter_ms else 0.0
            due_s = max(start_s + (wanted.delay_ms + jitter_ms) / 1000, self._last_due_s)
            self._last_due_s = due_s
        if wanted.duplicate and self._rng.random() < wanted.duplicate:
            return [due_s, due_s]
        return [due_s]
