"""An exit's own side: network, addresses, gate, DNS and the TUN, joined to the engine."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from circuits.building.messages import ExitAddresses, ExitHere
from exit.addresses import DNS_V4, DNS_V4_PACKED, DNS_V6, DNS_V6_PACKED, AddressPool, Lease
from exit.dns.rules import Rules
from exit.dns.upstream import Upstream
from exit.errors import EnvError
from exit.io.dns import DnsServer, open_dns
from exit.io.network import ExitNetwork, NetworkSettings, open_network
from exit.policy import parse_policy
from overlay.engine.gate import ExitGate, GateCounters
from overlay.engine.interface import InnerAddresses
from overlay.engine.io.tun_loop import run_tun
from overlay.engine.native import NativeEngine
from overlay.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from overlay.config.model import Config
    from overlay.directory import Directory
    from overlay.engine.python import PythonEngine

DNS = InnerAddresses(DNS_V4_PACKED, DNS_V6_PACKED)
REFRESH_S = 30.0
"""How often the machine's own addresses are looked at again."""

log = get_logger("exit")


class ExitSide:
    """What the relay's node asks of its exit. Made by ``open_exit_side``."""

    def __init__(self, network: ExitNetwork, dns: DnsServer, directory: Directory) -> None:
        self.network = network
        self.dns = dns
        self.counters = GateCounters()
        self.problem = ""
        self._pool = AddressPool(os.urandom)
        self._leases: dict[IPv4Address, Lease] = {}
        self._directory = directory
        self._changed = trio.Event()
        self._native: NativeEngine | None = None

    def judge_by(self, engine: NativeEngine) -> None:
        """Have the native engine judge customers' packets, by the rules as they are and as they change."""
        self._native = engine
        engine.set_policy(self.network.table, DNS)

    def gate(self, addresses: InnerAddresses) -> ExitGate:
        """The gate of one circuit."""
        return ExitGate(self.network.table, addresses, DNS, self.counters)

    def allocate(self, wanted: ExitHere, now: float) -> ExitAddresses | None:
        """Inner addresses for a circuit; None when there are none left."""
        lease = self._pool.lease(
            wanted.ipv4.packed if wanted.ipv4 is not None else b"",
            wanted.ipv6.packed if wanted.ipv6 is not None else b"",
            now,
        )
        if lease is None:
            return None
        v4 = IPv4Address(lease.v4)
        self._leases[v4] = lease
        has_ipv6 = self.network.has_ipv6 and wanted.wants_ipv6
        return ExitAddresses(
            v4,
            IPv6Address(lease.v6) if has_ipv6 else None,
            IPv4Address(DNS_V4_PACKED),
            IPv6Address(DNS_V6_PACKED) if has_ipv6 else None,
        )

    def release(self, addresses: ExitAddresses, now: float) -> None:
        """Give a circuit's addresses back; they rest before the next circuit gets them."""
        lease = self._leases.pop(addresses.ipv4, None)
        if lease is not None:
            self._pool.release(lease, now)

    def set_directory(self, directory: Directory) -> None:
        """The relays that customers must not be sent to have changed."""
        self._directory = directory
        self._changed.set()

    def status(self) -> dict[str, Any]:
        """For `hopfare status`."""
        if self._native is not None:
            self._native.read_gate(self.counters)
        return {
            "ipv6": self.network.has_ipv6,
            "addresses_leased": len(self._pool),
            "malformed": self.counters.malformed,
            "spoofed": self.counters.spoofed,
            "refused": self.counters.refused,
            "warnings": [*self.network.warnings, *([self.problem] if self.problem else [])],
        }

    async def keep_denied(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deny relays' and the machine's own addresses as they change, until cancelled; started once done."""
        while True:
            self._changed = trio.Event()
            try:
                await self.network.set_relays(
                    [address.packed for address in self._directory.known_addresses()]
                )
                await self.network.refresh()
                self.problem = ""
            except EnvError as error:
                # The engine's own list is in force; the firewall keeps its last one until this works again.
                if not self.problem:
                    log.error("the firewall does not take the new list of addresses", reason=str(error))
                self.problem = f"the firewall does not take the new list of addresses: {error}"
            if self._native is not None:
                self._native.set_policy(self.network.table, DNS)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(REFRESH_S):
                await self._changed.wait()


@asynccontextmanager
async def open_exit_side(
    config: Config,
    engine: PythonEngine | NativeEngine,
    directory: Directory,
    run_batch: Callable[[Callable[[], None]], None],
) -> AsyncIterator[ExitSide]:
    """Bring the exit's side up and run it until the block is left.

    Raises PrivilegeError, EnvError, PolicyError: each one sentence for the operator.
    """
    own = config.relay.advertise or config.relay.listen
    settings = NetworkSettings(
        policy=parse_policy(config.exit.policy, open_ports=config.exit.open_ports),
        name=config.exit.interface,
        tun=config.exit.interface,
        addresses=tuple(address.ip for address in own if address.ip not in ("0.0.0.0", "::")),
        allow_ranges=tuple(str(network) for network in config.exit.allow_ranges),
        ipv6={"auto": None, "on": True, "off": False}[config.exit.ipv6],
    )
    async with (
        open_network(settings, config.state_dir) as network,
        open_dns(
            _dns_hosts(),
            Rules(has_ipv6=network.has_ipv6),
            lambda: network.deny,
            [Upstream(address.ip, address.port) for address in config.exit.resolvers],
        ) as dns,
        trio.open_nursery() as nursery,
    ):
        for warning in network.warnings:
            log.warning("exit network", note=warning)
        side = ExitSide(network, dns, directory)
        if isinstance(engine, NativeEngine):
            side.judge_by(engine)
        engine.attach_tun(network.tun, by_source=False)

        async def pump() -> None:
            await run_tun(engine, network.tun, run_batch, may_rest=False)

        nursery.start_soon(pump)
        await nursery.start(side.keep_denied)  # no customer before relays' addresses are denied
        try:
            yield side
        finally:
            nursery.cancel_scope.cancel()


def _dns_hosts() -> list[str]:
    """The inner addresses that DNS answers on: the IPv6 one unless the kernel has none."""
    disabled = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    has_ipv6 = disabled.exists() and disabled.read_text().strip() == "0"
    return [str(DNS_V4), str(DNS_V6)] if has_ipv6 else [str(DNS_V4)]
