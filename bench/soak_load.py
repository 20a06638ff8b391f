"""The load of `bench/soak`: a program for the client's namespace. Downloads, small GETs, UDP, new circuits.

    soak_load.py SECONDS MB_PER_S GETS_PER_S NEW_CIRCUITS_PER_MINUTE

Each kind is paced by the clock and runs in a thread of its own; a failure is counted and the next one tried.
Prints what was done as JSON, every ten seconds and at the end. Standard library only.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

PROXY = ("127.0.0.1", 1080)
WEB, ECHO = "www.demo.test", "echo.demo.test"
TIMEOUT_S = 30.0
DOWNLOAD_BYTES = 4_000_000
UDP_PER_S = 20.0
UDP_SESSION_S = 30.0
UDP_BYTES = (40, 400, 1200)
RETRY_S = 1.0


class Load:
    """All threads, and what they have done."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.done: Counter[str] = Counter()

    def run(self, kind: str, per_s: float, work: Callable[[int], int]) -> None:
        """Do it at this pace until the end; `work` says how much it has moved."""
        for number in _paced(self.ends, per_s):
            try:
                self.done[f"{kind}_bytes"] += work(number)
                self.done[kind] += 1
            except (OSError, ValueError) as error:
                self.done[f"{kind}_failed"] += 1
                print(json.dumps({"failed": kind, "why": str(error)}), flush=True)
                time.sleep(RETRY_S)

    def udp(self) -> None:
        """Datagrams to an echo service by associations that are renewed."""
        while time.monotonic() < self.ends:
            try:
                self._udp_session(min(self.ends, time.monotonic() + UDP_SESSION_S))
            except (OSError, ValueError) as error:
                self.done["udp_failed"] += 1
                print(json.dumps({"failed": "udp", "why": str(error)}), flush=True)
                time.sleep(RETRY_S)

    def _udp_session(self, ends: float) -> None:
        with (
            _request(3, "0.0.0.0", 0, "udp") as (control, relay),
            socket.socket(type=socket.SOCK_DGRAM) as sock,
        ):
            sock.settimeout(0.0)
            head = b"\0\0\0" + _address(ECHO) + struct.pack(">H", 7)
            for number in _paced(ends, UDP_PER_S):
                sock.sendto(head + bytes(UDP_BYTES[number % len(UDP_BYTES)]), relay)
                self.done["udp"] += 1
                try:
                    while True:
                        self.done["udp_bytes"] += len(sock.recv(65535))
                        self.done["udp_answers"] += 1
                except BlockingIOError:
                    continue
            control.shutdown(socket.SHUT_RDWR)


def _paced(ends: float, per_s: float) -> Iterator[int]:
    number, due = 0, time.monotonic()
    while (now := time.monotonic()) < ends:
        if now < due:
            time.sleep(min(due - now, ends - now))
            continue
        yield number
        number += 1
        # What is late is not made up for: the load is to stay even.
        due = max(due + 1 / per_s, time.monotonic() - 1)


def _address(name: str) -> bytes:
    return bytes((3, len(name))) + name.encode()


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the proxy closed the connection")
        data += more
    return data


class _request:  # noqa: N801 - used like a function
    """A connection to the proxy and the address of its answer; closed at the end of the block."""

    def __init__(self, command: int, host: str, port: int, user: str) -> None:
        self.connection = socket.create_connection(PROXY, TIMEOUT_S)
        try:
            connection = self.connection
            connection.sendall(b"\x05\x01\x02" + bytes((1, len(user))) + user.encode() + b"\x01x")
            _exactly(connection, 4)
            connection.sendall(bytes((5, command, 0)) + _address(host) + struct.pack(">H", port))
            reply = _exactly(connection, 4)
            size = {1: 4, 4: 16}.get(reply[3])
            if reply[1] != 0 or size is None:
                raise ConnectionError(f"the proxy answered {reply[1]}")
            packed = _exactly(connection, size)
            (bound,) = struct.unpack(">H", _exactly(connection, 2))
            self.address = (socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, packed), bound)
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.connection, self.address

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _get(path: str, user: str, rate: float | None = None) -> int:
    """Bytes of the answer; with `rate` read at so many bytes a second at most."""
    with _request(1, WEB, 80, user) as (connection, _):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\n\r\n".encode())
        begun, got, first = time.monotonic(), 0, b""
        while data := connection.recv(1 << 16):
            first = first or data
            got += len(data)
            if rate is not None:
                time.sleep(max(0.0, got / rate - (time.monotonic() - begun)))
        if not first.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise ValueError(f"answered with {first[:20]!r}")
        return got


def _download(rate: float) -> int:
    got = _get(f"/big/{DOWNLOAD_BYTES}", "bulk", rate)
    if got < DOWNLOAD_BYTES:
        raise ValueError(f"{got} of {DOWNLOAD_BYTES} bytes came")
    return got


def main() -> None:
    """Run all threads until the time is over."""
    seconds, rate, gets, circuits = map(float, sys.argv[1:])
    load = Load(seconds)
    works = [
        lambda: load.run("download", 1e3, lambda _: _download(rate * 1e6)),
        lambda: load.run("get", gets, lambda _: _get("/ip", "small")),
        lambda: load.run("circuit", circuits / 60, lambda number: _get("/ip", f"new{number}")),
        load.udp,
    ]
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(10)
        print(json.dumps(load.done), flush=True)


if __name__ == "__main__":
    main()
