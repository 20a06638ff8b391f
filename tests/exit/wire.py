"""Packets for the exit's tests, made without the code under test. Checksums are summed word by word."""

from __future__ import annotations

import ipaddress
import struct

V4 = ("100.64.0.9", "1.2.3.4")
V6 = ("fd68:6f70:6661::9", "2606:4700::1111")


def slow_sum(data: bytes) -> int:
    """Return the folded ones' complement sum of `data`, as RFC 1071 describes it."""
    padded = data + b"\0" * (len(data) & 1)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def slow_checksum(data: bytes) -> int:
    return ~slow_sum(data) & 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack(">BBH", 0, protocol, length)
    return source + destination + struct.pack(">II", length, protocol)


def ip4(
    protocol: int, body: bytes, *, pair: tuple[str, str] = V4, ident: int = 1, fragment: int = 0x4000
) -> bytes:
    source, destination = (ipaddress.IPv4Address(text).packed for text in pair)
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, fragment, 64, protocol, 0, source, destination
    )
    return head[:10] + struct.pack(">H", slow_checksum(head)) + head[12:] + body


def ip6(protocol: int, body: bytes, *, pair: tuple[str, str] = V6) -> bytes:
    source, destination = (ipaddress.IPv6Address(text).packed for text in pair)
    return struct.pack(">IHBB16s16s", 6 << 28, len(body), protocol, 64, source, destination) + body


def addresses_of(version: int, pair: tuple[str, str] | None = None) -> tuple[bytes, bytes]:
    chosen = pair or (V4 if version == 4 else V6)
    return ipaddress.ip_address(chosen[0]).packed, ipaddress.ip_address(chosen[1]).packed


def tcp(
    version: int,
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (40000, 443),
    flags: int = 0x10,
    sequence: int = 1000,
    options: bytes = b"",
    partial: bool = False,
    pair: tuple[str, str] | None = None,
) -> bytes:
    """Return an IP packet with TCP; with `partial` the checksum holds the pseudo header's sum only."""
    words = 5 + len(options) // 4
    head = struct.pack(">HHIIBBHHH", *ports, sequence, 77, words << 4, flags, 500, 0, 0) + options
    segment = head + payload
    source, destination = addresses_of(version, pair)
    header = pseudo(source, destination, 6, len(segment))
    value = slow_sum(header) if partial else slow_checksum(header + segment)
    segment = segment[:16] + struct.pack(">H", value) + segment[18:]
    kwargs = {} if pair is None else {"pair": pair}
    return ip4(6, segment, **kwargs) if version == 4 else ip6(6, segment, **kwargs)  # type: ignore[arg-type]


def udp(
    version: int,
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (40000, 53),
    partial: bool = False,
    pair: tuple[str, str] | None = None,
) -> bytes:
    """Return an IP packet with UDP."""
    segment = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
    source, destination = addresses_of(version, pair)
    header = pseudo(source, destination, 17, len(segment))
    value = slow_sum(header) if partial else slow_checksum(header + segment) or 0xFFFF
    segment = segment[:6] + struct.pack(">H", value) + segment[8:]
    kwargs = {} if pair is None else {"pair": pair}
    return ip4(17, segment, **kwargs) if version == 4 else ip6(17, segment, **kwargs)  # type: ignore[arg-type]


def echo(version: int, payload: bytes = b"ping", *, pair: tuple[str, str] | None = None) -> bytes:
    """Return an IP packet with an echo request."""
    kind = 8 if version == 4 else 128
    body = struct.pack(">BBHHH", kind, 0, 0, 7, 1) + payload
    source, destination = addresses_of(version, pair)
    value = slow_checksum((b"" if version == 4 else pseudo(source, destination, 58, len(body))) + body)
    body = body[:2] + struct.pack(">H", value) + body[4:]
    kwargs = {} if pair is None else {"pair": pair}
    return ip4(1, body, **kwargs) if version == 4 else ip6(58, body, **kwargs)  # type: ignore[arg-type]


def vnet(
    flags: int = 0, kind: int = 0, hdr_len: int = 0, size: int = 0, start: int = 0, offset: int = 0
) -> bytes:
    return struct.pack("<BBHHHH", flags, kind, hdr_len, size, start, offset)


def super_packet(version: int, payload: bytes, size: int, **options: object) -> bytes:
    """Return a vnet header and a TCP super-packet with a partial checksum, as a TUN hands it out."""
    packet = tcp(version, payload, partial=True, **options)  # type: ignore[arg-type]
    start = 20 if version == 4 else 40
    headers = len(packet) - len(payload)
    flags = options.get("flags", 0x10)
    assert isinstance(flags, int)
    kind = (1 if version == 4 else 4) | (0x80 if flags & 0x80 else 0)
    return vnet(1, kind, headers, size, start, 16) + packet
