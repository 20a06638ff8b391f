"""The lab: a small isolated internet of network namespaces, made on one machine and gone without a trace.

    client --- hub --- relays r1 ... rN
                |
            "internet" (servers; the exits' traffic ends here)

The hub only routes. Each relay has its own IPv4 /16 and IPv6 /32, as relays of different operators would. The
client's link carries traffic from and to the relays only. Links are veth pairs of MTU 1500 with the offloads
that veth has (super-packets pass whole), no delay and no loss; `Links` (`links.py`) changes that per link.

Owns addresses, namespaces, routes and log files; starts no nodes (`fleet.py`) and no servers (`internet.py`).
Everything is a process or a namespace of one `Box`, so nothing outlives the process that opened the lab.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from overlay.demo import uplink
from overlay.demo.box import ROOT, SYSTEM_PATH, Box, Completed, LabError, Process
from overlay.demo.folder import LabFolder, sweep

MTU_BYTES = 1500
MAX_RELAYS = 100
HUB = "hub"
CLIENT = "client"
INTERNET = "internet"
INTERNET_RANGES = ("203.0.113.0/24", "2001:db8:1::/48")  # documentation ranges: RFC 5737, RFC 3849
_TOOLS = {"ip": "iproute2", "nft": "nftables", "sh": "dash"}
# Of several values the last that the kernel takes stays.
_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # What most machines have; a namespace may refuse it where this machine's own default is another.
    "net/ipv4/tcp_congestion_control": "reno cubic",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
}
_HUB_RULES = f"""
table inet lab {{
    chain forward {{
        type filter hook forward priority 0; policy accept;
        iifname "{CLIENT}" oifname "{INTERNET}" drop
        iifname "{INTERNET}" oifname "{CLIENT}" drop
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace with one link to the hub."""

    name: str
    ipv4: str
    ipv6: str
    gateway_v4: str
    gateway_v6: str
    more_v4: tuple[str, ...] = ()
    more_v6: tuple[str, ...] = ()


def relay_host(number: int) -> Host:
    """Relay `number` (1 to MAX_RELAYS): 10.<number>.0.1 and fd00:<number>::1."""
    return Host(
        f"r{number}",
        f"10.{number}.0.1",
        f"fd00:{number:x}::1",
        f"10.{number}.0.254",
        f"fd00:{number:x}::ffff",
    )


CLIENT_HOST = Host(CLIENT, "10.200.0.1", "fd00:c8::1", "10.200.0.254", "fd00:c8::ffff")
INTERNET_HOST = Host(
    INTERNET,
    "203.0.113.1",
    "2001:db8:1::1",
    "203.0.113.254",
    "2001:db8:1::ffff",
    more_v4=("203.0.113.10", "203.0.113.20", "203.0.113.53", "203.0.113.80"),
    more_v6=("2001:db8:1::10", "2001:db8:1::20", "2001:db8:1::53", "2001:db8:1::80"),
)


def missing_for_lab(*, rootless: bool | None = None) -> str | None:
    """None if this machine can run a lab, else one sentence that says what is missing and how to get it."""
    search = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool, path=search) is None]
    if missing:
        return f"the demo needs {' and '.join(missing)}: run `sudo apt-get install {' '.join(missing)}`"
    device = Path("/dev/net/tun")
    try:
        with device.open("r+b", buffering=0):
            return None
    except FileNotFoundError:
        return (
            "this machine has no /dev/net/tun: run `sudo modprobe tun` (in a container, start it with "
            "`--device /dev/net/tun`)"
        )
    except PermissionError:
        mode = stat.S_IMODE(device.stat().st_mode)
        return (
            f"you may not open /dev/net/tun (its mode is {mode:04o}), which carries the packets: run "
            "`sudo chmod 0666 /dev/net/tun`, as most distributions have it, or run this as root"
        )
    except OSError as error:
        return f"/dev/net/tun cannot be opened: {error.strerror}; run `sudo modprobe tun`"


class Lab:
    """The namespaces. Use as a context manager, from the process that is to own them."""

    def __init__(
        self,
        relays: int = 6,
        *,
        rootless: bool | None = None,
        parent: Path | None = None,
        keep_folder: bool = False,
    ) -> None:
        """Plan a lab with `relays` relay hosts; nothing is made before `open`.

        `rootless` None chooses by who we are; True uses a user namespace also for root.
        """
        if not 0 <= relays <= MAX_RELAYS:
            raise LabError(f"a lab has 0 to {MAX_RELAYS} relays, not {relays}")
        self.relays = [relay_host(number) for number in range(1, relays + 1)]
        self.hosts = {host.name: host for host in (*self.relays, CLIENT_HOST, INTERNET_HOST)}
        self._rootless = rootless
        self._parent = parent
        self._keep_folder = keep_folder
        self._folder: LabFolder | None = None
        self._box: Box | None = None

    def __enter__(self) -> Self:
        """Open it."""
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def box(self) -> Box:
        """What runs the programs. Raises LabError before `open`."""
        if self._box is None:
            raise LabError("the lab is not open")
        return self._box

    @property
    def folder(self) -> LabFolder:
        """The lab's folder. Raises LabError before `open`."""
        if self._folder is None:
            raise LabError("the lab is not open")
        return self._folder

    @property
    def path(self) -> Path:
        """Where logs, configurations and captures are."""
        return self.folder.path

    def open(self) -> None:
        """Remove what dead labs left, make the namespaces and routes.

        Raises LabError, with nothing left behind, if the machine cannot.
        """
        reason = missing_for_lab(rootless=self._rootless)
        if reason is not None:
            raise LabError(reason)
        sweep(undo_entry, parent=self._parent)
        self._folder = LabFolder(parent=self._parent, keep=self._keep_folder)
        try:
            (self.path / "logs").mkdir()
            (self.path / "resolv.conf").write_text(f"nameserver {INTERNET_HOST.more_v4[2]}\n")
            (self.path / "no-resolver.conf").write_text("# this namespace reaches relays only\n")
            self._box = Box(self.path, rootless=self._rootless)
            self._box.open()
            self._make_networks()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process of the lab and remove its namespaces and its folder; harmless twice."""
        if self._box is not None:
            self._box.close()
            self._box = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        """Run a program in a host's namespace to its end. Raises LabError if it takes too long."""
        return self.box.run(
            argv,
            network=self._known(host),
            stdin=stdin,
            timeout_s=timeout_s,
            env=env,
            cwd=cwd,
            resolv=self._resolv(host),
        )

    def spawn(
        self,
        host: str,
        argv: Sequence[str],
        *,
        log: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        fds: Mapping[int, int] | None = None,
        listen: int = 0,
    ) -> Process:
        """Start a program in a host's namespace; its output is appended to `logs/<log>.log`."""
        with self.log_path(log).open("ab") as output:
            given = {1: output.fileno(), 2: output.fileno(), **(fds or {})}
            return self.box.spawn(
                argv,
                network=self._known(host),
                env=env,
                cwd=cwd,
                resolv=self._resolv(host),
                fds=given,
                listen=listen,
            )

    def python(self, host: str, module: str, *arguments: str, log: str) -> Process:
        """Start `python -m module` of this project in a host's namespace."""
        argv = [sys_executable(), "-m", module, *arguments]
        return self.spawn(host, argv, log=log, env=python_environment())

    def log_path(self, name: str) -> Path:
        """Where the output of the program logged under `name` goes."""
        return self.path / "logs" / f"{name}.log"

    def log_text(self, name: str) -> str:
        """All output of the program logged under `name` so far."""
        try:
            return self.log_path(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def network_path(self, host: str) -> Path:
        """The namespace's handle, valid for processes inside the lab only."""
        return self.path / "networks" / self._known(host)

    def ip_batch(self, host: str, lines: Sequence[str]) -> None:
        """Run `ip -batch` in a host's namespace. Raises LabError with what `ip` says."""
        self.run(host, ["ip", "-batch", "-"], stdin="\n".join((*lines, "")).encode()).check()

    def nft(self, host: str, rules: str) -> None:
        """Load an nftables script in a host's namespace. Raises LabError with what `nft` says."""
        self.run(host, ["nft", "-f", "-"], stdin=rules.encode()).check()

    def _known(self, host: str) -> str:
        if host != HUB and host not in self.hosts:
            raise LabError(f"there is no host {host!r} in the lab (there are: hub, {', '.join(self.hosts)})")
        return host

    def _resolv(self, host: str) -> Path:
        reaches_dns = host != CLIENT
        return self.path / ("resolv.conf" if reaches_dns else "no-resolver.conf")

    def _make_networks(self) -> None:
        box = self.box
        for name in (HUB, *self.hosts):
            box.network(name)
        lines = ["link set lo up"]
        for host in self.hosts.values():
            peer = self.path / "networks" / host.name
            lines += [
                f"link add {host.name} mtu {MTU_BYTES} type veth peer name eth0 mtu {MTU_BYTES} netns {peer}",
                f"addr add {host.gateway_v4}/24 dev {host.name}",
                f"addr add {host.gateway_v6}/64 dev {host.name} nodad",
                f"link set {host.name} up",
            ]
        forward = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
        self._configure(HUB, _SYSCTLS | forward, lines)
        # A customer's machine in the lab must have no way to the internet but through relays.
        self.nft(HUB, _HUB_RULES)
        for host in self.hosts.values():
            lines = ["link set lo up"]
            lines += [f"addr add {address}/24 dev eth0" for address in (host.ipv4, *host.more_v4)]
            lines += [f"addr add {address}/64 dev eth0 nodad" for address in (host.ipv6, *host.more_v6)]
            lines += [
                "link set eth0 up",
                f"route add default via {host.gateway_v4}",
                f"route add ::/0 via {host.gateway_v6}",
            ]
            self._configure(host.name, _SYSCTLS, lines)

    def _configure(self, host: str, sysctls: Mapping[str, str], lines: Sequence[str]) -> None:
        # A setting that this kernel does not have, or does not allow, is not worth failing for.
        script = [
            f"[ -w /proc/sys/{key} ] && echo {value} 2>/dev/null > /proc/sys/{key}"
            for key, choices in sysctls.items()
            for value in choices.split()
        ]
        script += ["exec ip -batch -"]
        self.run(host, ["sh", "-c", "\n".join(script)], stdin="\n".join((*lines, "")).encode()).check()


def undo_entry(entry: Mapping[str, Any]) -> None:
    """Undo one journal entry of a dead lab; what is undone already, or not known, is left alone."""
    with suppress(LabError):
        uplink.undo(entry)


def sys_executable() -> str:
    """The interpreter that runs us: the one that has the project's dependencies."""
    return sys.executable


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which `python -m overlay...` finds this very source tree."""
    environment = {key: value for key, value in os.environ.items() if not re.match(r"HOPFARE_|LISTEN_", key)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment | dict(extra or {})
