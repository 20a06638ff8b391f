"""The native parsers of peers' bytes accept, refuse and change what the reference does."""

import ipaddress
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from native_parts import testing

from circuits.errors import DecodeError
from circuits.inner import Item, ItemType, decode_body, encode_body
from circuits.params import UNIT
from circuits.trains import TrainReader, encode_frame
from exit.denied import DenyList
from exit.packets import parse, partial_sum
from exit.policy import PolicyTable, Verdict, parse_policy
from exit.tun.segment import to_packets
from exit.tun.vnet import validate_offload

VERDICTS = list(Verdict)


@st.composite
def items(draw):
    kind = draw(st.sampled_from([kind for kind in ItemType if kind != ItemType.PADDING]))
    size = {
        ItemType.ECHO_REQUEST: st.just(8),
        ItemType.ECHO_REPLY: st.just(8),
        ItemType.IP: st.integers(20, 90),
        ItemType.OFFLOAD: st.integers(30, 90),
        ItemType.CONTROL: st.integers(1, 40),
    }[kind]
    return Item(kind, 0, draw(st.binary(min_size=draw(size), max_size=90))[: draw(size)] or b"x")


@st.composite
def bodies(draw):
    """Good bodies, and good ones with some bytes changed."""
    parts = []
    for item in draw(st.lists(items(), max_size=6)):
        try:
            encode_body([item], 200)
        except ValueError:
            continue
        parts.append(item)
    body = bytearray(encode_body(parts, 600))
    for _ in range(draw(st.integers(0, 3))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.sampled_from((0, 1, 2, 3, 4, 5, 6, 255)))
    return bytes(body[: draw(st.integers(0, len(body)))])


@given(st.one_of(st.binary(max_size=300), bodies()))
@settings(max_examples=300)
def test_bodies_agree(body):
    try:
        expected = [(int(item.kind), item.data) for item in decode_body(body)]
    except DecodeError:
        expected = None
    assert testing.decode_body(body) == expected


@given(
    st.lists(st.sampled_from((0, 1, 2, 3, 48, 49)), max_size=6), st.lists(st.integers(1, 5000), max_size=40)
)
def test_train_readers_agree(units, cuts):
    stream = b"".join(encode_frame(bytes([k]) * (k * UNIT)) if 0 < k <= 48 else bytes([k]) for k in units)
    reference, native = TrainReader(), testing.TrainReader()
    at = 0
    for cut in [*cuts, len(stream)]:
        chunk = stream[at : at + cut]
        at += cut
        try:
            expected = reference.feed([chunk])
        except DecodeError:
            expected = None
        try:
            found = native.feed(chunk)
        except ValueError:
            found = None
        assert found == expected
        if expected is None:
            return


def address4(draw):
    return draw(
        st.one_of(
            st.binary(min_size=4, max_size=4),
            st.sampled_from(
                [
                    ipaddress.ip_address(a).packed
                    for a in ("10.0.0.1", "93.184.216.34", "100.64.0.1", "224.0.0.1")
                ]
            ),
        )
    )


def address6(draw):
    return draw(
        st.one_of(
            st.binary(min_size=16, max_size=16),
            st.sampled_from(
                [
                    ipaddress.ip_address(a).packed
                    for a in (
                        "::1",
                        "::ffff:10.0.0.1",
                        "64:ff9b::a00:1",
                        "64:ff9b:1:a00:0:100::",
                        "2002:a00:1::1",
                        "2606:4700::1111",
                        "2606:4700:1::1",
                        "::10.0.0.1",
                    )
                ]
            ),
        )
    )


@st.composite
def ip_packets(draw):
    """Packets that are mostly right, of all kinds that exits carry, and some that they do not."""
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((6, 17, 1, 58, 47, 0)))
    payload = draw(st.binary(max_size=40))
    ports = struct.pack(">HH", 40000, draw(st.sampled_from((0, 1, 25, 53, 80, 443, 65535))))
    if protocol == 6:
        flags = draw(st.sampled_from((0x10, 0x18, 0x02, 0x90, 0x14, 0x30)))
        offset = draw(st.sampled_from((0x50, 0x50, 0x60, 0x40, 0xF0)))
        transport = ports + bytes(8) + bytes([offset, flags]) + bytes(6) + payload
    elif protocol == 17:
        length = 8 + len(payload) + draw(st.sampled_from((0, 0, 0, 1, -1)))
        transport = ports + struct.pack(">HH", max(0, length), 0) + payload
    else:
        kind = draw(st.sampled_from((8, 128, 0, 3)))
        transport = bytes([kind, draw(st.sampled_from((0, 0, 1)))]) + bytes(6) + payload
    if version == 4:
        fragment = draw(st.sampled_from((0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0001, 0x8000)))
        head = (
            struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(transport), 7, fragment, 64, protocol, 0)
            + address4(draw)
            + address4(draw)
        )
    else:
        if draw(st.integers(0, 3)) == 0:
            offset = draw(st.sampled_from((0, 1, 8, 9, 2)))
            transport = struct.pack(">BBHI", protocol, 0, offset, 9) + transport
            protocol = 44
        head = (
            struct.pack(">IHBB", 0x60000000, len(transport), protocol, 64) + address6(draw) + address6(draw)
        )
    packet = bytearray(head + transport)
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet) if draw(st.integers(0, 9)) else bytes(packet[: draw(st.integers(0, len(packet)))])


def parsed(packet):
    return (
        None
        if packet is None
        else (
            packet.version,
            packet.protocol,
            packet.source,
            packet.destination,
            packet.source_port,
            packet.destination_port,
            packet.detail,
            packet.transport_offset,
            packet.is_fragment,
        )
    )


@given(st.one_of(st.binary(max_size=80), ip_packets()))
@settings(max_examples=400)
def test_packets_are_read_alike(raw):
    assert testing.parse(raw) == parsed(parse(raw))


POLICY = parse_policy(
    "reject 198.18.0.0/15:*\naccept 93.184.0.0/16:1-100\nreject *:80\n"
    "accept6 [2606:4700::]/32:443\naccept *:53\nreject *:*"
)


def tables(*, has_ipv6):
    deny = DenyList(addresses=["93.184.216.99"])
    local = ["100.64.0.1", "fd00::1"]
    reference = PolicyTable(POLICY, deny, has_ipv6=has_ipv6, dns_addresses=local)
    ranges = [list(zip(deny._bounds[version], deny._ends[version], strict=True)) for version in (4, 6)]
    native = testing.PolicyTable(
        (
            *ranges,
            reference._rules4,
            reference._rules6,
            has_ipv6,
            [ipaddress.ip_address(address) for address in local],
            bytes([100, 64, 0, 1]),
            bytes(16),
        )
    )
    return reference, native


@given(st.lists(ip_packets(), max_size=20), st.booleans())
@settings(max_examples=200)
def test_verdicts_agree(packets, has_ipv6):
    reference, native = tables(has_ipv6=has_ipv6)
    for raw in packets + packets:
        packet = parse(raw)
        expected = None
        if packet is not None:
            verdict = reference.verdict(
                packet.version, packet.protocol, packet.destination, packet.destination_port
            )
            expected = VERDICTS.index(verdict)
        assert native.verdict(raw) == expected


@st.composite
def offloads(draw):
    """Super-packets that are mostly right."""
    version = draw(st.sampled_from((4, 6)))
    size = draw(st.sampled_from((0, 1, 499, 1000, 1239, 1240, 1241, 5000, 20_001)))
    options = draw(st.sampled_from((0, 12)))
    flags = draw(st.sampled_from((0x10, 0x18, 0x11, 0x90, 0xD9, 0x02, 0x14)))
    transport = (
        struct.pack(">HHII", 40000, 443, 2**32 - 1500, 5)
        + bytes([(20 + options) << 2, flags])
        + struct.pack(">HHH", 65535, draw(st.integers(0, 65535)), 0)
        + bytes(options)
        + bytes(i & 0xFF for i in range(size))
    )
    if version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(transport), 65530, 0x4000, 64, 6, 0)
        head += bytes([100, 64, 1, 2, 93, 184, 216, 34])
    else:
        head = struct.pack(">IHBB", 0x60000000, len(transport), 6, 64) + bytes(range(32))
    start = len(head)
    kind = draw(st.sampled_from((1 if version == 4 else 4, 1 if version == 4 else 4, 0, 5, 4)))
    kind |= draw(st.sampled_from((0, 0, 0x80)))
    header = struct.pack(
        "<BBHHHH",
        draw(st.sampled_from((1, 1, 1, 0, 2))),
        kind,
        draw(st.sampled_from((start + 20 + options, start + 20 + options, 0, 4000))),
        draw(st.sampled_from((1240, 1240, 500, 499, 1448, 0))),
        draw(st.sampled_from((start, start, start, 0, start + 1, 60000))),
        draw(st.sampled_from((16, 16, 16, 6, 60000))),
    )
    return header + head + transport


@given(st.one_of(st.binary(min_size=10, max_size=80), offloads()))
@settings(max_examples=400)
def test_offload_headers_and_their_segments_agree(raw):
    packet = parse(raw, 10)
    is_valid = packet is not None and validate_offload(raw, packet) is None
    assert testing.may_write(raw) == is_valid
    kind = raw[1] & 0x7F
    if kind != 5 and (is_valid or kind in (0, 1, 4)):
        assert testing.to_packets(raw) == to_packets(raw)


@given(st.integers(1, 20_000), st.integers(1, 1400), st.sampled_from((4, 6)))
def test_udp_super_packets_become_whole_datagrams(size, segment, version):
    payload = bytes(i * 7 & 0xFF for i in range(size))
    transport = struct.pack(">HHHH", 40000, 53, 8 + size, 0) + payload
    if version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + size, 65530, 0, 64, 17, 0) + bytes(range(8))
    else:
        head = struct.pack(">IHBB", 0x60000000, 8 + size, 17, 64) + bytes(range(32))
    header = struct.pack("<BBHHHH", 1, 5, len(head) + 8, segment, len(head), 6)
    packets = testing.to_packets(header + head + transport)
    assert b"".join(packet[len(head) + 8 :] for packet in packets) == payload
    assert all(len(packet) == len(head) + 8 + segment for packet in packets[:-1])
    for packet in packets:
        start = len(head)
        addresses = packet[12:20] if version == 4 else packet[8:40]
        assert partial_sum(packet[start:], partial_sum(addresses, 17 + len(packet) - start)) == 0xFFFF
        if version == 4:
            assert partial_sum(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[start + 4 : start + 6], "big") == len(packet) - start
