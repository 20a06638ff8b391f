"""The native data path's Python half: what is granted, the leases behind it, what is handed over.

The crate's thread (`dataplane/proxy`) accepts clients and reads their handshakes. The first request of a
kind is handed over and made here; when it succeeded, `carry` gives the connection back, *grants* its kind
(credentials, port, family and, where they isolate, the host) the circuit it was made on, and teaches the
name that it asked for. Requests of that kind then need no Python. A grant holds one lease for all its
connections. It ends when the circuits, asked again while it is used (`REFRESH_S`), choose another one, when
no request used it for a while (`UNUSED_S`), or when its circuit dies. docs/protocol/socks.md,
docs/decisions/0018-native-proxy.md.
"""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import trio

from overlay.engine.native import NativeEngineError, load_crate
from overlay.errors import OverlayError
from overlay.logs import get_logger
from overlay.socks.circuits import Destination, Isolation, Lease, address_destination
from overlay.socks.io.connect import reset
from overlay.socks.io.connection import Connection
from overlay.socks.io.faults import report_fault
from overlay.socks.io.resolver import LookupFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlay.socks.io.server import ProxyServer

ProxyKind = Literal["auto", "native", "python"]
INTERFACE: Final = 1
"""Of the crate's proxy; one that was built for another is not used."""
REFRESH_S: Final = 0.5
"""How often the circuits are asked again for a grant in use: what they would choose may have changed."""
UNUSED_S: Final = 1.0
"""A grant that served no request for so long is taken back: its lease makes the circuit look used."""
MAX_GRANTS: Final = 1024

_log = get_logger("socks")


class NativeProxyError(OverlayError):
    """The native proxy cannot be used, or has failed."""


def load_proxy(kind: ProxyKind) -> Any:
    """Return the crate's module, or None where Python serves all (`auto` without a crate, or `python`).

    Raises NativeProxyError when `native` is asked for and cannot be had.
    """
    if kind == "python":
        return None
    try:
        crate = load_crate()
        if getattr(crate, "PROXY_INTERFACE", None) != INTERFACE:
            raise NativeEngineError("the native engine that is installed has no proxy for this version")
    except NativeEngineError as error:
        if kind == "native":
            raise NativeProxyError(f"{error}; build it with scripts/build-native (it needs cargo)") from error
        _log.info("the Python proxy is used", reason=str(error))
        return None
    return crate


@dataclass(frozen=True, slots=True)
class Attempt:
    """Sockets on their way to addresses with a grant's source address, and the addresses not tried yet."""

    grant: int
    sockets: tuple[tuple[str, socket.socket], ...]
    addresses: tuple[str, ...]

    def close(self) -> None:
        """Give the attempt up."""
        for _, sock in self.sockets:
            sock.close()


class _Grant:
    """A kind of request and the circuit it may use."""

    __slots__ = (
        "cell",
        "circuit",
        "destination",
        "is_dead",
        "is_drained",
        "is_revoked",
        "isolation",
        "key",
        "lease",
        "name",
        "shares",
        "unused_since",
        "used",
    )

    def __init__(
        self,
        name: int,
        key: bytes | None,
        isolation: Isolation,
        destination: Destination,
        lease: Lease,
        now: float,
    ) -> None:
        self.name = name
        self.key = key
        self.isolation = isolation
        self.destination = destination
        self.lease = lease
        self.circuit = 0
        self.cell: Any = None
        self.shares: dict[Share, Callable[[], None] | None] = {}
        self.used = 0
        self.unused_since = now
        self.is_revoked = False
        self.is_dead = False
        self.is_drained = False

    def settle(self) -> None:
        """Give the lease back once nobody needs it."""
        if self.is_drained and not self.shares:
            self.lease.release()


class Share:
    """A lease on a grant's circuit, for one connection that is served here."""

    __slots__ = ("_grant", "circuit", "dns_v4", "source_v4", "source_v6")

    def __init__(self, grant: _Grant) -> None:
        self._grant = grant
        self.circuit = grant.lease.circuit
        self.source_v4 = grant.lease.source_v4
        self.source_v6 = grant.lease.source_v6
        self.dns_v4 = grant.lease.dns_v4
        grant.shares[self] = None

    def watch(self, on_closed: Callable[[], None]) -> None:
        """Have `on_closed` called once when the circuit is dead; at once if it is."""
        if self in self._grant.shares:
            if self._grant.is_dead:
                on_closed()
            else:
                self._grant.shares[self] = on_closed

    def note_refused(self, host: str, port: int) -> None:
        """The exit does not let a connection out."""
        self._grant.lease.note_refused(host, port)

    def note_opened(self, port: int) -> None:
        """The exit let a connection out."""
        self._grant.lease.note_opened(port)

    def release(self) -> None:
        """Give it back; twice is allowed."""
        if self in self._grant.shares:
            del self._grant.shares[self]
            self._grant.settle()


class NativeFront:
    """The crate's thread as the server sees it. `run` must run for as long as it is used; `close` ends it."""

    def __init__(
        self, server: ProxyServer, crate: Any, listeners: Sequence[socket.socket], *, by_destination: bool
    ) -> None:
        """Begin to accept. Raises OSError."""
        limits = server.limits
        self._server = server
        self._crate = crate
        self._names = itertools.count(1)
        self._circuit_names: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._grants: dict[int, _Grant] = {}
        self._by_key: dict[bytes, _Grant] = {}
        self._has_grants = trio.Event()
        self._is_closed = False
        self._proxy: Any = crate.Proxy(
            [listener.fileno() for listener in listeners],
            limits.max_connections,
            limits.handshake_timeout_s,
            limits.connect_timeout_s,
            limits.idle_timeout_s,
            by_destination,
        )

    # For the server.

    def add_status(self, status: dict[str, Any]) -> None:
        """Add the thread's figures."""
        self._take_notes()
        connections, accepted, established, handed_over, up, down = self._proxy.figures()
        status["connections"] += connections
        status["accepted"] += accepted
        status["established"] += established
        status["bytes_up"] += up
        status["bytes_down"] += down
        status["by_address"] = self._server.leaks.by_address
        status["handed_over"] = handed_over
        status["grants"] = len(self._by_key)

    def returned(self) -> None:
        """A connection that was handed over has ended, or is carried by the thread again."""
        self._proxy.returned()

    def revoke_all(self) -> None:
        """Have the circuits asked again for all new connections: the rules have changed."""
        for grant in list(self._by_key.values()):
            self._revoke(grant)

    def count_held(self, circuit: object) -> int:
        """Return how many connections a circuit has beyond the leases that are held for them."""
        held = 0
        for grant in self._grants.values():
            if grant.lease.circuit is circuit:
                held += grant.cell.figures()[0] + len(grant.shares) - 1
        return held

    async def run(self) -> None:
        """Carry out what the thread tells, until cancelled. Raises NativeProxyError when it has failed."""
        descriptor = self._proxy.event_fd()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh)
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                self._server.poller.now = trio.current_time()
                for event in self._proxy.take_events():
                    self._handle(event)

    def close(self) -> None:
        """Reset all connections, end the thread, give all leases back."""
        if self._is_closed:
            return
        self._is_closed = True
        self._proxy.stop()
        for event in self._proxy.take_events():
            if event[0] == "hand over":
                reset(socket.socket(fileno=event[1]))
                if event[7] is not None:
                    for _, descriptor in event[7][1]:
                        os.close(descriptor)
        self._take_notes()
        for grant in self._grants.values():
            grant.lease.release()
        self._grants.clear()
        self._by_key.clear()

    # For connections.

    def share(self, name: int) -> Share | None:
        """Return a lease on a grant's circuit, or None when that is dead."""
        grant = self._grants.get(name)
        return None if grant is None or grant.is_dead else Share(grant)

    def carry(
        self,
        key: bytes | None,
        isolation: Isolation,
        destination: Destination,
        lease: Lease,
        client: socket.socket,
        upstream: socket.socket,
        early: bytes,
    ) -> None:
        """Have the thread carry a connection that was made on this lease, which is taken over like both
        sockets, and serve the next requests of this `key`'s kind by itself (None: there is no such kind).
        """
        grant = None if key is None else self._by_key.get(key)
        is_fresh = grant is None or grant.lease.circuit is not lease.circuit
        if is_fresh and key is not None and not isinstance(lease, Share):
            if grant is not None:
                self._revoke(grant)
            grant = self._grant(
                key if len(self._by_key) < MAX_GRANTS else None, isolation, destination, lease
            )
        elif is_fresh:
            grant = self._grant(None, isolation, destination, lease)
        else:
            lease.release()
        assert grant is not None
        self._proxy.carry(grant.name, client.detach(), upstream.detach(), early)
        if grant.key is None:
            self._revoke(grant)  # for this connection alone
        else:
            self._teach(grant, destination, trio.current_time())

    def _grant(
        self, key: bytes | None, isolation: Isolation, destination: Destination, lease: Lease
    ) -> _Grant:
        grant = _Grant(next(self._names), key, isolation, destination, lease, trio.current_time())
        circuit = self._circuit_names.get(lease.circuit)
        if circuit is None:
            circuit = self._circuit_names[lease.circuit] = next(self._names)
        grant.circuit = circuit
        grant.cell = self._crate.GrantCell()
        v6 = lease.source_v6
        self._grants[grant.name] = grant
        if key is not None:
            self._by_key[key] = grant
        self._proxy.grant(
            grant.name,
            key or b"",
            circuit,
            ip_address(lease.source_v4).packed,
            None if v6 is None else ip_address(v6).packed,
            grant.cell,
        )
        self._has_grants.set()
        lease.watch(lambda: self._on_circuit_closed(grant))
        return grant

    def _teach(self, grant: _Grant, destination: Destination, now: float) -> None:
        """Tell the thread what a name means on a circuit."""
        if destination.ip_version or not destination.host.isascii():
            return
        resolver = self._server.resolver
        try:
            addresses = resolver.known(grant.lease, destination, now)
        except LookupFailed:
            return
        ttl_s = resolver.known_for(grant.lease, destination.host, now)
        if addresses and ttl_s > 0:
            packed = [ip_address(address).packed for address in addresses]
            self._proxy.learn(grant.circuit, destination.host, packed, ttl_s)

    # Grants' ends.

    def _revoke(self, grant: _Grant, *, abort: bool = False) -> None:
        if grant.key is not None and self._by_key.get(grant.key) is grant:
            del self._by_key[grant.key]
        if not grant.is_revoked or abort:
            grant.is_revoked = True
            self._proxy.revoke(grant.name, abort)

    def _on_circuit_closed(self, grant: _Grant) -> None:
        grant.is_dead = True
        self._revoke(grant, abort=True)
        watchers = [on_closed for on_closed in grant.shares.values() if on_closed is not None]
        grant.shares.update(dict.fromkeys(grant.shares))
        for on_closed in watchers:
            on_closed()

    async def _refresh(self) -> None:
        """Ask the circuits again for what is in use, and take back what is not."""
        while True:
            await self._has_grants.wait()
            while self._grants:
                await trio.sleep(REFRESH_S)
                self._take_notes()
                now = trio.current_time()
                for grant in list(self._by_key.values()):
                    try:
                        self._look_at(grant, now)
                    except Exception as error:
                        report_fault("proxy_grant_failed", error)
                        self._revoke(grant)
            self._has_grants = trio.Event()

    def _look_at(self, grant: _Grant, now: float) -> None:
        _, used = grant.cell.figures()
        if used == grant.used:
            if now >= grant.unused_since + UNUSED_S:
                self._revoke(grant)
            return
        grant.used = used
        grant.unused_since = now
        lease = self._server.circuits.lease_now(grant.isolation, grant.destination)
        if lease is None:
            self._revoke(grant)
        elif lease.circuit is grant.lease.circuit:
            lease.release()
        else:
            self._revoke(grant)
            self._grant(grant.key, grant.isolation, grant.destination, lease)

    # Events.

    def _handle(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("hand over", *rest):
                self._take_notes()  # first: an exit that refuses now had let others out before
                self._take_over(*rest)
            case ("sockets", is_ipv6, count):
                self._feed(is_ipv6, count)
            case ("drained", name):
                grant = self._grants.pop(name, None)
                if grant is not None:
                    grant.is_drained = True
                    grant.settle()
            case ("cannot accept", code):
                report_fault("proxy_cannot_accept", OSError(code, os.strerror(code)))
            case ("died", reason):
                raise NativeProxyError(
                    f"the native proxy has failed ({reason}); start the node again, and report this."
                    ' Until it is mended, `engine = "python"` in [node] runs without it'
                )

    def _take_over(
        self,
        descriptor: int,
        data: bytes,
        answered: int,
        has_input: bool,
        age_s: float,
        key: bytes | None,
        attempt: tuple[int, list[tuple[bytes, int]], list[bytes]] | None,
    ) -> None:
        client = socket.socket(fileno=descriptor)
        client.setblocking(False)
        tried = None
        if attempt is not None:
            grant, sockets, addresses = attempt
            tried = Attempt(
                grant,
                tuple((str(ip_address(address)), _adopt(address, fd)) for address, fd in sockets),
                tuple(str(ip_address(address)) for address in addresses),
            )
        try:
            peer_host = client.getpeername()[0]
        except OSError:  # gone already
            client.close()
            if tried is not None:
                tried.close()
            self.returned()
            return
        connection = Connection(self._server, client, peer_host)
        self._server.add(connection)
        connection.take_over(data, answered, age_s, key, tried, has_input=has_input)

    def _feed(self, is_ipv6: bool, count: int) -> None:
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        ready = self._server.sockets.take_ready(family, socket.SOCK_STREAM, count)
        if ready:
            self._proxy.add_sockets(is_ipv6, ready)
        else:
            self._server.spawn(self._feed_later, is_ipv6, family, count)

    async def _feed_later(self, is_ipv6: bool, family: int, count: int) -> None:
        sockets = self._server.sockets
        ready: list[int] = []
        try:
            sock = await sockets.new_socket(family, socket.SOCK_STREAM)
            ready = [sock.detach(), *sockets.take_ready(family, socket.SOCK_STREAM, count - 1)]
        except Exception as error:  # what wants one will be told by Python's own attempt
            report_fault("proxy_request_failed", error)
        self._proxy.add_sockets(is_ipv6, ready)

    def _take_notes(self) -> None:
        """Pass on what the thread has seen since the last time."""
        opened, addresses = self._proxy.take_notes()
        for name, port, _ in opened:
            grant = self._grants.get(name)
            if grant is not None:
                with suppress(Exception):
                    grant.lease.note_opened(port)
        for packed, times in addresses:
            destination = address_destination(ip_address(packed), 0)
            self._server.leaks.note(destination, self._server.poller.now, times)


def _adopt(packed: bytes, descriptor: int) -> socket.socket:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM, 0, fileno=descriptor)
    sock.setblocking(False)
    return sock
