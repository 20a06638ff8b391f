"""Names resolved at the exit: queries through the lease's own circuit, remembered for that circuit alone.

Equal questions asked at the same time on one circuit are asked once. See `overlay.socks.names` for the rules.
"""

from __future__ import annotations

import secrets
import socket
from typing import Protocol
from weakref import WeakKeyDictionary

import trio

from overlay.errors import DecodeError
from overlay.socks.circuits import Destination, Lease
from overlay.socks.names import (
    AAAA,
    NO_SUCH_NAME,
    PTR,
    A,
    Answer,
    NameCache,
    decode_answer,
    encode_query,
    is_local_name,
    order_addresses,
    usable_addresses,
)
from overlay.socks.outcome import Outcome, Reply

DNS_PORT = 53
#: How long each attempt waits, in seconds; a circuit takes some tenths of one.
ATTEMPT_TIMEOUTS_S = (1.5, 2.5, 4.0)
TCP_TIMEOUT_S = 5.0
#: After addresses of one family, how long to wait for the other's (RFC 8305, section 3).
RESOLUTION_DELAY_S = 0.05
_MAX_ANSWER_BYTES = 65535


class Sockets(Protocol):
    """Who makes sockets inside the namespace: `exit.io.namespace.Namespace`, or a test's loopback ones."""

    def try_socket(self, family: int, kind: int) -> socket.socket | None:
        """Return a non-blocking, unbound socket if one is ready."""

    def take_ready(self, family: int, kind: int, at_most: int) -> list[int]:
        """Return descriptors of such sockets as are ready, perhaps none; the caller closes them."""

    async def new_socket(self, family: int, kind: int) -> socket.socket:
        """Return one, waiting if need be. Raises EnvError when the namespace is gone."""


class LookupFailed(Exception):  # noqa: N818 - an outcome, not a fault
    """The name has no usable address; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        """Keep the outcome."""
        super().__init__(outcome.text)
        self.outcome = outcome


class Resolver:
    """Looks names up and remembers them per circuit."""

    __slots__ = ("_caches", "_dns_port", "_in_flight", "_sockets", "queries")

    def __init__(self, sockets: Sockets, dns_port: int = DNS_PORT) -> None:
        """Use sockets of this namespace; `dns_port` is for tests."""
        self._dns_port = dns_port
        self._sockets = sockets
        self._caches: WeakKeyDictionary[object, NameCache] = WeakKeyDictionary()
        self._in_flight: dict[tuple[int, str, tuple[int, ...]], trio.Event] = {}
        #: Lookups sent, for the status.
        self.queries = 0

    def known(self, lease: Lease, destination: Destination, now: float) -> list[str] | None:
        """Return the addresses to try, if no query is needed to tell; None if one is.

        Raises LookupFailed when it is known that there are none.
        """
        has_ipv6 = lease.source_v6 is not None
        if destination.ip_version:
            addresses = usable_addresses(destination, has_ipv6=has_ipv6)
            if not addresses:
                raise LookupFailed(Outcome(Reply.NETWORK_UNREACHABLE, "This exit has no IPv6."))
            return addresses
        if is_local_name(destination.host):
            raise LookupFailed(Outcome(Reply.HOST_UNREACHABLE, "This name means nothing at the exit."))
        cache = self._caches.get(lease.circuit)
        if cache is None:
            return None
        v4 = cache.get(destination.host, A, now)
        if v4 is None:
            return None
        v6 = cache.get(destination.host, AAAA, now) if has_ipv6 else None
        if has_ipv6 and v6 is None and not v4.found:
            return None
        # Otherwise a missing AAAA came too late or not at all the last time, and what is known will do.
        return _addresses(v4, v6)

    def known_for(self, lease: Lease, host: str, now: float) -> float:
        """Return for how many seconds the same `known` would give for a name; 0 or less for none."""
        cache = self._caches.get(lease.circuit)
        if cache is None:
            return 0.0
        lives = [cache.good_for(host, A, now)]
        if lease.source_v6 is not None and cache.get(host, AAAA, now) is not None:
            lives.append(cache.good_for(host, AAAA, now))
        return min(lives)

    async def addresses(self, lease: Lease, destination: Destination) -> list[str]:
        """Return the addresses to try, in order, at least one. Raises LookupFailed."""
        kinds: tuple[int, ...] = (A,) if lease.source_v6 is None else (A, AAAA)
        while True:
            known = self.known(lease, destination, trio.current_time())
            if known is not None:
                return known
            answers = await self._ask_once(lease, destination.host, kinds)
            if answers is not None:
                return _addresses(answers.get(A), answers.get(AAAA))

    async def name(self, lease: Lease, address: str) -> str:
        """Return the name of an address. Raises LookupFailed."""
        while True:
            answers = await self._ask_once(lease, address, (PTR,))
            if answers is not None:
                answer = answers.get(PTR) or _NO_ANSWER
                if answer.found:
                    return answer.found[0]
                raise LookupFailed(Outcome(answer.reply, "This address has no name."))

    async def _ask_once(self, lease: Lease, host: str, kinds: tuple[int, ...]) -> dict[int, Answer] | None:
        """Ask, unless the same is being asked: then wait for that and return None, to look again."""
        key = (id(lease.circuit), host, kinds)
        asked = self._in_flight.get(key)
        if asked is not None:
            await asked.wait()
            return None
        done = self._in_flight[key] = trio.Event()
        try:
            answers = await self._ask(lease, host, kinds)
            cache = self._caches.get(lease.circuit)
            if cache is None:
                cache = self._caches[lease.circuit] = NameCache()
            for kind, answer in answers.items():
                cache.put(host, kind, answer, trio.current_time())
            return answers
        finally:
            del self._in_flight[key]
            done.set()

    async def _ask(self, lease: Lease, host: str, kinds: tuple[int, ...]) -> dict[int, Answer]:
        queries = {kind: encode_query(host, kind, secrets.randbelow(1 << 16)) for kind in kinds}
        open_queries = {kind: query for kind, query in queries.items() if query is not None}
        answers = {kind: NO_SUCH_NAME for kind, query in queries.items() if query is None}
        self.queries += len(open_queries)
        try:
            with await self._sockets.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((lease.source_v4, 0))
                sock.connect((lease.dns_v4, self._dns_port))
                for timeout_s in ATTEMPT_TIMEOUTS_S:
                    for query in open_queries.values():
                        sock.send(query)
                    await _collect(sock, open_queries, answers, timeout_s)
                    if not open_queries or any(answer.found for answer in answers.values()):
                        break
        except OSError:
            pass  # the circuit's address is gone, or the exit's DNS refused: no answer
        for kind, answer in list(answers.items()):
            asked = queries[kind]
            if answer.is_truncated and asked is not None:
                answers[kind] = await self._ask_over_tcp(lease, asked)
        return answers

    async def _ask_over_tcp(self, lease: Lease, query: bytes) -> Answer:
        try:
            with (
                trio.move_on_after(TCP_TIMEOUT_S),
                await self._sockets.new_socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
            ):
                sock.bind((lease.source_v4, 0))
                stream = trio.socket.from_stdlib_socket(sock)
                await stream.connect((lease.dns_v4, self._dns_port))
                await stream.send(len(query).to_bytes(2, "big") + query)
                data = b""
                while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                    more = await stream.recv(_MAX_ANSWER_BYTES)
                    if not more:
                        return _NO_ANSWER
                    data += more
                answer = decode_answer(data[2 : 2 + int.from_bytes(data[:2], "big")], query)
                return _NO_ANSWER if answer.is_truncated else answer
        except (OSError, DecodeError):
            pass
        return _NO_ANSWER


_NO_ANSWER = Answer((), 0.0)


def _addresses(v4: Answer | None, v6: Answer | None) -> list[str]:
    found = order_addresses(v6.found if v6 else (), v4.found if v4 else ())
    if found:
        return found
    if v4 is None and v6 is None:
        raise LookupFailed(Outcome(Reply.HOST_UNREACHABLE, "The exit's DNS did not answer."))
    reply = (v4 or v6 or _NO_ANSWER).reply
    if reply is Reply.NOT_ALLOWED:
        raise LookupFailed(
            Outcome(reply, "The exit does not resolve this name, or not to an address it allows.")
        )
    raise LookupFailed(Outcome(reply, "The name does not exist or has no address."))


async def _collect(
    sock: socket.socket, open_queries: dict[int, bytes], answers: dict[int, Answer], timeout_s: float
) -> None:
    """Take in answers until all are there, or the time is up."""
    with trio.move_on_after(timeout_s) as scope:
        while open_queries:
            await trio.lowlevel.wait_readable(sock)
            wire = sock.recv(_MAX_ANSWER_BYTES)
            for kind, query in list(open_queries.items()):
                try:
                    answers[kind] = decode_answer(wire, query)
                except DecodeError:
                    continue
                del open_queries[kind]
                if answers[kind].found:
                    scope.deadline = min(scope.deadline, trio.current_time() + RESOLUTION_DELAY_S)
                break
