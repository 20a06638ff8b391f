"""Purses that we pay from and no longer use: how long they lie idle, and when their money is taken back.

Idle days are days of the chain's clock on which this node ran and nothing went over the purse: a machine that
was off for a month, or whose own clock is wrong, takes nothing back. Pure; reading and sending are the
driver's. docs/protocol/payments.md, "Purses nobody uses".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

DAY_S = 86_400
TAKE_BACK_GAS = 70_000
"""Unlocking and withdrawing (tests/payments/gas_snapshot.json), with a little room."""
WORTH_MULTIPLE = 10
"""What comes back must be worth so many times the gas of taking it."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What is remembered of one purse. `is_ours`: this rule began its notice, and ends it as well."""

    last_day: int
    worth_wei: int
    """What it had paid when it was last looked at."""
    days: int = 0
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class OwnPurse:
    """A purse that we pay from, as the chain shows it, and what it has paid by our own count."""

    payee: bytes
    deposited_wei: int
    claimed_wei: int
    unlock_at_s: int
    worth_wei: int

    @property
    def left_wei(self) -> int:
        """What is in it and not given away."""
        return max(0, self.deposited_wei - max(self.claimed_wei, self.worth_wei))


@dataclass(frozen=True, slots=True)
class Unlock:
    """Begin the notice of a purse."""

    purse: OwnPurse
    days: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the rest of a purse whose notice is over."""

    purse: OwnPurse


class IdlePurses:
    """Of one node. Times are the chain's, in seconds since 1970."""

    def __init__(self, memory: str | None = None) -> None:
        """Go on from what `keep` returned; a damaged memory counts as none: nothing is taken back early."""
        self._idle = _decode(memory)

    def observe(self, chain_time_s: int, worth_wei: Mapping[bytes, int], used: Collection[bytes]) -> None:
        """Look at all our purses: what each has paid, by payee; paid circuits go over the `used` ones now."""
        day = chain_time_s // DAY_S
        idle: dict[bytes, Idle] = {}
        for payee, worth in worth_wei.items():
            entry = self._idle.get(payee, Idle(day, worth))
            if payee in used or worth != entry.worth_wei:
                entry = Idle(day, worth, 0, entry.is_ours)
            elif day > entry.last_day:
                entry = replace(entry, last_day=day, days=entry.days + 1)
            idle[payee] = entry
        self._idle = idle

    def choose(
        self,
        purses: Collection[OwnPurse],
        used: Collection[bytes],
        after_days: int,
        gas_price_wei: int,
        chain_time_s: int,
    ) -> list[Unlock | Withdraw]:
        """Return what to do now, the largest sums first."""
        least_wei = WORTH_MULTIPLE * TAKE_BACK_GAS * gas_price_wei
        found: list[Unlock | Withdraw] = []
        for purse in sorted(purses, key=lambda purse: -purse.left_wei):
            entry = self._idle.get(purse.payee)
            if entry is None or purse.payee in used:
                continue
            if purse.unlock_at_s:
                if entry.is_ours and chain_time_s >= purse.unlock_at_s:
                    found.append(Withdraw(purse))
            elif entry.days >= after_days and purse.left_wei > least_wei:
                found.append(Unlock(purse, entry.days))
        return found

    def unlocking(self, payee: bytes) -> None:
        """We begin a purse's notice; say so before it is sent."""
        self._idle[payee] = replace(self._idle[payee], is_ours=True)

    def withdrawn(self, payee: bytes) -> None:
        """A purse's money is back."""
        self._idle[payee] = replace(self._idle[payee], days=0, is_ours=False)

    def keep(self) -> str:
        """Return what the next process goes on from."""
        rows = {
            payee.hex(): [e.last_day, str(e.worth_wei), e.days, e.is_ours] for payee, e in self._idle.items()
        }
        return json.dumps(rows)


def _decode(memory: str | None) -> dict[bytes, Idle]:
    try:
        rows = json.loads(memory or "{}")
        return {
            bytes.fromhex(payee): Idle(int(day), int(worth), int(days), bool(ours))
            for payee, (day, worth, days, ours) in rows.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
