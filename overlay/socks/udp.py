"""The header of SOCKS5's UDP datagrams (RFC 1928, section 7).

Fragments are not supported, as the RFC allows.
"""

from __future__ import annotations

from overlay.socks.circuits import Destination, Transport
from overlay.socks.socks5 import decode_address, encode_address

#: RSV, FRAG, type, the longest address (a name of 255 bytes and its length), port.
MAX_HEADER_BYTES = 2 + 1 + 1 + 256 + 2


def decode_datagram(datagram: bytes) -> tuple[Destination, int] | None:
    """Return where a client's datagram goes and where its payload starts; None for one that must be
    dropped.
    """
    if len(datagram) < 4 or datagram[0] or datagram[1] or datagram[2]:
        return None
    found = decode_address(datagram, 3, Transport.UDP)
    if found is None or found[0] is None or not found[0].port:
        return None
    return found[0], found[1]


def encode_header(host: str, port: int) -> bytes:
    """Return the header of a datagram that came from this address."""
    return bytes(3) + encode_address(host, port)
