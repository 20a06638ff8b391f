"""What the exit needs from the machine, checked before anything is changed. Owns the checks and the dropping.

The exit needs one capability, CAP_NET_ADMIN (TUN, routes, firewall, forwarding), and CAP_NET_BIND_SERVICE for
DNS on port 53 of its inner address where `net.ipv4.ip_unprivileged_port_start` is above 53; the device file
/dev/net/tun; and the programs `ip` and `nft`. Each thing missing becomes one sentence that names it and says
how to grant it. Sources: capabilities(7), prctl(2), Linux include/uapi/linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exit.errors import PrivilegeError

CAP_NET_BIND_SERVICE = 10
CAP_NET_ADMIN = 12
_NAMES = {CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE", CAP_NET_ADMIN: "CAP_NET_ADMIN"}

_TUN_DEVICE = Path("/dev/net/tun")
_STATUS = Path("/proc/self/status")
_PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_DNS_PORT = 53

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing the exit lacks: `what` it is, and `grant`, how to give it."""

    what: str
    grant: str

    def __str__(self) -> str:
        """Return one sentence."""
        return f"{self.what}: {self.grant}"


def missing_privileges(*, status: str | None = None, tun_device: Path = _TUN_DEVICE) -> list[Missing]:
    """Return everything that the exit needs and this process does not have; empty when it can start.

    `status` stands for the text of /proc/self/status and `tun_device` for /dev/net/tun; tests give their own.
    """
    held = held_capabilities(_STATUS.read_text() if status is None else status)
    missing = []
    if not held >> CAP_NET_ADMIN & 1:
        missing.append(_missing_capability(CAP_NET_ADMIN, "make a TUN device, routes and firewall rules"))
    if not held >> CAP_NET_BIND_SERVICE & 1 and _first_free_port() > _DNS_PORT:
        missing.append(
            _missing_capability(CAP_NET_BIND_SERVICE, "answer DNS on port 53 of its inner address")
        )
    if not tun_device.exists():
        missing.append(
            Missing(
                f"{tun_device} is missing",
                "load the kernel module with `modprobe tun`, or give a container the device with"
                " `--device /dev/net/tun`",
            )
        )
    elif not os.access(tun_device, os.R_OK | os.W_OK):
        missing.append(
            Missing(
                f"{tun_device} cannot be opened",
                "run `chmod 0666 /dev/net/tun` as root: it is the capability that guards networks",
            )
        )
    return missing + _missing_programs()


def require_privileges() -> None:
    """Raise PrivilegeError, naming everything that is missing in one message, unless the exit can start."""
    missing = missing_privileges()
    if missing:
        raise PrivilegeError("the exit cannot start; " + "; ".join(str(one) for one in missing))


def require_device_privileges() -> None:
    """Raise PrivilegeError, naming everything that is missing, unless whole-device mode can start."""
    missing = []
    if not held_capabilities(_STATUS.read_text()) >> CAP_NET_ADMIN & 1:
        missing.append(
            Missing(
                "CAP_NET_ADMIN is missing, which whole-device mode needs to change this machine's routes and"
                " firewall",
                "run it as root, or with `AmbientCapabilities=CAP_NET_ADMIN` in its systemd unit"
                " (docs/operations/whole-device.md)",
            )
        )
    missing += _missing_programs()
    if missing:
        raise PrivilegeError("whole-device mode cannot start; " + "; ".join(str(one) for one in missing))


def find_program(name: str) -> str | None:
    """Return the path of a system program; also looks where a user's PATH does not (`/usr/sbin`, `/sbin`)."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def held_capabilities(status: str) -> int:
    """Return the effective capabilities, as bits, from the text of /proc/self/status; 0 when it does not
    tell.
    """
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def drop_capabilities(keep: Iterable[int] = (CAP_NET_ADMIN,)) -> None:
    """Give up every capability but those in `keep`, for good and for child processes too.

    The kept ones must be held; they stay so that the network can be put back on stop, and pass to `ip` and
    `nft`. Call it after set-up, from the only thread. Raises PrivilegeError when the kernel refuses.
    """
    kept = frozenset(keep)
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, *words: int) -> int:
        padded = [ctypes.c_ulong(word) for word in (*words, 0, 0, 0, 0)[:4]]
        return int(libc.prctl(option, *padded))

    number = 0
    # PR_CAPBSET_DROP fails past the last capability the kernel knows, and without CAP_SETPCAP: then there was
    # no more to give up than what capset takes away below, because no_new_privs keeps programs from bringing
    # any back.
    while number < 64:
        if number not in kept and prctl(_PR_CAPBSET_DROP, number) != 0:
            break
        number += 1
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    bits = held_capabilities(_STATUS.read_text()) & sum(1 << one for one in kept)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    # effective, permitted, inheritable; the low words first
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    if libc.capset(header, data) != 0 or prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        raise PrivilegeError(f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")
    for one in sorted(kept):
        if bits >> one & 1:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, one)


def _missing_programs() -> list[Missing]:
    return [
        Missing(f"the program `{program}` is missing", f"install it with `apt-get install {package}`")
        for program, package in (("ip", "iproute2"), ("nft", "nftables"))
        if find_program(program) is None
    ]


def _missing_capability(number: int, purpose: str) -> Missing:
    name = _NAMES[number]
    return Missing(
        f"{name} is missing, which the exit needs to {purpose}",
        f"run it as root, or with `AmbientCapabilities={name}` in its systemd unit (docs/operations/exit.md)",
    )


def _first_free_port() -> int:
    """Return the first port that needs no capability here; 1024 where the kernel does not tell."""
    try:
        return int(_PORT_START.read_text())
    except (OSError, ValueError):
        return 1024
