"""The 10-byte `virtio_net_hdr` in front of packets on a TUN with offloads. Owns its codec and its check.

Layout, little endian: flags(1) gso_type(1) hdr_len(2) gso_size(2) csum_start(2) csum_offset(2). Offsets count
from the start of the IP packet. A header that came through a circuit tells our kernel to cut and to sum bytes
where the sender likes, so `validate_offload` holds every field against the packet before a TUN sees it; the
kernel's own checks are the second line. Sources: virtio 1.2 section 5.1.6; Linux include/linux/virtio_net.h
(`virtio_net_hdr_to_skb`).
"""

from __future__ import annotations

import struct

import msgspec

from exit.errors import DecodeError
from exit.packets import ACK, CWR, RST, SYN, URG, Packet
from exit.policy import TCP, UDP

HEADER_BYTES = 10
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
GSO_ECN = 0x80
#: Goes in front of a whole packet with a finished checksum.
PLAIN_HEADER = bytes(HEADER_BYTES)

#: Smallest segment size taken from a peer. A train of 48 units then never becomes more than three times as
#: many packets, and hosts that state no MSS (536) still fit. Below, the sender cuts in software
#: (`exit.tun.segment`).
MIN_SEGMENT_PAYLOAD_BYTES = 500
#: Largest segment, headers included: nothing on a circuit's TUN is larger than an Ethernet MTU.
MAX_SEGMENT_BYTES = 1500

TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET = 16, 6

_FORMAT = struct.Struct("<BBHHHH")
_unpack = _FORMAT.unpack_from


class Header(msgspec.Struct, frozen=True, gc=False):
    """The decoded header. `gso_type` still holds the ECN bit."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def encode(self) -> bytes:
        """Return the header's 10 bytes."""
        return _FORMAT.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
        )


def decode_header(raw: bytes) -> Header:
    """Return the header at the start of `raw`; DecodeError when `raw` is shorter than 10 bytes."""
    if len(raw) < HEADER_BYTES:
        raise DecodeError(f"a vnet header has {HEADER_BYTES} bytes, not {len(raw)}")
    return Header(*_unpack(raw))


def is_plain(raw: bytes) -> bool:
    """Tell whether the packet behind this header is whole and needs nothing done: it may travel without the
    header.

    `raw` comes from our own TUN, where a forwarded packet may say that its checksum was verified
    (DATA_VALID).
    """
    return not raw[0] & NEEDS_CSUM and not raw[1]


def is_super(raw: bytes) -> bool:
    """Tell whether the packet behind this header stands for several segments."""
    return raw[1] != 0


def segment_payload_bytes(raw: bytes) -> int:
    """Return the segment size that the header names; 0 for a packet that is to stay whole."""
    size: int = _unpack(raw)[3]
    return size


def validate_offload(raw: bytes, packet: Packet) -> str | None:
    """Return why `raw` must not be written to a TUN, or None if it may.

    `raw` is a vnet header and an IP packet as a peer sent them; `packet` is what `parse(raw, HEADER_BYTES)`
    returned.
    """
    flags, kind, hdr_len, gso_size, csum_start, csum_offset = _unpack(raw)
    start = packet.transport_offset - HEADER_BYTES
    if flags > NEEDS_CSUM:
        return "unknown flags"
    if flags:
        if packet.is_fragment:
            return "checksum of a fragment"
        if packet.protocol == TCP:
            wanted = TCP_CHECKSUM_OFFSET
        elif packet.protocol == UDP:
            wanted = UDP_CHECKSUM_OFFSET
        else:
            return "checksum of neither TCP nor UDP"
        if csum_start != start or csum_offset != wanted:
            return "checksum elsewhere"
    elif csum_start or csum_offset:
        return "checksum fields without their flag"
    if not kind:
        return "segment fields without a type" if gso_size or hdr_len else None
    if kind & ~GSO_ECN != (GSO_TCPV4 if packet.version == 4 else GSO_TCPV6) or packet.protocol != TCP:
        return "segment type differs from the packet"
    if not flags:
        return "segments without checksums"
    tcp_flags = packet.detail
    if tcp_flags & (SYN | RST | URG) or not tcp_flags & ACK:
        return "segments of a control packet"
    if kind & GSO_ECN and not tcp_flags & CWR:
        return "ECN type without CWR"
    headers = start + (raw[packet.transport_offset + 12] >> 2 & 0x3C)
    if not headers <= hdr_len <= len(raw) - HEADER_BYTES:
        return "header length"
    if gso_size < MIN_SEGMENT_PAYLOAD_BYTES or headers + gso_size > MAX_SEGMENT_BYTES:
        return "segment size"
    return None
