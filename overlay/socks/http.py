"""HTTP CONNECT as a machine, on h11: one request head in, one answer out.

Only CONNECT is a proxy request here. A browser that was pointed at the port as a web page, or a client
that asks for plain proxying, gets a page that says what this is. `Proxy-Authorization` chooses an
isolated circuit, like a SOCKS5 user name; any is accepted. The head is at most 8 KiB.
"""

from __future__ import annotations

import base64
import binascii
import re

import h11

from overlay.socks.circuits import NO_ISOLATION, Destination, Isolation, isolation_of, parse_destination
from overlay.socks.events import Close, Connect, Established, Event, Send
from overlay.socks.outcome import HTTP_STATUS, Outcome, Reply

MAX_HEAD_BYTES = 8192

_HEAD_END = re.compile(rb"\n\r?\n")

_HELP = """This is a hopfare proxy, not a web page.

Set it as the SOCKS5 proxy of your browser (with names resolved by the proxy), or as its HTTPS proxy.
Plain http:// pages need the SOCKS5 setting: here only the CONNECT method is supported.
On the command line: curl --proxy socks5h://HOST:PORT https://example.com/
"""


class HttpMachine:
    """One client's CONNECT. After `Established` or `Close` it takes no more bytes."""

    __slots__ = ("_buffer", "_is_done", "_is_waiting")

    def __init__(self) -> None:
        """Start with the client's first byte still to come."""
        self._buffer = bytearray()
        self._is_waiting = False
        self._is_done = False

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes of the client, any number; return what to do."""
        if self._is_done:
            return []
        self._buffer += data
        if self._is_waiting:
            return []
        # We cut out the head ourselves so that the answer does not depend on how the bytes were split.
        end = _HEAD_END.search(self._buffer, 0, MAX_HEAD_BYTES)
        if end is None:
            if len(self._buffer) < MAX_HEAD_BYTES:
                return []
            return self._answer(431, "The request is too long", _HELP)
        head = bytes(self._buffer[: end.end()])
        del self._buffer[: end.end()]
        connection = h11.Connection(h11.SERVER)
        try:
            connection.receive_data(head)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            return self._answer(400, "The request cannot be understood", _HELP)
        if not isinstance(request, h11.Request):
            return self._answer(400, "The request cannot be understood", _HELP)
        if request.method == b"CONNECT":
            return self._connect(request)
        if request.target.startswith(b"/"):
            return self._answer(400, "Not a proxy request", _HELP)
        return self._answer(501, "Only CONNECT is supported", _HELP)

    def finish(self, outcome: Outcome) -> list[Event]:
        """Answer the request that `receive` returned."""
        if not self._is_waiting:
            return []
        self._is_waiting = False
        if outcome.reply is not Reply.SUCCEEDED:
            status, title = HTTP_STATUS[outcome.reply]
            return self._answer(status, title, outcome.text)
        self._is_done = True
        return [Send(b"HTTP/1.1 200 Connection established\r\n\r\n"), Established(bytes(self._buffer))]

    def _connect(self, request: h11.Request) -> list[Event]:
        destination = _parse_target(request.target)
        if destination is None:
            return self._answer(400, "CONNECT needs HOST:PORT", _HELP)
        isolation = NO_ISOLATION
        for name, value in request.headers:
            if name == b"proxy-authorization":
                isolation = _isolation(bytes(value))
        self._is_waiting = True
        return [Connect(destination, isolation)]

    def _answer(self, status: int, title: str, text: str) -> list[Event]:
        self._is_done = True
        body = f"{title}.\n\n{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return [Send(head.encode("ascii", "replace") + body), Close(f"http {status}")]


def _parse_target(target: bytes) -> Destination | None:
    """Read `HOST:PORT` or `[IPV6]:PORT`; None when it is neither."""
    try:
        host, colon, port_text = target.decode("ascii").rpartition(":")
    except UnicodeDecodeError:
        return None
    if not colon or not port_text.isdigit() or len(port_text) > 5 or not 0 < int(port_text) < 65536:
        return None
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return None
    return parse_destination(host, int(port_text))


def _isolation(header: bytes) -> Isolation:
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            user, _, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        except binascii.Error:
            return isolation_of(header, b"")
        return isolation_of(user, password)
    return isolation_of(header, b"")
