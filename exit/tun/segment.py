"""Segmentation and checksums in software, for the side whose TUN has no offloads. Pure.

`to_packets` does what the kernel's GSO would: it cuts a TCP super-packet into segments with their own
lengths, sequence numbers, IPv4 identifications, flags (CWR on the first only, FIN and PSH on the last only)
and checksums, and finishes a checksum that the kernel left to its device. The inverse, joining segments, is
not here: packets of a plain TUN travel as they are, and joining them again costs Python more than the writes
that it saves.

Sources: Linux net/ipv4/tcp_offload.c (`tcp_gso_segment`), net/ipv4/af_inet.c (`inet_gso_segment`).
"""

from __future__ import annotations

import struct

from exit.packets import CWR, FIN, PSH, partial_sum
from exit.policy import TCP, UDP
from exit.tun.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, HEADER_BYTES, NEEDS_CSUM, decode_header

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def to_packets(raw: bytes) -> list[bytes]:
    """Return the IP packets, each whole and with finished checksums, that `raw` (vnet header, IP packet)
    stands for.

    `raw` comes from our own TUN, or from a peer after `validate_offload` accepted it; DATA_VALID is ignored.
    What is neither (unknown type, lengths that disagree) yields an empty list.
    """
    if len(raw) < HEADER_BYTES + 20:
        return []
    header = decode_header(raw)
    kind = header.gso_type & ~GSO_ECN
    packet = raw[HEADER_BYTES:]
    if not kind:
        if not header.flags & NEEDS_CSUM:
            return [packet]
        finished = finish_checksum(packet, header.csum_start, header.csum_offset)
        return [] if finished is None else [finished]
    if kind not in (GSO_TCPV4, GSO_TCPV6) or not header.gso_size:
        return []
    return _segment_tcp(packet, header.csum_start, header.gso_size)


def finish_checksum(packet: bytes, start: int, offset: int) -> bytes | None:
    """Return `packet` with its checksum finished: the sum over everything from `start`, stored at `start +
    offset`.

    The field holds the pseudo header's partial sum, as the kernel leaves it there. None when the field is
    outside.
    """
    at = start + offset
    if at + 2 > len(packet):
        return None
    value = ~partial_sum(packet[start:]) & 0xFFFF
    if not value and offset == 6:
        value = 0xFFFF  # UDP: zero means "no checksum" (RFC 768)
    return packet[:at] + _U16.pack(value) + packet[at + 2 :]


def _segment_tcp(packet: bytes, start: int, size: int) -> list[bytes]:
    version = packet[0] >> 4
    ip_header = 20 if version == 4 else 40
    if start < ip_header or len(packet) < start + 20:
        return []
    payload_at = start + (packet[start + 12] >> 2 & 0x3C)
    if payload_at < start + 20 or payload_at > len(packet):
        return []
    payload = memoryview(packet)[payload_at:]
    total = len(payload)
    network = bytearray(packet[:start])
    transport = bytearray(packet[start:payload_at])
    sequence = _U32.unpack_from(transport, 4)[0]
    flags = transport[13]
    transport[4:8] = bytes(4)
    transport[13] = 0
    transport[16:18] = bytes(2)
    addresses = network[12:20] if version == 4 else network[8:40]
    # Everything that is the same in all segments is summed once.
    transport_sum = partial_sum(transport, partial_sum(addresses, TCP))
    if version == 4:
        identification = _U16.unpack_from(network, 4)[0]
        network[2:6] = bytes(4)
        network[10:12] = bytes(2)
        network_sum = partial_sum(network)
    transport_bytes = len(transport)
    packets: list[bytes] = []
    for at in range(0, total, size) if total else (0,):
        piece = payload[at : at + size]
        piece_flags = flags
        if at:
            piece_flags &= ~CWR
        if at + size < total:
            piece_flags &= ~(FIN | PSH)
        piece_sequence = (sequence + at) & 0xFFFFFFFF
        length = transport_bytes + len(piece)
        _U32.pack_into(transport, 4, piece_sequence)
        transport[13] = piece_flags
        value = transport_sum + length + (piece_sequence >> 16) + (piece_sequence & 0xFFFF) + piece_flags
        _U16.pack_into(transport, 16, ~partial_sum(piece, value) & 0xFFFF)
        if version == 4:
            piece_id = (identification + len(packets)) & 0xFFFF
            _U16.pack_into(network, 2, start + length)
            _U16.pack_into(network, 4, piece_id)
            _U16.pack_into(network, 10, ~partial_sum(b"", network_sum + start + length + piece_id) & 0xFFFF)
        else:
            _U16.pack_into(network, 4, start - 40 + length)
        packets.append(b"".join((network, transport, piece)))
    return packets


def checksum_is_right(packet: bytes, start: int, protocol: int) -> bool:
    """Tell whether the TCP, UDP or ICMPv6 checksum of a whole IP packet, whose transport starts at `start`,
    is right.
    """
    version = packet[0] >> 4
    addresses = packet[12:20] if version == 4 else packet[8:40]
    if protocol == UDP and packet[start + 6 : start + 8] == b"\0\0":
        return version == 4
    return partial_sum(packet[start:], partial_sum(addresses, protocol + len(packet) - start)) == 0xFFFF
