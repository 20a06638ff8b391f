"""A customer's question and the replies that need no resolver. Owns the bytes of both.

Reading by hand what a stub resolver sends (one question, maybe one OPT record) costs 2 us where a general
parser takes 60, and a cached answer is mostly reading the question. All else is refused. Sources: RFC 1035
section 4, RFC 6891 (EDNS), RFC 8914 (extended errors).
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from exit.errors import DecodeError

HEADER_BYTES = 12
#: A question is at most 12 + 255 + 4 bytes; the rest is room for EDNS options, which we ignore.
MAX_QUERY_BYTES = 1024
MAX_NAME_BYTES = 255
#: What a reply over UDP may measure at most, whatever the customer offers: fits any path (DNS flag day 2020).
MAX_UDP_REPLY_BYTES = 1232
MIN_UDP_REPLY_BYTES = 512

QR, TC, RD, RA, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE = 0x7800
_TYPE_OPT, _CLASS_IN = 41, 1
_EDNS_DO = 0x8000
_OPTION_EDE = 15

_HEADER = struct.Struct(">HHHHHH")
_QUESTION_END = struct.Struct(">HH")
_OPT = struct.Struct(">BHHBBHH")


class Rcode(IntEnum):
    """Response codes that we use (RFC 1035)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class ExtendedError(IntEnum):
    """Extended errors that we use (RFC 8914)."""

    OTHER = 0
    BLOCKED = 15
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22


class Query(msgspec.Struct, frozen=True, gc=False):
    """One question. `name` is in wire form and lower case; `question` is the section as sent."""

    id: int
    flags: int
    name: bytes
    qtype: int
    qclass: int
    question: bytes
    has_edns: bool
    wants_dnssec: bool
    udp_limit_bytes: int

    @property
    def key(self) -> tuple[bytes, int, int]:
        """Return what makes two questions the same to the cache: name, type, and whether DNSSEC is wanted or
        off.
        """
        return self.name, self.qtype, (1 if self.wants_dnssec else 0) | (self.flags & CD)

    @property
    def opcode(self) -> int:
        """Return the operation; 0 is a query."""
        return (self.flags & _OPCODE) >> 11


def decode_query(wire: bytes) -> Query:
    """Read a customer's message; DecodeError for one that is no query with a single well-formed question."""
    size = len(wire)
    if size < HEADER_BYTES or size > MAX_QUERY_BYTES:
        raise DecodeError("length")
    message_id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(wire)
    if flags & QR:
        raise DecodeError("a response")
    if questions != 1 or answers or authorities or additionals > 1:
        raise DecodeError("counts")
    at = HEADER_BYTES
    try:
        while length := wire[at]:
            if length > 63:
                raise DecodeError("name")
            at += 1 + length
        at += 1
        end = at + 4
        if at - HEADER_BYTES > MAX_NAME_BYTES or end > size:
            raise DecodeError("name")
        qtype, qclass = _QUESTION_END.unpack_from(wire, at)
        # Length bytes are below 64, letters above: lower() changes letters only.
        name = wire[HEADER_BYTES:at].lower()
        question = wire[HEADER_BYTES:end]
        if not additionals:
            if end != size:
                raise DecodeError("trailing bytes")
            return Query(message_id, flags, name, qtype, qclass, question, False, False, MIN_UDP_REPLY_BYTES)
        root, kind, limit, _, version, edns_flags, options = _OPT.unpack_from(wire, end)
    except (IndexError, struct.error):
        raise DecodeError("cut short") from None
    if root or kind != _TYPE_OPT or version or end + _OPT.size + options != size:
        raise DecodeError("additional section")
    limit = min(max(limit, MIN_UDP_REPLY_BYTES), MAX_UDP_REPLY_BYTES)
    return Query(message_id, flags, name, qtype, qclass, question, True, bool(edns_flags & _EDNS_DO), limit)


def encode_reply(
    query: Query,
    rcode: int,
    body: bytes | bytearray = b"",
    counts: tuple[int, int] = (0, 0),
    *,
    limit_bytes: int,
    error: ExtendedError | None = None,
) -> bytes:
    """Return the reply to `query`: its id, question and EDNS, with `body` holding (answer, authority)
    `counts` records.

    The body is written for a place right after the question. A reply over `limit_bytes` goes out without a
    body and with TC set, which tells the customer to ask over TCP. `error` is added if the customer
    understands EDNS.
    """
    opt = b""
    if query.has_edns:
        option = b"" if error is None else struct.pack(">HHH", _OPTION_EDE, 2, error)
        dnssec = _EDNS_DO if query.wants_dnssec else 0
        opt = _OPT.pack(0, _TYPE_OPT, MAX_UDP_REPLY_BYTES, 0, 0, dnssec, len(option)) + option
    flags = QR | RA | query.flags & (_OPCODE | RD | CD) | rcode
    answers, authorities = counts
    if HEADER_BYTES + len(query.question) + len(body) + len(opt) > limit_bytes:
        flags |= TC
        answers = authorities = 0
        body = b""
    header = _HEADER.pack(query.id, flags, 1, answers, authorities, 1 if opt else 0)
    return b"".join((header, query.question, body, opt))


def encode_format_error(wire: bytes) -> bytes | None:
    """Return a FORMERR for a message that `decode_query` refused, or None for one that must not be answered.

    What is too short for a header, or a response itself, gets no answer: two servers would talk for ever.
    """
    if len(wire) < HEADER_BYTES or wire[2] & 0x80:
        return None
    message_id, flags = struct.unpack_from(">HH", wire)
    return _HEADER.pack(message_id, QR | RA | flags & (_OPCODE | RD) | Rcode.FORMERR, 0, 0, 0, 0)


def encode_upstream(query: Query, name: bytes, message_id: int) -> bytes:
    """Return the question for a resolver: `name` (wire form) in place of the customer's, nothing else of
    theirs.

    Options of the customer (client subnet, cookies) are not passed on.
    """
    flags = RD | query.flags & CD
    dnssec = _EDNS_DO if query.wants_dnssec else 0
    return b"".join(
        (
            _HEADER.pack(message_id, flags, 1, 0, 0, 1),
            name,
            _QUESTION_END.pack(query.qtype, _CLASS_IN),
            _OPT.pack(0, _TYPE_OPT, MAX_UDP_REPLY_BYTES, 0, 0, dnssec, 0),
        )
    )


def answers_question(wire: bytes, asked: bytes) -> bool:
    """Tell whether `wire` is a response to the message `asked`: the same id and the same question.

    Anything else on the same socket is a stray or a forgery and must be passed over.
    """
    if len(wire) < HEADER_BYTES or wire[:2] != asked[:2] or not wire[2] & 0x80 or wire[2] & 0x78:
        return False
    question = asked[HEADER_BYTES : len(asked) - _OPT.size]
    found = wire[HEADER_BYTES : HEADER_BYTES + len(question)]
    return (
        wire[4:6] == b"\x00\x01"
        and found[:-4].lower() == question[:-4].lower()
        and found[-4:] == question[-4:]
    )


def is_truncated(wire: bytes) -> bool:
    """Tell whether a response that `answers_question` says that it was cut."""
    return bool(wire[2] & 0x02)
