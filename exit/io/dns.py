"""The exit's DNS server: UDP and TCP port 53 of its inner addresses. Owns the sockets that customers talk to.

A question that is refused or known is answered in the loop that reads it; others wait for a lookup
(`exit.io.resolver`). Names are never logged.

Bounds: questions waiting, in all and per customer address (beyond it a UDP question is dropped and asked
again); TCP connections, in all and per customer address, with an idle limit and one question at a time.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import trio

from exit.denied import DenyList
from exit.dns.cache import Cache
from exit.dns.query import MAX_QUERY_BYTES, Query, decode_query, encode_format_error
from exit.dns.rules import Rules
from exit.dns.upstream import Upstream
from exit.errors import DecodeError, EnvError
from exit.io.resolver import RESOLV_CONF, Resolver, receive_message

#: Questions waiting for a lookup: of one customer address, and in all (many may wait for the same lookup).
MAX_WAITING_PER_CLIENT = 64
MAX_WAITING = 4096
MAX_CONNECTIONS_PER_CLIENT = 8
MAX_CONNECTIONS = 512
#: RFC 7766 section 6.2.3: a few seconds.
IDLE_S = 10.0
_READ_BATCH = 64
_MAX_MESSAGE_BYTES = 65_535
_DNS_PORT = 53


class Quota:
    """Counts what each client has of something, within a bound for one and a bound for all."""

    __slots__ = ("_counts", "_per_client", "_total", "total")

    def __init__(self, per_client: int, total: int) -> None:
        """Allow at most `per_client` to one client and `total` in all."""
        self._per_client = per_client
        self._total = total
        self._counts: dict[str, int] = {}
        self.total = 0

    def take(self, client: str) -> bool:
        """Count one more, or return False if a bound is reached."""
        count = self._counts.get(client, 0)
        if count >= self._per_client or self.total >= self._total:
            return False
        self._counts[client] = count + 1
        self.total += 1
        return True

    def give_back(self, client: str) -> None:
        """Count one less; one `take` that returned True must have come before."""
        count = self._counts[client] - 1
        self.total -= 1
        if count:
            self._counts[client] = count
        else:
            del self._counts[client]


class DnsServer:
    """Serves a resolver on sockets. `port` is where it listens, of use when port 0 was asked for."""

    def __init__(self, nursery: trio.Nursery, resolver: Resolver) -> None:
        """Use `open_dns`."""
        self._nursery = nursery
        self.resolver = resolver
        self.port = 0
        self._waiting = Quota(MAX_WAITING_PER_CLIENT, MAX_WAITING)
        self._connections = Quota(MAX_CONNECTIONS_PER_CLIENT, MAX_CONNECTIONS)
        #: Questions not answered because of a bound.
        self.dropped = 0

    def serve(self, sockets: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        """Serve on pairs of UDP and TCP sockets, bound and non-blocking; they are closed at the end."""
        for udp, tcp in sockets:
            self.port = udp.getsockname()[1]
            self._nursery.start_soon(self._serve_udp, udp)
            self._nursery.start_soon(self._serve_tcp, trio.socket.from_stdlib_socket(tcp))

    async def _serve_udp(self, sock: socket.socket) -> None:
        with sock:
            receive = sock.recvfrom
            while True:
                await trio.lowlevel.wait_readable(sock)
                for _ in range(_READ_BATCH):
                    try:
                        wire, peer = receive(_MAX_MESSAGE_BYTES)
                    except BlockingIOError:
                        break
                    except OSError:
                        continue  # an ICMP error about an earlier reply
                    self._on_datagram(sock, wire, peer)
                # One customer's flood must not keep the others' tasks from running.
                await trio.lowlevel.checkpoint()

    def _on_datagram(self, sock: socket.socket, wire: bytes, peer: tuple[str, int]) -> None:
        try:
            query = decode_query(wire)
        except DecodeError:
            reply = encode_format_error(wire)
        else:
            reply = self.resolver.answer_now(query, query.udp_limit_bytes)
            if reply is None:
                self._start(sock, query, peer)
        if reply is not None:
            _send(sock, reply, peer)

    def _start(self, sock: socket.socket, query: Query, peer: tuple[str, int]) -> None:
        if not self._waiting.take(peer[0]):
            self.dropped += 1
            return
        self._nursery.start_soon(self._answer_later, sock, query, peer)

    async def _answer_later(self, sock: socket.socket, query: Query, peer: tuple[str, int]) -> None:
        try:
            reply = await self.resolver.answer(query, query.udp_limit_bytes)
        finally:
            self._waiting.give_back(peer[0])
        if reply is None:
            self.dropped += 1
        else:
            _send(sock, reply, peer)

    async def _serve_tcp(self, listener: trio.socket.SocketType) -> None:
        with listener:
            while True:
                try:
                    connection, peer = await listener.accept()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        await trio.sleep(0.1)  # out of descriptors: accepting again at once would spin
                    continue
                host = peer[0]
                if not self._connections.take(host):
                    self.dropped += 1
                    connection.close()
                    continue
                self._nursery.start_soon(self._serve_connection, trio.SocketStream(connection), host)

    async def _serve_connection(self, stream: trio.SocketStream, host: str) -> None:
        try:
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                    is_served = True
                    while is_served:
                        is_served = False
                        with trio.move_on_after(IDLE_S):
                            wire = await receive_message(stream, MAX_QUERY_BYTES)
                            reply = await self._answer_tcp(wire)
                            if reply is not None:
                                await stream.send_all(struct.pack(">H", len(reply)) + reply)
                                is_served = True
        finally:
            self._connections.give_back(host)

    async def _answer_tcp(self, wire: bytes) -> bytes | None:
        try:
            query = decode_query(wire)
        except DecodeError:
            return encode_format_error(wire)
        reply = self.resolver.answer_now(query, _MAX_MESSAGE_BYTES)
        if reply is None:
            reply = await self.resolver.answer(query, _MAX_MESSAGE_BYTES)
        return reply


@contextlib.asynccontextmanager
async def open_dns(
    hosts: Iterable[str],
    rules: Rules,
    deny: Callable[[], DenyList],
    upstreams: Sequence[Upstream] = (),
    *,
    port: int = _DNS_PORT,
    cache: Cache | None = None,
    resolv_conf: Path = RESOLV_CONF,
) -> AsyncIterator[DnsServer]:
    """Serve DNS on the hosts' UDP and TCP `port` (0: any, the same on all) until the block ends.

    The other arguments are those of `Resolver`. Raises EnvError when an address cannot be had or no resolver
    is known.
    """
    resolver = Resolver(rules, deny, upstreams, cache=cache, resolv_conf=resolv_conf)
    sockets = _bind(hosts, port)
    async with trio.open_nursery() as nursery:
        resolver.start(nursery)
        server = DnsServer(nursery, resolver)
        server.serve(sockets)
        yield server
        nursery.cancel_scope.cancel()


def _bind(hosts: Iterable[str], port: int) -> list[tuple[socket.socket, socket.socket]]:
    """Return UDP and TCP sockets for every host, all on the same port."""
    sockets: list[tuple[socket.socket, socket.socket]] = []
    with contextlib.ExitStack() as undo:
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            udp = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            tcp = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            try:
                for one in (udp, tcp):
                    one.setblocking(False)
                    if family == socket.AF_INET6:
                        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind((host, port))
                port = tcp.getsockname()[1]
                udp.bind((host, port))
                tcp.listen(128)
            except OSError as error:
                why = " (it needs CAP_NET_BIND_SERVICE)" if error.errno == errno.EACCES else ""
                raise EnvError(f"cannot serve DNS on {host} port {port}: {error.strerror}{why}") from error
            sockets.append((udp, tcp))
        undo.pop_all()
    return sockets


def _send(sock: socket.socket, reply: bytes, peer: tuple[str, int]) -> None:
    # A full buffer or a customer that left: as with any datagram, they ask again or not.
    with contextlib.suppress(OSError):
        sock.sendto(reply, peer)
