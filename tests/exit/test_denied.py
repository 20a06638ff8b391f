"""The deny list: its ranges, its arithmetic, and IPv4 addresses hidden in IPv6 ones."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.denied import (
    DENIED_RANGES_V4,
    DENIED_RANGES_V6,
    DenyList,
    embedded_v4,
    merge,
    networks_of,
    pack_address,
    subtract,
)


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize("text", [*DENIED_RANGES_V4, *DENIED_RANGES_V6])
def test_every_range_is_denied_to_its_ends(text: str) -> None:
    deny = DenyList()
    network = ipaddress.ip_network(text)
    size = network.max_prefixlen // 8
    first, last = int(network.network_address), int(network.broadcast_address)
    for value in (first, (first + last) // 2, last):
        assert value.to_bytes(size, "big") in deny


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.32.0.0",
        "168.63.129.15",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:200::1",
        "2003::",
        "2a00::1",
        "101::1",
    ],
)
def test_public_addresses_are_not(address: str) -> None:
    assert packed(address) not in DenyList()


def test_wrong_lengths_are_denied() -> None:
    assert b"" in DenyList()
    assert b"\x01" * 5 in DenyList()


def test_exact_addresses_and_extra_ranges() -> None:
    deny = DenyList(addresses=["8.8.8.8", "2606:4700::1%eth0", packed("9.9.9.9")], extra=["1.0.0.0/8"])
    for text in ("8.8.8.8", "2606:4700::1", "9.9.9.9", "1.2.3.4"):
        assert packed(text) in deny
    assert packed("8.8.8.9") not in deny
    assert packed("2606:4700::2") not in deny
    # a denied IPv4 address is also denied in disguise
    deny = DenyList(addresses=["8.8.8.8"], allow=["2002::/16", "::/8", "64:ff9b::/96", "64:ff9b:1::/48"])
    for text in ("2002:808:808::1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::808:808"):
        assert packed(text) in deny
    for text in ("2002:909:909::1", "::ffff:9.9.9.9", "64:ff9b::909:909"):
        assert packed(text) not in deny


def test_a_lifted_range_opens_no_exact_address() -> None:
    deny = DenyList(allow=["10.1.0.0/16", "fd00:1::/32"], addresses=["10.1.0.1"])
    assert packed("10.1.2.3") not in deny
    assert packed("10.1.0.1") in deny
    assert packed("10.0.255.255") in deny
    assert packed("10.2.0.0") in deny
    assert packed("fd00:1::5") not in deny
    assert packed("fd00:2::5") in deny


def test_lifting_what_is_not_denied_is_harmless() -> None:
    assert DenyList(allow=["1.0.0.0/8"]).ranges == DenyList().ranges


@pytest.mark.parametrize("text", ["10.0.0.0/33", "nonsense", "", "1.2.3", "fe80::/129"])
def test_bad_networks_say_so(text: str) -> None:
    with pytest.raises(ValueError, match="is no IP network"):
        DenyList(allow=[text])
    with pytest.raises(ValueError, match="is no IP network"):
        DenyList(extra=[text])
    with pytest.raises(ValueError, match="is no IP address"):
        DenyList(addresses=[text])


def test_packed_addresses_have_four_or_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="4 or 16"):
        pack_address(b"abc")


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::10.1.2.3", "10.1.2.3"),
        ("64:ff9b::10.1.2.3", "10.1.2.3"),
        ("64:ff9b:1:a01:2:300::", "10.1.2.3"),  # RFC 6052, /48
        ("64:ff9b:1:aa0a:1:203::", "10.1.2.3"),  # /56
        ("64:ff9b:1:aabb:a:102:300:0", "10.1.2.3"),  # /64
        ("64:ff9b:1:aabb::10.1.2.3", "10.1.2.3"),  # /96
        ("2002:a01:203::1", "10.1.2.3"),
    ],
)
def test_embedded_addresses_are_found(text: str, inner: str) -> None:
    assert int(ipaddress.IPv4Address(inner)) in embedded_v4(int(ipaddress.IPv6Address(text)))


def test_nothing_is_embedded_in_ordinary_addresses() -> None:
    for text in ("::", "::1", "2606:4700::a01:203", "fd00::1"):
        assert embedded_v4(int(ipaddress.IPv6Address(text))) == []


RANGES = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair))))


@given(RANGES, RANGES)
def test_range_arithmetic_is_set_arithmetic(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    def members(ranges: list[tuple[int, int]]) -> set[int]:
        return {value for first, last in ranges for value in range(first, last + 1)}

    assert members(merge(left)) == members(left)
    assert members(subtract(left, right)) == members(left) - members(right)
    cleaned = subtract(left, right)
    assert cleaned == merge(cleaned)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_networks_cover_a_range_exactly(one: int, other: int) -> None:
    first, last = sorted((one, other))
    networks = networks_of(4, (first, last))
    assert int(networks[0].network_address) == first
    assert int(networks[-1].broadcast_address) == last
    assert sum(network.num_addresses for network in networks) == last - first + 1


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_membership_agrees_with_the_list_of_networks(address: bytes) -> None:
    deny = DenyList(allow=["10.128.0.0/9"])
    version = 4 if len(address) == 4 else 6
    listed = any(ipaddress.ip_address(address) in network for network in deny.networks(version))
    assert listed == (address in deny)
