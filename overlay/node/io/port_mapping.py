"""Has the router forward the relay's UDP port to this machine: by NAT-PMP, else by UPnP (library miniupnpc).

Asked for with relay.port_mapping; nothing is sent to the local network otherwise. The mapping has a lifetime,
is renewed at half of it and removed at the end. NAT-PMP is asked first: two packets to the default router,
where UPnP calls into the whole network and believes whoever answers.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio

from overlay.descriptor import Address
from overlay.logs import get_logger
from overlay.node.io.natpmp import NatPmpError, NatPmpRouter, find_gateway

if TYPE_CHECKING:
    from overlay.config.model import Config

LIFETIME_S = 3600
LEAST_RENEW_S = 30.0
"""A router that grants a mapping for seconds is not asked more often."""
RETRY_S = 300.0
DISCOVER_MS = 2000
DESCRIPTION = "hopfare relay"

log = get_logger("discovery")


class Router(Protocol):
    """What is used of `miniupnpc.UPnP`. Calls block, and raise Exception with the library's text."""

    discoverdelay: int
    lanaddr: str

    def discover(self) -> int:
        """Look for devices; return how many answered."""

    def selectigd(self) -> str:
        """Choose the router."""

    def externalipaddress(self) -> str:
        """Return its outer address."""

    def addportmapping(
        self, external_port: int, protocol: str, host: str, port: int, text: str, remote: str, lifetime: int
    ) -> bool:
        """Forward a port."""

    def deleteportmapping(self, external_port: int, protocol: str) -> bool:
        """Forward it no longer."""


class MappingError(Exception):
    """The router did not do it; the message says why."""


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A port that a router forwards."""

    external: Address
    lifetime_s: float
    way: str
    remove: Callable[[], None]
    """Blocks; logs what goes wrong."""


class PortMapper:
    """One port's mapping."""

    def __init__(self, config: Config, make_router: Any = None, make_natpmp: Any = None) -> None:
        """`make_router` stands in for miniupnpc.UPnP in tests, `make_natpmp` for the default router."""
        self._port = next((one.port for one in config.relay.listen if ":" not in one.ip), 0)
        self._make_router = make_router or _make_router
        self._make_natpmp = make_natpmp or _make_natpmp
        self.external: Address | None = None
        """The address at which the router takes packets for this machine."""
        self.problem = ""

    async def run(self) -> None:
        """Make the mapping and renew it, until cancelled; then remove it."""
        if not self._port:
            self.problem = "relay.port_mapping is set, but relay.listen has no IPv4 address to forward to"
            return
        mapping: _Mapping | None = None
        try:
            while True:
                try:
                    mapping = await trio.to_thread.run_sync(self._map, abandon_on_cancel=True)
                except MappingError as error:
                    problem = f"the router forwards no port: {error}"
                    if problem != self.problem:
                        log.error("no port mapping", reason=str(error))
                    self.problem, self.external = problem, None
                    await trio.sleep(RETRY_S)
                    continue
                if self.external != mapping.external:
                    log.info("port mapped", address=str(mapping.external), by=mapping.way)
                self.problem, self.external = "", mapping.external
                await trio.sleep(max(LEAST_RENEW_S, mapping.lifetime_s / 2))
        finally:
            if mapping is not None and self.external is not None:
                with trio.move_on_after(3.0, shield=True):
                    await trio.to_thread.run_sync(mapping.remove, abandon_on_cancel=True)

    def _map(self) -> _Mapping:
        try:
            return self._map_by_natpmp()
        except NatPmpError as error:
            by_natpmp = str(error)
        try:
            return self._map_by_upnp()
        except MappingError as error:
            raise MappingError(f"{error} (UPnP); {by_natpmp} (NAT-PMP)") from None

    def _map_by_natpmp(self) -> _Mapping:
        router = self._make_natpmp()
        ip = router.external_address()
        try:
            _check_public(ip)
        except MappingError as error:
            raise NatPmpError(str(error)) from None
        port, lifetime_s = router.map_udp(self._port, self._port, LIFETIME_S)

        def remove() -> None:
            try:
                router.map_udp(self._port, 0, 0)
            except NatPmpError as error:
                log.warning("port mapping stays", reason=str(error))

        return _Mapping(Address(ip, port), min(lifetime_s, LIFETIME_S), "NAT-PMP", remove)

    def _map_by_upnp(self) -> _Mapping:
        router, ip = self._find_upnp()
        self._add(router)
        return _Mapping(Address(ip, self._port), LIFETIME_S, "UPnP", lambda: self._unmap(router))

    def _find_upnp(self) -> tuple[Router, str]:
        router: Router = self._make_router()
        router.discoverdelay = DISCOVER_MS
        try:
            if not router.discover():
                raise MappingError("no router that speaks UPnP answers in this network")
            router.selectigd()
            ip = router.externalipaddress()
        except MappingError:
            raise
        except Exception as error:
            raise MappingError(f"no router that speaks UPnP was found ({error})") from None
        _check_public(ip)
        return router, ip

    def _add(self, router: Router) -> None:
        for lifetime_s in (LIFETIME_S, 0):  # some routers know permanent mappings only
            try:
                if router.addportmapping(
                    self._port, "UDP", router.lanaddr, self._port, DESCRIPTION, "", lifetime_s
                ):
                    return
                reason = "it refused"
            except Exception as error:
                reason = str(error)
        raise MappingError(f"the router refuses to forward UDP port {self._port} ({reason})")

    def _unmap(self, router: Router) -> None:
        try:
            router.deleteportmapping(self._port, "UDP")
        except Exception as error:
            log.warning("port mapping stays", reason=str(error))


def _check_public(ip: str) -> None:
    try:
        if not ipaddress.ip_address(ip).is_global:
            raise MappingError(
                f"the router's own address {ip} is not a public one: another router is in front of it"
            )
    except ValueError:
        raise MappingError("the router does not know its own address") from None


def _make_natpmp() -> NatPmpRouter:
    return NatPmpRouter(find_gateway())


def _make_router() -> Router:
    # By name: the library is one compiled module without type stubs.
    router: Router = importlib.import_module("miniupnpc").UPnP()
    return router
