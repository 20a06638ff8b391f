"""What a ledger keeps of a purse, from either side, as values and as bytes.

Both forms have one fixed length, begin with a version and end with a checksum, so that a damaged record is
found and never used.
"""

from __future__ import annotations

from dataclasses import dataclass

from payments import formats
from payments.books import SignedBook
from payments.errors import DecodeError
from payments.hashing import keccak256

_PAYER_VERSION = 0xA1
_PAYEE_VERSION = 0xB1
_CHECK_BYTES = 8
_BODY_BYTES = 187
STATE_BYTES = 1 + 20 + _BODY_BYTES + _CHECK_BYTES
"""Length of either record."""


@dataclass(frozen=True, slots=True)
class PurseState:
    """One side's memory of a purse: its newest book and ticket, and what was charged to it.

    `index` and `word` are the newest ticket given (payer) or accepted (payee); with index 0 the word is the
    book's tip. Without a book, `index` is 0 and `word` is zeros. `spent_wei` counts packets from the purse's
    beginning, as worth does.
    """

    book: SignedBook | None = None
    index: int = 0
    word: bytes = bytes(32)
    spent_wei: int = 0

    @property
    def worth_wei(self) -> int:
        """What has been paid in all."""
        return 0 if self.book is None else self.book.book.worth_wei(self.index)

    @property
    def number(self) -> int:
        """The newest book's number; 0 when there is none (the first book is number 1)."""
        return 0 if self.book is None else self.book.book.number


EMPTY = PurseState()


def encode_payer_state(state: PurseState, payee: bytes) -> bytes:
    """Return the record of a payer's side of the purse towards `payee` (20 bytes)."""
    return _encode(_PAYER_VERSION, state, payee)


def encode_payee_state(state: PurseState, payee: bytes) -> bytes:
    """Return the record of a payee's side; `payee` (20 bytes) is its own address."""
    return _encode(_PAYEE_VERSION, state, payee)


def decode_payer_state(data: bytes) -> PurseState:
    """Return the state in a payer's record. Raises DecodeError if it is not one or is damaged."""
    return _decode(_PAYER_VERSION, data)


def decode_payee_state(data: bytes) -> PurseState:
    """Return the state in a payee's record. Raises DecodeError if it is not one or is damaged."""
    return _decode(_PAYEE_VERSION, data)


def _encode(version: int, state: PurseState, payee: bytes) -> bytes:
    message = formats.encode_state(formats.State(state.book, state.index, state.word, state.spent_wei))
    body = bytes((version,)) + payee + message
    return body + keccak256(body)[:_CHECK_BYTES]


def _decode(version: int, data: bytes) -> PurseState:
    if len(data) != STATE_BYTES or data[0] != version:
        raise DecodeError(f"not a purse record of this kind ({len(data)} bytes)")
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if keccak256(body)[:_CHECK_BYTES] != check:
        raise DecodeError("a purse record is damaged: its checksum is wrong")
    message = formats.decode_message(body[21:], body[1:21])
    if not isinstance(message, formats.State):
        raise DecodeError("a purse record holds no state")
    if message.book is not None and message.index > message.book.book.length:
        raise DecodeError("a purse record's ticket is past the end of its book")
    return PurseState(message.book, message.index, message.word, message.spent_wei)
