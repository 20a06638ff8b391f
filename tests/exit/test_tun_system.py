"""The TUN wrapper on the kernel's own devices, each test in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

PRELUDE = """
import ctypes, os, subprocess
assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
def ip(*words): subprocess.run(["ip", *words], check=True)
from exit.errors import PrivilegeError, TunError
from exit.io.tun import Tun
"""


def in_namespace(script: str) -> str:
    """Run `script` as a program in a network namespace that ends with it; return what it printed."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("offload", [True, False])
def test_a_ping_goes_in_and_out(offload: bool) -> None:
    out = in_namespace(f"""
import select, socket, struct
tun = Tun.open("t%d", {offload}, mtu=1400)
assert tun.mtu == 1400 and tun.has_offload is {offload}, (tun.mtu, tun.has_offload)
head = 10 if tun.has_offload else 0
ip("addr", "add", "10.9.0.1/24", "dev", tun.name)
ip("link", "set", tun.name, "up")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("10.9.0.1", 5000))
udp.settimeout(20)
udp.sendto(b"out", ("10.9.0.2", 6000))
got = []
while not got:
    select.select([tun], [], [], 5)
    got = [raw for raw in tun.read_batch() if raw[head] >> 4 == 4]
packet = bytearray(got[0])
assert packet.endswith(b"out")
# The kernel's own IPv6 talk may come at any time.
assert not [raw for raw in tun.read_batch() if raw[head] >> 4 == 4]
header = packet[:head]
packet = packet[head:]
packet[12:16], packet[16:20] = packet[16:20], packet[12:16]
packet[20:22], packet[22:24] = packet[22:24], packet[20:22]
packet[26:28] = bytes(2)
assert tun.write((bytes(10) if head else b"") + packet)
print(udp.recv(100).decode(), tun.refused)
""")
    assert out == "out 0"


def test_refused_and_gone() -> None:
    out = in_namespace("""
tun = Tun.open("t0")
print(tun.write(b"x" * 40), tun.refused, tun.read_batch())
try:
    Tun.open("t0")
except TunError as error:
    print(error)
ip("link", "del", "t0")
for use in (tun.read_batch, lambda: tun.write(b"x" * 40)):
    try:
        use()
    except TunError as error:
        print("gone" in str(error))
tun.close()
tun.close()
print(tun.fileno())
""")
    assert out.splitlines() == [
        "False 1 []",
        "the TUN device t0 is in use by another process",
        "True",
        "True",
        "-1",
    ]


def test_without_the_capability_the_message_names_it() -> None:
    out = in_namespace("""
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Tun.open("t0")
except PrivilegeError as error:
    print(error)
""")
    assert "CAP_NET_ADMIN" in out
    assert "/dev/net/tun" in out


def test_from_fd_takes_the_descriptor_over() -> None:
    out = in_namespace("""
made = Tun.open("t0")
tun = Tun.from_fd(os.dup(made.fileno()), made.has_offload, made.mtu)
made.close()
fd = tun.fileno()
print(tun.has_offload, tun.mtu, os.get_blocking(fd), tun.read_batch())
tun.close()
try:
    os.fstat(fd)
except OSError:
    print("closed")
""")
    assert out.splitlines() == ["True 1400 False []", "closed"]


def test_uso_can_be_asked_for_later() -> None:
    out = in_namespace("""
import select, socket
tun = Tun.open("t%d", True, mtu=1400)
plain = Tun.open("t%d", False, mtu=1400)
assert not tun.has_uso and not plain.enable_uso() and not plain.has_uso
if not tun.enable_uso():
    print("no USO")
    raise SystemExit
assert tun.has_uso and tun.enable_uso()
ip("addr", "add", "10.9.0.1/24", "dev", tun.name)
ip("link", "set", tun.name, "up")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(17, 103, 1200)  # UDP_SEGMENT
udp.sendto(bytes(6000), ("10.9.0.2", 6000))
got = []
while not got:
    select.select([tun], [], [], 5)
    got = [raw for raw in tun.read_batch() if raw[10] >> 4 == 4]
print(len(got), got[0][1], len(got[0]))
""")
    if out == "no USO":
        pytest.skip("this kernel's TUN has no USO")
    assert out == "1 5 6038"
