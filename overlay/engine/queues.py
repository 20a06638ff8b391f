"""Bounded queues of the engine: CoDel in front of everything that may be dropped, one memory budget for all.

CoDel follows RFC 8289; its state is per queue. Inner packets are only ever dropped where they enter (the
TUN side of a client or an exit) and on the datagram lane; trains are held back by credits instead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import sqrt
from typing import Generic, TypeVar

CODEL_TARGET_S = 0.020
"""Standing delay that is tolerated. RFC 8289 names 5 ms; a Python node on a busy core is woken in steps
of about that size, and a TCP super-packet of 64 KB takes 13 ms at 40 Mbit/s, so a lower mark would drop
at healthy delays.
"""
CODEL_INTERVAL_S = 0.150
"""A round trip over several hops that is not slow (RFC 8289 section 4.3: the worst expected round-trip
time).
"""

T = TypeVar("T")


@dataclass(slots=True)
class MemoryBudget:
    """Bytes of packets held by all queues of the process, against one limit."""

    limit_bytes: int
    used_bytes: int = 0

    @property
    def over(self) -> bool:
        """Whether the queues hold more than the limit."""
        return self.used_bytes > self.limit_bytes

    @property
    def tight(self) -> bool:
        """Whether three quarters are used: no window grows and none is granted beyond its first size."""
        return self.used_bytes * 4 > self.limit_bytes * 3


class CodelQueue(Generic[T]):
    """A FIFO of (item, size) with a hard limit in bytes and CoDel at its head.

    ``push`` refuses what does not fit; ``pop`` returns the next item that CoDel lets pass. ``dropped``
    counts both.
    """

    __slots__ = (
        "_budget",
        "_count",
        "_drop_next_s",
        "_dropping",
        "_first_above_s",
        "_items",
        "dropped",
        "limit_bytes",
        "size_bytes",
    )

    def __init__(self, limit_bytes: int, budget: MemoryBudget) -> None:
        self._items: deque[tuple[float, int, T]] = deque()
        self._budget = budget
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self.dropped = 0
        self._first_above_s = 0.0
        self._drop_next_s = 0.0
        self._count = 0
        self._dropping = False

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: T, size_bytes: int, now: float) -> bool:
        """Append; False, with the item counted as dropped, when the queue or the process is full."""
        if self.size_bytes + size_bytes > self.limit_bytes or self._budget.over:
            self.dropped += 1
            return False
        self._items.append((now, size_bytes, item))
        self.size_bytes += size_bytes
        self._budget.used_bytes += size_bytes
        return True

    def peek_size(self) -> int:
        """Size in bytes of the item at the head; 0 when there is none. CoDel may still drop it."""
        return self._items[0][1] if self._items else 0

    def pop(self, now: float) -> T | None:
        """The next item, or None when the queue is empty."""
        entry, ok_to_drop = self._take(now)
        if entry is None:
            self._dropping = False
            return None
        if self._dropping:
            if not ok_to_drop:
                self._dropping = False
            else:
                while now >= self._drop_next_s and self._dropping:
                    self.dropped += 1
                    self._count += 1
                    entry, ok_to_drop = self._take(now)
                    if entry is None:
                        self._dropping = False
                        return None
                    if not ok_to_drop:
                        self._dropping = False
                    else:
                        self._drop_next_s += CODEL_INTERVAL_S / sqrt(self._count)
        elif ok_to_drop:
            self.dropped += 1
            following, _ = self._take(now)
            self._dropping = True
            # A queue that was dropping a moment ago resumes near its last rate (RFC 8289 section 4.2).
            recently = now - self._drop_next_s < 16 * CODEL_INTERVAL_S
            self._count = self._count - 2 if recently and self._count > 2 else 1
            self._drop_next_s = now + CODEL_INTERVAL_S / sqrt(self._count)
            if following is None:
                self._dropping = False
                return None
            entry = following
        return entry

    def unpop(self, item: T, size_bytes: int, now: float) -> None:
        """Put an item back at the head, for a taker that found no room for it."""
        self._items.appendleft((now, size_bytes, item))
        self.size_bytes += size_bytes
        self._budget.used_bytes += size_bytes

    def clear(self) -> None:
        """Forget everything, without counting it as dropped."""
        self._items.clear()
        self._budget.used_bytes -= self.size_bytes
        self.size_bytes = 0

    def _take(self, now: float) -> tuple[T | None, bool]:
        if not self._items:
            self._first_above_s = 0.0
            return None, False
        entered_s, size, item = self._items.popleft()
        self.size_bytes -= size
        self._budget.used_bytes -= size
        if now - entered_s < CODEL_TARGET_S or not self._items:
            self._first_above_s = 0.0
            return item, False
        if self._first_above_s == 0.0:
            self._first_above_s = now + CODEL_INTERVAL_S
            return item, False
        return item, now >= self._first_above_s
