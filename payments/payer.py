"""The payer's side of one purse: opens books, gives tickets, finds its place again from the payee's memory.

Owns the newest book and its chain. Does not own how much may be given (`payer_tab`), storage or the deposit.

Every chain comes from the purse's key and all fields of its book, so a payer that lost its memory can go on
inside a book that the payee shows it, and two books never share words, whatever was forgotten.
"""

from __future__ import annotations

import struct
from enum import Enum

from payments.books import MAX_BOOK_LENGTH, MAX_VALUE_WEI, Book, Domain, SignedBook
from payments.chains import build_chain, walk
from payments.digest import book_digest, domain_separator
from payments.formats import KIND_TICKET, encode_book, encode_ticket
from payments.keys import PurseKey, recover
from payments.state import EMPTY, PurseState
from payments.validator import PurseView


class Resumed(Enum):
    """What comparing memories with the payee showed."""

    SAME = "same"
    AHEAD = "ahead"
    """We had given more than the payee knows; it is sent again."""
    BEHIND = "behind"
    """The payee knows more than we remember: we lost our memory, or someone else uses this purse."""
    FALSE = "false"
    """What the payee showed is not ours: a wrong signature or word."""


class Payer:
    """Machine for one (payer, payee) purse."""

    def __init__(
        self,
        key: PurseKey,
        domain: Domain,
        payee: bytes,
        state: PurseState = EMPTY,
        purse: PurseView | None = None,
        book_length: int = MAX_BOOK_LENGTH,
        tickets_per_message: int = MAX_BOOK_LENGTH,
    ) -> None:
        """Go on from `state`, the ledger's, towards `payee` (20 bytes).

        `tickets_per_message` is how many tickets one message may stand for at most (1: a message for each).
        """
        if not (0 < book_length <= MAX_BOOK_LENGTH and tickets_per_message > 0):
            raise ValueError("book_length is 1..1024 and tickets_per_message at least 1")
        self._key = key
        self._separator = domain_separator(domain)
        self.payee = payee
        self.purse = purse if purse is not None else PurseView()
        self.exhausted = False
        """Whether the last `issue` gave less than asked because the deposit is used up or unlocking."""
        self._book_length = book_length
        self._per_message = tickets_per_message
        self._signed = state.book
        self._index = state.index
        self._spent_wei = state.spent_wei
        self._floor_wei = 0
        self._floor_number = 0
        self._words: list[bytes] | None = None

    @property
    def worth_wei(self) -> int:
        """What has been paid in all."""
        worth = 0 if self._signed is None else self._signed.book.worth_wei(self._index)
        return max(worth, self._floor_wei)

    @property
    def number(self) -> int:
        """The newest book's number, 0 if there is none."""
        return max(0 if self._signed is None else self._signed.book.number, self._floor_number)

    @property
    def state(self) -> PurseState:
        """What the ledger must keep. The word is only known while the chain is in memory; zeros otherwise."""
        word = bytes(32) if self._words is None else self._words[self._index]
        return PurseState(self._signed, self._index, word, self._spent_wei)

    def with_spent(self, spent_wei: int) -> PurseState:
        """Note what the packets so far cost, and return the state to keep."""
        self._spent_wei = spent_wei
        return self.state

    def issue(self, target_wei: int, value_wei: int) -> list[bytes]:
        """Return messages that raise the worth as near to `target_wei` as whole tickets can, never above.

        `value_wei` is the worth of a new ticket; a book of another value is closed and a new one opened.
        Stops early, and sets `exhausted`, when no further book fits the purse's deposit.
        """
        if not 0 < value_wei <= MAX_VALUE_WEI:
            raise ValueError("a ticket's value is 1..2^96-1 wei")
        messages: list[bytes] = []
        self.exhausted = False
        missing = (target_wei - self.worth_wei) // value_wei
        while missing > 0:
            if not self._has_room(value_wei):
                opened = self._open(value_wei)
                if opened is None:
                    self.exhausted = True
                    break
                messages.append(opened)
            missing -= self._give(missing, messages)
        return messages

    def resume(self, shown: SignedBook | None, index: int, word: bytes) -> tuple[Resumed, list[bytes]]:
        """Compare memories with what the payee shows; return the verdict and what to send first.

        The payee's newest book and ticket are proof of what we gave: if they are worth more than we remember,
        we go on from there.
        """
        if shown is None:
            again = self.send_again()
            return (Resumed.AHEAD if again else Resumed.SAME), again
        book = shown.book
        if (
            book.payee != self.payee
            or index > book.length
            or recover(book_digest(self._separator, book), shown.signature) != self._key.address
            or walk(word, index) != book.tip
        ):
            return Resumed.FALSE, []
        mine = self._signed
        if mine is not None and mine.book == book:
            if index == self._index:
                return Resumed.SAME, []
            if index < self._index:
                return Resumed.AHEAD, self.send_again(with_book=False)
        elif mine is not None and mine.book.number > book.number and self.worth_wei >= book.worth_wei(index):
            return Resumed.AHEAD, self.send_again()
        elif mine is not None and mine.book.number >= book.number:
            # Two different books of ours have this number or the newer one owes less: memory was lost and
            # something was signed since. Start a fresh book past everything that either side knows.
            self._floor_wei = max(self.worth_wei, book.worth_wei(index))
            self._floor_number = max(mine.book.number, book.number)
            self._words = None
            return Resumed.BEHIND, []
        self._signed, self._index, self._words = shown, index, None
        return Resumed.BEHIND, []

    def send_again(self, with_book: bool = True) -> list[bytes]:
        """Return the newest book (unless not wanted) and the newest ticket given from it, as messages."""
        if self._signed is None:
            return []
        messages = [encode_book(self._signed)] if with_book else []
        words = self._chain()
        if self._index and words is not None:
            messages.append(encode_ticket(self._signed.book.number, self._index, words[self._index]))
        return messages

    def _has_room(self, value_wei: int) -> bool:
        signed = self._signed
        return (
            signed is not None
            and signed.book.value_wei == value_wei
            and self._index < signed.book.length
            and self._floor_number == 0
            and not self.purse.unlocking
            and self._chain() is not None
        )

    def _chain(self) -> list[bytes] | None:
        """Return the current book's words, made anew if needed; None if they do not lead to its tip."""
        if self._words is None and self._signed is not None:
            book = self._signed.book
            words = build_chain(
                self._seed(book.number, book.base_wei, book.value_wei, book.length), book.length
            )
            if words[0] != book.tip:
                return None
            self._words = words
        return self._words

    def _seed(self, number: int, base_wei: int, value_wei: int, length: int) -> bytes:
        fields = struct.pack(
            ">Q16s12sH", number, base_wei.to_bytes(16, "big"), value_wei.to_bytes(12, "big"), length
        )
        return self._key.derive(b"chain\0" + self._separator + self.payee + fields)

    def _open(self, value_wei: int) -> bytes | None:
        base = self.worth_wei
        length = min(self._book_length, (self.purse.limit_wei - base) // value_wei)
        if length <= 0 or self.purse.unlocking:
            return None
        number = self.number + 1
        self._words = build_chain(self._seed(number, base, value_wei, length), length)
        book = Book(self.payee, number, base, value_wei, length, self._words[0])
        self._signed = SignedBook(book, self._key.sign(book_digest(self._separator, book)))
        self._index = 0
        self._floor_wei = self._floor_number = 0
        return encode_book(self._signed)

    def _give(self, wanted: int, messages: list[bytes]) -> int:
        signed, words = self._signed, self._words
        assert signed is not None and words is not None
        number, first = signed.book.number, self._index
        last = min(first + wanted, signed.book.length)
        self._index = last
        if self._per_message == 1:
            head = struct.pack(">BQ", KIND_TICKET, number)
            pack = _INDEX.pack
            messages.extend([head + pack(i) + words[i] for i in range(first + 1, last + 1)])
        else:
            step = self._per_message
            messages.extend(encode_ticket(number, i, words[i]) for i in range(first + step, last, step))
            messages.append(encode_ticket(number, last, words[last]))
        return last - first


_INDEX = struct.Struct(">H")
