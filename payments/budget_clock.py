"""The time by which a budget is kept: it never jumps, whatever is done to the machine's clock.

While the machine is up its boot clock counts (it goes on in suspend, and nobody sets it), also over restarts
of the program. Over a reboot only the wall clock knows how long the machine was off; what it says is believed
as far as the chain's time bears it out. A wall clock set ahead and back therefore neither frees a budget nor
locks it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """What the machine's clocks say at one moment: seconds since it booted (and which boot it is), and since
    1970.
    """

    boot_id: str
    boot_s: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class KeptTime:
    """A budget's time, and what the clocks said then; for the ledger."""

    budget_s: float
    moment: Moment


class BudgetClock:
    """Budget time in seconds; it only grows."""

    def __init__(self, kept: KeptTime | None, moment: Moment) -> None:
        """Go on from what was kept; without that, begin at the wall clock's time."""
        self._moment = moment
        self._unproved_s = self._kept_unix_s = 0.0
        if kept is None:
            self._base_s = moment.unix_s
            return
        old = kept.moment
        if old.boot_id == moment.boot_id:
            passed = moment.boot_s - old.boot_s
        else:
            # It was written before this boot.
            passed = moment.boot_s
            self._unproved_s = max(0.0, moment.unix_s - old.unix_s - passed)
        self._kept_unix_s = old.unix_s
        self._base_s = kept.budget_s + max(0.0, passed)

    @property
    def needs_proof(self) -> bool:
        """Whether the machine seems to have been off for a time that the chain's time can bear out."""
        return self._unproved_s > 0.0

    def prove(self, chain_unix_s: float) -> None:
        """The newest block has this time stamp: how long the machine was off is believed as far as that."""
        passed = self._moment.boot_s
        proved = max(0.0, chain_unix_s - self._kept_unix_s - passed) if self._unproved_s else 0.0
        self._base_s += min(self._unproved_s, proved)
        self._unproved_s = 0.0

    def now(self, moment: Moment) -> float:
        """Return the budget's time."""
        return self._base_s + max(0.0, moment.boot_s - self._moment.boot_s)

    def keep(self, moment: Moment) -> KeptTime:
        """Return what the next process goes on from."""
        return KeptTime(self.now(moment), moment)
