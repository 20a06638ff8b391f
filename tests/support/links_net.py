"""Two links joined in memory: a clock that jumps, a queue with delay and rate, filters for trouble."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from overlay.identity import Identity
from overlay.links.backends.base import Address, BackendName, BackendSettings, Connection, Inbox, load_backend
from overlay.links.certificate import make_certificate
from overlay.links.constants import ALPN
from overlay.links.io.endpoint import TIMER_FLOOR_S
from overlay.links.limits import LinkLimits
from overlay.links.link import Link
from overlay.links.machine import LinkMachine

DIALLER = Identity(b"d" * 32)
ACCEPTOR = Identity(b"a" * 32)
STRANGER = Identity(b"s" * 32)
PAIRS: list[tuple[BackendName, BackendName]] = [
    ("qh3", "qh3"),
    ("qh3", "aioquic"),
    ("aioquic", "qh3"),
    ("aioquic", "aioquic"),
]
PAIR_IDS = [f"{dialler}-{acceptor}" for dialler, acceptor in PAIRS]

Filter = Callable[[int, bytes], list[bytes]]
"""(0 from the dialler, 1 from the acceptor; datagram) to what arrives."""


@dataclass(eq=False)
class Recorder:
    """A handler that writes down what it is told."""

    ups: list[bytes | None] = field(default_factory=list)
    controls: list[bytes] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    streams: dict[int, bytearray] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    resets: list[tuple[int, int]] = field(default_factory=list)
    closes: list[tuple[int, str]] = field(default_factory=list)
    writable: int = 0
    batches: int = 0
    on_room: Callable[[Link], None] | None = None
    changed: Callable[[], None] | None = None

    def on_link_up(self, link: Link) -> None:
        self.ups.append(link.peer)

    def on_control(self, link: Link, message: bytes) -> None:
        self.controls.append(message)

    def on_datagrams(self, link: Link, frames: list[bytes]) -> None:
        self.frames += frames

    def on_stream(self, link: Link, stream_id: int, chunks: list[bytes], fin: bool) -> None:
        self.streams.setdefault(stream_id, bytearray()).extend(b"".join(chunks))
        if fin:
            self.finished.append(stream_id)

    def on_stream_reset(self, link: Link, stream_id: int, code: int) -> None:
        self.resets.append((stream_id, code))

    def on_writable(self, link: Link) -> None:
        self.writable += 1
        if self.on_room:
            self.on_room(link)

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        self.closes.append((code, reason))

    def on_batch_end(self) -> None:
        self.batches += 1
        if self.changed:
            self.changed()


class Side:
    """One end: the owner of one link."""

    def __init__(self, pair: Pair, index: int) -> None:
        self.pair = pair
        self.index = index
        self.handler = Recorder()
        self.link: Link | None = None
        self.connection: Connection | None = None
        self.cids: set[bytes] = set()
        self.was_up = False
        self.reported = False

    def mark_dirty(self, link: Link) -> None:
        self.pair.dirty.add(self.index)

    def add_cid(self, link: Link, cid: bytes) -> None:
        self.cids.add(cid)

    def remove_cid(self, link: Link, cid: bytes) -> None:
        self.cids.discard(cid)

    def link_up(self, link: Link) -> None:
        self.was_up = True

    def link_ended(self, link: Link) -> None:
        self.pair.dirty.add(self.index)


class Pair:
    """A dialler and an acceptor. Times are seconds of the pair's own clock."""

    def __init__(
        self,
        backends: tuple[BackendName, BackendName],
        *,
        expected: bytes | None = None,
        signer: Identity | None = DIALLER,
        alpn: tuple[str, str] = (ALPN, ALPN),
        certificate: tuple[bytes, bytes] | None = None,
        limits: LinkLimits | None = None,
        delay_s: float = 0.01,
        rate_bytes_per_s: float | None = None,
        queue_s: float = 0.2,
        refusal: str | None = None,
        acceptor_nonce: bytes = b"n" * 32,
        start: bool = True,
    ) -> None:
        self.now = 100.0
        self.limits = limits or LinkLimits()
        self.delay_s, self.rate, self.queue_s = delay_s, rate_bytes_per_s, queue_s
        self.filter: Filter = lambda _, datagram: [datagram]
        self.addresses: list[Address] = [("10.0.0.1", 1111), ("10.0.0.2", 2222)]
        self.sides = [Side(self, 0), Side(self, 1)]
        self.dirty: set[int] = set()
        self.delivered = [0, 0]
        self._free = [0.0, 0.0]
        self._queue: list[tuple[float, int, int, bytes, Address]] = []
        self._sequence = itertools.count()
        self._refusal, self._nonce = refusal, acceptor_nonce
        expected = ACCEPTOR.node_id if expected is None else expected
        pem = certificate or make_certificate(ACCEPTOR.seed)
        idle = self.limits.idle_timeout_s
        self._acceptor_backend = load_backend(backends[1], BackendSettings(*pem, idle, alpn[1]))
        dialler = load_backend(backends[0], BackendSettings(None, None, idle, alpn[0]))
        machine = LinkMachine(
            is_dialler=True, acceptor_id=expected, signer=signer, nonce=b"", limits=self.limits, now=self.now
        )
        self._make(0, dialler.dial(), machine)
        if start:
            self.dialler.connect(self.now)
            self.flush()

    def _make(self, index: int, connection: Connection, machine: LinkMachine) -> Link:
        side = self.sides[index]
        side.connection = connection
        side.link = Link(
            owner=side,
            handler=side.handler,
            connection=connection,
            machine=machine,
            limits=self.limits,
            inbox=Inbox(),
            is_dialler=index == 0,
            peer_address=self.addresses[1 - index],
            now=self.now,
        )
        return side.link

    @property
    def dialler(self) -> Link:
        link = self.sides[0].link
        assert link is not None
        return link

    @property
    def acceptor(self) -> Link:
        link = self.sides[1].link
        assert link is not None
        return link

    @property
    def handlers(self) -> tuple[Recorder, Recorder]:
        return self.sides[0].handler, self.sides[1].handler

    @property
    def both_up(self) -> bool:
        return all(side.was_up for side in self.sides)

    def inject(self, index: int, datagram: bytes) -> None:
        """Have a datagram arrive at one side."""
        self._arrive(index, datagram, self.addresses[1 - index])
        self.flush()

    def _arrive(self, index: int, datagram: bytes, sender: Address) -> None:
        side = self.sides[index]
        if side.link is None:
            connection = self._acceptor_backend.accept(datagram[6 : 6 + datagram[5]], None)
            machine = LinkMachine(
                is_dialler=False,
                acceptor_id=ACCEPTOR.node_id,
                signer=None,
                nonce=self._nonce,
                limits=self.limits,
                now=self.now,
                refusal=self._refusal,
            )
            self._make(1, connection, machine)
        assert side.link is not None
        self.delivered[index] += len(datagram)
        side.link.receive(datagram, max(1, len(datagram)), sender, self.now)
        side.link.process(self.now)
        side.link.notify_writable()
        side.handler.on_batch_end()

    def flush(self) -> None:
        """Send what both sides have to send."""
        while self.dirty:
            self._flush_side(self.dirty.pop())

    def _flush_side(self, index: int) -> None:
        side = self.sides[index]
        link = side.link
        if link is None or side.reported:
            return
        for _ in range(64):
            packets = link.transmit(self.now, 64)
            for packet in packets:
                self._post(index, packet[0])
            link.notify_writable()
            if len(packets) < 64:
                break
        if link.end is not None:
            side.reported = True
            link.report_end()

    def _post(self, index: int, packet: bytes) -> None:
        for datagram in self.filter(index, packet):
            leaves = self.now
            if self.rate is not None:
                leaves = max(self.now, self._free[index])
                if leaves - self.now > self.queue_s:
                    continue
                leaves += len(datagram) / self.rate
                self._free[index] = leaves
            entry = (leaves + self.delay_s, next(self._sequence), 1 - index, datagram, self.addresses[index])
            heapq.heappush(self._queue, entry)

    def step(self) -> bool:
        """Go to the next thing that happens; False when nothing will."""
        times = [self._queue[0][0]] if self._queue else []
        for side in self.sides:
            due = side.link.next_timeout() if side.link is not None and not side.reported else None
            if due is not None:
                times.append(due)
        if not times:
            return False
        before, self.now = self.now, max(self.now, min(times))
        if self.now == before and not (self._queue and self._queue[0][0] <= self.now):
            self.now += TIMER_FLOOR_S  # a timer that rounding keeps from having any effect
        while self._queue and self._queue[0][0] <= self.now:
            _, _, index, datagram, sender = heapq.heappop(self._queue)
            self._arrive(index, datagram, sender)
        for side in self.sides:
            if side.link is not None and not side.reported:
                due = side.link.next_timeout()
                if due is not None and due <= self.now:
                    side.link.handle_timeout(self.now)
                    self.dirty.add(side.index)
        self.flush()
        return True

    def run_until(self, done: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Step until `done`; fails when the clock has advanced by `limit_s`."""
        end = self.now + limit_s
        while not done():
            assert self.step(), f"nothing more happens; {self._state()}"
            assert self.now <= end, f"not done after {limit_s} s; {self._state()}"

    def run_for(self, seconds: float) -> None:
        """Let time pass, with a housekeeping call every second."""
        end = self.now + seconds
        while self.now < end:
            mark = min(end, self.now + 1.0)
            while self.now < mark:
                before = self.now
                if not self.step() or self.now > mark:
                    self.now = max(before, min(self.now, mark)) if self.now <= mark else self.now
                    if self.now < mark:
                        self.now = mark
            for side in self.sides:
                if side.link is not None and not side.reported:
                    side.link.housekeeping(self.now)
            self.flush()

    def connect(self) -> Pair:
        """Run until both sides are up."""
        self.run_until(lambda: self.both_up)
        return self

    def _state(self) -> str:
        ends = [side.link.end if side.link else None for side in self.sides]
        return f"ups {[side.was_up for side in self.sides]}, ends {ends}, waiting {len(self._queue)}"
