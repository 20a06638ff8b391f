"""A program for a namespace: uses a SOCKS5 proxy (or the plain network) and prints what came of it as JSON.

    python visitor.py [--proxy HOST:PORT] [--user NAME] COMMAND ...

Standard library only. `--direct` goes without the proxy, for programs that run under `hopfare exec`.
"""

import argparse
import hashlib
import json
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

TIMEOUT_S = 60.0
RESOLVE, RESOLVE_PTR = 0xF0, 0xF1


def address_field(host: str) -> bytes:
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        name = host.encode()
        return bytes((3, len(name))) + name
    return bytes((1 if address.version == 4 else 4,)) + address.packed


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the proxy closed the connection")
        data += more
    return data


def greeting(user: str) -> bytes:
    if not user:
        return b"\x05\x01\x00"
    name = user.encode()
    return b"\x05\x01\x02" + bytes((1, len(name))) + name + b"\x01x"


def request(
    options: argparse.Namespace, command: int, host: str, port: int
) -> tuple[socket.socket, int, str, int]:
    """Connection, reply code, and the address and port of the reply."""
    connection = socket.create_connection(options.proxy, TIMEOUT_S)
    connection.sendall(greeting(options.user))
    assert exactly(connection, 2)[1] == (2 if options.user else 0)
    if options.user:
        assert exactly(connection, 2)[1] == 0
    connection.sendall(bytes((5, command, 0)) + address_field(host) + struct.pack(">H", port))
    _, code, _, kind = exactly(connection, 4)
    if kind == 3:
        text = exactly(connection, exactly(connection, 1)[0]).decode()
    else:
        text = str(ip_address(exactly(connection, 4 if kind == 1 else 16)))
    (bound,) = struct.unpack(">H", exactly(connection, 2))
    return connection, code, text, bound


def connect(options: argparse.Namespace, host: str, port: int) -> socket.socket:
    if options.direct:
        return socket.create_connection((host, port), TIMEOUT_S)
    connection, code, _, _ = request(options, 1, host, port)
    if code:
        raise ConnectionError(f"reply {code}")
    return connection


def resolve(options: argparse.Namespace) -> object:
    _, code, text, _ = request(options, RESOLVE_PTR if options.reverse else RESOLVE, options.host, 0)
    return {"reply": code, "text": text}


def udp(options: argparse.Namespace) -> object:
    """Echoes of many sizes, each asked for up to four times; what came back from where."""
    if options.direct:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_DGRAM)[0]
        head, target, family, control = b"", found[4], found[0], None
    else:
        control, code, host, port = request(options, 3, "0.0.0.0", 0)
        assert code == 0, code
        head = b"\0\0\0" + address_field(options.host) + struct.pack(">H", options.port)
        target, family = (options.proxy[0] if host == "0.0.0.0" else host, port), socket.AF_INET
    good, senders = 0, Counter[str]()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        for number in range(options.count):
            message = b"echo %05d " % number + b"x" * (number * 97 % options.longest)
            for _ in range(4):
                sock.sendto(head + message, target)
                try:
                    answer, sender = sock.recvfrom(65535)
                    while message not in answer:  # of an earlier try
                        answer, sender = sock.recvfrom(65535)
                except TimeoutError:
                    continue
                if answer.endswith(message):
                    good += 1
                    senders[
                        str(ip_address(answer[4:8] if answer[3] == 1 else answer[4:20]))
                        if head
                        else sender[0]
                    ] += 1
                    break
    if control is not None:
        control.close()
    return {"good": good, "from": dict(senders)}


def half_close(options: argparse.Namespace) -> object:
    """Send to an echo server, say that no more comes, and read all that it still has to say."""
    block = bytes(range(256)) * 256
    sent, got = hashlib.sha256(), hashlib.sha256()
    with connect(options, options.host, options.port) as connection:
        connection.settimeout(TIMEOUT_S)

        def send() -> None:
            left = options.size
            while left:
                piece = block[:left]
                connection.sendall(piece)
                sent.update(piece)
                left -= len(piece)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        if not options.talk_first:
            sender.start()
        else:  # everything is sent and the direction closed before the first byte is read
            send()
        size = 0
        while data := connection.recv(1 << 16):
            got.update(data)
            size += len(data)
        if not options.talk_first:
            sender.join()
    return {"bytes": size, "same": sent.digest() == got.digest()}


def slow(options: argparse.Namespace) -> object:
    """Begin a download, stop reading, and go on when the file `go` is there."""
    with connect(options, options.host, options.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(
            f"GET {options.path} HTTP/1.1\r\nHost: {options.host}\r\nConnection: close\r\n\r\n".encode()
        )
        received = exactly(connection, 1000)
        print("stalled", flush=True)
        while not options.go.exists():
            time.sleep(0.02)
        connection.settimeout(TIMEOUT_S)
        while b"\r\n\r\n" not in received:
            received += connection.recv(1000)
        body = received.partition(b"\r\n\r\n")[2]
        digest, size = hashlib.sha256(body), len(body)
        while data := connection.recv(1 << 18):
            digest.update(data)
            size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def parallel(options: argparse.Namespace) -> object:
    """Open all connections at once; when every one of them stands, ask for a page on each."""
    selector = selectors.DefaultSelector()
    page = f"GET {options.path} HTTP/1.1\r\nHost: {options.host}\r\nConnection: close\r\n\r\n".encode()
    ask = b"\x05\x01\x00" + address_field(options.host) + struct.pack(">H", options.port)
    reasons, done, standing = Counter[str](), 0, []
    begun = time.monotonic()
    states: dict[socket.socket, list] = {}

    def drop(sock: socket.socket, reason: str) -> None:
        reasons[reason] += 1
        selector.unregister(sock)
        sock.close()
        del states[sock]

    for _ in range(options.count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(options.proxy)
        selector.register(sock, selectors.EVENT_WRITE)
        states[sock] = ["connecting", b""]
    while states and time.monotonic() - begun < 120:
        for key, _ in selector.select(1):
            sock = key.fileobj
            state = states[sock]
            try:
                if state[0] == "connecting":
                    sock.sendall(greeting(f"user {sock.fileno() % options.users}" if options.users else ""))
                    state[0] = "greeting"
                    selector.modify(sock, selectors.EVENT_READ)
                    continue
                data = sock.recv(65536)
            except OSError as error:
                drop(sock, type(error).__name__)
                continue
            if not data and state[0] != "page":
                drop(sock, f"closed while {state[0]}")
                continue
            state[1] += data
            if state[0] == "greeting" and len(state[1]) >= (4 if options.users else 2):
                sock.sendall(ask)
                state[:] = ["request", b""]
            elif state[0] == "request" and len(state[1]) >= 10:
                if state[1][1]:
                    drop(sock, f"reply {state[1][1]}")
                    continue
                state[:] = ["standing", b""]
                standing.append(sock)
            elif state[0] == "page" and not data:
                if state[1].startswith(b"HTTP/1.1 200") and state[1].endswith(b"x" * 64):
                    done += 1
                    selector.unregister(sock)
                    sock.close()
                    del states[sock]
                else:
                    drop(sock, "not the page")
            if standing and len(standing) + sum(reasons.values()) == options.count:
                for each in standing:
                    each.sendall(page)
                    states[each] = ["page", b""]
                standing = []
    for state in states.values():
        reasons[f"no end while {state[0]}"] += 1
    return {
        "good": done,
        "failed": dict(reasons),
        "seconds": time.monotonic() - begun,
    }


def knock(options: argparse.Namespace) -> object:
    """What a plain connection to each HOST:PORT comes to: "connected" or the error's name."""
    found = {}
    for target in options.targets:
        host, _, port = target.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), options.patience):
                found[target] = "connected"
        except OSError as error:
            found[target] = type(error).__name__ if error.errno is None else str(error.errno)
    return found


def hammer(options: argparse.Namespace) -> object:
    """Try to get out in every way, over and over, until the file `stop` is there; how often that was."""
    rounds = 0
    while not options.stop.exists():
        rounds += 1
        for host in options.hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 4433)):
                with socket.socket(family, kind) as sock:
                    sock.setblocking(False)
                    try:
                        sock.connect_ex((host, port))
                        if kind == socket.SOCK_DGRAM:
                            sock.send(b"out " * 10)
                    except OSError:
                        pass
        print("round", rounds, flush=True)
        time.sleep(0.05)
    return {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--proxy", default="127.0.0.1:1080")
    parser.add_argument("--user", default="")
    parser.add_argument("--direct", action="store_true")
    commands = parser.add_subparsers(required=True)

    def command(work, *names: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(work.__name__.replace("_", "-"))
        sub.set_defaults(work=work)
        for name in names:
            sub.add_argument(name, type=int if name in ("port", "count", "size") else str)
        return sub

    command(resolve, "host").add_argument("--reverse", action="store_true")
    command(udp, "host", "port", "count").add_argument("--longest", type=int, default=1300)
    command(half_close, "host", "port", "size").add_argument("--talk-first", action="store_true")
    command(slow, "host", "port", "path").add_argument("go", type=Path)
    command(parallel, "host", "port", "path", "count").add_argument("--users", type=int, default=0)
    knocking = command(knock)
    knocking.add_argument("targets", nargs="+")
    knocking.add_argument("--patience", type=float, default=2.0)
    hammering = command(hammer)
    hammering.add_argument("stop", type=Path)
    hammering.add_argument("hosts", nargs="+")
    options = parser.parse_args()
    host, _, port = options.proxy.rpartition(":")
    options.proxy = (host, int(port))
    print(json.dumps(options.work(options)))


if __name__ == "__main__":
    sys.exit(main())
