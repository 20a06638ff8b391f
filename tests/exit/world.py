"""A small internet for system tests: this process becomes the exit's network namespace, children the others.

`start()` must run in a program of its own, as root or inside a user namespace, before any thread exists. The
world is joined by a veth pair (`up0` here, `w0` there); the client has a TUN whose descriptor comes here.
Children run code that is sent to them as text and answer with what it left in `result`; they end with this
process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
EXIT4, GATE4, SERVER4 = "50.0.0.2", "50.0.0.1", "60.0.0.1"
EXIT6, GATE6, SERVER6 = "2600:50::2", "2600:50::1", "2600:60::1"
CLIENT4, CLIENT6 = "100.64.5.5", "fd68:6f70:6661:5::5"

WORLD_CODE = """
import socket, threading, struct, time
seen = []
def sniff():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    s.bind(("w0", 0))
    sniffing.set()
    while True:
        frame, address = s.recvfrom(70000)
        if address[2] != socket.PACKET_OUTGOING:
            seen.append(frame[14:])
sniffing = threading.Event()
threading.Thread(target=sniff, daemon=True).start()
sniffing.wait()
def udp_echo(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind((address, 7))
    def loop():
        while True:
            data, peer = s.recvfrom(70000)
            s.sendto(peer[0].encode() + b" " + data, peer)
    threading.Thread(target=loop, daemon=True).start()
def tcp_server(family, address):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.bind((address, 80))
    s.listen(100)
    def serve(c, peer):
        c.sendall(peer[0].encode() + b"\\n")
        while True:
            data = c.recv(1 << 20)
            if not data:
                break
            c.sendall(data)
        c.close()
    def loop():
        while True:
            c, peer = s.accept()
            threading.Thread(target=serve, args=(c, peer), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
for family, address in ((socket.AF_INET, SERVER4), (socket.AF_INET6, SERVER6)):
    udp_echo(family, address)
    tcp_server(family, address)
result = True
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def own_namespace() -> None:
    """Move this process into a new network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    ip("link", "set", "lo", "up")


ALIVE: list[Child] = []
"""Keeps children, and so their namespaces, while this process lives."""


class Child:
    """A process in a network namespace of its own that runs what it is told."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            mine.close()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            self._serve(theirs)
        theirs.close()
        self._socket = mine
        self._reader = mine.makefile("r")
        self._reader.readline()
        ALIVE.append(self)

    @staticmethod
    def _serve(channel: socket.socket) -> None:
        try:
            own_namespace()
            scope: dict[str, Any] = dict(globals(), channel=channel)
            channel.sendall(b"ready\n")
            for line in channel.makefile("r"):
                scope["result"] = None
                try:
                    exec(json.loads(line), scope)
                    answer = {"result": scope["result"]}
                except BaseException as error:
                    answer = {"error": repr(error)}
                channel.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            os._exit(0)

    def send(self, code: str) -> None:
        self._socket.sendall(json.dumps(code).encode() + b"\n")

    def receive(self) -> Any:
        answer = json.loads(self._reader.readline())
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def run(self, code: str) -> Any:
        self.send(code)
        return self.receive()


def start(extra4: tuple[str, ...] = (), extra6: tuple[str, ...] = (), ipv6: bool = True) -> Child:
    """Enter a new namespace, make the world, and return it; the world also has the `extra` addresses."""
    own_namespace()
    world = Child()
    ip("link", "add", "up0", "type", "veth", "peer", "name", "w0", "netns", str(world.pid))
    ip("addr", "add", f"{EXIT4}/24", "dev", "up0")
    commands = [f"addr add {GATE4}/24 dev w0", "link set w0 up", f"addr add {SERVER4}/32 dev lo"]
    commands += [f"addr add {address}/32 dev lo" for address in extra4]
    commands += [f"addr add {address}/128 dev lo" for address in extra6]
    commands += [f"addr add {GATE6}/64 dev w0 nodad", f"addr add {SERVER6}/128 dev lo"]
    world.run(f"for words in {commands!r}: ip(*words.split())\nresult = 1")
    ip("link", "set", "up0", "up")
    ip("route", "add", "default", "via", GATE4)
    if ipv6:
        ip("addr", "add", f"{EXIT6}/64", "dev", "up0", "nodad")
        ip("route", "add", "default", "via", GATE6)
    world.run(WORLD_CODE)
    return world


def start_client(offload: bool = True) -> tuple[Child, int]:
    """Return a customer's namespace and the descriptor of its TUN (MTU 1400, default routes into it)."""
    client = Child()
    client.send(f"""
from exit.io.tun import Tun
tun = Tun.open("c0", {offload}, mtu=1400)
ip("addr", "add", CLIENT4 + "/32", "dev", "c0")
ip("addr", "add", CLIENT6 + "/128", "dev", "c0", "nodad")
ip("link", "set", "c0", "up")
ip("route", "add", "default", "dev", "c0")
ip("-6", "route", "add", "default", "dev", "c0")
import socket
socket.send_fds(channel, [b"tun\\n"], [tun.fileno()])
result = True
""")
    _, fds, _, _ = socket.recv_fds(client._socket, 4, 1)
    assert client.receive()
    return client, fds[0]


def run_program(script: str, *, user_namespace: bool = False, timeout_s: float = 60) -> str:
    """Run `script` as a program that can import this module; return what it printed, or fail."""
    import pytest

    if os.geteuid() != 0 and not user_namespace:
        pytest.skip("needs root for network namespaces")
    prefix = ["unshare", "--user", "--map-root-user", "--net"] if user_namespace else []
    header = f"import sys\nsys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\n"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", header + script],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout.strip()
