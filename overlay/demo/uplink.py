"""The lab's small internet joined to the machine's real one, on request.

As root: a veth pair between the lab's "internet" namespace and the machine's own, masqueraded there by a
table of our own. Every change to the machine is in the lab's journal before it is made and is undone at the
end, or by the next lab if this one was killed; the veth pair goes with the namespace. Without root the small
internet is all there is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overlay.demo.box import SYSTEM_PATH, LabError, wait_until

if TYPE_CHECKING:
    from overlay.demo.lab import Lab

# Benchmarking addresses (RFC 2544): never routed, and rarely used inside networks.
_TRANSFER = ipaddress.IPv4Network("198.19.0.0/16")
_TABLE_PREFIX = "hopfare_lab_"
_DEVICE_PREFIX = "hflab"
_COMMAND_TIMEOUT_S = 20.0
# The real internet only: the machine itself and its neighbours are none of the demo's business.
_HOST_RULES = """
table ip {table} {{
    chain out {{
        type nat hook postrouting priority 100;
        ip saddr {network} masquerade
    }}
    chain pass {{
        type filter hook forward priority 0;
{resolver}
        iifname "{veth}" ip daddr {{ 10.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 }} drop
        iifname "{veth}" ip daddr {{ 172.16.0.0/12, 192.168.0.0/16 }} drop
    }}
    chain self {{
        type filter hook input priority 0;
        iifname "{veth}" drop
    }}
}}
"""
_RESOLVER_RULE = '        iifname "{veth}" ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept'
_INTERNET_RULES = """
table ip lab_uplink {
    chain out {
        type nat hook postrouting priority 100;
        oifname "up0" masquerade
    }
}
"""


def default_device() -> str | None:
    """The device of this machine's IPv4 default route, None if there is none."""
    routes = _json(["ip", "-json", "-4", "route", "show", "default"])
    return str(routes[0]["dev"]) if routes and "dev" in routes[0] else None


def find_resolver() -> str | None:
    """An IPv4 address of a DNS server that this machine uses, None if it has only one on itself."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for words in map(str.split, lines):
            if len(words) == 2 and words[0] == "nameserver":
                try:
                    address = ipaddress.IPv4Address(words[1])
                except ValueError:
                    continue
                if not address.is_loopback:
                    return str(address)
    return None


def join_as_root(lab: Lab, resolver: str | None) -> str:
    """Give the lab's internet namespace a way out; one sentence on what was made.

    `resolver` is the one private address that it may ask for names.

    Raises LabError, with everything undone, if the machine has no default route or refuses a step.
    """
    device = default_device()
    if device is None:
        raise LabError("this machine has no default route, so the demo's own small internet is all there is")
    network = _free_network()
    ours, theirs = (str(address) for address in network.hosts())
    holder = lab.spawn("internet", ["sleep", "infinity"], log="uplink")
    veth = f"{_DEVICE_PREFIX}{holder.pid}"[:15]
    table = f"{_TABLE_PREFIX}{holder.pid}"
    forwarding = Path(f"/proc/sys/net/ipv4/conf/{device}/forwarding")
    # Undone in the opposite order: forwarding stays on while any lab still has its table.
    entries = [
        {"kind": "forwarding", "path": str(forwarding), "was": _before_any_lab(lab, forwarding)},
        {"kind": "nft", "table": table},
        {"kind": "device", "name": veth},
    ]
    try:
        for entry in entries:
            lab.folder.note(entry)
        # The holder is a process before it is in its namespace; the pair's other end must not land elsewhere.
        inside = lab.run("internet", ["readlink", "/proc/self/ns/net"]).check().text.strip()
        namespace = Path(f"/proc/{holder.pid}/ns/net")
        wait_until(lambda: str(namespace.readlink()) == inside, 10, "the uplink's namespace")
        _run(["ip", "link", "add", veth, "type", "veth", "peer", "name", "up0", "netns", str(holder.pid)])
        _run(["ip", "addr", "add", f"{ours}/30", "dev", veth])
        _run(["ip", "link", "set", veth, "up"])
        asks = "" if resolver is None else _RESOLVER_RULE.format(veth=veth, resolver=resolver)
        rules = _HOST_RULES.format(table=table, network=network, veth=veth, resolver=asks)
        _run(["nft", "-f", "-"], rules)
        Path(f"/proc/sys/net/ipv4/conf/{veth}/forwarding").write_text("1")
        forwarding.write_text("1")
        lab.ip_batch(
            "internet",
            [f"addr add {theirs}/30 dev up0", "link set up0 up", f"route replace default via {ours}"]
            + [f"route replace {host.ipv4}/32 via 203.0.113.254" for host in lab.relays],
        )
        lab.nft("internet", _INTERNET_RULES)
        lab.run("internet", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).check()
        lab.ip_batch("hub", ["route replace default via 203.0.113.1"])
    except (LabError, OSError) as error:
        for entry in reversed(entries):
            undo(entry)
        raise LabError(f"the demo could not be joined to the internet: {error}") from error
    return f"joined to the internet through {device}; undone when the demo ends"


def leave_as_root(lab: Lab) -> None:
    """Undo what `join_as_root` changed on the machine."""
    for entry in lab.folder.entries:
        undo(entry)
        lab.folder.forget(entry)


def undo(entry: Mapping[str, Any]) -> None:
    """Undo one journal entry; harmless if it is undone already."""
    match entry.get("kind"):
        case "nft" if str(entry["table"]).startswith(_TABLE_PREFIX):
            _try(["nft", "delete", "table", "ip", str(entry["table"])])
        case "device" if str(entry["name"]).startswith(_DEVICE_PREFIX):
            _try(["ip", "link", "delete", str(entry["name"])])
        case "forwarding" if str(entry["path"]).startswith("/proc/sys/net/ipv4/conf/") and not _other_labs():
            Path(entry["path"]).write_text(str(entry["was"]))
        case _:
            pass


def _try(argv: Sequence[str]) -> None:
    with contextlib.suppress(LabError):  # undone already
        _run(argv)


def _before_any_lab(lab: Lab, setting: Path) -> str:
    """The setting as it was before this lab and those that run beside it."""
    noted = lab.folder.noted_by_others("forwarding")
    earlier = [str(entry["was"]) for entry in noted if entry.get("path") == str(setting)]
    return min([*earlier, setting.read_text().strip()])


def _other_labs() -> bool:
    tables = _json(["nft", "-j", "list", "tables"])
    listed = tables.get("nftables", []) if isinstance(tables, dict) else []
    return any(item.get("table", {}).get("name", "").startswith(_TABLE_PREFIX) for item in listed)


def _free_network() -> ipaddress.IPv4Network:
    used = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in _json(["ip", "-json", "-4", "route", "show", "table", "all"])
        if route.get("dst", "default") != "default"
    ]
    for network in _TRANSFER.subnets(new_prefix=30):
        if not any(network.overlaps(other) for other in used if isinstance(other, ipaddress.IPv4Network)):
            return network
    raise LabError("no free network in 198.19.0.0/16")


def _argv(argv: Sequence[str]) -> list[str]:
    found = shutil.which(argv[0]) or shutil.which(argv[0], path=SYSTEM_PATH)
    return [found or argv[0], *argv[1:]]


def _run(argv: Sequence[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(
            _argv(argv), input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"`{' '.join(argv)}` failed: {error}") from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout


def _json(argv: Sequence[str]) -> Any:
    try:
        return json.loads(_run(argv) or "[]")
    except (LabError, ValueError):
        return []
