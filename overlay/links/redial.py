"""When to dial a neighbour again: exponential back-off with jitter. Pure; the node above dials."""

from typing import Final, Protocol

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 300.0
STABLE_S: Final = 60.0
"""A link that was up for so long makes earlier failures forgotten."""


class Random(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high]."""


class Redialer:
    """One neighbour that this node wants a link to.

    WAITING until `next_dial`; then the owner calls `handle_dialling`, dials, and reports `handle_up` or
    `handle_failed`, and later `handle_closed`. The delay doubles from FIRST_DELAY_S to `longest_delay_s` with
    every failure; each is drawn from its upper half, so that neighbours of a node that came back do not dial
    it in step.
    """

    __slots__ = ("_failures", "_longest_delay_s", "_next_dial", "_rng", "_up_since")

    def __init__(self, rng: Random, now: float, *, longest_delay_s: float = LONGEST_DELAY_S) -> None:
        """Wait for nothing at first: the first dial is due now."""
        self._rng = rng
        self._longest_delay_s = longest_delay_s
        self._failures = 0
        self._next_dial: float | None = now
        self._up_since: float | None = None

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def next_dial(self) -> float | None:
        """When to dial; None while dialling or up."""
        return self._next_dial

    def handle_dialling(self) -> None:
        """The owner dials now."""
        self._next_dial = None

    def handle_up(self, now: float) -> None:
        """The link came up."""
        self._next_dial = None
        self._up_since = now

    def handle_failed(self, now: float) -> None:
        """The link could not be made."""
        self._wait(now)

    def handle_closed(self, now: float) -> None:
        """The link that was up has ended."""
        if self._up_since is not None and now - self._up_since >= STABLE_S:
            self._failures = 0
        self._up_since = None
        self._wait(now)

    def _wait(self, now: float) -> None:
        delay_s = min(self._longest_delay_s, FIRST_DELAY_S * 2.0 ** min(self._failures, 32))
        self._failures += 1
        self._next_dial = now + self._rng.uniform(delay_s / 2, delay_s)
