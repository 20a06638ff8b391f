"""One link: a QUIC connection, its control machine and the handler above, joined.

No sockets, no clock: an owner (`overlay.links.io.endpoint`) gives received buffers and the time, and sends
what `transmit` returns. The handler is called synchronously, in this order within a batch: up, control
messages, datagrams, streams, resets; `on_link_closed` comes last and once, and only for a link that was up.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from overlay.errors import DecodeError
from overlay.links.backends.base import Address, Closed, Connection, Inbox, QuicFaultError
from overlay.links.constants import CONTROL_STREAM, DATAGRAM_HEAD, LINK_FRAME, CloseCode
from overlay.links.framing import encode_control_frame
from overlay.links.limits import LinkLimits
from overlay.links.machine import Deliver, End, LinkMachine, Output, Send, Up

LOW_BACKLOG_BYTES: Final = 128 * 1024
"""Under this much unsent stream data a link that was asked about its backlog becomes writable again."""
_FRAME_SIZES: Final = {LINK_FRAME}
_NO_ALPN: Final = 0x178
"""TLS alert 120 as a QUIC error: the two sides have no ALPN in common (RFC 9001 section 8.1)."""
_HANDSHAKE_FAILURE: Final = 0x128
"""TLS alert 40: what qh3 2.1 answers instead, with the reason in words."""


class LinkHandler(Protocol):
    """What is above links. Calls are synchronous and must not raise."""

    def on_link_up(self, link: "Link") -> None:
        """The peer is known (or is an anonymous customer) and the link may be used."""

    def on_control(self, link: "Link", message: bytes) -> None:
        """One encoded control message that is not the link's own."""

    def on_datagrams(self, link: "Link", frames: list[bytes]) -> None:
        """Frames of LINK_FRAME bytes, in order of arrival."""

    def on_stream(self, link: "Link", stream_id: int, chunks: list[bytes], fin: bool) -> None:
        """Bytes of one of the peer's unidirectional streams, in order; `chunks` may be empty when `fin` is
        set.
        """

    def on_stream_reset(self, link: "Link", stream_id: int, code: int) -> None:
        """The peer gave up its stream, or does not want ours any more: the id tells which."""

    def on_writable(self, link: "Link") -> None:
        """After `datagram_room` or `stream_backlog` said that the link is full: there is room again."""

    def on_link_closed(self, link: "Link", code: int, reason: str) -> None:
        """The link is gone."""

    def on_batch_end(self) -> None:
        """Everything that one wake-up brought has been handed up; what is sent now goes out together."""


class LinkOwner(Protocol):
    """What a link needs of the endpoint that drives it."""

    def mark_dirty(self, link: "Link") -> None:
        """Have the link flushed soon."""

    def add_cid(self, link: "Link", cid: bytes) -> None:
        """Packets to this id are the link's."""

    def remove_cid(self, link: "Link", cid: bytes) -> None:
        """The id is no longer in use."""

    def link_up(self, link: "Link") -> None:
        """The link came up (before the handler is told)."""

    def link_ended(self, link: "Link") -> None:
        """The link has ended: flush its last packets, then forget it and call `report_end`."""


class Link:
    """One neighbour's connection. See the protocol above for what the handler gets."""

    __slots__ = (
        "__weakref__",
        "_bad_datagrams",
        "_connection",
        "_early",
        "_early_bytes",
        "_early_finished",
        "_handler",
        "_inbox",
        "_limits",
        "_lost_before",
        "_machine",
        "_owner",
        "_sent_before",
        "_waiting_since",
        "_want_backlog",
        "_want_room",
        "_was_up",
        "dropped_datagrams",
        "end",
        "is_dialler",
        "is_up",
        "last_packets",
        "last_receive_s",
        "loss",
        "peer",
        "peer_address",
        "tag",
    )

    def __init__(
        self,
        *,
        owner: LinkOwner,
        handler: LinkHandler,
        connection: Connection,
        machine: LinkMachine,
        limits: LinkLimits,
        inbox: Inbox,
        is_dialler: bool,
        peer_address: Address,
        now: float,
    ) -> None:
        """Join the parts. `inbox` may be shared by all links of one owner: it is empty between calls."""
        self._owner = owner
        self._handler = handler
        self._connection = connection
        self._machine = machine
        self._limits = limits
        self._inbox = inbox
        self.is_dialler = is_dialler
        self.is_up = False
        self.peer: bytes | None = None
        self.peer_address = peer_address
        self.loss = 0.0
        """Share of our packets that were declared lost, averaged over the last seconds."""
        self.last_receive_s = now
        self.dropped_datagrams = 0
        self.end: End | None = None
        self.last_packets: list[tuple[bytes, Address]] = []
        """The packets that closed the link, once it has ended."""
        self.tag: object = None
        """Free for the handler."""
        self._bad_datagrams = 0
        self._early: dict[int, list[bytes]] = {}
        self._early_finished: set[int] = set()
        self._early_bytes = 0
        self._want_room = False
        self._want_backlog = False
        self._was_up = False
        self._waiting_since: float | None = None
        self._sent_before = 0
        self._lost_before = 0

    # -- for the node above --

    @property
    def rtt_s(self) -> float:
        """Smoothed round trip in seconds; 0.0 before the first measurement and after the end."""
        return self._connection.rtt_s() if self.end is None else 0.0

    def unanswered_s(self, now: float) -> float:
        """Return for how long data has been under way without any packet in answer, to the second; 0.0 if
        none is.
        """
        since = self._waiting_since
        return 0.0 if since is None or self.last_receive_s > since else now - since

    def send_control(self, message: bytes) -> None:
        """Queue one encoded control message, 1 to MAX_MESSAGE_BYTES long. Ignored on a link that is not up.

        A peer that does not read its control messages loses the link. Raises ValueError for another length.
        """
        frame = encode_control_frame(message)
        if not self.is_up:
            return
        if self._connection.stream_backlog(CONTROL_STREAM) > self._limits.max_control_backlog_bytes:
            self._finish(CloseCode.FLOOD, "control messages are not being read", tell_peer=True)
            return
        self._connection.send_stream(CONTROL_STREAM, frame, False)
        self._owner.mark_dirty(self)

    def send_datagrams(self, frames: list[bytes]) -> int:
        """Queue frames of exactly LINK_FRAME bytes, as many as there is room for; return how many were taken.

        Raises ValueError for a frame of another length.
        """
        if not frames or not self.is_up:
            return 0
        if set(map(len, frames)) != _FRAME_SIZES:
            raise ValueError(f"a link frame has {LINK_FRAME} bytes")
        room = self._connection.datagram_room()
        if room < len(frames):
            self._want_room = True
            frames = frames[:room]
            if not frames:
                return 0
        self._connection.send_datagrams(frames)
        self._owner.mark_dirty(self)
        return len(frames)

    def datagram_room(self) -> int:
        """Return how many frames `send_datagrams` would take now. After 0, `on_writable` follows."""
        if not self.is_up:
            return 0
        room = self._connection.datagram_room()
        if room == 0:
            self._want_room = True
        return room

    def open_stream(self) -> int:
        """Return the id of a new unidirectional stream. Raises StreamLimitError if the peer allows no more at
        present.
        """
        if not self.is_up:
            return -1
        stream_id = self._connection.open_stream()
        self._owner.mark_dirty(self)
        return stream_id

    def send_stream(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Append to a stream; ignored when the stream or the link has ended. The caller watches
        `stream_backlog`.
        """
        if self.is_up:
            self._connection.send_stream(stream_id, data, fin)
            self._owner.mark_dirty(self)

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up one of our streams; what was not delivered may be lost."""
        if self.is_up:
            self._connection.reset_stream(stream_id, code)
            self._owner.mark_dirty(self)

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the peer to give up one of its streams."""
        if self.is_up:
            self._connection.stop_stream(stream_id, code)
            self._owner.mark_dirty(self)

    def stream_backlog(self, stream_id: int | None = None) -> int:
        """Return bytes of one stream, or of all, not sent once. After more than LOW_BACKLOG_BYTES,
        `on_writable` follows.
        """
        if not self.is_up:
            return 0
        backlog = self._connection.stream_backlog(stream_id)
        if backlog > LOW_BACKLOG_BYTES:
            self._want_backlog = True
        return backlog

    def close(self, code: int = CloseCode.DONE, reason: str = "") -> None:
        """Close the link; the peer reads `code` (0 to 2^62-1) and `reason`. Closing twice is allowed.

        `on_link_closed` follows from the owner's next flush, not from within this call.
        """
        self._finish(code, reason, tell_peer=True)

    # -- for the owner --

    @property
    def cids(self) -> list[bytes]:
        """The connection ids that the peer addresses at first."""
        return self._connection.cids

    @property
    def is_authentic(self) -> bool:
        """Whether a packet came that could be opened."""
        return self._connection.is_authentic()

    def connect(self, now: float) -> None:
        """Begin a dialled link's handshake."""
        self._connection.connect(self.peer_address, now)
        self._owner.mark_dirty(self)

    def receive(self, buffer: bytes, segment_size: int, address: Address, now: float) -> None:
        """Feed received datagrams to QUIC; `process` then does what they ask for."""
        if self.end is not None:
            return
        self.last_receive_s = now
        try:
            self._connection.receive(buffer, segment_size, address, now)
        except QuicFaultError as fault:
            self._finish(CloseCode.INTERNAL, str(fault), tell_peer=True)

    def process(self, now: float) -> None:
        """Hand up everything that has arrived."""
        if self.end is not None:
            return
        inbox = self._inbox
        try:
            self._connection.drain(inbox)
        except QuicFaultError as fault:
            self._finish(CloseCode.INTERNAL, str(fault), tell_peer=True)
        if self._connection.holds_more_than(self._limits.max_held_bytes):
            self._finish(CloseCode.MEMORY, "too much stream data out of order", tell_peer=True)
        try:
            self._dispatch(inbox, now)
        finally:
            inbox.clear()
        self._owner.mark_dirty(self)

    def handle_timeout(self, now: float) -> None:
        """Do what is due in QUIC and in the control machine."""
        if self.end is not None:
            return
        due = self._connection.timer()
        if due is not None and due <= now:
            try:
                self._connection.handle_timer(now)
            except QuicFaultError as fault:
                self._finish(CloseCode.INTERNAL, str(fault), tell_peer=True)
                return
            self.process(now)
        if self.end is None:
            self._carry_out(self._machine.handle_timeout(now))

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is wanted."""
        if self.end is not None:
            return None
        quic, machine = self._connection.timer(), self._machine.next_timeout()
        if quic is None:
            return machine
        return quic if machine is None else min(quic, machine)

    def transmit(self, now: float, limit: int) -> list[tuple[bytes, Address]]:
        """Return datagrams to send, about `limit` at most; fewer than `limit` means all."""
        try:
            packets = self._connection.transmit(now, limit)
        except QuicFaultError as fault:
            self._finish(CloseCode.INTERNAL, str(fault), tell_peer=False)
            return []
        if self.end is not None and packets:
            self.last_packets = packets[-2:]
        return packets

    def notify_writable(self) -> None:
        """Tell the handler if a link that was full has room again."""
        if not self.is_up:
            return
        connection = self._connection
        room = self._want_room and connection.datagram_room() > 0
        backlog = self._want_backlog and connection.stream_backlog(None) < LOW_BACKLOG_BYTES
        if room or backlog:
            self._want_room = self._want_room and not room
            self._want_backlog = self._want_backlog and not backlog
            self._handler.on_writable(self)

    def housekeeping(self, now: float) -> None:
        """Once a second: loss figure, silent peers."""
        if self.end is not None:
            return
        connection = self._connection
        sent, lost = (
            connection.packets_sent - self._sent_before,
            connection.packets_lost() - self._lost_before,
        )
        if sent >= 10:
            self._sent_before += sent
            self._lost_before += lost
            self.loss += 0.25 * (min(1.0, max(0, lost) / sent) - self.loss)
        if connection.bytes_in_flight() == 0:
            self._waiting_since = None
        elif self._waiting_since is None or self.last_receive_s > self._waiting_since:
            self._waiting_since = now
        elif self.is_up and now - self._waiting_since > self._limits.answer_timeout_s:
            self._finish(CloseCode.TIMEOUT, "the peer stopped answering", tell_peer=True)

    def report_end(self) -> None:
        """Tell the handler that the link has ended, and free the connection. Called once, by the owner."""
        self._connection.abandon()
        self._early.clear()
        if self._was_up and self.end is not None:
            self._handler.on_link_closed(self, self.end.code, self.end.reason)

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the link because of something the owner found out."""
        self._finish(code, reason, tell_peer=True)

    # -- inside --

    def _finish(self, code: int, reason: str, *, tell_peer: bool) -> None:
        if self.end is not None:
            return
        self.end = End(code, reason)
        self.is_up = False
        self._machine.end()
        if tell_peer:
            self._connection.close(code, reason)
        self._owner.link_ended(self)

    def _dispatch(self, inbox: Inbox, now: float) -> None:
        for cid in inbox.new_cids:
            self._owner.add_cid(self, cid)
        for cid in inbox.retired_cids:
            self._owner.remove_cid(self, cid)
        if inbox.connected:
            self._connected(now)
        streams = inbox.streams
        if CONTROL_STREAM in streams or inbox.resets or inbox.stops:
            self._control(inbox, now)
        if inbox.datagrams and self.end is None:
            self._datagrams(inbox.datagrams)
        if streams and self.end is None:
            self._streams(streams, inbox.finished)
        if inbox.resets or inbox.stops:
            for stream_id, code in (*inbox.resets, *inbox.stops):
                if self.end is None and self.is_up:
                    self._handler.on_stream_reset(self, stream_id, code)
        if inbox.closed is not None and self.end is None:
            self._closed_by_quic(inbox.closed)

    def _connected(self, now: float) -> None:
        key: bytes | None = None
        if self.is_dialler:
            try:
                key = self._connection.peer_key()
            except DecodeError:
                key = None
        takes = max(0, self._connection.peer_datagram_bytes() - DATAGRAM_HEAD)
        if takes < LINK_FRAME:
            reason = f"the other node takes datagrams of {takes} bytes at most, and {LINK_FRAME} are needed"
            self._finish(CloseCode.PROTOCOL, reason, tell_peer=True)
            return
        self._carry_out(self._machine.handle_connected(key, now))

    def _control(self, inbox: Inbox, now: float) -> None:
        chunks = inbox.streams.pop(CONTROL_STREAM, None)
        if chunks and self.end is None:
            self._carry_out(self._machine.handle_control(b"".join(chunks), now))
        ended = CONTROL_STREAM in inbox.finished or any(
            stream_id == CONTROL_STREAM for stream_id, _ in (*inbox.resets, *inbox.stops)
        )
        if ended:
            self._finish(CloseCode.PROTOCOL, "the control stream was ended", tell_peer=True)

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if self.end is not None:
                return
            match output:
                case Deliver(message):
                    self._handler.on_control(self, message)
                case Send(data):
                    self._connection.send_stream(CONTROL_STREAM, data, False)
                    self._owner.mark_dirty(self)
                case Up(peer):
                    self._now_up(peer)
                case End(code, reason):
                    self._finish(code, reason, tell_peer=True)

    def _now_up(self, peer: bytes | None) -> None:
        self.peer = peer
        self.is_up = self._was_up = True
        self._owner.link_up(self)
        if self.end is None:
            self._handler.on_link_up(self)
        early, self._early = self._early, {}
        finished, self._early_finished = self._early_finished, set()
        if early and self.end is None:
            self._streams(early, finished)

    def _datagrams(self, frames: list[bytes]) -> None:
        if not self.is_up:
            self.dropped_datagrams += len(frames)
            return
        if set(map(len, frames)) != _FRAME_SIZES:
            good = [frame for frame in frames if len(frame) == LINK_FRAME]
            bad = len(frames) - len(good)
            self.dropped_datagrams += bad
            self._bad_datagrams += bad
            if self._bad_datagrams > self._limits.max_bad_datagrams:
                self._finish(CloseCode.PROTOCOL, "datagrams of a wrong size", tell_peer=True)
                return
            if not good:
                return
            frames = good
        self._handler.on_datagrams(self, frames)

    def _streams(self, streams: dict[int, list[bytes]], finished: set[int]) -> None:
        peer_bits = 3 if self.is_dialler else 2
        for stream_id, chunks in streams.items():
            if stream_id & 3 != peer_bits:
                self._finish(CloseCode.PROTOCOL, "a stream of a kind that is not used", tell_peer=True)
                return
            if self.is_up:
                self._handler.on_stream(self, stream_id, chunks, stream_id in finished)
                if self.end is not None:
                    return
            else:
                self._early.setdefault(stream_id, []).extend(chunks)
                if stream_id in finished:
                    self._early_finished.add(stream_id)
                self._early_bytes += sum(map(len, chunks)) + 64
                if self._early_bytes > self._limits.max_early_bytes:
                    self._finish(CloseCode.PROTOCOL, "stream data before the greeting", tell_peer=True)
                    return

    def _closed_by_quic(self, closed: Closed) -> None:
        if closed.by_application:
            self._finish(closed.code, closed.reason[:200], tell_peer=False)
        elif closed.code == _NO_ALPN or (closed.code == _HANDSHAKE_FAILURE and "ALPN" in closed.reason):
            self._finish(
                CloseCode.VERSION,
                "the other side speaks another version of the link protocol",
                tell_peer=False,
            )
        elif "idle" in closed.reason.lower():
            self._finish(CloseCode.TIMEOUT, "nothing was received for too long", tell_peer=False)
        else:
            self._finish(CloseCode.TRANSPORT, f"QUIC: {closed.reason[:200] or closed.code}", tell_peer=False)
