"""Lookups for the exit's DNS: asks other resolvers and shares what they say. Owns sockets and lookups in
flight.

What is decided is decided elsewhere: `exit.dns.rules` (refusals), `exit.dns.cache` (what is known),
`exit.dns.answers` (filters), `exit.dns.upstream` (whom to ask). Names are never logged. Questions become one
lookup each, shared by all who ask the same at the time; each try has a socket of its own, so that its port is
random, and a random id.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import trio

from exit.denied import DenyList
from exit.dns.answers import Answer, decode_response, failure, finish_answer, start_answer
from exit.dns.cache import Cache, Entry, Key
from exit.dns.query import (
    ExtendedError,
    Query,
    Rcode,
    answers_question,
    decode_query,
    encode_reply,
    encode_upstream,
    is_truncated,
)
from exit.dns.rules import Rules
from exit.dns.upstream import DEADLINE_S, Order, Upstream, parse_resolv_conf
from exit.errors import DecodeError, EnvError

RESOLV_CONF = Path("/etc/resolv.conf")
#: Lookups in flight; each holds a socket.
MAX_LOOKUPS = 256
#: How often the system's list of resolvers is looked at, at most.
RELOAD_S = 5.0
_COMPLAINT_EVERY_S = 60.0
_MAX_MESSAGE_BYTES = 65_535

_log = structlog.get_logger("exit.dns")


class Resolver:
    """Answers questions, from the cache or from other resolvers. `start` it before the first lookup."""

    def __init__(
        self,
        rules: Rules,
        deny: Callable[[], DenyList],
        upstreams: Sequence[Upstream] = (),
        *,
        cache: Cache | None = None,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        """Ask `upstreams`, or the system's resolvers if there are none; `deny()` is the deny list of the
        moment.

        Raises EnvError if neither names a resolver.
        """
        self._nursery: trio.Nursery | None = None
        self._rules = rules
        self._deny = deny
        self._order = Order()
        self._order.replace(upstreams)
        self._resolv_conf = None if upstreams else resolv_conf
        self._looked_s = trio.current_time()
        self._modified_ns = 0
        self.cache = Cache() if cache is None else cache
        self._lookups: dict[Key, _Lookup] = {}
        self._complained_s: float | None = None
        #: Lookups that ended without an answer.
        self.failures = 0
        if self._resolv_conf is not None:
            self._reload()
            if not self._order.attempts(0.0):
                raise EnvError(
                    f"no DNS resolver: {resolv_conf} names none that can be used;"
                    " name some in the configuration, for example 9.9.9.9"
                )

    def start(self, nursery: trio.Nursery) -> None:
        """Run lookups in this nursery; they end with it."""
        self._nursery = nursery

    def answer_now(self, query: Query, limit_bytes: int) -> bytes | None:
        """Return the reply that needs no lookup: a refusal or a known answer; else None."""
        ruling = self._rules.judge(query, self._deny())
        if ruling is not None:
            return encode_reply(query, ruling.rcode, limit_bytes=limit_bytes, error=ruling.error)
        now = trio.current_time()
        entry = self.cache.get(query.key, now)
        return None if entry is None else entry.reply(query, now, limit_bytes)

    def try_wire(self, wire: bytes) -> bytes | None:
        """Return the reply to a UDP question that needs no lookup, or None; for a path that skips the
        sockets.
        """
        try:
            query = decode_query(wire)
        except DecodeError:
            return None
        return self.answer_now(query, query.udp_limit_bytes)

    async def answer(self, query: Query, limit_bytes: int) -> bytes | None:
        """Return the reply to a question that `answer_now` has none for; None if too many are in flight.

        A cancelled caller leaves the lookup running, for whoever else waits and for the cache.
        """
        key = query.key
        lookup = self._lookups.get(key)
        if lookup is None:
            if self._nursery is None or len(self._lookups) >= MAX_LOOKUPS:
                return None
            lookup = self._lookups[key] = _Lookup()
            self._nursery.start_soon(self._look_up, query, lookup)
        await lookup.done.wait()
        entry = lookup.entry
        return None if entry is None else entry.reply(query, trio.current_time(), limit_bytes)

    async def _look_up(self, query: Query, lookup: _Lookup) -> None:
        entry = None
        try:
            with trio.move_on_after(DEADLINE_S):
                entry = await self._resolve(query)
        except Exception as error:
            # Whatever a resolver sends must not end the node; the name stays out of the log.
            _log.error("dns_lookup_broke", error=type(error).__name__)
        finally:
            if entry is None:
                self.failures += 1
                self._complain()
                entry = failure(Rcode.SERVFAIL, ExtendedError.NO_REACHABLE_AUTHORITY, trio.current_time())
            self.cache.put(query.key, entry)
            lookup.entry = entry
            self._lookups.pop(query.key, None)
            lookup.done.set()

    async def _resolve(self, query: Query) -> Entry | None:
        self._reload()
        answer = start_answer(query.name)
        while not answer.is_complete:
            if not await self._ask(query, answer):
                return None
        with contextlib.suppress(DecodeError):
            return finish_answer(
                answer,
                query.name,
                query.qtype,
                self._deny(),
                has_ipv6=self._rules.has_ipv6,
                now=trio.current_time(),
            )
        return None

    async def _ask(self, query: Query, answer: Answer) -> bool:
        """Ask about the answer's tail until a resolver says something useful; tell whether one did."""
        name = answer.tail.to_wire()
        assert name is not None
        for upstream, patience_s in self._order.attempts(trio.current_time()):
            asked = encode_upstream(query, name, secrets.randbits(16))
            wire = None
            with trio.move_on_after(patience_s), contextlib.suppress(OSError):
                wire = await _exchange_udp(upstream, asked)
                if is_truncated(wire):
                    wire = await _exchange_tcp(upstream, asked)
            if wire is None:
                self._order.failed(upstream, trio.current_time())
                continue
            self._order.answered(upstream)
            with contextlib.suppress(DecodeError):
                decode_response(wire, answer, query.qtype, query.wants_dnssec)
                return True
        return False

    def _reload(self) -> None:
        """Read the system's list again if it changed; an empty or unreadable one changes nothing."""
        now = trio.current_time()
        if self._resolv_conf is None or (self._modified_ns and now - self._looked_s < RELOAD_S):
            return
        self._looked_s = now
        try:
            modified_ns = self._resolv_conf.stat().st_mtime_ns
            if modified_ns == self._modified_ns:
                return
            upstreams = parse_resolv_conf(self._resolv_conf.read_text(errors="replace"))
        except OSError:
            return
        if upstreams:
            self._modified_ns = modified_ns
            self._order.replace(upstreams)

    def _complain(self) -> None:
        now = trio.current_time()
        if self._complained_s is None or now - self._complained_s >= _COMPLAINT_EVERY_S:
            self._complained_s = now
            _log.warning(
                "dns_lookups_fail", failures=self.failures, hint="are the exit's resolvers reachable?"
            )


class _Lookup:
    """A lookup in flight, shared by those who wait for it."""

    __slots__ = ("done", "entry")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.entry: Entry | None = None


async def _exchange_udp(upstream: Upstream, asked: bytes) -> bytes:
    """Send the question from a fresh socket, and so from a random port, and return the first fitting
    response.
    """
    with trio.socket.socket(_family(upstream), socket.SOCK_DGRAM) as sock:
        await sock.connect(_address(upstream))
        await sock.send(asked)
        while True:
            wire = await sock.recv(_MAX_MESSAGE_BYTES)
            if answers_question(wire, asked):
                return wire


async def _exchange_tcp(upstream: Upstream, asked: bytes) -> bytes:
    """Ask over TCP; raises OSError when the resolver does not play along."""
    with trio.socket.socket(_family(upstream), socket.SOCK_STREAM) as sock:
        await sock.connect(_address(upstream))
        stream = trio.SocketStream(sock)
        try:
            await stream.send_all(struct.pack(">H", len(asked)) + asked)
            wire = await receive_message(stream)
        except (trio.BrokenResourceError, EOFError) as error:
            raise OSError("the resolver closed the connection") from error
        if not answers_question(wire, asked):
            raise OSError("the resolver answered something else")
        return wire


async def receive_message(stream: trio.SocketStream, limit_bytes: int = _MAX_MESSAGE_BYTES) -> bytes:
    """Read one message with its length in front; EOFError at the end of the stream and beyond the limit."""
    received = bytearray()
    wanted = 2
    while len(received) < wanted:
        piece = await stream.receive_some(wanted - len(received))
        if not piece:
            raise EOFError
        received += piece
        if wanted == 2 and len(received) == 2:
            wanted += int.from_bytes(received, "big")
            if wanted > 2 + limit_bytes:
                raise EOFError
    return bytes(received[2:])


def _family(upstream: Upstream) -> socket.AddressFamily:
    return socket.AF_INET6 if upstream.version == 6 else socket.AF_INET


def _address(upstream: Upstream) -> tuple[str | int, ...]:
    host, _, scope = upstream.host.partition("%")
    if upstream.version == 4:
        return host, upstream.port
    return host, upstream.port, 0, (socket.if_nametoindex(scope) if scope else 0)
