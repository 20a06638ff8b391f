"""The proxy's front door as a machine: the first byte decides which protocol a client speaks.

5 is SOCKS5, an upper-case letter an HTTP request; 4 is SOCKS4, which is refused in its own words because
it cannot name a user and its plain form cannot carry names, which would then have been resolved outside.
Anything else is closed without an answer.
"""

from __future__ import annotations

from overlay.socks.events import Close, Event, Send
from overlay.socks.http import HttpMachine
from overlay.socks.outcome import Outcome
from overlay.socks.socks5 import Socks5Machine

_SOCKS4, _SOCKS5 = 4, 5
# VN 0, CD 91 "request rejected or failed", and six bytes that are ignored.
_SOCKS4_REJECTED = b"\x00\x5b" + bytes(6)


class ProxyMachine:
    """One client's handshake in any of the protocols.

    After `Established` or `Close` it takes no more bytes.
    """

    __slots__ = ("_inner", "_is_closed")

    def __init__(self) -> None:
        """Start with the client's first byte still to come."""
        self._inner: Socks5Machine | HttpMachine | None = None
        self._is_closed = False

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes of the client, any number; return what to do."""
        inner = self._inner
        if inner is None:
            if not data or self._is_closed:
                return []
            first = data[0]
            if first == _SOCKS5:
                inner = self._inner = Socks5Machine()
            elif 0x41 <= first <= 0x5A:
                inner = self._inner = HttpMachine()
            else:
                self._is_closed = True
                if first == _SOCKS4:
                    return [Send(_SOCKS4_REJECTED), Close("socks4")]
                return [Close("unknown protocol")]
        return inner.receive(data)

    def finish(self, outcome: Outcome) -> list[Event]:
        """Answer the request (`Connect`, `Associate`, `Resolve`) that `receive` returned."""
        return self._inner.finish(outcome) if self._inner is not None else []
