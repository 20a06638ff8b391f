"""The reference back end: aioquic, pure Python.

PRIVATE ACCESS, all of it in this file: the congestion window, bytes in flight, queue lengths, round trip and
losses are not public, nor is the peer's certificate, nor an early word of a close by the peer.
`tests/overlay/links/ test_aioquic_private.py` fails when a new release moves any of it.
"""

import contextlib
import logging
import ssl
from typing import Any, Final

from aioquic.quic import events as aioquic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import encode_quic_retry
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from overlay.links.backends.base import (
    CONNECTION_WINDOW_BYTES,
    KEY_UPDATE_PACKETS,
    MAX_DATAGRAMS_QUEUED,
    MAX_STREAMS,
    MIN_DATAGRAMS_QUEUED,
    STREAM_WINDOW_BYTES,
    Address,
    BackendName,
    BackendSettings,
    Closed,
    Inbox,
    QuicFaultError,
    StreamLimitError,
)
from overlay.links.certificate import decode_certificate_key
from overlay.links.constants import DATAGRAM_PACKET, QUIC_VERSION, SERVER_NAME, UDP_PAYLOAD

PACING_SLACK_PACKETS: Final = 10
"""Packets that the pacer may owe before it is worth a wake-up; its burst is sixteen."""


def make_backend(settings: BackendSettings) -> "AioquicBackend":
    """Configure the library."""
    return AioquicBackend(settings)


class AioquicBackend:
    """Makes connections of one node."""

    name: BackendName = "aioquic"

    def __init__(self, settings: BackendSettings) -> None:
        """Make the configurations of both sides."""
        logging.getLogger("quic").setLevel(logging.CRITICAL)  # it warns of every fault of a peer
        self._client = _configuration(settings, is_client=True)
        self._server: QuicConfiguration | None = None
        if settings.certificate is not None and settings.key is not None:
            self._server = _configuration(settings, is_client=False)
            self._server.certificate = load_pem_x509_certificate(settings.certificate)
            self._server.private_key = load_pem_private_key(settings.key, None)

    def dial(self) -> "AioquicConnection":
        """Make the dialler's side of a connection."""
        return AioquicConnection(QuicConnection(configuration=self._client))

    def accept(self, original_cid: bytes, retry_cid: bytes | None) -> "AioquicConnection":
        """Make the acceptor's side of a connection. Raises ValueError for a node without a certificate."""
        if self._server is None:
            raise ValueError("a node without a certificate accepts no links")
        return AioquicConnection(
            QuicConnection(
                configuration=self._server,
                original_destination_connection_id=original_cid,
                retry_source_connection_id=retry_cid,
            )
        )

    def encode_retry(
        self, source_cid: bytes, destination_cid: bytes, original_cid: bytes, token: bytes
    ) -> bytes:
        """Return a Retry packet."""
        return encode_quic_retry(
            version=QUIC_VERSION,
            source_cid=source_cid,
            destination_cid=destination_cid,
            original_destination_cid=original_cid,
            retry_token=token,
        )


def _configuration(settings: BackendSettings, is_client: bool) -> QuicConfiguration:
    configuration = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[settings.alpn],
        idle_timeout=settings.idle_timeout_s,
        max_data=CONNECTION_WINDOW_BYTES,
        max_stream_data=STREAM_WINDOW_BYTES,
        max_datagram_size=UDP_PAYLOAD,
        max_datagram_frame_size=UDP_PAYLOAD,
        supported_versions=[QUIC_VERSION],
    )
    if is_client:
        configuration.verify_mode = ssl.CERT_NONE  # the link compares the key with the identity it wants
        configuration.server_name = SERVER_NAME
        # Makes the ClientHello fill two packets, as a hybrid key share does. A lone short Initial is padded
        # outside of its packet, and qh3 as acceptor counts only the packet towards the threefold it may
        # answer.
        configuration.quantum_readiness_test = True
    return configuration


class AioquicConnection:
    """See `overlay.links.backends.base.Connection`."""

    __slots__ = (
        "_appended",
        "_conn",
        "_delivered",
        "_given_up",
        "_lost",
        "_next_key_update",
        "cids",
        "packets_sent",
    )

    def __init__(self, conn: QuicConnection) -> None:
        """Wrap a connection that has not begun."""
        self._conn = conn
        self._appended = 0
        """Stream bytes ever given to the library."""
        self._given_up = 0
        """Those of them that will never be sent, because their stream was reset."""
        self._delivered = 0
        self._lost = 0
        self._next_key_update = KEY_UPDATE_PACKETS
        self.cids: list[bytes] = [conn.host_cid]
        self.packets_sent = 0
        limit = conn._local_max_streams_uni
        limit.value = limit.sent = MAX_STREAMS
        self._count_losses()

    def _count_losses(self) -> None:
        controller = self._conn._loss._cc
        original = controller.on_packets_lost

        def counting(*, now: float, packets: Any) -> None:
            packets = list(packets)
            self._lost += len(packets)
            original(now=now, packets=packets)

        controller.on_packets_lost = counting  # type: ignore[method-assign]

    def connect(self, address: Address, now: float) -> None:
        """Begin the handshake of the dialler."""
        self._conn.connect(address, now)

    def receive(self, buffer: bytes, segment_size: int, address: Address, now: float) -> None:
        """Take received datagrams."""
        receive = self._conn.receive_datagram
        try:
            if len(buffer) <= segment_size:
                receive(buffer, address, now)
            else:
                for start in range(0, len(buffer), segment_size):
                    receive(buffer[start : start + segment_size], address, now)
        except Exception as error:  # its parsers raise more classes than they document
            raise QuicFaultError(f"aioquic failed on received data: {type(error).__name__}") from error

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`."""
        try:
            self._conn.handle_timer(now)
        except Exception as error:
            raise QuicFaultError(f"aioquic failed on a timer: {type(error).__name__}") from error

    def timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        conn = self._conn
        if conn._close_at is None:
            return None
        due: float | None = conn.get_timer()
        if due is not None and due == conn._pacing_at:
            # The pacer saves up a burst: a wake-up for each single packet would cost more than the packet.
            due += PACING_SLACK_PACKETS * (conn._loss._pacer.packet_time or 0.0)
        return due

    def drain(self, inbox: Inbox) -> None:
        """Move events into the inbox."""
        conn = self._conn
        streams, datagrams = inbox.streams, inbox.datagrams
        while (event := conn.next_event()) is not None:
            if isinstance(event, aioquic_events.StreamDataReceived):
                chunks = streams.setdefault(event.stream_id, [])
                if event.data:
                    chunks.append(event.data)
                    self._delivered += len(event.data)
                if event.end_stream:
                    inbox.finished.add(event.stream_id)
            elif isinstance(event, aioquic_events.DatagramFrameReceived):
                datagrams.append(event.data)
            elif isinstance(event, aioquic_events.StreamReset):
                inbox.resets.append((event.stream_id, event.error_code))
            elif isinstance(event, aioquic_events.StopSendingReceived):
                self._give_up(event.stream_id)
                inbox.stops.append((event.stream_id, event.error_code))
            elif isinstance(event, aioquic_events.ConnectionIdIssued):
                inbox.new_cids.append(event.connection_id)
            elif isinstance(event, aioquic_events.ConnectionIdRetired):
                inbox.retired_cids.append(event.connection_id)
            elif isinstance(event, aioquic_events.HandshakeCompleted):
                inbox.connected = True
        if conn._close_event is not None and inbox.closed is None:
            end = conn._close_event
            inbox.closed = Closed(int(end.error_code), end.reason_phrase, end.frame_type is None)

    def transmit(self, now: float, limit: int) -> list[tuple[bytes, Address]]:
        """Return datagrams to send now: all of them, whatever the limit."""
        conn = self._conn
        if not conn._network_paths:
            return []
        try:
            out: list[tuple[bytes, Address]] = conn.datagrams_to_send(now)
        except Exception as error:
            raise QuicFaultError(f"aioquic failed on sending: {type(error).__name__}") from error
        if out:
            self.packets_sent += len(out)
            if self.packets_sent >= self._next_key_update:
                self._next_key_update = self.packets_sent + KEY_UPDATE_PACKETS
                conn.request_key_update()
        return out

    def peer_key(self) -> bytes:
        """Return the acceptor's Ed25519 key. Raises DecodeError."""
        certificate = self._conn.tls._peer_certificate
        return decode_certificate_key(b"" if certificate is None else certificate.public_bytes(Encoding.DER))

    def address(self) -> Address | None:
        """Return where the peer is now."""
        address: Address | None = self._conn.get_peer_address()
        return address

    def open_stream(self) -> int:
        """Return the id of a new unidirectional stream. Raises StreamLimitError."""
        conn = self._conn
        stream_id = conn.get_next_available_stream_id(is_unidirectional=True)
        if stream_id // 4 >= conn._remote_max_streams_uni:
            raise StreamLimitError(f"the peer allows {conn._remote_max_streams_uni} streams")
        conn.send_stream_data(stream_id, b"")
        return stream_id

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Append to a stream."""
        try:
            self._conn.send_stream_data(stream_id, data, fin)
        except (RuntimeError, ValueError):  # reset, stopped or finished
            return
        self._appended += len(data)

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending."""
        self._give_up(stream_id)
        with contextlib.suppress(RuntimeError, ValueError):
            self._conn.reset_stream(stream_id, code)

    def _give_up(self, stream_id: int) -> None:
        stream = self._conn._streams.get(stream_id)
        if stream is not None and stream.sender._stream_id is not None:
            self._given_up += stream.sender._buffer_stop - stream.sender.highest_offset
            # Counted once: what was not sent is forgotten.
            stream.sender._buffer_stop = stream.sender.highest_offset

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to give up its stream."""
        with contextlib.suppress(RuntimeError, ValueError):
            self._conn.stop_stream(stream_id, code)

    def stream_backlog(self, stream_id: int | None) -> int:
        """Return bytes appended and not sent once."""
        conn = self._conn
        if stream_id is None:
            return max(0, self._appended - self._given_up - conn._remote_max_data_used)
        stream = conn._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def send_datagrams(self, frames: list[bytes]) -> None:
        """Queue frames."""
        self._conn._datagrams_pending.extend(frames)

    def datagram_room(self) -> int:
        """Return how many frames may be queued now."""
        conn = self._conn
        window = (conn._loss.congestion_window - conn._loss.bytes_in_flight) // DATAGRAM_PACKET
        bound = min(max(window, MIN_DATAGRAMS_QUEUED), MAX_DATAGRAMS_QUEUED)
        return max(0, bound - len(conn._datagrams_pending))

    def peer_datagram_bytes(self) -> int:
        """Return the largest DATAGRAM frame, with its head, that the peer takes; 0 if it takes none."""
        return self._conn._remote_max_datagram_frame_size or 0

    def ping(self) -> None:
        """Have something sent that the peer must acknowledge."""
        self._conn.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE."""
        self._conn._datagrams_pending.clear()
        self._conn.close(error_code=code, reason_phrase=reason)

    def abandon(self) -> None:
        """Free what the library holds."""
        # They hold each other through callbacks: many short links must not wait for the collector.
        tls = getattr(self._conn, "tls", None)
        if tls is not None:
            tls.__dict__.clear()
        self._conn._loss.__dict__.clear()
        self._conn.__dict__.clear()

    def is_authentic(self) -> bool:
        """Tell whether a packet came that could be opened."""
        return self._conn._state is not QuicConnectionState.FIRSTFLIGHT

    def bytes_in_flight(self) -> int:
        """Return bytes sent and neither acknowledged nor lost."""
        return self._conn._loss.bytes_in_flight

    def holds_more_than(self, limit_bytes: int) -> bool:
        """Tell whether so many received bytes wait for gaps to close: aioquic itself has no bound."""
        conn = self._conn
        if conn._local_max_data.used - self._delivered <= limit_bytes:
            return False
        # What was received of streams that were reset is in the difference too: count exactly.
        return sum(len(stream.receiver._buffer) for stream in conn._streams.values()) > limit_bytes

    def rtt_s(self) -> float:
        """Return the smoothed round trip."""
        return self._conn._loss._rtt_smoothed

    def packets_lost(self) -> int:
        """Return how many packets were declared lost."""
        return self._lost
