"""Runs a Python script as root or as a user without privileges, each with a usable /dev/net/tun.

The user's view is made in a mount namespace that ends with the script: a device file open to all, and the
interpreter and the sources readable although they may lie below a folder that is root's alone.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
USER_ID = 65534

PRELUDE = """
import json, os, signal, socket, struct, subprocess, sys, time
import trio
from textwrap import dedent
from exit.errors import EnvError
from exit.io.namespace import open_namespace
V4, V6 = "100.64.3.7", "fd68:6f70:6661::307"
OTHER_V4, OTHER_V6 = "100.64.9.9", "fd68:6f70:6661::909"

def say(**what):
    print(json.dumps(what), flush=True)

async def sent(ns, wanted=lambda packet: True, timeout_s=20):
    '''Return the next packets out of the TUN (without their vnet header) that are wanted.'''
    with trio.fail_after(timeout_s):
        while True:
            found = [raw[10:] for raw in ns.tun.read_batch() if wanted(raw[10:])]
            if found:
                return found
            await trio.lowlevel.wait_readable(ns.tun.fileno())

def source(packet):
    if packet[0] >> 4 == 4:
        return socket.inet_ntop(socket.AF_INET, packet[12:16])
    return socket.inet_ntop(socket.AF_INET6, packet[8:24])

def connect(sock, address):
    code = sock.connect_ex(address)
    return os.strerror(code)

async def run_inside(ns, *argv, **options):
    '''Run a program through `hopfare exec`, in a process of its own.'''
    command = [sys.executable, "-I", "-S", EXEC, "100.64.0.1,fd68:6f70:6661::1", str(ns.helper_pid), *argv]
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, **options)
"""


def command(script: str, *, as_user: bool, open_tun: bool = True) -> list[str]:
    """Return the command that runs the script after PRELUDE."""
    exec_path = REPO / "overlay/cli/exec.py"
    text = f"import sys; sys.path.insert(0, {str(REPO)!r})\nEXEC = {str(exec_path)!r}\n{PRELUDE}\n{script}"
    python = [sys.executable, "-c", text]
    if not as_user or os.geteuid() != 0:
        return python
    steps = ["set -e", "mount -t tmpfs tmpfs /mnt"]
    if open_tun:
        steps += ["mount -t tmpfs -o mode=755 tmpfs /dev/net", "mknod /dev/net/tun c 10 200"]
        steps += ["chmod 666 /dev/net/tun"]
    for number, path in enumerate(dict.fromkeys([sys.base_prefix, sys.prefix, str(REPO)])):
        if hidden := _hidden_ancestor(Path(path)):
            kept = f"/mnt/{number}"
            steps += [f"mkdir {kept}", f"mount --rbind {path} {kept}"]
            steps += [f"mount -t tmpfs -o mode=755 tmpfs {hidden}", f"mkdir -p {path}"]
            steps += [f"mount --move {kept} {path}"]
    user = f"setpriv --reuid {USER_ID} --regid {USER_ID} --clear-groups --inh-caps=-all --bounding-set=-all"
    steps += ["umount -l /mnt", f"cd / && exec {user} {shlex.join(python)}"]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)]


def run(script: str, *, as_user: bool, open_tun: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run(
        command(script, as_user=as_user, open_tun=open_tun),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _hidden_ancestor(path: Path) -> Path | None:
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)
