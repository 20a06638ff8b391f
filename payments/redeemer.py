"""When to claim: the decisions of redemption, without a chain.

A claim is worth sending when it brings in `worth_multiple` times its gas and gas is not dear; it is sent
whatever the gas when the purse's unlock deadline comes near, as long as it brings in more than it costs.
Claims that are sent together share the transaction's fixed cost, so each is judged at its share of a batch.
docs/protocol/payments.md, section 7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from payments.books import Claim

BASE_GAS = 47_000
"""A batch of one without walk (measured on a node; tests/payments/gas_snapshot.json), less one claim."""
CLAIM_GAS = 17_000
FIRST_CLAIM_GAS = 17_100
"""More for the first money that a payee ever earns, or earns after cashing out all: a new storage slot."""
WALK_GAS = 99
"""For each hash of the closing walk."""
MAX_BATCH = 64
MAX_READS = 1000
"""Purses looked at on the chain in one round: some twenty requests."""
IDLE_READS = 100
"""Of those that would not even bring their own gas."""


@dataclass(frozen=True, slots=True)
class RedeemLimits:
    """An operator's settings.

    `worth_multiple` times the gas of a claim must be earned by it; before `deadline_margin_s` of an unlock
    it is sent in any case; `dear_multiple` times the average gas price is dear.
    """

    worth_multiple: int = 20
    dear_multiple: float = 1.5
    deadline_margin_s: float = 6 * 3600.0
    max_batch: int = 32


@dataclass(frozen=True, slots=True)
class Claimable:
    """A purse that pays us: the best claim, and what the chain says (confirmed) of the purse."""

    claim: Claim
    deposited_wei: int
    claimed_wei: int
    unlock_at_s: int
    """0 while it is locked."""

    @property
    def due_wei(self) -> int:
        """What a claim would bring now."""
        return max(0, min(self.claim.worth_wei, self.deposited_wei) - self.claimed_wei)

    @property
    def gas(self) -> int:
        """What this claim adds to a batch."""
        return CLAIM_GAS + WALK_GAS * self.claim.ticket.index


@dataclass(frozen=True, slots=True)
class Batch:
    """Claims to send in one transaction, and why: some are urgent, or all are worth it."""

    claims: tuple[Claim, ...]
    urgent: bool
    gas_limit: int
    due_wei: int


def choose_reads(
    owed: Sequence[tuple[Claim, int]],
    gas_price_wei: int,
    watched: Collection[bytes],
    read_at: Mapping[bytes, int],
    most: int | None = MAX_READS,
) -> list[int]:
    """Return which purses to look at on the chain in this round, as places in `owed`, the worthiest first.

    `owed` has each claim with the wei noted as claimed already; `watched` are payers whose purses must be
    looked at whatever they owe; `read_at` tells in which round a payer's purse was looked at last. Purses
    that cannot bring their own gas (opening thousands of them is cheap) are looked at a few in a round: more
    may be due only after a reorganisation. Of more than `most` others half are the worthiest and half those
    not looked at for the longest, so that all get their turn long before a notice period is over.
    """
    worth: list[tuple[int, int]] = []
    idle: list[int] = []
    for place, (claim, claimed_wei) in enumerate(owed):
        unclaimed = claim.worth_wei - claimed_wei
        gas = CLAIM_GAS + WALK_GAS * claim.ticket.index
        if (unclaimed > 0 and unclaimed >= gas * gas_price_wei) or claim.payer in watched:
            worth.append((-unclaimed, place))
        else:
            idle.append(place)

    def longest_ago(places: list[int]) -> list[int]:
        return sorted(places, key=lambda place: read_at.get(owed[place][0].payer, -1))

    worth.sort()
    places = [place for _, place in worth]
    if most is not None and len(places) > most:
        places = [*places[: most // 2], *longest_ago(places[most // 2 :])[: most - most // 2]]
    return places + longest_ago(idle)[:IDLE_READS]


def split_evenly(wei: int, parts: int) -> list[int]:
    """Return `wei` in `parts` shares; the first ones have what is left over."""
    share, rest = divmod(wei, parts)
    return [share + (place < rest) for place in range(parts)]


def decide(
    purses: list[Claimable], gas_price_wei: int, is_dear: bool, chain_time_s: float, limits: RedeemLimits
) -> list[Batch]:
    """Return the batches to send now, the most urgent first; empty if it is better to wait.

    `chain_time_s` is the newest block's time stamp: deadlines are the chain's, whatever our clock says.
    """
    urgent: list[Claimable] = []
    worth: list[Claimable] = []
    for purse in purses:
        cost = purse.gas * gas_price_wei
        if purse.due_wei <= 0:
            continue
        deadline = purse.unlock_at_s - limits.deadline_margin_s
        if purse.unlock_at_s and chain_time_s >= deadline:
            if purse.due_wei > cost:
                urgent.append(purse)
        elif purse.due_wei >= limits.worth_multiple * cost and not is_dear:
            worth.append(purse)
    urgent.sort(key=lambda p: p.unlock_at_s)
    worth.sort(key=lambda p: -p.due_wei)
    if urgent:
        # The transaction is paid for anyway: what is worth its own share goes along.
        return _batches([*urgent, *worth], len(urgent), limits)
    total = sum(p.due_wei for p in worth)
    cost = (BASE_GAS + sum(p.gas for p in worth)) * gas_price_wei
    if not worth or total < limits.worth_multiple * cost:
        return []
    return _batches(worth, 0, limits)


def _batches(purses: list[Claimable], urgent: int, limits: RedeemLimits) -> list[Batch]:
    size = max(1, min(limits.max_batch, MAX_BATCH))
    batches = []
    for first in range(0, len(purses), size):
        part = purses[first : first + size]
        gas = BASE_GAS + FIRST_CLAIM_GAS + sum(p.gas for p in part)
        batches.append(
            Batch(
                tuple(p.claim for p in part),
                first < urgent,
                gas + gas // 4,
                sum(p.due_wei for p in part),
            )
        )
    return batches
