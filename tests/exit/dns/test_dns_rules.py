"""Questions that no resolver hears of."""

from __future__ import annotations

import ipaddress

import dns.message
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.denied import DENIED_RANGES_V4, DENIED_RANGES_V6, DenyList
from exit.dns.query import Query, decode_query
from exit.dns.rules import Rules, Ruling, has_suffix, labels_of, name_to_wire


def ask(name: str, kind: str | int = "A", rdclass: str = "IN") -> Query:
    return decode_query(dns.message.make_query(name, kind, rdclass).to_wire())  # type: ignore[arg-type]


def judge(query: Query, *, has_ipv6: bool = True) -> Ruling | None:
    return Rules(has_ipv6=has_ipv6).judge(query, DenyList())


@pytest.mark.parametrize(
    "kind", ["A", "AAAA", "HTTPS", "MX", "TXT", "SRV", "NS", "SOA", "DS", "CAA", "CNAME"]
)
def test_ordinary_questions_are_resolved(kind: str) -> None:
    assert judge(ask("www.example.com", kind)) is None
    assert judge(ask("com", kind)) is None
    assert judge(ask(".", kind)) is None


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "a.LOCALHOST",
        "printer.local",
        "metadata.google.internal",
        "router.home.arpa",
        "x.onion",
        "invalid",
    ],
)
def test_local_names_do_not_exist(name: str) -> None:
    for kind in ("A", "AAAA", "TXT"):
        assert judge(ask(name, kind)) is Ruling.NO_SUCH_NAME


@pytest.mark.parametrize("name", ["notlocal", "local.example.com", "xlocal", "internal.net", "onion.example"])
def test_names_that_only_look_local(name: str) -> None:
    assert judge(ask(name)) is None


def test_no_ipv6_means_no_data() -> None:
    assert judge(ask("example.com", "AAAA"), has_ipv6=False) is Ruling.EMPTY
    assert judge(ask("example.com", "A"), has_ipv6=False) is None
    assert judge(ask("x.local", "AAAA"), has_ipv6=False) is Ruling.NO_SUCH_NAME


@pytest.mark.parametrize("kind", ["ANY", "AXFR", "IXFR", "TKEY", "TSIG", "MAILB", "OPT", 0])
def test_instructions_are_refused(kind: str | int) -> None:
    assert judge(ask("example.com", kind)) is Ruling.NOT_SUPPORTED


def test_other_classes_and_operations() -> None:
    assert judge(ask("version.bind", "TXT", "CH")) is Ruling.NOT_SUPPORTED
    wire = bytearray(dns.message.make_query("example.com", "SOA").to_wire())
    wire[2] |= 4 << 3
    assert judge(decode_query(bytes(wire))) is Ruling.NOT_IMPLEMENTED


@pytest.mark.parametrize("text", [*DENIED_RANGES_V4, *DENIED_RANGES_V6])
def test_reverse_lookups_of_denied_ranges(text: str) -> None:
    network = ipaddress.ip_network(text)
    for address in (network[0], network[-1]):
        assert judge(ask(str(dns.reversename.from_address(str(address))), "PTR")) is Ruling.REFUSED


@pytest.mark.parametrize(
    "zone", ["10.in-addr.arpa", "168.192.in-addr.arpa", "d.f.ip6.arpa", "0.8.e.f.ip6.arpa"]
)
def test_blocks_of_denied_ranges(zone: str) -> None:
    assert judge(ask(zone, "SOA")) is Ruling.REFUSED
    assert judge(ask("b._dns-sd._udp.0." + zone, "PTR")) in (Ruling.REFUSED, None)


@pytest.mark.parametrize("address", ["8.8.8.8", "9.255.255.255", "2606:4700::1111"])
def test_other_reverse_lookups(address: str) -> None:
    assert judge(ask(str(dns.reversename.from_address(address)), "PTR")) is None


@given(
    st.lists(
        st.sampled_from(["10", "in-addr", "ip6", "arpa", "d", "f", "999", "", "x", "1" * 63]), max_size=40
    )
)
def test_any_reverse_name_is_judged(labels: list[str]) -> None:
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels if label) + b"\4arpa\0"
    if len(name) <= 255:
        judge(Query(1, 0, name, 12, 1, name, False, False, 512))


@given(
    st.lists(st.sampled_from(["a", "b", "ab"]), max_size=5),
    st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3),
)
def test_suffixes_are_whole_labels(name: list[str], suffix: list[str]) -> None:
    def wire(labels: list[str]) -> bytes:
        return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"

    expected = not suffix or name[-len(suffix) :] == suffix
    assert has_suffix(wire(name), wire(suffix)) == expected
    assert labels_of(wire(name)) == [label.encode() for label in name]


def test_name_to_wire() -> None:
    assert name_to_wire("Home.ARPA.") == b"\4home\4arpa\0"
