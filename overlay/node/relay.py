"""A relay, and an exit: the switch, the engine, the links and (for an exit) the TUN, joined and run.

    await run_relay(config, as_exit=False)

runs until cancelled. Everything it changed on the machine is undone on the way out, and by the next start
after a crash.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import trio

from circuits.building.messages import Address, ExitAddresses, ExitHere
from circuits.building.relay import RelayBuild
from exit.io.privileges import CAP_NET_ADMIN, drop_capabilities
from overlay.descriptor import MAX_PRICE_WEI_PER_PACKET
from overlay.directory import Directory
from overlay.duty import Duty
from overlay.engine.interface import FlowFault, FlowHandle, Price
from overlay.engine.io.choice import make_build_crypto, make_engine, open_links
from overlay.engine.meters import Meter
from overlay.errors import DecodeError, FileError, LocalControlError
from overlay.gossip.messages import is_gossip
from overlay.identity import format_node_id
from overlay.links.io.endpoint import DialError, Endpoint
from overlay.links.limits import RELAY_FULL_PING_EVERY, LinkLimits
from overlay.links.redial import Redialer
from overlay.logs import RateLimit, get_logger
from overlay.messages import Build, Built, Destroy, Goodbye, Payment, decode_control, encode_control
from overlay.node.directory_host import explain_no_extend
from overlay.node.duty import MAX_DRAIN_S, DutyKeeper
from overlay.node.io.files import load_directory, load_identity, load_onion_keys
from overlay.node.io.local import lock_state, serve_local
from overlay.node.io.metrics import serve_metrics
from overlay.node.io.money_start import open_money
from overlay.node.io.process import settle
from overlay.node.relay_discovery import RelayDiscovery
from overlay.node.suites import offered_suites
from overlay.node.switch import DESTROY_PAYMENT_BASE, CircuitSwitch

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.config.model import Config
    from overlay.identity import Identity
    from overlay.links.link import Link
    from overlay.messages import Message
    from overlay.node.io.exit_side import ExitSide
    from overlay.node.money import Money
    from overlay.tabs.types import Side
    from payments.tab import CloseReason

TICK_S = 1.0
EXPIRE_S = 10.0
"""How often idle circuits erase keys that are past their time."""
DIAL_TIMEOUT_S = 3.0
"""Shorter than a build's own time-out at the relay before, so that it is this relay which names the one
it could not reach.
"""
MAX_DIALS = 256
LONGEST_REDIAL_S = 30.0
"""A relay that came back must not wait long for its neighbours to believe it."""
KEY_CHECK_S = 600.0
BAD_MESSAGES_LIMIT = 16

log = get_logger("relay")


class RelayNode:
    """One relay's state between its links and its switch. Made by ``run_relay``."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        directory: Directory,
        build: RelayBuild,
        *,
        as_exit: bool,
        nursery: trio.Nursery,
    ) -> None:
        """Nothing runs yet; ``endpoint`` and ``exit_side`` are set before the first link comes up."""
        self.identity = identity
        self.directory = directory
        self.build = build
        self.as_exit = as_exit
        self.endpoint: Endpoint
        self.exit_side: ExitSide | None = None
        self.keys_problem = ""
        self.money: Money | None = None
        self.discovery: RelayDiscovery | None = None
        self.duty = DutyKeeper(config, is_exit=as_exit)
        self.started_s = trio.current_time()
        self._nursery = nursery
        self._dials: set[bytes] = set()
        self._redialers: dict[bytes, Redialer] = {}
        self._random = random.SystemRandom()
        self._links: dict[bytes, Link] = {}
        self._all_links: set[Link] = set()
        self._meters: dict[Link, tuple[Meter, Meter]] = {}
        self._closed_packets = [0, 0]
        self._bad_messages: dict[Link, int] = {}
        self._limit = RateLimit()
        self.engine = make_engine(
            config.node.engine,
            self,
            memory_limit_bytes=config.node.memory_limit_bytes,
            threads=config.node.engine_threads,
            gate=lambda addresses: self._exit().gate(addresses),
        )
        self.switch: CircuitSwitch[Link] = CircuitSwitch(
            self,
            self.engine,
            build,
            node_id=identity.node_id,
            price_wei_per_packet=config.relay.price_wei_per_packet if config.payments.is_on else 0,
            is_exit=as_exit,
            random_id=lambda: int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF,
            max_circuits=config.relay.max_circuits,
            max_circuits_per_link=config.relay.max_circuits_per_link,
        )

    def _exit(self) -> ExitSide:
        assert self.exit_side is not None
        return self.exit_side

    # -- what the engine tells
    # ------------------------------------------------------------------------------------

    def on_link_up(self, link: Link) -> None:
        """A neighbour is there."""
        self._all_links.add(link)
        if link.peer is not None:
            self._redialers.pop(link.peer, None)
            # Of two links between the same relays the later one is used for new circuits; the other ends
            # with its own.
            self._links[link.peer] = link
        if self.money is not None:
            self.money.link_up(link, trio.current_time())
        self.switch.on_link_up(link, trio.current_time())
        if self.discovery is not None:
            self.discovery.discovery.on_link_up(link)

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        """A neighbour is gone."""
        self._all_links.discard(link)
        for side, meter in enumerate(self._meters.pop(link, ())):
            self._closed_packets[side] += meter.packets
        self._bad_messages.pop(link, None)
        if link.peer is not None and self._links.get(link.peer) is link:
            del self._links[link.peer]
            others = [other for other in self._all_links if other.peer == link.peer and other.is_up]
            if others:
                self._links[link.peer] = others[0]
        self.switch.on_link_closed(link, trio.current_time())
        if self.money is not None:
            self.money.link_closed(link, trio.current_time())
        if self.discovery is not None:
            self.discovery.discovery.on_link_closed(link)
        if link.peer is not None and code:
            self._warn("link closed", peer=format_node_id(link.peer), code=code, reason=reason)

    def on_control(self, link: Link, message: bytes) -> None:
        """A neighbour's control message. One that cannot be read is counted; too many end the link."""
        now = trio.current_time()
        if is_gossip(message):
            if self.discovery is not None:
                self.discovery.discovery.on_control(link, message)
            return
        try:
            decoded = decode_control(message)
        except DecodeError:
            self._bad_message(link)
            return
        if isinstance(decoded, Build):
            self.switch.on_build(link, decoded, now, time.time())
        elif isinstance(decoded, Built):
            self.switch.on_built(link, decoded, now)
        elif isinstance(decoded, Destroy):
            self.switch.on_destroy(link, decoded, now)
        elif isinstance(decoded, Payment):
            # A neighbour that is paid shows its terms to everybody, also to who pays nobody.
            if self.money is not None:
                self.money.on_payment(link, decoded.data, now)
        elif isinstance(decoded, Goodbye):
            if link.peer is not None and self._links.get(link.peer) is link:
                del self._links[link.peer]
        else:
            self._bad_message(link)

    def on_flow_lost(self, flow: FlowHandle, fault: FlowFault) -> None:
        """The engine dropped a circuit's flow."""
        if fault is FlowFault.MEMORY:
            self._warn("circuit ended: the memory limit is reached")
        self.switch.on_flow_lost(flow, fault, trio.current_time())

    def on_echo_reply(self, flow: FlowHandle, token: bytes) -> None:
        """Only clients send echoes."""

    def on_meter_low(self, meter: Meter) -> None:
        """A neighbour's credit runs out."""
        if self.money is not None:
            self.money.on_meter_low(meter, trio.current_time())

    def _bad_message(self, link: Link) -> None:
        count = self._bad_messages.get(link, 0) + 1
        self._bad_messages[link] = count
        if count >= BAD_MESSAGES_LIMIT:
            link.close(1, "too many messages that cannot be read")

    # -- what the switch asks for
    # ---------------------------------------------------------------------------------

    def send(self, link: Link, message: Message) -> None:
        """Send a control message; on a link that is going down it is lost, as is all on it."""
        link.send_control(encode_control(message))

    def find_link(self, node_id: bytes) -> Link | None:
        """The link to a relay, or None; of two, the one on which our purse is."""
        paid = None if self.money is None else self.money.paid_link(node_id)
        return paid if paid is not None else self._links.get(node_id)

    def dial(self, node_id: bytes, address: Address) -> None:
        """Dial in the background."""
        now = trio.current_time()
        if len(self._dials) >= MAX_DIALS:
            self.switch.on_dialled(node_id, None, "too many dials at once", now)
            return
        # Only relays of the directory are dialled, so these are bounded by it.
        redialer = self._redialers.get(node_id)
        if redialer is None:
            redialer = Redialer(self._random, now, longest_delay_s=LONGEST_REDIAL_S)
            self._redialers[node_id] = redialer
        due = redialer.next_dial()
        if due is not None and due > now:
            self.switch.on_dialled(node_id, None, "it could not be reached a moment ago", now)
            return
        redialer.handle_dialling()
        self._dials.add(node_id)
        self._nursery.start_soon(self._dial, node_id, address)

    async def _dial(self, node_id: bytes, address: Address) -> None:
        link: Link | None = None
        reason = "no answer"
        try:
            with trio.move_on_after(DIAL_TIMEOUT_S):
                link = await self.endpoint.dial(address, node_id)
        except DialError as error:
            reason = str(error)
        finally:
            self._dials.discard(node_id)
        redialer = self._redialers.get(node_id)  # gone if the relay has dialled us meanwhile
        if link is None and redialer is not None:
            redialer.handle_failed(trio.current_time())
        self.switch.on_dialled(node_id, link, reason, trio.current_time())
        self.endpoint.flush()

    def may_extend(self, node_id: bytes, address: Address) -> str | None:
        """See ``explain_no_extend``."""
        return explain_no_extend(self.directory, node_id, address, time.time())

    def price_in(self, link: Link, wei_per_packet: int) -> Price:
        """What this neighbour's circuits cost it."""
        return Price(self._meter(link)[0], wei_per_packet)

    def price_out(self, link: Link, wei_per_packet: int) -> Price:
        """What circuits to this neighbour cost this relay."""
        return Price(self._meter(link)[1], wei_per_packet)

    def _meter(self, link: Link) -> tuple[Meter, Meter]:
        found = self._meters.get(link)
        if found is None:
            found = (Meter(), Meter()) if self.money is None else self.money.meters(link)
            self._meters[link] = found
        return found

    # -- what money asks for, and is told

    def may_pay(self, front: Link, link: Link, wei_per_packet: int) -> str | None:
        """Why a circuit onward cannot be paid, if it cannot."""
        if self.money is None:
            return None
        return self.money.explain_unpayable(link, wei_per_packet, trio.current_time(), front)

    def circuit_up(
        self, flow: FlowHandle, front: Link, price_in: int, back: Link | None, price_out: int, now: float
    ) -> None:
        """A circuit stands."""
        if self.money is not None:
            self.money.circuit_up(flow, front, price_in, back, price_out, now)

    def circuit_down(self, flow: FlowHandle, now: float) -> None:
        """It is gone."""
        if self.money is not None:
            self.money.circuit_down(flow, now)

    def end_paid_circuits(self, link: Link, side: Side, reason: CloseReason, detail: str) -> None:
        """End the circuits of one side of a link over money."""
        code = DESTROY_PAYMENT_BASE + reason
        self.switch.end_paid(link, incoming=side == "earning", code=code, now=trio.current_time())

    def payee_of(self, node_id: bytes) -> bytes:
        """Whom to pay for a relay of the directory, or of the root list while its descriptor has not come."""
        entry = self.directory.get(node_id)
        if entry is not None:
            return entry.descriptor.payee
        member = None if self.discovery is None else self.discovery.discovery.gossip.store.roots.get(node_id)
        return b"" if member is None else member.payee

    def on_payable(self) -> None:
        """Builds that could not be paid are tried again by their clients."""

    def flush(self) -> None:
        """Send what waits on all links."""
        self.endpoint.flush()

    def carried_packets(self) -> tuple[int, int]:
        """Packets carried since the start: on links that pay this relay, and on links that it pays."""
        towards, onward = self._closed_packets
        for meters in self._meters.values():
            towards, onward = towards + meters[0].packets, onward + meters[1].packets
        return towards, onward

    def reprice(self, wei_per_packet: int) -> None:
        """Ask another price of circuits that come, and publish it."""
        self.switch.set_price(wei_per_packet)
        if self.money is not None:
            self.money.set_price(wei_per_packet)
        if self.discovery is not None:
            self.discovery.set_price(wei_per_packet)
        log.info("price changed", wei_per_packet=wei_per_packet)

    def change_duty(self, duty: Duty) -> None:
        """Take new circuits, or not; end those there are when the relay is to carry nothing."""
        if duty is Duty.SHUT:
            self.switch.close(trio.current_time())
        self.switch.closing = duty is not Duty.OPEN
        if self.discovery is not None:
            self.discovery.publisher.refresh()

    def allocate(self, wanted: ExitHere, now: float) -> ExitAddresses | None:
        """Inner addresses of the exit."""
        return None if self.exit_side is None else self.exit_side.allocate(wanted, now)

    def release(self, addresses: ExitAddresses, now: float) -> None:
        """Give inner addresses back."""
        self._exit().release(addresses, now)

    # -- status
    # ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `hopfare status` shows: counts and neighbours, never circuits' ends."""
        links = [
            {
                "peer": format_node_id(link.peer) if link.peer is not None else "customer",
                "address": _address_text(link.peer_address),
                "dialled": link.is_dialler,
                "circuits": self.switch.circuits_of(link),
                "rtt_ms": round(link.rtt_s * 1000, 2),
                "packets_in_charged": self._meter(link)[0].packets,
                "packets_out_charged": self._meter(link)[1].packets,
            }
            for link in self._all_links
        ]
        counters = self.switch.counters
        status: dict[str, Any] = {
            "role": "exit" if self.as_exit else "relay",
            "name": self.identity.name,
            "ready": True,
            "problems": [*([self.keys_problem] if self.keys_problem else []), *self.duty.problems()],
            "uptime_s": round(trio.current_time() - self.started_s, 1),
            "pid": os.getpid(),
            "directory": len(self.directory),
            "circuits": self.switch.circuit_count,
            "draining": self.switch.closing,
            "packets": dict(zip(("in", "out"), self.carried_packets(), strict=True)),
            "usage": self.duty.status(),
            "links": links,
            "builds": {
                "seen": counters.builds,
                "built": counters.built,
                "refused": counters.refused,
                "rejected": counters.rejected,
                "destroyed": counters.destroyed,
                "lost": counters.lost,
            },
            "engine": self.engine.kind,
            "queued_bytes": self.engine.budget.used_bytes,
        }
        if self.exit_side is not None:
            status["exit"] = self.exit_side.status()
        if self.money is not None:
            status["money"] = self.money.status()
            status["problems"] += self.money.list_problems()
        if self.discovery is not None:
            status["discovery"] = self.discovery.status()
            status["problems"] += self.discovery.problems()
        return status

    def _warn(self, event: str, **values: object) -> None:
        """Log what a peer caused, at a bounded rate."""
        suppressed = self._limit.allow(event, trio.current_time())
        if suppressed is not None:
            log.warning(event, **values, **({"suppressed": suppressed} if suppressed else {}))


def _address_text(address: tuple[Any, ...]) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def run_relay(config: Config, *, as_exit: bool, started: Callable[[], None] | None = None) -> None:
    """Run a relay (or an exit) until cancelled. ``started`` is called once it answers on its addresses.

    Raises FileError, ConfigError, AlreadyRunningError and the exit's privilege and network errors, each
    one sentence for the operator; nothing of a peer's making.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(lock_state(config.state_dir))
        identity = load_identity(config)
        keys = load_onion_keys(config, time.time(), os.urandom)
        directory = Directory() if config.gossips else load_directory(config, time.time())[0]
        crypto = make_build_crypto(config.node.engine)
        build = RelayBuild(identity.node_id, keys, offered_suites(), os.urandom, crypto=crypto)
        nursery = await stack.enter_async_context(trio.open_nursery())
        node = RelayNode(config, identity, directory, build, as_exit=as_exit, nursery=nursery)
        if config.gossips:
            node.discovery = RelayDiscovery(config, node, nursery)
            directory = node.directory = await node.discovery.load()
        limits = LinkLimits(
            max_links=config.relay.max_links,
            max_links_per_address=config.relay.max_links_per_address,
            full_ping_every=RELAY_FULL_PING_EVERY,
        )
        if config.payments.is_on:
            node.money = await stack.enter_async_context(
                open_money(config, node, node.engine, identity.node_id)
            )
        node.endpoint = await stack.enter_async_context(
            open_links(
                [(address.ip, address.port) for address in config.relay.listen],
                identity,
                node.engine,
                backend=config.node.quic,
                limits=limits,
            )
        )
        if as_exit:
            # DNS and firewall are an exit's: some megabytes that a relay does without.
            from overlay.node.io.exit_side import open_exit_side

            node.exit_side = await stack.enter_async_context(
                open_exit_side(config, node.engine, directory, node.endpoint.run_batch)
            )
        # Everything that needs privileges is done; what undoes the exit's network needs this one.
        drop_capabilities((CAP_NET_ADMIN,) if as_exit else ())
        await stack.enter_async_context(
            serve_metrics(
                config.node.metrics, node.status, node.money.totals if node.money is not None else None
            )
        )
        nursery.start_soon(_keep_time, node, nursery.cancel_scope)
        nursery.start_soon(_keep_directory, node, config)
        if node.discovery is not None:
            node.discovery.start()
        await nursery.start(serve_local, config.state_dir, _Local(node, nursery.cancel_scope).handle)
        settle()
        log.info("ready", role="exit" if as_exit else "relay", name=identity.name, relays=len(directory))
        if started is not None:
            started()
        try:
            await trio.sleep_forever()
        finally:
            node.switch.close(trio.current_time())
            node.duty.store()
            if node.discovery is not None:
                node.discovery.discovery.save()
            node.endpoint.flush()
            nursery.cancel_scope.cancel()


class _Local:
    """Answers the local control socket."""

    def __init__(self, node: RelayNode, scope: trio.CancelScope) -> None:
        self._node = node
        self._scope = scope

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "status":
            return self._node.status()
        if method == "stop":
            self._scope.cancel()
            return {}
        if method == "drain":
            limit_s = params.get("limit_s")
            if not isinstance(limit_s, int | float) or not 0 <= limit_s <= MAX_DRAIN_S:
                raise LocalControlError(f"limit_s must be from 0 to {MAX_DRAIN_S:g} seconds")
            self._node.duty.roster.drain(trio.current_time(), limit_s)
            return {"circuits": self._node.switch.circuit_count}
        if method == "reprice":
            price = params.get("wei_per_packet")
            if not isinstance(price, int) or not 0 <= price <= MAX_PRICE_WEI_PER_PACKET:
                raise LocalControlError(f"a price is from 0 to {MAX_PRICE_WEI_PER_PACKET} wei per packet")
            if self._node.money is None:
                raise LocalControlError("it runs without payments and charges nothing")
            self._node.reprice(price)
            return {}
        if self._node.money is not None and method == "tabs":
            return self._node.money.status()
        if self._node.money is not None and method.startswith("wallet"):
            return await self._node.money.wallet.handle(method, params)
        raise LookupError(f"a relay has no {method}")


async def _keep_time(node: RelayNode, scope: trio.CancelScope) -> None:
    """Builds' time-outs, circuits' ends, old keys, and what the operator allows; cancels `scope` when a
    draining node is done.
    """
    expire_at = trio.current_time() + EXPIRE_S
    while True:
        await trio.sleep(TICK_S)
        now = trio.current_time()
        node.switch.handle_timeout(now)
        node.duty.tick(sum(node.carried_packets()), node.change_duty)
        if node.duty.roster.may_stop(node.switch.circuit_count, now):
            scope.cancel()
        if now >= expire_at:
            expire_at = now + EXPIRE_S
            node.engine.expire()
        node.endpoint.flush()


async def _keep_directory(node: RelayNode, config: Config) -> None:
    """Onion keys as they fall due, and the seed list when its file changes."""
    seen = _stamp(config)
    while True:
        await trio.sleep(60.0)
        refresh_onion_keys(node, config)
        stamp = _stamp(config)
        if stamp == seen or config.gossips:
            continue
        seen = stamp
        try:
            node.directory, _ = load_directory(config, time.time())
        except Exception as error:  # an operator's file in the making: keep the old one and say so
            log.error("the new seed list is not used", reason=str(error))
            continue
        if node.exit_side is not None:
            node.exit_side.set_directory(node.directory)
        log.info("seed list read", relays=len(node.directory))


def refresh_onion_keys(node: RelayNode, config: Config) -> None:
    """Change the onion keys when they are due; a full disk or a damaged file leaves the node with those
    it has.
    """
    try:
        node.build.set_keys(load_onion_keys(config, time.time(), os.urandom))
        node.keys_problem = ""
    except FileError as error:
        if not node.keys_problem:
            log.error("the onion keys are not changed", reason=str(error))
        node.keys_problem = f"the onion keys are not changed as they should: {error}"


def _stamp(config: Config) -> tuple[int, int]:
    if config.seed_list is None:
        return 0, 0
    try:
        status = config.seed_list.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
