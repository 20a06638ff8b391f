"""Cost of the SOCKS5 proxy by itself: connections per second, CPU time per connection, bulk speed.

Circuits and the namespace are replaced by plain loopback sockets, so what is measured is the proxy and
the kernel's loopback. The proxy runs in a process of its own; client and web server in others, and their
CPU time is not counted. Prints one line per figure, or JSON with --json.

    .venv/bin/python bench/socks.py [--seconds 2] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Channel
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from overlay.socks.circuits import Destination, Isolation
from overlay.socks.io.listeners import open_listeners
from overlay.socks.io.server import serve_proxy

BULK_BYTES = 1 << 30
BODY = b"x" * 512
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class LoopbackLease:
    circuit = type("Circuit", (), {})()
    source_v4 = "127.0.0.1"
    source_v6 = None
    dns_v4 = "127.0.0.1"

    def watch(self, on_closed: Callable[[], None]) -> None: ...
    def note_opened(self, port: int) -> None: ...
    def note_refused(self, host: str, port: int) -> None: ...
    def release(self) -> None: ...


class LoopbackCircuits:
    def lease_now(self, isolation: Isolation, destination: Destination) -> LoopbackLease:
        return LoopbackLease()

    async def lease(self, isolation: Isolation, destination: Destination) -> LoopbackLease:
        return LoopbackLease()


class LoopbackSockets:
    def take_ready(self, family: int, kind: int, at_most: int) -> list[int]:
        return [self.try_socket(family, kind).detach() for _ in range(at_most)]

    def try_socket(self, family: int, kind: int) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock

    async def new_socket(self, family: int, kind: int) -> socket.socket:
        return self.try_socket(family, kind)


def proxy_process(channel: Channel, profile: str | None) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                serve_proxy, open_listeners([("127.0.0.1", 0)]), LoopbackCircuits(), LoopbackSockets()
            )
            channel.send(server.addresses[0][1])
            while True:
                await trio.lowlevel.wait_readable(channel.fileno())
                if channel.recv() == "stop":
                    nursery.cancel_scope.cancel()
                    return
                used = resource.getrusage(resource.RUSAGE_SELF)
                channel.send((used.ru_utime + used.ru_stime, used.ru_utime, used.ru_maxrss))

    raise_limit()
    if profile:
        import cProfile

        cProfile.runctx("trio.run(main)", globals(), {"main": main, "trio": trio}, profile)
    else:
        trio.run(main)


def web_process(channel: Channel) -> None:
    """Answer GETs at once; send or swallow BULK_BYTES when asked for /down or /up."""
    raise_limit()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    channel.send(listener.getsockname()[1])
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        client, _ = listener.accept()
                        clients[client.fileno()] = client
                        epoll.register(client, select.EPOLLIN)
                continue
            client = clients.pop(descriptor)
            epoll.unregister(descriptor)
            try:
                request = client.recv(4096)
            except ConnectionResetError:  # what was under way when a run ended
                request = b""
            if not request:
                client.close()
            elif request.startswith(b"GET / "):
                client.send(ANSWER)
                client.close()
            else:
                threading.Thread(target=bulk, args=(client, request)).start()


def bulk(client: socket.socket, request: bytes) -> None:
    client.setblocking(True)
    buffer = bytearray(1 << 18)
    if request.startswith(b"GET /down"):
        for _ in range(BULK_BYTES // len(buffer)):
            client.sendall(buffer)
    else:
        while client.recv_into(buffer):
            pass
        client.send(b"done")
    client.close()


def raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


def dial(proxy_port: int, web_port: int, request: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", proxy_port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.send(b"\x05\x01\x00")
    assert sock.recv(2) == b"\x05\x00"
    sock.send(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + web_port.to_bytes(2, "big"))
    assert sock.recv(10)[1] == 0
    sock.send(request)
    return sock


def sequential(proxy_port: int, web_port: int, seconds: float) -> int:
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with dial(proxy_port, web_port, GET) as sock:
            while sock.recv(4096):
                pass
        count += 1
    return count


def concurrent(proxy_port: int, web_port: int, seconds: float, parallel: int = 64) -> int:
    """Keep `parallel` clients going, each a small state machine on one epoll."""
    epoll = select.epoll()
    states: dict[int, tuple[socket.socket, Iterator[None]]] = {}
    finished = 0
    connect = b"\x05\x01\x00\x01\x7f\x00\x00\x01" + web_port.to_bytes(2, "big")

    def client(sock: socket.socket) -> Iterator[None]:
        sock.send(b"\x05\x01\x00")
        yield
        sock.recv(2)
        sock.send(connect)
        yield
        sock.recv(10)
        sock.send(GET)
        yield
        while sock.recv(4096):
            yield

    def start() -> None:
        sock = socket.create_connection(("127.0.0.1", proxy_port))
        work = client(sock)
        next(work)
        states[sock.fileno()] = (sock, work)
        epoll.register(sock, select.EPOLLIN)

    for _ in range(parallel):
        start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for descriptor, _ in epoll.poll():
            sock, work = states[descriptor]
            try:
                next(work)
            except StopIteration:
                del states[descriptor]
                sock.close()
                finished += 1
                start()
    for sock, _ in states.values():
        sock.close()
    return finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", help="write a cProfile of the proxy to this file")
    parser.add_argument("--only", choices=["sequential", "concurrent", "down", "up"])
    options = parser.parse_args()
    raise_limit()
    context = multiprocessing.get_context("fork")
    proxy, proxy_end = context.Pipe()
    web, web_end = context.Pipe()
    processes = [
        context.Process(target=proxy_process, args=(proxy_end, options.profile), daemon=True),
        context.Process(target=web_process, args=(web_end,), daemon=True),
    ]
    for process in processes:
        process.start()
    proxy_port, web_port = proxy.recv(), web.recv()

    def cpu_s() -> float:
        proxy.send("usage")
        return float(proxy.recv()[0])

    results: dict[str, float] = {}
    for name, run in (("sequential", sequential), ("concurrent", concurrent)):
        if options.only not in (None, name):
            continue
        before, start = cpu_s(), time.monotonic()
        count = run(proxy_port, web_port, options.seconds)
        results[f"{name}_per_s"] = count / (time.monotonic() - start)
        results[f"{name}_cpu_us"] = (cpu_s() - before) / count * 1e6
    buffer = bytearray(1 << 18)
    for name in ("down", "up"):
        if options.only not in (None, name):
            continue
        before, start = cpu_s(), time.monotonic()
        with dial(proxy_port, web_port, b"GET /%s HTTP/1.1\r\n\r\n" % name.encode()) as sock:
            if name == "up":
                time.sleep(0.1)  # let the web server tell request from body
                for _ in range(BULK_BYTES // len(buffer)):
                    sock.sendall(buffer)
                sock.shutdown(socket.SHUT_WR)
            while sock.recv_into(buffer):
                pass
        elapsed = time.monotonic() - start
        results[f"{name}_mb_per_s"] = BULK_BYTES / 1e6 / elapsed
        results[f"{name}_cpu_s_per_gb"] = (cpu_s() - before) / (BULK_BYTES / 1e9)
    proxy.send("usage")
    results["resident_mb"] = proxy.recv()[2] / 1024
    proxy.send("stop")
    processes[0].join(5)
    for process in processes:
        process.terminate()
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:24} {value:10.1f}")
    os._exit(0)


if __name__ == "__main__":
    main()
