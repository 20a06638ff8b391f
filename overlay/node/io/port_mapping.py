"""Has the router forward the relay's UDP port to this machine, by UPnP (the library miniupnpc).

Asked for with relay.port_mapping; nothing is sent to the local network otherwise. The mapping has a lifetime,
is renewed at half of it and removed at the end. NAT-PMP is not spoken: no kept library for it could be found.
"""

from __future__ import annotations

import importlib
import ipaddress
from typing import TYPE_CHECKING, Any, Protocol

import trio

from overlay.descriptor import Address
from overlay.logs import get_logger

if TYPE_CHECKING:
    from overlay.config.model import Config

LIFETIME_S = 3600
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


class PortMapper:
    """One port's mapping."""

    def __init__(self, config: Config, make_router: Any = None) -> None:
        """`make_router` stands in for miniupnpc.UPnP in tests."""
        self._port = next((one.port for one in config.relay.listen if ":" not in one.ip), 0)
        self._make_router = make_router or _make_router
        self.external: Address | None = None
        """The address at which the router takes packets for this machine."""
        self.problem = ""

    async def run(self) -> None:
        """Make the mapping and renew it, until cancelled; then remove it."""
        if not self._port:
            self.problem = "relay.port_mapping is set, but relay.listen has no IPv4 address to forward to"
            return
        router: Router | None = None
        try:
            while True:
                try:
                    router, ip = await trio.to_thread.run_sync(self._map, abandon_on_cancel=True)
                except MappingError as error:
                    problem = f"the router forwards no port (UPnP): {error}"
                    if problem != self.problem:
                        log.error("no port mapping", reason=str(error))
                    self.problem, self.external = problem, None
                    await trio.sleep(RETRY_S)
                    continue
                if self.external is None:
                    log.info("port mapped", address=f"{ip}:{self._port}")
                self.problem, self.external = "", Address(ip, self._port)
                await trio.sleep(LIFETIME_S / 2)
        finally:
            if router is not None and self.external is not None:
                with trio.move_on_after(3.0, shield=True):
                    await trio.to_thread.run_sync(self._unmap, router, abandon_on_cancel=True)

    def _map(self) -> tuple[Router, str]:
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
        try:
            if not ipaddress.ip_address(ip).is_global:
                raise MappingError(
                    f"the router's own address {ip} is not a public one: another router is in front of it"
                )
        except ValueError:
            raise MappingError("the router does not know its own address") from None
        self._add(router)
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


def _make_router() -> Router:
    # By name: the library is one compiled module without type stubs.
    router: Router = importlib.import_module("miniupnpc").UPnP()
    return router
