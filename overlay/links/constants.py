"""Sizes, names and close codes that both ends of a link must agree on. docs/protocol/links.md says how they
follow.
"""

from enum import IntEnum
from typing import Final

ALPN: Final = "hopfare/1"
"""Link protocol and version. A peer of another version fails the TLS handshake."""

SERVER_NAME: Final = "hopfare"
"""Sent by every dialler, so that it tells nothing."""

QUIC_VERSION: Final = 0x00000001

UDP_PAYLOAD: Final = 1452
"""Largest UDP payload in bytes: what is left of a 1500-byte path after IPv6 (40) and UDP (8)."""

LINK_FRAME: Final = 1388
"""Bytes of one DATAGRAM frame's content: circuit id (4) and one onion packet (1384)."""

DATAGRAM_HEAD: Final = 9
"""Type and length (RFC 9221) of a DATAGRAM frame at most, which count in the size that a peer announces."""

DATAGRAM_PACKET: Final = 1424
"""Most bytes of the QUIC packet that carries one link frame: 1 + 8 (id) + 4 (number) + 3 (frame head) + 1388
+ 16, rounded up.
"""

MIN_INITIAL_BYTES: Final = 1200
"""RFC 9000 section 14.1: a shorter datagram with an Initial packet is dropped."""

LOCAL_CID_BYTES: Final = 8
CONTROL_STREAM: Final = 0
"""The dialler's first bidirectional stream."""

PADDING_BYTES: Final = 2 * UDP_PAYLOAD
"""Padding of Hello, Welcome, Ping and Pong: a stream this long fills at least one packet of UDP_PAYLOAD
bytes.
"""

IDENTIFY_CONTEXT: Final = b"link"
"""Domain of the signature in Identify, see `overlay.identity`."""


class CloseCode(IntEnum):
    """Application error codes of CONNECTION_CLOSE; 0 to 15 are the link's, others free for the node above."""

    DONE = 0
    """Closed in good order."""
    PROTOCOL = 1
    """The peer broke the protocol of the link."""
    WRONG_IDENTITY = 2
    """The acceptor is not the node that the dialler wanted."""
    NOT_IDENTIFIED = 3
    """A dialling relay's proof of identity is missing or false."""
    REFUSED = 4
    """A limit of the acceptor is reached."""
    FLOOD = 5
    """Too many control messages, or control messages that the peer does not read."""
    PATH_TOO_SMALL = 6
    """The path does not carry UDP payloads of UDP_PAYLOAD bytes."""
    TIMEOUT = 7
    """No answer in time."""
    SHUTDOWN = 8
    """The node stops."""
    INTERNAL = 9
    """A fault inside the QUIC library of the side that closed."""
    MEMORY = 10
    """The peer made this side hold too much data out of order."""
    TRANSPORT = 11
    """QUIC or TLS ended the link; never sent, only reported to the handler with the library's reason."""
    VERSION = 12
    """The peer speaks another link protocol; never sent, only reported."""
    NO_ROUTE = 13
    """This machine has no route to the address; never sent, only reported to the dialler."""
