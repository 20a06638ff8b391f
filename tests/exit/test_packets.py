"""The strict parser of customers' packets, checksums, and the exit's ICMP errors."""

from __future__ import annotations

import struct

import exit_wire as wire
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.icmp import IcmpErrors, may_answer
from exit.packets import Packet, addresses, checksum, parse, partial_sum, transport_checksum
from exit.policy import ANY_PORT, Verdict
from exit.tun.segment import checksum_is_right

DNS4, DNS6 = bytes([100, 64, 0, 1]), bytes.fromhex("fd686f70666100000000000000000001")
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def read(raw: bytes, offset: int = 0) -> Packet:
    packet = parse(raw, offset)
    assert packet is not None
    return packet


@VERSIONS
@pytest.mark.parametrize("offset", [0, 10])
def test_tcp_udp_and_echo(version: int, offset: int) -> None:
    source, destination = wire.addresses_of(version)
    start = offset + (20 if version == 4 else 40)
    pad = b"\xff" * offset
    packet = read(pad + wire.tcp(version, b"hello", flags=0x18), offset)
    assert packet == Packet(version, 6, source, destination, 40000, 443, 0x18, start)
    packet = read(pad + wire.udp(version, b"hello"), offset)
    assert packet == Packet(version, 17, source, destination, 40000, 53, 0, start)
    packet = read(pad + wire.echo(version), offset)
    assert packet == Packet(
        version,
        1 if version == 4 else 58,
        source,
        destination,
        7,
        ANY_PORT,
        8 if version == 4 else 128,
        start,
    )
    assert addresses(pad + wire.udp(version), offset) == (version, 17, source, destination)


@VERSIONS
def test_other_protocols_keep_their_addresses_so_that_they_can_be_refused(version: int) -> None:
    raw = wire.ip4(47, bytes(40)) if version == 4 else wire.ip6(47, bytes(40))
    packet = read(raw)
    assert (packet.protocol, packet.destination_port) == (47, 0)


@VERSIONS
@given(cut=st.integers(1, 60), grow=st.integers(1, 9))
def test_lengths_must_agree(version: int, cut: int, grow: int) -> None:
    for raw in (wire.tcp(version, b"x"), wire.udp(version, b"hello"), wire.echo(version)):
        assert parse(raw[:-cut]) is None
        assert parse(raw + bytes(grow)) is None


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("options", b"\x46" + wire.ip4(17, bytes(4) + wire.udp(4)[20:])[1:]),
        ("reserved flag", wire.ip4(17, wire.udp(4)[20:], fragment=0x8000)),
        ("version 5", b"\x55" + wire.udp(4)[1:]),
        ("udp length", wire.ip4(17, struct.pack(">HHHH", 1, 2, 9, 0))),
        ("udp length under 8", wire.ip4(17, struct.pack(">HHHH", 1, 2, 7, 0))),
        ("tcp without header", wire.ip4(6, bytes(19))),
        ("tcp offset too small", wire.ip4(6, bytes(12) + b"\x40" + bytes(7))),
        ("tcp offset too large", wire.ip4(6, bytes(12) + b"\x60" + bytes(7))),
        ("echo reply", wire.ip4(1, bytes(8))),
        ("echo with a code", wire.ip4(1, b"\x08\x01" + bytes(6))),
        ("redirect", wire.ip4(1, b"\x05\x01" + bytes(30))),
        ("icmp error", wire.ip4(1, b"\x03\x03" + bytes(30))),
        ("icmpv6 in ipv4", wire.ip4(58, b"\x80\x00" + bytes(6))),
        ("icmp in ipv6", wire.ip6(1, b"\x08\x00" + bytes(6))),
        ("router advertisement", wire.ip6(58, b"\x86\x00" + bytes(30))),
        ("odd inner fragment", wire.ip4(17, bytes(9), fragment=0x2000)),
        ("odd later fragment", wire.ip4(17, bytes(9), fragment=0x2001)),
        ("first fragment of tcp without a header", wire.ip4(6, bytes(16), fragment=0x2000)),
        ("v6 fragment, reserved byte", wire.ip6(44, b"\x11\x01\x00\x01" + bytes(12))),
        ("v6 fragment, reserved bits", wire.ip6(44, b"\x11\x00\x00\x03" + bytes(12))),
        ("v6 fragment, empty", wire.ip6(44, b"\x11\x00\x00\x08" + bytes(4))),
        ("v6 fragment in a fragment", wire.ip6(44, b"\x3a\x00\x00\x01" + bytes(4) + b"\x81" + bytes(15))),
    ],
)
def test_what_is_not_carried(what: str, raw: bytes) -> None:
    assert parse(raw) is None, what


@pytest.mark.parametrize("header", [0, 43, 50, 51, 60, 135])
def test_extension_headers_have_no_ports_and_so_no_way_out(header: int) -> None:
    packet = read(wire.ip6(header, b"\x06\x00" + bytes(6) + wire.tcp(6)[40:]))
    assert (packet.protocol, packet.source_port, packet.destination_port) == (header, 0, 0)


def test_fragments() -> None:
    datagram = wire.udp(4, b"x" * 32)[20:]
    first = read(wire.ip4(17, datagram[:24], fragment=0x2000))
    assert (first.destination_port, first.is_fragment) == (53, True)
    later = read(wire.ip4(17, datagram[24:], fragment=0x0003))
    assert (later.destination_port, later.is_fragment) == (ANY_PORT, True)
    first = read(wire.ip6(44, b"\x11\x00\x00\x01" + bytes(4) + datagram[:24]))
    assert (first.protocol, first.source_port, first.destination_port) == (17, 40000, 53)
    assert first.is_fragment
    later = read(wire.ip6(44, b"\x11\x00\x00\x18" + bytes(4) + datagram[24:]))
    assert (later.protocol, later.destination_port, later.is_fragment) == (17, ANY_PORT, True)
    assert may_answer(first)
    assert not may_answer(later)


@given(st.binary(max_size=120), st.integers(0, 12))
def test_any_bytes_are_read_or_refused(raw: bytes, offset: int) -> None:
    packet = parse(raw, offset)
    assert packet is None or len(packet.source) == (4 if packet.version == 4 else 16)
    addresses(raw, offset)


@given(
    st.sampled_from(
        [wire.tcp(4, b"12345678"), wire.udp(6, b"12345678"), wire.echo(6), wire.ip6(44, bytes(40))]
    ),
    st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=4),
)
def test_any_damage_is_read_or_refused(raw: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(raw)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    packet = parse(bytes(damaged))
    if packet is not None:
        assert packet.transport_offset <= len(damaged)
        errors = IcmpErrors(DNS4, DNS6)
        errors.refused(bytes(damaged), 0, packet, Verdict.DENIED_PORT, 0.0)


@given(st.binary(max_size=300), st.integers(0, 0xFFFFF))
def test_checksums_agree_with_the_slow_sum(data: bytes, start: int) -> None:
    slow = wire.slow_sum(data + b"\0" * (len(data) & 1) + struct.pack(">I", start))
    assert partial_sum(data, start) == slow
    assert checksum(data) == wire.slow_checksum(data)
    source, destination = wire.addresses_of(6)
    expected = wire.slow_checksum(wire.pseudo(source, destination, 17, len(data)) + data) or 0xFFFF
    assert transport_checksum(source, destination, 17, data) == expected


@VERSIONS
@pytest.mark.parametrize("size", [0, 100, 1300])
def test_prohibited_and_too_big(version: int, size: int) -> None:
    errors = IcmpErrors(DNS4, DNS6)
    raw = bytes(10) + wire.tcp(version, b"p" * size)
    packet = read(raw, 10)
    own = DNS4 if version == 4 else DNS6
    start = 20 if version == 4 else 40
    for answer, kind, code, rest in (
        (
            errors.refused(raw, 10, packet, Verdict.DENIED_PORT, 0.0),
            *((3, 13) if version == 4 else (1, 1)),
            0,
        ),
        (errors.refused(raw, 10, packet, Verdict.NO_IPV6, 0.0), *((3, 13) if version == 4 else (1, 0)), 0),
        (errors.unreachable(raw, 10, packet, 0.0), *((3, 1) if version == 4 else (1, 3)), 0),
        (errors.too_big(raw, 10, packet, 1300, 0.0), *((3, 4) if version == 4 else (2, 0)), 1300),
    ):
        assert answer is not None
        assert len(answer) <= (576 if version == 4 else 1280)
        found = addresses(answer)
        assert found == (version, 1 if version == 4 else 58, own, packet.source)
        assert (answer[start], answer[start + 1]) == (kind, code)
        assert struct.unpack_from(">I", answer, start + 4)[0] == rest
        quote = answer[start + 8 :]
        assert raw[10:].startswith(quote)
        assert len(quote) >= min(len(raw) - 10, 500)
        if version == 4:
            assert wire.slow_checksum(answer[:20]) == 0
            assert wire.slow_checksum(answer[20:]) == 0
            assert int.from_bytes(answer[2:4], "big") == len(answer)
        else:
            assert checksum_is_right(answer, 40, 58)
            assert int.from_bytes(answer[4:6], "big") == len(answer) - 40


def test_errors_are_rate_limited_and_survive_clock_jumps() -> None:
    errors = IcmpErrors(DNS4, DNS6, per_second=5)
    raw = wire.udp(4)
    packet = read(raw)

    def sent(now: float, tries: int) -> int:
        return sum(errors.refused(raw, 0, packet, Verdict.DENIED_PORT, now) is not None for _ in range(tries))

    assert sent(100.0, 50) == 5
    assert errors.suppressed == 45
    assert sent(100.4, 50) == 2
    assert sent(50.0, 50) == 0
    assert sent(50.2, 50) == 1
    assert sent(1e9, 50) == 5


def test_no_errors_about_multicast_or_fragmentable_packets() -> None:
    errors = IcmpErrors(DNS4, DNS6)
    for pair in (("100.64.0.9", "224.0.0.1"), ("fd68::1", "ff02::1")):
        raw = wire.udp(4 if "." in pair[0] else 6, pair=pair)
        assert errors.refused(raw, 0, read(raw), Verdict.DENIED_ADDRESS, 0.0) is None
    raw = wire.ip4(17, wire.udp(4)[20:], fragment=0)
    assert errors.too_big(raw, 0, read(raw), 576, 0.0) is None
