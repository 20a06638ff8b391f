"""The rules for books: what a payee accepts. Pure functions without state; section 4, rule 3 of the protocol.

The order matters: everything cheap comes before the signature (about 50 us), so that a flood of bad books
costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from payments.books import MAX_BOOK_LENGTH, Book, SignedBook
from payments.digest import book_digest
from payments.keys import recover
from payments.refusals import Refusal
from payments.state import PurseState


@dataclass(frozen=True, slots=True)
class PurseView:
    """A purse on chain as one side knows it: confirmed amounts only, from the purse's beginning.

    `start_credit_wei` is what the payee trusts the purse for while its opening is not confirmed.
    """

    deposited_wei: int = 0
    claimed_wei: int = 0
    unlocking: bool = False
    start_credit_wei: int = 0

    @property
    def limit_wei(self) -> int:
        """The highest worth that a book may reach at full length."""
        return max(self.deposited_wei, self.start_credit_wei)


def check_book(
    book: Book, last: PurseState, purse: PurseView, payee: bytes, minimum_value_wei: int
) -> Refusal | None:
    """Return why `book` may not follow the state `last`, or None. Does not look at the signature."""
    if book.payee != payee:
        return Refusal.WRONG_PAYEE
    if book.number <= last.number:
        return Refusal.NUMBER
    if not 0 < book.length <= MAX_BOOK_LENGTH:
        return Refusal.LENGTH
    if book.value_wei < max(1, minimum_value_wei):
        return Refusal.VALUE
    if book.base_wei < last.worth_wei:
        return Refusal.BASE
    if purse.unlocking:
        return Refusal.UNLOCKING
    if book.full_worth_wei > purse.limit_wei:
        return Refusal.DEPOSIT
    return None


def check_signature(signed: SignedBook, payer: bytes, separator: bytes) -> Refusal | None:
    """Return Refusal.SIGNATURE unless `payer` (20 bytes) signed the book under the domain of `separator`."""
    if recover(book_digest(separator, signed.book), signed.signature) != payer:
        return Refusal.SIGNATURE
    return None
