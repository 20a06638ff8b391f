"""Engines joined in memory: links are queues, time is a number, what goes wrong is a filter."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from overlay.engine.flows import ClientFlow, ExitFlow, RelayFlow
from overlay.engine.gate import ExitGate, GateCounters
from overlay.engine.interface import FlowFault, InnerAddresses, Price
from overlay.engine.meters import Meter
from overlay.engine.python import PythonEngine

ROOTS = [bytes([i]) * 32 for i in (1, 2, 3, 4)]
CLIENT = InnerAddresses(bytes([100, 64, 1, 2]), bytes.fromhex("fd686f70666100000000000000000002"))
DNS = InnerAddresses(bytes([100, 64, 0, 1]), bytes.fromhex("fd686f70666100000000000000000001"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class FakeLink:
    """One side of a link. What is sent waits in ``outbox`` until the net carries it."""

    owner: Node
    name: str
    peer: bytes | None = None
    is_dialler: bool = True
    rtt_s: float = 0.02
    room: int = 64
    other: FakeLink | None = None
    outbox: deque = field(default_factory=deque)
    streams: itertools.count = field(init=False)
    backlog: int = 0
    closed: str | None = None
    resets: list = field(default_factory=list)
    is_gone: bool = False

    def __post_init__(self) -> None:
        self.streams = itertools.count(self.first_stream, 4)

    @property
    def first_stream(self) -> int:
        """As in QUIC, the two sides of a link number their streams apart."""
        return 2 if self.is_dialler else 3

    def send_datagrams(self, frames: list[bytes]) -> int:
        taken = frames[: self.room]
        self.outbox.append(("datagrams", list(taken)))
        return len(taken)

    def datagram_room(self) -> int:
        return self.room

    def open_stream(self) -> int:
        return next(self.streams)

    def send_stream(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        self.outbox.append(("stream", stream_id, bytes(data), fin))

    def reset_stream(self, stream_id: int, code: int) -> None:
        self.resets.append(stream_id)
        self.outbox.append(("reset", stream_id))

    def stop_stream(self, stream_id: int, code: int) -> None:
        self.outbox.append(("stop", stream_id))

    def stream_backlog(self, stream_id: int | None = None) -> int:
        return self.backlog

    def send_control(self, message: bytes) -> None:
        self.outbox.append(("control", message))

    def close(self, code: int = 0, reason: str = "") -> None:
        self.closed = reason


class FakeTun:
    has_offload = False
    mtu = 1400

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, raw: bytes) -> bool:
        self.written.append(bytes(raw))
        return True


class OpenTable:
    """A policy that allows everything; the real one has tests of its own."""

    def verdict(self, version: int, protocol: int, destination: bytes, port: int):
        from exit.policy import Verdict

        return Verdict.DENIED_PORT if port == 25 else Verdict.ACCEPT


class Node:
    """An engine with a record of what it told the node above."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        memory_limit_bytes: int = 64 << 20,
        make_engine: Callable[..., Any] = PythonEngine,
        rng: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.name = name
        self.lost: list[FlowFault] = []
        self.echoes: list[bytes] = []
        self.controls: list[bytes] = []
        self.low: list = []
        self.gate_counters = GateCounters()
        self.engine = make_engine(
            self,
            clock=clock,
            rng=rng,
            memory_limit_bytes=memory_limit_bytes,
            gate=lambda addresses: ExitGate(OpenTable(), addresses, DNS, self.gate_counters),
        )
        self.tun = FakeTun()

    def on_link_up(self, link) -> None: ...
    def on_link_closed(self, link, code, reason) -> None: ...
    def on_control(self, link, message) -> None:
        self.controls.append(message)

    def on_flow_lost(self, flow, fault) -> None:
        self.lost.append(fault)

    def on_echo_reply(self, flow, token) -> None:
        self.echoes.append(token)

    def on_meter_low(self, meter) -> None:
        self.low.append(meter)


class Net:
    """A path of nodes. ``tamper(link, event) -> list of events`` sees everything that is carried."""

    def __init__(
        self,
        hops: int = 3,
        suite: int = 2,
        memory_limit_bytes: int = 64 << 20,
        *,
        clock: Clock | None = None,
        engines: Sequence[Callable[..., Any]] = (PythonEngine,),
        rng: Callable[[int], bytes] = os.urandom,
        offload: bool = False,
    ) -> None:
        """``engines``: what makes each node's engine, the client's first; the last one goes on."""
        self.clock = clock or Clock()
        self.suite = suite
        self.nodes = [
            Node(f"n{i}", self.clock, memory_limit_bytes, engines[min(i, len(engines) - 1)], rng)
            for i in range(hops + 1)
        ]
        self.links: list[tuple[FakeLink, FakeLink]] = []
        self.carried: list[tuple[FakeLink, tuple]] = []
        self.tamper: Callable[[FakeLink, tuple], list[tuple]] = lambda link, event: [event]
        for node in self.nodes:
            node.tun.has_offload = offload
        self.nodes[0].engine.attach_tun(self.nodes[0].tun, by_source=True)
        self.nodes[-1].engine.attach_tun(self.nodes[-1].tun, by_source=False)
        for i in range(hops):
            near = FakeLink(self.nodes[i], f"{i}>{i + 1}")
            far = FakeLink(self.nodes[i + 1], f"{i + 1}>{i}", is_dialler=False)
            near.other, far.other = far, near
            near.owner.engine.on_link_up(near)
            far.owner.engine.on_link_up(far)
            self.links.append((near, far))
        self.meters = [Meter() for _ in range(hops + 1)]
        self.client: ClientFlow
        self.relays: list[RelayFlow] = []
        self.exit: ExitFlow
        self.add_circuit(1, ROOTS[:hops], CLIENT)

    def add_circuit(self, circuit_id: int, roots: list[bytes], addresses: InnerAddresses):
        prices = [Price(meter, 1) for meter in self.meters]
        hops = len(self.links)
        self.client = self.nodes[0].engine.client(
            roots, self.suite, self.links[0][0], circuit_id, prices[0], addresses
        )
        for i in range(1, hops):
            self.relays.append(
                self.nodes[i].engine.relay(
                    roots[i - 1],
                    self.suite,
                    self.links[i - 1][1],
                    circuit_id,
                    prices[i],
                    self.links[i][0],
                    circuit_id,
                    Price(Meter(), 1),
                )
            )
        self.exit = self.nodes[-1].engine.exit(
            roots[-1], self.suite, self.links[-1][1], circuit_id, prices[-1], addresses
        )

    def run(self, rounds: int = 10_000) -> None:
        """Carry what waits until nothing does."""
        for _ in range(rounds):
            busy = False
            for pair in self.links:
                for link in pair:
                    if link.outbox:
                        busy = True
                        self._carry(link)
            self.clock.now += 0.0005
            if not busy:
                return
        raise AssertionError("the net does not come to rest")

    def _carry(self, link: FakeLink) -> None:
        far = link.other
        assert far is not None
        engine = far.owner.engine
        while link.outbox:
            for event in self.tamper(link, link.outbox.popleft()):
                self.carried.append((link, event))
                if event[0] == "datagrams":
                    engine.on_datagrams(far, event[1])
                elif event[0] == "stream":
                    engine.on_stream(far, event[1], [event[2]] if event[2] else [], event[3])
                elif event[0] in ("reset", "stop"):
                    engine.on_stream_reset(far, event[1], 0)
                else:
                    engine.on_control(far, event[1])
        engine.on_batch_end()


def udp4(source: bytes, destination: bytes, port: int, payload: bytes) -> bytes:
    from exit.packets import transport_checksum

    segment = (
        (40000).to_bytes(2, "big")
        + port.to_bytes(2, "big")
        + (8 + len(payload)).to_bytes(2, "big")
        + b"\0\0"
        + payload
    )
    segment = (
        segment[:6] + transport_checksum(source, destination, 17, segment).to_bytes(2, "big") + segment[8:]
    )
    return ip4(source, destination, 17, segment)


def tcp4(source: bytes, destination: bytes, port: int, payload: bytes, sequence: int = 0) -> bytes:
    from exit.packets import transport_checksum

    segment = (
        (40000).to_bytes(2, "big")
        + port.to_bytes(2, "big")
        + sequence.to_bytes(4, "big")
        + bytes(4)
        + b"\x50\x10\xff\xff\0\0\0\0"
        + payload
    )
    segment = (
        segment[:16] + transport_checksum(source, destination, 6, segment).to_bytes(2, "big") + segment[18:]
    )
    return ip4(source, destination, 6, segment)


def ip4(source: bytes, destination: bytes, protocol: int, segment: bytes) -> bytes:
    from exit.packets import checksum

    head = b"\x45\0" + (20 + len(segment)).to_bytes(2, "big") + b"\0\0\x40\0\x40" + bytes([protocol])
    body = head + b"\0\0" + source + destination
    return head + checksum(body).to_bytes(2, "big") + source + destination + segment
