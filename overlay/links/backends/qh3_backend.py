"""The default back end: qh3, a fork of aioquic with a Rust packet core.

PRIVATE ACCESS, all of it in this file. qh3's public wrapper spends a tenth to a third of the time per packet
on logging that is switched off, hides the congestion window that DATAGRAM frames must be held to (they ignore
it by themselves), and fixes the number of streams at 103. Therefore this module uses `QuicConnection._core`
(the Rust object), and builds the connection with other stream limits.
`tests/overlay/links/test_qh3_private.py` fails when a new release moves any of it.
"""

import contextlib
import logging
import ssl
from collections.abc import Callable
from functools import partial
from itertools import islice
from types import FunctionType
from typing import Any, Final

from qh3 import _hazmat
from qh3.quic import events as qh3_events
from qh3.quic import tls_bridge
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.quic.packet import encode_quic_retry, push_quic_transport_parameters
from qh3.tls import SignatureAlgorithm

from overlay.links.backends.base import (
    CONNECTION_WINDOW_BYTES,
    KEY_UPDATE_PACKETS,
    KEY_UPDATE_RETRY_PACKETS,
    MAX_DATAGRAM_FLIGHT_BYTES,
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
from overlay.links.backends.qh3_outbox import Outbox
from overlay.links.certificate import decode_certificate_key
from overlay.links.constants import DATAGRAM_PACKET, QUIC_VERSION, SERVER_NAME, UDP_PAYLOAD

_LIBRARY_STREAM_LIMIT: Final = 103
_CORE_ARGUMENT_UNI_STREAMS: Final = 22
"""Position of `local_max_streams_uni` among the Rust core's constructor arguments."""
PACING_SLACK_PACKETS: Final = 8
"""Packets that the pacer may owe before it is worth a wake-up; its burst is ten."""
ACK_TICK_S: Final = 0.004
"""A lone acknowledgement waits for data to go with: one to two of these beyond qh3's millisecond."""
MAX_ACK_SLACK_S: Final = ACK_TICK_S
ACK_SLACK_PACKETS: Final = 4
"""It does not wait longer than it takes so many packets to come: where they come fast, a lost one must be
noticed fast.
"""
RATE_INTERVAL_S: Final = 0.05
_ACK_TIMER: Final = "ack_application"
_IN_VAIN: Final = (ValueError, AssertionError, RuntimeError, QuicConnectionError)
"""What the library raises when a stream, or the whole connection, has ended: a peer's last message and its
close come in one batch, so that everything the message leads to is asked of a closed connection.
"""


def make_backend(settings: BackendSettings) -> "Qh3Backend":
    """Configure the library."""
    return Qh3Backend(settings)


class Qh3Backend:
    """Makes connections of one node."""

    name: BackendName = "qh3"

    def __init__(self, settings: BackendSettings) -> None:
        """Make the configurations of both sides."""
        logging.getLogger("quic").setLevel(logging.CRITICAL)  # it warns of every close by a peer
        self._client = _configuration(settings, is_client=True)
        self._server: QuicConfiguration | None = None
        if settings.certificate is not None and settings.key is not None:
            self._server = _configuration(settings, is_client=False)
            self._server.load_cert_chain(settings.certificate, settings.key)

    def dial(self) -> "Qh3Connection":
        """Make the dialler's side of a connection."""
        return Qh3Connection(_StreamfulConnection(configuration=self._client))

    def accept(self, original_cid: bytes, retry_cid: bytes | None) -> "Qh3Connection":
        """Make the acceptor's side of a connection. Raises ValueError for a node without a certificate."""
        if self._server is None:
            raise ValueError("a node without a certificate accepts no links")
        return Qh3Connection(
            _StreamfulConnection(
                configuration=self._server,
                original_destination_connection_id=original_cid,
                retry_source_connection_id=retry_cid,
            )
        )

    def encode_retry(
        self, source_cid: bytes, destination_cid: bytes, original_cid: bytes, token: bytes
    ) -> bytes:
        """Return a Retry packet."""
        return bytes(
            encode_quic_retry(
                version=QUIC_VERSION,
                source_cid=source_cid,
                destination_cid=destination_cid,
                original_destination_cid=original_cid,
                retry_token=token,
            )
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
        probe_datagram_size=False,
        supported_versions=[QUIC_VERSION],
    )
    if is_client:
        configuration.verify_mode = ssl.CERT_NONE  # the link compares the key with the identity it wants
        configuration.server_name = SERVER_NAME
        configuration.signature_algorithms = [SignatureAlgorithm.ED25519]
    return configuration


class Qh3Connection:
    """See `overlay.links.backends.base.Connection`."""

    __slots__ = (
        "_ack_slack_s",
        "_address",
        "_conn",
        "_losses_resent",
        "_next_key_update",
        "_outbox",
        "_rate_count",
        "_rate_since",
        "_up",
        "cids",
        "packets_sent",
    )

    def __init__(self, conn: Any) -> None:
        """Wrap a QuicConnection that has not begun; Any, because most of what is used is not public."""
        self._conn = conn
        self._up = False
        self._address: Address | None = None
        self._outbox = Outbox()
        self._losses_resent = 0
        """How many packets had been lost when the core had nothing more to send; -1 while it may have."""
        self._next_key_update = KEY_UPDATE_PACKETS
        self._ack_slack_s = MAX_ACK_SLACK_S
        self._rate_since = 0.0
        self._rate_count = 0
        self.cids: list[bytes] = [conn.host_cid]
        self.packets_sent = 0

    def connect(self, address: Address, now: float) -> None:
        """Begin the handshake of the dialler."""
        self._conn.connect(address, now)

    def receive(self, buffer: bytes, segment_size: int, address: Address, now: float) -> None:
        """Take received datagrams."""
        self._rate_count += 1 + len(buffer) // segment_size
        if now - self._rate_since > RATE_INTERVAL_S:
            apart_s = (now - self._rate_since) / self._rate_count
            self._ack_slack_s = min(MAX_ACK_SLACK_S, ACK_SLACK_PACKETS * apart_s)
            self._rate_since, self._rate_count = now, 0
        try:
            if self._up:
                self._conn._core.receive_gro_buffer(buffer, segment_size, address, now)
            else:
                self._conn.receive_gro_buffer(buffer, segment_size, address, now)
        except Exception as error:  # whatever a Rust core or a TLS parser raises on hostile bytes
            raise QuicFaultError(f"qh3 failed on received data: {type(error).__name__}") from error

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`."""
        try:
            self._conn.handle_timer(now)
        except Exception as error:
            raise QuicFaultError(f"qh3 failed on a timer: {type(error).__name__}") from error

    def timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        core = self._conn._core
        timer = None if core is None else core.get_timer()
        if timer is None:
            return None
        due: float = timer[1]
        if timer[0] == _ACK_TIMER:
            if self._ack_slack_s < MAX_ACK_SLACK_S:
                due += self._ack_slack_s
            else:
                # A grid for all quiet links: one wake-up serves many.
                due = (due // ACK_TICK_S + 2) * ACK_TICK_S
        elif timer[0] == "pacing":
            # The pacer saves up a burst: a wake-up for each single packet would cost more than the packet.
            due += PACING_SLACK_PACKETS * UDP_PAYLOAD * (core.smoothed_rtt or 0.0) / core.congestion_window
        return due

    def drain(self, inbox: Inbox) -> None:
        """Move events into the inbox."""
        conn = self._conn
        core = conn._core
        if core is not None and self._up:
            streams, datagrams = inbox.streams, inbox.datagrams
            last_id, chunks = -1, []
            for event in iter(core.next_event, None):
                kind = event[0]
                if kind == "stream_data":
                    _, stream_id, data, fin = event
                    if stream_id != last_id:
                        last_id, chunks = stream_id, streams.setdefault(stream_id, [])
                    if data:
                        chunks.append(data)
                    if fin:
                        inbox.finished.add(stream_id)
                elif kind == "datagram":
                    datagrams.append(event[1])
                elif kind != "ping_acknowledged":
                    self._slow_event(event, inbox)
        while (public := conn.next_event()) is not None:
            self._public_event(public, inbox)
        if conn._close_event is not None and inbox.closed is None:
            self._closed(conn._close_event, inbox)

    def _slow_event(self, event: tuple[Any, ...], inbox: Inbox) -> None:
        conn = self._conn
        core = conn._core
        conn._core = _OneEvent(core, event)
        try:
            conn._drain_core()
        except Exception as error:
            raise QuicFaultError(f"qh3 failed on an event: {type(error).__name__}") from error
        finally:
            conn._core = core

    def _public_event(self, event: Any, inbox: Inbox) -> None:
        if isinstance(event, qh3_events.StreamDataReceived):
            chunks = inbox.streams.setdefault(event.stream_id, [])
            if event.data:
                chunks.append(event.data)
            if event.end_stream:
                inbox.finished.add(event.stream_id)
        elif isinstance(event, qh3_events.DatagramFrameReceived):
            inbox.datagrams.append(event.data)
        elif isinstance(event, qh3_events.StreamReset):
            inbox.resets.append((event.stream_id, event.error_code))
        elif isinstance(event, qh3_events.StopSendingReceived):
            inbox.stops.append((event.stream_id, event.error_code))
        elif isinstance(event, qh3_events.ConnectionIdIssued):
            inbox.new_cids.append(event.connection_id)
        elif isinstance(event, qh3_events.ConnectionIdRetired):
            inbox.retired_cids.append(event.connection_id)
        elif isinstance(event, qh3_events.HandshakeCompleted):
            self._up = True
            inbox.connected = True
        elif isinstance(event, qh3_events.ConnectionTerminated):
            self._closed(event, inbox)

    @staticmethod
    def _closed(event: Any, inbox: Inbox) -> None:
        inbox.closed = Closed(int(event.error_code), str(event.reason_phrase), event.frame_type is None)

    def transmit(self, now: float, limit: int) -> list[tuple[bytes, Address]]:
        """Return datagrams to send now. Frames of the datagram lane go first while the window has room."""
        core = self._conn._core
        if core is None:
            return []
        out: list[tuple[bytes, Address]] = []
        # A packet costs one call of the core and no Python code; a failure leaves what came before.
        packets = iter(partial(core.poll_transmit, now), None)
        outbox = self._outbox
        try:
            if outbox and self._is_drained(core) and self._refill(core, now):
                self._acknowledge_along(core, now)
            out.extend(islice(packets, limit))
            while outbox and len(out) < limit and self._refill(core, now):
                packets = iter(partial(core.poll_transmit, now), None)
                out.extend(islice(packets, limit - len(out)))
            self._losses_resent = core.loss_total if len(out) < limit else -1
        except Exception as error:
            # An acceptor whose answer exceeds three times what came (RFC 9000 section 8.1) fails here
            # instead of waiting; it goes on when the dialler's next packet comes.
            if self._up or not isinstance(error, RuntimeError):
                raise QuicFaultError(f"qh3 failed on sending: {type(error).__name__}") from error
        if out:
            self._address = out[-1][1]
            self.packets_sent += len(out)
            if self.packets_sent >= self._next_key_update:
                self._update_key()
        return out

    @staticmethod
    def _acknowledge_along(core: Any, now: float) -> None:
        """Have an acknowledgement that waits for company go with what is about to leave."""
        timer = core.get_timer()
        if timer is not None and timer[0] == _ACK_TIMER and timer[1] > now:
            core.handle_timer(timer[1])  # it is the first timer: no other is due then

    def _is_drained(self, core: Any) -> bool:
        """Tell whether the core has nothing to send but what acknowledges: then that can share a packet with
        what is new.
        """
        return bool(core.loss_total == self._losses_resent)

    def _refill(self, core: Any, now: float) -> bool:
        """Give the core, which has been asked for all its packets, as much as will leave at once."""
        allowance = core.congestion_window - core.bytes_in_flight
        if allowance < UDP_PAYLOAD:
            return False
        allowance -= core.get_send_buffer_size(None)
        outbox = self._outbox
        given = False
        if outbox.frames:
            room = min(allowance, MAX_DATAGRAM_FLIGHT_BYTES - core.bytes_in_flight)
            if room >= UDP_PAYLOAD and self._is_pacer_ready(core, now):
                for frame in outbox.take_frames(room):
                    given = True
                    core.send_datagram(frame)
                    allowance -= DATAGRAM_PACKET
        if allowance >= UDP_PAYLOAD:
            for stream_id, data, fin in outbox.take(allowance):
                given = True
                try:
                    core.send_stream(stream_id, data, fin)
                except _IN_VAIN:
                    outbox.drop(stream_id)
        return given

    @staticmethod
    def _is_pacer_ready(core: Any, now: float) -> bool:
        """Tell whether the pacer, which the core does not ask for datagrams, lets packets leave."""
        timer = core.get_timer()
        return timer is None or timer[0] != "pacing" or timer[1] <= now

    def _update_key(self) -> None:
        self._next_key_update = self.packets_sent + KEY_UPDATE_PACKETS
        try:
            self._conn.request_key_update()
        except (AssertionError, ValueError):  # the handshake or the last update is not acknowledged yet
            self._next_key_update = self.packets_sent + KEY_UPDATE_RETRY_PACKETS
        except Exception as error:
            raise QuicFaultError(f"qh3 failed on a key update: {type(error).__name__}") from error

    def peer_key(self) -> bytes:
        """Return the acceptor's Ed25519 key. Raises DecodeError."""
        certificate = self._conn.get_peercert()
        return decode_certificate_key(b"" if certificate is None else bytes(certificate.public_bytes()))

    def address(self) -> Address | None:
        """Return where the peer is now."""
        return self._address

    def open_stream(self) -> int:
        """Return the id of a new unidirectional stream. Raises StreamLimitError."""
        stream_id: int = self._conn.get_next_available_stream_id(is_unidirectional=True)
        try:
            self._conn.send_stream_data(stream_id, b"")
        except _IN_VAIN as error:
            self._forget(stream_id)
            raise StreamLimitError(str(error)) from error
        return stream_id

    def _forget(self, stream_id: int) -> None:
        """Undo what the wrapper noted before its core refused the stream."""
        conn = self._conn
        conn._created_local_stream_ids.discard(stream_id)
        conn._next_stream_id_uni = conn._local_next_stream_id_uni = stream_id

    def send_stream(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Append to a stream."""
        if self._up and stream_id & 2:
            self._outbox.append(stream_id, data, fin)
        else:
            with contextlib.suppress(*_IN_VAIN):
                self._conn.send_stream_data(stream_id, data, fin)

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending."""
        self._outbox.drop(stream_id)
        with contextlib.suppress(*_IN_VAIN):
            self._conn.reset_stream(stream_id, code)

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to give up its stream."""
        with contextlib.suppress(*_IN_VAIN):
            self._conn.stop_stream(stream_id, code)

    def stream_backlog(self, stream_id: int | None) -> int:
        """Return bytes appended and not sent once."""
        outbox = self._outbox
        waiting = outbox.backlog_bytes if stream_id is None else outbox.stream_bytes(stream_id)
        try:
            held: int = self._conn.get_send_buffer_size(stream_id)
        except _IN_VAIN:
            return waiting
        return held + waiting

    def send_datagrams(self, frames: list[bytes]) -> None:
        """Queue frames."""
        self._outbox.frames.extend(frames)

    def datagram_room(self) -> int:
        """Return how many frames may be queued now."""
        core = self._conn._core
        if core is None:
            return 0
        window = (self._datagram_window(core) - core.bytes_in_flight) // DATAGRAM_PACKET
        bound = min(max(window, MIN_DATAGRAMS_QUEUED), MAX_DATAGRAMS_QUEUED)
        return max(0, int(bound) - len(self._outbox.frames))

    @staticmethod
    def _datagram_window(core: Any) -> int:
        """PRIVATE ACCESS: qh3 does not hold DATAGRAM frames to its congestion window; this does."""
        return min(int(core.congestion_window), MAX_DATAGRAM_FLIGHT_BYTES)

    def peer_datagram_bytes(self) -> int:
        """Return the largest DATAGRAM frame, with its head, that the peer takes; 0 if it takes none."""
        return self._conn._remote_max_datagram_frame_size or 0

    def ping(self) -> None:
        """Have something sent that the peer must acknowledge."""
        with contextlib.suppress(*_IN_VAIN):
            self._conn.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE."""
        self._outbox.clear()
        with contextlib.suppress(*_IN_VAIN):
            self._conn.close(error_code=code, reason_phrase=reason)

    def abandon(self) -> None:
        """Free what the library holds."""
        self._outbox.clear()
        bridge = self._conn._tls
        if bridge is not None:
            # They hold each other through callbacks: many short links must not wait for the collector.
            bridge.tls.__dict__.clear()
            bridge.__dict__.clear()
        self._conn.__dict__.clear()

    def is_authentic(self) -> bool:
        """Tell whether a packet came that could be opened."""
        core = self._conn._core
        return core is not None and bool(core.received_authenticated_packet)

    def bytes_in_flight(self) -> int:
        """Return bytes sent and neither acknowledged nor lost."""
        core = self._conn._core
        return 0 if core is None else int(core.bytes_in_flight)

    def holds_more_than(self, limit_bytes: int) -> bool:
        """Return false: the core renews CONNECTION_WINDOW_BYTES only for what it has delivered."""
        return False

    def rtt_s(self) -> float:
        """Return the smoothed round trip."""
        core = self._conn._core
        return 0.0 if core is None else float(core.smoothed_rtt or 0.0)

    def packets_lost(self) -> int:
        """Return how many packets were declared lost."""
        core = self._conn._core
        return 0 if core is None else int(core.loss_total)


class _OneEvent:
    """Stands in for the core while the wrapper handles one event that was already taken out of it."""

    __slots__ = ("_core", "_event")

    def __init__(self, core: Any, event: tuple[Any, ...]) -> None:
        self._core = core
        self._event: tuple[Any, ...] | None = event

    def next_event(self) -> tuple[Any, ...] | None:
        event, self._event = self._event, None
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def _with_globals(function: Callable[..., Any], **replaced: Any) -> Callable[..., Any]:
    """Return a copy of a function that sees other objects under some global names."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _make_core(*arguments: Any) -> Any:
    values = list(arguments)
    if values[_CORE_ARGUMENT_UNI_STREAMS] == _LIBRARY_STREAM_LIMIT:
        values[_CORE_ARGUMENT_UNI_STREAMS] = MAX_STREAMS
    return _hazmat.QuicConnectionCore(*values)


def _push_parameters(buffer: Any, parameters: Any) -> None:
    if parameters.initial_max_streams_uni == _LIBRARY_STREAM_LIMIT:
        parameters.initial_max_streams_uni = MAX_STREAMS
    push_quic_transport_parameters(buffer, parameters)


class _Bridge(tls_bridge.QuicTlsBridge):
    serialize_transport_parameters = _with_globals(
        tls_bridge.QuicTlsBridge.serialize_transport_parameters,
        push_quic_transport_parameters=_push_parameters,
    )


class _StreamfulConnection(QuicConnection):
    """A connection whose peer may open MAX_STREAMS unidirectional streams instead of 103."""

    _create_core = _with_globals(QuicConnection._create_core, QuicConnectionCore=_make_core)
    _create_tls = _with_globals(QuicConnection._create_tls, QuicTlsBridge=_Bridge)
