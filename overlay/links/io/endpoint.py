"""The driver of all links of one node: sockets, trio's clock, packets to links, links to packets.

One task per socket waits for readability, takes what is there, lets every link that got something hand it up,
and then sends what all links have to send: one wake-up, one `on_batch_end`, one flush. One more task sleeps
until the next timer is due or someone outside a batch has something to send. Everything else is synchronous.
"""

import heapq
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Final, Literal, TypeGuard, cast

import trio

from overlay.errors import DecodeError, OverlayError
from overlay.identity import Identity
from overlay.links.acceptor import Acceptor, AcceptorCounters, Answer, Begin
from overlay.links.backends.base import Address, Backend, BackendName, BackendSettings, Inbox, load_backend
from overlay.links.certificate import make_certificate
from overlay.links.constants import ALPN, LOCAL_CID_BYTES, MIN_INITIAL_BYTES, UDP_PAYLOAD, CloseCode
from overlay.links.io.state import LINGER_S, Dial, EndpointCounters, Entry, Lingering, Packets, Socket
from overlay.links.io.udp import Control, TooLargeError, UdpSocket
from overlay.links.limits import LinkLimits
from overlay.links.link import Link, LinkHandler
from overlay.links.machine import LinkMachine
from overlay.links.packets import LongHeader, decode_long_header, encode_version_probe
from overlay.links.retry import KEY_BYTES
from overlay.logs import RateLimit, get_logger

_log = get_logger("links")

Role = Literal["relay", "customer"]

RECEIVES_PER_BATCH: Final = 32
"""System calls (up to 64 KB each) before what came is handed up: bounds a batch to 2 MB."""
PACKETS_PER_TRANSMIT: Final = 180
"""Packets asked of one link at a time: four super-datagrams."""
TRANSMITS_PER_FLUSH: Final = 16
"""After so many a link waits for its next turn (4 MB)."""
TIMER_FLOOR_S: Final = 0.0002
"""No timer fires sooner after a flush: a library that asks for a time in the past must not spin the node."""
MAX_PENDING_SENDS: Final = 64
"""Batches that may wait for a socket whose buffer is full."""
HOUSEKEEPING_S: Final = 1.0
PROBE_AFTER_S: Final = 1.5
"""A node that has not finished the handshake in this time is asked whether it is there at all."""
PROBES: Final = 3
"""How often it is asked."""
PATH_TOO_SMALL_REASON: Final = (
    "path MTU too small: the node answers small packets, but those with a UDP payload of 1452 bytes are lost"
)
NO_ROUTE_REASON: Final = "this machine has no route to it: is it connected to a network?"
MAX_LINGERING: Final = 1024


class DialError(OverlayError):
    """A link could not be made. `code` is a CloseCode or the peer's; the message is a sentence for people."""

    def __init__(self, address: Address, code: int, reason: str) -> None:
        """Put the sentence together."""
        super().__init__(f"no link to {address[0]} port {address[1]}: {reason}")
        self.code = code
        self.reason = reason


BeforeDial = Callable[[Address], Awaitable[None]]


class Endpoint:
    """All links of one node. Made by `open_endpoint`."""

    def __init__(
        self,
        sockets: Sequence[UdpSocket],
        backend: Backend,
        identity: Identity | None,
        handler: LinkHandler,
        limits: LinkLimits,
        role: Role,
        nursery: trio.Nursery,
    ) -> None:
        """For `open_endpoint` only."""
        self.before_dial: BeforeDial | None = None
        """Waited for with the address before each dial."""
        now = trio.current_time()
        self.counters = EndpointCounters()
        self._bug_log = RateLimit()
        self.acceptor_counters = AcceptorCounters()
        self._sockets = [Socket(udp) for udp in sockets]
        self._backend = backend
        self._identity = identity
        self._handler = handler
        self._limits = limits
        self._role: Role = role
        self._nursery = nursery
        self._acceptor: Acceptor | None = None
        if role == "relay":
            self._acceptor = Acceptor(backend.encode_retry, limits, os.urandom, os.urandom(KEY_BYTES), now)
            self.acceptor_counters = self._acceptor.counters
        self._links: dict[Link, Entry] = {}
        self._cids: dict[bytes, Link] = {}
        self._probes: dict[bytes, Dial] = {}
        self._lingering: dict[bytes, Lingering] = {}
        self._inbox = Inbox()
        self._dirty: dict[Link, None] = {}
        self._ended: list[Link] = []
        self._touched: dict[Link, None] = {}
        self._timers: list[tuple[float, int, Link]] = []
        self._sequence = itertools.count()
        self._next_housekeeping = now + HOUSEKEEPING_S
        self._busy = False
        """Inside a batch or a flush: what gets dirty now is flushed anyway."""
        self._scope: trio.CancelScope | None = None
        self._wake_at = inf

    # -- for the node above --

    @property
    def addresses(self) -> list[Address]:
        """Where the sockets are bound."""
        return [sock.udp.address for sock in self._sockets]

    @property
    def links(self) -> list[Link]:
        """All links, also those not up yet."""
        return list(self._links)

    async def dial(self, address: Address, expected: bytes) -> Link:
        """Make a link to the node with identity `expected` (32 bytes) at a numeric address.

        The handler's `on_link_up` has been called when this returns. Raises DialError with a sentence that
        says why not. A cancellation closes the link.
        """
        if self._identity is not None and expected == self._identity.node_id:
            raise DialError(address, CloseCode.REFUSED, "that is this node itself")
        if self.before_dial is not None:
            await self.before_dial(address)
        sock = self._socket_for(address)
        if sock is None:
            family = "IPv6" if ":" in address[0] else "IPv4"
            raise DialError(address, CloseCode.REFUSED, f"this node has no {family} socket")
        now = trio.current_time()
        signer = self._identity if self._role == "relay" else None
        machine = LinkMachine(
            is_dialler=True,
            acceptor_id=expected,
            signer=signer,
            nonce=b"",
            limits=self._limits,
            now=now,
        )
        link = Link(
            owner=self,
            handler=self._handler,
            connection=self._backend.dial(),
            machine=machine,
            limits=self._limits,
            inbox=self._inbox,
            is_dialler=True,
            peer_address=address,
            now=now,
        )
        entry = self._register(link, sock, None)
        dial = entry.dial = Dial()
        link.connect(now)
        try:
            for _ in range(PROBES):
                with trio.move_on_after(PROBE_AFTER_S):
                    await dial.done.wait()
                if dial.done.is_set():
                    break
                self._probe(sock, address, dial)
            await dial.done.wait()
        finally:
            for cid in dial.probes:
                self._probes.pop(cid, None)
            if not link.is_up:
                link.close(CloseCode.DONE, "the dialler has given up")
        if link.end is not None:
            code, reason = link.end.code, link.end.reason
            if code == CloseCode.TIMEOUT and MIN_INITIAL_BYTES in dial.answered:
                if UDP_PAYLOAD in dial.answered:
                    reason = "the node is there, but does not finish the handshake: it may be overloaded"
                else:
                    code = CloseCode.PATH_TOO_SMALL
                    reason = PATH_TOO_SMALL_REASON
            raise DialError(address, code, reason)
        return link

    def _probe(self, sock: Socket, address: Address, dial: Dial) -> None:
        """Ask with a small and with a full packet whether anything is there: the answers tell."""
        for size_bytes in (MIN_INITIAL_BYTES, UDP_PAYLOAD):
            cid = os.urandom(LOCAL_CID_BYTES)
            dial.probes[cid] = size_bytes
            self._probes[cid] = dial
            packet = encode_version_probe(os.urandom(LOCAL_CID_BYTES), cid, size_bytes)
            with suppress(TooLargeError):
                self._send(sock, [(packet, address)])

    def flush(self) -> None:
        """Send what links have to send, now. For whoever has just sent a batch from outside of the handler's
        calls.
        """
        if not self._busy:
            self._busy = True
            try:
                self._flush(trio.current_time())
            finally:
                self._busy = False
            self._reschedule()

    def mark_dirty(self, link: Link) -> None:
        """Have a link flushed: at the end of the present batch, or at once."""
        self._dirty[link] = None
        if not self._busy and self._wake_at > 0:
            self._wake(0.0)

    # -- for links --

    def add_cid(self, link: Link, cid: bytes) -> None:
        """Packets to this id are the link's."""
        entry = self._links.get(link)
        if entry is not None and cid not in self._cids:
            self._cids[cid] = link
            entry.cids.add(cid)

    def remove_cid(self, link: Link, cid: bytes) -> None:
        """The id is no longer in use."""
        if self._cids.get(cid) is link:
            del self._cids[cid]
            self._links[link].cids.discard(cid)

    def link_up(self, link: Link) -> None:
        """A link came up."""
        entry = self._links[link]
        entry.up = True
        if entry.prefix is not None and self._acceptor is not None:
            self._acceptor.admission.established(entry.prefix)
        if entry.dial is not None:
            entry.dial.done.set()

    def link_ended(self, link: Link) -> None:
        """A link has ended."""
        self._ended.append(link)
        self.mark_dirty(link)

    # -- tasks --

    async def run_socket(self, sock: Socket) -> None:
        """Read one socket for ever."""
        receive = sock.udp.receive
        while True:
            await trio.lowlevel.wait_readable(sock.udp.socket)
            now = trio.current_time()
            self._busy = True
            try:
                for _ in range(RECEIVES_PER_BATCH):
                    received = receive()
                    if received is None:
                        break
                    self._feed(sock, *received, now)
                self._finish_batch(now)
            finally:
                self._busy = False
            self._reschedule()

    async def run_timers(self) -> None:
        """Serve timers and wake-ups for ever."""
        while True:
            with trio.CancelScope(deadline=self._wake_at) as self._scope:
                await trio.sleep_forever()
            self.counters.wakeups += 1
            now = trio.current_time()
            self._busy = True
            try:
                self._expire(now)
                if self._dirty or self._touched or self._ended:
                    self._finish_batch(now)
            finally:
                self._busy = False
            self._reschedule()

    def run_batch(self, work: Callable[[], None]) -> None:
        """Call `work`, which may send on many links, and flush them all once afterwards."""
        self._busy = True
        try:
            work()
            self._flush(trio.current_time())
        finally:
            self._busy = False
        self._reschedule()

    async def _run_writer(self, sock: Socket) -> None:
        while sock.pending:
            await trio.lowlevel.wait_writable(sock.udp.socket)
            packets, control = sock.pending[0]
            with suppress(TooLargeError):  # a link that cannot use its path finds out by its own sends
                sent = sock.udp.send(packets, control)
                if sent < len(packets):
                    sock.pending[0] = (packets[sent:], control)
                    continue
            sock.pending.popleft()
        waiting, sock.waiting = sock.waiting, {}
        self._dirty.update(waiting)
        self.flush()

    def close(self) -> None:
        """Close all links and send their last packets."""
        for link in list(self._links):
            link.close(CloseCode.SHUTDOWN, "the node stops")
        self.flush()

    # -- coming in --

    def _feed(
        self, sock: Socket, data: bytes, size: int, address: Address, control: Control, now: float
    ) -> None:
        if not data:
            return
        self.counters.receives += 1
        if data[0] & 0x80 == 0:
            cid = data[1 : 1 + LOCAL_CID_BYTES]
            link = self._cids.get(cid)
            if link is not None:
                total = len(data)
                # Datagrams of two links between the same two sockets can come in one buffer.
                if total <= size or all(
                    [data[at + 1 : at + 9] == cid for at in range(size, total, size)]  # noqa: C419 (faster)
                ):
                    self._touched[link] = None
                    link.receive(data, size, address, now)
                    return
        for at in range(0, len(data), size):
            self._feed_one(sock, data[at : at + size], address, control, now)

    def _feed_one(
        self, sock: Socket, datagram: bytes, address: Address, control: Control, now: float
    ) -> None:
        if datagram[0] & 0x80 == 0:
            cid = datagram[1 : 1 + LOCAL_CID_BYTES]
            link = self._cids.get(cid)
            header = None
        else:
            try:
                header = decode_long_header(datagram)
            except DecodeError:
                self.counters.unknown_packets += 1
                return
            cid = header.destination_cid
            link = self._cids.get(cid)
        if link is not None:
            self._touched[link] = None
            link.receive(datagram, len(datagram), address, now)
        elif cid in self._lingering:
            packets = self._lingering[cid].take(now)
            if packets:
                self._send(sock, packets, control)
        elif header is not None:
            self._unknown(sock, header, datagram, address, control, now)
        else:
            self.counters.unknown_packets += 1

    def _unknown(
        self,
        sock: Socket,
        header: LongHeader,
        datagram: bytes,
        address: Address,
        control: Control,
        now: float,
    ) -> None:
        dial = self._probes.get(header.destination_cid)
        if dial is not None and header.version == 0:
            dial.answered.add(dial.probes[header.destination_cid])
            return
        if self._acceptor is None:
            self.counters.unknown_packets += 1
            return
        match self._acceptor.handle(header, len(datagram), address, now):
            case Answer(packet):
                self._send(sock, [(packet, address)], control)
            case Begin() as begin:
                link = self._accept(begin, address, now)
                self._acceptor.admission.opened(begin.prefix)
                self._register(link, sock, begin.prefix).control = control
                self.add_cid(link, header.destination_cid)
                self._touched[link] = None
                link.receive(datagram, len(datagram), address, now)
                if not link.is_authentic:
                    # Noise in the shape of an Initial: it must not hold a place for the whole handshake time.
                    link.fail(CloseCode.PROTOCOL, "an Initial that cannot be opened")

    def _accept(self, begin: Begin, address: Address, now: float) -> Link:
        assert self._identity is not None
        machine = LinkMachine(
            is_dialler=False,
            acceptor_id=self._identity.node_id,
            signer=None,
            nonce=os.urandom(32),
            limits=self._limits,
            now=now,
            refusal=begin.refusal,
        )
        return Link(
            owner=self,
            handler=self._handler,
            connection=self._backend.accept(begin.original_cid, begin.retry_cid),
            machine=machine,
            limits=self._limits,
            inbox=self._inbox,
            is_dialler=False,
            peer_address=address,
            now=now,
        )

    def _finish_batch(self, now: float) -> None:
        touched, self._touched = self._touched, {}
        for link in touched:
            try:
                link.process(now)
                link.notify_writable()
            except Exception as error:
                self._note_bug(link, error, now)
        self.counters.batches += 1
        try:
            self._handler.on_batch_end()
        except Exception as error:
            self._note_bug(None, error, now)
        self._flush(now)

    def _note_bug(self, link: Link | None, error: Exception, now: float) -> None:
        """An error of ours while handing up what a peer sent: it costs that link, never the node."""
        self.counters.bugs += 1
        if self._bug_log.allow("bug", now) is not None:
            _log.error("link handler failed", exc_info=error)
        if link is not None:
            link.fail(CloseCode.INTERNAL, "an error in the other node")

    # -- going out --

    def _flush(self, now: float) -> None:
        dirty, self._dirty = self._dirty, {}
        again: list[Link] = []
        while dirty or self._ended:
            for link in dirty:
                if link in self._links and not self._flush_link(link, now):
                    again.append(link)
            ended, self._ended = self._ended, []
            for link in ended:
                self._flush_link(link, now)
                self._forget(link, now)
            dirty, self._dirty = self._dirty, {}
        for link in again:
            self._dirty[link] = None

    def _flush_link(self, link: Link, now: float) -> bool:
        """Send what a link has; False when it has more than its turn allows."""
        entry = self._links[link]
        sock = entry.sock
        for _ in range(TRANSMITS_PER_FLUSH):
            if sock.pending:
                sock.waiting[link] = None
                break
            packets = link.transmit(now, PACKETS_PER_TRANSMIT)
            if not packets:
                break
            address = packets[-1][1][:2]
            if address != link.peer_address:
                sock = self._peer_moved(link, entry, address)
            try:
                self._send(sock, packets, entry.control)
            except TooLargeError as error:
                link.fail(CloseCode.PATH_TOO_SMALL, f"path MTU too small: {error}")
            if sock.udp.no_route and entry.dial is not None and not entry.up:
                link.fail(CloseCode.NO_ROUTE, NO_ROUTE_REASON)
            link.notify_writable()
            if len(packets) < PACKETS_PER_TRANSMIT and link not in self._dirty:
                break
            self._dirty.pop(link, None)
        else:
            return False
        deadline = link.next_timeout()
        if deadline is not None and deadline < entry.scheduled:
            deadline = max(deadline, now + TIMER_FLOOR_S)
            entry.scheduled = deadline
            heapq.heappush(self._timers, (deadline, next(self._sequence), link))
            if len(self._timers) > 2 * len(self._links) + 64:
                self._drop_old_timers()
        return True

    def _drop_old_timers(self) -> None:
        """Forget entries of ended links and of deadlines that were moved forward, before they are due."""
        links = self._links
        self._timers = [
            entry for entry in self._timers if entry[2] in links and links[entry[2]].scheduled == entry[0]
        ]
        heapq.heapify(self._timers)

    def _peer_moved(self, link: Link, entry: Entry, address: Address) -> Socket:
        """QUIC has followed its peer to another address, perhaps of the other family."""
        link.peer_address = address
        sock = self._socket_for(address)
        if sock is not None and sock is not entry.sock:
            entry.sock, entry.control = sock, ()
        return entry.sock

    def _send(self, sock: Socket, packets: Packets, control: Control = ()) -> None:
        if sock.pending:
            # The buffer is full. Links stop by themselves; what little comes here may wait or be lost.
            if len(sock.pending) < MAX_PENDING_SENDS:
                sock.pending.append((packets, control))
            return
        sent = sock.udp.send(packets, control)
        if sent < len(packets):
            sock.pending.append((packets[sent:], control))
            self._nursery.start_soon(self._run_writer, sock)

    # -- links and timers --

    def _register(self, link: Link, sock: Socket, prefix: bytes | None) -> Entry:
        entry = self._links[link] = Entry(sock, prefix)
        for cid in link.cids:
            self.add_cid(link, cid)
        return entry

    def _forget(self, link: Link, now: float) -> None:
        entry = self._links.pop(link)
        self._dirty.pop(link, None)
        entry.sock.waiting.pop(link, None)
        for cid in entry.cids:
            self._cids.pop(cid, None)
        if link.last_packets:
            if len(self._lingering) >= MAX_LINGERING:
                self._lingering.clear()
            lingering = Lingering(link.last_packets, now + LINGER_S)
            for cid in entry.cids:
                self._lingering[cid] = lingering
        if entry.prefix is not None and self._acceptor is not None:
            admission = self._acceptor.admission
            (admission.closed if entry.up else admission.abandoned)(entry.prefix)
        link.report_end()
        if entry.dial is not None:
            entry.dial.done.set()

    def _expire(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            deadline, _, link = heapq.heappop(timers)
            entry = self._links.get(link)
            if entry is None or entry.scheduled != deadline:
                continue
            entry.scheduled = inf
            due = link.next_timeout()
            if due is not None and due > now:
                # What this was set for has been done meanwhile: no reason to go through the link.
                entry.scheduled = due
                heapq.heappush(timers, (due, next(self._sequence), link))
                continue
            try:
                link.handle_timeout(now)
            except Exception as error:
                self._note_bug(link, error, now)
            self._dirty[link] = None
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_S
            for link in list(self._links):
                link.housekeeping(now)
            if self._lingering:
                self._lingering = {cid: entry for cid, entry in self._lingering.items() if entry.until > now}

    def _reschedule(self) -> None:
        """Set the timer task's alarm to the next thing that is due."""
        wake_at = inf
        if self._dirty:
            wake_at = 0.0
        else:
            if self._timers:
                wake_at = self._timers[0][0]
            if self._links or self._lingering:
                wake_at = min(wake_at, self._next_housekeeping)
        if wake_at != self._wake_at:
            self._wake(wake_at)

    def _wake(self, at: float) -> None:
        self._wake_at = at
        if self._scope is not None:
            self._scope.deadline = at

    def _socket_for(self, address: Address) -> Socket | None:
        is_ipv6 = ":" in address[0]
        return next((sock for sock in self._sockets if sock.udp.is_ipv6 == is_ipv6), None)


def _is_address(value: Address | Sequence[Address]) -> TypeGuard[Address]:
    return isinstance(value[0], str)


@asynccontextmanager
async def open_endpoint(
    addresses: Address | Sequence[Address],
    identity: Identity | None,
    handler: LinkHandler,
    *,
    backend: BackendName = "qh3",
    limits: LinkLimits | None = None,
    role: Role = "relay",
    alpn: str = ALPN,
) -> AsyncIterator[Endpoint]:
    """Bind sockets and drive links until the block is left, which closes all links.

    `addresses` is one numeric (host, port) or several, at most one per family; port 0 takes a free one. A
    relay accepts links and proves its identity when it dials; a customer does neither and needs no identity.
    Raises OSError when an address cannot be bound, ValueError for a relay without an identity or an unknown
    back end.
    """
    if role == "relay" and identity is None:
        raise ValueError("a relay needs an identity")
    limits = limits or LinkLimits()
    certificate, key = (
        (None, None) if identity is None or role != "relay" else make_certificate(identity.seed)
    )
    library = load_backend(backend, BackendSettings(certificate, key, limits.idle_timeout_s, alpn))
    pairs: Sequence[Address] = [addresses] if _is_address(addresses) else cast(Sequence[Address], addresses)
    sockets: list[UdpSocket] = []
    try:
        for host, port in pairs:
            sockets.append(UdpSocket(host, port))
        async with trio.open_nursery() as nursery:
            endpoint = Endpoint(sockets, library, identity, handler, limits, role, nursery)
            for sock in endpoint._sockets:
                nursery.start_soon(endpoint.run_socket, sock)
            nursery.start_soon(endpoint.run_timers)
            try:
                yield endpoint
            finally:
                endpoint.close()
                nursery.cancel_scope.cancel()
    finally:
        for udp in sockets:
            udp.close()
