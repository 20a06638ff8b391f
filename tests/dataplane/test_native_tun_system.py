"""The kernel takes what the native engine cuts and joins: TCP and UDP between two namespaces, v4 and v6."""

from __future__ import annotations

import os
import subprocess
import sys

import native_parts  # noqa: F401 - skips where the engine is not built
import pytest

pytestmark = pytest.mark.system

PRELUDE = """
import ctypes, hashlib, os, random, select, socket, struct, subprocess, threading
from hopfare_dataplane import testing
from exit.io.tun import Tun
def enter():
    assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
def ip(*words): subprocess.run(["ip", *words], check=True)
def make(number, uso):
    enter()
    tun = Tun.open("t%d", True, uso=uso, mtu=1400)
    ip("addr", "add", f"10.9.0.{number}/24", "dev", tun.name)
    ip("-6", "addr", "add", f"fd09::{number}/64", "dev", tun.name, "nodad")
    ip("link", "set", tun.name, "up")
    return tun
sizes = [0, 0]
def carry(source, target, uso):
    # What one end of a circuit reads is cut or not, what the other one writes is joined again.
    raws = source.read_batch()
    packets = [bytes(10) + packet for raw in raws for packet in testing.to_packets(raw)]
    cut = uso or random.random() < 0.5
    writes = testing.join(packets if cut else raws, True, uso)
    sizes[0] += len(packets)
    sizes[1] += len(writes)
    for raw in writes:
        target.write(raw)
def run(a, b, uso, is_over):
    while not is_over():
        ready, _, _ = select.select([a, b], [], [], 0.2)
        if a in ready: carry(a, b, uso)
        if b in ready: carry(b, a, uso)
"""


def run(script: str) -> str:
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("address", ["10.9.0.1", "fd09::1"])
def test_tcp_survives_cutting_and_joining(address: str) -> None:
    out = run(f"""
address = {address!r}
a = make(1, False)
server = socket.create_server((address, 80), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
b = make(2, False)
client = socket.socket(server.family)
data = random.Random(7).randbytes(8 << 20)
got = hashlib.sha256()
def serve():
    peer, _ = server.accept()
    left = len(data)
    while left:
        part = peer.recv(1 << 20)
        got.update(part)
        left -= len(part)
    peer.sendall(data)
    peer.close()
back = hashlib.sha256()
def ask():
    client.settimeout(100)
    client.connect((address, 80))
    client.sendall(data)
    left = len(data)
    while left:
        part = client.recv(1 << 20)
        assert part
        back.update(part)
        left -= len(part)
threads = [threading.Thread(target=serve, daemon=True), threading.Thread(target=ask, daemon=True)]
for thread in threads: thread.start()
run(a, b, False, lambda: not threads[1].is_alive())
wanted = hashlib.sha256(data).digest()
print(got.digest() == wanted, back.digest() == wanted, sizes[1] * 3 < sizes[0], a.refused + b.refused)
""")
    assert out == "True True True 0"


@pytest.mark.parametrize("address", ["10.9.0.1", "fd09::1"])
def test_udp_survives_cutting_and_joining(address: str) -> None:
    out = run(f"""
address = {address!r}
a = make(1, True)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.socket(family, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
server.bind((address, 5000))
server.settimeout(20)
b = make(2, True)
if not (a.has_uso and b.has_uso):
    print("no USO")
    raise SystemExit
client = socket.socket(family, socket.SOCK_DGRAM)
client.setsockopt(17, 103, 1200)  # UDP_SEGMENT: the kernel is given super-packets too
sent = [bytes([i]) * (1200 * 9 + 100 * i) for i in range(10)]
pieces = [block[at : at + 1200] for block in sent for at in range(0, len(block), 1200)]
got = []
def serve():
    while len(got) < len(pieces):
        got.append(server.recv(70000))
thread = threading.Thread(target=serve, daemon=True)
thread.start()
for block in sent:
    client.sendto(block, (address, 5000))
run(a, b, True, lambda: not thread.is_alive())
print(got == pieces, sizes[1] < sizes[0] // 3, a.refused + b.refused)
""")
    if out == "no USO":
        pytest.skip("this kernel's TUN has no USO")
    assert out == "True True 0"
