"""Relays' switches joined in memory, with real builds and an engine that only remembers."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from circuits.building.client import BuildHop, ClientBuild
from circuits.building.messages import ExitAddresses, ExitHere
from circuits.building.onion_keys import OnionKeys
from circuits.building.relay import RelayBuild
from overlay.engine.interface import FlowCounters, Price
from overlay.engine.meters import Meter
from overlay.messages import Build
from overlay.node.switch import CircuitSwitch

UNIX_S = 1_800_000_000.0


@dataclass(eq=False)
class FakeFlow:
    what: tuple
    counters: FlowCounters = field(default_factory=FlowCounters)
    closed: bool = False


class FakeEngine:
    def __init__(self) -> None:
        self.flows: list[FakeFlow] = []

    def relay(self, *what) -> FakeFlow:
        return self._flow(("relay", *what))

    def exit(self, *what) -> FakeFlow:
        return self._flow(("exit", *what))

    def client(self, *what) -> FakeFlow:
        return self._flow(("client", *what))

    def drop(self, flow: FakeFlow) -> None:
        flow.closed = True

    def echo(self, flow, token) -> None: ...

    def _flow(self, what: tuple) -> FakeFlow:
        flow = FakeFlow(what)
        self.flows.append(flow)
        return flow

    @property
    def open_flows(self) -> list[FakeFlow]:
        return [flow for flow in self.flows if not flow.closed]


@dataclass(eq=False)
class FakeEnd:
    owner: object
    peer: bytes | None
    is_dialler: bool
    other: FakeEnd | None = None
    rtt_s: float = 0.01

    def send_control(self, message: bytes) -> None: ...
    def close(self, code: int = 0, reason: str = "") -> None: ...


class Customer:
    """The client's end: remembers what comes."""

    def __init__(self) -> None:
        self.got: list = []

    def handle(self, link: FakeEnd, message, now: float) -> None:
        self.got.append(message)


class Relay:
    def __init__(self, net: SwitchNet, number: int, *, is_exit: bool, price: int = 0) -> None:
        self.net = net
        self.node_id = bytes([number]) * 32
        self.address = (f"10.{number}.0.1", 4433)
        self.engine = FakeEngine()
        self.keys = OnionKeys.generate(UNIX_S, net.rng)
        self.build = RelayBuild(self.node_id, self.keys, (1, 2), net.rng)
        self.links: dict[bytes, FakeEnd] = {}
        self.dialled: list[bytes] = []
        self.reachable = True
        self.leases = 0
        self.price = price
        self.unpayable: str | None = None
        self.carried: dict[FakeFlow, tuple[int, int]] = {}
        self.switch: CircuitSwitch[FakeEnd] = CircuitSwitch(
            self,
            self.engine,
            self.build,
            node_id=self.node_id,
            price_wei_per_packet=price,
            is_exit=is_exit,
            random_id=lambda: net.random.getrandbits(31),
        )

    def hop(self) -> BuildHop:
        return BuildHop(self.node_id, self.keys.current.public, self.address, self.price)

    def handle(self, link: FakeEnd, message, now: float) -> None:
        if isinstance(message, Build):
            self.switch.on_build(link, message, now, UNIX_S)
        elif type(message).__name__ == "Built":
            self.switch.on_built(link, message, now)
        else:
            self.switch.on_destroy(link, message, now)

    # the host
    def send(self, link: FakeEnd, message) -> None:
        self.net.queue.append((link, message))

    def find_link(self, node_id: bytes) -> FakeEnd | None:
        return self.links.get(node_id)

    def dial(self, node_id: bytes, address) -> None:
        self.dialled.append(node_id)
        self.net.dials.append((self, node_id))

    def may_extend(self, node_id: bytes, address) -> str | None:
        known = self.net.relays.get(node_id)
        return (
            None
            if known is not None and known.address == tuple(address)
            else "it is not in this relay's directory"
        )

    def price_in(self, link: FakeEnd, wei_per_packet: int) -> Price:
        return Price(Meter(), wei_per_packet)

    price_out = price_in

    def may_pay(self, front: FakeEnd, link: FakeEnd, wei_per_packet: int) -> str | None:
        return self.unpayable

    def circuit_up(self, flow, front, price_in, back, price_out, now) -> None:
        self.carried[flow] = (price_in, price_out)

    def circuit_down(self, flow, now) -> None:
        del self.carried[flow]

    def allocate(self, wanted: ExitHere, now: float) -> ExitAddresses | None:
        self.leases += 1
        return ExitAddresses(
            IPv4Address("100.64.9.9"),
            IPv6Address("fd68:6f70:6661::99"),
            IPv4Address("100.64.0.1"),
            IPv6Address("fd68:6f70:6661::1"),
        )

    def release(self, addresses: ExitAddresses, now: float) -> None:
        self.leases -= 1


class SwitchNet:
    def __init__(self, seed: int = 1, relays: int = 3, price: int = 0) -> None:
        self.random = random.Random(seed)
        self.rng = self.random.randbytes
        self.queue: deque = deque()
        self.dials: deque = deque()
        self.now = 100.0
        self.relays: dict[bytes, Relay] = {}
        self.path = [Relay(self, i + 1, is_exit=i == relays - 1, price=price) for i in range(relays)]
        for relay in self.path:
            self.relays[relay.node_id] = relay
        self.customer = Customer()
        self.guard_link = self.join(self.customer, self.path[0], None)

    def join(self, dialler, acceptor: Relay, peer: bytes | None) -> FakeEnd:
        near = FakeEnd(dialler, acceptor.node_id, True)
        far = FakeEnd(acceptor, peer, False)
        near.other, far.other = far, near
        acceptor.switch.on_link_up(far, self.now)
        if isinstance(dialler, Relay):
            dialler.links[acceptor.node_id] = near
            dialler.switch.on_link_up(near, self.now)
            acceptor.links[dialler.node_id] = far
        return near

    def start(
        self, *, wanted: ExitHere | None = None, lifetime_s: int = 600, hops=None, circuit_id: int = 7
    ) -> ClientBuild:
        build = ClientBuild(
            [relay.hop() for relay in (hops or self.path)],
            wanted or ExitHere(),
            suite=2,
            lifetime_s=lifetime_s,
            rng=self.rng,
            now=self.now,
            unix_s=UNIX_S,
        )
        self.queue.append((self.guard_link, Build(circuit_id, build.records)))
        return build

    def run(self) -> None:
        while self.queue or self.dials:
            while self.queue:
                link, message = self.queue.popleft()
                link.other.owner.handle(link.other, message, self.now)
            if self.dials:
                relay, node_id = self.dials.popleft()
                target = self.relays.get(node_id)
                if target is None or not target.reachable:
                    relay.switch.on_dialled(node_id, None, "no answer", self.now)
                else:
                    relay.switch.on_dialled(node_id, self.join(relay, target, relay.node_id), "", self.now)

    def cut(self, relay: Relay, link: FakeEnd) -> None:
        """Close a link on both sides, as engines would report it."""
        for end in (link, link.other):
            if isinstance(end.owner, Relay):
                end.owner.links = {peer: other for peer, other in end.owner.links.items() if other is not end}
                end.owner.switch.on_link_closed(end, self.now)
        self.run()
