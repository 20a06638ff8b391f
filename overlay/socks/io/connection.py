"""One client of the proxy, from its first byte to its last. Synchronous: called by the poller, the sweep, the
circuit's end. What must wait (a circuit, a name) runs in a task of the server and comes back here.

    handshake -> waiting (circuit, name, connect) -> spliced | associated -> closed
                      \\-> lingering (a refusal is on its way) -> closed

Reads nothing while waiting, so a client can make us keep at most one read.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

import trio

from overlay.socks.circuits import ANY_UDP, Destination, Isolation, Lease, NoCircuit
from overlay.socks.events import Associate, Close, Connect, Established, Event, Resolve, Send
from overlay.socks.io.association import Association
from overlay.socks.io.connect import Race, acknowledge, reset
from overlay.socks.io.faults import report_fault
from overlay.socks.io.pipe import Flow, Pipe
from overlay.socks.io.poller import BROKEN, HUNG_UP, READ_CLOSED, READABLE
from overlay.socks.io.resolver import LookupFailed
from overlay.socks.machine import ProxyMachine
from overlay.socks.outcome import SUCCESS, Outcome, Reply, no_circuit_outcome

if TYPE_CHECKING:
    from overlay.socks.io.native import Attempt
    from overlay.socks.io.server import ProxyServer

#: Room for one read of a handshake: greeting, request and some first data.
HANDSHAKE_READ_BYTES = 4096
#: How often a request is tried again because its circuit died before it was answered.
MAX_RESTARTS = 2
#: A refused client is listened to this long, so that it reads the refusal and not a reset.
LINGER_S = 2.0
_LINGER_MAX_BYTES = 65536

#: Does a request's work on a lease; None when the outcome comes later, by itself.
_Work = Callable[[Lease, Destination], Awaitable[Outcome | None]]


class _State(Enum):
    HANDSHAKE = auto()
    WAITING = auto()
    SPLICED = auto()
    ASSOCIATED = auto()
    LINGERING = auto()
    CLOSED = auto()


class Connection:
    """A client's TCP connection and what was made for it."""

    __slots__ = (
        "_answered",
        "_association",
        "_attempt",
        "_client",
        "_deadline",
        "_destination",
        "_down",
        "_has_input",
        "_isolation",
        "_key",
        "_last_active",
        "_lease",
        "_linger_bytes",
        "_machine",
        "_peer_host",
        "_race",
        "_restarts",
        "_scope",
        "_server",
        "_state",
        "_up",
        "_upstream",
        "_work",
    )

    def __init__(self, server: ProxyServer, client: socket.socket, peer_host: str) -> None:
        """Take over a client's connected, non-blocking socket."""
        self._server = server
        self._client = client
        self._peer_host = peer_host
        self._machine: ProxyMachine | None = ProxyMachine()
        self._state = _State.HANDSHAKE
        self._deadline = server.poller.now + server.limits.handshake_timeout_s
        self._last_active = server.poller.now
        self._has_input = False
        self._linger_bytes = 0
        self._restarts = 0
        self._lease: Lease | None = None
        self._race: Race | None = None
        self._scope: trio.CancelScope | None = None
        self._upstream: socket.socket | None = None
        self._association: Association | None = None
        self._destination: Destination | None = None
        self._isolation: Isolation | None = None
        self._answered = 0
        self._key: bytes | None = None
        self._attempt: Attempt | None = None
        server.poller.add(client.fileno(), self._on_client)

    def take_over(
        self,
        data: bytes,
        answered: int,
        age_s: float,
        key: bytes | None,
        attempt: Attempt | None,
        *,
        has_input: bool,
    ) -> None:
        """Go on where the native proxy stopped: the client sent `data` and has `answered` bytes of answers.

        `age_s`: since it came or, with an `attempt`, since it asked. A connection that stands is given
        back with `key`, which names the request's kind.
        """
        try:
            self._answered = answered
            self._key = key
            self._attempt = attempt
            self._has_input = has_input
            self._deadline -= age_s
            assert self._machine is not None
            self._carry_out(self._machine.receive(data))
            if attempt is not None and self._state is _State.WAITING:
                self._deadline -= age_s
        except Exception as error:
            report_fault("proxy_connection_failed", error)
            self.abort()

    # What the poller, the sweep and the circuit call.

    def sweep(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if now < self._deadline:
            return
        if self._state is _State.SPLICED and now < self._last_active + self._server.limits.idle_timeout_s:
            self._deadline = self._last_active + self._server.limits.idle_timeout_s
        elif self._state is _State.WAITING:
            self._finish(Outcome(Reply.TTL_EXPIRED, "No connection came about in time."))
        else:
            self.close()

    def close(self) -> None:
        """Close everything in order; what was delivered to the kernel still arrives."""
        self._end(is_reset=False)

    def abort(self) -> None:
        """Close everything with resets."""
        self._end(is_reset=True)

    def _on_circuit_closed(self) -> None:
        if self._state is not _State.WAITING:
            self.abort()
            return
        # Nothing has been promised yet: try again on another circuit.
        self._drop_attempt()
        if self._restarts >= MAX_RESTARTS:
            self._finish(Outcome(Reply.GENERAL_FAILURE, "The circuit was lost while connecting."))
            return
        self._restarts += 1
        self._server.spawn(self._run)

    def _on_client(self, events: int) -> None:
        try:
            self._take_event(events)
        except Exception as error:
            # A fault of ours, or of whoever has the circuits: it costs this connection and no other.
            report_fault("proxy_connection_failed", error)
            self.abort()

    def _take_event(self, events: int) -> None:
        state = self._state
        if state is _State.SPLICED:
            self._on_spliced(events, is_client=True)
        elif events & BROKEN:
            self.abort()
        elif state is _State.HANDSHAKE:
            self._on_handshake(events)
        elif state is _State.WAITING:
            if events & HUNG_UP:
                self.abort()
            elif events & (READABLE | READ_CLOSED):
                self._has_input = True
        elif state is _State.LINGERING:
            self._on_lingering()
        elif state is _State.ASSOCIATED and events & (READABLE | READ_CLOSED):
            self._on_associated()

    # Handshake.

    def _on_handshake(self, events: int) -> None:
        if not events & (READABLE | READ_CLOSED | HUNG_UP) and events:
            return
        machine = self._machine
        assert machine is not None
        try:
            data = self._client.recv(HANDSHAKE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not data:
            self.close()
            return
        if events & READ_CLOSED:
            self._has_input = True  # the end, for which no further event will come
        self._carry_out(machine.receive(data))
        if len(data) == HANDSHAKE_READ_BYTES:
            self._has_input = True
        if self._has_input and self._state is _State.HANDSHAKE:
            self._server.poller.soon(self._on_client)

    def _carry_out(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Send):
                data = event.data[self._answered :]
                self._answered -= len(event.data) - len(data)
                try:
                    # A socket that nothing was sent on takes these few hundred bytes, or is no client of
                    # ours.
                    if data and self._client.send(data) < len(data):
                        self.abort()
                        return
                except OSError:
                    self.abort()
                    return
            elif isinstance(event, Connect):
                self._ask(self._connect, event.destination, event.isolation)
                if self._attempt is not None:
                    self._adopt(self._attempt, event.destination)
                else:
                    self._begin_connect(event.destination, event.isolation)
            elif isinstance(event, Associate):
                self._ask(partial(self._associate, event.client), ANY_UDP, event.isolation)
                self._server.spawn(self._run)
            elif isinstance(event, Resolve):
                work = self._resolve_reverse if event.is_reverse else self._resolve
                self._ask(work, event.destination, event.isolation)
                self._server.spawn(self._run)
            elif isinstance(event, Established):
                self._machine = None
                if self._association is None and self._server.front is not None:
                    self._give_back(event.early)
                elif self._association is None:
                    self._splice(event.early)
                else:
                    self._enter(_State.ASSOCIATED, math.inf)
            elif isinstance(event, Close):
                self._server.count(event.reason)
                self._linger()

    def _ask(self, work: _Work, destination: Destination, isolation: Isolation) -> None:
        self._work = work
        self._destination = destination
        self._isolation = isolation
        self._enter(_State.WAITING, self._server.poller.now + self._server.limits.connect_timeout_s)

    def _enter(self, state: _State, deadline: float) -> None:
        self._state = state
        self._deadline = deadline

    def _finish(self, outcome: Outcome) -> None:
        """Answer the client's request; a failure ends everything that was made for it."""
        if self._state is not _State.WAITING:
            return
        if outcome.reply is not Reply.SUCCEEDED:
            self._drop_attempt()
        assert self._machine is not None
        self._carry_out(self._machine.finish(outcome))

    def _drop_attempt(self) -> None:
        """Give back circuit, sockets and task of the request being worked on."""
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None
        if self._race is not None:
            self._race.cancel()
            self._race = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    # Requests.

    def _begin_connect(self, destination: Destination, isolation: Isolation) -> None:
        """Connect at once if circuit and addresses are at hand, else in a task."""
        server = self._server
        server.leaks.note(destination, server.poller.now)
        lease = server.circuits.lease_now(isolation, destination)
        if lease is None:
            server.spawn(self._run)
            return
        self._hold(lease)
        if self._lease is None:
            return  # it was dead already, and another is being asked for
        try:
            addresses = server.resolver.known(lease, destination, server.poller.now)
        except LookupFailed as failed:
            self._finish(failed.outcome)
            return
        if addresses is None:
            server.spawn(self._run)
        else:
            self._start_race(lease, addresses)

    def _adopt(self, attempt: Attempt, destination: Destination) -> None:
        """Go on with what the native proxy began."""
        self._attempt = None
        assert self._server.front is not None
        lease = self._server.front.share(attempt.grant)
        if lease is None or not (attempt.sockets or attempt.addresses):  # its circuit is dead
            attempt.close()
            if lease is not None:
                lease.release()
            self._on_circuit_closed()
            return
        self._hold(lease)
        rest, port = list(attempt.addresses), destination.port
        self._race = Race(self._server, lease, rest, port, self._on_connected, self._finish)
        self._race.adopt(attempt.sockets)

    def _hold(self, lease: Lease) -> None:
        self._lease = lease
        lease.watch(self._on_circuit_closed)

    async def _run(self) -> None:
        """Do the request's work with a circuit, waiting for one if need be."""
        if self._state is not _State.WAITING:
            return
        assert self._destination is not None and self._isolation is not None
        outcome: Outcome | None
        with trio.CancelScope() as scope:
            self._scope = scope
            try:
                if self._lease is None:
                    lease = await self._server.circuits.lease(self._isolation, self._destination)
                    if scope.cancel_called:
                        lease.release()
                        return
                    self._hold(lease)
                if scope.cancel_called or self._lease is None:
                    return
                outcome = await self._work(self._lease, self._destination)
            except NoCircuit as refusal:
                outcome = no_circuit_outcome(refusal.kind, str(refusal))
            except LookupFailed as failed:
                outcome = failed.outcome
            except Exception as error:
                # The namespace is gone, or no descriptors are left. Its text names no destination.
                report_fault("proxy_request_failed", error)
                outcome = Outcome(Reply.GENERAL_FAILURE, "The customer's namespace cannot serve this.")
            if not scope.cancel_called:
                self._scope = None
                if outcome is not None:
                    self._finish(outcome)

    async def _connect(self, lease: Lease, destination: Destination) -> Outcome | None:
        addresses = await self._server.resolver.addresses(lease, destination)
        if self._lease is lease:
            self._start_race(lease, addresses)
        return None

    def _start_race(self, lease: Lease, addresses: list[str]) -> None:
        assert self._destination is not None
        port = self._destination.port
        self._race = Race(self._server, lease, addresses, port, self._on_connected, self._finish)
        self._race.start()

    def _on_connected(self, upstream: socket.socket, events: int) -> None:
        self._race = None
        self._upstream = upstream
        self._server.poller.replace(upstream.fileno(), self._on_upstream)
        self._finish(SUCCESS)
        if self._state is _State.SPLICED and not self._up.bytes_moved:
            self._server.silent.add(self._acknowledge)
        if events & (READABLE | READ_CLOSED):
            self._on_upstream(events)

    def _acknowledge(self) -> None:
        """Let the server know that the connection is there: its client may be waiting for its first word."""
        if self._state is _State.SPLICED and not self._up.bytes_moved:
            assert self._upstream is not None
            acknowledge(self._upstream)

    async def _resolve(self, lease: Lease, destination: Destination) -> Outcome:
        address = (await self._server.resolver.addresses(lease, destination))[0]
        self._server.leaks.learned(address)
        return Outcome(Reply.SUCCEEDED, host=address)

    async def _resolve_reverse(self, lease: Lease, destination: Destination) -> Outcome:
        return Outcome(Reply.SUCCEEDED, host=await self._server.resolver.name(lease, destination.host))

    async def _associate(
        self, announced: Destination | None, lease: Lease, _destination: Destination
    ) -> Outcome | None:
        server = self._server
        if server.associations >= server.limits.max_associations:
            return Outcome(Reply.GENERAL_FAILURE, "Too many UDP associations.")
        local_host = self._client.getsockname()[0]
        association = await Association.open(server, lease, local_host, self._peer_host, announced)
        if self._lease is not lease or self._state is not _State.WAITING:
            association.close()
            return None
        self._association = association
        host, port = association.relay_address
        return Outcome(Reply.SUCCEEDED, host=host, port=port)

    # Established.

    def _give_back(self, early: bytes) -> None:
        """Have the native proxy carry the connection, and requests like this one from here on."""
        server, upstream, lease = self._server, self._upstream, self._lease
        assert server.front is not None and upstream is not None and lease is not None
        assert self._isolation is not None and self._destination is not None
        self._state = _State.CLOSED
        self._lease = None
        for sock in (self._client, upstream):
            server.poller.remove(sock.fileno())
        server.front.carry(
            self._key, self._isolation, self._destination, lease, self._client, upstream, early
        )
        server.remove(self)

    def _splice(self, early: bytes) -> None:
        assert self._upstream is not None
        now = self._server.poller.now
        self._enter(_State.SPLICED, now + self._server.limits.idle_timeout_s)
        self._last_active = now
        self._up = Pipe(self._client, self._upstream, early)
        self._down = Pipe(self._upstream, self._client)
        self._server.established += 1
        if early or self._has_input:
            # What came while we waited came with an event that is over.
            self._up.until_end = True
            self._on_spliced(READABLE, is_client=True)

    def _on_upstream(self, events: int) -> None:
        self._on_spliced(events, is_client=False)

    def _on_spliced(self, events: int, *, is_client: bool) -> None:
        """Move bytes after an event of either socket (0: continue where the last turn stopped)."""
        if self._state is not _State.SPLICED:
            return
        if events & BROKEN:
            self.abort()
            return
        server = self._server
        inward, outward = (self._up, self._down) if is_client else (self._down, self._up)
        self._last_active = server.poller.now
        try:
            if events & (READ_CLOSED | HUNG_UP):
                inward.until_end = True
            flow = None
            if events & (READABLE | READ_CLOSED | HUNG_UP) or not events:
                flow = inward.pump(server.buffer)
            back = outward.pump(server.buffer) if outward.is_full else None
        except OSError:
            self.abort()
            return
        if flow is Flow.MORE:
            server.poller.soon(self._on_client if is_client else self._on_upstream)
        if back is Flow.MORE:
            server.poller.soon(self._on_upstream if is_client else self._on_client)
        if self._up.has_ended and self._down.has_ended:
            self.close()

    def _on_associated(self) -> None:
        """The association lives as long as this connection; bytes on it mean nothing."""
        try:
            while data := self._client.recv(HANDSHAKE_READ_BYTES):
                self._linger_bytes += len(data)
                if self._linger_bytes > _LINGER_MAX_BYTES:
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    # The end.

    def _linger(self) -> None:
        """Close when the client has, or soon."""
        try:
            self._client.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        self._drop_attempt()
        self._machine = None
        self._enter(_State.LINGERING, self._server.poller.now + LINGER_S)
        self._on_lingering()

    def _on_lingering(self) -> None:
        try:
            while data := self._client.recv(HANDSHAKE_READ_BYTES):
                self._linger_bytes += len(data)
                if self._linger_bytes > _LINGER_MAX_BYTES:
                    self.abort()
                    return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def _end(self, *, is_reset: bool) -> None:
        if self._state is _State.CLOSED:
            return
        was_spliced = self._state is _State.SPLICED
        self._state = _State.CLOSED
        self._drop_attempt()
        for sock in (self._client, self._upstream):
            if sock is not None:
                self._server.poller.forget(sock.fileno())
                if is_reset:
                    if sock is self._upstream and not (was_spliced and self._up.bytes_moved):
                        acknowledge(sock)  # or the server would never know that there was a connection
                    reset(sock)
                else:
                    sock.close()
        if self._association is not None:
            self._association.close()
        if self._attempt is not None:
            self._attempt.close()
        if was_spliced:
            self._server.bytes_up += self._up.bytes_moved
            self._server.bytes_down += self._down.bytes_moved
        self._server.remove(self)
