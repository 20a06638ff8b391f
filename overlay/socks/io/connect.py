"""Making an outgoing connection: one attempt per address, a quarter of a second apart, the first to
succeed wins (RFC 8305). Owns the sockets of the attempts and what their failures mean; does not choose
circuit or addresses.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from overlay.socks.circuits import Lease
from overlay.socks.io.poller import BROKEN, HUNG_UP, WRITABLE
from overlay.socks.outcome import Outcome, Reply

if TYPE_CHECKING:
    from overlay.socks.io.server import ProxyServer

#: Between the starts of two attempts (RFC 8305, section 5).
ATTEMPT_DELAY_S = 0.25
#: How long the last packet of TCP's handshake waits for the client's first data to go with it: most clients
#: speak first, and it is a packet less through all relays. A server that speaks first waits so much longer.
SILENT_S = 0.02

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_SOCK_EXTENDED_ERR = struct.Struct("=IBBBxII")
_ICMP_UNREACHABLE, _ICMP_TIME_EXCEEDED = 3, 11
_ICMP_PROHIBITED = frozenset({9, 10, 13})  # network, host, communication administratively prohibited
_ICMP6_UNREACHABLE, _ICMP6_TIME_EXCEEDED = 1, 3
_ICMP6_PROHIBITED = frozenset({1, 5, 6})

_REPLIES = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.TTL_EXPIRED,
    errno.EACCES: Reply.NOT_ALLOWED,
    errno.EPERM: Reply.NOT_ALLOWED,
}
# When all attempts fail, the most telling failure is reported.
_TELLING = (
    Reply.NOT_ALLOWED,
    Reply.CONNECTION_REFUSED,
    Reply.HOST_UNREACHABLE,
    Reply.NETWORK_UNREACHABLE,
    Reply.TTL_EXPIRED,
    Reply.GENERAL_FAILURE,
)


class Race:
    """Attempts to reach one destination. Calls `on_won` with a connected socket and the event bits of
    that moment, or `on_lost` with the outcome, once; never after `cancel`.
    """

    __slots__ = (
        "_addresses",
        "_attempts",
        "_failures",
        "_is_over",
        "_lease",
        "_on_lost",
        "_on_won",
        "_port",
        "_server",
    )

    def __init__(
        self,
        server: ProxyServer,
        lease: Lease,
        addresses: list[str],
        port: int,
        on_won: Callable[[socket.socket, int], None],
        on_lost: Callable[[Outcome], None],
    ) -> None:
        """Prepare; `start` begins. `addresses` (at least one) are tried in order."""
        self._server = server
        self._lease = lease
        self._addresses = addresses[::-1]
        self._port = port
        self._on_won = on_won
        self._on_lost = on_lost
        self._attempts: list[socket.socket] = []
        self._failures: list[Reply] = []
        self._is_over = False

    def start(self) -> None:
        """Begin the next attempt; begin the one after it when this fails or takes long."""
        if self._is_over or not self._addresses:
            return
        address = self._addresses.pop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self._server.sockets.try_socket(family, socket.SOCK_STREAM)
        if sock is None:
            self._server.spawn(self._start_later, family, address)
        else:
            self._attempt(sock, address)

    def adopt(self, attempts: Sequence[tuple[str, socket.socket]]) -> None:
        """Go on, instead of `start`, with attempts that were begun already (address and socket each)."""
        for address, sock in attempts:
            self._attempts.append(sock)
            self._server.poller.add(sock.fileno(), partial(self._on_event, sock, address))
        if not attempts:
            self.start()
        elif self._addresses:
            self._server.attempts.add(self.start)

    def cancel(self) -> None:
        """Give up all attempts."""
        self._is_over = True
        for sock in self._attempts:
            self._server.poller.forget(sock.fileno())
            sock.close()
        self._attempts.clear()

    async def _start_later(self, family: int, address: str) -> None:
        try:
            sock = await self._server.sockets.new_socket(family, socket.SOCK_STREAM)
        except Exception:  # the namespace is gone, or out of descriptors: every attempt will say so
            self._fail(Reply.GENERAL_FAILURE)
            return
        if self._is_over:
            sock.close()
        else:
            self._attempt(sock, address)

    def _attempt(self, sock: socket.socket, address: str) -> None:
        source = self._lease.source_v6 if sock.family == socket.AF_INET6 else self._lease.source_v4
        try:
            sock.bind((source, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            code = sock.connect_ex((address, self._port))
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._fail(_REPLIES.get(code, Reply.GENERAL_FAILURE))
            return
        self._attempts.append(sock)
        self._server.poller.add(sock.fileno(), partial(self._on_event, sock, address))
        if self._addresses:
            self._server.attempts.add(self.start)

    def _on_event(self, sock: socket.socket, address: str, events: int) -> None:
        if self._is_over or not events & (WRITABLE | BROKEN | HUNG_UP):
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._attempts.remove(sock)
        if code:
            reply = _reply_of(sock, code)
            self._server.poller.forget(sock.fileno())
            sock.close()
            if reply is Reply.NOT_ALLOWED:
                self._lease.note_refused(address, self._port)
            self._fail(reply)
            return
        self.cancel()
        self._lease.note_opened(self._port)
        # From here on an ICMP message is a hint again and ends nothing.
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 0)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 0)
        self._on_won(sock, events)

    def _fail(self, reply: Reply) -> None:
        if self._is_over:
            return
        self._failures.append(reply)
        if self._addresses:
            self.start()
        elif not self._attempts:
            self._is_over = True
            reply = min(self._failures, key=_TELLING.index)
            self._on_lost(Outcome(reply))


def _reply_of(sock: socket.socket, code: int) -> Reply:
    """Return what a failed connect means, by the ICMP message behind it if there was one."""
    try:
        _, ancillary, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    except OSError:
        ancillary = []
    for _, _, data in ancillary:
        if len(data) < _SOCK_EXTENDED_ERR.size:
            continue
        _, origin, kind, detail, _, _ = _SOCK_EXTENDED_ERR.unpack_from(data)
        if origin == _ORIGIN_ICMP:
            if kind == _ICMP_UNREACHABLE and detail in _ICMP_PROHIBITED:
                return Reply.NOT_ALLOWED
            if kind == _ICMP_TIME_EXCEEDED:
                return Reply.TTL_EXPIRED
        elif origin == _ORIGIN_ICMP6:
            if kind == _ICMP6_UNREACHABLE and detail in _ICMP6_PROHIBITED:
                return Reply.NOT_ALLOWED
            if kind == _ICMP6_TIME_EXCEEDED:
                return Reply.TTL_EXPIRED
    return _REPLIES.get(code, Reply.GENERAL_FAILURE)


def acknowledge(sock: socket.socket) -> None:
    """Have what a new connection has received acknowledged now, if it has not been."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a reset, so that the other side learns that something is missing."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


_LINGER_RESET = struct.pack("ii", 1, 0)
