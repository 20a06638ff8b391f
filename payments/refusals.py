"""Why something was refused, and how much a refusal counts against the peer.

A refusal is data: a payee's machine returns it, the wire carries its code. Codes are part of the protocol.
"""

from __future__ import annotations

from enum import IntEnum


class Refusal(IntEnum):
    """A reason; the number is the wire's code."""

    MALFORMED = 1
    """The bytes are not a message of the protocol, or not one for this side."""
    NOT_ATTACHED = 2
    """A book or ticket before the purse was attached, or a second attachment."""
    ATTACH_SIGNATURE = 3
    """The signature over the challenge is not the purse's."""
    WRONG_PAYEE = 4
    """The book is for another payee."""
    NUMBER = 5
    """The book's number does not come after the last accepted book's."""
    BASE = 6
    """The book's base is less than what the purse owed already."""
    VALUE = 7
    """A ticket's worth is zero, or so small that accepting it costs more than it pays."""
    LENGTH = 8
    """The book has no tickets or more than 1,024."""
    DEPOSIT = 9
    """At full length the book would owe more than the purse's confirmed deposit (or start-up credit)."""
    UNLOCKING = 10
    """The payer has started to take the purse's deposit back."""
    SIGNATURE = 11
    """The book's signature is not the purse's."""
    OLD_BOOK = 12
    """A ticket of a book that a newer one has replaced."""
    FUTURE_BOOK = 13
    """A ticket of a book that was not accepted."""
    BACKWARD = 14
    """A ticket at or before the last accepted one."""
    RANGE = 15
    """A ticket past the end of its book."""
    WORD = 16
    """The word does not lead back to the last accepted one."""
    BUSY = 17
    """The purse is in use on another link or by another process."""
    UNAVAILABLE = 18
    """The payee cannot look the purse up at the moment: its ledger or its chain does not answer."""


FAULT_LIMIT = 16
"""Fault points after which a payee cuts the peer off. Forged signatures cost us 50 us each, wrong words at
most 1,024 hashes (1.3 ms): so a hostile peer costs at most about 11 ms before it is gone."""

UNUSED_BOOK_POINTS = 2
"""For a good book that takes the place of one from which no ticket was given."""

_POINTS = {
    Refusal.MALFORMED: FAULT_LIMIT,
    Refusal.ATTACH_SIGNATURE: FAULT_LIMIT,
    Refusal.SIGNATURE: 6,
    Refusal.WORD: 2,
    Refusal.BUSY: 0,
    Refusal.UNAVAILABLE: 0,
}


def fault_points(refusal: Refusal) -> int:
    """Return what `refusal` counts towards `FAULT_LIMIT` (1 unless it is worse, or not the peer's fault)."""
    return _POINTS.get(refusal, 1)
