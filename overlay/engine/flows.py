"""Flows: circuits as the engine sees them. Keys, meters and packets meet here; links and the TUN are
called through seams.

A flow takes lists of packets and the time. It drops what fails, counts it, and reports a fault to
``on_fault`` at most once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Protocol

from circuits.errors import DecodeError
from circuits.inner import (
    Direction,
    Item,
    ItemType,
    body_capacity,
    decode_body,
    encode_body,
    item_size,
    units_for,
)
from circuits.onion import (
    LANE_DATAGRAM,
    LANE_STREAM,
    ClientBackward,
    ClientForward,
    Command,
    ExitBackward,
    RelayBackward,
    RelayForward,
)
from circuits.params import MAX_TRAIN_UNITS, UNIT
from overlay.engine.interface import FlowCounters, FlowFault, InnerAddresses, Price
from overlay.engine.queues import CodelQueue, MemoryBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlay.engine.lanes import End, LinkLanes
    from overlay.engine.tunside import TunSide

SINGLES_LIMIT_BYTES = 256 * 1024
"""Single packets that one circuit may have waiting on one link (the figure of docs/threat-model.md,
"Queues").
"""
ENTRY_LIMIT_BYTES = 2 * 1024 * 1024
"""Inner TCP packets of one circuit that wait at its entry: a TCP window at 20 MB/s and 100 ms."""
ENTRY_SINGLES_LIMIT_BYTES = 256 * 1024

_TCP = 6


class Gatekeeper(Protocol):
    """The exit's rules, applied to every inner packet that wants to leave (overlay.engine.gate)."""

    def inspect(self, data: bytes, offset: int, now: float) -> bytes | bool | None:
        """True to let it pass, None to drop it, or the bytes of an ICMP answer that tells the customer
        why not.
        """


class _Expiring(Protocol):
    """A lane of circuits.onion."""

    def expire(self, now: float) -> None:
        """Erase keys that are past their time."""


class Flow:
    """What all flows share: counters, faults and dropping."""

    __slots__ = ("_lanes", "_on_fault", "closed", "counters", "ends")

    def __init__(self, on_fault: Callable[[Flow, FlowFault], None]) -> None:
        self.counters = FlowCounters()
        self.closed = False
        self.ends: list[End] = []
        self._lanes: tuple[_Expiring, ...] = ()
        self._on_fault = on_fault

    def fail(self, fault: FlowFault) -> None:
        """End this flow because of a fault; the first one counts."""
        if not self.closed:
            self._on_fault(self, fault)

    def close(self) -> None:
        """Forget queues and streams."""
        self.closed = True
        for end in self.ends:
            end.lanes.detach(end)

    def queued_bytes(self) -> int:
        """Bytes that wait in this flow."""
        return sum(end.held_bytes for end in self.ends)

    def wake(self, now: float) -> None:
        """Try again after a meter was given credit."""

    def expire(self, now: float) -> None:
        """Erase keys that are past their time, which an idle circuit does not do by itself."""
        for lane in self._lanes:
            lane.expire(now)


class _Outlet:
    """What waits for one end of a relay flow: sealed trains and sealed single packets."""

    __slots__ = ("singles", "train_bytes", "trains")

    def __init__(self, budget: MemoryBudget) -> None:
        self.trains: deque[tuple[int, bytes]] = deque()
        self.train_bytes = 0
        self.singles: CodelQueue[bytes] | None = None


class RelayFlow(Flow):
    """A circuit through this relay: ``front`` faces the client, ``back`` the exit."""

    __slots__ = (
        "_back_out",
        "_backward_singles",
        "_backward_trains",
        "_budget",
        "_forward_singles",
        "_forward_trains",
        "_front_out",
        "_held",
        "back",
        "front",
        "price_in",
        "price_out",
    )

    def __init__(
        self,
        root: bytes,
        suite: int,
        front: tuple[LinkLanes, int],
        price_in: Price,
        back: tuple[LinkLanes, int],
        price_out: Price,
        budget: MemoryBudget,
        on_fault: Callable[[Flow, FlowFault], None],
    ) -> None:
        super().__init__(on_fault)
        self._budget = budget
        self.price_in, self.price_out = price_in, price_out
        self.front = front[0].attach(front[1], self)
        self.ends.append(self.front)
        self.back = back[0].attach(back[1], self)
        self.ends.append(self.back)
        self._front_out = _Outlet(budget)
        self._back_out = _Outlet(budget)
        # All lanes now, so that nobody keeps the root: whoever takes this process later cannot derive old
        # keys from it.
        self._forward_trains = RelayForward(root, suite, LANE_STREAM)
        self._forward_singles = RelayForward(root, suite, LANE_DATAGRAM)
        self._backward_trains = RelayBackward(root, suite, LANE_STREAM)
        self._backward_singles = RelayBackward(root, suite, LANE_DATAGRAM)
        self._lanes = (
            self._forward_trains,
            self._forward_singles,
            self._backward_trains,
            self._backward_singles,
        )
        self._held: deque[tuple[End, bytes]] = deque()

    def queued_bytes(self) -> int:
        """Bytes that wait in this flow."""
        total = super().queued_bytes() + sum(len(packet) for _, packet in self._held)
        for outlet in (self._front_out, self._back_out):
            total += outlet.train_bytes + (outlet.singles.size_bytes if outlet.singles else 0)
        return total

    def close(self) -> None:
        """Forget queues and streams."""
        if not self.closed:
            for outlet in (self._front_out, self._back_out):
                self._budget.used_bytes -= outlet.train_bytes
                outlet.trains.clear()
                outlet.train_bytes = 0
                if outlet.singles is not None:
                    outlet.singles.clear()
            self._budget.used_bytes -= sum(len(packet) for _, packet in self._held)
            self._held.clear()
        super().close()

    def wake(self, now: float) -> None:
        """Carry trains on that waited for a neighbour's payment."""
        held, self._held = self._held, deque()
        for end, packet in held:
            self._budget.used_bytes -= len(packet)
            if not self.closed:
                self.on_trains(end, [packet], now)

    def on_trains(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Peel or wrap trains and queue them for the other end; unpaid ones are held, which stops their
        credits too.
        """
        forward = end is self.front
        for packet in packets:
            if self.closed:
                return
            units = len(packet) // UNIT
            if self._held or not self._can_pay(units):
                self._held.append((end, packet))
                self._budget.used_bytes += len(packet)
                continue
            if forward:
                opened = self._forward_trains.open_many((packet,), now)[0]
                if opened is None or opened.command == Command.DELIVER:
                    self.counters.forward.failures += 1
                    self.fail(FlowFault.BAD_PACKETS)
                    return
                self._charge(units)
                self.counters.forward.packets += units
                if opened.command == Command.DROP:
                    end.consume(units, now)
                    continue
                outlet, other, data = self._back_out, self.back, opened.data
            else:
                wrapped = self._backward_trains.wrap_many((packet,), now)
                if not wrapped:
                    self.fail(FlowFault.EXHAUSTED)
                    return
                data = wrapped[0]
                self._charge(units)
                self.counters.backward.packets += units
                outlet, other = self._front_out, self.front
            outlet.trains.append((units, data))
            outlet.train_bytes += len(data)
            self._budget.used_bytes += len(data)
            other.want_trains()

    def on_singles(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Peel or wrap single packets and queue them for the other end; unpaid ones are dropped."""
        forward = end is self.front
        counters = self.counters.forward if forward else self.counters.backward
        paid = self._affordable(len(packets))
        if paid < len(packets):
            counters.dropped += len(packets) - paid
            packets = packets[:paid]
            if not packets:
                return
        count = len(packets)
        data: list[bytes]
        if forward:
            lane = self._forward_singles
            data = []
            count = 0
            failures, dropped = lane.failures, lane.dropped
            for opened in lane.open_many(packets, now):
                if opened is None:
                    continue
                count += 1
                if opened.command == Command.FORWARD:
                    data.append(opened.data)
                elif opened.command == Command.DELIVER:
                    counters.failures += 1
            counters.failures += lane.failures - failures
            counters.dropped += lane.dropped - dropped
            if lane.broken:
                self.fail(FlowFault.BAD_PACKETS)
                return
            outlet, other = self._back_out, self.back
        else:
            data = self._backward_singles.wrap_many(packets, now)
            outlet, other = self._front_out, self.front
        # Only what is authentic and new is billed: replays must not run up anybody's account. What goes back
        # is billed to who pays for it as it leaves (`pull_singles`): what CoDel drops was not delivered.
        if forward:
            self._charge(count)
        else:
            self.price_out.meter.charge(count, self.price_out.wei_per_packet)
        counters.packets += count
        queue = outlet.singles
        if queue is None:
            queue = outlet.singles = CodelQueue(SINGLES_LIMIT_BYTES, self._budget)
        for packet in data:
            if not queue.push(packet, len(packet), now):
                counters.dropped += 1
        other.want_singles()

    def pull_train(self, end: End, max_units: int, now: float) -> tuple[int, bytes] | None:
        """The next train for ``end``; its units are given back as credit to where it came from."""
        outlet, source = (self._back_out, self.front) if end is self.back else (self._front_out, self.back)
        if not outlet.trains or outlet.trains[0][0] > max_units:
            return None
        train = outlet.trains.popleft()
        outlet.train_bytes -= len(train[1])
        self._budget.used_bytes -= len(train[1])
        source.consume(train[0], now)
        return train

    def pull_singles(self, end: End, max_packets: int, now: float) -> list[bytes]:
        """Up to ``max_packets`` waiting packets that CoDel lets pass."""
        queue = (self._back_out if end is self.back else self._front_out).singles
        packets: list[bytes] = []
        while queue and len(packets) < max_packets:
            packet = queue.pop(now)
            if packet is not None:
                packets.append(packet)
        if end is self.front and packets:
            price = self.price_in
            paid = min(len(packets), price.meter.affordable_packets(price.wei_per_packet))
            if paid < len(packets):
                price.meter.refused_packets += len(packets) - paid
                self.counters.backward.dropped += len(packets) - paid
                packets = packets[:paid]
            price.meter.charge(paid, price.wei_per_packet)
        return packets

    def has_trains(self, end: End) -> bool:
        """Whether a train waits for ``end``."""
        return bool((self._back_out if end is self.back else self._front_out).trains)

    def _can_pay(self, packets: int) -> bool:
        for price in (self.price_in, self.price_out):
            if price.meter.affordable_packets(price.wei_per_packet) < packets:
                price.meter.refused_packets += packets
                return False
        return True

    def _affordable(self, packets: int) -> int:
        """How many of ``packets`` both meters cover; the others count as refused."""
        paid = packets
        for price in (self.price_in, self.price_out):
            covered = price.meter.affordable_packets(price.wei_per_packet)
            if covered < packets:
                price.meter.refused_packets += packets - covered
                paid = min(paid, covered)
        return paid

    def _charge(self, packets: int) -> None:
        self.price_in.meter.charge(packets, self.price_in.wei_per_packet)
        self.price_out.meter.charge(packets, self.price_out.wei_per_packet)


class EndpointFlow(Flow, ABC):
    """What client and exit flows share: the inner side. Subclasses seal and open."""

    __slots__ = ("_direction", "_entry_singles", "_entry_trains", "_tun", "addresses", "end", "price")

    def __init__(
        self,
        lanes: LinkLanes,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
        tun: TunSide,
        direction: Direction,
        budget: MemoryBudget,
        on_fault: Callable[[Flow, FlowFault], None],
    ) -> None:
        super().__init__(on_fault)
        self.addresses = addresses
        self.price = price
        self._tun = tun
        self._direction = direction
        self._entry_trains: CodelQueue[Item] = CodelQueue(ENTRY_LIMIT_BYTES, budget)
        self._entry_singles: CodelQueue[Item] = CodelQueue(ENTRY_SINGLES_LIMIT_BYTES, budget)
        self.end = lanes.attach(circuit_id, self)
        self.ends.append(self.end)

    def queued_bytes(self) -> int:
        """Bytes that wait in this flow."""
        return super().queued_bytes() + self._entry_trains.size_bytes + self._entry_singles.size_bytes

    def close(self) -> None:
        """Forget queues and streams."""
        self._entry_trains.clear()
        self._entry_singles.clear()
        super().close()

    def wake(self, now: float) -> None:
        """Send on what waited for credit."""
        if self._entry_trains:
            self.end.want_trains()
        if self._entry_singles:
            self.end.want_singles()

    @property
    def entry_bytes(self) -> int:
        """Inner TCP bytes that wait for the stream lane."""
        return self._entry_trains.size_bytes

    def enqueue(self, item: Item, protocol: int, now: float) -> None:
        """Take one inner item into the circuit: TCP, and what fits no single packet, by train; the rest
        single.
        """
        size = item_size(item)
        if protocol == _TCP or size > body_capacity(self._direction, 1):
            if self._entry_trains.push(item, size, now):
                self.end.want_trains()
        elif self._entry_singles.push(item, size, now):
            self.end.want_singles()

    def has_trains(self, end: End) -> bool:
        """Whether something waits for the stream lane."""
        return len(self._entry_trains) > 0

    def pull_train(self, end: End, max_units: int, now: float) -> tuple[int, bytes] | None:
        """Fill one train from what is waiting: as many items as fit, in as few units as they need."""
        price = self.price
        max_units = min(max_units, MAX_TRAIN_UNITS)
        paid = price.meter.affordable_packets(price.wei_per_packet)
        queue = self._entry_trains
        if paid < max_units:
            max_units = paid
            if queue and queue.peek_size() > (body_capacity(self._direction, paid) if paid > 0 else 0):
                price.meter.refused_packets += 1
        room = body_capacity(self._direction, max_units) if max_units > 0 else 0
        items: list[Item] = []
        size = 0
        while queue and size + queue.peek_size() <= room:
            item = queue.pop(now)
            if item is None:
                break
            needed = item_size(item)
            if size + needed > room:  # CoDel dropped the head and the next one is larger
                queue.unpop(item, needed, now)
                break
            items.append(item)
            size += needed
        if not items:
            return None
        units = units_for(self._direction, size)
        if not price.meter.charge(units, price.wei_per_packet):
            return None
        packets = self._seal(LANE_STREAM, [encode_body(items, body_capacity(self._direction, units))], now)
        if not packets:
            self.fail(FlowFault.EXHAUSTED)
            return None
        self._sent(units)
        return units, packets[0]

    def pull_singles(self, end: End, max_packets: int, now: float) -> list[bytes]:
        """Fill single packets from what is waiting; small items share one."""
        price = self.price
        paid = price.meter.affordable_packets(price.wei_per_packet)
        max_packets = min(max_packets, paid)
        capacity = body_capacity(self._direction, 1)
        queue = self._entry_singles
        if queue and paid == 0:
            price.meter.refused_packets += 1
        bodies: list[bytes] = []
        items: list[Item] = []
        room = capacity
        while queue and len(bodies) < max_packets:
            item = queue.pop(now)
            if item is None:
                break
            size = item_size(item)
            if size > room:
                bodies.append(encode_body(items, capacity))
                items, room = [], capacity
                if len(bodies) == max_packets:
                    queue.unpop(item, size, now)
                    break
            items.append(item)
            room -= size
        if items and len(bodies) < max_packets:
            bodies.append(encode_body(items, capacity))
        if not bodies or not price.meter.charge(len(bodies), price.wei_per_packet):
            return []
        self._sent(len(bodies))
        return self._seal(LANE_DATAGRAM, bodies, now)

    def _received(self, body: bytes, now: float) -> bool:
        """Carry out one body; False when it is malformed."""
        try:
            items = decode_body(body)
        except DecodeError:
            return False
        for item in items:
            self._on_item(item, now)
        return True

    @abstractmethod
    def on_trains(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Trains came in."""

    @abstractmethod
    def on_singles(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Single packets came in."""

    @abstractmethod
    def _seal(self, lane: int, bodies: list[bytes], now: float) -> list[bytes]: ...

    @abstractmethod
    def _sent(self, units: int) -> None: ...

    @abstractmethod
    def _on_item(self, item: Item, now: float) -> None: ...


class ClientFlow(EndpointFlow):
    """The customer's end of a circuit: all layers."""

    __slots__ = ("_backward_singles", "_backward_trains", "_forward_singles", "_forward_trains", "_on_echo")

    def __init__(
        self,
        roots: Sequence[bytes],
        suite: int,
        lanes: LinkLanes,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
        tun: TunSide,
        budget: MemoryBudget,
        on_fault: Callable[[Flow, FlowFault], None],
        on_echo: Callable[[Flow, bytes], None],
        rng: Callable[[int], bytes],
    ) -> None:
        super().__init__(lanes, circuit_id, price, addresses, tun, Direction.FORWARD, budget, on_fault)
        self._on_echo = on_echo
        self._forward_trains = ClientForward(roots, suite, LANE_STREAM, rng)
        self._forward_singles = ClientForward(roots, suite, LANE_DATAGRAM, rng)
        self._backward_trains = ClientBackward(roots, suite, LANE_STREAM)
        self._backward_singles = ClientBackward(roots, suite, LANE_DATAGRAM)
        self._lanes = (
            self._forward_trains,
            self._forward_singles,
            self._backward_trains,
            self._backward_singles,
        )

    def echo(self, token: bytes, now: float) -> None:
        """Queue an echo request on the datagram lane."""
        item = Item(ItemType.ECHO_REQUEST, 0, token)
        if self._entry_singles.push(item, item_size(item), now):
            self.end.want_singles()

    def on_trains(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Open trains from the exit."""
        lane = self._backward_trains
        for packet, body in zip(packets, lane.open_many(packets, now), strict=True):
            if body is None or not self._received(body, now):
                self.counters.backward.failures += 1
                self.fail(FlowFault.BAD_PACKETS)
                return
            units = len(packet) // UNIT
            self._count_backward(units)
            end.consume(units, now)

    def on_singles(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Open single packets from the exit."""
        lane = self._backward_singles
        counters = self.counters.backward
        failures, dropped = lane.failures, lane.dropped
        for body in lane.open_many(packets, now):
            if body is None:
                continue
            self._count_backward(1)
            if not self._received(body, now):
                counters.failures += 1
        counters.failures += lane.failures - failures
        counters.dropped += lane.dropped - dropped
        if lane.broken:
            self.fail(FlowFault.BAD_PACKETS)

    def _count_backward(self, units: int) -> None:
        self.counters.backward.packets += units
        # The customer pays for both directions: what came is charged to what is owed to the guard.
        self.price.meter.charge(units, self.price.wei_per_packet)

    def _seal(self, lane: int, bodies: list[bytes], now: float) -> list[bytes]:
        return (self._forward_trains if lane == LANE_STREAM else self._forward_singles).seal_many(bodies, now)

    def _sent(self, units: int) -> None:
        self.counters.forward.packets += units

    def _on_item(self, item: Item, now: float) -> None:
        kind, _, data = item
        if kind in (ItemType.IP, ItemType.OFFLOAD):
            # An exit may only speak to the addresses that it gave this circuit.
            if self._is_mine(data, 10 if kind == ItemType.OFFLOAD else 0):
                if kind == ItemType.IP or self._tun.check(item):
                    self._tun.write(item)
            else:
                self.counters.backward.dropped += 1
        elif kind == ItemType.ECHO_REPLY:
            self._on_echo(self, data)

    def _is_mine(self, data: bytes, offset: int) -> bool:
        if len(data) < offset + 20:
            return False
        version = data[offset] >> 4
        if version == 4:
            return data[offset + 16 : offset + 20] == self.addresses.v4
        return version == 6 and data[offset + 24 : offset + 40] == self.addresses.v6


class ExitFlow(EndpointFlow):
    """The exit's end of a circuit: the last layer, the exit's rules and the TUN."""

    __slots__ = (
        "_backward_singles",
        "_backward_trains",
        "_budget",
        "_forward_singles",
        "_forward_trains",
        "_gate",
        "_held",
        "_held_bytes",
    )

    def __init__(
        self,
        root: bytes,
        suite: int,
        lanes: LinkLanes,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
        tun: TunSide,
        gate: Gatekeeper,
        budget: MemoryBudget,
        on_fault: Callable[[Flow, FlowFault], None],
        rng: Callable[[int], bytes],
    ) -> None:
        super().__init__(lanes, circuit_id, price, addresses, tun, Direction.BACKWARD, budget, on_fault)
        self._gate = gate
        self._budget = budget
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._forward_trains = RelayForward(root, suite, LANE_STREAM)
        self._forward_singles = RelayForward(root, suite, LANE_DATAGRAM)
        self._backward_trains = ExitBackward(root, suite, LANE_STREAM, rng)
        self._backward_singles = ExitBackward(root, suite, LANE_DATAGRAM, rng)
        self._lanes = (
            self._forward_trains,
            self._forward_singles,
            self._backward_trains,
            self._backward_singles,
        )

    def queued_bytes(self) -> int:
        """Bytes that wait in this flow."""
        return super().queued_bytes() + self._held_bytes

    def close(self) -> None:
        """Forget queues and streams."""
        if not self.closed:
            self._budget.used_bytes -= self._held_bytes
            self._held_bytes = 0
            self._held.clear()
        super().close()

    def wake(self, now: float) -> None:
        """Carry on what waited for the neighbour's payment, in both directions."""
        held, self._held = self._held, deque()
        self._budget.used_bytes -= self._held_bytes
        self._held_bytes = 0
        for packet in held:
            if not self.closed:
                self.on_trains(self.end, [packet], now)
        if not self.closed:
            super().wake(now)

    def on_trains(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Open trains; unpaid ones are held, which stops their credits too."""
        lane = self._forward_trains
        price = self.price
        for packet in packets:
            units = len(packet) // UNIT
            if self._held or price.meter.affordable_packets(price.wei_per_packet) < units:
                price.meter.refused_packets += 0 if self._held else units
                self._held.append(packet)
                self._held_bytes += len(packet)
                self._budget.used_bytes += len(packet)
                continue
            opened = lane.open_many((packet,), now)[0]
            if opened is None or opened.command == Command.FORWARD:
                self.counters.forward.failures += 1
                self.fail(FlowFault.BAD_PACKETS)
                return
            price.meter.charge(units, price.wei_per_packet)
            if opened.command == Command.DELIVER and not self._received(opened.data, now):
                self.counters.forward.failures += 1
            else:
                self.counters.forward.packets += units
            end.consume(units, now)

    def on_singles(self, end: End, packets: Sequence[bytes], now: float) -> None:
        """Open single packets; unpaid ones are dropped."""
        counters, price = self.counters.forward, self.price
        paid = price.meter.affordable_packets(price.wei_per_packet)
        if paid < len(packets):
            price.meter.refused_packets += len(packets) - paid
            counters.dropped += len(packets) - paid
            packets = packets[:paid]
            if not packets:
                return
        lane = self._forward_singles
        count, failures, dropped = 0, lane.failures, lane.dropped
        for opened in lane.open_many(packets, now):
            if opened is None:
                continue
            count += 1
            if opened.command == Command.FORWARD or (
                opened.command == Command.DELIVER and not self._received(opened.data, now)
            ):
                counters.failures += 1
        counters.failures += lane.failures - failures
        counters.dropped += lane.dropped - dropped
        counters.packets += count
        price.meter.charge(count, price.wei_per_packet)
        if lane.broken:
            self.fail(FlowFault.BAD_PACKETS)

    def _seal(self, lane: int, bodies: list[bytes], now: float) -> list[bytes]:
        return (self._backward_trains if lane == LANE_STREAM else self._backward_singles).seal_many(
            bodies, now
        )

    def _sent(self, units: int) -> None:
        self.counters.backward.packets += units

    def _on_item(self, item: Item, now: float) -> None:
        kind, _, data = item
        if kind in (ItemType.IP, ItemType.OFFLOAD):
            verdict = self._gate.inspect(data, 10 if kind == ItemType.OFFLOAD else 0, now)
            if verdict is True:
                self._tun.write(item)
                return
            self.counters.forward.dropped += 1
            if verdict:
                self.enqueue(Item(ItemType.IP, 0, verdict), 0, now)
        elif kind == ItemType.ECHO_REQUEST:
            self.enqueue(Item(ItemType.ECHO_REPLY, 0, data), 0, now)
