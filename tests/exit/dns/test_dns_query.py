"""Reading customers' questions by hand, and the replies made without a resolver."""

from __future__ import annotations

import contextlib

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.dns.query import (
    CD,
    MAX_UDP_REPLY_BYTES,
    ExtendedError,
    Query,
    Rcode,
    answers_question,
    decode_query,
    encode_format_error,
    encode_reply,
    encode_upstream,
    is_truncated,
)
from exit.dns.rules import name_to_wire
from exit.errors import DecodeError


def ask(name: str = "Example.COM", kind: str = "A", **options: object) -> Query:
    return decode_query(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def test_a_plain_question() -> None:
    query = ask()
    assert query.name == name_to_wire("example.com")
    assert query.question == b"\x07Example\x03COM\x00\x00\x01\x00\x01"
    assert (query.qtype, query.qclass, query.opcode) == (1, 1, 0)
    assert (query.has_edns, query.wants_dnssec, query.udp_limit_bytes) == (False, False, 512)


@pytest.mark.parametrize(
    ("payload", "limit"), [(0, 512), (512, 512), (1000, 1000), (65535, MAX_UDP_REPLY_BYTES)]
)
def test_edns(payload: int, limit: int) -> None:
    options = [dns.edns.ECSOption("1.2.3.0", 24), dns.edns.GenericOption(10, b"cookie12")]
    query = ask(use_edns=0, payload=payload, want_dnssec=True, options=options)
    assert (query.has_edns, query.wants_dnssec, query.udp_limit_bytes) == (True, True, limit)


def test_keys_differ_by_what_changes_the_answer() -> None:
    keys = {ask().key, ask(kind="AAAA").key, ask("other.com").key, ask(want_dnssec=True).key}
    keys.add(ask(flags=dns.flags.RD | dns.flags.CD).key)
    assert len(keys) == 5
    assert ask("EXAMPLE.com").key == ask("example.COM").key


def test_what_is_no_single_question() -> None:
    good = dns.message.make_query("example.com", "A", use_edns=0).to_wire()
    response = dns.message.make_response(dns.message.from_wire(good)).to_wire()
    for wire in (
        b"",
        good[:11],
        good[:-1],
        good + b"x",
        response,
        good[:4] + b"\0\2" + good[6:],
        good[:4] + b"\0\0" + good[6:],
        good[:6] + b"\0\1" + good[8:],
        good[:10] + b"\0\2" + good[12:],
        good[:12] + b"\xc0\x0c" + good[14:],
        good[:12] + b"\x40" + good[13:],
        good[:12]
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + b"\x3f"
        + b"a" * 63
        + good[12:],
        good[:-11] + b"x" + good[-10:],
        good + bytes(2000),
    ):
        with pytest.raises(DecodeError):
            decode_query(wire)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(wire: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode_query(wire)
    reply = encode_format_error(wire)
    assert (reply is None) == (len(wire) < 12 or wire[2] >= 128)
    if reply is not None:
        assert len(reply) == 12
        assert reply[:2] == wire[:2]
        assert reply[3] & 15 == Rcode.FORMERR


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4))
def test_what_we_read_dnspython_reads_alike(changes: list[tuple[int, int]]) -> None:
    wire = bytearray(dns.message.make_query("www.example.com", "A", use_edns=0, payload=1400).to_wire())
    for at, value in changes:
        wire[at % len(wire)] = value
    try:
        query = decode_query(bytes(wire))
    except DecodeError:
        return
    if query.opcode:
        return
    theirs = dns.message.from_wire(bytes(wire))
    question = theirs.question[0]
    assert query.name == question.name.canonicalize().to_wire()
    assert (query.qtype, query.qclass) == (question.rdtype, question.rdclass)
    assert query.id == theirs.id
    assert query.has_edns == (theirs.edns >= 0)


@pytest.mark.parametrize("edns", [False, True])
def test_replies_echo_the_question_and_nothing_of_the_customers_options(edns: bool) -> None:
    query = ask(use_edns=edns, want_dnssec=edns, flags=dns.flags.RD | dns.flags.CD | dns.flags.AD)
    wire = encode_reply(query, Rcode.REFUSED, limit_bytes=512, error=ExtendedError.BLOCKED)
    reply = dns.message.from_wire(wire)
    assert reply.id == query.id
    assert reply.question[0].to_text() == "Example.COM. IN A"
    assert reply.rcode() == Rcode.REFUSED
    assert reply.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert (reply.edns == 0) is edns
    errors = [option.code for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    assert errors == ([15] if edns else [])


def test_a_long_reply_is_cut_and_says_so() -> None:
    query = ask(use_edns=0)
    wire = encode_reply(query, Rcode.NOERROR, bytes(600), (5, 5), limit_bytes=512)
    reply = dns.message.from_wire(wire)
    assert reply.flags & dns.flags.TC
    assert is_truncated(wire)
    assert not reply.answer
    assert len(wire) < 100


def test_questions_for_resolvers_carry_nothing_else_of_the_customers() -> None:
    options = [dns.edns.ECSOption("1.2.3.0", 24)]
    query = ask(
        use_edns=0, want_dnssec=True, options=options, flags=dns.flags.RD | dns.flags.CD | dns.flags.AD
    )
    upstream = dns.message.from_wire(encode_upstream(query, name_to_wire("other.example"), 77))
    assert upstream.id == 77
    assert upstream.question[0].to_text() == "other.example. IN A"
    assert upstream.flags == dns.flags.RD | CD
    assert (upstream.edns, upstream.payload, upstream.options) == (0, 1232, ())
    assert upstream.ednsflags & dns.flags.DO


def test_only_the_response_to_the_question_counts() -> None:
    asked = encode_upstream(ask(), name_to_wire("example.com"), 0x1234)
    message = dns.message.from_wire(asked)
    good = dns.message.make_response(message).to_wire()
    assert answers_question(good, asked)
    assert answers_question(good.replace(b"example", b"eXamPle"), asked)
    for wire in (
        b"",
        good[:11],
        asked,
        b"\0\0" + good[2:],
        good.replace(b"example", b"exbmple"),
        good[:25] + b"\0\1\0\2" + good[29:],
        dns.message.make_response(dns.message.make_query("example.com", "AAAA", id=0x1234)).to_wire(),
        good[:2] + bytes([good[2] | 0x10]) + good[3:],
    ):
        assert not answers_question(wire, asked)


@given(st.binary(max_size=60))
def test_any_response_is_judged(wire: bytes) -> None:
    answers_question(wire, encode_upstream(ask(), name_to_wire("example.com"), 1))
