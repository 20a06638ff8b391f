"""The payee's side of one purse: accepts books and tickets, and can always say what it may claim.

Owns the newest book and ticket. Does not own credit, storage or messages (`payee_tab`).
"""

from __future__ import annotations

from dataclasses import replace

from payments.books import Claim, Domain, SignedBook, Ticket
from payments.digest import domain_separator
from payments.hashing import new_hash
from payments.refusals import Refusal
from payments.state import EMPTY, PurseState
from payments.validator import PurseView, check_book, check_signature


class Payee:
    """Machine for one (payer, payee) purse. `purse` is set anew whenever the chain's view changes."""

    __slots__ = (
        "_base",
        "_book",
        "_index",
        "_length",
        "_limit",
        "_number",
        "_purse",
        "_separator",
        "_spent_wei",
        "_value",
        "_word",
        "address",
        "minimum_value_wei",
        "payer",
    )

    def __init__(
        self,
        domain: Domain,
        address: bytes,
        payer: bytes,
        state: PurseState = EMPTY,
        purse: PurseView | None = None,
        minimum_value_wei: int = 1,
    ) -> None:
        """Go on from `state`, the ledger's; `address` is our own, `payer` the purse's (20 bytes)."""
        self._separator = domain_separator(domain)
        self.address = address
        self.payer = payer
        self.purse = purse if purse is not None else PurseView()
        self.minimum_value_wei = minimum_value_wei
        self._spent_wei = state.spent_wei
        self._take(state.book)
        self._index = state.index
        self._word = state.word

    @property
    def purse(self) -> PurseView:
        """The chain's view of the purse."""
        return self._purse

    @purse.setter
    def purse(self, purse: PurseView) -> None:
        self._purse = purse
        self._limit = -1 if purse.unlocking else purse.limit_wei

    def _take(self, signed: SignedBook | None) -> None:
        self._book = signed
        book = None if signed is None else signed.book
        self._number, self._base, self._value, self._length = (
            (0, 0, 0, 0) if book is None else (book.number, book.base_wei, book.value_wei, book.length)
        )
        self._index = 0
        self._word = bytes(32) if book is None else book.tip

    @property
    def index(self) -> int:
        """The newest ticket accepted of the newest book."""
        return self._index

    @property
    def worth_wei(self) -> int:
        """What the payer has paid in all."""
        return self._base + self._index * self._value

    @property
    def state(self) -> PurseState:
        """What the ledger must keep."""
        return PurseState(self._book, self._index, self._word, self._spent_wei)

    def with_spent(self, spent_wei: int) -> PurseState:
        """Note what was charged to the purse so far, and return the state to keep."""
        self._spent_wei = spent_wei
        return self.state

    def accept_book(self, signed: SignedBook) -> int | Refusal:
        """Take a new book: return the wei that its base adds to the worth (0 as a rule), or the refusal.

        The base of the first book that we ever see of a purse adds nothing: it stands for packets carried
        before our memory begins.
        """
        refusal = check_book(signed.book, self.state, self.purse, self.address, self.minimum_value_wei)
        if refusal is None:
            refusal = check_signature(signed, self.payer, self._separator)
        if refusal is not None:
            return refusal
        gained = 0 if self._book is None else signed.book.base_wei - self.worth_wei
        self._take(signed)
        return gained

    def accept_ticket(self, number: int, index: int, word: bytes) -> int | Refusal:
        """Take ticket `index` of book `number`: return the wei gained (more than 0), or the refusal.

        Costs one hash for each ticket since the last accepted one, at most 1,024. A purse that shrinks or
        unlocks after its book was accepted pays for no more tickets: they might never be claimed.
        """
        last = self._index
        if number != self._number:
            return Refusal.OLD_BOOK if number < self._number else Refusal.FUTURE_BOOK
        if index <= last:
            return Refusal.BACKWARD
        if index > self._length:
            return Refusal.RANGE
        if self._base + index * self._value > self._limit:
            return Refusal.UNLOCKING if self._purse.unlocking else Refusal.DEPOSIT
        steps = index - last
        new = new_hash
        found = new(word).digest()
        for _ in range(steps - 1):
            found = new(found).digest()
        if found != self._word:
            return Refusal.WORD
        self._index = index
        self._word = word
        return steps * self._value

    def claim(self) -> Claim | None:
        """Return what proves the worth to the contract, or None if nothing was ever paid."""
        if self._book is None:
            return None
        return Claim(self.payer, self._book, Ticket(self._number, self._index, self._word))


def claim_of(state: PurseState, payer: bytes) -> Claim | None:
    """Return the claim that a stored payee state allows, as `Payee.claim` does."""
    if state.book is None:
        return None
    return Claim(payer, replace(state.book), Ticket(state.number, state.index, state.word))
