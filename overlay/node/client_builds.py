"""A customer's builds: from a path to a circuit that carries packets, or to the reason why not.

Which paths are built when is the pool's; what becomes of a circuit that stands is the node's.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import trio

from circuits.building.client import BUILD_TIMEOUT_S, BuildDone, BuildFailed, ClientBuild, FailureKind
from circuits.building.messages import ExitAddresses, ExitHere
from exit.addresses import random_inner
from overlay.engine.interface import FlowHandle, InnerAddresses, Price
from overlay.engine.io.choice import make_build_crypto
from overlay.engine.meters import Meter
from overlay.messages import Build, Built, Destroy, encode_control
from overlay.node.lease import Circuit

if TYPE_CHECKING:
    from collections.abc import Callable

    from circuits.path import Path
    from exit.io.namespace import Namespace
    from overlay.links.link import Link
    from overlay.node.client import ClientNode

CIRCUIT_LIFETIME_S = 7 * 3600
"""Asked of relays: the pool drains a circuit for at most six hours after its ten minutes."""
PROOF_TIMEOUT_S = 8.0
"""How long a paid circuit may take to bring an echo: purses further on are opened, and found by payees."""
FIRST_PROOF_S, LONGEST_PROOF_S = 0.05, 0.4


@dataclass(eq=False, slots=True)
class _Attempt:
    """A build that waits for its Built or Destroy."""

    build: ClientBuild
    done: trio.Event = field(default_factory=trio.Event)
    outcome: BuildDone | BuildFailed | None = None


class Builds:
    """The builds of one customer's node."""

    def __init__(
        self, node: ClientNode, namespace: Namespace, nursery: trio.Nursery, progress: Callable[[str], None]
    ) -> None:
        """No build; `progress` is told of builds in words."""
        self._node = node
        self._namespace = namespace
        self._nursery = nursery
        self._progress = progress
        self._attempts: dict[tuple[Link, int], _Attempt] = {}
        self._proofs: dict[FlowHandle, trio.Event] = {}
        self._inner_addresses: set[IPv4Address | IPv6Address | None] = set()
        self._meters: dict[bytes, Meter] = {}
        self._crypto = make_build_crypto(node.config.node.engine)
        self._crypto.prepare(node.config.client.hops)

    def __len__(self) -> int:
        """Return how many builds wait for their answer."""
        return len(self._attempts)

    def uses_link(self, link: Link) -> bool:
        """Whether a build is under way on a link."""
        return any(key[0] is link for key in self._attempts)

    # -- what the engine tells
    # ------------------------------------------------------------------------------------

    def on_link_closed(self, link: Link) -> None:
        """A guard is gone, and the builds over it with it."""
        for key, attempt in list(self._attempts.items()):
            if key[0] is link:
                self._finish(attempt, attempt.build.handle_closed())

    def on_built(self, link: Link, built: Built) -> None:
        """An answer to a build, or to none."""
        attempt = self._attempts.get((link, built.circuit_id))
        if attempt is not None:
            self._finish(attempt, attempt.build.handle_built(built.records))

    def on_destroy(self, link: Link, destroy: Destroy) -> None:
        """A relay gave a build up, or none."""
        attempt = self._attempts.get((link, destroy.circuit_id))
        if attempt is not None:
            self._finish(attempt, attempt.build.handle_closed(destroy.code))

    def take_echo(self, flow: FlowHandle) -> bool:
        """Take an echo if a build waits for it."""
        came = self._proofs.get(flow)
        if came is None:
            return False
        came.set()
        return True

    def _finish(self, attempt: _Attempt, outcome: BuildDone | BuildFailed | None) -> None:
        if outcome is not None:
            attempt.outcome = outcome
            attempt.done.set()

    # -- a build
    # ---------------------------------------------------------------------------------------------------

    async def build(self, circuit_id: int, path: Path) -> Circuit | BuildFailed:
        """Build a circuit over a path; a number of the pool's (0: none of them) is all it is known by."""
        node, guard = self._node, path.hops[0]
        self._progress(f"building a circuit of {len(path.hops)} relays")
        link = await node.links.connect(guard.candidate.node_id, guard.address)
        if link is None:
            reason = node.links.explain(guard.candidate.node_id)
            node.act(node.pool.handle_guard_lost(guard.candidate.node_id, reason, trio.current_time()))
            return BuildFailed(FailureKind.CLOSED, 0, (0,), None, f"hop 1: {reason}")
        if node.purse is not None:
            unpayable = await node.purse.make_payable(link, path.price_wei_per_packet)
            if unpayable is not None:
                return BuildFailed(FailureKind.CLOSED, 0, (), None, unpayable)
        begun = trio.current_time()
        suite = self._choose_suite(path)
        build = ClientBuild(
            path.build_hops(),
            ExitHere(
                IPv4Address(random_inner(os.urandom, 4)), IPv6Address(random_inner(os.urandom, 6)), True
            ),
            suite=suite,
            lifetime_s=CIRCUIT_LIFETIME_S,
            rng=os.urandom,
            now=begun,
            unix_s=time.time(),
            crypto=self._crypto,
        )
        wire_id = self._choose_wire_id(link)
        attempt = self._attempts[(link, wire_id)] = _Attempt(build)
        stands = False
        taken: ExitAddresses | None = None
        flow: FlowHandle | None = None
        try:
            link.send_control(encode_control(Build(wire_id, build.records)))
            with trio.move_on_after(BUILD_TIMEOUT_S):
                await attempt.done.wait()
            outcome = attempt.outcome or build.handle_timeout(trio.current_time() + BUILD_TIMEOUT_S)
            if not isinstance(outcome, BuildDone):
                assert outcome is not None
                return outcome
            build_s = trio.current_time() - begun
            addresses = outcome.addresses
            v6 = addresses.ipv6
            wanted = {addresses.ipv4, v6} - {None}
            if wanted & self._inner_addresses:
                # Not only a mishap: an exit that gives one address twice could see that two circuits are
                # one customer's.
                sentence = "the exit gave an inner address that another circuit has; the next one will differ"
                return BuildFailed(FailureKind.CLOSED, 0, (), None, sentence)
            self._inner_addresses |= wanted
            taken = addresses
            await self._namespace.add_addresses(str(addresses.ipv4), str(v6) if v6 is not None else None)
            if link.end is not None:
                return BuildFailed(FailureKind.CLOSED, 0, (0,), None, "hop 1: its link was lost")
            flow = node.engine.client(
                outcome.roots,
                suite,
                link,
                wire_id,
                self._price(link, path.price_wei_per_packet),
                InnerAddresses(addresses.ipv4.packed, v6.packed if v6 is not None else None),
            )
            if node.money is not None:
                price = path.price_wei_per_packet
                node.money.circuit_up(flow, None, 0, link, price, trio.current_time())
                if price and not await self._carries(flow, link):
                    sentence = "nothing came back through it: one of its relays is not paid yet"
                    return BuildFailed(FailureKind.CLOSED, 0, (), None, sentence)
                if node.purse is not None and node.purse.stopped:
                    return BuildFailed(FailureKind.CLOSED, 0, (), None, node.purse.stopped)
            stands = True
            return Circuit(circuit_id, path, link, wire_id, flow, addresses, build_s)
        finally:
            self._attempts.pop((link, wire_id), None)
            self._crypto.prepare(len(path.hops))
            if not stands:
                if flow is not None:
                    node.engine.drop(flow)
                    if node.money is not None:
                        node.money.circuit_down(flow, trio.current_time())
                link.send_control(encode_control(Destroy(wire_id, 0)))
                if taken is not None:
                    self._nursery.start_soon(self.give_back, taken)

    async def _carries(self, flow: FlowHandle, link: Link) -> bool:
        """Whether an echo comes back: packets are dropped until each hop has taken a ticket of the one before
        it, which may have to open a purse first, and programs should not wait for that.
        """
        node = self._node
        came = self._proofs[flow] = trio.Event()
        wait_s = FIRST_PROOF_S
        try:
            with trio.move_on_after(PROOF_TIMEOUT_S):
                while link.end is None and not came.is_set():
                    node.engine.echo(flow, os.urandom(8))
                    node.endpoint.flush()
                    with trio.move_on_after(wait_s):
                        await came.wait()
                        break
                    self._progress("waiting until every relay of the path is paid")
                    wait_s = min(2 * wait_s, LONGEST_PROOF_S)
            return came.is_set()
        finally:
            del self._proofs[flow]

    def _price(self, link: Link, wei_per_packet: int) -> Price:
        money = self._node.money
        if money is not None:
            return money.price(link, "paying", wei_per_packet)
        return Price(self._meters.setdefault(link.peer or b"", Meter()), wei_per_packet)

    def _choose_suite(self, path: Path) -> int:
        suites = self._node.suites
        for suite in suites:
            if all(suite in hop.candidate.suites for hop in path.hops):
                return suite
        return suites[0]

    def _choose_wire_id(self, link: Link) -> int:
        while True:
            wire_id = int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF
            if (link, wire_id) not in self._attempts and not self._node.engine.circuit_id_in_use(
                link, wire_id
            ):
                return wire_id

    async def give_back(self, addresses: ExitAddresses) -> None:
        """Take a circuit's inner addresses off the namespace; then an exit may give them again."""
        v4, v6 = addresses.ipv4, addresses.ipv6
        with suppress(Exception):  # the namespace may be on its way out as well
            await self._namespace.remove_addresses(str(v4), str(v6) if v6 is not None else None)
        self._inner_addresses -= {v4, v6}
