"""The native engine's Python half: flows, meters and what the node above asks, turned into commands.

Packets, QUIC, sockets and the TUN are in the crate `hopfare_dataplane` (folder `dataplane/`), in threads of
its own. What is asked here is put in the queue of the thread that it concerns and carried out in order; what
the crate has to say comes as events, which `overlay.engine.io.native_links` takes and hands to
`handle_event`. Calls are of one task, as for the Python engine, whose behaviour this follows.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any, Protocol, cast

from overlay.engine.interface import (
    DirectionCounters,
    FlowCounters,
    FlowFault,
    FlowHandle,
    InnerAddresses,
    Price,
)
from overlay.engine.meters import Meter
from overlay.errors import OverlayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from exit.policy import PolicyTable
    from overlay.engine.gate import GateCounters
    from overlay.engine.interface import EngineEvents

INTERFACE = 3
"""Of the crate's interface; one that was built for another is not used."""
_SUITES = (1, 2)


class NativeEngineError(OverlayError):
    """The native engine cannot be used, or has failed."""


def load_crate() -> ModuleType:
    """Return the crate's module. Raises NativeEngineError with the reason when there is none for us."""
    try:
        crate = importlib.import_module("hopfare_dataplane")
    except ImportError as error:
        raise NativeEngineError(f"the native engine is not installed ({error})") from error
    found = getattr(crate, "INTERFACE", None)
    if found != INTERFACE:
        raise NativeEngineError(
            f"the native engine that is installed was built for another version (interface {found}, wanted "
            f"{INTERFACE}): build it again"
        )
    return crate


class TunFile(Protocol):
    """What the crate needs of a TUN device (exit.io.tun.Tun)."""

    has_offload: bool

    def fileno(self) -> int:
        """The descriptor."""

    def enable_uso(self) -> bool:
        """Ask for UDP super-packets; whether there are any."""


class NamedLink(Protocol):
    """A link of the native engine."""

    @property
    def name(self) -> int:
        """Its number in the crate."""


class NativeFlow:
    """A circuit's entry. It keeps its meters alive, which the crate charges until the flow is dropped."""

    __slots__ = ("_meters", "addresses", "cell", "closed", "ends", "name")

    def __init__(
        self,
        name: int,
        cell: Any,
        ends: tuple[tuple[NamedLink, int], ...],
        meters: tuple[Meter, ...],
        addresses: InnerAddresses | None,
    ) -> None:
        self.name = name
        self.ends = ends
        self.closed = False
        self.addresses = addresses
        self.cell = cell
        self._meters = meters

    @property
    def counters(self) -> FlowCounters:
        """Packets and failures as of the engine's last batch."""
        values = self.cell.figures()
        return FlowCounters(DirectionCounters(*values[:3]), DirectionCounters(*values[3:]))

    def close(self) -> None:
        """Let the meters go."""
        self.closed = True
        self._meters = ()


_SLOT: Any = vars(Meter)["notified"]
"""Where a native meter keeps its handle: a changed class must have the same layout."""


class _Handle:
    """What a meter keeps of the crate."""

    __slots__ = ("cell", "crate", "low_wei", "name")

    def __init__(self, crate: Any, name: int, cell: Any, low_wei: int) -> None:
        self.crate = crate
        self.name = name
        self.cell = cell
        self.low_wei = low_wei


class NativeMeter(Meter):
    """A meter whose figures are the crate's, as of its last batch.

    Nodes make plain meters and give them to whichever engine they run on; ``adopt`` makes such a one native.
    """

    __slots__ = ()

    @property
    def _handle(self) -> _Handle:
        return cast(_Handle, _SLOT.__get__(self))

    @property
    def credit_wei(self) -> int | None:  # type: ignore[override]
        """Credit left; None without a limit."""
        return cast("int | None", self._handle.cell.figures()[0])

    @property
    def charged_wei(self) -> int:  # type: ignore[override]
        """All that was ever charged."""
        return cast(int, self._handle.cell.figures()[1])

    @property
    def packets(self) -> int:  # type: ignore[override]
        """Packets charged."""
        return cast(int, self._handle.cell.figures()[2])

    @property
    def refused_packets(self) -> int:  # type: ignore[override]
        """Packets that the credit did not cover."""
        return cast(int, self._handle.cell.figures()[3])

    @property
    def low_wei(self) -> int:
        """The mark under which the node wants a notice."""
        return self._handle.low_wei

    @low_wei.setter
    def low_wei(self, wei: int) -> None:
        handle = self._handle
        handle.low_wei = wei
        handle.crate.set_low(handle.name, wei)

    def add_credit(self, wei: int) -> None:
        """Add to the credit. Raises ValueError for a negative amount."""
        if wei < 0:
            raise ValueError("credit to add must not be negative")
        handle = self._handle
        handle.crate.add_credit(handle.name, wei, [])

    def charge(self, packets: int, wei_per_packet: int) -> bool:
        """Refuse: the crate charges, and nobody else."""
        raise RuntimeError("a native meter is charged by its engine")

    def affordable_packets(self, wei_per_packet: int) -> int:
        """How many packets the credit covers at most."""
        credit = self.credit_wei
        return 1 << 62 if credit is None or wei_per_packet == 0 else credit // wei_per_packet

    def take_notice(self) -> bool:
        """Never: the crate gives notice by an event."""
        return False

    def __del__(self) -> None:
        handle = self._handle
        handle.crate.free_meter(handle.name)


class _Budget:
    """What the queues hold, in the shape of the Python engine's budget."""

    __slots__ = ("_crate", "limit_bytes")

    def __init__(self, crate: Any, limit_bytes: int) -> None:
        self._crate = crate
        self.limit_bytes = limit_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of packets held by all queues."""
        return cast(int, self._crate.used_bytes)


class NativeEngine:
    """The engine interface over the crate, which reads and writes the TUN itself."""

    kind = "native"

    def __init__(self, events: EngineEvents[Any], *, memory_limit_bytes: int, threads: int = 1) -> None:
        """Load the crate; nothing runs before the links are opened. Raises NativeEngineError."""
        crate = load_crate()
        self.crate: Any = crate.Engine(memory_limit_bytes, threads)
        self.threads = threads
        self.budget = _Budget(self.crate, memory_limit_bytes)
        self._crate_module: Any = crate
        self._events = events
        self._names = itertools.count(1)
        self._links: dict[Any, dict[int, NativeFlow]] = {}
        self._flows: dict[int, NativeFlow] = {}
        self._watched: dict[int, Meter] = {}

    # -- the interface for the node

    def attach_tun(self, tun: TunFile, *, by_source: bool) -> None:
        """Give the engine its TUN, which it reads and writes from now on. ``by_source``: a client's."""
        self.crate.attach_tun(tun.fileno(), tun.has_offload, tun.enable_uso(), by_source, by_source)

    def relay(
        self,
        root: bytes,
        suite: int,
        link_in: Any,
        id_in: int,
        price_in: Price,
        link_out: Any,
        id_out: int,
        price_out: Price,
    ) -> NativeFlow:
        """Join two links.

        Raises KeyError when a link is down, ValueError for an id or suite of no use, and for two meters with
        a limit that already belong to different threads.
        """
        front, back = self._links[link_in], self._links[link_out]
        _check_suite(suite)
        _check_id(front, id_in)
        _check_id(back, id_out)
        if front is back and id_in == id_out:
            raise ValueError(f"circuit id {id_out} is in use on this link")
        prices = self._price(price_in), self._price(price_out)
        flow = self._add(((link_in, id_in), (link_out, id_out)), (price_in.meter, price_out.meter), None)
        return self._place(
            flow,
            self.crate.relay,
            flow.name,
            root,
            suite,
            link_in.name,
            id_in,
            prices[0],
            link_out.name,
            id_out,
            prices[1],
            flow.cell,
        )

    def exit(
        self, root: bytes, suite: int, link: Any, circuit_id: int, price: Price, addresses: InnerAddresses
    ) -> NativeFlow:
        """Join a link and the TUN. Raises as ``relay`` does."""
        ends = self._check_end(link, circuit_id, suite)
        charged = self._price(price)
        flow = self._add(ends, (price.meter,), addresses)
        inner = addresses.v4, addresses.v6
        end = link.name, circuit_id, charged, inner, flow.cell
        return self._place(flow, self.crate.exit, flow.name, root, suite, *end)

    def client(
        self,
        roots: Sequence[bytes],
        suite: int,
        link: Any,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
    ) -> NativeFlow:
        """Join the TUN and a link. Raises as ``relay`` does."""
        ends = self._check_end(link, circuit_id, suite)
        charged = self._price(price)
        flow = self._add(ends, (price.meter,), addresses)
        inner = addresses.v4, addresses.v6
        end = link.name, circuit_id, charged, inner, flow.cell
        return self._place(flow, self.crate.client, flow.name, list(roots), suite, *end)

    def echo(self, flow: FlowHandle, token: bytes) -> None:
        """Send an echo request of 8 bytes; nothing happens on a flow that was dropped."""
        if isinstance(flow, NativeFlow) and not flow.closed:
            self.crate.echo(flow.name, token)

    def drop(self, flow: FlowHandle) -> None:
        """Forget a flow; twice is allowed."""
        if isinstance(flow, NativeFlow) and not flow.closed:
            self._forget(flow)
            self.crate.drop_flow(flow.name)

    def expire(self) -> None:
        """Have idle circuits erase old keys; for a clock of some ten seconds."""
        self.crate.expire()

    def add_credit(self, meter: Meter, flows: Sequence[Any], wei: int) -> None:
        """Credit a meter and wake the flows that may have waited for it. Raises ValueError below zero."""
        if wei < 0:
            raise ValueError("credit to add must not be negative")
        self.crate.add_credit(self._adopt(meter), wei, [flow.name for flow in flows if not flow.closed])

    def watch_meter(self, meter: Meter) -> None:
        """Tell the node (``on_meter_low``) when this meter falls under its mark, until ``unwatch_meter``."""
        name = self._adopt(meter)
        self._watched[name] = meter
        self.crate.watch_meter(name, True)

    def unwatch_meter(self, meter: Meter) -> None:
        """Stop watching; a meter that is not watched is no mistake."""
        if isinstance(meter, NativeMeter) and self._watched.pop(meter._handle.name, None) is not None:
            self.crate.watch_meter(meter._handle.name, False)

    def circuit_id_in_use(self, link: Any, circuit_id: int) -> bool:
        """Whether a circuit id is taken on a link (or the link is down)."""
        ids = self._links.get(link)
        return ids is None or circuit_id in ids or circuit_id == 0

    @property
    def unknown_packets(self) -> int:
        """Packets of the TUN that belong to no circuit."""
        return cast(int, self.crate.unknown_packets)

    # -- the exit's rules

    def set_policy(self, table: PolicyTable, dns: InnerAddresses) -> None:
        """Judge customers' packets by ``table`` from now on; refusals come from the ``dns`` addresses."""
        has_ipv6, local, deny, rules4, rules6 = table.compiled()
        self.crate.set_policy(has_ipv6, local, deny, rules4, rules6, dns.v4, dns.v6 or bytes(16))

    def read_gate(self, counters: GateCounters) -> None:
        """Bring the gate's counters up to date."""
        counters.malformed, counters.spoofed, counters.refused = self.crate.gate_figures()

    # -- what the links tell

    def on_link_up(self, link: Any) -> None:
        """A link is ready."""
        self._links[link] = {}
        self._events.on_link_up(link)

    def on_control(self, link: Any, message: bytes) -> None:
        """A control message, unread."""
        self._events.on_control(link, message)

    def on_link_closed(self, link: Any, code: int, reason: str) -> None:
        """A link is gone: its flows end first, then the node is told."""
        ids = self._links.pop(link, {})
        for flow in list(ids.values()):
            if not flow.closed:
                self._forget(flow)
                # One of the crate's own, unless its other link is still there.
                self.crate.drop_flow(flow.name)
                self._events.on_flow_lost(flow, FlowFault.LINK_CLOSED)
        self._events.on_link_closed(link, code, reason)

    def handle_event(self, event: tuple[Any, ...]) -> None:
        """Carry out one event that is not a link's. Raises NativeEngineError when the engine has failed."""
        match event:
            case ("flow lost", name, fault):
                flow = self._flows.get(name)
                if flow is not None:
                    self._forget(flow)
                    self._events.on_flow_lost(flow, FlowFault(fault))
            case ("echo", name, token):
                flow = self._flows.get(name)
                if flow is not None:
                    self._events.on_echo_reply(flow, token)
            case ("meter low", name):
                meter = self._watched.get(name)
                if meter is not None:
                    self._events.on_meter_low(meter)
            case ("tun gone", reason):
                raise NativeEngineError(f"the TUN device is gone: {reason}")
            case ("died", reason):
                raise NativeEngineError(
                    f"the native engine has failed ({reason}); start the node again, and report this."
                    ' Until it is mended, `engine = "python"` in [node] runs without it'
                )

    # -- inside

    def new_name(self) -> int:
        """A number for a link, a flow or a meter, never given before."""
        return next(self._names)

    def new_link_cell(self) -> Any:
        """The place of one link's figures."""
        return self._crate_module.LinkCell()

    def _check_end(self, link: Any, circuit_id: int, suite: int) -> tuple[tuple[Any, int], ...]:
        _check_suite(suite)
        _check_id(self._links[link], circuit_id)
        return ((link, circuit_id),)

    def _add(
        self, ends: tuple[tuple[Any, int], ...], meters: tuple[Meter, ...], addresses: InnerAddresses | None
    ) -> NativeFlow:
        flow = NativeFlow(self.new_name(), self._crate_module.FlowCell(), ends, meters, addresses)
        self._flows[flow.name] = flow
        for link, circuit_id in ends:
            self._links[link][circuit_id] = flow
        return flow

    def _place(self, flow: NativeFlow, add: Callable[..., None], *arguments: Any) -> NativeFlow:
        try:
            add(*arguments)
        except ValueError:  # its meters are charged in different threads
            self._forget(flow)
            raise
        return flow

    def _forget(self, flow: NativeFlow) -> None:
        del self._flows[flow.name]
        for link, circuit_id in flow.ends:
            ids = self._links.get(link)
            if ids is not None:
                ids.pop(circuit_id, None)
        flow.close()

    def _price(self, price: Price) -> tuple[int, int]:
        return self._adopt(price.meter), price.wei_per_packet

    def _adopt(self, meter: Meter) -> int:
        if isinstance(meter, NativeMeter):
            return meter._handle.name
        if meter.packets or meter.charged_wei:
            raise ValueError("a meter that another engine has charged")
        name, cell = self.new_name(), self._crate_module.MeterCell()
        self.crate.new_meter(name, meter.credit_wei, meter.low_wei, cell)
        # The slots' own descriptors: from here on the class hides them.
        handle = _Handle(self.crate, name, cell, meter.low_wei)
        meter.__class__ = NativeMeter
        _SLOT.__set__(meter, handle)
        return name


def _check_id(ids: dict[int, NativeFlow], circuit_id: int) -> None:
    if circuit_id in ids or circuit_id == 0:
        raise ValueError(f"circuit id {circuit_id} is in use on this link")


def _check_suite(suite: int) -> None:
    if suite not in _SUITES:
        raise ValueError(f"suite {suite} is not known")
