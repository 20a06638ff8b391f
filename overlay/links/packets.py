"""What an endpoint reads of a QUIC packet before a connection knows it: RFC 8999's invariants and the
Initial's token.
"""

from dataclasses import dataclass
from typing import Final

from overlay.errors import DecodeError
from overlay.links.constants import QUIC_VERSION

MAX_CID_BYTES: Final = 20
MIN_ORIGINAL_CID_BYTES: Final = 8
"""RFC 9000 section 7.2: a dialler's first destination id is at least this long."""


@dataclass(frozen=True, slots=True)
class LongHeader:
    """The head of a long-header packet. `token` is of an Initial of QUIC v1 and empty otherwise."""

    version: int
    is_initial: bool
    destination_cid: bytes
    source_cid: bytes
    token: bytes


def is_long_header(data: bytes) -> bool:
    """Tell a long header from a short one."""
    return bool(data) and data[0] & 0x80 != 0


def decode_long_header(data: bytes) -> LongHeader:
    """Read the head of a datagram's first packet. Raises DecodeError if it is not a long header or is cut
    off.
    """
    if len(data) < 7 or not data[0] & 0x80:
        raise DecodeError("not a long header")
    version = int.from_bytes(data[1:5], "big")
    end = 6 + data[5]
    destination_cid = data[6:end]
    if end >= len(data):
        raise DecodeError("a long header is cut off")
    source_end = end + 1 + data[end]
    source_cid = data[end + 1 : source_end]
    if source_end > len(data):
        raise DecodeError("a long header is cut off")
    if version != QUIC_VERSION:
        return LongHeader(version, False, destination_cid, source_cid, b"")
    if max(len(destination_cid), len(source_cid)) > MAX_CID_BYTES:
        raise DecodeError("a connection id is too long")
    is_initial = data[0] & 0x70 == 0x40
    token = _decode_token(data, source_end) if is_initial else b""
    return LongHeader(version, is_initial, destination_cid, source_cid, token)


def _decode_token(data: bytes, at: int) -> bytes:
    if at >= len(data):
        raise DecodeError("an Initial is cut off")
    size = 1 << (data[at] >> 6)
    length = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    start = at + size
    if start + length > len(data):
        raise DecodeError("a token is cut off")
    return data[start : start + length]


def encode_version_negotiation(header: LongHeader, random_byte: int) -> bytes:
    """Answer a packet of another version: ids swapped, then the one version we speak (RFC 9000 section
    17.2.1).
    """
    return b"".join(
        (
            bytes((0x80 | random_byte & 0x7F,)),
            bytes(4),
            bytes((len(header.source_cid),)),
            header.source_cid,
            bytes((len(header.destination_cid),)),
            header.destination_cid,
            QUIC_VERSION.to_bytes(4, "big"),
        )
    )


RESERVED_VERSION: Final = 0x1A2A3A4A
"""A version that nobody speaks (RFC 9000 section 15): every server answers it with Version Negotiation."""


def encode_version_probe(destination_cid: bytes, source_cid: bytes, size_bytes: int) -> bytes:
    """Make a datagram that any QUIC server answers with a Version Negotiation packet addressed to
    `source_cid`.
    """
    head = b"".join(
        (
            b"\xc0",
            RESERVED_VERSION.to_bytes(4, "big"),
            bytes((len(destination_cid),)),
            destination_cid,
            bytes((len(source_cid),)),
            source_cid,
        )
    )
    return head + bytes(size_bytes - len(head))
