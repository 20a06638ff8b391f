"""What a link wants to send and qh3's core does not have yet.

The core takes frames of up to sixteen streams at a time into a queue of its own. When the congestion window
closes over that queue it sends no acknowledgements until the window opens again; two sides in that state
wait for each other, for their probe timers at best. DATAGRAM frames block it in the same way, and ignore the
window besides. So the core is given no more than what will leave at once, and the rest waits here.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from overlay.links.constants import DATAGRAM_PACKET

STREAM_OVERHEAD_BYTES: Final = 64
"""What a packet holds besides stream data: the core's own allowance."""
STREAM_CHUNK_BYTES: Final = 1388
"""Stream data that the core puts into one packet."""
QUANTUM_BYTES: Final = 8 * STREAM_CHUNK_BYTES
"""Stream data of one stream before others have their turn: eight packets."""
MAX_ARREARS_BYTES: Final = 64 * 1024
"""By how much frames that had to wait for the pacer may get ahead afterwards."""

Piece = bytes | memoryview


class Outbox:
    """Frames and stream data that wait for the window, streams taking turns.

    While both lanes wait, frames go first, but get no more than half of what leaves. A stream that begins to
    wait has its first turn before those that go on waiting, so that a short message does not stand behind
    long ones.
    """

    __slots__ = ("_fresh", "_lead_bytes", "_pieces", "_sizes", "_turns", "backlog_bytes", "frames")

    def __init__(self) -> None:
        """Begin empty."""
        self.frames: deque[bytes] = deque()
        self.backlog_bytes = 0
        """Bytes of all streams."""
        self._lead_bytes = 0
        """By how much more of the frames than of the streams has left while both waited."""
        self._pieces: dict[int, deque[tuple[Piece, bool]]] = {}
        self._sizes: dict[int, int] = {}
        self._fresh: deque[int] = deque()
        self._turns: deque[int] = deque()

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._pieces or self.frames)

    def append(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Add to a stream."""
        pieces = self._pieces.get(stream_id)
        if pieces is None:
            pieces = self._pieces[stream_id] = deque()
            self._sizes[stream_id] = 0
            self._fresh.append(stream_id)
        pieces.append((data, fin))
        self._sizes[stream_id] += len(data)
        self.backlog_bytes += len(data)

    def drop(self, stream_id: int) -> None:
        """Forget what waits of a stream."""
        if self._pieces.pop(stream_id, None) is not None:
            self.backlog_bytes -= self._sizes.pop(stream_id)

    def clear(self) -> None:
        """Forget everything."""
        self.frames.clear()
        for waiting in (self._pieces, self._sizes, self._fresh, self._turns):
            waiting.clear()
        self.backlog_bytes = 0

    def stream_bytes(self, stream_id: int) -> int:
        """Return how much of a stream waits."""
        return self._sizes.get(stream_id, 0)

    def take_frames(self, budget_bytes: int) -> Iterator[bytes]:
        """Take out frames for packets of `budget_bytes` in all, or less if streams wait too."""
        frames = self.frames
        count = budget_bytes // DATAGRAM_PACKET
        if not self._pieces:
            self._lead_bytes = 0
        elif count:
            half = max(0, budget_bytes - self._lead_bytes) // (2 * DATAGRAM_PACKET)
            count = min(count, half or int(self._lead_bytes <= 0))
            self._lead_bytes += min(count, len(frames)) * DATAGRAM_PACKET
        for _ in range(min(count, len(frames))):
            yield frames.popleft()
        if not frames:
            self._lead_bytes = 0

    def take(self, budget_bytes: int) -> Iterator[tuple[int, Piece, bool]]:
        """Take out pieces (stream id, data, fin) for packets of `budget_bytes` in all.

        A piece is counted with the overhead of its packets, and a budget of less than a full packet yields
        nothing.
        """
        fresh, turns = self._fresh, self._turns
        while (budget_bytes > STREAM_OVERHEAD_BYTES) and (fresh or turns):
            stream_id = (fresh or turns).popleft()
            pieces = self._pieces.get(stream_id)
            if pieces is None:  # dropped meanwhile
                continue
            quantum = QUANTUM_BYTES
            while pieces and quantum > 0 and budget_bytes > STREAM_OVERHEAD_BYTES:
                data, fin = pieces[0]
                most = min(quantum, budget_bytes - STREAM_OVERHEAD_BYTES)
                size = len(data)
                if size <= most:
                    pieces.popleft()
                else:
                    view = memoryview(data)
                    pieces[0] = (view[most:], fin)
                    data, fin, size = view[:most], False, most
                self._sizes[stream_id] -= size
                self.backlog_bytes -= size
                quantum -= size
                used = size + STREAM_OVERHEAD_BYTES * (1 + size // STREAM_CHUNK_BYTES)
                budget_bytes -= used
                if self.frames:
                    self._lead_bytes = max(self._lead_bytes - used, -MAX_ARREARS_BYTES)
                yield stream_id, data, fin
            if pieces:
                turns.append(stream_id)
            elif self._pieces.get(stream_id) is pieces:
                del self._pieces[stream_id], self._sizes[stream_id]
