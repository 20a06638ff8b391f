"""One direction of a connection: bytes from one socket to another, through a buffer shared by all.

What the far side does not take at once is kept (at most one buffer), and nothing more is read until it is
gone: a slow reader holds back its sender and costs bounded memory.
"""

from __future__ import annotations

import socket
from enum import Enum, auto

#: Read at most this much at a time. Big enough that a bulk transfer's cost is the kernel's copying; small
#: enough that a turn stays under a millisecond.
BUFFER_BYTES = 256 * 1024
#: A pipe begins with reads of this size, doubles while the far side takes all, and goes back when it does
#: not: what is kept for a slow reader stays in proportion to what it takes.
FIRST_READ_BYTES = 16 * 1024
#: Reads per turn before others get theirs.
READS_PER_TURN = 2


_NOTHING = memoryview(b"")


class Flow(Enum):
    """Why `pump` stopped."""

    EMPTY = auto()
    """Nothing more to read for now."""
    FULL = auto()
    """The far side takes no more for now."""
    MORE = auto()
    """The turn is over; call again soon."""
    ENDED = auto()
    """The sender closed, everything was delivered, and the far side has been told."""


class Pipe:
    """A direction between two connected non-blocking sockets."""

    __slots__ = (
        "_is_read_out",
        "_pending",
        "_read_bytes",
        "_source",
        "_target",
        "bytes_moved",
        "has_ended",
        "until_end",
    )

    def __init__(self, source: socket.socket, target: socket.socket, early: bytes = b"") -> None:
        """Carry bytes from `source` to `target`, `early` first."""
        self._source = source
        self._target = target
        self._pending = memoryview(early)
        self._is_read_out = False
        self._read_bytes = FIRST_READ_BYTES
        #: Everything the source sent was delivered, its end included.
        self.has_ended = False
        self.bytes_moved = len(early)
        #: To be set when the source's sender has closed: no further event will come then.
        self.until_end = False

    @property
    def is_full(self) -> bool:
        """Whether bytes wait for the far side to take them."""
        return len(self._pending) > 0

    def pump(self, buffer: memoryview) -> Flow:
        """Move what can be moved. `buffer` is scratch space; nothing of it is kept.

        Raises OSError when either socket is broken.
        """
        if self.has_ended:
            return Flow.ENDED
        if self._pending and not self._flush():
            return Flow.FULL
        if self._is_read_out:
            return self._end()
        source, send = self._source, self._target.send
        for _ in range(READS_PER_TURN):
            wanted = self._read_bytes
            try:
                size = source.recv_into(buffer, wanted)
            except BlockingIOError:
                return Flow.EMPTY
            if not size:
                self._is_read_out = True
                return self._end()
            try:
                sent = send(buffer[:size])
            except BlockingIOError:
                sent = 0
            self.bytes_moved += size
            if sent < size:
                self._pending = memoryview(bytes(buffer[sent:size]))
                self._read_bytes = max(FIRST_READ_BYTES, wanted // 4)
                return Flow.FULL
            if size == wanted:
                self._read_bytes = min(wanted * 2, len(buffer))
            elif not self.until_end:
                # A short read emptied the socket: what comes later comes with an event of its own.
                return Flow.EMPTY
        return Flow.MORE

    def _flush(self) -> bool:
        try:
            sent = self._target.send(self._pending)
        except BlockingIOError:
            return False
        self._pending = self._pending[sent:] if sent < len(self._pending) else _NOTHING
        return not self._pending

    def _end(self) -> Flow:
        self.has_ended = True
        self._target.shutdown(socket.SHUT_WR)
        return Flow.ENDED
