"""Circuits over real links through engines of both kinds, each kind at each place of the path."""

import os
from pathlib import Path

import pytest
import trio
from engine_chain import HAS_NATIVE, KINDS, mixtures, open_chain
from engine_net import CLIENT, DNS, ROOTS, tcp4, udp4

from circuits.inner import Direction, body_capacity
from circuits.onion import LANE_DATAGRAM, ClientForward
from circuits.params import UNIT
from exit.packets import parse
from overlay.engine.interface import FlowFault, InnerAddresses, Price
from overlay.engine.meters import Meter

OUT = bytes([93, 184, 216, 34])
ALL = mixtures(3)
paths = pytest.mark.parametrize("kinds", ALL, ids="-".join)
each = pytest.mark.parametrize("kind", KINDS)


async def receive(chain, node, count, limit_s=60):
    """Take at least `count` packets out of a node's TUN."""
    found = []

    def there():
        found.extend(node.read_tun())
        return len(found) >= count

    await chain.until(there, limit_s)
    return found


async def send(node, packets):
    """Put packets into a node's TUN, at the pace that it takes them."""
    for packet in packets:
        while True:
            try:
                node.tun.send(packet)
                break
            except BlockingIOError:
                await trio.sleep(0.001)
        await trio.lowlevel.checkpoint()


@paths
async def test_every_kind_of_packet_goes_both_ways(kinds):
    async with open_chain(kinds) as chain:
        chain.add_circuit()
        client, leave = chain.nodes[0], chain.nodes[-1]
        client.engine.echo(chain.client, b"12345678")
        await chain.until(lambda: client.echoes)
        assert client.echoes == [b"12345678"]
        small = [udp4(CLIENT.v4, OUT, 53, b"x" * n) for n in (0, 10, 500, 1200)]
        await send(client, small)
        assert await receive(chain, leave, 4) == small
        large = [
            udp4(CLIENT.v4, OUT, 53, bytes([n]) * 1370) for n in range(4)
        ]  # by train: larger than a unit
        await send(client, large)
        assert await receive(chain, leave, 4) == large
        for near, far, stream in (
            (client, leave, [tcp4(CLIENT.v4, OUT, 80, bytes([n % 256]) * 1300, n) for n in range(200)]),
            (leave, client, [tcp4(OUT, CLIENT.v4, 80, bytes([n % 256]) * 1300, n) for n in range(200)]),
        ):
            await send(near, stream)
            assert await receive(chain, far, 200) == stream
        back = [udp4(OUT, CLIENT.v4, 7, b"y" * n) for n in (1, 700)]
        await send(leave, back)
        assert await receive(chain, client, 2) == back
        assert [node.lost for node in chain.nodes] == [[]] * 4
        charged = [meter.packets for meter in chain.meters]
        assert min(charged) > 200
        # Relays charge what passes, in both directions: all of them the same.
        await chain.until(lambda: len({meter.packets for meter in chain.meters[:3]}) == 1)
        assert chain.meters[1].charged_wei == chain.meters[1].packets


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("hops", [1, 2, 4])
@each
async def test_paths_of_one_to_four_hops(kind, hops, suite):
    async with open_chain((kind,) * (hops + 1)) as chain:
        chain.add_circuit(suite=suite)
        client, leave = chain.nodes[0], chain.nodes[-1]
        packets = [tcp4(CLIENT.v4, OUT, 80, b"z" * 1000, n) for n in range(50)]
        await send(client, packets)
        assert await receive(chain, leave, 50) == packets
        answers = [udp4(OUT, CLIENT.v4, 7, b"y" * n) for n in range(20)]
        await send(leave, answers)
        assert sorted(await receive(chain, client, 20)) == sorted(answers)


@each
async def test_the_exit_refuses_what_it_must(kind):
    async with open_chain(("python", kind)) as chain:
        chain.add_circuit()
        client, leave = chain.nodes
        await send(client, [udp4(CLIENT.v4, OUT, 25, b"mail")])
        (answer,) = await receive(chain, client, 1)
        assert answer[9] == 1 and answer[20:22] == b"\x03\x0d"  # ICMP: administratively prohibited
        assert answer[12:16] == DNS.v4
        await send(client, [udp4(CLIENT.v4, bytes([10, 0, 0, 1]), 80, b"inside")])
        assert (await receive(chain, client, 1))[0][20:22] == b"\x03\x0d"
        # DNS of the exit itself is open, and nothing else of it.
        query = udp4(CLIENT.v4, DNS.v4, 53, b"query")
        await send(client, [query])
        assert await receive(chain, leave, 1) == [query]

        def refused():
            if kind != "python":
                leave.engine.read_gate(leave.gate_counters)
            return leave.gate_counters.refused

        await chain.until(lambda: refused() == 2)


@each
async def test_a_spoofed_source_goes_nowhere(kind):
    """The customer's engine is deceived about its own address; the exit knows better."""
    async with open_chain(("python", kind)) as chain:
        chain.add_circuit()
        client, leave = chain.nodes
        other = InnerAddresses(bytes([100, 64, 9, 9]), None)
        client.engine._by_address[other.v4] = chain.client
        await send(client, [udp4(other.v4, OUT, 53, b"forged"), udp4(CLIENT.v4, OUT, 53, b"true")])
        (only,) = await receive(chain, leave, 1)
        assert parse(only).source == CLIENT.v4
        assert chain.exit.counters.forward.dropped == 1


@each
async def test_what_is_not_paid_waits_and_goes_on_with_credit(kind):
    async with open_chain(("python", kind, "python")) as chain:
        relay = chain.nodes[1]
        meter = Meter(credit_wei=30, low_wei=10)
        chain.meters[1] = meter
        relay.engine.watch_meter(meter)
        chain.add_circuit()
        client, leave = chain.nodes[0], chain.nodes[-1]
        packets = [tcp4(CLIENT.v4, OUT, 80, bytes([n]) * 1300, n) for n in range(100)]
        await send(client, packets)
        await chain.until(lambda: relay.low)
        assert relay.low == [meter]
        await trio.sleep(0.1)
        first = leave.read_tun()
        assert len(first) < 100
        assert meter.packets <= 30 and meter.credit_wei >= 0
        relay.engine.add_credit(meter, chain.relays, 100_000)
        assert first + await receive(chain, leave, 100 - len(first)) == packets
        assert meter.credit_wei == 100_030 - meter.packets
        relay.engine.unwatch_meter(meter)
        relay.engine.unwatch_meter(meter)
        with pytest.raises(ValueError):
            relay.engine.add_credit(meter, [], -1)


@each
async def test_circuits_end_with_their_link_and_ids_are_free_again(kind):
    async with open_chain(("python", kind, "python")) as chain:
        relay = chain.nodes[1]
        chain.add_circuit(1)
        near, far = chain.links[0][1], chain.links[1][0]
        engine = relay.engine
        assert engine.circuit_id_in_use(near, 1) and engine.circuit_id_in_use(near, 0)
        assert not engine.circuit_id_in_use(near, 2)
        price = Price(Meter(), 0)
        with pytest.raises(ValueError, match="in use"):
            engine.relay(ROOTS[0], 2, near, 1, price, far, 7, price)
        with pytest.raises(ValueError, match="in use"):
            engine.relay(ROOTS[0], 2, near, 7, price, far, 1, price)
        engine.drop(chain.relays[0])
        engine.drop(chain.relays[0])
        assert chain.relays[0].closed and not engine.circuit_id_in_use(near, 1)
        assert relay.lost == []
        again = engine.relay(ROOTS[0], 2, near, 9, price, far, 9, price)
        chain.links[1][1].close(0, "going")
        chain.nodes[2].endpoint.flush()
        await chain.until(lambda: relay.closed)
        assert relay.lost == [(again, FlowFault.LINK_CLOSED)]
        assert again.closed
        with pytest.raises(KeyError):
            engine.relay(ROOTS[0], 2, near, 10, price, far, 10, price)
        assert not engine.circuit_id_in_use(near, 9) and engine.circuit_id_in_use(far, 9)


@each
async def test_a_dropped_circuit_tells_its_neighbours(kind):
    """Its streams are reset: the next nodes' flows end without a control message."""
    async with open_chain(("python", kind, "python")) as chain:
        chain.add_circuit()
        client, relay, leave = chain.nodes
        await send(client, [tcp4(CLIENT.v4, OUT, 80, b"x" * 100)])
        await receive(chain, leave, 1)
        await send(leave, [tcp4(OUT, CLIENT.v4, 80, b"x" * 100)])
        await receive(chain, client, 1)
        relay.engine.drop(chain.relays[0])
        relay.endpoint.flush()
        await chain.until(lambda: client.lost and leave.lost)
        assert client.lost[0][1] is leave.lost[0][1] is FlowFault.STREAM_RESET


class Liar:
    """What a peer that keeps to QUIC but not to circuits can send on a link of the Python engine."""

    def __init__(self, chain):
        self.link = chain.links[0][0]
        self.endpoint = chain.nodes[0].endpoint

    def stream(self, data):
        self.link.send_stream(self.link.open_stream(), data)
        self.endpoint.flush()

    async def datagrams(self, frames):
        with trio.fail_after(60):
            while frames:
                # A window that is closed takes none of them.
                frames = frames[self.link.send_datagrams(frames) :]
                self.endpoint.flush()
                await trio.sleep(0.002)


@each
async def test_a_peer_that_breaks_the_rules_loses_its_circuit_and_no_other(kind):
    async with open_chain(("python", kind, "python")) as chain:
        relay, leave = chain.nodes[1], chain.nodes[2]
        near, far = chain.links[0][1], chain.links[1][0]
        chain.add_circuit(1)
        liar = Liar(chain)
        price = Price(Meter(), 0)

        async def lose(circuit_id, data, fault):
            flow = relay.engine.relay(ROOTS[3], 2, near, circuit_id, price, far, circuit_id, price)
            count = len(relay.lost)
            liar.stream(circuit_id.to_bytes(4, "big") + data)
            await chain.until(lambda: len(relay.lost) > count)
            assert relay.lost[-1] == (flow, fault)

        await lose(20, b"\0", FlowFault.BAD_FRAMING)
        await lose(21, b"\x31", FlowFault.BAD_FRAMING)
        await lose(22, b"\x01" + bytes(UNIT), FlowFault.BAD_PACKETS)
        poor = Price(Meter(credit_wei=0), 1)
        unpaid = relay.engine.relay(ROOTS[3], 2, near, 23, poor, far, 23, price)
        count = len(relay.lost)
        # More units than were granted, and none of them paid, so that none is looked at.
        liar.stream((23).to_bytes(4, "big") + (b"\x30" + bytes(48 * UNIT)) * 12)
        await chain.until(lambda: len(relay.lost) > count)
        assert relay.lost[-1] == (unpaid, FlowFault.FLOW_CONTROL)
        # Datagrams that fail, and circuits nobody knows.
        flow = relay.engine.relay(ROOTS[3], 2, near, 24, price, far, 24, price)
        await liar.datagrams([bytes(4) + bytes(UNIT)] * 20 + [(77).to_bytes(4, "big") + bytes(UNIT)] * 20)
        liar.stream((78).to_bytes(4, "big") + b"\x01" + bytes(UNIT))
        count = len(relay.lost)
        lane = ClientForward([ROOTS[3], ROOTS[2]], 2, LANE_DATAGRAM, os.urandom)
        bodies = [bytes(body_capacity(Direction.FORWARD, 1))] * 20
        changed = [packet[:-1] + bytes([packet[-1] ^ 1]) for packet in lane.seal_many(bodies, 0.0)]
        await liar.datagrams([(24).to_bytes(4, "big") + packet for packet in changed])
        await chain.until(lambda: len(relay.lost) > count)
        assert relay.lost[-1] == (flow, FlowFault.BAD_PACKETS)
        # The first circuit has seen nothing of all that.
        packet = tcp4(CLIENT.v4, OUT, 80, b"still here")
        await send(chain.nodes[0], [packet])
        assert await receive(chain, leave, 1) == [packet]
        assert not chain.relays[0].closed


@each
async def test_a_relay_that_is_not_read_holds_no_more_than_its_window(kind):
    """The exit grants nothing: what piles up at the relay is bounded, and the entry holds back the rest."""
    async with open_chain(("python", kind, "python")) as chain:
        chain.add_circuit()
        client, relay, leave = chain.nodes
        meter = chain.exit.price.meter
        meter.credit_wei = 0
        leave.engine.drop(chain.exit)
        # An exit that knows the circuit and takes nothing: its meter is empty and it is a relay to nowhere.
        for n in range(3000):
            while True:
                try:
                    client.tun.send(tcp4(CLIENT.v4, OUT, 80, b"x" * 1300, n))
                    break
                except BlockingIOError:
                    await trio.sleep(0.001)
            if n % 64 == 0:
                await trio.sleep(0)
        await trio.sleep(0.2)
        assert relay.engine.budget.used_bytes <= 520 * UNIT + (2 << 20)
        assert client.engine.budget.used_bytes <= 4 << 20


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
async def test_a_meter_shows_the_native_engine_s_figures():
    async with open_chain(("native", "native")) as chain:
        meter = chain.meters[1]
        assert type(meter) is Meter
        chain.add_circuit()
        assert isinstance(meter, Meter) and type(meter) is not Meter
        client, leave = chain.nodes
        await send(client, [udp4(CLIENT.v4, OUT, 53, b"1")])
        await receive(chain, leave, 1)
        await chain.until(lambda: meter.packets == 1)
        assert (meter.credit_wei, meter.charged_wei, meter.refused_packets) == (None, 1, 0)
        meter.low_wei = 5
        assert meter.low_wei == 5
        assert meter.affordable_packets(3) == 1 << 62
        with pytest.raises(RuntimeError):
            meter.charge(1, 1)


@pytest.mark.parametrize("kinds", [(kind,) * 4 for kind in KINDS], ids="-".join)
async def test_a_node_that_is_told_to_stop_under_full_load_stops(kinds):
    """As on Ctrl-C: everything is cancelled while packets flow in both directions."""
    packets = [tcp4(CLIENT.v4, OUT, 80, b"x" * 1300, n) for n in range(64)]
    answers = [tcp4(OUT, CLIENT.v4, 80, b"y" * 1300, n) for n in range(64)]
    carried = 0
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with open_chain(kinds) as chain, trio.open_nursery() as nursery:
            chain.add_circuit()

            async def fill(node, what):
                while True:
                    await send(node, what)

            nursery.start_soon(fill, chain.nodes[0], packets)
            nursery.start_soon(fill, chain.nodes[-1], answers)
            while carried < 2000:
                await trio.sleep(0.01)
                carried += len(chain.nodes[0].read_tun()) + len(chain.nodes[-1].read_tun())
            scope.cancel()
    assert scope.cancelled_caught
    assert carried >= 2000
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert "hopfare-data" not in threads


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
async def test_memory_stays_flat_while_circuits_come_and_go():
    async with open_chain(("native",) * 3) as chain:
        client, relay, leave = chain.nodes
        for n in range(1, 200):
            flow = chain.add_circuit(n)
            await send(client, [tcp4(CLIENT.v4, OUT, 80, bytes([n]) * 1300)])
            await receive(chain, leave, 1)
            client.engine.drop(flow)
            relay.engine.drop(chain.relays[0])
            leave.engine.drop(chain.exit)
        await chain.until(lambda: relay.engine.budget.used_bytes == 0)
        assert relay.engine._flows == {} and client.engine._flows == {}
        near, far = chain.links[0][1], chain.links[1][0]
        assert not any(relay.engine.circuit_id_in_use(link, n) for link in (near, far) for n in range(1, 200))
