"""A proxy on loopback whose circuits and namespace are fakes with real sockets, and a client for it."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio

from overlay.socks.circuits import Destination, Isolation, NoCircuit
from overlay.socks.io.listeners import open_listeners
from overlay.socks.io.native import ProxyKind
from overlay.socks.io.server import ProxyLimits, ProxyServer, serve_proxy
from overlay.socks.socks5 import encode_address

DEFAULT_LIMITS = ProxyLimits()
DEFAULT_KIND: ProxyKind = "auto"
CONNECT, UDP_ASSOCIATE, RESOLVE, RESOLVE_PTR = 1, 3, 0xF0, 0xF1


class FakeCircuit:
    """Something hashable that can be weakly referred to."""


class FakeLease:
    source_v4 = "127.0.0.1"
    dns_v4 = "127.0.0.1"

    def __init__(self, circuit: FakeCircuit, source_v6: str | None) -> None:
        self.circuit = circuit
        self.source_v6 = source_v6
        self.is_released = False
        self.refused: list[tuple[str, int]] = []
        self.opened: list[int] = []
        self._on_closed: Callable[[], None] | None = None

    def watch(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed

    def note_refused(self, host: str, port: int) -> None:
        self.refused.append((host, port))

    def note_opened(self, port: int) -> None:
        self.opened.append(port)

    def release(self) -> None:
        self.is_released = True
        self._on_closed = None

    def die(self) -> None:
        callback, self._on_closed = self._on_closed, None
        if callback is not None:
            callback()


class FakeCircuits:
    """Lends leases of one circuit. Not `is_ready`: requests wait for `gate`; `refusal` refuses them."""

    def __init__(self) -> None:
        self.circuit = FakeCircuit()
        self.source_v6: str | None = "::1"
        self.is_ready = True
        self.gate = trio.Event()
        self.refusal: NoCircuit | None = None
        self.leases: list[FakeLease] = []
        self.asked: list[tuple[Isolation, Destination]] = []

    def lease_now(self, isolation: Isolation, destination: Destination) -> FakeLease | None:
        self.asked.append((isolation, destination))
        if not self.is_ready or self.refusal is not None:
            return None
        return self._lend()

    async def lease(self, isolation: Isolation, destination: Destination) -> FakeLease:
        self.asked.append((isolation, destination))
        if not self.is_ready:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        return self._lend()

    def _lend(self) -> FakeLease:
        self.leases.append(FakeLease(self.circuit, self.source_v6))
        return self.leases[-1]


class LoopbackSockets:
    """The machine's own sockets; with `is_empty` none is ready at once."""

    def __init__(self) -> None:
        self.is_empty = False
        self.failure: Exception | None = None

    def try_socket(self, family: int, kind: int) -> socket.socket | None:
        return None if self.is_empty else self._make(family, kind)

    def take_ready(self, family: int, kind: int, at_most: int) -> list[int]:
        return [] if self.is_empty else [self._make(family, kind).detach() for _ in range(at_most)]

    async def new_socket(self, family: int, kind: int) -> socket.socket:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return self._make(family, kind)

    def _make(self, family: int, kind: int) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock


class Lab:
    def __init__(self, server: ProxyServer, circuits: FakeCircuits, sockets: LoopbackSockets) -> None:
        self.server = server
        self.circuits = circuits
        self.sockets = sockets

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(
        self, command: int, host: str, port: int, *, user: str = "", early: bytes = b""
    ) -> tuple[trio.SocketStream, bytes]:
        """Send a whole handshake at once; return the stream and the reply's bytes."""
        stream = await self.dial()
        greeting = b"\x05\x01\x00"
        answers = 2
        if user:
            greeting = b"\x05\x01\x02\x01" + bytes((len(user),)) + user.encode() + b"\x01p"
            answers = 4
        await stream.send_all(greeting + bytes((5, command, 0)) + encode_address(host, port) + early)
        await receive(stream, answers)
        reply = await receive(stream, 4)
        length = {1: 4, 4: 16}.get(reply[3]) or (await receive(stream, 1))[0]
        return stream, reply + await receive(stream, length + 2)

    async def connect(self, host: str, port: int, **options: str | bytes) -> trio.SocketStream:
        stream, reply = await self.ask(CONNECT, host, port, **options)  # type: ignore[arg-type]
        assert reply[:2] == b"\x05\x00", reply
        return stream

    async def until_idle(self) -> None:
        """Wait until the proxy holds no connection."""
        with trio.fail_after(60):
            while self.server.status()["connections"]:
                await trio.sleep(0.005)


@asynccontextmanager
async def open_lab(
    limits: ProxyLimits = DEFAULT_LIMITS, dns_port: int = 53, kind: ProxyKind | None = None
) -> AsyncIterator[Lab]:
    circuits, sockets = FakeCircuits(), LoopbackSockets()
    listeners = open_listeners([("127.0.0.1", 0)])
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[ProxyServer]) -> None:
            await serve_proxy(
                listeners,
                circuits,
                sockets,
                limits=limits,
                dns_port=dns_port,
                kind=kind or DEFAULT_KIND,
                task_status=task_status,
            )

        server = await nursery.start(serve)
        yield Lab(server, circuits, sockets)
        nursery.cancel_scope.cancel()
    for listener in listeners:
        listener.close()
    assert all(lease.is_released for lease in circuits.leases)
    assert server.status()["connections"] == 0
    assert server.associations == 0


@asynccontextmanager
async def open_server(
    handler: Callable[[trio.SocketStream], object], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A TCP server whose handler is an async function of the stream; yields its port."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    async with trio.open_nursery() as nursery:
        streams = trio.SocketListener(_listening(listener))
        nursery.start_soon(trio.serve_listeners, handler, [streams])  # type: ignore[arg-type]
        yield listener.getsockname()[1]
        nursery.cancel_scope.cancel()


def _listening(listener: socket.socket) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(listener)


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise EOFError(data)
        data += more
    return data


async def receive_all(stream: trio.SocketStream) -> bytes:
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    return data


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()
