"""The customer's node: pool, builds, engine, namespace and proxy, joined. `overlay.node.run_client` runs it.

It fails closed: what the namespace sends without a circuit goes nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import trio

from circuits.building.client import BUILD_TIMEOUT_S, BuildDone, BuildFailed, ClientBuild, FailureKind
from circuits.building.messages import ExitAddresses, ExitHere
from circuits.guards import GuardStore
from circuits.path import Path
from circuits.pool.machine import Pool
from circuits.pool.types import (
    Action,
    CircuitDead,
    CircuitReady,
    CloseCircuit,
    GuardPassedOver,
    GuardsChanged,
    GuardTakenBack,
    Leased,
    Need,
    NeedRefused,
    PoolSettings,
    Refused,
    SendEcho,
    StartBuild,
    Trouble,
    Waiting,
)
from exit.addresses import random_inner
from exit.io.namespace import Namespace
from overlay.engine.interface import FlowFault, FlowHandle, InnerAddresses, Price
from overlay.engine.io.choice import make_engine
from overlay.engine.meters import Meter
from overlay.errors import DecodeError, FileError, OverlayError
from overlay.gossip.messages import is_gossip
from overlay.identity import format_node_id
from overlay.io.files import write_atomic
from overlay.links.constants import CloseCode
from overlay.links.io.endpoint import DialError, Endpoint
from overlay.logs import get_logger
from overlay.messages import Build, Built, Destroy, Payment, decode_control, encode_control
from overlay.node.client_view import FAULT_SENTENCES, describe_circuit, explain_destroy
from overlay.node.io.files import load_directory
from overlay.node.lease import Circuit, Lease
from overlay.node.market import QUALITY_FILE, ClientMarket, load_quality
from overlay.node.suites import offered_suites
from overlay.socks.circuits import NO_ISOLATION, Destination, Isolation, NoCircuit, NoCircuitKind
from overlay.socks.io.server import ProxyServer
from payments.tab import CloseReason

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    from overlay.config.model import Config
    from overlay.directory import Directory
    from overlay.links.link import Link
    from overlay.node.client_discovery import ClientDiscovery
    from overlay.node.customer_money import CustomerMoney
    from overlay.node.money import Money
    from overlay.tabs.types import Side

CIRCUIT_LIFETIME_S = 7 * 3600
"""Asked of relays: the pool drains a circuit for at most six hours after its ten minutes."""
LEASE_TIMEOUT_S = 30.0
OFFLINE_TIMEOUT_S = 8.0
"""While no guard can be reached: a program had better be told than wait for a cable to be plugged in."""
CUT_OFF_TIMEOUT_S = 1.0
"""While this machine itself says that it has no way to any guard."""
ASK_AGAIN_S = 1.0
"""How often a program that waits for a circuit looks at why there is none."""
SAMPLE_S = 0.25
"""How often circuits in use are looked at for signs of life: well under the half second of silence that
brings an echo.
"""
DEFAULT_IDLE_S = 120.0
"""A circuit that programs in the namespace have left, and that nothing has used for so long, is given
back.
"""
PROOF_TIMEOUT_S = 8.0
"""How long a paid circuit may take to bring an echo: purses further on are opened, and found by payees."""
FIRST_PROOF_S, LONGEST_PROOF_S = 0.05, 0.4
GUARD_SILENT_S = 2.0
"""Data under way to a guard without an answer for so long: new circuits go over another.

The link has longer.
"""
INDEX_LIFE_S = 600.0
"""How often descriptors that have expired meanwhile are left out of the choice."""
MAX_LINKS = 16

_KIND: dict[Trouble, NoCircuitKind] = {
    Trouble.BUILDING: NoCircuitKind.NOT_READY,
    Trouble.FAILING: NoCircuitKind.NOT_READY,
    Trouble.CLOSED: NoCircuitKind.NOT_READY,
    Trouble.OFFLINE: NoCircuitKind.OFFLINE,
    Trouble.NOT_ALLOWED: NoCircuitKind.NOT_ALLOWED,
    Trouble.NO_PATH: NoCircuitKind.NOT_ALLOWED,
    Trouble.NO_IPV6: NoCircuitKind.NO_IPV6,
    Trouble.OVERLOADED: NoCircuitKind.OVERLOADED,
}

_OWN_FAULTS = frozenset({FlowFault.MEMORY, FlowFault.EXHAUSTED})
"""What ends a circuit through nobody's fault."""

log = get_logger("client")


@dataclass(eq=False, slots=True)
class _Attempt:
    """A build that waits for its Built or Destroy."""

    build: ClientBuild
    done: trio.Event = field(default_factory=trio.Event)
    outcome: BuildDone | BuildFailed | None = None


class ClientNode:
    """The customer's state. Made by ``run_client``."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        guards: GuardStore,
        guards_file: FilePath,
        namespace: Namespace,
        nursery: trio.Nursery,
        progress: Callable[[str], None],
        own_families: frozenset[int],
    ) -> None:
        self.config = config
        self.directory = directory
        self.endpoint: Endpoint
        self.proxy: ProxyServer | None = None
        self.money: Money | None = None
        self.purse: CustomerMoney | None = None
        self._is_asked_for_money = False
        self.started_s = trio.current_time()
        self.guards = guards
        self._guards_file = guards_file
        self._namespace = namespace
        self._nursery = nursery
        self._progress = progress
        self.suites = offered_suites()
        self.families = own_families
        self._links: dict[bytes, Link] = {}
        self._dialling: dict[bytes, trio.Event] = {}
        self._dial_errors: dict[bytes, str] = {}
        self._has_route = True
        self._attempts: dict[tuple[Link, int], _Attempt] = {}
        self._abandoned: dict[int, trio.CancelScope] = {}
        self._circuits: dict[int, Circuit] = {}
        self._by_flow: dict[FlowHandle, Circuit] = {}
        self._proofs: dict[FlowHandle, trio.Event] = {}
        self._by_wire: dict[tuple[Link, int], Circuit] = {}
        self._inner_addresses: set[IPv4Address | IPv6Address | None] = set()
        self._changed = trio.Event()
        self._refused: dict[Need, tuple[Trouble, str]] = {}
        self._wake = trio.Event()
        self._default: Lease | None = None
        self._default_wanted = trio.Event()
        self._leaving: list[Lease] = []
        self._meters: dict[bytes, Meter] = {}
        self._silent: dict[bytes, bool] = {}
        self._build_times_s: list[float] = []
        self._guards_problem = ""
        self.discovery: ClientDiscovery | None = None
        self.last_failure = ""
        self.ready = trio.Event()
        self.engine = make_engine(config.node.engine, self, memory_limit_bytes=config.node.memory_limit_bytes)
        self.engine.attach_tun(namespace.tun, by_source=True)
        settings = PoolSettings(
            spares=config.client.circuits_ready,
            max_circuits=config.client.max_circuits,
            rotate_after_s=config.client.rotation_s,
        )
        quality_file = config.state_dir / QUALITY_FILE
        self.market = ClientMarket(self, load_quality(quality_file, time.time()), quality_file)
        self.pool = Pool(
            self.market.make_index(),
            self.market.constraints(),
            guards,
            os.urandom,
            settings=settings,
            quality=self.market.book,
            unix_offset_s=time.time() - trio.current_time(),
        )

    # -- what the engine tells
    # ------------------------------------------------------------------------------------

    def on_link_up(self, link: Link) -> None:
        """A guard is there."""
        if self.money is not None:
            self.money.link_up(link, trio.current_time())
        if self.discovery is not None:
            self.discovery.discovery.on_link_up(link)

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        """A guard is gone. The engine has dropped its flows before."""
        sentence = f"the link to the guard was lost ({reason})"
        if self.discovery is not None:
            self.discovery.discovery.on_link_closed(link)
        if link.peer is not None and self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._silent.pop(link.peer, None)
            self.act(self.pool.handle_guard_lost(link.peer, sentence, trio.current_time()))
        for circuit in [circuit for circuit in self._circuits.values() if circuit.link is link]:
            self._lost(circuit, sentence)
        for key, attempt in list(self._attempts.items()):
            if key[0] is link:
                self._finish(attempt, attempt.build.handle_closed())
        if self.money is not None:
            self.money.link_closed(link, trio.current_time())

    def on_control(self, link: Link, message: bytes) -> None:
        """A guard's control message."""
        if is_gossip(message):
            if self.discovery is not None:
                self.discovery.discovery.on_control(link, message)
            return
        try:
            decoded = decode_control(message)
        except DecodeError:
            link.close(1, "a message that cannot be read")
            return
        if isinstance(decoded, Built):
            attempt = self._attempts.get((link, decoded.circuit_id))
            if attempt is not None:
                self._finish(attempt, attempt.build.handle_built(decoded.records))
        elif isinstance(decoded, Destroy):
            attempt = self._attempts.get((link, decoded.circuit_id))
            if attempt is not None:
                self._finish(attempt, attempt.build.handle_closed(decoded.code))
            circuit = self._by_wire.get((link, decoded.circuit_id))
            if circuit is not None:
                self._lost(circuit, explain_destroy(decoded.code))
        elif isinstance(decoded, Payment):
            if self.money is not None:
                self.money.on_payment(link, decoded.data, trio.current_time())
            else:
                self._is_asked_for_money = True

    def on_flow_lost(self, flow: FlowHandle, fault: FlowFault) -> None:
        """The engine dropped a circuit's flow."""
        circuit = self._by_flow.get(flow)
        if circuit is None:
            return
        if fault is FlowFault.LINK_CLOSED and circuit.link.end is not None:
            # on_link_closed follows and knows why; the relays behind the guard are not to be blamed for it.
            return
        self._lost(circuit, FAULT_SENTENCES[fault], is_fault=fault not in _OWN_FAULTS)

    def on_echo_reply(self, flow: FlowHandle, token: bytes) -> None:
        """An echo came back."""
        circuit = self._by_flow.get(flow)
        if flow in self._proofs:
            self._proofs[flow].set()
        elif circuit is None:
            self.market.take_echo(flow, token)
        else:
            self.act(self.pool.handle_echo(circuit.circuit_id, token, trio.current_time()))

    def on_meter_low(self, meter: Meter) -> None:
        """A customer's meters have no limit: its guard's have."""

    # -- what money asks for

    def end_paid_circuits(self, link: Link, side: Side, reason: CloseReason, detail: str) -> None:
        """End the circuits over a guard that cannot be paid."""
        self.market.note_unpayable(link, reason)
        for circuit in [circuit for circuit in self._circuits.values() if circuit.link is link]:
            self._lost(circuit, f"the guard cannot be paid: {detail}", is_fault=False)

    def end_for_budget(self, sentence: str) -> None:
        """End all circuits: the customer's limit is reached."""
        for circuit in list(self._circuits.values()):
            self._lost(circuit, sentence, is_fault=False)

    def payee_of(self, node_id: bytes) -> bytes:
        """Whom to pay for a relay of the directory."""
        entry = self.directory.get(node_id)
        return b"" if entry is None else entry.descriptor.payee

    def on_payable(self) -> None:
        """A guard's purse is ready, or cannot be."""
        if self.purse is not None:
            self.purse.on_payable()

    def flush(self) -> None:
        """Send what waits on all links."""
        self.endpoint.flush()

    # -- what the proxy asks for (overlay.socks.circuits.Circuits)
    # -------------------------------------------------

    def lease_now(self, isolation: Isolation, destination: Destination) -> Lease | None:
        """A lease if a circuit is ready."""
        outcome = self._lease(self._need(isolation, destination))
        return outcome if isinstance(outcome, Lease) else None

    async def lease(self, isolation: Isolation, destination: Destination) -> Lease:
        """A lease, waiting up to LEASE_TIMEOUT_S. Raises NoCircuit with a sentence."""
        if self.purse is not None and self.purse.stopped:
            raise NoCircuit(NoCircuitKind.NOT_ALLOWED, self.purse.stopped)
        need = self._need(isolation, destination)
        self._refused.pop(need, None)  # an earlier waiter's
        begun = trio.current_time()
        deadline = begun + LEASE_TIMEOUT_S
        while True:
            outcome = self._lease(need)
            if isinstance(outcome, Lease):
                return outcome
            if isinstance(outcome, Refused):
                raise NoCircuit(_KIND[outcome.trouble], outcome.sentence)
            if outcome.trouble is Trouble.OFFLINE:
                patience_s = OFFLINE_TIMEOUT_S if self._has_route else CUT_OFF_TIMEOUT_S
                deadline = min(deadline, begun + patience_s)
            changed = self._changed
            # Asked again now and then: that no guard can be reached is noticed while others wait, too.
            with trio.move_on_at(min(deadline, trio.current_time() + ASK_AGAIN_S)):
                await changed.wait()
            if trio.current_time() >= deadline:
                raise NoCircuit(_KIND[outcome.trouble], outcome.sentence)
            refused = self._refused.get(need)
            if refused is not None:
                raise NoCircuit(_KIND[refused[0]], refused[1])

    def _lease(self, need: Need) -> Lease | Waiting | Refused:
        outcome, actions = self.pool.lease(need, trio.current_time())
        self.act(actions)
        if isinstance(outcome, Leased):
            return Lease(self, self._circuits[outcome.circuit_id])
        self._wake.set()
        return outcome

    def release(self, circuit: Circuit) -> None:
        """A lease's end."""
        if not circuit.is_closed:
            self.act(self.pool.release(circuit.circuit_id, trio.current_time()))

    def _need(self, isolation: Isolation, destination: Destination) -> Need:
        rules = self.config.client.isolation
        key = isolation.key if "user" in rules else b""
        if "destination" in rules:
            key += b"\0" + destination.host.encode()
        if "port" in rules:
            key += destination.port.to_bytes(2, "big")
        return Need(key, destination.port, destination.ip_version == 6)

    # -- the pool's actions
    # ----------------------------------------------------------------------------------------

    def act(self, actions: list[Action]) -> None:
        """Carry out what the pool wants, in order."""
        for action in actions:
            if isinstance(action, StartBuild):
                scope = self._abandoned[action.circuit_id] = trio.CancelScope()
                self._nursery.start_soon(self._build, action.circuit_id, action.path, scope)
            elif isinstance(action, SendEcho):
                circuit = self._circuits.get(action.circuit_id)
                if circuit is not None:
                    self.engine.echo(circuit.flow, action.token)
            elif isinstance(action, CloseCircuit):
                self._close(action.circuit_id, action.sentence)
            elif isinstance(action, CircuitReady):
                self.ready.set()
                self._refused.clear()
                self._announce()
            elif isinstance(action, CircuitDead):
                log.info("circuit died", reason=action.sentence, connections=action.leases)
            elif isinstance(action, GuardPassedOver):
                log.warning("guard passed over", peer=format_node_id(action.node_id), reason=action.sentence)
            elif isinstance(action, GuardTakenBack):
                log.warning("guard taken back", peer=format_node_id(action.node_id), reason=action.sentence)
            elif isinstance(action, NeedRefused):
                if len(self._refused) < 1024:
                    self._refused[action.need] = (action.trouble, action.sentence)
                self.last_failure = action.sentence
                self._announce()
            elif isinstance(action, GuardsChanged):
                self._nursery.start_soon(self._save_guards, self.guards.encode())
        if actions:
            self._wake.set()
            if hasattr(self, "endpoint"):
                self.endpoint.flush()

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _save_guards(self, data: bytes) -> None:
        # Sequence is kept by the single writer: the newest state is written last.
        try:
            write_atomic(self._guards_file, data)
        except FileError as error:
            # What runs goes on running; after a restart other guards would be chosen, which the user
            # should know.
            if not self._guards_problem:
                log.error("the guards are not stored", reason=str(error))
            self._guards_problem = f"the guards are not stored: {error}"
        else:
            self._guards_problem = ""

    def _lost(self, circuit: Circuit, sentence: str, *, is_fault: bool = True) -> None:
        now = trio.current_time()
        self.act(self.pool.handle_closed(circuit.circuit_id, sentence, now, is_fault=is_fault))
        self._close(circuit.circuit_id, sentence)

    def _close(self, circuit_id: int, sentence: str) -> None:
        scope = self._abandoned.get(circuit_id)
        if scope is not None:
            scope.cancel()
        circuit = self._circuits.pop(circuit_id, None)
        if circuit is not None:
            self.give_up(circuit)

    def give_up(self, circuit: Circuit) -> None:
        """End a circuit that stands, at both ends; twice is allowed."""
        if circuit.is_closed:
            return
        circuit.is_closed = True
        self._by_flow.pop(circuit.flow, None)
        self._by_wire.pop((circuit.link, circuit.wire_id), None)
        self.engine.drop(circuit.flow)
        if self.money is not None:
            self.money.circuit_down(circuit.flow, trio.current_time())
        circuit.link.send_control(encode_control(Destroy(circuit.wire_id, 0)))
        watchers, circuit.watchers = list(circuit.watchers.values()), {}
        for on_closed in watchers:
            on_closed()
        self._nursery.start_soon(self._remove_addresses, circuit.addresses)
        if self._default is not None and self._default.circuit is circuit:
            self._default = None
        self._announce()

    async def _remove_addresses(self, addresses: ExitAddresses) -> None:
        v4, v6 = addresses.ipv4, addresses.ipv6
        with suppress(Exception):  # the namespace may be on its way out as well
            await self._namespace.remove_addresses(str(v4), str(v6) if v6 is not None else None)
        self._inner_addresses -= {v4, v6}

    # -- builds
    # ----------------------------------------------------------------------------------------------------

    async def _build(self, circuit_id: int, path: Path, scope: trio.CancelScope) -> None:
        with scope:
            try:
                outcome = await self.try_build(circuit_id, path)
            finally:
                self._abandoned.pop(circuit_id, None)
            now = trio.current_time()
            if isinstance(outcome, Circuit):
                self._circuits[circuit_id] = outcome
                self._by_flow[outcome.flow] = outcome
                self._by_wire[(outcome.link, outcome.wire_id)] = outcome
                self._build_times_s = [*self._build_times_s[-99:], outcome.build_s]
                self.act(self.pool.handle_built(circuit_id, outcome.addresses.ipv6 is not None, now))
            else:
                self.last_failure = outcome.sentence
                self._progress(f"no circuit yet: {outcome.sentence}")
                log.info("build failed", reason=outcome.sentence)
                clock = self.market.note_build_failed(path.node_ids, outcome)
                self.act(
                    self.pool.handle_build_failed(
                        circuit_id, outcome.suspects, outcome.sentence, now, clock=clock
                    )
                )

    async def try_build(self, circuit_id: int, path: Path) -> Circuit | BuildFailed:
        """Build a circuit over a path; a number of the pool's (0: none of them) is all it is known by."""
        guard = path.hops[0]
        self._progress(f"building a circuit of {len(path.hops)} relays")
        link = await self._link_to(guard.candidate.node_id, guard.address)
        if link is None:
            reason = self._dial_errors.get(guard.candidate.node_id, "no answer")
            self.act(self.pool.handle_guard_lost(guard.candidate.node_id, reason, trio.current_time()))
            return BuildFailed(FailureKind.CLOSED, 0, (0,), None, f"hop 1: {reason}")
        if self.purse is not None:
            unpayable = await self.purse.make_payable(link, path.price_wei_per_packet)
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
            flow = self.engine.client(
                outcome.roots,
                suite,
                link,
                wire_id,
                self._price(link, path.price_wei_per_packet),
                InnerAddresses(addresses.ipv4.packed, v6.packed if v6 is not None else None),
            )
            if self.money is not None:
                price = path.price_wei_per_packet
                self.money.circuit_up(flow, None, 0, link, price, trio.current_time())
                if price and not await self._carries(flow, link):
                    sentence = "nothing came back through it: one of its relays is not paid yet"
                    return BuildFailed(FailureKind.CLOSED, 0, (), None, sentence)
                if self.purse is not None and self.purse.stopped:
                    return BuildFailed(FailureKind.CLOSED, 0, (), None, self.purse.stopped)
            stands = True
            return Circuit(circuit_id, path, link, wire_id, flow, addresses, build_s)
        finally:
            self._attempts.pop((link, wire_id), None)
            if not stands:
                if flow is not None:
                    self.engine.drop(flow)
                    if self.money is not None:
                        self.money.circuit_down(flow, trio.current_time())
                link.send_control(encode_control(Destroy(wire_id, 0)))
                if taken is not None:
                    self._nursery.start_soon(self._remove_addresses, taken)

    async def _carries(self, flow: FlowHandle, link: Link) -> bool:
        """Whether an echo comes back: packets are dropped until each hop has taken a ticket of the one before
        it, which may have to open a purse first, and programs should not wait for that.
        """
        came = self._proofs[flow] = trio.Event()
        wait_s = FIRST_PROOF_S
        try:
            with trio.move_on_after(PROOF_TIMEOUT_S):
                while link.end is None and not came.is_set():
                    self.engine.echo(flow, os.urandom(8))
                    self.endpoint.flush()
                    with trio.move_on_after(wait_s):
                        await came.wait()
                        break
                    self._progress("waiting until every relay of the path is paid")
                    wait_s = min(2 * wait_s, LONGEST_PROOF_S)
            return came.is_set()
        finally:
            del self._proofs[flow]

    def _finish(self, attempt: _Attempt, outcome: BuildDone | BuildFailed | None) -> None:
        if outcome is not None:
            attempt.outcome = outcome
            attempt.done.set()

    def _price(self, link: Link, wei_per_packet: int) -> Price:
        if self.money is not None:
            return self.money.price(link, "paying", wei_per_packet)
        return Price(self._meters.setdefault(link.peer or b"", Meter()), wei_per_packet)

    def _choose_suite(self, path: Path) -> int:
        for suite in self.suites:
            if all(suite in hop.candidate.suites for hop in path.hops):
                return suite
        return self.suites[0]

    def _choose_wire_id(self, link: Link) -> int:
        while True:
            wire_id = int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF
            if (link, wire_id) not in self._attempts and not self.engine.circuit_id_in_use(link, wire_id):
                return wire_id

    def find_link(self, node_id: bytes) -> Link | None:
        """The link to a guard that is up, or None."""
        return self._links.get(node_id)

    def uses_link(self, link: Link) -> bool:
        """Whether a link is a guard's, or has circuits or builds."""
        return (
            link in self._links.values()
            or any(circuit.link is link for circuit in self._circuits.values())
            or any(key[0] is link for key in self._attempts)
        )

    async def _link_to(self, node_id: bytes, address: tuple[str, int]) -> Link | None:
        """The link to a guard, dialled if need be; all that want the same one wait for the same dial."""
        while True:
            link = self._links.get(node_id)
            if link is not None and link.end is None:
                return link
            waiting = self._dialling.get(node_id)
            if waiting is None:
                break
            await waiting.wait()
            if node_id in self._dial_errors:
                return None
        done = self._dialling[node_id] = trio.Event()
        self._dial_errors.pop(node_id, None)
        self._progress(f"connecting to the guard at {address[0]}")
        try:
            link = await self.endpoint.dial(address, node_id)
            self._links[node_id] = link
            self._has_route = True
        except DialError as error:
            self._has_route = error.code != CloseCode.NO_ROUTE
            if len(self._dial_errors) > MAX_LINKS:
                self._dial_errors.clear()
            self._dial_errors[node_id] = str(error)
            return None
        finally:
            del self._dialling[node_id]
            done.set()
        return link

    # -- programs in the namespace
    # -----------------------------------------------------------------------------------

    async def keep_default(self) -> None:
        """Give programs of `hopfare exec` the current circuit as their way out, from the first one on."""
        await self._default_wanted.wait()
        while True:
            lease: Lease | None = None
            with suppress(NoCircuit):
                lease = await self.lease(NO_ISOLATION, Destination("", 0, 0))
            if lease is not None and self._default is not None and lease.circuit is self._default.circuit:
                lease.release()
            else:
                if self._default is not None:
                    self._leaving.append(self._default)
                self._default = lease
                await self._namespace.set_default_source(
                    lease.source_v4 if lease is not None else None,
                    lease.source_v6 if lease is not None else None,
                )
            now = trio.current_time()
            for old in list(self._leaving):
                if old.circuit.is_closed or now - old.circuit.moved_s > DEFAULT_IDLE_S:
                    self._leaving.remove(old)
                    old.release()
            changed = self._changed
            with trio.move_on_after(5.0):
                await changed.wait()

    async def exec_info(self) -> dict[str, Any]:
        """What `hopfare exec` needs, once programs have a way out."""
        self._default_wanted.set()
        if self._default is None:
            with suppress(NoCircuit):  # raised the sooner if no guard can be reached
                (await self.lease(NO_ISOLATION, Destination("", 0, 0))).release()
                with trio.move_on_after(LEASE_TIMEOUT_S):
                    while self._default is None:
                        await trio.sleep(0.02)
        return {"helper_pid": self._namespace.helper_pid, "circuit": self._default is not None}

    # -- time
    # ------------------------------------------------------------------------------------------------------

    async def keep_pool(self) -> None:
        """The pool's clock, and the circuits' signs of life, until cancelled."""
        self.act(self.pool.handle_timeout(trio.current_time()))
        while True:
            self._wake = trio.Event()
            now = trio.current_time()
            due = self.pool.next_timeout(now)
            wait_s = max(0.0, due - now) if due is not None else 3600.0
            if (
                self._default is not None
                or self._attempts
                or self._silent
                or any(circuit.watchers for circuit in self._circuits.values())
            ):
                wait_s = min(wait_s, SAMPLE_S)
            with trio.move_on_after(wait_s):
                await self._wake.wait()
            now = trio.current_time()
            self._sample(now)
            self._watch_guards(now)
            self.act(self.pool.handle_timeout(now))
            if self._wake.is_set():
                # What acts may set it off again at once; a turn for the others in between.
                await trio.lowlevel.checkpoint()

    def _sample(self, now: float) -> None:
        for node_id, link in self._links.items():
            self.pool.note_guard_heard(node_id, link.last_receive_s)
        for circuit in self._circuits.values():
            heard = circuit.flow.counters.backward.packets
            sent = circuit.flow.counters.forward.packets
            if heard != circuit.heard_packets:
                circuit.heard_packets = heard
                circuit.moved_s = now
                self.pool.note_traffic(circuit.circuit_id, now, received=True)
            if sent != circuit.sent_packets:
                circuit.sent_packets = sent
                circuit.moved_s = now
                self.pool.note_traffic(circuit.circuit_id, now, received=False)
            if circuit.moved_s == now:
                self.market.note_moved(circuit, now)

    def _watch_guards(self, now: float) -> None:
        for node_id, link in list(self._links.items()):
            if link.unanswered_s(now) < GUARD_SILENT_S:
                if self._silent.pop(node_id, False):
                    self.pool.handle_guard_heard(node_id)
            elif node_id in self._silent:
                self._silent[node_id] = True
                self.act(self.pool.handle_guard_silent(node_id, "the guard does not answer", now))
            else:
                # Not at the first look: after a stall of this very process the answer may lie unread.
                self._silent[node_id] = False

    async def keep_directory(self) -> None:
        """The seed list when its file changes, the time of day, and old keys."""
        path = self.config.seed_list
        seen = _stamp(path)
        renew_at = trio.current_time() + INDEX_LIFE_S
        while True:
            await trio.sleep(30.0)
            self.pool.set_unix_offset(time.time() - trio.current_time())
            self.engine.expire()
            now = trio.current_time()
            stamp = _stamp(path)
            if (stamp == seen or self.config.gossips) and now < renew_at:
                continue
            renew_at = now + INDEX_LIFE_S
            if stamp != seen and not self.config.gossips:
                seen = stamp
                try:
                    self.directory, _ = load_directory(self.config, time.time())
                except OverlayError as error:
                    log.error("the new seed list is not used", reason=str(error))
                    continue
                log.info("seed list read", relays=len(self.directory))
            self.act(self.pool.set_index(self.market.make_index(), trio.current_time()))

    # -- status
    # ----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `hopfare status` shows."""
        now = trio.current_time()
        ready = [row for row in self.pool.status(now) if row.state.value == "ready"]
        problems = []
        if not ready:
            problems.append(self.pool.explain(now) or self.last_failure or "no circuit has been built yet")
        if self._guards_problem:
            problems.append(self._guards_problem)
        missing = self.directory.explain_no_exit(time.time(), country=self.config.client.exit_country)
        if missing:
            problems.append(missing)
        for port in (80, 443):
            without = self.directory.explain_no_exit(time.time(), port=port)
            if without and not missing:
                problems.append(without)
        problems += self.market.problems()
        if self.discovery is not None:
            problems += self.discovery.problems()
        if self.purse is not None and self.purse.stopped:
            problems.insert(0, self.purse.stopped)
        if self.money is not None:
            problems += self.money.list_problems()
        elif self._is_asked_for_money and not all(
            entry.descriptor.price_wei_per_packet == 0 for entry in self.directory
        ):
            problems.insert(0, "relays of this network ask to be paid, and payments are off: set [payments]")
        builds = sorted(self._build_times_s)
        return {
            "role": "client",
            "ready": bool(ready),
            "problems": problems,
            "uptime_s": round(now - self.started_s, 1),
            "pid": os.getpid(),
            "hops": self.config.client.hops,
            "directory": len(self.directory),
            **({"discovery": self.discovery.status()} if self.discovery is not None else {}),
            "circuits_ready": len(ready),
            "circuits": len(self._circuits),
            **self.market.status(),
            "build_median_ms": round(1000 * builds[len(builds) // 2], 2) if builds else None,
            "guards": [
                {
                    "name": format_node_id(node_id),
                    "address": link.peer_address[0],
                    "rtt_ms": round(link.rtt_s * 1000, 2),
                }
                for node_id, link in self._links.items()
            ],
            "proxy": self.proxy.status() if self.proxy is not None else {},
            "dropped_without_circuit": self.engine.unknown_packets,
            "engine": self.engine.kind,
            "queued_bytes": self.engine.budget.used_bytes,
            **({"money": self.money.status()} if self.money is not None else {}),
        }

    def list_guards(self) -> list[bytes]:
        """The guards with a link."""
        return list(self._links)

    def list_circuits(self) -> list[dict[str, Any]]:
        """What `hopfare circuits` shows."""
        return [
            describe_circuit(row, self._circuits.get(row.circuit_id))
            for row in self.pool.status(trio.current_time())
        ]


def _stamp(path: FilePath | None) -> tuple[int, int]:
    if path is None:
        return 0, 0
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
