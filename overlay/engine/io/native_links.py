"""Links of the native engine: the crate drives QUIC and sockets, this drives greetings, limits and dials.

The crate hands up the bytes of the control stream; the machine of `overlay.links.machine` reads them as it
does for the other libraries, and admission is the same. What a peer sees is the same link, see
docs/protocol/links.md. Links have the attributes of `overlay.links.link.Link` that nodes use.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from overlay.engine.native import NativeEngineError
from overlay.errors import DecodeError
from overlay.links.acceptor import FULL, AcceptorCounters
from overlay.links.admission import Admission, Verdict, address_prefix
from overlay.links.certificate import decode_certificate_key, make_certificate_der
from overlay.links.constants import ALPN, MIN_INITIAL_BYTES, UDP_PAYLOAD, CloseCode
from overlay.links.framing import encode_control_frame
from overlay.links.io.endpoint import (
    NO_ROUTE_REASON,
    PATH_TOO_SMALL_REASON,
    PROBE_AFTER_S,
    PROBES,
    DialError,
)
from overlay.links.io.state import EndpointCounters
from overlay.links.io.udp import UdpSocket, bind_group, has_route
from overlay.links.limits import LinkLimits
from overlay.links.machine import Deliver, End, LinkMachine, Output, Send, Up
from overlay.logs import RateLimit, get_logger

if TYPE_CHECKING:
    from overlay.engine.native import NativeEngine
    from overlay.identity import Identity
    from overlay.links.backends.base import Address
    from overlay.links.io.endpoint import BeforeDial

Role = Literal["relay", "customer"]
TICK_S: Final = 0.25
"""How often greetings' and keep-alives' times are looked at while links are few."""
MANY_LINKS: Final = 256
MANY_TICK_S: Final = 1.0

_log = get_logger("links")


class NativeLink:
    """One neighbour's connection."""

    __slots__ = (
        "__weakref__",
        "_cell",
        "_crate",
        "_endpoint",
        "_lost_before",
        "_machine",
        "_sent_before",
        "dial",
        "end",
        "is_dialler",
        "is_up",
        "loss",
        "name",
        "peer",
        "peer_address",
        "prefix",
        "tag",
        "was_up",
    )

    def __init__(
        self,
        endpoint: NativeEndpoint,
        machine: LinkMachine,
        *,
        is_dialler: bool,
        peer_address: Address,
        prefix: bytes | None,
    ) -> None:
        """Only ``NativeEndpoint`` makes links. `prefix` is what admission counts an accepted one by."""
        engine = endpoint.engine
        self.name = engine.new_name()
        self._cell = engine.new_link_cell()
        self._crate = engine.crate
        self._endpoint = endpoint
        self._machine = machine
        self.is_dialler = is_dialler
        self.is_up = self.was_up = False
        self.peer: bytes | None = None
        self.peer_address = peer_address
        self.prefix = prefix
        self.loss = 0.0
        """Share of our packets that were declared lost, averaged over the last seconds."""
        self.end: End | None = None
        self.tag: object = None
        self.dial: _Dial | None = None
        self._sent_before = 0
        self._lost_before = 0

    # -- for the node above

    @property
    def rtt_s(self) -> float:
        """Smoothed round trip in seconds; 0.0 after the end."""
        return float(self._cell.rtt_s) if self.end is None else 0.0

    @property
    def last_receive_s(self) -> float:
        """When something came last, of trio's clock."""
        age_ns: int = self._crate.now_ns() - self._cell.figures()[0]
        return trio.current_time() - age_ns / 1e9

    @property
    def dropped_datagrams(self) -> int:
        """Frames of a wrong size, or before the greeting."""
        return int(self._cell.dropped_datagrams)

    def unanswered_s(self, now: float) -> float:
        """Return for how long data has been under way without any packet in answer; 0.0 if none is."""
        since_ns: int = self._cell.figures()[1]
        return max(0.0, (self._crate.now_ns() - since_ns) / 1e9) if since_ns and self.end is None else 0.0

    def send_control(self, message: bytes) -> None:
        """Queue one encoded control message; ignored on a link that is not up. ValueError for its length."""
        frame = encode_control_frame(message)
        if self.is_up:
            self._crate.control(self.name, frame)

    def close(self, code: int = CloseCode.DONE, reason: str = "") -> None:
        """Close the link; the peer reads `code` and `reason`. `on_link_closed` follows, not from within."""
        self.finish(code, reason, tell_peer=True)

    # -- for the endpoint

    @property
    def cell(self) -> Any:
        """The crate's figures of this link."""
        return self._cell

    def handle_connected(self, certificate: bytes | None, now: float) -> None:
        """QUIC's handshake is done."""
        key: bytes | None = None
        if self.is_dialler:
            try:
                key = decode_certificate_key(certificate or b"")
            except DecodeError:
                key = None
        self.carry_out(self._machine.handle_connected(key, now))

    def handle_control(self, data: bytes, now: float) -> None:
        """Bytes of the control stream."""
        if self.end is None:
            self.carry_out(self._machine.handle_control(data, now))

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        if self.end is None:
            self.carry_out(self._machine.handle_timeout(now))

    def housekeeping(self, now: float, limits: LinkLimits) -> None:
        """Once a second: loss figure, silent peers."""
        if self.end is not None:
            return
        _, _, sent, lost = self._cell.figures()
        new_sent, new_lost = sent - self._sent_before, lost - self._lost_before
        if new_sent >= 10:
            self._sent_before, self._lost_before = sent, lost
            self.loss += 0.25 * (min(1.0, max(0, new_lost) / new_sent) - self.loss)
        if self.is_up and self.unanswered_s(now) > limits.answer_timeout_s:
            self.finish(CloseCode.TIMEOUT, "the peer stopped answering", tell_peer=True)

    def carry_out(self, outputs: Sequence[Output]) -> None:
        """Do what the machine wants."""
        for output in outputs:
            if self.end is not None:
                return
            match output:
                case Deliver(message):
                    self._endpoint.engine.on_control(self, message)
                case Send(data):
                    self._crate.control(self.name, data)
                case Up(peer):
                    self.peer = peer
                    self.is_up = self.was_up = True
                    self._crate.up(self.name, peer is not None)
                    self._endpoint.link_up(self)
                    self._endpoint.engine.on_link_up(self)
                case End(code, reason):
                    self.finish(code, reason, tell_peer=True)

    def finish(self, code: int, reason: str, *, tell_peer: bool) -> None:
        """End the link; the first end counts."""
        if self.end is not None:
            return
        self.end = End(code, reason)
        self.is_up = False
        self._machine.end()
        self._crate.close(self.name, code, reason, tell_peer)
        self._endpoint.link_ended(self)


class _Dial:
    """Someone waits for a link."""

    __slots__ = ("answered", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answered: set[int] = set()


class NativeEndpoint:
    """All links of one node, in place of `links.io.endpoint.Endpoint`. Made by ``open_native_links``."""

    def __init__(
        self,
        engine: NativeEngine,
        sockets: Sequence[UdpSocket],
        identity: Identity | None,
        limits: LinkLimits,
        role: Role,
    ) -> None:
        self.engine = engine
        self.before_dial: BeforeDial | None = None
        self.counters = EndpointCounters()
        self.acceptor_counters = AcceptorCounters()
        self._sockets = sockets
        self._identity = identity
        self._limits = limits
        self._role = role
        self._admission = Admission(limits, trio.current_time())
        self._links: dict[int, NativeLink] = {}
        self._ended: list[NativeLink] = []
        self._bell = trio.Event()
        self._bug_log = RateLimit()

    @property
    def addresses(self) -> list[Address]:
        """Where the sockets are bound."""
        return [sock.address for sock in self._sockets]

    @property
    def links(self) -> list[NativeLink]:
        """All links, also those not up yet."""
        return list(self._links.values())

    async def dial(self, address: Address, expected: bytes) -> NativeLink:
        """Make a link to the node with identity `expected` at a numeric address; as ``Endpoint.dial``."""
        if self._identity is not None and expected == self._identity.node_id:
            raise DialError(address, CloseCode.REFUSED, "that is this node itself")
        is_ipv6 = ":" in address[0]
        if all(sock.is_ipv6 != is_ipv6 for sock in self._sockets):
            family = "IPv6" if is_ipv6 else "IPv4"
            raise DialError(address, CloseCode.REFUSED, f"this node has no {family} socket")
        if self.before_dial is not None:
            await self.before_dial(address)
        if not has_route(address):
            raise DialError(address, CloseCode.NO_ROUTE, NO_ROUTE_REASON)
        signer = self._identity if self._role == "relay" else None
        machine = LinkMachine(
            is_dialler=True,
            acceptor_id=expected,
            signer=signer,
            nonce=b"",
            limits=self._limits,
            now=trio.current_time(),
        )
        link = NativeLink(self, machine, is_dialler=True, peer_address=address, prefix=None)
        dial = link.dial = _Dial()
        self._links[link.name] = link
        self.engine.crate.dial(link.name, *address, link.cell)
        try:
            for _ in range(PROBES):
                with trio.move_on_after(PROBE_AFTER_S):
                    await dial.done.wait()
                if dial.done.is_set():
                    break
                self.engine.crate.probe(link.name, *address)
            await dial.done.wait()
        finally:
            if not link.is_up:
                link.close(CloseCode.DONE, "the dialler has given up")
        if link.end is not None:
            code, reason = link.end.code, link.end.reason
            if code == CloseCode.TIMEOUT and MIN_INITIAL_BYTES in dial.answered:
                if UDP_PAYLOAD in dial.answered:
                    reason = "the node is there, but does not finish the handshake: it may be overloaded"
                else:
                    code, reason = CloseCode.PATH_TOO_SMALL, PATH_TOO_SMALL_REASON
            raise DialError(address, code, reason)
        return link

    def flush(self) -> None:
        """Report links that have ended; what was sent is on its way already."""
        self._report_ends()

    def run_batch(self, work: Callable[[], None]) -> None:
        """Call `work`: nothing here is kept back for a flush."""
        work()

    def close(self) -> None:
        """Close all links and report them."""
        for link in list(self._links.values()):
            link.close(CloseCode.SHUTDOWN, "the node stops")
        self._report_ends()

    # -- for links

    def link_up(self, link: NativeLink) -> None:
        """A link came up."""
        if link.prefix is not None:
            self._admission.established(link.prefix)
        if link.dial is not None:
            link.dial.done.set()

    def link_ended(self, link: NativeLink) -> None:
        """A link has ended: it is reported by the task, or by the next flush."""
        self._ended.append(link)
        self._bell.set()

    # -- tasks

    async def run_events(self) -> None:
        """Carry out what the crate tells, for ever. Raises NativeEngineError when it has failed."""
        crate = self.engine.crate
        fd = crate.event_fd()
        while True:
            await trio.lowlevel.wait_readable(fd)
            self.counters.batches += 1
            now = trio.current_time()
            for event in crate.take_events():
                self._handle(event, now)
            self._report_ends()

    async def run_ends(self) -> None:
        """Report links that were closed by other tasks, for ever."""
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            self._report_ends()

    async def run_times(self) -> None:
        """Serve greetings, keep-alives and silent peers, for ever."""
        housekeeping_at = trio.current_time() + 1.0
        while True:
            await trio.sleep(TICK_S if len(self._links) < MANY_LINKS else MANY_TICK_S)
            now = trio.current_time()
            tidy = now >= housekeeping_at
            if tidy:
                housekeeping_at = now + 1.0
            for link in list(self._links.values()):
                try:
                    link.handle_timeout(now)
                    if tidy:
                        link.housekeeping(now, self._limits)
                except Exception as error:
                    self._note_bug(link, error, now)
            self._report_ends()

    # -- inside

    def _handle(self, event: tuple[Any, ...], now: float) -> None:
        kind = event[0]
        if kind == "incoming":
            self._incoming(event[1], (event[2], event[3]), event[4], now)
            return
        if kind not in _LINK_EVENTS:
            try:
                self.engine.handle_event(event)
            except NativeEngineError:
                raise
            except Exception as error:
                self._note_bug(None, error, now)
            return
        link = self._links.get(event[1])
        if link is None or link.end is not None:
            return
        try:
            match event:
                case ("control", _, data):
                    link.handle_control(data, now)
                case ("connected", _, certificate):
                    link.handle_connected(certificate, now)
                case ("ended", _, _, code, reason):
                    link.finish(code, reason[:200], tell_peer=False)
                case ("fault", _, code, reason):
                    link.finish(code, reason, tell_peer=True)
                case ("moved", _, host, port):
                    link.peer_address = (host, port)
                case ("probe", _, size):
                    if link.dial is not None:
                        link.dial.answered.add(size)
        except Exception as error:
            self._note_bug(link, error, now)

    def _incoming(self, incoming: int, address: Address, validated: bool, now: float) -> None:
        prefix = address_prefix(address[0])
        verdict = self._admission.decide(prefix, validated, now)
        crate, counters = self.engine.crate, self.acceptor_counters
        if verdict is Verdict.DROP:
            counters.dropped_handshakes += 1
            crate.ignore(incoming)
        elif verdict is Verdict.RETRY:
            counters.retries += 1
            crate.retry(incoming)
        else:
            counters.accepted += 1
            self._accept(incoming, address, prefix, FULL if verdict is Verdict.REFUSE else None, now)

    def _accept(
        self, incoming: int, address: Address, prefix: bytes, refusal: str | None, now: float
    ) -> None:
        assert self._identity is not None
        machine = LinkMachine(
            is_dialler=False,
            acceptor_id=self._identity.node_id,
            signer=None,
            nonce=os.urandom(32),
            limits=self._limits,
            now=now,
            refusal=refusal,
        )
        link = NativeLink(self, machine, is_dialler=False, peer_address=address, prefix=prefix)
        self._links[link.name] = link
        self._admission.opened(prefix)
        self.engine.crate.accept(incoming, link.name, link.cell)

    def _report_ends(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            for link in ended:
                self._links.pop(link.name, None)
                if link.prefix is not None:
                    (self._admission.closed if link.was_up else self._admission.abandoned)(link.prefix)
                if link.was_up and link.end is not None:
                    try:
                        self.engine.on_link_closed(link, link.end.code, link.end.reason)
                    except Exception as error:
                        self._note_bug(None, error, trio.current_time())
                if link.dial is not None:
                    link.dial.done.set()

    def _note_bug(self, link: NativeLink | None, error: Exception, now: float) -> None:
        """An error of ours while handing up what a peer sent: it costs that link, never the node."""
        self.counters.bugs += 1
        if self._bug_log.allow("bug", now) is not None:
            _log.error("link handler failed", exc_info=error)
        if link is not None:
            link.finish(CloseCode.INTERNAL, "an error in the other node", tell_peer=True)


_LINK_EVENTS: Final = frozenset({"connected", "control", "ended", "fault", "moved", "probe"})


@asynccontextmanager
async def open_native_links(
    addresses: Sequence[Address],
    identity: Identity | None,
    engine: NativeEngine,
    *,
    limits: LinkLimits | None = None,
    role: Role = "relay",
    alpn: str = ALPN,
    controller: str = "bbr",
) -> AsyncIterator[NativeEndpoint]:
    """Bind sockets and run the native engine's threads until the block is left, which closes all links.

    As ``overlay.links.io.endpoint.open_endpoint``; the engine must not have run before. Raises OSError when
    an address cannot be bound, ValueError for a relay without an identity, NativeEngineError when the engine
    fails.
    """
    if role == "relay" and identity is None:
        raise ValueError("a relay needs an identity")
    limits = limits or LinkLimits()
    certificate = None if identity is None or role != "relay" else make_certificate_der(identity.seed)
    sockets: list[UdpSocket] = []
    others: list[UdpSocket] = []
    try:
        # Odd, so that all bytes of a connection id count; random, so that nobody else can do the sum.
        factor = int.from_bytes(os.urandom(4), "big") | 1
        groups: list[list[UdpSocket]] = []
        for host, port in addresses:
            groups.append(bind_group(host, port, engine.threads, factor))
            sockets.append(groups[-1][0])
            others += groups[-1][1:]
        descriptors = [[group[at].socket.fileno() for group in groups] for at in range(engine.threads)]
        engine.crate.start(descriptors, certificate, alpn, limits.idle_timeout_s, controller, factor)
        try:
            endpoint = NativeEndpoint(engine, sockets, identity, limits, role)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(endpoint.run_events)
                nursery.start_soon(endpoint.run_ends)
                nursery.start_soon(endpoint.run_times)
                try:
                    yield endpoint
                finally:
                    endpoint.close()
                    nursery.cancel_scope.cancel()
        finally:
            engine.crate.stop()
    finally:
        for sock in sockets + others:
            sock.close()
