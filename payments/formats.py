"""Payment messages as bytes on a link's control stream: fixed layouts, big-endian, a kind byte in front.

Owns layouts only; what a message means is the tabs' affair. The overlay carries these bytes inside a
control message of its own. docs/protocol/payments.md, section 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from payments.books import MAX_CHAIN_ID, Book, Domain, SignedBook, Ticket
from payments.errors import DecodeError
from payments.refusals import Refusal

PROTOCOL_VERSION = 1

KIND_ATTACH = 0x11
KIND_BOOK = 0x12
KIND_TICKET = 0x13
KIND_COUNTS = 0x14
KIND_TERMS = 0x21
KIND_STATE = 0x22
KIND_REPORT = 0x23
KIND_REFUSED = 0x24

MAX_MESSAGE_BYTES = 192
"""No payment message is longer; a carrier may refuse longer ones unseen."""

_TERMS = struct.Struct(">BBQ20s20s32s16s16s")
_ATTACH = struct.Struct(">B20s65s")
_BOOK = struct.Struct(">BQ16s12sH32s65s")
_TICKET = struct.Struct(">BQH32s")
_COUNTS = struct.Struct(">BQQ16s")
_STATE = struct.Struct(">BBQ16s12sH32s65sH32s16s")
_REPORT = struct.Struct(">BBQQ16s16s")
_REFUSED = struct.Struct(">BBQH")

TICKET_MESSAGE_BYTES = _TICKET.size

URGENCY_NONE = 0
URGENCY_LOW = 1
URGENCY_EMPTY = 2


@dataclass(frozen=True, slots=True)
class Terms:
    """Payee to payer, first of all: where its purses are, who it is, a fresh challenge, what it allows."""

    domain: Domain
    payee: bytes
    challenge: bytes
    start_credit_wei: int
    minimum_value_wei: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Payer to payee: the purse's payer, proved by a signature over the challenge (`attach_digest`)."""

    payer: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class State:
    """Payee to payer, in answer to Attach: the newest book and ticket it holds, and what it has charged.

    `book` is None when the payee has never seen a book of this purse. The book's payee is the payee itself,
    not repeated on the wire.
    """

    book: SignedBook | None
    index: int
    word: bytes
    spent_wei: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Payer to payee: packets and wei as the payer counts them (packets on this link, wei on this purse)."""

    forward: int
    backward: int
    spent_wei: int


@dataclass(frozen=True, slots=True)
class Report:
    """Payee to payer: the same as the payee counts them, what it was paid, and whether it asks for more."""

    urgency: int
    forward: int
    backward: int
    spent_wei: int
    worth_wei: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Payee to payer: a book (index 0) or ticket was not accepted."""

    refusal: Refusal
    number: int
    index: int


Message = Terms | Attach | SignedBook | Ticket | Counts | State | Report | Refused


def encode_terms(terms: Terms) -> bytes:
    """Return the bytes of `terms`."""
    return _TERMS.pack(
        KIND_TERMS,
        PROTOCOL_VERSION,
        terms.domain.chain_id,
        terms.domain.contract,
        terms.payee,
        terms.challenge,
        terms.start_credit_wei.to_bytes(16, "big"),
        terms.minimum_value_wei.to_bytes(16, "big"),
    )


def encode_attach(attach: Attach) -> bytes:
    """Return the bytes of `attach`."""
    return _ATTACH.pack(KIND_ATTACH, attach.payer, attach.signature)


def encode_book(signed: SignedBook) -> bytes:
    """Return the bytes of a signed book, without its payee, which the link implies."""
    book = signed.book
    return _BOOK.pack(
        KIND_BOOK,
        book.number,
        book.base_wei.to_bytes(16, "big"),
        book.value_wei.to_bytes(12, "big"),
        book.length,
        book.tip,
        signed.signature,
    )


def encode_ticket(number: int, index: int, word: bytes) -> bytes:
    """Return the 43 bytes of a ticket."""
    return _TICKET.pack(KIND_TICKET, number, index, word)


def encode_counts(counts: Counts) -> bytes:
    """Return the bytes of `counts`."""
    return _COUNTS.pack(KIND_COUNTS, counts.forward, counts.backward, counts.spent_wei.to_bytes(16, "big"))


def encode_state(state: State) -> bytes:
    """Return the bytes of `state`; all book fields are zero when there is none."""
    spent = state.spent_wei.to_bytes(16, "big")
    if state.book is None:
        return _STATE.pack(
            KIND_STATE, 0, 0, bytes(16), bytes(12), 0, bytes(32), bytes(65), 0, bytes(32), spent
        )
    book = state.book.book
    return _STATE.pack(
        KIND_STATE,
        1,
        book.number,
        book.base_wei.to_bytes(16, "big"),
        book.value_wei.to_bytes(12, "big"),
        book.length,
        book.tip,
        state.book.signature,
        state.index,
        state.word,
        spent,
    )


def encode_report(report: Report) -> bytes:
    """Return the bytes of `report`."""
    return _REPORT.pack(
        KIND_REPORT,
        report.urgency,
        report.forward,
        report.backward,
        report.spent_wei.to_bytes(16, "big"),
        report.worth_wei.to_bytes(16, "big"),
    )


def encode_refused(refused: Refused) -> bytes:
    """Return the bytes of `refused`."""
    return _REFUSED.pack(KIND_REFUSED, refused.refusal, refused.number, refused.index)


def is_for_payee(message: bytes) -> bool:
    """Tell whether a message goes to this side's payee tab (else to its payer tab); false if empty."""
    return bool(message) and message[0] >> 4 == 1


def decode_message(data: bytes, payee: bytes) -> Message:
    """Return the message in `data`; `payee` (20 bytes) completes the books in it.

    Raises DecodeError if the kind is unknown, the length is not exactly the kind's, or a field is out of its
    range.
    """
    if not data:
        raise DecodeError("an empty payment message")
    decode = _DECODERS.get(data[0])
    if decode is None:
        raise DecodeError(f"a payment message of unknown kind {data[0]:#04x}")
    form, read = decode
    if len(data) != form.size:
        raise DecodeError(f"a payment message of kind {data[0]:#04x} has {len(data)} bytes, not {form.size}")
    return read(form.unpack(data), payee)


def decode_ticket(data: bytes) -> tuple[int, int, bytes]:
    """Return (number, index, word) of a ticket message; the short way for the busiest kind.

    Raises DecodeError if `data` is not exactly a ticket message.
    """
    if len(data) != TICKET_MESSAGE_BYTES or data[0] != KIND_TICKET:
        raise DecodeError("not a ticket message")
    _, number, index, word = _TICKET.unpack(data)
    return number, index, word


_Fields = tuple[Any, ...]
"""What struct unpacks: its types are the format's, which no annotation can tell."""


def _int(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _read_terms(f: _Fields, payee: bytes) -> Terms:
    _, version, chain_id, contract, address, challenge, credit, minimum = f
    if version != PROTOCOL_VERSION:
        raise DecodeError(f"payment protocol {version} is not spoken here")
    if not 0 < chain_id <= MAX_CHAIN_ID:
        raise DecodeError("a chain id out of range")
    return Terms(Domain(chain_id, contract), address, challenge, _int(credit), _int(minimum))


def _read_attach(f: _Fields, payee: bytes) -> Attach:
    return Attach(f[1], f[2])


def _read_book(f: _Fields, payee: bytes) -> SignedBook:
    _, number, base, value, length, tip, signature = f
    return SignedBook(Book(payee, number, _int(base), _int(value), length, tip), signature)


def _read_ticket(f: _Fields, payee: bytes) -> Ticket:
    return Ticket(f[1], f[2], f[3])


def _read_counts(f: _Fields, payee: bytes) -> Counts:
    return Counts(f[1], f[2], _int(f[3]))


def _read_state(f: _Fields, payee: bytes) -> State:
    _, present, number, base, value, length, tip, signature, index, word, spent = f
    if present == 0:
        if number or length or index or any(base + value + tip + signature + word):
            raise DecodeError("a state without a book has fields of one")
        return State(None, 0, bytes(32), _int(spent))
    if present != 1:
        raise DecodeError("a state's first field is 0 or 1")
    book = Book(payee, number, _int(base), _int(value), length, tip)
    return State(SignedBook(book, signature), index, word, _int(spent))


def _read_report(f: _Fields, payee: bytes) -> Report:
    _, urgency, forward, backward, spent, worth = f
    if urgency > URGENCY_EMPTY:
        raise DecodeError("an unknown urgency")
    return Report(urgency, forward, backward, _int(spent), _int(worth))


def _read_refused(f: _Fields, payee: bytes) -> Refused:
    try:
        refusal = Refusal(f[1])
    except ValueError:
        raise DecodeError(f"an unknown refusal {f[1]}") from None
    return Refused(refusal, f[2], f[3])


_DECODERS: dict[int, tuple[struct.Struct, Callable[[_Fields, bytes], Message]]] = {
    KIND_TERMS: (_TERMS, _read_terms),
    KIND_ATTACH: (_ATTACH, _read_attach),
    KIND_BOOK: (_BOOK, _read_book),
    KIND_TICKET: (_TICKET, _read_ticket),
    KIND_COUNTS: (_COUNTS, _read_counts),
    KIND_STATE: (_STATE, _read_state),
    KIND_REPORT: (_REPORT, _read_report),
    KIND_REFUSED: (_REFUSED, _read_refused),
}
