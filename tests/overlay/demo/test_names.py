"""The small internet's DNS answers."""

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.demo import names
from overlay.demo.names import Zone


def ask(name: str, kind: str = "A", *, udp: bool = True, zone: Zone | None = None) -> dns.message.Message:
    answer = (zone or Zone()).answer(dns.message.make_query(name, kind).to_wire(), udp=udp)
    assert answer is not None and answer.wire is not None
    return dns.message.from_wire(answer.wire)


def values(message: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in message.answer for item in rrset]


def test_addresses_of_both_families() -> None:
    assert values(ask("www.demo.test")) == [names.WWW_V4]
    assert values(ask("WWW.Demo.Test", "AAAA")) == [names.WWW_V6]
    assert ask("www.demo.test").flags & dns.flags.AA


def test_a_name_with_one_family_only_has_an_empty_answer_for_the_other() -> None:
    message = ask("v6only.demo.test")
    assert (message.rcode(), message.answer) == (dns.rcode.NOERROR, [])
    assert message.authority
    assert values(ask("v6only.demo.test", "AAAA")) == [names.WWW_V6]


def test_aliases_are_followed() -> None:
    assert values(ask("alias.demo.test")) == ["www.demo.test.", names.WWW_V4]
    assert len(ask("loop.demo.test").answer) > 0


def test_a_name_that_does_not_exist() -> None:
    message = ask("nothing.demo.test")
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority


def test_a_name_that_the_server_cannot_answer() -> None:
    assert ask("broken.demo.test").rcode() == dns.rcode.SERVFAIL


def test_foreign_names_are_refused_or_left_to_the_forwarder() -> None:
    answer = Zone().answer(dns.message.make_query("example.com", "A").to_wire(), udp=True)
    assert answer is not None and answer.foreign and answer.wire is not None
    assert dns.message.from_wire(answer.wire).rcode() == dns.rcode.REFUSED


def test_a_slow_name_is_never_answered() -> None:
    answer = Zone().answer(dns.message.make_query("slow.demo.test", "A").to_wire(), udp=True)
    assert answer is not None
    assert (answer.wire, answer.foreign) == (None, False)


def test_long_answers_are_cut_over_udp_only() -> None:
    assert ask("big.demo.test", "TXT").flags & dns.flags.TC
    whole = ask("big.demo.test", "TXT", udp=False)
    assert not whole.flags & dns.flags.TC
    assert len(values(whole)) == 20


def test_reverse_names() -> None:
    assert values(ask("10.113.0.203.in-addr.arpa", "PTR")) == ["www.demo.test."]


def test_the_rebinding_name_changes_its_mind() -> None:
    zone = Zone()
    assert values(ask("rebind.evil.test", zone=zone)) == [names.WWW_V4]
    assert values(ask("rebind.evil.test", zone=zone)) == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["loopback", "private", "metadata", "inner", "mapped", "nat64", "mixed"])
def test_evil_names_exist(name: str) -> None:
    assert values(ask(f"{name}.evil.test", "AAAA"))


@given(st.binary(max_size=600), st.booleans())
def test_garbage_is_ignored(data: bytes, udp: bool) -> None:
    Zone().answer(data, udp=udp)


@given(st.data())
def test_damaged_queries_do_no_harm(data: st.DataObject) -> None:
    query = bytearray(dns.message.make_query("www.demo.test", "A", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        query[data.draw(st.integers(0, len(query) - 1))] = data.draw(st.integers(0, 255))
    Zone().answer(bytes(query), udp=True)
