"""The proxy's server: accepts clients, owns what they share, and ends everything with itself.

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_proxy, listeners, circuits, namespace)
        server.status()

One task dispatches all sockets (`poller`), one sweeps deadlines once a second, one starts delayed connection
attempts; further tasks exist only while a request waits for a circuit or a name.

Where the native engine is installed, its crate accepts, and serves what it may by itself (`native`); what is
here serves the rest, and everything where there is no crate.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from overlay.socks.circuits import Circuits
from overlay.socks.io.connect import ATTEMPT_DELAY_S, SILENT_S
from overlay.socks.io.connection import Connection
from overlay.socks.io.delays import DelayLine
from overlay.socks.io.faults import report_fault
from overlay.socks.io.leaks import LeakWatch
from overlay.socks.io.native import NativeFront, ProxyKind, load_proxy
from overlay.socks.io.pipe import BUFFER_BYTES
from overlay.socks.io.poller import LISTEN_EVENTS, Poller
from overlay.socks.io.resolver import DNS_PORT, Resolver, Sockets

ACCEPTS_PER_TURN = 64
SWEEP_INTERVAL_S = 1.0
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """What clients may take up. Times in seconds."""

    max_connections: int = 2048
    """More wait unaccepted."""
    max_associations: int = 256
    handshake_timeout_s: float = 30.0
    """From the client's connection to its complete request."""
    connect_timeout_s: float = 60.0
    """From the request to the answer: circuit, name and connection together."""
    idle_timeout_s: float = 3 * 3600.0
    """Without a byte in either direction."""


class ProxyServer:
    """What the connections of a proxy share. Made by `serve_proxy`."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        circuits: Circuits,
        sockets: Sockets,
        limits: ProxyLimits,
        nursery: trio.Nursery,
        dns_port: int,
    ) -> None:
        """Use `serve_proxy`."""
        self.front: NativeFront | None = None
        self.circuits = circuits
        self.sockets = sockets
        self.limits = limits
        self.poller = Poller()
        self.poller.now = trio.current_time()
        self.resolver = Resolver(sockets, dns_port)
        self.leaks = LeakWatch()
        #: Scratch space of all pipes; nothing stays in it between two calls.
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.associations = 0
        self.accepted = 0
        self.established = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.refused: Counter[str] = Counter()
        self._listeners = list(listeners)
        self._nursery = nursery
        self._connections: set[Connection] = set()
        #: Attempts to connect that begin only if those before them take long.
        self.attempts = DelayLine(ATTEMPT_DELAY_S, 0.0, "proxy_attempt_failed")
        #: New connections whose clients may be waiting for the server's first word.
        self.silent = DelayLine(SILENT_S, SILENT_S / 2, "proxy_handler_failed")
        self._is_accepting = False
        self._is_closed = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the proxy listens."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    def status(self) -> dict[str, Any]:
        """Return counters for `hopfare status`: numbers only, nothing about who or where."""
        status: dict[str, Any] = {
            "kind": "python" if self.front is None else "native",
            "connections": len(self._connections),
            "associations": self.associations,
            "accepted": self.accepted,
            "established": self.established,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "lookups": self.resolver.queries,
            "by_address": self.leaks.by_address,
            "refused": dict(self.refused),
        }
        if self.front is not None:
            self.front.add_status(status)
        return status

    def revoke_grants(self) -> None:
        """Have the circuits asked for every new connection from now on: they or the rules have changed."""
        if self.front is not None:
            self.front.revoke_all()

    def count_held(self, circuit: object) -> int:
        """Return how many more connections than leases use a circuit."""
        return 0 if self.front is None else self.front.count_held(circuit)

    # For connections.

    def spawn(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a task that ends with the server; it handles its own errors."""
        self._nursery.start_soon(work, *arguments)

    def count(self, reason: str) -> None:
        """Count an ending; reasons are the program's own words, so their number is bounded."""
        self.refused[reason] += 1

    def add(self, connection: Connection) -> None:
        """Keep a connection that the native proxy has handed over."""
        self._connections.add(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._connections.discard(connection)
        if self.front is not None:
            self.front.returned()
            return
        if not self._is_accepting and len(self._connections) <= self.limits.max_connections * 7 // 8:
            self._accept_again()

    # Tasks.

    def begin(self, crate: Any, *, by_destination: bool) -> None:
        """Begin to accept; with a crate, in its thread."""
        if crate is not None:
            self.front = NativeFront(self, crate, self._listeners, by_destination=by_destination)
            self._nursery.start_soon(self.front.run)

    async def accept_and_dispatch(self) -> None:
        """Accept and serve until cancelled."""
        self._accept_again()
        await self.poller.run()

    async def sweep(self) -> None:
        """Act on deadlines, once a second."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            self.poller.now = now = trio.current_time()
            for connection in list(self._connections):
                try:
                    connection.sweep(now)
                except Exception as error:
                    report_fault("proxy_sweep_failed", error)
            self._accept_again()

    async def start_delayed(self) -> None:
        """Begin attempts that were to begin later."""
        await self.attempts.run(self._set_now)

    async def acknowledge(self) -> None:
        """Acknowledge the handshakes of connections whose clients have nothing to say yet."""
        await self.silent.run(self._set_now)

    def _set_now(self, now: float) -> None:
        self.poller.now = now

    def close(self) -> None:
        """Close all connections; the listeners stay the caller's."""
        self._is_closed = True
        for connection in list(self._connections):
            connection.abort()
        if self.front is not None:
            self.front.close()
        self.poller.close()

    def _accept_again(self) -> None:
        if self.front is not None:
            return
        if self._is_accepting or self._is_closed or len(self._connections) >= self.limits.max_connections:
            return
        self._is_accepting = True
        for listener in self._listeners:
            self.poller.add(listener.fileno(), self._acceptor(listener), LISTEN_EVENTS)

    def _stop_accepting(self) -> None:
        """Leave clients in the listeners' queues until the next sweep."""
        self._is_accepting = False
        for listener in self._listeners:
            self.poller.remove(listener.fileno())

    def _acceptor(self, listener: socket.socket) -> Callable[[int], None]:
        def accept(_events: int) -> None:
            for _ in range(ACCEPTS_PER_TURN):
                if len(self._connections) >= self.limits.max_connections:
                    self._stop_accepting()
                    return
                try:
                    client, address = listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _OUT_OF_DESCRIPTORS:
                        report_fault("proxy_cannot_accept", error)
                        self._stop_accepting()
                        return
                    continue  # a client that was gone before we came
                client.setblocking(False)
                self.accepted += 1
                self._connections.add(Connection(self, client, address[0]))

        return accept


async def serve_proxy(
    listeners: Sequence[socket.socket],
    circuits: Circuits,
    sockets: Sockets,
    *,
    limits: ProxyLimits = ProxyLimits(),
    dns_port: int = DNS_PORT,
    kind: ProxyKind = "auto",
    by_destination: bool = False,
    task_status: trio.TaskStatus[ProxyServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve SOCKS5 and HTTP CONNECT on these listening sockets until cancelled.

    Connections are made with sockets of `sockets` (the namespace), on circuits of `circuits`. On the way
    out all connections are reset; the listeners stay open and the caller's. `dns_port` is for tests. `kind`
    chooses as `node.engine` does. `by_destination`: connections to different hosts never share a circuit.
    Raises NativeProxyError when the native proxy is asked for and cannot be had, or fails.
    """
    crate = load_proxy(kind)
    async with trio.open_nursery() as nursery:
        server = ProxyServer(listeners, circuits, sockets, limits, nursery, dns_port)
        try:
            nursery.start_soon(server.sweep)
            nursery.start_soon(server.start_delayed)
            nursery.start_soon(server.acknowledge)
            server.begin(crate, by_destination=by_destination)
            task_status.started(server)
            await server.accept_and_dispatch()
        finally:
            server.close()
