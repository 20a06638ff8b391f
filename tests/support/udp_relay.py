"""A UDP relay between one client and one server, for what `tc` cannot do: loss, size limits, a NAT."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


class UdpRelay:
    """Clients send to `address`; what passes goes to the server from a port of the relay's own."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.passes: Callable[[bytes], bool] = lambda _: True
        self.on_answer: Callable[[bytes], object] = lambda _: None
        """Told of each datagram of the server's."""
        self.is_mute = False
        """Answers of the server go nowhere."""
        self.forwarded = 0
        self.dropped = 0
        self._front = _socket()
        self.address: tuple[str, int] = self._front.getsockname()
        self._back = _socket()
        self._old: list[trio.socket.SocketType] = []
        self._client: tuple[str, int] | None = None
        self._changed = trio.Event()

    def lose(self, share: float, seed: int) -> None:
        """Drop a share of the datagrams at random."""
        rng = random.Random(seed)
        self.passes = lambda _: rng.random() >= share

    def rebind(self) -> None:
        """Be a NAT that has forgotten: the server sees another port from now on."""
        self._old.append(self._back)
        self._back = _socket()
        self._changed.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_front)
            while True:
                self._changed = trio.Event()
                async with trio.open_nursery() as backs:
                    backs.start_soon(self._run_back)
                    await self._changed.wait()
                    backs.cancel_scope.cancel()

    async def _run_front(self) -> None:
        while True:
            data, self._client = await self._front.recvfrom(65535)
            if self._check(data):
                await self._back.sendto(data, self.server)

    async def _run_back(self) -> None:
        back = self._back
        while True:
            data, _ = await back.recvfrom(65535)
            self.on_answer(data)
            if self._client is not None and not self.is_mute and self._check(data):
                await self._front.sendto(data, self._client)

    async def inject(self, data: bytes) -> None:
        """Send a datagram of one's own to the client."""
        assert self._client is not None
        await self._front.sendto(data, self._client)

    def _check(self, data: bytes) -> bool:
        passes = self.passes(data)
        self.forwarded += passes
        self.dropped += not passes
        return passes

    def close(self) -> None:
        for sock in (self._front, self._back, *self._old):
            sock.close()


def _socket() -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return trio.socket.from_stdlib_socket(sock)


@asynccontextmanager
async def udp_relay(server: tuple[str, int]) -> AsyncIterator[UdpRelay]:
    relay = UdpRelay(server)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            try:
                yield relay
            finally:
                nursery.cancel_scope.cancel()
    finally:
        relay.close()
