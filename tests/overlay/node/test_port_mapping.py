"""Asking the router to forward the port: the library's place is taken by routers that behave in some way."""

from dataclasses import replace

import pytest
import trio

from overlay.config.model import Config, RelayConfig
from overlay.descriptor import Address
from overlay.node.io import port_mapping
from overlay.node.io.natpmp import NatPmpError
from overlay.node.io.port_mapping import PortMapper

CONFIG = replace(Config(), relay=RelayConfig(listen=(Address("0.0.0.0", 4433),)))


class Router:
    """Speaks as `miniupnpc.UPnP` does."""

    def __init__(self, *, devices=1, igd=True, ip="198.51.99.7", only_permanent=False, refuses=False):
        self.devices, self.igd, self.ip = devices, igd, ip
        self.only_permanent, self.refuses = only_permanent, refuses
        self.discoverdelay = 0
        self.lanaddr = "192.168.1.5"
        self.mapped = {}
        self.added = 0

    def discover(self):
        return self.devices

    def selectigd(self):
        if not self.igd:
            raise Exception("No UPnP device discovered")
        return "http://192.168.1.1/"

    def externalipaddress(self):
        return self.ip

    def addportmapping(self, external, protocol, host, port, text, remote, lifetime):
        if self.refuses or (self.only_permanent and lifetime):
            raise Exception("OnlyPermanentLeasesSupported")
        self.added += 1
        self.mapped[external] = (protocol, host, port, lifetime)
        return True

    def deleteportmapping(self, external, protocol):
        del self.mapped[external]
        return True


class NatPmp:
    """Speaks as `NatPmpRouter` does."""

    def __init__(self, *, ip="8.8.4.4", outer=0, refuses=""):
        self.ip, self.outer, self.refuses = ip, outer, refuses
        self.mapped = {}
        self.added = 0

    def external_address(self):
        return self.ip

    def map_udp(self, internal, external, lifetime):
        if self.refuses:
            raise NatPmpError(self.refuses)
        if not lifetime:
            del self.mapped[internal]
            return 0, 0
        self.added += 1
        self.mapped[internal] = self.outer or external
        return self.mapped[internal], lifetime


def no_natpmp():
    raise NatPmpError("the router 192.168.1.1 does not answer")


def upnp_mapper(config, make_router):
    return PortMapper(config, make_router, no_natpmp)


async def run_for(mapper, seconds, monkeypatch):
    monkeypatch.setattr(port_mapping, "RETRY_S", 0.05)
    monkeypatch.setattr(port_mapping, "LIFETIME_S", 0.2)
    monkeypatch.setattr(port_mapping, "LEAST_RENEW_S", 0.0)
    with trio.move_on_after(seconds):
        await mapper.run()


async def test_a_port_is_mapped_renewed_and_given_back(monkeypatch):
    router = Router(ip="8.8.4.4")
    mapper = upnp_mapper(CONFIG, lambda: router)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, mapper, 60.0, monkeypatch)
        with trio.fail_after(30):
            while router.added < 3:
                await trio.sleep(0.01)
        assert mapper.external == Address("8.8.4.4", 4433)
        assert mapper.problem == ""
        assert router.mapped[4433][:3] == ("UDP", "192.168.1.5", 4433)
        nursery.cancel_scope.cancel()
    assert router.mapped == {}


@pytest.mark.parametrize(
    ("router", "words"),
    [
        (Router(devices=0), "no router that speaks UPnP answers"),
        (Router(igd=False), "No UPnP device discovered"),
        (Router(ip="100.64.3.4"), "another router is in front of it"),
        (Router(ip=""), "does not know its own address"),
        (Router(ip="8.8.4.4", refuses=True), "refuses to forward UDP port 4433"),
    ],
)
async def test_the_operator_is_told_why_there_is_none(monkeypatch, router, words):
    mapper = upnp_mapper(CONFIG, lambda: router)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_for, mapper, 60.0, monkeypatch)
            while not mapper.problem:
                await trio.sleep(0.01)
            assert words in mapper.problem
            assert mapper.external is None
            nursery.cancel_scope.cancel()


async def test_a_router_that_knows_only_permanent_mappings_gets_one(monkeypatch):
    router = Router(ip="8.8.4.4", only_permanent=True)
    mapper = upnp_mapper(CONFIG, lambda: router)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_for, mapper, 60.0, monkeypatch)
            while mapper.external is None:
                await trio.sleep(0.01)
            assert router.mapped[4433][3] == 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("outer", [0, 50_000])
async def test_natpmp_is_asked_first(monkeypatch, outer):
    natpmp = NatPmp(outer=outer)
    mapper = PortMapper(CONFIG, lambda: pytest.fail("UPnP was asked"), lambda: natpmp)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, mapper, 60.0, monkeypatch)
        with trio.fail_after(30):
            while natpmp.added < 3:
                await trio.sleep(0.01)
        assert mapper.external == Address("8.8.4.4", outer or 4433)
        assert natpmp.mapped == {4433: outer or 4433}
        nursery.cancel_scope.cancel()
    assert natpmp.mapped == {}


@pytest.mark.parametrize(
    ("natpmp", "words"),
    [
        (NatPmp(refuses="it has no ports left"), "it has no ports left (NAT-PMP)"),
        (NatPmp(ip="100.64.3.4"), "another router is in front of it (NAT-PMP)"),
    ],
)
async def test_where_both_refuse_both_are_told(monkeypatch, natpmp, words):
    mapper = PortMapper(CONFIG, lambda: Router(devices=0), lambda: natpmp)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_for, mapper, 60.0, monkeypatch)
            while not mapper.problem:
                await trio.sleep(0.01)
            assert words in mapper.problem
            assert "no router that speaks UPnP answers" in mapper.problem
            nursery.cancel_scope.cancel()


async def test_without_ipv4_there_is_nothing_to_map():
    config = replace(Config(), relay=RelayConfig(listen=(Address("::", 4433),)))
    mapper = upnp_mapper(config, Router)
    await mapper.run()
    assert "no IPv4 address" in mapper.problem


def test_the_library_is_there_and_has_what_is_used():
    router = port_mapping._make_router()
    for name in ("discover", "selectigd", "externalipaddress", "addportmapping", "deleteportmapping"):
        assert callable(getattr(router, name))
