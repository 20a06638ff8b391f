"""Books, tickets and where they are valid: values only.

Owns the fields, their ranges and the worth of a ticket. Does not own bytes on the wire (`formats`), digests
(`digest`) or rules about what follows what (`validator`). docs/protocol/payments.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Wei = NewType("Wei", int)
"""An amount of the chain's coin in its smallest part; never negative, never a float."""

ADDRESS_BYTES = 20
SIGNATURE_BYTES = 65
WORD_BYTES = 32
MAX_BOOK_LENGTH = 1024
"""Tickets in one chain at most; the contract's closing walk is bounded by it."""
MAX_NUMBER = 2**64 - 1
MAX_BASE_WEI = 2**128 - 1
MAX_VALUE_WEI = 2**96 - 1
MAX_CHAIN_ID = 2**63 - 37
"""EIP-2294's bound, so that a chain id always fits eight bytes."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The chain and the purses contract for which signatures are valid, and nowhere else."""

    chain_id: int
    contract: bytes

    def __post_init__(self) -> None:
        """Raise ValueError for a field of the wrong length or out of range."""
        if not 0 < self.chain_id <= MAX_CHAIN_ID:
            raise ValueError(f"chain id {self.chain_id} is outside 1..2^63-37")
        if len(self.contract) != ADDRESS_BYTES:
            raise ValueError("a contract address has 20 bytes")


@dataclass(frozen=True, slots=True)
class Book:
    """A chain of tickets that a payer opens for one payee.

    `base_wei` is the running total of all earlier books of the purse, `value_wei` the worth of one ticket,
    `tip` the public end w_0 of the chain.
    """

    payee: bytes
    number: int
    base_wei: int
    value_wei: int
    length: int
    tip: bytes

    def __post_init__(self) -> None:
        """Raise ValueError for a field of the wrong length or out of range."""
        if len(self.payee) != ADDRESS_BYTES or len(self.tip) != WORD_BYTES:
            raise ValueError("a book's payee has 20 bytes and its tip 32")
        if not (0 <= self.number <= MAX_NUMBER and 0 <= self.base_wei <= MAX_BASE_WEI):
            raise ValueError("a book's number or base is out of range")
        if not (0 <= self.value_wei <= MAX_VALUE_WEI and 0 <= self.length <= 0xFFFF):
            raise ValueError("a book's value or length is out of range")

    def worth_wei(self, index: int) -> int:
        """Return what the purse owes in all once ticket `index` (0 = none yet) is known."""
        return self.base_wei + index * self.value_wei

    @property
    def full_worth_wei(self) -> int:
        """What the purse owes once every ticket of the book is known."""
        return self.base_wei + self.length * self.value_wei


@dataclass(frozen=True, slots=True)
class SignedBook:
    """A book with its payer's signature, r | s | v (65 bytes, v 27 or 28, low s)."""

    book: Book
    signature: bytes

    def __post_init__(self) -> None:
        """Raise ValueError for a field of the wrong length or out of range."""
        if len(self.signature) != SIGNATURE_BYTES:
            raise ValueError("a signature has 65 bytes")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Link `index` of a book's chain; pays for every ticket up to it. Index 0 with the tip pays nothing."""

    number: int
    index: int
    word: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """All that the contract needs to pay a purse's worth so far to its payee."""

    payer: bytes
    signed: SignedBook
    ticket: Ticket

    @property
    def worth_wei(self) -> int:
        """The running total that the claim proves."""
        return self.signed.book.worth_wei(self.ticket.index)
