"""The vnet header's check, and segmentation in software against the plain rules of TCP and IP."""

from __future__ import annotations

import struct

import exit_wire as wire
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.errors import DecodeError
from exit.packets import CWR, FIN, PSH, parse
from exit.tun.segment import checksum_is_right, finish_checksum, to_packets
from exit.tun.vnet import (
    DATA_VALID,
    PLAIN_HEADER,
    Header,
    decode_header,
    is_plain,
    is_super,
    segment_payload_bytes,
    validate_offload,
)

VERSIONS = pytest.mark.parametrize("version", [4, 6])


def judge(raw: bytes) -> str | None:
    packet = parse(raw, 10)
    assert packet is not None
    return validate_offload(raw, packet)


@VERSIONS
def test_what_a_tun_hands_out_is_accepted(version: int) -> None:
    start = 20 if version == 4 else 40
    for raw in (
        wire.super_packet(version, b"x" * 5000, 1340),
        wire.super_packet(version, b"x" * 5000, 1340, flags=0x10 | CWR | PSH),
        wire.super_packet(version, b"x" * 5000, 1340, options=b"\x01" * 12, flags=0x10 | FIN),
        wire.vnet(1, 0, 0, 0, start, 16) + wire.tcp(version, b"x", partial=True),
        wire.vnet(1, 0, 0, 0, start, 16) + wire.tcp(version, flags=2, partial=True),
        wire.vnet(1, 0, 0, 0, start, 6) + wire.udp(version, b"x", partial=True),
        PLAIN_HEADER + wire.udp(version),
        PLAIN_HEADER + wire.echo(version),
    ):
        assert judge(raw) is None
        assert is_plain(raw) is (raw[:10] == PLAIN_HEADER)
    assert is_plain(wire.vnet(DATA_VALID) + wire.udp(version))


@VERSIONS
@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("unknown flags", {"flags": 2}),
        ("unknown flags", {"flags": 3}),
        ("unknown flags", {"flags": 0x80}),
        ("segments without checksums", {"flags": 0, "csum_start": 0, "csum_offset": 0}),
        ("checksum fields without their flag", {"flags": 0}),
        ("checksum elsewhere", {"csum_start": 0}),
        ("checksum elsewhere", {"csum_start": 65535}),
        ("checksum elsewhere", {"csum_offset": 6}),
        ("segment type differs from the packet", {"gso_type": 3}),
        ("segment type differs from the packet", {"gso_type": 5}),
        ("segment type differs from the packet", {"gso_type": 0x7F}),
        ("segment type differs from the packet", {"gso_type": 0x80}),
        ("ECN type without CWR", {"ecn": True}),
        ("segment type differs from the packet", {"swap": True}),
        ("segment fields without a type", {"gso_type": 0}),
        ("header length", {"hdr_len": 39}),
        ("header length", {"hdr_len": 65535}),
        ("segment size", {"gso_size": 0}),
        ("segment size", {"gso_size": 499}),
        ("segment size", {"gso_size": 1481}),
        ("segment size", {"gso_size": 65535}),
    ],
)
def test_every_field_is_held_against_the_packet(version: int, reason: str, change: dict[str, int]) -> None:
    raw = wire.super_packet(version, b"x" * 5000, 1340)
    header = decode_header(raw)
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    change = dict(change)
    if change.pop("ecn", False):
        fields["gso_type"] |= 0x80
    if change.pop("swap", False):
        fields["gso_type"] ^= 5
    fields.update(change)
    assert judge(Header(**fields).encode() + raw[10:]) == reason


@VERSIONS
def test_control_packets_and_other_protocols_are_not_segmented(version: int) -> None:
    for flags in (0x02, 0x12, 0x14, 0x30, 0x00, 0x08):
        raw = wire.super_packet(version, b"x" * 3000, 1340, flags=flags)
        assert judge(raw) == "segments of a control packet"
    start = 20 if version == 4 else 40
    kind = 1 if version == 4 else 4
    raw = wire.vnet(1, kind, start + 8, 1340, start, 6) + wire.udp(version, b"x" * 3000, partial=True)
    assert judge(raw) == "segment type differs from the packet"
    raw = wire.vnet(1, 0, 0, 0, start, 16) + wire.echo(version, b"x" * 100)
    assert judge(raw) == "checksum of neither TCP nor UDP"


def test_fragments_have_no_offloads() -> None:
    raw = wire.vnet(1, 0, 0, 0, 20, 6) + wire.ip4(17, wire.udp(4, bytes(8))[20:], fragment=0x2000)
    assert judge(raw) == "checksum of a fragment"


@given(st.binary(min_size=10, max_size=10), st.sampled_from([4, 6]), st.integers(0, 3000))
def test_any_header_is_judged_and_cut_without_an_error(header: bytes, version: int, size: int) -> None:
    raw = header + wire.tcp(version, b"x" * size)
    judge(raw)
    if len(to_packets(raw)) > 1:
        assert sum(len(packet) for packet in to_packets(raw)) < 45 * (size + 60)


@given(st.binary(max_size=100))
def test_any_bytes_are_cut_without_an_error(raw: bytes) -> None:
    to_packets(raw)
    try:
        assert decode_header(raw).encode() == raw[:10]
    except DecodeError:
        assert len(raw) < 10


@given(
    version=st.sampled_from([4, 6]),
    payload=st.binary(min_size=0, max_size=6000),
    size=st.integers(500, 1400),
    flags=st.sampled_from([0x10, 0x18, 0x11, 0x19, 0x98, 0x50]),
    sequence=st.integers(0, 2**32 - 1),
    options=st.sampled_from([b"", b"\x01\x01\x08\x0a" + b"12345678"]),
)
def test_segments_are_what_tcp_says(
    version: int, payload: bytes, size: int, flags: int, sequence: int, options: bytes
) -> None:
    raw = wire.super_packet(version, payload, size, flags=flags, sequence=sequence, options=options)
    packets = to_packets(raw)
    assert len(packets) == max(1, -(-len(payload) // size))
    joined = b""
    for index, packet in enumerate(packets):
        read = parse(packet)
        assert read is not None
        start = read.transport_offset
        first, last = index == 0, index == len(packets) - 1
        assert read.detail & CWR == (flags & CWR if first else 0)
        assert read.detail & (FIN | PSH) == (flags & (FIN | PSH) if last else 0)
        assert read.detail & 0x76 == flags & 0x76
        assert struct.unpack_from(">I", packet, start + 4)[0] == (sequence + len(joined)) % 2**32
        assert packet[start + 20 : start + 20 + len(options)] == options
        source, destination = wire.addresses_of(version)
        segment = packet[start:]
        assert wire.slow_sum(wire.pseudo(source, destination, 6, len(segment)) + segment) == 0xFFFF
        assert checksum_is_right(packet, start, 6)
        if version == 4:
            assert wire.slow_sum(packet[:20]) == 0xFFFF
            assert struct.unpack_from(">H", packet, 4)[0] == 1 + index
        joined += packet[start + 20 + len(options) :]
    assert joined == payload


@given(st.sampled_from([4, 6]), st.binary(max_size=200))
def test_finished_checksums_are_right(version: int, payload: bytes) -> None:
    start = 20 if version == 4 else 40
    for packet, whole, offset, protocol in (
        (wire.tcp(version, payload, partial=True), wire.tcp(version, payload), 16, 6),
        (wire.udp(version, payload, partial=True), wire.udp(version, payload), 6, 17),
    ):
        assert to_packets(wire.vnet(1, 0, 0, 0, start, offset) + packet) == [whole]
        assert checksum_is_right(whole, start, protocol)
    assert finish_checksum(b"x" * 20, 19, 0) is None


def test_small_helpers() -> None:
    raw = wire.super_packet(4, b"x" * 5000, 1200)
    assert is_super(raw)
    assert segment_payload_bytes(raw) == 1200
    assert not is_super(PLAIN_HEADER + wire.udp(4))
