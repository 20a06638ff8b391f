"""The customer's node: pool, builds, engine, namespace and proxy, joined. `overlay.node.run_client` runs it.

It fails closed: what the namespace sends without a circuit goes nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

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
    NeedRefused,
    PoolSettings,
    SendEcho,
    StartBuild,
)
from exit.io.namespace import Namespace
from overlay.engine.interface import FlowFault, FlowHandle
from overlay.engine.io.choice import make_engine
from overlay.engine.meters import Meter
from overlay.errors import DecodeError, FileError, OverlayError
from overlay.gossip.messages import is_gossip
from overlay.identity import format_node_id
from overlay.io.files import write_atomic
from overlay.links.io.endpoint import Endpoint
from overlay.logs import get_logger
from overlay.messages import Built, Destroy, Payment, decode_control, encode_control
from overlay.node.client_builds import Builds
from overlay.node.client_leases import Leases
from overlay.node.client_status import describe_client
from overlay.node.client_view import FAULT_SENTENCES, describe_circuit, explain_destroy
from overlay.node.guard_links import GuardLinks
from overlay.node.io.files import load_directory
from overlay.node.lease import Circuit
from overlay.node.market import QUALITY_FILE, ClientMarket, load_quality
from overlay.node.suites import offered_suites
from overlay.node.way_out import WayOut
from overlay.socks.io.server import ProxyServer
from payments.tab import CloseReason

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    from exit.io.device import Device
    from overlay.config.model import Config
    from overlay.directory import Directory
    from overlay.links.link import Link
    from overlay.node.client_discovery import ClientDiscovery
    from overlay.node.customer_money import CustomerMoney
    from overlay.node.money import Money
    from overlay.tabs.types import Side

SAMPLE_S = 0.25
"""How often circuits in use are looked at for signs of life: well under the half second of silence that
brings an echo.
"""
INDEX_LIFE_S = 600.0
"""How often descriptors that have expired meanwhile are left out of the choice."""

_OWN_FAULTS = frozenset({FlowFault.MEMORY, FlowFault.EXHAUSTED})
"""What ends a circuit through nobody's fault."""

log = get_logger("client")


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
        self.proxy: ProxyServer | None = None
        self.money: Money | None = None
        self.purse: CustomerMoney | None = None
        self.device: Device | None = None
        """In whole-device mode."""
        self.is_asked_for_money = False
        """Whether a guard has sent terms of payment although payments are off."""
        self.started_s = trio.current_time()
        self.guards = guards
        self._guards_file = guards_file
        self._nursery = nursery
        self._progress = progress
        self.suites = offered_suites()
        self.families = own_families
        self.links = GuardLinks(progress)
        self.builds = Builds(self, namespace, nursery, progress)
        self.leases = Leases(self)
        self.way_out = WayOut(self.leases, namespace)
        self.circuits: dict[int, Circuit] = {}
        """Those that stand, by the pool's number."""
        self._by_flow: dict[FlowHandle, Circuit] = {}
        self._by_wire: dict[tuple[Link, int], Circuit] = {}
        self._abandoned: dict[int, trio.CancelScope] = {}
        self._wake = trio.Event()
        self.build_times_s: list[float] = []
        """Of the last hundred builds."""
        self.guards_problem = ""
        """Why the guards are not stored, as a sentence."""
        self.discovery: ClientDiscovery | None = None
        self.last_failure = ""
        self.ready = trio.Event()
        self.engine = make_engine(
            config.node.engine,
            self,
            memory_limit_bytes=config.node.memory_limit_bytes,
            threads=config.node.engine_threads,
        )
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

    @property
    def endpoint(self) -> Endpoint:
        """The node's links; set once before anything runs."""
        return self.links.endpoint

    @endpoint.setter
    def endpoint(self, endpoint: Endpoint) -> None:
        self.links.endpoint = endpoint

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
        if link.peer is not None and self.links.forget(link):
            self.act(self.pool.handle_guard_lost(link.peer, sentence, trio.current_time()))
        for circuit in [circuit for circuit in self.circuits.values() if circuit.link is link]:
            self._lost(circuit, sentence)
        self.builds.on_link_closed(link)
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
            self.builds.on_built(link, decoded)
        elif isinstance(decoded, Destroy):
            self.builds.on_destroy(link, decoded)
            circuit = self._by_wire.get((link, decoded.circuit_id))
            if circuit is not None:
                self._lost(circuit, explain_destroy(decoded.code))
        elif isinstance(decoded, Payment):
            if self.money is not None:
                self.money.on_payment(link, decoded.data, trio.current_time())
            else:
                self.is_asked_for_money = True

    def on_flow_lost(self, flow: FlowHandle, fault: FlowFault) -> None:
        """The engine dropped a circuit's flow."""
        circuit = self._by_flow.get(flow)
        if circuit is None:
            return
        if fault is FlowFault.LINK_CLOSED and circuit.link.end is not None:
            # on_link_closed follows and knows why; the relays behind the guard are not to be blamed for it.
            return
        if fault is FlowFault.BAD_PACKETS and self.money is not None:
            self.money.note_junk(circuit.link, trio.current_time())
        self._lost(circuit, FAULT_SENTENCES[fault], is_fault=fault not in _OWN_FAULTS)

    def on_echo_reply(self, flow: FlowHandle, token: bytes) -> None:
        """An echo came back."""
        if self.builds.take_echo(flow):
            return
        circuit = self._by_flow.get(flow)
        if circuit is None:
            self.market.take_echo(flow, token)
        else:
            self.act(self.pool.handle_echo(circuit.circuit_id, token, trio.current_time()))

    def on_meter_low(self, meter: Meter) -> None:
        """A customer's meters have no limit: its guard's have."""

    # -- what money asks for

    def end_paid_circuits(self, link: Link, side: Side, reason: CloseReason, detail: str) -> None:
        """End the circuits over a guard that cannot be paid."""
        self.market.note_unpayable(link, reason)
        for circuit in [circuit for circuit in self.circuits.values() if circuit.link is link]:
            self._lost(circuit, f"the guard cannot be paid: {detail}", is_fault=False)

    def end_for_budget(self, sentence: str) -> None:
        """End all circuits: the customer's limit is reached."""
        for circuit in list(self.circuits.values()):
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

    def release(self, circuit: Circuit) -> None:
        """A lease's end."""
        if not circuit.is_closed:
            self.act(self.pool.release(circuit.circuit_id, trio.current_time()))

    # -- the pool's actions
    # ----------------------------------------------------------------------------------------

    def act(self, actions: list[Action]) -> None:
        """Carry out what the pool wants, in order."""
        for action in actions:
            if isinstance(action, StartBuild):
                scope = self._abandoned[action.circuit_id] = trio.CancelScope()
                self._nursery.start_soon(self._build, action.circuit_id, action.path, scope)
            elif isinstance(action, SendEcho):
                circuit = self.circuits.get(action.circuit_id)
                if circuit is not None:
                    self.engine.echo(circuit.flow, action.token)
            elif isinstance(action, CloseCircuit):
                self._close(action.circuit_id, action.sentence)
            elif isinstance(action, CircuitReady):
                self.ready.set()
                self.leases.note_ready()
            elif isinstance(action, CircuitDead):
                log.info("circuit died", reason=action.sentence, connections=action.leases)
            elif isinstance(action, GuardPassedOver):
                log.warning("guard passed over", peer=format_node_id(action.node_id), reason=action.sentence)
            elif isinstance(action, GuardTakenBack):
                log.warning("guard taken back", peer=format_node_id(action.node_id), reason=action.sentence)
            elif isinstance(action, NeedRefused):
                self.last_failure = action.sentence
                self.leases.note_refused(action.need, action.trouble, action.sentence)
            elif isinstance(action, GuardsChanged):
                self._nursery.start_soon(self._save_guards, self.guards.encode())
        if actions:
            self.wake()
            if hasattr(self.links, "endpoint"):
                self.endpoint.flush()

    def wake(self) -> None:
        """Have the pool's clock looked at: something may be due sooner."""
        self._wake.set()

    async def _save_guards(self, data: bytes) -> None:
        # Sequence is kept by the single writer: the newest state is written last.
        try:
            write_atomic(self._guards_file, data)
        except FileError as error:
            # What runs goes on running; after a restart other guards would be chosen, which the user
            # should know.
            if not self.guards_problem:
                log.error("the guards are not stored", reason=str(error))
            self.guards_problem = f"the guards are not stored: {error}"
        else:
            self.guards_problem = ""

    def _lost(self, circuit: Circuit, sentence: str, *, is_fault: bool = True) -> None:
        now = trio.current_time()
        self.act(self.pool.handle_closed(circuit.circuit_id, sentence, now, is_fault=is_fault))
        self._close(circuit.circuit_id, sentence)

    def _close(self, circuit_id: int, sentence: str) -> None:
        scope = self._abandoned.get(circuit_id)
        if scope is not None:
            scope.cancel()
        circuit = self.circuits.pop(circuit_id, None)
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
        self._nursery.start_soon(self.builds.give_back, circuit.addresses)
        self.way_out.note_closed(circuit)
        self.leases.announce()

    async def _build(self, circuit_id: int, path: Path, scope: trio.CancelScope) -> None:
        with scope:
            try:
                outcome = await self.builds.build(circuit_id, path)
            finally:
                self._abandoned.pop(circuit_id, None)
            now = trio.current_time()
            if isinstance(outcome, Circuit):
                self.circuits[circuit_id] = outcome
                self._by_flow[outcome.flow] = outcome
                self._by_wire[(outcome.link, outcome.wire_id)] = outcome
                self.build_times_s = [*self.build_times_s[-99:], outcome.build_s]
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

    def uses_link(self, link: Link) -> bool:
        """Whether a link is a guard's, or has circuits or builds."""
        return (
            link in self.links
            or any(circuit.link is link for circuit in self.circuits.values())
            or self.builds.uses_link(link)
        )

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
                self.way_out.is_open
                or len(self.builds)
                or self.links.is_one_silent
                or any(circuit.watchers for circuit in self.circuits.values())
            ):
                wait_s = min(wait_s, SAMPLE_S)
            with trio.move_on_after(wait_s):
                await self._wake.wait()
            now = trio.current_time()
            self._sample(now)
            silent, heard = self.links.watch(now)
            for node_id in heard:
                self.pool.handle_guard_heard(node_id)
            for node_id in silent:
                self.act(self.pool.handle_guard_silent(node_id, "the guard does not answer", now))
            self.act(self.pool.handle_timeout(now))
            if self._wake.is_set():
                # What acts may set it off again at once; a turn for the others in between.
                await trio.lowlevel.checkpoint()

    def _sample(self, now: float) -> None:
        for node_id, link in self.links:
            self.pool.note_guard_heard(node_id, link.last_receive_s)
        for circuit in self.circuits.values():
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
        return describe_client(self)

    def list_guards(self) -> list[bytes]:
        """The guards with a link."""
        return [node_id for node_id, _ in self.links]

    def list_circuits(self) -> list[dict[str, Any]]:
        """What `hopfare circuits` shows."""
        rows = []
        for row in self.pool.status(trio.current_time()):
            circuit = self.circuits.get(row.circuit_id)
            held = self.proxy.count_held(circuit) if self.proxy is not None and circuit is not None else 0
            rows.append(describe_circuit(row, circuit, held))
        return rows


def _stamp(path: FilePath | None) -> tuple[int, int]:
    if path is None:
        return 0, 0
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
