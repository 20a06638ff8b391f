"""The exit's network: TUN, addresses, forwarding, firewall. Owns their set-up and their removal.

`open_network` brings everything up in an order that never forwards unfiltered, and puts everything back when
it ends, however it ends; what a killed process left is put back at the next start (`exit.io.journal`). It
works in the machine's network namespace as well as in one inside a user namespace. One exit per network
namespace: the inner addresses are the same at every exit.

What changes on the machine: one TUN device (gone with the process), the table `inet hopfare_NAME`, and
forwarding: for IPv4 on the TUN and on interfaces with a default route only; for IPv6 likewise where the
kernel has `force_forwarding` (Linux 6.17), else for all, with `accept_ra` raised to 2 where it was 1 so that
the machine keeps its own address and route.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from exit.addresses import DNS_V4, DNS_V4_PACKED, DNS_V6, DNS_V6_PACKED, INNER_V4, INNER_V6
from exit.denied import DenyList, pack_address
from exit.errors import EnvError
from exit.io.journal import Entry, Journal, read_setting, restore_setting, write_setting
from exit.io.privileges import require_privileges
from exit.io.programs import list_with_ip, run_nft, run_program
from exit.io.tun import DEFAULT_MTU, Tun
from exit.nft import FLOWS_PER_CIRCUIT, Firewall, render, render_exact, render_removal
from exit.policy import Policy, PolicyTable


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What the operator decides. `addresses` are the relay's public addresses, as texts or packed.

    `ipv6` None means: if the machine has a default route for it. `name` names the firewall table, `tun` the
    device.
    """

    policy: Policy
    name: str = "exit"
    tun: str = "hopfare0"
    mtu_bytes: int = DEFAULT_MTU
    addresses: tuple[str | bytes, ...] = ()
    allow_ranges: tuple[str, ...] = ()
    deny_ranges: tuple[str, ...] = ()
    ipv6: bool | None = None
    offload: bool = True
    flows_per_circuit: int = FLOWS_PER_CIRCUIT


@dataclass(frozen=True, slots=True)
class Machine:
    """What `examine` found: packed addresses of the machine and its gateways, and interfaces with a default
    route."""

    addresses: frozenset[bytes]
    uplinks_v4: tuple[str, ...]
    uplinks_v6: tuple[str, ...]
    inner_device: str | None


class ExitNetwork:
    """A network that is up. `tun` is the device, `table` judges packets, `warnings` are sentences for the
    operator."""

    def __init__(
        self, settings: NetworkSettings, journal: Journal, tun: Tun, machine: Machine, has_ipv6: bool
    ) -> None:
        """Use `open_network`."""
        self._settings = settings
        self._journal = journal
        self._machine = machine
        self._relays: frozenset[bytes] = frozenset()
        self.tun = tun
        self.has_ipv6 = has_ipv6
        self.deny = self._make_deny()
        self.table = PolicyTable(
            settings.policy, self.deny, has_ipv6=has_ipv6, dns_addresses=(DNS_V4_PACKED, DNS_V6_PACKED)
        )
        self.warnings: tuple[str, ...] = settings.policy.notes
        self._lock = trio.Lock()

    async def set_relays(self, addresses: Iterable[str | bytes]) -> None:
        """Deny exactly these relays' addresses from now on, in the engine's table and in the firewall.

        Raises EnvError when the firewall cannot be changed; the engine's table then has the new list already.
        """
        self._relays = frozenset(pack_address(address) for address in addresses)
        await self._apply_deny()

    async def refresh(self) -> None:
        """Look at the machine's own addresses again and deny them as they are now; call it now and then."""
        self._machine = await examine()
        await self._apply_deny()

    async def _apply_deny(self) -> None:
        async with self._lock:
            deny = self._make_deny()
            if deny.exact == self.deny.exact:
                return
            self.deny = deny
            self.table.replace_deny(deny)
            await run_nft(render_exact(self.firewall, deny))

    @property
    def firewall(self) -> Firewall:
        """Return what the firewall's table is made from."""
        return Firewall(
            name=self._settings.name,
            tun=self.tun.name,
            mtu_bytes=self._settings.mtu_bytes,
            policy=self._settings.policy,
            deny=self.deny,
            has_ipv6=self.has_ipv6,
            flows_per_circuit=self._settings.flows_per_circuit,
        )

    def _make_deny(self) -> DenyList:
        return DenyList(
            allow=self._settings.allow_ranges,
            extra=self._settings.deny_ranges,
            addresses=(*self._machine.addresses, *self._settings.addresses, *self._relays),
        )

    async def _set_up(self) -> None:
        firewall = self.firewall
        # The filter stands before the first packet can be forwarded.
        self._journal.add(Entry("table", firewall.table))
        try:
            await run_nft(render(firewall))
        except EnvError:
            # A kernel may lack the module for random numbers; all that guards anybody does without it.
            await run_nft(render(replace(firewall, new_ids=False)))
            self.warnings += (
                "the kernel has no nft_numgen: the IPv4 identification of packets that may be cut stays as "
                "customers' machines chose it; load or build the module",
            )
        self.warnings += tuple(await _foreign_drops(firewall))
        device = self.tun.name
        for setting, value in _device_settings(device):
            if read_setting(setting) is not None:
                write_setting(setting, value)
        prefix4, prefix6 = INNER_V4.prefixlen, INNER_V6.prefixlen
        commands = [f"address add {DNS_V4}/{prefix4} dev {device}"]
        if _kernel_has_ipv6():
            commands.append(f"address add {DNS_V6}/{prefix6} dev {device} nodad")
        commands.append(f"link set {device} mtu {self._settings.mtu_bytes} up")
        await run_program("ip", ["-batch", "-"], "\n".join(commands) + "\n")
        for setting, value in self._forwarding():
            self._change(setting, value)

    def _forwarding(self) -> list[tuple[str, str]]:
        """Return the settings that make the machine forward between the TUN and its uplinks."""
        device = self.tun.name
        wanted = [(f"net/ipv4/conf/{name}/forwarding", "1") for name in (device, *self._machine.uplinks_v4)]
        if not self.has_ipv6:
            return wanted
        uplinks = self._machine.uplinks_v6
        if read_setting(f"net/ipv6/conf/{device}/force_forwarding") is not None:
            wanted += [(f"net/ipv6/conf/{name}/force_forwarding", "1") for name in (device, *uplinks)]
            return wanted
        # accept_ra first: at the moment when forwarding starts, the kernel throws away what routers told it
        # otherwise.
        wanted += [
            (f"net/ipv6/conf/{name}/accept_ra", "2")
            for name in uplinks
            if read_setting(f"net/ipv6/conf/{name}/accept_ra") == "1"
        ]
        wanted.append(("net/ipv6/conf/all/forwarding", "1"))
        return wanted

    def _change(self, setting: str, value: str) -> None:
        old = read_setting(setting)
        if old is not None and old != value:
            self._journal.add(Entry("setting", setting, old, value))
            write_setting(setting, value)


@contextlib.asynccontextmanager
async def open_network(settings: NetworkSettings, state_folder: Path) -> AsyncIterator[ExitNetwork]:
    """Bring the exit's network up, and put everything back at the end, also on errors and cancellation.

    `state_folder` is the exit's own, for the journal. Raises PrivilegeError when something is missing
    (nothing was changed then), EnvError or TunError when the machine refuses a step (what was done is undone
    then), ValueError for addresses or ranges that are none.
    """
    journal = Journal.open(state_folder)
    try:
        require_privileges()
        await _undo(journal)
        machine = await examine()
        if machine.inner_device is not None:
            raise EnvError(
                f"the interface {machine.inner_device} has an address of {INNER_V4} or {INNER_V6}; an exit"
                " needs a network namespace without another exit and without other users of these addresses"
            )
        has_ipv6 = _kernel_has_ipv6() and (
            bool(machine.uplinks_v6) if settings.ipv6 is None else settings.ipv6
        )
        tun = Tun.open(settings.tun, settings.offload, mtu=settings.mtu_bytes)
        try:
            network = ExitNetwork(settings, journal, tun, machine, has_ipv6)
            await network._set_up()
            yield network
        finally:
            with trio.CancelScope(shield=True):
                # The device first: with it every packet of ours stops, and only then the filter goes.
                tun.close()
                await _undo(journal)
    finally:
        journal.close()


async def recover(state_folder: Path) -> int:
    """Put back what a killed exit left, and return how many changes that were; raises EnvError as
    `open_network`."""
    journal = Journal.open(state_folder)
    try:
        count = len(journal.entries)
        await _undo(journal)
        return count
    finally:
        journal.close()


async def examine() -> Machine:
    """Return the machine's addresses, gateways and uplinks, of this network namespace; raises EnvError."""
    interfaces = await list_with_ip(["address", "show"])
    addresses: set[bytes] = set()
    inner_device = None
    for interface in interfaces:
        for entry in interface.get("addr_info", ()):
            for key in ("local", "broadcast"):
                if key in entry:
                    addresses.add(pack_address(entry[key]))
            if "local" in entry and ipaddress.ip_address(entry["local"]) in (DNS_V4, DNS_V6):
                inner_device = interface["ifname"]
    uplinks: dict[str, list[str]] = {"-4": [], "-6": []}
    for family, names in uplinks.items():
        routes = await list_with_ip([family, "route", "show", "table", "all"])
        for route in routes:
            for hop in (route, *route.get("nexthops", ())):
                gateway = hop.get("gateway") or hop.get("via", {}).get("host")
                if gateway:
                    addresses.add(pack_address(gateway))
                name = hop.get("dev")
                if route.get("dst") == "default" and name and name != "lo" and name not in names:
                    names.append(name)
    return Machine(frozenset(addresses), tuple(uplinks["-4"]), tuple(uplinks["-6"]), inner_device)


async def _undo(journal: Journal) -> None:
    """Undo what the journal lists, last first, forgetting each entry when it is done."""
    for entry in reversed(journal.entries):
        if entry.kind == "setting":
            restore_setting(entry)
        elif entry.kind == "table":
            await run_nft(render_removal(entry.target))
        journal.remove(entry)


def _device_settings(device: str) -> list[tuple[str, str]]:
    """Return the TUN's own settings, which end with it: no redirects, no routers, strict source check, no own
    address."""
    v4, v6 = f"net/ipv4/conf/{device}", f"net/ipv6/conf/{device}"
    return [
        (f"{v4}/rp_filter", "1"),
        (f"{v4}/accept_redirects", "0"),
        (f"{v4}/send_redirects", "0"),
        (f"{v4}/accept_source_route", "0"),
        (f"{v6}/disable_ipv6", "0"),
        (f"{v6}/accept_redirects", "0"),
        (f"{v6}/accept_ra", "0"),
        (f"{v6}/addr_gen_mode", "1"),
    ]


def _kernel_has_ipv6() -> bool:
    return read_setting("net/ipv6/conf/all/disable_ipv6") == "0"


async def _foreign_drops(firewall: Firewall) -> list[str]:
    """Return a warning for each chain of somebody else's that drops forwarded or incoming packets by
    default."""
    listed = json.loads(await run_program("nft", ["-j", "list", "chains"]))
    warnings = []
    for item in listed.get("nftables", ()):
        chain = item.get("chain", {})
        if chain.get("policy") != "drop" or chain.get("table") == firewall.table:
            continue
        if chain.get("family") not in ("ip", "ip6", "inet") or chain.get("hook") not in ("forward", "input"):
            continue
        where = f"{chain['family']} {chain['table']} {chain['name']}"
        what = f"`nft insert rule {where} iifname {firewall.tun} accept`" + (
            f" and `nft insert rule {where} oifname {firewall.tun} accept`"
            if chain["hook"] == "forward"
            else ""
        )
        warnings.append(
            f"the chain `{where}` drops packets by default and may stop the exit's; if so, run {what}"
        )
    return warnings
