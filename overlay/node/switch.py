"""The switch of a relay: builds that pass through, circuits that stand, and their end.

Pure: takes control messages, dial results, engine notices and the time; acts through a ``SwitchHost``.
Owns which circuit id on which link belongs to which flow. Keys of builds are circuits.building's, packets
are the engine's, dialling is the driver's.

Circuit ids are chosen by the side that sends a Build: the dialler of a link sets their top bit to 0, the
acceptor to 1, so the two never choose the same. Id 0 is the engine's.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from circuits.building.messages import Address, ExitAddresses, ExitHere, Refusal
from circuits.building.relay import BecomeExit, Extend, PendingBuild, Refuse, Reject, RelayBuild
from overlay.engine.interface import Engine, EngineLink, FlowFault, FlowHandle, InnerAddresses, Price
from overlay.messages import Build, Built, Destroy

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.messages import Message

MAX_BUILDS_PER_S = 50.0
"""Builds that one neighbour may start, on average; a customer needs a few a minute."""
BUILD_BURST = 200.0
MAX_CIRCUITS_PER_CUSTOMER = 256
MAX_CIRCUITS = 20_000
MAX_LIFETIME_S = 24 * 3600
DESTROY_FINISHED = 0
DESTROY_EXPIRED = 32
DESTROY_REFUSED = 33
DESTROY_CLOSING = 34
DESTROY_FAULT_BASE = 64
"""A Destroy because of an engine's fault carries this plus the FlowFault."""
DESTROY_PAYMENT_BASE = 96
"""One because of money carries this plus the `payments.tab.CloseReason`."""

L = TypeVar("L", bound=EngineLink)


class SwitchHost(Protocol[L]):
    """What the switch asks of its driver. Calls do not block and do not raise."""

    def send(self, link: L, message: Message) -> None:
        """Send one control message."""

    def find_link(self, node_id: bytes) -> L | None:
        """A link that is up to this relay, or None."""

    def dial(self, node_id: bytes, address: Address) -> None:
        """Start dialling; ``CircuitSwitch.on_dialled`` gets the outcome.

        Dialling the same relay twice at once is joined.
        """

    def may_extend(self, node_id: bytes, address: Address) -> str | None:
        """Why a circuit may not go on to this relay at this address, or None if it may."""

    def price_in(self, link: L, wei_per_packet: int) -> Price:
        """What packets of a circuit from this neighbour are charged to."""

    def price_out(self, link: L, wei_per_packet: int) -> Price:
        """What packets of a circuit to this neighbour are charged to."""

    def may_pay(self, front: L, link: L, wei_per_packet: int) -> str | None:
        """Why a circuit to this neighbour could not be paid, or None if it can, or may."""

    def circuit_up(
        self, flow: FlowHandle, front: L, price_in: int, back: L | None, price_out: int, now: float
    ) -> None:
        """A circuit stands, at these prices in wei per packet."""

    def circuit_down(self, flow: FlowHandle, now: float) -> None:
        """It is gone."""

    def allocate(self, wanted: ExitHere, now: float) -> ExitAddresses | None:
        """Inner addresses for a circuit that ends here, or None when there are none left."""

    def release(self, addresses: ExitAddresses, now: float) -> None:
        """Give a circuit's inner addresses back."""


@dataclass(slots=True, eq=False)
class _Building(Generic[L]):
    """A build whose next relay has not answered."""

    pending: PendingBuild
    front: L
    front_id: int
    next_id: bytes
    onward: bytes
    back: L | None = None
    back_id: int = 0


@dataclass(slots=True, eq=False)
class _Carried(Generic[L]):
    """A circuit that stands."""

    flow: FlowHandle
    front: L
    front_id: int
    expires_s: float
    back: L | None = None
    back_id: int = 0
    addresses: ExitAddresses | None = None
    price_in: int = 0
    price_out: int = 0


@dataclass(slots=True)
class _Neighbour(Generic[L]):
    """What one link has at this relay."""

    tokens: float = BUILD_BURST
    refilled_s: float = 0.0
    circuits: dict[int, _Building[L] | _Carried[L]] = field(default_factory=dict)


@dataclass(slots=True)
class SwitchCounters:
    """What the switch has done; for status and metrics."""

    builds: int = 0
    built: int = 0
    refused: int = 0
    rejected: int = 0
    destroyed: int = 0
    lost: int = 0


class CircuitSwitch(Generic[L]):
    """All circuits of one relay."""

    def __init__(
        self,
        host: SwitchHost[L],
        engine: Engine[L],
        build: RelayBuild,
        *,
        node_id: bytes,
        price_wei_per_packet: int,
        is_exit: bool,
        random_id: Callable[[], int],
        max_circuits: int = MAX_CIRCUITS,
        max_circuits_per_link: int = MAX_CIRCUITS,
        max_circuits_per_customer: int = MAX_CIRCUITS_PER_CUSTOMER,
    ) -> None:
        """``random_id`` gives 31 random bits."""
        self._host = host
        self._engine = engine
        self._build = build
        self._node_id = node_id
        self._price = price_wei_per_packet
        self._is_exit = is_exit
        self._random_id = random_id
        self._max_circuits = max_circuits
        self._max_per_link = max_circuits_per_link
        self._max_per_customer = min(max_circuits_per_customer, max_circuits_per_link)
        self._links: dict[L, _Neighbour[L]] = {}
        self._by_pending: dict[PendingBuild, _Building[L]] = {}
        self._by_flow: dict[FlowHandle, _Carried[L]] = {}
        self._dialling: dict[bytes, list[_Building[L]]] = {}
        self.closing = False
        self.counters = SwitchCounters()

    @property
    def circuit_count(self) -> int:
        """Circuits that stand."""
        return len(self._by_flow)

    def circuits_of(self, link: L) -> int:
        """Circuits and builds on one link."""
        neighbour = self._links.get(link)
        return 0 if neighbour is None else len(neighbour.circuits)

    def flows(self) -> list[FlowHandle]:
        """The flows of all circuits that stand."""
        return list(self._by_flow)

    def set_price(self, wei_per_packet: int) -> None:
        """Ask this of circuits that come; those that stand keep their price."""
        self._price = wei_per_packet

    # -- links
    # ------------------------------------------------------------------------------------------------------

    def on_link_up(self, link: L, now: float) -> None:
        """A neighbour is there, dialled or not."""
        self._links[link] = _Neighbour(refilled_s=now)

    def on_link_closed(self, link: L, now: float) -> None:
        """A neighbour is gone. The engine has reported its flows before."""
        neighbour = self._links.pop(link, None)
        if neighbour is None:
            return
        for entry in list(neighbour.circuits.values()):
            if isinstance(entry, _Building):
                if entry.back is link:
                    self._refuse(entry, Refusal.NEXT_REFUSED, "the link to the next relay was lost")
                else:
                    self._abandon(entry, DESTROY_FINISHED)
            else:
                self._end(entry, DESTROY_FAULT_BASE + FlowFault.LINK_CLOSED, now, but=link)

    # -- builds
    # -----------------------------------------------------------------------------------------------------

    def on_build(self, link: L, message: Build, now: float, unix_s: float) -> None:
        """A neighbour wants a circuit through here."""
        neighbour = self._links.get(link)
        if neighbour is None:
            return
        self.counters.builds += 1
        circuit_id = message.circuit_id
        # The peer chose the id, so its top bit tells who dialled; one in use or of our own half is no
        # honest mistake.
        if (
            circuit_id == 0
            or circuit_id in neighbour.circuits
            or bool(circuit_id >> 31) is not link.is_dialler
        ):
            self._reject(link, circuit_id, 1)
            return
        if not self._admit(link, neighbour, now):
            self._reject(link, circuit_id, 2)
            return
        outcome = self._build.handle_build(message.records, now, unix_s)
        if isinstance(outcome, Reject):
            self._reject(link, circuit_id, outcome.code)
        elif isinstance(outcome, Refuse):
            self.counters.refused += 1
            self._host.send(link, Built(circuit_id, outcome.records))
        elif isinstance(outcome, BecomeExit):
            self._become_exit(link, neighbour, circuit_id, outcome, now)
        else:
            self._extend(link, neighbour, circuit_id, outcome, now)

    def on_built(self, link: L, message: Built, now: float) -> None:
        """The next relay answered a build."""
        entry = self._entry(link, message.circuit_id)
        if not isinstance(entry, _Building) or entry.back is not link:
            return
        pending, request = entry.pending, entry.pending.request
        outcome = self._build.handle_built(pending, message.records)
        if outcome is None:
            return
        if isinstance(outcome, Refuse):
            self._answer_refusal(entry, outcome.records)
            return
        self._forget(entry)
        flow = self._engine.relay(
            pending.root,
            request.suite,
            entry.front,
            entry.front_id,
            self._host.price_in(entry.front, request.price_in),
            link,
            entry.back_id,
            self._host.price_out(link, request.price_out),
        )
        lifetime_s = min(request.lifetime_s, MAX_LIFETIME_S)
        carried = _Carried(flow, entry.front, entry.front_id, now + lifetime_s, link, entry.back_id)
        carried.price_in, carried.price_out = request.price_in, request.price_out
        self._carry(carried, now)
        self._host.send(entry.front, Built(entry.front_id, outcome.records))

    def on_dialled(self, node_id: bytes, link: L | None, reason: str, now: float) -> None:
        """The outcome of a dial: the link, or None and why."""
        for entry in self._dialling.pop(node_id, []):
            if entry.pending not in self._by_pending:
                continue
            if link is None or link not in self._links:
                self._refuse(entry, Refusal.NEXT_UNREACHABLE, reason)
            else:
                self._send_onward(entry, link)

    def on_destroy(self, link: L, message: Destroy, now: float) -> None:
        """A neighbour gave a circuit up."""
        entry = self._entry(link, message.circuit_id)
        if entry is None:
            return
        if isinstance(entry, _Carried):
            self._end(entry, message.code, now, but=link)
        elif entry.back is link:
            self._refuse(entry, Refusal.NEXT_REFUSED, f"code {message.code}")
        else:
            self._abandon(entry, message.code)

    def end_paid(self, link: L, *, incoming: bool, code: int, now: float) -> None:
        """End the circuits with a price that come in from a neighbour (``incoming``), or go out to it."""
        neighbour = self._links.get(link)
        for entry in list(neighbour.circuits.values()) if neighbour is not None else ():
            if isinstance(entry, _Carried) and (
                (entry.front is link and entry.price_in > 0)
                if incoming
                else (entry.back is link and entry.price_out > 0)
            ):
                self._end(entry, code, now)

    def on_flow_lost(self, flow: FlowHandle, fault: FlowFault, now: float) -> None:
        """The engine dropped a flow."""
        entry = self._by_flow.get(flow)
        if entry is not None:
            self.counters.lost += 1
            self._end(entry, DESTROY_FAULT_BASE + fault, now)

    # -- time
    # -------------------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Refuse builds that took too long and end circuits that are past their time."""
        for refuse in self._build.handle_timeout(now):
            entry = self._by_pending.get(refuse.pending) if refuse.pending is not None else None
            if entry is not None:
                self._answer_refusal(entry, refuse.records)
        for carried in [entry for entry in self._by_flow.values() if entry.expires_s <= now]:
            self._end(carried, DESTROY_EXPIRED, now)

    def close(self, now: float) -> None:
        """End everything: the node is stopping."""
        self.closing = True
        for entry in list(self._by_pending.values()):
            self._refuse(entry, Refusal.CLOSING, "")
        for carried in list(self._by_flow.values()):
            self._end(carried, DESTROY_CLOSING, now)

    # -- inside
    # -----------------------------------------------------------------------------------------------------

    def _admit(self, link: L, neighbour: _Neighbour[L], now: float) -> bool:
        neighbour.tokens = min(
            BUILD_BURST, neighbour.tokens + max(0.0, now - neighbour.refilled_s) * MAX_BUILDS_PER_S
        )
        neighbour.refilled_s = now
        if self.closing or neighbour.tokens < 1 or len(self._by_flow) >= self._max_circuits:
            return False
        limit = self._max_per_customer if link.peer is None else self._max_per_link
        if len(neighbour.circuits) >= limit:
            return False
        neighbour.tokens -= 1
        return True

    def _become_exit(
        self, link: L, neighbour: _Neighbour[L], circuit_id: int, outcome: BecomeExit, now: float
    ) -> None:
        pending, request = outcome.pending, outcome.pending.request
        entry: _Building[L] = _Building(pending, link, circuit_id, b"", b"")
        neighbour.circuits[circuit_id] = entry
        self._by_pending[pending] = entry
        if not self._is_exit:
            self._refuse(entry, Refusal.ROLE, "")
            return
        if request.price_in < self._price:
            self._refuse(entry, Refusal.PRICE, f"{self._price} wei a packet")
            return
        addresses = self._host.allocate(outcome.wanted, now)
        if addresses is None:
            self._refuse(entry, Refusal.NO_ADDRESS, "")
            return
        built = self._build.accept_exit(pending, addresses)
        self._forget(entry)
        if built is None:
            self._host.release(addresses, now)
            return
        flow = self._engine.exit(
            pending.root,
            request.suite,
            link,
            circuit_id,
            self._host.price_in(link, request.price_in),
            InnerAddresses(
                addresses.ipv4.packed, addresses.ipv6.packed if addresses.ipv6 is not None else None
            ),
        )
        lifetime_s = min(request.lifetime_s, MAX_LIFETIME_S)
        self._carry(
            _Carried(
                flow,
                link,
                circuit_id,
                now + lifetime_s,
                addresses=addresses,
                price_in=request.price_in,
            ),
            now,
        )
        self._host.send(link, Built(circuit_id, built.records))

    def _extend(
        self, link: L, neighbour: _Neighbour[L], circuit_id: int, outcome: Extend, now: float
    ) -> None:
        request = outcome.pending.request
        entry = _Building(outcome.pending, link, circuit_id, outcome.next.node_id, outcome.records)
        neighbour.circuits[circuit_id] = entry
        self._by_pending[outcome.pending] = entry
        if request.price_in < self._price + request.price_out:
            self._refuse(entry, Refusal.PRICE, f"{self._price} wei a packet and what goes onward")
            return
        forbidden = self._host.may_extend(outcome.next.node_id, outcome.next.address)
        if forbidden is None and link.peer == outcome.next.node_id:
            forbidden = "the next relay is the previous one"
        if forbidden is not None:
            self._refuse(entry, Refusal.NEXT_FORBIDDEN, forbidden)
            return
        back = self._host.find_link(outcome.next.node_id)
        if back is not None and back in self._links:
            self._send_onward(entry, back)
            return
        waiting = self._dialling.setdefault(outcome.next.node_id, [])
        waiting.append(entry)
        if len(waiting) == 1:
            self._host.dial(outcome.next.node_id, outcome.next.address)

    def _send_onward(self, entry: _Building[L], back: L) -> None:
        price_out = entry.pending.request.price_out
        unpayable = self._host.may_pay(entry.front, back, price_out) if price_out else None
        if unpayable is not None:
            self._refuse(entry, Refusal.UNPAID, unpayable)
            return
        circuits = self._links[back].circuits
        top = 0 if back.is_dialler else 1 << 31
        for _ in range(64):
            circuit_id = self._random_id() & 0x7FFFFFFF | top
            if circuit_id and circuit_id not in circuits:
                break
        else:
            self._refuse(entry, Refusal.BUSY, "no circuit id is free on the link to the next relay")
            return
        entry.back, entry.back_id = back, circuit_id
        circuits[circuit_id] = entry
        self._host.send(back, Build(circuit_id, entry.onward))
        entry.onward = b""

    def _entry(self, link: L, circuit_id: int) -> _Building[L] | _Carried[L] | None:
        neighbour = self._links.get(link)
        return None if neighbour is None else neighbour.circuits.get(circuit_id)

    def _carry(self, carried: _Carried[L], now: float) -> None:
        self.counters.built += 1
        self._by_flow[carried.flow] = carried
        self._links[carried.front].circuits[carried.front_id] = carried
        if carried.back is not None:
            self._links[carried.back].circuits[carried.back_id] = carried
        self._host.circuit_up(
            carried.flow, carried.front, carried.price_in, carried.back, carried.price_out, now
        )

    def _reject(self, link: L, circuit_id: int, code: int) -> None:
        self.counters.rejected += 1
        self._host.send(link, Destroy(circuit_id, code))

    def _refuse(self, entry: _Building[L], refusal: Refusal, text: str) -> None:
        outcome = self._build.refuse(entry.pending, refusal, text)
        if outcome is None:
            self._forget(entry)
        else:
            self._answer_refusal(entry, outcome.records)

    def _answer_refusal(self, entry: _Building[L], records: bytes) -> None:
        """Send a sealed refusal back, and have the next relay forget its half."""
        self.counters.refused += 1
        self._forget(entry)
        if entry.front in self._links:
            self._host.send(entry.front, Built(entry.front_id, records))
        if entry.back is not None and entry.back in self._links:
            self._host.send(entry.back, Destroy(entry.back_id, DESTROY_REFUSED))

    def _abandon(self, entry: _Building[L], code: int) -> None:
        """The previous side is gone: forget a build and tell the next relay."""
        self._build.forget(entry.pending)
        self._forget(entry)
        if entry.back is not None and entry.back in self._links:
            self._host.send(entry.back, Destroy(entry.back_id, code))

    def _forget(self, entry: _Building[L]) -> None:
        self._by_pending.pop(entry.pending, None)
        self._drop_ids(entry)

    def _end(self, entry: _Carried[L], code: int, now: float, but: L | None = None) -> None:
        """End a circuit that stood, and tell its neighbours but ``but``."""
        if self._by_flow.pop(entry.flow, None) is None:
            return
        self.counters.destroyed += 1
        self._engine.drop(entry.flow)
        self._host.circuit_down(entry.flow, now)
        self._drop_ids(entry)
        if entry.addresses is not None:
            self._host.release(entry.addresses, now)
        for link, circuit_id in ((entry.front, entry.front_id), (entry.back, entry.back_id)):
            if link is not None and link is not but and link in self._links:
                self._host.send(link, Destroy(circuit_id, code))

    def _drop_ids(self, entry: _Building[L] | _Carried[L]) -> None:
        for link, circuit_id in ((entry.front, entry.front_id), (entry.back, entry.back_id)):
            neighbour = self._links.get(link) if link is not None else None
            if neighbour is not None and neighbour.circuits.get(circuit_id) is entry:
                del neighbour.circuits[circuit_id]


def same_address(left: Address, right: Address) -> bool:
    """Whether two (IP literal, port) pairs name one endpoint."""
    return left[1] == right[1] and ipaddress.ip_address(left[0]) == ipaddress.ip_address(right[0])
