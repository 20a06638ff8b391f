"""Random days on a path: engines of both kinds, alone and mixed, put the same bytes on every link and the
same packets into every TUN, and end in the same state.
"""

import struct
from itertools import groupby

from engine_net import CLIENT, Clock, Net, ip4, tcp4, udp4
from hypothesis import given
from hypothesis import strategies as st
from native_core import CoreEngine, fill

from exit.packets import partial_sum
from exit.tun.segment import to_packets
from overlay.engine.python import PythonEngine

SERVER = bytes([93, 184, 216, 34])
TICK_S = 1 / 512
"""Exact as a float and as nanoseconds (1,953,125), so that both sides see the same instants."""


class TickClock(Clock):
    """Time goes on in whole ticks, at least one for each step."""

    def __init__(self) -> None:
        self._ticks = 512_000

    @property
    def now(self) -> float:
        return self._ticks * TICK_S

    @now.setter
    def now(self, value: float) -> None:
        self._ticks = max(self._ticks + 1, int(value / TICK_S))

    def __call__(self) -> float:
        return self.now


def super_packet(source, destination, size, sequence):
    """A TCP super-packet as a TUN gives it: header, partial checksum."""
    packet = bytearray(tcp4(source, destination, 443, bytes(i & 0xFF for i in range(size)), sequence))
    length = len(packet) - 20
    packet[36:38] = struct.pack(">H", partial_sum(bytes(packet[12:20]), 6 + length))
    return struct.pack("<BBHHHH", 1, 1, 40, 1200, 20, 16) + bytes(packet)


def make_packet(there, kind, size, offload):
    """A packet of the client (`there`) or for it; size in bytes of payload."""
    source, destination = (CLIENT.v4, SERVER) if there else (SERVER, CLIENT.v4)
    payload = bytes(i * 3 & 0xFF for i in range(size))
    plain = bytes(10) if offload else b""
    if kind == "udp":
        return plain + udp4(source, destination, 5000, payload[:1350])
    if kind == "refused":
        return plain + udp4(source, destination, 25, payload[:1350])
    if kind == "icmp":
        return plain + ip4(source, destination, 1, bytes([8 if there else 0, 0]) + bytes(6) + payload[:1350])
    if kind == "super" and offload and size > 1300:
        return super_packet(source, destination, size, size)
    return plain + tcp4(source, destination, 443, payload[:1350], size)


PACKETS = st.tuples(
    st.just("packets"),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(("udp", "tcp", "super", "icmp", "refused")),
            st.one_of(st.integers(0, 1350), st.integers(1301, 60_000)),
        ),
        min_size=1,
        max_size=12,
    ),
)
STEPS = st.one_of(
    PACKETS,
    PACKETS,
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.2, 3.5, 121.0)), st.none()),
    st.tuples(
        st.just("fate"), st.integers(0, 7), st.sampled_from(("lose", "double", "flip", "pass", "pass"))
    ),
    st.tuples(st.just("jam"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("pay"), st.integers(1, 400), st.none()),
    st.tuples(st.just("echo"), st.integers(0, 255), st.none()),
)


class Day:
    """One net on which a script is played."""

    def __init__(self, hops, suite, offload, credit, engines):
        self.net = Net(hops, suite, clock=TickClock(), engines=engines, rng=fill, offload=offload)
        self.offload = offload
        self.fates = {}
        self.payer = None
        if credit is not None and hops > 1:
            # The first relay's circuit once more, with a neighbour that pays.
            self._limit(credit)
        self.net.tamper = self.tamper

    def _limit(self, credit):
        from engine_net import ROOTS

        from overlay.engine.interface import Price
        from overlay.engine.meters import Meter

        net, node = self.net, self.net.nodes[1]
        node.engine.drop(net.relays[0])
        for pair in net.links:
            for link in pair:
                link.outbox.clear()
        self.payer = Meter(credit_wei=credit)
        net.relays[0] = node.engine.relay(
            ROOTS[0],
            net.suite,
            net.links[0][1],
            1,
            Price(self.payer, 2),
            net.links[1][0],
            1,
            Price(Meter(), 1),
        )

    def tamper(self, link, event):
        """Datagrams one by one, so that a fate meets the same one in every net."""
        fate = self.fates.get(link.name)
        if event[0] != "datagrams" or fate in (None, "pass"):
            return [event]
        self.fates[link.name] = "pass"
        first, *others = event[1]
        if fate == "lose":
            frames = others
        elif fate == "double":
            frames = [first, first, *others]
        else:
            frames = [first[:300] + bytes([first[300] ^ 1]) + first[301:], *others]
        return [("datagrams", frames)] if frames else []

    def play(self, step):
        what, first, second = step
        net = self.net
        sides = [link for pair in net.links for link in pair]
        if what == "packets":
            node = net.nodes[0] if first else net.nodes[-1]
            node.engine.on_tun_packets(
                [make_packet(first, kind, size, self.offload) for kind, size in second]
            )
        elif what == "wait":
            net.clock.now += first
            for node in net.nodes:
                node.engine.expire()
        elif what == "fate":
            self.fates[sides[first % len(sides)].name] = second
        elif what == "jam":
            link = sides[first % len(sides)]
            link.backlog, link.room = ((1 << 20), 0) if second else (0, 64)
        elif what == "pay":
            if self.payer is not None:
                net.nodes[1].engine.add_credit(self.payer, net.relays[:1], first)
        else:
            net.nodes[0].engine.echo(net.client, bytes([first]) * 8)
        net.run()
        for node in net.nodes:
            node.engine.on_batch_end()
        net.run()

    def wire(self):
        """What each link's sides sent: datagrams, and streams in the order of their opening."""
        seen = {}
        for link, event in self.net.carried:
            datagrams, streams, others = seen.setdefault(link.name, ([], {}, []))
            if event[0] == "datagrams":
                datagrams.extend(event[1])
            elif event[0] == "stream":
                streams.setdefault(event[1], []).append(event[2])
            else:
                others.append(event[0])
        return {
            name: (datagrams, [b"".join(parts) for parts in streams.values()], sorted(others))
            for name, (datagrams, streams, others) in seen.items()
        }

    def state(self):
        net = self.net
        flows = [net.client, *net.relays, net.exit]
        counters = [
            (c.packets, c.failures, c.dropped)
            for flow in flows
            for c in (flow.counters.forward, flow.counters.backward)
        ]
        return {
            "written": [[bytes(raw) for raw in node.tun.written] for node in net.nodes],
            "lost": [node.lost for node in net.nodes],
            "echoes": net.nodes[0].echoes,
            "counters": counters,
            "closed": [flow.closed for flow in flows],
        }

    def meters(self):
        found = []
        for node, meter in zip(self.net.nodes, self.net.meters, strict=True):
            if isinstance(node.engine, CoreEngine):
                figures = node.engine.figures(meter)
                found.append(figures[1:] if figures else None)
            else:
                found.append((meter.charged_wei, meter.packets, meter.refused_packets))
        return found


@given(
    st.integers(1, 3),
    st.sampled_from((1, 2)),
    st.booleans(),
    st.sampled_from((None, None, 0, 60)),
    st.lists(STEPS, min_size=1, max_size=14),
    st.lists(st.sampled_from((PythonEngine, CoreEngine)), min_size=4, max_size=4),
)
def test_days_are_alike(hops, suite, offload, credit, script, mixture):
    days = [
        Day(hops, suite, offload, credit, engines)
        for engines in ((PythonEngine,), (CoreEngine,), mixture[: hops + 1])
    ]
    reference = days[0]
    for step in script:
        for day in days:
            day.play(step)
        for day in days[1:]:
            assert day.state() == reference.state()
            assert day.meters() == reference.meters()
    wires = [day.wire() for day in days]
    for wire in wires[1:]:
        assert wire == wires[0]


def test_groups_of_packets_keep_their_order_in_both_lanes():
    """A mixed burst leaves in the same datagrams and trains from both kinds."""
    days = [Day(3, 2, True, None, (engine,)) for engine in (PythonEngine, CoreEngine)]
    sizes = [1, 40, 1300, 600, 1200, 20_000, 3, 60_000] * 6
    kinds = ["udp", "tcp", "super"]
    step = ("packets", True, [(kinds[i % 3], size) for i, size in enumerate(sizes)])
    for day in days:
        for _ in range(3):
            day.play(step)
    assert days[0].wire() == days[1].wire()
    assert days[0].state() == days[1].state()
    written = days[0].state()["written"][-1]
    assert len(written) == 3 * len(sizes)
    assert [key for key, _ in groupby(written, key=lambda raw: raw[10] >> 4)] == [4]


def test_what_a_core_joins_the_reference_takes():
    """A native exit joins each flow's packets and leaves out acknowledgements, which the reference does not
    (decision 0016); a client of either kind gets the same segments and the last word of each flow.
    """
    rounds, ports = 12, range(9)
    burst, segments = [], {}
    for turn in range(rounds):
        for port in ports:
            packet = tcp4(SERVER, CLIENT.v4, port, bytes([turn]) * 1200, turn * 1200)
            # An acknowledgement of a flow of its own; each says more than the one before.
            ack = bytearray(tcp4(SERVER, CLIENT.v4, 100 + port, b"", 7))
            ack[28:32] = struct.pack(">I", turn * 5000)
            total = struct.unpack(">H", ack[36:38])[0] + 0xFFFF - turn * 5000
            ack[36:38] = struct.pack(">H", total % 0xFFFF)
            burst += [bytes(10) + packet, bytes(10) + bytes(ack)]
            segments.setdefault(port, []).append(packet[40:])
    for client in (PythonEngine, CoreEngine):
        day = Day(2, 2, True, None, (client, PythonEngine, CoreEngine))
        exit_side, written = day.net.nodes[-1].engine, day.net.nodes[0].tun.written
        exit_side.core.join_packets(True, False)
        exit_side.on_tun_packets(burst)
        day.net.run()
        for node in day.net.nodes:
            node.engine.on_batch_end()
        day.net.run()
        assert len(written) == 2 * len(ports)
        got = {}
        for packet in (packet for raw in written for packet in to_packets(bytes(raw))):
            port = int.from_bytes(packet[22:24], "big")
            got.setdefault(port, []).append(packet[40:] or packet[28:32])
        last = struct.pack(">I", (rounds - 1) * 5000)
        assert got == segments | {100 + port: [last] for port in ports}
