"""The seam between a link and a QUIC library.

A `Connection` is one QUIC connection without sockets or clock. All of its methods may be called at any time
after `connect` or `accept`; none raises because of what a peer sent, except by `QuicFaultError`, after which
the connection is dead and only `abandon` makes sense.
"""

import importlib
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, cast

from overlay.errors import OverlayError

Address = tuple[str, int]
"""Numeric IP address and UDP port, the first two items of what the kernel gives."""

BackendName = Literal["qh3", "aioquic"]
BACKENDS: Final[tuple[BackendName, ...]] = ("qh3", "aioquic")

STREAM_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Receive window of one stream. Libraries renew it by halves: 20 to 40 MB/s for one circuit at 100 ms."""
CONNECTION_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Receive window of a link, and what a hostile peer can make qh3 hold by leaving gaps."""
KEY_UPDATE_RETRY_PACKETS: Final = 10_000
"""After a key update that came too early (the handshake or the last update is not acknowledged yet)."""
MAX_STREAMS: Final = 16384
"""Unidirectional streams a peer may have open: one per circuit and direction, and some to spare."""
KEY_UPDATE_PACKETS: Final = 1 << 20
"""Packets sent under one key: an eighth of what RFC 9001 section 6.6 allows for AES-GCM."""
MAX_DATAGRAMS_QUEUED: Final = 512
"""Frames the link holds at most for the datagram lane (0.7 MB); queues that decide are the engine's."""
MAX_DATAGRAM_FLIGHT_BYTES: Final = 4 * 1024 * 1024
"""Bytes in flight beyond which the datagram lane waits, whatever the window says: on a fast short path the
window grows past every receive buffer."""
MIN_DATAGRAMS_QUEUED: Final = 32
"""Frames that may wait for the window even while streams fill it: they go first when it opens."""


class QuicFaultError(Exception):
    """The library failed on something the peer sent, or inside itself. The connection cannot go on."""


@dataclass(slots=True)
class Inbox:
    """What one or more received datagrams brought, grouped for the link. The link empties it."""

    connected: bool = False
    streams: dict[int, list[bytes]] = field(default_factory=dict)
    """Stream id to chunks in order; a finished stream has an entry even without data."""
    finished: set[int] = field(default_factory=set)
    resets: list[tuple[int, int]] = field(default_factory=list)
    """The peer gave up its stream: (stream id, code)."""
    stops: list[tuple[int, int]] = field(default_factory=list)
    """The peer does not want our stream: (stream id, code)."""
    datagrams: list[bytes] = field(default_factory=list)
    new_cids: list[bytes] = field(default_factory=list)
    retired_cids: list[bytes] = field(default_factory=list)
    closed: "Closed | None" = None

    def clear(self) -> None:
        """Begin anew; lists that were handed up stay with whoever got them."""
        self.connected = False
        if self.streams:
            self.streams = {}
        if self.datagrams:
            self.datagrams = []
        if self.finished or self.resets or self.stops or self.new_cids or self.retired_cids:
            self.finished, self.resets, self.stops, self.new_cids, self.retired_cids = set(), [], [], [], []
        self.closed = None


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a connection ended. `by_application` tells codes of `CloseCode` from QUIC's own."""

    code: int
    reason: str
    by_application: bool


class Connection(Protocol):
    """One QUIC connection."""

    cids: list[bytes]
    """Local connection ids at the start: what the peer will address packets to."""
    packets_sent: int

    def connect(self, address: Address, now: float) -> None:
        """Begin the handshake of the dialler."""

    def receive(self, buffer: bytes, segment_size: int, address: Address, now: float) -> None:
        """Take received datagrams: `buffer` holds datagrams of `segment_size` bytes each, the last may be
        shorter.
        """

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`. May come early."""

    def timer(self) -> float | None:
        """When `handle_timer` is wanted next."""

    def drain(self, inbox: Inbox) -> None:
        """Move events into the inbox."""

    def transmit(self, now: float, limit: int) -> list[tuple[bytes, Address]]:
        """Return datagrams to send now, about `limit` at most; fewer than `limit` mean that this is all.

        Each item begins with the datagram and its address; what follows is the library's own.
        """

    def peer_key(self) -> bytes:
        """Return the acceptor's Ed25519 key (32 bytes). Raises DecodeError if the certificate has none."""

    def address(self) -> Address | None:
        """Return where the peer is now."""

    def open_stream(self) -> int:
        """Return the id of a new unidirectional stream. Raises StreamLimitError when there is none."""

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Append to a stream. Ignored after the stream was reset or stopped."""

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending. Ignored for a stream that has ended."""

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to give up its stream. Ignored for a stream that has ended."""

    def stream_backlog(self, stream_id: int | None) -> int:
        """Return bytes appended to one stream, or to all, and not sent once."""

    def send_datagrams(self, frames: list[bytes]) -> None:
        """Queue frames. The caller keeps to `datagram_room`."""

    def datagram_room(self) -> int:
        """Return how many frames may be queued now."""

    def peer_datagram_bytes(self) -> int:
        """Return the largest DATAGRAM frame, with its head, that the peer takes; 0 if it takes none."""

    def ping(self) -> None:
        """Have something sent that the peer must acknowledge."""

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE of the application; `transmit` then returns it."""

    def abandon(self) -> None:
        """Free what the library holds. No other method may be called afterwards."""

    def is_authentic(self) -> bool:
        """Tell whether a packet came that could be opened: noise gets no further."""

    def bytes_in_flight(self) -> int:
        """Return bytes sent and neither acknowledged nor lost."""

    def holds_more_than(self, limit_bytes: int) -> bool:
        """Tell whether so many received bytes wait for gaps to close; false where the library bounds them."""

    def rtt_s(self) -> float:
        """Return the smoothed round trip, 0.0 before the first measurement."""

    def packets_lost(self) -> int:
        """Return how many packets were declared lost."""


class StreamLimitError(OverlayError):
    """The peer allows no further stream now."""


class Backend(Protocol):
    """One library, configured with this node's certificate."""

    name: BackendName

    def dial(self) -> Connection:
        """Make the dialler's side of a connection; `Connection.connect` starts it."""

    def accept(self, original_cid: bytes, retry_cid: bytes | None) -> Connection:
        """Make the acceptor's side.

        `original_cid` is the destination id of the dialler's very first Initial; `retry_cid` is the source id
        of our Retry, if the dialler has been through one.
        """

    def encode_retry(
        self, source_cid: bytes, destination_cid: bytes, original_cid: bytes, token: bytes
    ) -> bytes:
        """Return a Retry packet of QUIC version 1."""


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """What a back end needs to know. `certificate` and `key` are PEM; None for a node that never accepts."""

    certificate: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)
    idle_timeout_s: float
    alpn: str


class _BackendModule(Protocol):
    def make_backend(self, settings: BackendSettings) -> Backend: ...


def load_backend(name: BackendName, settings: BackendSettings) -> Backend:
    """Import a library and configure it. Raises ValueError for an unknown name, ImportError if it is not
    installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no QUIC back end {name!r}; choose one of {', '.join(BACKENDS)}")
    # Imported on demand: each costs tens of milliseconds and some megabytes.
    module = cast(_BackendModule, importlib.import_module(f"overlay.links.backends.{name}_backend"))
    return module.make_backend(settings)
