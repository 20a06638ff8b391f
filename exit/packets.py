"""IP packets read at an offset: who sends what to whom. Owns the strict parser of customers' packets and
checksums.

`parse` is the exit's gate for what customers send. It lets through what a Linux host makes for TCP, UDP and
ICMP echo, and hands on what else can be answered with a refusal:

- IPv4 without options, IPv6 without extension headers other than one fragment header: options are rare, tell
hosts
  apart, and some of them route. Lengths must agree exactly with each other and with the bytes given.
- Fragments: a first fragment must hold its whole transport header; a later one is judged by its addresses
alone
  (`ANY_PORT`). That is safe because the exit's kernel puts fragments together before it forwards them
  (connection tracking does), refuses overlapping ones, and nftables judges the whole packet again.

`addresses` is for packets from our own kernel and looks at addresses only. Sources: RFC 791, 8200, 9293, 768,
792, 4443.
"""

from __future__ import annotations

import struct

import msgspec

from exit.policy import ANY_PORT, ICMP, ICMPV6, TCP, UDP

IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
TCP_HEADER_BYTES = 20
UDP_HEADER_BYTES = 8
ICMP_HEADER_BYTES = 8
FRAGMENT_HEADER_BYTES = 8
FRAGMENT = 44

ECHO_REQUEST_V4, ECHO_REPLY_V4 = 8, 0
ECHO_REQUEST_V6, ECHO_REPLY_V6 = 128, 129

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128


class Packet(msgspec.Struct, frozen=True, gc=False):
    """What the data path needs of a packet. Offsets count from the start of the buffer given.

    `destination_port` is ANY_PORT for later fragments and ICMP echo requests (whose identifier is
    `source_port`); both ports are 0 for a protocol that has none, which no policy lets out. `detail` is the
    TCP flag byte, the ICMP type, or 0.
    """

    version: int
    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    detail: int
    transport_offset: int
    is_fragment: bool = False


_ICMP_BOTH = (ICMP, ICMPV6)
_V4 = struct.Struct(">BxHxxHxBxx4s4sHH").unpack_from
_V6 = struct.Struct(">IHBx16s16sHH").unpack_from
_V4_ADDRESSES = struct.Struct(">9xBxx4s4s").unpack_from
_V6_ADDRESSES = struct.Struct(">6xBx16s16s").unpack_from
_U16 = struct.Struct(">H").unpack_from
_FRAGMENT = struct.Struct(">BBHI").unpack_from


def parse(raw: bytes, offset: int = 0) -> Packet | None:
    """Read the IP packet that starts at `offset` and ends with `raw`; None for anything this exit does not
    carry.

    Reads super-packets too (up to 65,535 bytes). Checksums are the kernel's to check.
    """
    size = len(raw) - offset
    if size < 28:
        return None
    first = raw[offset]
    if first == 0x45:
        _, total, fragment, protocol, source, destination, source_port, port = _V4(raw, offset)
        if total != size:
            return None
        at = offset + 20
        if fragment & 0x8000:
            return None
        if not fragment & 0x3FFF:
            is_fragment = False
        elif fragment & 0x1FFF:
            if fragment & 0x2000 and (size - 20) & 7:
                return None  # only the last fragment may end anywhere
            return Packet(4, protocol, source, destination, 0, ANY_PORT, 0, at, True)
        else:
            if (size - 20) & 7:
                return None
            is_fragment = True
        version = 4
    elif first >> 4 == 6:
        if size < 48:
            return None
        _, length, protocol, source, destination, source_port, port = _V6(raw, offset)
        if length != size - 40:
            return None
        at = offset + 40
        version = 6
        is_fragment = False
        if protocol == FRAGMENT:
            protocol, reserved, fragment, _ = _FRAGMENT(raw, at)
            at += 8
            left = length - 8
            if reserved or fragment & 6 or left <= 0 or (fragment & 1 and left & 7):
                return None
            if fragment & 0xFFF8:
                return Packet(6, protocol, source, destination, 0, ANY_PORT, 0, at, True)
            if left < 8:
                return None
            is_fragment = True
            source_port = _U16(raw, at)[0]
            port = _U16(raw, at + 2)[0]
    else:
        return None
    end = offset + size
    if protocol == TCP:
        if end - at < 20:
            return None
        header = raw[at + 12] >> 2 & 0x3C
        if header < 20 or header > end - at:
            return None
        return Packet(version, TCP, source, destination, source_port, port, raw[at + 13], at, is_fragment)
    if protocol == UDP:
        length = _U16(raw, at + 4)[0]
        if length < 8 or (length != end - at if not is_fragment else length < end - at):
            return None
        return Packet(version, UDP, source, destination, source_port, port, 0, at, is_fragment)
    if protocol in _ICMP_BOTH:
        wanted = ECHO_REQUEST_V4 if version == 4 else ECHO_REQUEST_V6
        if (protocol == ICMP) is not (version == 4) or raw[at] != wanted or raw[at + 1]:
            return None
        identifier = _U16(raw, at + 4)[0]
        return Packet(version, protocol, source, destination, identifier, ANY_PORT, wanted, at, is_fragment)
    return Packet(version, protocol, source, destination, 0, 0, 0, at, is_fragment)


def addresses(raw: bytes, offset: int = 0) -> tuple[int, int, bytes, bytes] | None:
    """Return (version, protocol, source, destination) of a packet from our own kernel; None if it is too
    short.

    For IPv6 the protocol is the first next-header value. For customers' packets use `parse`.
    """
    size = len(raw) - offset
    if size >= 20 and raw[offset] >> 4 == 4:
        return 4, *_V4_ADDRESSES(raw, offset)
    if size >= 40 and raw[offset] >> 4 == 6:
        return 6, *_V6_ADDRESSES(raw, offset)
    return None


def checksum(data: bytes, start: int = 0) -> int:
    """Return the internet checksum (RFC 1071) of `data` added to the partial sum `start`, complemented; 0 to
    0xFFFF.
    """
    return ~partial_sum(data, start) & 0xFFFF


def partial_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """Return the ones' complement sum of `data` in 16-bit big-endian words, odd length padded, plus `start`.

    0 stands for "all words are zero" only. The ones' complement sum of 16-bit words is the number modulo
    0xFFFF, which Python's integers do in one step for the whole packet.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    value += start
    return value % 0xFFFF or (0xFFFF if value else 0)


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Return the partial sum of the TCP, UDP or ICMPv6 pseudo header; both IP versions add alike."""
    return partial_sum(source + destination, protocol + length)


def transport_checksum(
    source: bytes, destination: bytes, protocol: int, segment: bytes | memoryview, length: int | None = None
) -> int:
    """Return the checksum of a whole TCP, UDP or ICMPv6 segment whose checksum field is zero; UDP's is never
    0.
    """
    total = len(segment) if length is None else length
    value = ~partial_sum(segment, pseudo_sum(source, destination, protocol, total)) & 0xFFFF
    return 0xFFFF if value == 0 and protocol == UDP else value
