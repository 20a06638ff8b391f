"""A page through a SOCKS5 proxy, timed, for the demo's own account of it."""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from dataclasses import dataclass

from overlay.demo.box import LabError

TIMEOUT_S = 60.0
_MAX_HEAD_BYTES = 65536
_KEPT_BYTES = 65536
# RFC 1928, section 6
_REPLIES = {
    1: "the proxy failed",
    2: "the proxy's rules do not allow it",
    3: "the network cannot be reached",
    4: "there is no such host, or it cannot be reached",
    5: "the connection was refused",
    6: "it took too long",
    7: "the proxy does not do that",
    8: "the proxy does not know that kind of address",
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page, or the figures of a long one (only its first 64 KiB are kept)."""

    status: int
    body: bytes
    size_bytes: int
    sha256: str
    connected_s: float  # until the proxy said that the connection is there
    first_byte_s: float  # from the request on a connection that is there to the first byte of the answer
    total_s: float

    @property
    def text(self) -> str:
        """The kept part of the body as text, stripped."""
        return self.body.decode(errors="replace").strip()

    @property
    def bytes_per_s(self) -> float:
        """Speed of the body, from the request on."""
        return self.size_bytes / max(self.total_s - self.connected_s, 1e-9)


def fetch(proxy: tuple[str, int], host: str, path: str, *, port: int = 80, user: str = "") -> Fetched:
    """GET http://host:port/path through the SOCKS5 proxy, which gets the name.

    `user` is a name for the proxy, for a circuit of its own. Raises LabError with one sentence.
    """
    begun = time.perf_counter()
    try:
        with socket.create_connection(proxy, TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _socks(connection, host, port, user)
            connected = time.perf_counter()
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            return _receive(connection, begun, connected)
    except OSError as error:
        raise LabError(f"http://{host}{path} through the proxy failed: {error}") from error


def _socks(connection: socket.socket, host: str, port: int, user: str) -> None:
    method = 2 if user else 0
    connection.sendall(bytes((5, 1, method)))
    if _exactly(connection, 2)[1] != method:
        raise ConnectionError("the proxy refused the greeting")
    if user:
        name = user.encode()
        connection.sendall(bytes((1, len(name))) + name + b"\x01x")
        if _exactly(connection, 2)[1]:
            raise ConnectionError("the proxy refused the user name")
    name = host.encode("idna")
    connection.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + struct.pack(">H", port))
    code, _, kind = _exactly(connection, 4)[1:]
    _exactly(connection, {1: 6, 4: 18}.get(kind, 6))
    if code:
        raise ConnectionError(_REPLIES.get(code, f"the proxy answered {code}"))


def _receive(connection: socket.socket, begun: float, connected: float) -> Fetched:
    received = connection.recv(65536)
    first = time.perf_counter()
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        if not data or len(received) > _MAX_HEAD_BYTES:
            raise ConnectionError("the answer is not HTTP")
        received += data
    head, _, data = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    expected = None
    for line in head.split(b"\r\n")[1:]:
        if line.lower().startswith(b"content-length:"):
            expected = int(line.partition(b":")[2])
    digest, kept, size = hashlib.sha256(), b"", 0
    while True:
        digest.update(data)
        size += len(data)
        if len(kept) < _KEPT_BYTES:
            kept += data[: _KEPT_BYTES - len(kept)]
        if size == expected:
            break
        data = connection.recv(1 << 18)
        if not data:
            break
    if expected is not None and size != expected:
        raise ConnectionError(f"the answer broke off after {size} of {expected} bytes")
    done = time.perf_counter()
    return Fetched(status, kept, size, digest.hexdigest(), connected - begun, first - connected, done - begun)


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = connection.recv(size - len(received))
        if not data:
            raise ConnectionError("the proxy closed the connection")
        received += data
    return received
