"""A UDP association (RFC 1928, section 7): datagrams between one client and any destination, on one circuit.

It belongs to its TCP connection and ends with it. Only the client's own address may use it: the IP
address of its TCP connection, and the port it announced or else the first it sends from. Everything is
bounded; what does not fit is dropped, as UDP may be.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from overlay.socks.circuits import Destination, Lease
from overlay.socks.io.poller import DATAGRAM_EVENTS
from overlay.socks.io.resolver import LookupFailed
from overlay.socks.udp import decode_datagram, encode_header

if TYPE_CHECKING:
    from overlay.socks.io.server import ProxyServer

#: Datagrams moved per turn before others get theirs.
DATAGRAMS_PER_TURN = 64
#: Datagrams that wait for their name to be resolved, per association.
MAX_WAITING = 32
#: Names being resolved at a time, per association.
MAX_LOOKUPS = 8
_MAX_HEADERS = 64
_MAX_DATAGRAM_BYTES = 65535


class Association:
    """The two or three sockets of an association and what waits in it."""

    __slots__ = (
        "_client",
        "_headers",
        "_is_closed",
        "_lease",
        "_peer_host",
        "_peer_port",
        "_relay",
        "_server",
        "_upstreams",
        "_waiting",
        "dropped",
    )

    def __init__(
        self,
        server: ProxyServer,
        lease: Lease,
        relay: socket.socket,
        upstreams: dict[int, socket.socket],
        peer_host: str,
        peer_port: int,
    ) -> None:
        """Use `open`."""
        self._server = server
        self._lease = lease
        self._relay = relay
        self._upstreams = upstreams
        self._peer_host = peer_host
        self._peer_port = peer_port
        self._client: tuple[str, int] | None = None
        self._waiting: OrderedDict[Destination, list[bytes]] = OrderedDict()
        self._headers: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._is_closed = False
        self.dropped = 0
        server.associations += 1
        server.poller.add(relay.fileno(), self._on_relay, DATAGRAM_EVENTS)
        for upstream in upstreams.values():
            server.poller.add(upstream.fileno(), partial(self._on_upstream, upstream), DATAGRAM_EVENTS)

    @classmethod
    async def open(
        cls, server: ProxyServer, lease: Lease, local_host: str, peer_host: str, announced: Destination | None
    ) -> Association:
        """Open a relay socket on `local_host` for the client at `peer_host`.

        `announced` is the address the client means to send from. Its port is held to; another host than
        that of its TCP connection is ignored. Raises OSError, or EnvError when the namespace is gone.
        """
        family = socket.AF_INET6 if ":" in local_host else socket.AF_INET
        opened: list[socket.socket] = []
        try:
            relay = socket.socket(family, socket.SOCK_DGRAM)
            opened.append(relay)
            relay.setblocking(False)
            relay.bind((local_host, 0))
            upstreams: dict[int, socket.socket] = {}
            for inner_family, source in (
                (socket.AF_INET, lease.source_v4),
                (socket.AF_INET6, lease.source_v6),
            ):
                if source is not None:
                    upstream = await server.sockets.new_socket(inner_family, socket.SOCK_DGRAM)
                    opened.append(upstream)
                    upstream.bind((source, 0))
                    upstreams[inner_family] = upstream
        except BaseException:
            for sock in opened:
                sock.close()
            raise
        port = announced.port if announced is not None else 0
        return cls(server, lease, relay, upstreams, peer_host, port)

    @property
    def relay_address(self) -> tuple[str, int]:
        """Where the client is to send its datagrams."""
        host, port = self._relay.getsockname()[:2]
        return host, port

    def close(self) -> None:
        """Close the sockets."""
        if self._is_closed:
            return
        self._is_closed = True
        self._server.associations -= 1
        for sock in (self._relay, *self._upstreams.values()):
            self._server.poller.forget(sock.fileno())
            sock.close()
        self._waiting.clear()

    # From the client.

    def _on_relay(self, _events: int) -> None:
        relay = self._relay
        for _ in range(DATAGRAMS_PER_TURN):
            if self._is_closed:
                return
            try:
                datagram, sender = relay.recvfrom(_MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP message of a client that went away
            if sender[:2] != self._client and not self._admit(sender[0], sender[1]):
                self.dropped += 1
                continue
            decoded = decode_datagram(datagram)
            if decoded is None:
                self.dropped += 1
                continue
            destination, offset = decoded
            self._forward(destination, datagram[offset:])
        self._server.poller.soon(self._on_relay)

    def _admit(self, host: str, port: int) -> bool:
        if self._client is not None or host != self._peer_host or self._peer_port not in (0, port):
            return False
        self._client = (host, port)
        return True

    def _forward(self, destination: Destination, payload: bytes) -> None:
        if destination.ip_version:
            self._send(destination.host, destination.port, payload)
            return
        waiting = self._waiting.get(destination)
        if waiting is not None:
            if sum(map(len, self._waiting.values())) < MAX_WAITING:
                waiting.append(payload)
            else:
                self.dropped += 1
            return
        try:
            addresses = self._server.resolver.known(self._lease, destination, self._server.poller.now)
        except LookupFailed:
            self.dropped += 1
            return
        if addresses is not None:
            self._send(addresses[0], destination.port, payload)
        elif len(self._waiting) < MAX_LOOKUPS:
            self._waiting[destination] = [payload]
            self._server.spawn(self._look_up, destination)
        else:
            self.dropped += 1

    async def _look_up(self, destination: Destination) -> None:
        try:
            addresses = await self._server.resolver.addresses(self._lease, destination)
        except Exception:  # no such name, or the namespace is gone: what waited is dropped either way
            self.dropped += len(self._waiting.pop(destination, ()))
            return
        for payload in self._waiting.pop(destination, ()):
            self._send(addresses[0], destination.port, payload)

    def _send(self, host: str, port: int, payload: bytes) -> None:
        upstream = self._upstreams.get(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if upstream is None or self._is_closed:
            self.dropped += 1
            return
        try:
            upstream.sendto(payload, (host, port))
        except OSError:
            self.dropped += 1  # full, too long, or no way there
        else:
            self._server.bytes_up += len(payload)

    # From outside.

    def _on_upstream(self, upstream: socket.socket, _events: int) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            if self._is_closed:
                return
            try:
                payload, sender = upstream.recvfrom(_MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue
            if self._client is None:
                continue  # nobody has sent anything yet, so this is no answer
            try:
                self._relay.sendto(self._header(sender[0], sender[1]) + payload, self._client)
            except OSError:
                self.dropped += 1
            else:
                self._server.bytes_down += len(payload)
        self._server.poller.soon(partial(self._on_upstream, upstream))

    def _header(self, host: str, port: int) -> bytes:
        header = self._headers.get((host, port))
        if header is None:
            header = self._headers[host, port] = encode_header(host, port)
            if len(self._headers) > _MAX_HEADERS:
                self._headers.popitem(last=False)
        return header
