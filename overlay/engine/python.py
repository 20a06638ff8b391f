"""The Python engine: joins links, flows and the TUN. Runs everywhere and is what the native engine is
tested against.

It is handed batches by its drivers (overlay.links for QUIC, overlay.engine.io for the TUN) and leaves
batches behind; it never waits. All calls come from one task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.inner import ItemType
from overlay.engine.flows import ClientFlow, EndpointFlow, ExitFlow, Flow, Gatekeeper, RelayFlow
from overlay.engine.interface import EngineEvents, FlowFault, FlowHandle, InnerAddresses, Price
from overlay.engine.lanes import LinkLanes
from overlay.engine.queues import MemoryBudget
from overlay.engine.tunside import RawTun, TunSide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlay.engine.meters import Meter
    from overlay.links.link import Link

DEFAULT_MEMORY_LIMIT_BYTES = 64 * 1024 * 1024
ENTRY_REST_BYTES = 1024 * 1024
"""Half of what one circuit's entry may hold; counted twice for circuits that have IPv6 as well, which
only rests sooner.
"""


class PythonEngine:
    """The engine interface over Python flows, and the handler that the links' endpoint calls.

    ``clock`` gives seconds that never go back, ``rng`` bytes fit for keys. ``gate`` makes the gate of one
    exit circuit and is needed for exit flows, ``attach_tun`` for exit and client flows.
    """

    kind = "python"

    def __init__(
        self,
        events: EngineEvents[Link],
        *,
        clock: Callable[[], float],
        rng: Callable[[int], bytes],
        memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
        gate: Callable[[InnerAddresses], Gatekeeper] | None = None,
    ) -> None:
        self._events = events
        self._clock = clock
        self._rng = rng
        self._gate = gate
        self.budget = MemoryBudget(memory_limit_bytes)
        self._lanes: dict[Link, LinkLanes] = {}
        self._touched: list[LinkLanes] = []
        self._blocked: set[LinkLanes] = set()
        self._by_address: dict[bytes, EndpointFlow] = {}
        self._watched: dict[int, Meter] = {}
        self._low: list[Meter] = []
        self._tun: TunSide | None = None
        self._address_at: tuple[int, int] = (0, 0)
        self.unknown_packets = 0

    def attach_tun(self, tun: RawTun, *, by_source: bool) -> None:
        """Give the engine its TUN. ``by_source``: packets that come from it belong to the circuit of
        their source address (a client), else of their destination (an exit).
        """
        self._tun = TunSide(tun)
        self._address_at = (12, 8) if by_source else (16, 24)

    # -- the interface for the node
    # -------------------------------------------------------------------------------

    def relay(
        self,
        root: bytes,
        suite: int,
        link_in: Link,
        id_in: int,
        price_in: Price,
        link_out: Link,
        id_out: int,
        price_out: Price,
    ) -> RelayFlow:
        """Join two links. Raises KeyError when a link is down and ValueError when a circuit id is in use."""
        front, back = self._lanes[link_in], self._lanes[link_out]
        if id_out in back.ends or (front is back and id_in == id_out):
            raise ValueError(f"circuit id {id_out} is in use on this link")
        return RelayFlow(
            root, suite, (front, id_in), price_in, (back, id_out), price_out, self.budget, self._on_fault
        )

    def exit(
        self, root: bytes, suite: int, link: Link, circuit_id: int, price: Price, addresses: InnerAddresses
    ) -> ExitFlow:
        """Join a link and the TUN. Raises KeyError when the link is down, ValueError when the id is in
        use, and RuntimeError when the engine was given no TUN or no gate.
        """
        if self._tun is None or self._gate is None:
            raise RuntimeError("an exit flow needs a TUN and a gate")
        lanes = self._lanes[link]
        flow = ExitFlow(
            root,
            suite,
            lanes,
            circuit_id,
            price,
            addresses,
            self._tun,
            self._gate(addresses),
            self.budget,
            self._on_fault,
            self._rng,
        )
        self._index(flow)
        return flow

    def client(
        self,
        roots: Sequence[bytes],
        suite: int,
        link: Link,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
    ) -> ClientFlow:
        """Join the TUN and a link. Raises as ``exit`` does."""
        if self._tun is None:
            raise RuntimeError("a client flow needs a TUN")
        lanes = self._lanes[link]
        flow = ClientFlow(
            roots,
            suite,
            lanes,
            circuit_id,
            price,
            addresses,
            self._tun,
            self.budget,
            self._on_fault,
            self._events.on_echo_reply,
            self._rng,
        )
        self._index(flow)
        return flow

    def echo(self, flow: FlowHandle, token: bytes) -> None:
        """Send an echo request through a client flow; nothing happens on a flow that was dropped."""
        if isinstance(flow, ClientFlow) and not flow.closed:
            flow.echo(token, self._clock())
            self.pump()

    def drop(self, flow: FlowHandle) -> None:
        """Forget a flow; twice is allowed."""
        if not isinstance(flow, Flow) or flow.closed:
            return
        if isinstance(flow, EndpointFlow):
            for address in (flow.addresses.v4, flow.addresses.v6):
                if address is not None and self._by_address.get(address) is flow:
                    del self._by_address[address]
        flow.close()

    def expire(self) -> None:
        """Have idle circuits erase old keys; for a clock of some ten seconds."""
        now = self._clock()
        for lanes in self._lanes.values():
            for end in lanes.ends.values():
                end.flow.expire(now)

    def add_credit(self, meter: Meter, flows: Sequence[Flow], wei: int) -> None:
        """Credit a meter and wake the flows that may have waited for it."""
        meter.add_credit(wei)
        now = self._clock()
        for flow in flows:
            flow.wake(now)
        self.pump()

    def watch_meter(self, meter: Meter) -> None:
        """Tell the node (``on_meter_low``) when this meter falls under its mark, until ``unwatch_meter``."""
        self._watched[id(meter)] = meter

    def unwatch_meter(self, meter: Meter) -> None:
        """Stop watching; a meter that is not watched is no mistake."""
        self._watched.pop(id(meter), None)

    def circuit_id_in_use(self, link: Link, circuit_id: int) -> bool:
        """Whether a circuit id is taken on a link (or the link is down)."""
        lanes = self._lanes.get(link)
        return lanes is None or circuit_id in lanes.ends or circuit_id == 0

    def _index(self, flow: EndpointFlow) -> None:
        self._by_address[flow.addresses.v4] = flow
        if flow.addresses.v6 is not None:
            self._by_address[flow.addresses.v6] = flow

    def _on_fault(self, flow: Flow, fault: FlowFault) -> None:
        self.drop(flow)
        self._events.on_flow_lost(flow, fault)

    # -- what the links' endpoint calls
    # ---------------------------------------------------------------------------

    def on_link_up(self, link: Link) -> None:
        """A link is ready."""
        self._lanes[link] = LinkLanes(link, self.budget, self._touched.append)
        self._events.on_link_up(link)

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        """A link is gone: its flows end first, then the node is told."""
        lanes = self._lanes.pop(link, None)
        if lanes is not None:
            for end in list(lanes.ends.values()):
                end.flow.fail(FlowFault.LINK_CLOSED)
            self._blocked.discard(lanes)
        self._events.on_link_closed(link, code, reason)

    def on_control(self, link: Link, message: bytes) -> None:
        """A control message, unread."""
        self._events.on_control(link, message)

    def on_datagrams(self, link: Link, frames: list[bytes]) -> None:
        """A batch of frames of LINK_FRAME bytes."""
        lanes = self._lanes.get(link)
        if lanes is not None and frames:
            lanes.on_datagrams(frames, self._clock())

    def on_stream(self, link: Link, stream_id: int, chunks: list[bytes], fin: bool) -> None:
        """Bytes of a unidirectional stream."""
        lanes = self._lanes.get(link)
        if lanes is not None:
            lanes.on_stream(stream_id, chunks, fin, self._clock())

    def on_stream_reset(self, link: Link, stream_id: int, code: int) -> None:
        """The peer gave up a stream."""
        lanes = self._lanes.get(link)
        if lanes is not None:
            lanes.on_stream_reset(stream_id)

    def on_writable(self, link: Link) -> None:
        """A link that was full has room again."""
        lanes = self._lanes.get(link)
        if lanes is not None:
            lanes.pump(self._clock())
            self._note_blocked(lanes)

    def on_batch_end(self) -> None:
        """All that one wake-up brought was handed in: send what it set off."""
        self.pump()
        for meter in self._watched.values():
            if meter.take_notice():
                self._low.append(meter)
        while self._low:
            self._events.on_meter_low(self._low.pop())
        if self.budget.over:
            self._free_memory()

    # -- the TUN
    # ---------------------------------------------------------------------------------------------------

    def on_tun_packets(self, raws: Sequence[bytes]) -> None:
        """A batch of raw reads from the TUN; the caller flushes the links afterwards."""
        tun = self._tun
        assert tun is not None
        offset = tun.packet_offset
        at4, at6 = self._address_at
        at4, at6 = at4 + offset, at6 + offset
        flows = self._by_address
        now = self._clock()
        for raw in raws:
            if len(raw) < offset + 20:
                continue
            version = raw[offset] >> 4
            if version == 4:
                flow = flows.get(raw[at4 : at4 + 4])
                protocol = raw[offset + 9]
            else:
                flow = flows.get(raw[at6 : at6 + 16])
                protocol = raw[offset + 6]
            if flow is None:
                self.unknown_packets += 1
            else:
                flow.enqueue(tun.item(raw), protocol, now)
        self.pump()
        if self.budget.over:
            self._free_memory()

    def entry_is_full(self) -> bool:
        """Whether a customer's TUN should rest a moment: its kernel then holds TCP back without a loss."""
        return sum(flow.entry_bytes for flow in self._by_address.values()) > ENTRY_REST_BYTES

    # -- inside
    # ----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Move what waits into QUIC on every link that was touched or blocked."""
        now = self._clock()
        if self._blocked:
            for lanes in list(self._blocked):
                lanes.pump(now)
                self._note_blocked(lanes)
        touched = self._touched
        while touched:
            lanes = touched.pop()
            lanes.pump(now)
            self._note_blocked(lanes)

    def _note_blocked(self, lanes: LinkLanes) -> None:
        if lanes.blocked and lanes.link in self._lanes:
            self._blocked.add(lanes)
        else:
            self._blocked.discard(lanes)

    def _free_memory(self) -> None:
        """Over the limit: end the flows that hold the most until it is kept (attacks: "sniper", queue
        exhaustion).
        """
        while self.budget.over:
            flows = {id(end.flow): end.flow for lanes in self._lanes.values() for end in lanes.ends.values()}
            worst = max(flows.values(), key=lambda flow: flow.queued_bytes(), default=None)
            if worst is None or worst.queued_bytes() == 0:
                return
            worst.fail(FlowFault.MEMORY)


__all__ = ["DEFAULT_MEMORY_LIMIT_BYTES", "InnerAddresses", "ItemType", "PythonEngine"]
