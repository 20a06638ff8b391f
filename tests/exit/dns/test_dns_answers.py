"""Responses of resolvers: chains of aliases, filters, lifetimes, and bytes that are no response."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.denied import DenyList
from exit.dns.answers import (
    MAX_NEGATIVE_TTL_S,
    MAX_TTL_S,
    Answer,
    decode_response,
    finish_answer,
    start_answer,
)
from exit.dns.cache import Cache, Entry
from exit.dns.query import Query, Rcode, decode_query
from exit.dns.rules import name_to_wire
from exit.errors import DecodeError

SOA = "example. 600 IN SOA ns. root. 1 2 3 4 300"


def ask(name: str = "www.example", kind: str = "A", **options: object) -> Query:
    return decode_query(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def response(query: Query, answer: list[str], authority: list[str] | None = None, rcode: int = 0) -> bytes:
    message = dns.message.make_query("x", dns.rdatatype.RdataType(query.qtype))
    reply = dns.message.make_response(message)
    reply.question = [
        dns.rrset.from_text(dns.name.from_wire(query.name, 0)[0], 0, "IN", dns.rdatatype.to_text(query.qtype))
    ]
    reply.set_rcode(dns.rcode.Rcode(rcode))
    for section, lines in ((reply.answer, answer), (reply.authority, authority or [])):
        for line in lines:
            name, ttl, rdclass, rdtype, rdata = line.split(" ", 4)
            section.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, *rdata.split(" | ")))
    return reply.to_wire()


def resolve(
    query: Query, *responses: bytes, has_ipv6: bool = True, now: float = 0.0, **deny: object
) -> Entry:
    answer = start_answer(query.name)
    for wire in responses:
        assert not answer.is_complete
        decode_response(wire, answer, query.qtype, query.wants_dnssec)
    assert answer.is_complete
    deny_list = DenyList(**deny)  # type: ignore[arg-type]
    return finish_answer(answer, query.name, query.qtype, deny_list, has_ipv6=has_ipv6, now=now)


def lines(entry: Entry, query: Query, now: float = 0.0) -> list[str]:
    reply = dns.message.from_wire(entry.reply(query, now, 65535))
    assert reply.id == query.id
    return [text for rrset in (*reply.answer, *reply.authority) for text in rrset.to_text().splitlines()]


def test_addresses_pass_and_age() -> None:
    query = ask("wWw.eXample")  # the reply repeats the customer's spelling
    entry = resolve(query, response(query, ["www.example. 300 IN A 9.9.9.9 | 1.1.1.1"]), now=100.0)
    assert sorted(lines(entry, query, 100.0)) == [
        "wWw.eXample. 300 IN A 1.1.1.1",
        "wWw.eXample. 300 IN A 9.9.9.9",
    ]
    assert lines(entry, query, 250.5)[0].startswith("wWw.eXample. 150 ")
    assert entry.is_fresh(399.9)
    assert not entry.is_fresh(400.0)
    assert not entry.is_fresh(99.0)
    assert dns.message.from_wire(entry.reply(query, 100.0, 512)).question[0].name.to_text() == "wWw.eXample."


def test_aliases_are_followed_and_strangers_left_out() -> None:
    query = ask()
    wire = response(
        query,
        [
            "www.example. 60 IN CNAME a.example.",
            "a.example. 50 IN CNAME b.example.",
            "b.example. 40 IN A 9.9.9.9",
            "stranger.example. 30 IN A 1.1.1.1",
        ],
        ["example. 600 IN NS ns.example."],
    )
    entry = resolve(query, wire)
    assert [line.split()[0] for line in lines(entry, query)] == ["www.example.", "a.example.", "b.example."]
    assert entry.ttl_s == 40


def test_an_alias_without_its_target_is_asked_about() -> None:
    query = ask()
    answer = start_answer(query.name)
    decode_response(response(query, ["www.example. 60 IN CNAME a.example."]), answer, 1, False)
    assert not answer.is_complete
    assert answer.tail.to_text() == "a.example."
    decode_response(response(ask("a.example"), ["a.example. 60 IN A 9.9.9.9"]), answer, 1, False)
    assert answer.is_complete
    assert answer.aliases == 1


def test_an_alias_with_proof_that_nothing_follows() -> None:
    query = ask(kind="AAAA")
    entry = resolve(query, response(query, ["www.example. 60 IN CNAME a.example."], [SOA]))
    assert entry.rcode == Rcode.NOERROR
    assert len(lines(entry, query)) == 2
    entry = resolve(query, response(query, ["www.example. 60 IN CNAME a.example."], [SOA], 3))
    assert entry.rcode == Rcode.NXDOMAIN


@pytest.mark.parametrize("length", [1, 2, 30])
def test_loops_and_long_chains_end(length: int) -> None:
    query = ask("n0.example")
    chain = [f"n{index}.example. 60 IN CNAME n{(index + 1) % length}.example." for index in range(length)]
    with pytest.raises(DecodeError):
        decode_response(response(query, chain), start_answer(query.name), 1, False)
    answer = start_answer(query.name)
    with pytest.raises(DecodeError):
        for index in range(40):
            step = ask(f"n{index}.example")
            decode_response(
                response(step, [f"n{index}.example. 60 IN CNAME n{index + 1}.example."]), answer, 1, False
            )


def test_a_question_for_an_alias_itself() -> None:
    query = ask(kind="CNAME")
    entry = resolve(query, response(query, ["www.example. 60 IN CNAME a.example."]))
    assert lines(entry, query) == ["www.example. 60 IN CNAME a.example."]


def test_dname() -> None:
    query = ask("www.old.example")
    wire = response(
        query,
        [
            "old.example. 60 IN DNAME new.example.",
            "www.old.example. 60 IN CNAME www.new.example.",
            "www.new.example. 60 IN A 9.9.9.9",
        ],
    )
    assert [line.split()[3] for line in lines(resolve(query, wire), query)] == ["DNAME", "CNAME", "A"]


DENIED = ["10.0.0.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1", "168.63.129.16"]
DENIED6 = ["::1", "::ffff:9.9.9.9", "fe80::1", "fd00:ec2::254", "64:ff9b::909:909", "2002:a00:1::1", "::"]


@pytest.mark.parametrize(
    ("kind", "addresses", "good"), [("A", DENIED, "9.9.9.9"), ("AAAA", DENIED6, "2606::9")]
)
def test_denied_addresses_are_taken_out(kind: str, addresses: list[str], good: str) -> None:
    query = ask(kind=kind, use_edns=0)
    for address in addresses:
        entry = resolve(query, response(query, [f"www.example. 60 IN {kind} {address}"]))
        assert entry.rcode == Rcode.REFUSED
        assert lines(entry, query) == []
        reply = dns.message.from_wire(entry.reply(query, 0.0, 512))
        assert "EDE 15" in reply.to_text()
        entry = resolve(query, response(query, [f"www.example. 60 IN {kind} {address} | {good}"]))
        assert lines(entry, query) == [f"www.example. 60 IN {kind} {good}"]
        # also behind an alias
        wire = response(query, ["www.example. 60 IN CNAME a.example.", f"a.example. 60 IN {kind} {address}"])
        assert resolve(query, wire).rcode == Rcode.REFUSED


def test_exact_and_lifted_addresses() -> None:
    query = ask()
    wire = response(query, ["www.example. 60 IN A 9.9.9.9 | 10.0.0.1"])
    assert lines(resolve(query, wire, addresses=["9.9.9.9"], allow=["10.0.0.0/8"]), query) == [
        "www.example. 60 IN A 10.0.0.1"
    ]


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_hints_are_cleaned(kind: str) -> None:
    query = ask(kind=kind)
    rdata = "1 . alpn=h2,h3 ipv4hint=9.9.9.9,10.0.0.1 ipv6hint=2606::9,fe80::1"
    wire = response(query, [f"www.example. 60 IN {kind} {rdata}"])
    text = lines(resolve(query, wire), query)[0]
    assert 'ipv4hint="9.9.9.9"' in text
    assert 'ipv6hint="2606::9"' in text
    text = lines(resolve(query, wire, has_ipv6=False), query)[0]
    assert "ipv6hint" not in text
    assert "h3" in text
    wire = response(query, [f"www.example. 60 IN {kind} 1 . alpn=h2 ipv4hint=10.0.0.1"])
    assert "hint" not in lines(resolve(query, wire), query)[0]
    wire = response(query, [f"www.example. 60 IN {kind} 1 . mandatory=ipv4hint ipv4hint=10.0.0.1"])
    assert resolve(query, wire).rcode == Rcode.REFUSED
    wire = response(query, [f"www.example. 60 IN {kind} 0 other.example."])
    assert lines(resolve(query, wire), query) == [f"www.example. 60 IN {kind} 0 other.example."]


def test_additional_addresses_never_pass() -> None:
    query = ask(kind="MX")
    message = dns.message.from_wire(response(query, ["www.example. 60 IN MX 10 mail.example."]))
    message.additional.append(dns.rrset.from_text("mail.example.", 60, "IN", "A", "10.0.0.1"))
    entry = resolve(query, message.to_wire())
    assert lines(entry, query) == ["www.example. 60 IN MX 10 mail.example."]


def test_negative_answers_and_their_lives() -> None:
    query = ask()
    entry = resolve(query, response(query, [], [SOA], 3))
    assert (entry.rcode, entry.ttl_s) == (Rcode.NXDOMAIN, 300)
    assert lines(entry, query, 100.0)[0].startswith("example. 500 IN SOA")
    entry = resolve(query, response(query, [], ["example. 100000 IN SOA ns. root. 1 2 3 4 100000"]))
    assert (entry.rcode, entry.ttl_s) == (Rcode.NOERROR, MAX_NEGATIVE_TTL_S)
    assert resolve(query, response(query, [])).ttl_s == 5
    entry = resolve(query, response(query, ["www.example. 9999999 IN A 9.9.9.9"]))
    assert entry.ttl_s == MAX_TTL_S
    entry = resolve(query, response(query, ["www.example. 0 IN A 9.9.9.9"]))
    assert entry.ttl_s == 0


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 9])
def test_failures_are_for_the_next_resolver(rcode: int) -> None:
    query = ask()
    with pytest.raises(DecodeError):
        decode_response(response(query, [], rcode=rcode), start_answer(query.name), 1, False)


def test_dnssec_records_only_for_who_wants_them() -> None:
    signature = "A 8 2 60 20300101000000 20200101000000 1 example. AAAA"
    for wants in (False, True):
        query = ask(want_dnssec=wants)
        wire = response(query, ["www.example. 60 IN A 9.9.9.9", f"www.example. 60 IN RRSIG {signature}"])
        assert len(lines(resolve(query, wire), query)) == 1 + wants
        wire = response(query, [], [SOA, "a.example. 60 IN NSEC z.example. A"], 3)
        assert len(lines(resolve(query, wire), query)) == 1 + wants


@given(st.binary(max_size=100), st.sampled_from([1, 28, 65, 5, 16]))
def test_any_bytes_are_read_or_refused(tail: bytes, qtype: int) -> None:
    query = ask()
    head = response(query, [])[: 12 + len(query.question)]
    for wire in (tail, head[:6] + b"\0\2\0\1\0\1" + head[12:] + tail):
        answer = start_answer(query.name)
        try:
            decode_response(wire, answer, qtype, True)
            finish_answer(answer, query.name, qtype, DenyList(), has_ipv6=True, now=0.0)
        except DecodeError:
            pass


GOOD = [
    (
        ask(),
        response(ask(), ["www.example. 60 IN CNAME a.example.", "a.example. 40 IN A 9.9.9.9 | 10.0.0.1"]),
    ),
    (
        ask(kind="HTTPS"),
        response(ask(kind="HTTPS"), ["www.example. 60 IN HTTPS 1 . alpn=h2 ipv4hint=9.9.9.9"]),
    ),
    (ask(kind="TXT"), response(ask(kind="TXT"), ['www.example. 60 IN TXT "hello"'], [SOA])),
    (ask(), response(ask(), [], [SOA, "a.example. 60 IN NSEC z.example. A"], 3)),
]


@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=5))
def test_any_damage_is_read_or_refused(good: tuple[Query, bytes], changes: list[tuple[int, int]]) -> None:
    query, whole = good
    wire = bytearray(whole)
    for at, value in changes:
        wire[at % len(wire)] = value
    answer = start_answer(query.name)
    try:
        decode_response(bytes(wire), answer, query.qtype, True)
        entry = finish_answer(answer, query.name, query.qtype, DenyList(), has_ipv6=False, now=0.0)
    except DecodeError:
        return
    reply = dns.message.from_wire(entry.reply(query, 7.0, 65535))
    for rrset in reply.answer:
        if rrset.rdtype == dns.rdatatype.A:
            assert "10.0.0.1" not in rrset.to_text()


def test_records_of_another_class_are_none_that_were_asked_for() -> None:
    query = ask()
    answer = start_answer(query.name)
    records = ["www.example. 60 IN A 9.9.9.9", r"www.example. 60 CLASS257 A \# 4 09090909"]
    decode_response(response(query, records), answer, query.qtype, False)
    assert [rrset.to_text() for rrset in answer.records] == ["www.example. 60 IN A 9.9.9.9"]


def entry_of(size: int, ttl_s: int = 60, stored_s: float = 0.0) -> Entry:
    return Entry(0, bytes(size), (0, 0), (), stored_s, ttl_s, None)


def key_of(number: int) -> tuple[bytes, int, int]:
    return name_to_wire(f"n{number}"), 1, 0


def test_the_cache_is_bounded_and_drops_what_is_used_least() -> None:
    cache = Cache(max_entries=10, max_bytes=1 << 20)
    for number in range(100):
        cache.put(key_of(number), entry_of(100))
        assert cache.get(key_of(0), 1.0) is not None
    assert len(cache) == 10
    assert cache.get(key_of(50), 1.0) is None
    cache = Cache(max_entries=1000, max_bytes=10_000)
    for number in range(100):
        cache.put(key_of(number), entry_of(2000))
    assert len(cache) == 3
    assert cache.size_bytes <= 10_000
    cache.put(key_of(1000), entry_of(20_000))
    assert cache.get(key_of(1000), 0.0) is None
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_what_is_old_or_lives_for_no_time_is_not_kept() -> None:
    cache = Cache()
    cache.put(key_of(1), entry_of(10, ttl_s=0))
    assert len(cache) == 0
    cache.put(key_of(1), entry_of(10, ttl_s=60))
    cache.put(key_of(1), entry_of(20, ttl_s=60))
    assert cache.get(key_of(1), 59.0) is not None
    assert cache.get(key_of(1), 61.0) is None
    assert (len(cache), cache.size_bytes, cache.hits, cache.misses) == (0, 0, 1, 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3000), st.integers(0, 3), st.booleans()), max_size=40
    )
)
def test_the_cache_counts_its_bytes(steps: list[tuple[int, int, int, bool]]) -> None:
    cache = Cache(max_entries=4, max_bytes=6000)
    for now, (number, size, ttl_s, put) in enumerate(steps):
        if put:
            cache.put(key_of(number), entry_of(size, ttl_s, float(now)))
        else:
            cache.get(key_of(number), float(now))
        costs = sum(entry.cost_bytes + len(key[0]) for key, entry in cache._entries.items())
        assert cache.size_bytes == costs <= 6000
        assert len(cache) <= 4


def test_answers_start_empty() -> None:
    assert start_answer(name_to_wire("example.com")) == Answer(dns.name.from_text("example.com."))
