"""Messages and ledger records as bytes: round trips, exact lengths, hostile bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import formats, state
from payments.books import Book, Domain, SignedBook, Ticket
from payments.errors import DecodeError
from payments.refusals import Refusal
from payments.state import PurseState

PAYEE = b"\x05" * 20
addresses = st.binary(min_size=20, max_size=20)
words = st.binary(min_size=32, max_size=32)
wei = st.integers(0, 2**128 - 1)
u64 = st.integers(0, 2**64 - 1)
books = st.builds(Book, st.just(PAYEE), u64, wei, st.integers(0, 2**96 - 1), st.integers(0, 65535), words)
signed_books = st.builds(SignedBook, books, st.binary(min_size=65, max_size=65))
terms = st.builds(
    formats.Terms, st.builds(Domain, st.integers(1, 2**63 - 37), addresses), addresses, words, wei, wei
)
states = st.one_of(
    st.builds(formats.State, st.none(), st.just(0), st.just(bytes(32)), wei),
    st.builds(formats.State, signed_books, st.integers(0, 65535), words, wei),
)
reports = st.builds(formats.Report, st.integers(0, 2), u64, u64, wei, wei)
refused = st.builds(formats.Refused, st.sampled_from(Refusal), u64, st.integers(0, 65535))


def encode(message: formats.Message) -> bytes:
    match message:
        case formats.Terms():
            return formats.encode_terms(message)
        case formats.Attach():
            return formats.encode_attach(message)
        case SignedBook():
            return formats.encode_book(message)
        case Ticket():
            return formats.encode_ticket(message.number, message.index, message.word)
        case formats.Counts():
            return formats.encode_counts(message)
        case formats.State():
            return formats.encode_state(message)
        case formats.Report():
            return formats.encode_report(message)
        case formats.Refused():
            return formats.encode_refused(message)


messages = st.one_of(
    terms,
    st.builds(formats.Attach, addresses, st.binary(min_size=65, max_size=65)),
    signed_books,
    st.builds(Ticket, u64, st.integers(0, 65535), words),
    st.builds(formats.Counts, u64, u64, wei),
    states,
    reports,
    refused,
)


@given(messages)
def test_round_trip(message: formats.Message) -> None:
    data = encode(message)
    assert len(data) <= formats.MAX_MESSAGE_BYTES
    assert formats.decode_message(data, PAYEE) == message
    to_payee = isinstance(message, formats.Attach | SignedBook | Ticket | formats.Counts)
    assert formats.is_for_payee(data) == to_payee


@given(messages, st.integers(0, 300))
def test_a_wrong_length_is_refused(message: formats.Message, length: int) -> None:
    data = encode(message)
    changed = data.ljust(length, b"\0")[:length]
    if len(changed) != len(data):
        with pytest.raises(DecodeError):
            formats.decode_message(changed, PAYEE)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for kind in (b"", b"\x11", b"\x12", b"\x13", b"\x14", b"\x21", b"\x22", b"\x23", b"\x24"):
        try:
            message = formats.decode_message(kind + data, PAYEE)
        except DecodeError:
            continue
        assert encode(message) == kind + data


@given(st.data())
def test_random_fields_decode_or_are_refused(data: st.DataObject) -> None:
    # Right kind and length, random content: every field's range gets tried.
    length, kind = data.draw(st.sampled_from([(114, 0x21), (86, 0x11), (185, 0x22), (50, 0x23), (12, 0x24)]))
    content = data.draw(st.binary(min_size=length - 1, max_size=length - 1))
    try:
        message = formats.decode_message(bytes((kind,)) + content, PAYEE)
    except DecodeError:
        return
    assert encode(message) == bytes((kind,)) + content


@given(st.binary(max_size=60))
def test_the_short_way_for_tickets_agrees(data: bytes) -> None:
    try:
        found = formats.decode_ticket(b"\x13" + data)
    except DecodeError:
        assert len(data) != 42
        return
    assert formats.decode_message(b"\x13" + data, PAYEE) == Ticket(*found)


@given(signed_books, st.integers(0, 65535), words, wei)
def test_records_round_trip_and_show_damage(signed: SignedBook, index: int, word: bytes, spent: int) -> None:
    purse = PurseState(signed, min(index, signed.book.length), word, spent)
    record = state.encode_payee_state(purse, PAYEE)
    assert len(record) == state.STATE_BYTES
    assert state.decode_payee_state(record) == purse
    with pytest.raises(DecodeError):
        state.decode_payer_state(record)
    place = index % len(record)
    damaged = record[:place] + bytes((record[place] ^ 1,)) + record[place + 1 :]
    with pytest.raises(DecodeError):
        state.decode_payee_state(damaged)
    for cut in (0, 1, len(record) - 1):
        with pytest.raises(DecodeError):
            state.decode_payee_state(record[:cut])
    assert state.decode_payer_state(state.encode_payer_state(state.EMPTY, PAYEE)) == state.EMPTY
