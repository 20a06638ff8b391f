"""One epoll descriptor for all of the proxy's sockets, waited for by one trio task.

A trio wait per socket costs tens of microseconds; here a wake-up is shared by everything that is ready.
Sockets are registered once, edge-triggered for reading and writing, and their handlers called
synchronously. A handler does a bounded amount of work, tolerates being called for nothing, and asks with
`soon` to be called again when it stopped early; others run in between.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import trio

from overlay.socks.io.faults import report_fault

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
#: The peer will send no more; it may have sent data before.
READ_CLOSED = select.EPOLLRDHUP
BROKEN, HUNG_UP = select.EPOLLERR, select.EPOLLHUP
STREAM_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
DATAGRAM_EVENTS = select.EPOLLIN | select.EPOLLET
LISTEN_EVENTS = select.EPOLLIN
_MAX_EVENTS = 256
#: After this long in handlers, the rest of the program gets its turn, in seconds.
TURN_S = 0.002

Handler = Callable[[int], None]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Poller:
    """The dispatcher. Handlers get the epoll event bits, or 0 when called by `soon`."""

    __slots__ = ("_epoll", "_forgotten", "_handlers", "_soon", "now")

    def __init__(self) -> None:
        """Make the epoll descriptor; `close` ends it."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._soon: list[Handler] = []
        # Descriptors whose events of this turn are about a socket that is closed by now. The number may
        # belong to another socket already, whose own events come with the next turn.
        self._forgotten: set[int] = set()
        #: The time of the current turn on trio's clock, so that handlers need not ask.
        self.now = 0.0

    def add(self, descriptor: int, handler: Handler, events: int = STREAM_EVENTS) -> None:
        """Start calling `handler` for this descriptor. Closing the descriptor ends it; also call `forget`."""
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, events)

    def replace(self, descriptor: int, handler: Handler) -> None:
        """Call another handler from now on."""
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Stop calling: the descriptor will be closed at once."""
        if self._handlers.pop(descriptor, None) is not None:
            self._forgotten.add(descriptor)

    def remove(self, descriptor: int) -> None:
        """Stop calling for a descriptor that stays open."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def soon(self, handler: Handler) -> None:
        """Call `handler(0)` in the next turn."""
        self._soon.append(handler)

    async def run(self) -> None:
        """Dispatch until cancelled. An exception of a handler is logged, and that is all."""
        epoll, handlers, forgotten = self._epoll, self._handlers, self._forgotten
        descriptor = epoll.fileno()
        while True:
            if self._soon:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(descriptor)
            self.now = trio.current_time()
            forgotten.clear()
            waiting, self._soon = self._soon, []
            turn_end = perf_counter() + TURN_S
            for ready, events in epoll.poll(0, _MAX_EVENTS):
                handler = handlers.get(ready)
                if handler is None or ready in forgotten:
                    continue
                try:
                    handler(events)
                except Exception as error:
                    report_fault("proxy_handler_failed", error)
                if perf_counter() > turn_end:
                    await trio.lowlevel.checkpoint()
                    turn_end = perf_counter() + TURN_S
            for handler in waiting:
                try:
                    handler(0)
                except Exception as error:
                    report_fault("proxy_handler_failed", error)
                if perf_counter() > turn_end:
                    await trio.lowlevel.checkpoint()
                    turn_end = perf_counter() + TURN_S

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._handlers.clear()
        self._soon.clear()
        self._epoll.close()
