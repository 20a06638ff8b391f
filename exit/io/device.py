"""Whole-device mode's driver: the lock on this machine, the veth pair, routes and rules, and their removal.

`open_device` locks first and opens the way into the tunnel afterwards, so that there is no moment at which
something leaves another way. When its block ends as it should, everything is put back; when it ends with an
error, or the process is killed, the lock stays (`exit.io.journal` remembers it), until the next `open_device`
takes it over without a gap or `lift_device` removes it. What `exit.device` names is made once per network
namespace.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from pathlib import Path

import structlog
import trio

from exit.addresses import DNS_V4, DNS_V6
from exit.device import (
    DEVICE,
    HOST_V4,
    HOST_V6,
    INNER_DEVICE,
    LENGTH_V4,
    LENGTH_V6,
    MAX_ADMITTED,
    PRIORITY_DHCP,
    PRIORITY_DIRECT,
    PRIORITY_TUNNEL,
    ROUTE_TABLE,
    TABLE,
    Admitted,
    Network,
    Peer,
    list_routes,
    list_rules,
    render_admitted,
    render_lock,
    render_removal,
)
from exit.errors import ConflictError, EnvError
from exit.io.journal import JOURNAL_NAME, Entry, Journal, read_setting, restore_setting, write_setting
from exit.io.namespace import DEFAULT_MTU, Namespace
from exit.io.privileges import find_program, require_device_privileges
from exit.io.programs import list_with_ip, run_nft, run_program

#: How often rules that another program has removed are put back. Nothing leaks meanwhile, it only stops.
LOOK_S = 5.0
_PRIORITIES = (PRIORITY_DIRECT, PRIORITY_DHCP, PRIORITY_TUNNEL)
_SSH_PORT = 22
_ESTABLISHED = "01"

_log = structlog.get_logger(component="device")


class Device:
    """A machine in whole-device mode. Made by `open_device`."""

    def __init__(self, journal: Journal, direct: tuple[Network, ...], *, was_locked: bool) -> None:
        """Use `open_device`."""
        self._journal = journal
        self.direct = direct
        self.was_locked = was_locked
        """Whether a killed process had left the lock."""
        self.holds = False
        self.warnings: tuple[str, ...] = ()
        self._has_ipv6 = read_setting("net/ipv6/conf/all/disable_ipv6") == "0"
        self._relays: dict[Peer, None] = {}
        self._chain: tuple[Peer, ...] = ()
        self._lock = trio.Lock()

    async def admit(self, peer: Peer, in_use: Callable[[], Iterable[Peer]] = tuple) -> None:
        """Let the client's own packets reach a relay; call it before dialling. Raises EnvError.

        Of more than MAX_ADMITTED, those not `in_use` are shut out again.
        """
        if peer in self._relays:
            return
        async with self._lock:
            if len(self._relays) >= MAX_ADMITTED:
                used = set(in_use())
                self._relays = {one: None for one in self._relays if one in used}
            self._relays[peer] = None
            await run_nft(render_admitted(self._admitted()))

    async def admit_chain(self, peers: Collection[Peer]) -> None:
        """Let the client's own connections reach exactly these endpoints of the chain. Raises EnvError."""
        async with self._lock:
            self._chain = tuple(peers)
            await run_nft(render_admitted(self._admitted()))

    async def keep(self) -> None:
        """Put routing rules and routes back that another program removed, until cancelled.

        Network managers throw away rules that they do not know. The lock holds meanwhile.
        """
        while True:
            await trio.sleep(LOOK_S)
            # A moment's failure is no reason to end: the lock is what must stand.
            with contextlib.suppress(EnvError):
                await self._route()

    def status(self) -> dict[str, object]:
        """Return what `hopfare status` shows."""
        direct = " ".join(str(network) for network in self.direct) or "none"
        return {"locked": True, "reached_directly": direct, "relays_admitted": len(self._relays)}

    def _admitted(self) -> Admitted:
        return Admitted(tuple(self._relays), self._chain)

    async def lock(self) -> None:
        """Lock the machine: from here on only what `exit.device` lists leaves it. For `open_device`."""
        if not self.was_locked and await _table_stands():
            raise EnvError(
                f"another client has locked this machine (nftables has a table `inet {TABLE}`): stop it, or"
                " lift what it left with `hopfare stop` and its configuration"
            )
        self._note(Entry("table", TABLE))
        await run_nft(render_lock(self.direct, self._admitted()))

    def hold(self) -> None:
        """From now on an error leaves the lock: only whoever stops the client opens the machine again."""
        self.holds = True

    async def connect(self, namespace: Namespace, mtu_bytes: int = DEFAULT_MTU) -> None:
        """Lead the machine's packets into the namespace, which needs a default source to pass them on.

        Raises EnvError when the machine refuses a step.
        """
        with contextlib.suppress(EnvError):  # none, as a rule; it ends with the namespace that it led to
            await run_program("ip", ["link", "del", DEVICE])
        words = f"link add {DEVICE} mtu {mtu_bytes} type veth peer name {INNER_DEVICE} mtu {mtu_bytes}"
        await run_program("ip", [*words.split(), "netns", str(namespace.helper_pid)])
        commands = [f"address add {HOST_V4}/{LENGTH_V4} dev {DEVICE}"]
        for setting, value in (
            (f"net/ipv6/conf/{DEVICE}/accept_ra", "0"),
            (f"net/ipv6/conf/{DEVICE}/addr_gen_mode", "1"),
            (f"net/ipv4/conf/{DEVICE}/accept_redirects", "0"),
        ):
            if read_setting(setting) is not None:
                write_setting(setting, value)
        if self._has_ipv6:
            commands.append(f"address add {HOST_V6}/{LENGTH_V6} dev {DEVICE} nodad")
        commands.append(f"link set {DEVICE} up")
        await run_program("ip", ["-batch", "-"], "\n".join(commands) + "\n")
        nft = find_program("nft")
        assert nft is not None  # looked for by require_device_privileges
        await namespace.become_gateway(nft)
        # Strict source checks look for the way back by the mark too, which answers get from `remember`.
        self._change("net/ipv4/conf/all/src_valid_mark", "1")
        self._note(Entry("routes", str(ROUTE_TABLE)))
        await self._remove_stale()
        await self._route()
        await self._use_resolved()

    async def _route(self) -> None:
        for route in list_routes(has_ipv6=self._has_ipv6):
            family, *words = route.split()
            await run_program("ip", [family, "route", "replace", *words])
        standing = await _list_standing()
        for rule in list_rules(self.direct, has_ipv6=self._has_ipv6):
            key = _key_of_rule(rule)
            if key not in standing:
                self._note(Entry("rule", rule))
                family, *words = rule.split()
                await run_program("ip", [family, "rule", "add", *words])

    async def _remove_stale(self) -> None:
        """Remove the rules of a former run that had other exceptions."""
        wanted = set(list_rules(self.direct, has_ipv6=self._has_ipv6))
        for entry in self._journal.entries:
            if entry.kind == "rule" and entry.target not in wanted:
                family, *words = entry.target.split()
                with contextlib.suppress(EnvError):
                    await run_program("ip", [family, "rule", "del", *words])
                self._journal.remove(entry)

    async def _use_resolved(self) -> None:
        """Have systemd-resolved ask the exit, where it runs: it binds its questions to other interfaces."""
        if find_program("resolvectl") is None or not Path("/run/systemd/resolve").is_dir():
            return
        servers = [str(DNS_V4), *([str(DNS_V6)] if self._has_ipv6 else [])]
        try:
            # The settings end with the interface.
            await run_program("resolvectl", ["dns", DEVICE, *servers])
            await run_program("resolvectl", ["domain", DEVICE, "~."])
        except EnvError as error:
            self.warnings += (
                f"systemd-resolved does not take the exit's DNS ({error}): names may not be found until"
                f" `resolvectl dns {DEVICE} {DNS_V4}; resolvectl domain {DEVICE} '~.'` works",
            )

    def _change(self, setting: str, value: str) -> None:
        old = read_setting(setting)
        if old is not None and old != value:
            self._note(Entry("setting", setting, old, value))
            write_setting(setting, value)

    def _note(self, entry: Entry) -> None:
        if entry not in self._journal.entries:
            self._journal.add(entry)


@contextlib.asynccontextmanager
async def open_device(folder: Path, direct: Iterable[Network] = ()) -> AsyncIterator[Device]:
    """Lock this machine until the block ends; `Device.connect` then opens the way into the tunnel.

    `folder` is the client's own, for the journal; `direct` is reached outside of the tunnel. After
    `Device.hold` an error that ends the block leaves the lock; a cancellation never does. Raises
    PrivilegeError when something is missing, ConflictError when a session over ssh would be cut off (nothing
    was changed then), EnvError when the machine refuses a step.
    """
    require_device_privileges()
    direct = tuple(direct)
    _refuse_to_cut_off(direct)
    journal = Journal.open(folder, "client")
    try:
        device = Device(journal, direct, was_locked=bool(journal.entries))
        try:
            await device.lock()
            yield device
        except BaseException as error:
            if (device.was_locked or device.holds) and _is_failure(error):
                _log.error("machine_stays_locked", hint="start the client again, or lift it: `hopfare stop`")
            else:
                await _undo(journal)
            raise
        else:
            await _undo(journal)
    finally:
        journal.close()


async def lift_device(folder: Path) -> bool:
    """Put back what a killed client left, and tell whether there was something; raises as `open_device`."""
    if not (folder / JOURNAL_NAME).exists():
        return False
    journal = Journal.open(folder, "client")
    try:
        if not journal.entries:
            return False
        require_device_privileges()
        await _undo(journal)
        return True
    finally:
        journal.close()


def left_locked(folder: Path) -> bool:
    """Tell whether a killed client has left this machine locked. Raises EnvError while one runs."""
    if not (folder / JOURNAL_NAME).exists():
        return False
    journal = Journal.open(folder, "client")
    journal.close()
    return bool(journal.entries)


async def _undo(journal: Journal) -> None:
    """Undo what the journal lists, last first, the lock at the end; what is gone already is no error."""
    with trio.CancelScope(shield=True):
        for entry in reversed(journal.entries):
            if entry.kind == "setting":
                restore_setting(entry)
            elif entry.kind == "table":
                await run_nft(render_removal())
            else:
                family, *words = entry.target.split()
                if entry.kind == "rule":
                    commands = [[family, "rule", "del", *words]]
                else:
                    commands = [[one, "route", "flush", "table", entry.target] for one in ("-4", "-6")]
                for command in commands:
                    with contextlib.suppress(EnvError):
                        await run_program("ip", command)
            journal.remove(entry)


def _is_failure(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_failure(part) for part in error.exceptions)
    return isinstance(error, Exception)


async def _table_stands() -> bool:
    listed = json.loads(await run_program("nft", ["-j", "list", "tables"]))
    tables = [item.get("table", {}) for item in listed.get("nftables", ())]
    return any(table.get("family") == "inet" and table.get("name") == TABLE for table in tables)


async def _list_standing() -> set[tuple[str, int, str]]:
    """Return family, priority and destination of the rules of our priorities."""
    found = set()
    for family in ("-4", "-6"):
        for rule in await list_with_ip([family, "rule", "show"]):
            if rule.get("priority") in _PRIORITIES:
                target = rule.get("dst", "")
                if target:
                    target = str(
                        ipaddress.ip_network(f"{target}/{rule.get('dstlen', 128 if ':' in target else 32)}")
                    )
                found.add((family, int(rule["priority"]), target))
    return found


def _key_of_rule(rule: str) -> tuple[str, int, str]:
    words = rule.split()
    return words[0], int(words[2]), words[words.index("to") + 1] if "to" in words else ""


def _refuse_to_cut_off(direct: Sequence[Network]) -> None:
    """Raise ConflictError if somebody is logged in over ssh from where answers could no longer go."""
    for peer in sorted(list_ssh_peers()):
        address = ipaddress.ip_address(peer)
        if not any(address in network for network in direct if network.version == address.version):
            raise ConflictError(
                f"somebody is logged in on this machine over ssh from {peer}, and whole-device mode would cut"
                f" that off: keep it outside of the tunnel with `--direct {peer}` (client.direct), or log out"
            )


def list_ssh_peers(folder: Path = Path("/proc/net")) -> set[str]:
    """Return the addresses, loopback aside, that have connections to port 22 of this machine."""
    peers: set[str] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (folder / name).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _ESTABLISHED and int(words[1].rpartition(":")[2], 16) == _SSH_PORT:
                    peers.add(_decode_proc(words[2].rpartition(":")[0]))
    return {peer for peer in peers if not ipaddress.ip_address(peer).is_loopback}


def _decode_proc(text: str) -> str:
    """Return the address of a line of /proc/net/tcp or tcp6: words of four bytes in the machine's order."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)
