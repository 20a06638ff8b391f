"""What resolvers answer: read with dnspython, held against the question, filtered, and made ready for the
cache.

Only what belongs to the question stays: the chain of aliases from its name, the records asked for, the zone's
SOA for "no such", and their signatures if the customer wants DNSSEC. Addresses on the deny list are taken
out, also of HTTPS and SVCB hints; IPv6 hints go too where the exit has no IPv6. An answer of which nothing
else is left is refused, so that a name never leads a customer, or the exit, into the operator's own network
(DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.SOA
import dns.rdtypes.svcbbase
import dns.rrset

from exit.denied import DenyList, pack_address
from exit.dns.cache import Entry
from exit.dns.query import ExtendedError, Rcode
from exit.errors import DecodeError

#: Aliases followed in one answer and over several; common resolvers stop between 8 and 16.
MAX_ALIASES = 12
MAX_TTL_S = 86_400
#: RFC 2308 section 5 suggests one to three hours at most; names that appear should not be missing for long.
MAX_NEGATIVE_TTL_S = 900
#: A negative answer without an SOA, and a failure (RFC 9520 section 3.2: at least 1 s, at most 5 min).
FAILURE_TTL_S = 5
_MAX_WIRE_BYTES = 65_535

_ADDRESSES = (dns.rdatatype.A, dns.rdatatype.AAAA)
_SERVICES = (dns.rdatatype.SVCB, dns.rdatatype.HTTPS)
_PROOFS = (dns.rdatatype.NSEC, dns.rdatatype.NSEC3)
_HINT4, _HINT6 = dns.rdtypes.svcbbase.ParamKey.IPV4HINT, dns.rdtypes.svcbbase.ParamKey.IPV6HINT
_MANDATORY = dns.rdtypes.svcbbase.ParamKey.MANDATORY


@dataclass(slots=True)
class Answer:
    """What is known about a question so far. `tail` is the name that the aliases have led to."""

    tail: dns.name.Name
    rcode: int = Rcode.NOERROR
    records: list[dns.rrset.RRset] = field(default_factory=list)
    authority: list[dns.rrset.RRset] = field(default_factory=list)
    #: The records asked for were there, or it is known that there are none.
    is_complete: bool = False
    aliases: int = 0


def start_answer(name: bytes) -> Answer:
    """Return an empty answer about the name, given in wire form as `decode_query` returns it."""
    return Answer(dns.name.from_wire(name, 0)[0])


def decode_response(wire: bytes, answer: Answer, qtype: int, wants_dnssec: bool) -> None:
    """Add to `answer` what a resolver's response says about its tail; raises DecodeError for a malformed one.

    Afterwards `is_complete` tells whether another question, about the new tail, is needed. The response's id
    and question were checked already (`answers_question`).
    """
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
        # Of another class, the same type may mean something else, and is nothing that was asked for.
        for section in (message.answer, message.authority):
            section[:] = [rrset for rrset in section if rrset.rdclass == dns.rdataclass.IN]
        _follow(message, answer, dns.rdatatype.RdataType(qtype), wants_dnssec)
    except (dns.exception.DNSException, ValueError, LookupError, TypeError) as error:
        raise DecodeError(f"malformed response: {type(error).__name__}") from None


def _follow(
    message: dns.message.Message, answer: Answer, qtype: dns.rdatatype.RdataType, wants_dnssec: bool
) -> None:
    rcode = int(message.rcode())
    if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        raise DecodeError("a failure")
    by_key = {(rrset.name, rrset.rdtype, rrset.covers): rrset for rrset in message.answer}

    def take(name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
        found = by_key.get((name, rdtype, dns.rdatatype.NONE))
        if found is not None:
            answer.records.append(found)
            signature = by_key.get((name, dns.rdatatype.RRSIG, rdtype))
            if signature is not None and wants_dnssec:
                answer.records.append(signature)
        return found

    before = answer.aliases
    while take(answer.tail, qtype) is None:
        for rrset in message.answer:
            if rrset.rdtype == dns.rdatatype.DNAME and answer.tail.is_subdomain(rrset.name):
                take(rrset.name, dns.rdatatype.DNAME)
        alias = take(answer.tail, dns.rdatatype.CNAME)
        if alias is None:
            # An alias without its target's records and without proof that there are none: ask about the
            # target.
            soa = [rrset for rrset in message.authority if rrset.rdtype == dns.rdatatype.SOA]
            answer.is_complete = answer.aliases == before or bool(soa) or rcode == Rcode.NXDOMAIN
            if answer.is_complete:
                answer.rcode = rcode
                answer.authority = soa + (_proofs(message.authority) if wants_dnssec else [])
            return
        answer.aliases += 1
        if answer.aliases > MAX_ALIASES:
            raise DecodeError("too many aliases")
        target = alias[0]
        if not isinstance(target, dns.rdtypes.ANY.CNAME.CNAME):
            raise DecodeError("alias")
        answer.tail = target.target
    answer.is_complete = True


def _proofs(authority: Sequence[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    return [
        rrset
        for rrset in authority
        if rrset.rdtype in _PROOFS
        or (rrset.rdtype == dns.rdatatype.RRSIG and rrset.covers != dns.rdatatype.NS)
    ]


def finish_answer(
    answer: Answer, name: bytes, qtype: int, deny: DenyList, *, has_ipv6: bool, now: float
) -> Entry:
    """Return the answer to the question (`name` in wire form, `qtype`), filtered, as the cache keeps it.

    Raises DecodeError for an answer that does not fit a message.
    """
    records, removed = filter_records(answer.records, deny, has_ipv6=has_ipv6)
    if removed and not any(rrset.rdtype == qtype for rrset in records):
        return failure(Rcode.REFUSED, ExtendedError.BLOCKED, now)
    is_negative = answer.rcode == Rcode.NXDOMAIN or not any(rrset.rdtype == qtype for rrset in records)
    ttls = [rrset.ttl for rrset in records]
    if is_negative:
        ttls.append(_negative_ttl_s(answer.authority))
    ttl_s = max(0, min([*ttls, MAX_TTL_S]))
    body = _body(records, answer.authority, name, qtype)
    counts = _count(records), _count(answer.authority)
    return Entry(answer.rcode, body, counts, tuple(_ttl_places(body, sum(counts))), now, ttl_s, None)


def failure(rcode: Rcode, error: ExtendedError | None, now: float) -> Entry:
    """Return an answer without records, kept for a few seconds."""
    return Entry(rcode, b"", (0, 0), (), now, FAILURE_TTL_S, error)


def filter_records(
    records: Iterable[dns.rrset.RRset], deny: DenyList, *, has_ipv6: bool
) -> tuple[list[dns.rrset.RRset], int]:
    """Return the record sets without denied addresses, and how many records had to go for them.

    Without IPv6 the hints for it go too; AAAA records are not expected then (`Rules.judge`).
    """
    kept = []
    removed = 0
    for rrset in records:
        if rrset.rdtype in _ADDRESSES:
            good = [rdata for rdata in rrset if pack_address(rdata.address) not in deny]
        elif rrset.rdtype in _SERVICES:
            good = [clean for rdata in rrset if (clean := _clean_service(rdata, deny, has_ipv6)) is not None]
        else:
            kept.append(rrset)
            continue
        removed += len(rrset) - len(good)
        if good:
            fresh = dns.rrset.from_rdata_list(rrset.name, rrset.ttl, good)
            kept.append(fresh)
    return kept, removed


def _clean_service(rdata: dns.rdata.Rdata, deny: DenyList, has_ipv6: bool) -> dns.rdata.Rdata | None:
    """Return the SVCB or HTTPS record without denied hints, or None if it is worthless without them."""
    if not isinstance(rdata, dns.rdtypes.svcbbase.SVCBBase):
        return None
    params = dict(rdata.params)
    for key, kind in (
        (_HINT4, dns.rdtypes.svcbbase.IPv4HintParam),
        (_HINT6, dns.rdtypes.svcbbase.IPv6HintParam),
    ):
        hint = params.get(key)
        if hint is None:
            continue
        addresses = getattr(hint, "addresses", ())
        good = [address for address in addresses if pack_address(address) not in deny]
        if key == _HINT6 and not has_ipv6:
            good = []
        if len(good) == len(addresses):
            continue
        if good:
            params[key] = kind(good)
            continue
        del params[key]
        if key in getattr(params.get(_MANDATORY), "keys", ()):
            return None
    return rdata.replace(params=params) if params != rdata.params else rdata


def _negative_ttl_s(authority: Sequence[dns.rrset.RRset]) -> int:
    """Return how long "no such" holds: the lesser of the SOA's own life and its minimum field (RFC 2308)."""
    for rrset in authority:
        soa = rrset[0] if rrset.rdtype == dns.rdatatype.SOA else None
        if isinstance(soa, dns.rdtypes.ANY.SOA.SOA):
            return min(rrset.ttl, soa.minimum, MAX_NEGATIVE_TTL_S)
    return FAILURE_TTL_S


def _count(rrsets: Iterable[dns.rrset.RRset]) -> int:
    return sum(len(rrset) for rrset in rrsets)


def _body(records: list[dns.rrset.RRset], authority: list[dns.rrset.RRset], name: bytes, qtype: int) -> bytes:
    """Return the answer and authority sections, compressed for a place after the question."""
    message = dns.message.QueryMessage(0)
    question = dns.rrset.RRset(
        dns.name.from_wire(name, 0)[0], dns.rdataclass.IN, dns.rdatatype.RdataType(qtype)
    )
    message.question = [question]
    message.answer = records
    message.authority = authority
    try:
        wire = message.to_wire(max_size=_MAX_WIRE_BYTES)
    except (dns.exception.DNSException, ValueError) as error:
        raise DecodeError(f"cannot pass the answer on: {type(error).__name__}") from None
    return wire[12 + len(name) + 4 :]


def _ttl_places(body: bytes, count: int) -> list[tuple[int, int]]:
    """Return (offset in `body`, value in seconds) of each record's TTL; `body` is our own and well formed."""
    places = []
    at = 0
    for _ in range(count):
        while length := body[at]:
            if length >= 0xC0:
                at += 1
                break
            at += 1 + length
        at += 1
        ttl = int.from_bytes(body[at + 4 : at + 8], "big")
        places.append((at + 4, ttl))
        at += 10 + int.from_bytes(body[at + 8 : at + 10], "big")
    return places
