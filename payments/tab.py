"""What both tabs share: outputs, limits, counts and how far two sides' counts may differ.

A tab is one link's account in one direction of payment. A link has two: this side's `PayerTab` (circuits
that we send through the peer) and its `PayeeTab` (circuits that the peer sends through us). Tabs are
machines: each input returns a list of outputs, which the driver carries out in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from payments.books import Claim
from payments.state import PurseState

SLOW_START_PACKETS = 64
"""A payer's first prepaid window. At 1384 bytes a packet this is 88 KB: enough to open connections, and all
that a relay which vanishes at once can keep."""
TOLERANCE_SHARE = 50
"""Counts may differ by one part in this (2 %): what a link may lose between the two counters."""

WRITE_OFF_SHARE = 20
"""Of what it carried, a payee gives up at most one part in this (5 %) for packets that were lost on the way
to the payer, beyond the tolerance: a bad wireless link loses so many. A payer that lies gains no more."""


class CloseReason(IntEnum):
    """Why circuits or the link are closed; the number is the wire's code in the overlay's Destroy."""

    UNPAID = 1
    """Credit was asked for and did not come in time."""
    DISPUTE = 2
    """The two sides' counts differ by more than loss explains."""
    FORGERY = 3
    """Too many wrong books or tickets, or a state that is not ours."""
    OTHER_CHAIN = 4
    """The peer's purses are on another chain or contract."""
    OTHER_PAYEE = 5
    """The peer asks us to pay an address that its descriptor does not name."""
    PURSE_EMPTY = 6
    """Our purse's deposit is used up (or being taken back) and was not filled in time."""
    BUDGET = 7
    """The customer's own spending limit."""
    PURSE_BUSY = 8
    """The purse is in use elsewhere."""
    REFUSED = 9
    """The payee refuses our books."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Cumulative since the tab began: packets towards the payee and back, and what they cost in wei."""

    forward: int = 0
    backward: int = 0
    spent_wei: int = 0


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` on the link's control stream."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """Add `wei` (positive) to the link's meter."""

    wei: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read the payee's state of `payer`'s purse from ledger and chain; answer with `on_loaded`."""

    payer: bytes


@dataclass(frozen=True, slots=True)
class Store:
    """Keep `state` (and, for a payee, `claim`) in the ledger; answer with `on_stored(sequence)` when it is
    on disk."""

    sequence: int
    state: PurseState
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Service waits for tickets (payee) or for us to pay (payer): shown to operators, not acted on."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The purse is attached; circuits on this link can be paid for from now on."""


@dataclass(frozen=True, slots=True)
class CloseCircuits:
    """Close the link's paid circuits with `reason`; `detail` is a sentence for a person."""

    reason: CloseReason
    detail: str


@dataclass(frozen=True, slots=True)
class CutOff:
    """Close the link with `reason` and lower the peer's score; `detail` is a sentence for a person."""

    reason: CloseReason
    detail: str


@dataclass(frozen=True, slots=True)
class Dispute:
    """Counts differ too much: log it and lower the peer's score."""

    ours: Counts
    theirs: Counts


@dataclass(frozen=True, slots=True)
class TopUp:
    """The purse towards the payee should have at least `deposit_wei` deposited in all."""

    payee: bytes
    deposit_wei: int


class Concern(Enum):
    """Things an operator or customer must hear of while service goes on."""

    PURSE_ELSEWHERE = (
        "the payee knows more of this purse than we do: our ledger is old, or it is used elsewhere"
    )


@dataclass(frozen=True, slots=True)
class GaveUp:
    """`wei` of what was prepaid went into packets that we got no use of; service goes on."""

    wei: int


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the operator or customer."""

    concern: Concern


Output = (
    Send | Credit | Load | Store | Asked | Ready | CloseCircuits | CutOff | Dispute | TopUp | GaveUp | Warn
)


def tolerated_wei(own_wei: int, window_wei: int) -> int:
    """Return how far above our count `own_wei` the peer's may be: 2 %, and a window for what is in flight."""
    return own_wei // TOLERANCE_SHARE + window_wei
