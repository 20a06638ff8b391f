"""Whole paths of either engine in memory: what goes in at one TUN comes out of the other, nothing else.

What cannot be asked of a core in this way (deceived clients, later credit) is in `test_engine_chain` and
in the tests of the crate.
"""

from typing import Any

import pytest
from engine_chain import HAS_NATIVE
from engine_net import CLIENT, DNS, Net, tcp4, udp4

from circuits.params import LINK_FRAME, UNIT
from overlay.engine.interface import FlowFault, Price
from overlay.engine.meters import Meter
from overlay.engine.python import PythonEngine

if HAS_NATIVE:
    from native_core import CoreEngine

    ENGINES = [PythonEngine, CoreEngine]
else:
    ENGINES = [PythonEngine]

both = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
SERVER = bytes([203, 0, 113, 7])


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("suite", [1, 2])
@both
def test_both_lanes_both_ways(engine: Any, hops: int, suite: int) -> None:
    net = Net(hops, suite, engines=[engine])
    up = [udp4(CLIENT.v4, SERVER, 53, b"q" * n) for n in (1, 100, 1200)]
    up += [tcp4(CLIENT.v4, SERVER, 443, b"x" * n, n) for n in (0, 10, 1300)]
    net.nodes[0].engine.on_tun_packets(up)
    net.run()
    assert sorted(net.nodes[-1].tun.written) == sorted(up)
    down = [udp4(SERVER, CLIENT.v4, 40000, b"a" * 900), tcp4(SERVER, CLIENT.v4, 40000, b"b" * 1300)] * 30
    net.nodes[-1].engine.on_tun_packets(down)
    net.run()
    assert sorted(net.nodes[0].tun.written) == sorted(down)
    assert net.client.counters.forward.failures == net.client.counters.backward.failures == 0


@both
def test_only_whole_units_travel(engine: Any) -> None:
    net = Net(3, engines=[engine])
    for n in (0, 1, 500, 1350):
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 80, b"x" * n)] * 7)
        net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 80, b"x" * min(n, 1200))] * 7)
        net.run()
    seen: dict[str, list[bytes]] = {}
    for link, event in net.carried:
        if event[0] == "datagrams":
            assert all(len(frame) == LINK_FRAME for frame in event[1])
            seen.setdefault(link.name, []).extend(frame[4:] for frame in event[1])
        elif event[0] == "stream" and len(event[2]) > 12:
            assert (len(event[2]) - 1) % UNIT == 0
            assert event[2][0] == (len(event[2]) - 1) // UNIT
            seen.setdefault(link.name, []).append(event[2][1:])
    # No eight bytes of one link appear on another (but by the chance of 2**-64).
    pieces = [
        {packet[i : i + 8] for packet in packets for i in range(0, len(packet), 8)}
        for packets in seen.values()
    ]
    for i, left in enumerate(pieces):
        for right in pieces[i + 1 :]:
            assert not left & right


@both
def test_echo_comes_back(engine: Any) -> None:
    net = Net(3, engines=[engine])
    net.nodes[0].engine.echo(net.client, b"12345678")
    net.run()
    assert net.nodes[0].echoes == [b"12345678"]


def test_a_spoofed_source_is_dropped_at_the_exit() -> None:
    net = Net(3)
    other = bytes([100, 64, 9, 9])
    packet = tcp4(other, SERVER, 443, b"spoof")
    net.client.enqueue(_item(packet), 6, net.clock.now)
    net.nodes[0].engine.pump()
    net.run()
    assert net.nodes[-1].tun.written == []
    assert net.nodes[-1].gate_counters.spoofed == 1


@both
def test_a_refused_port_is_answered_with_icmp_to_the_customer(engine: Any) -> None:
    net = Net(3, engines=[engine])
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 25, b"")])
    net.run()
    assert net.nodes[-1].tun.written == []
    (answer,) = net.nodes[0].tun.written
    assert answer[9] == 1
    assert answer[12:16] == DNS.v4
    assert (answer[20], answer[21]) == (3, 13)  # administratively prohibited


def test_an_exit_cannot_write_to_addresses_that_are_not_the_circuits() -> None:
    net = Net(3)
    stray = udp4(SERVER, bytes([127, 0, 0, 1]), 53, b"x")
    net.exit.enqueue(_item(stray), 17, net.clock.now)
    net.nodes[-1].engine.pump()
    net.run()
    assert net.nodes[0].tun.written == []
    assert net.client.counters.backward.dropped == 1


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("where", ["forward", "backward"])
@both
def test_a_flipped_bit_on_the_stream_lane_ends_the_circuit(engine: Any, hops: int, where: str) -> None:
    net = Net(hops, engines=[engine])
    victim = net.links[0][0] if where == "forward" else net.links[-1][1]

    def tamper(link, event):
        if link is victim and event[0] == "stream" and len(event[2]) > UNIT:
            data = bytearray(event[2])
            data[700] ^= 1
            return [(*event[:2], bytes(data), event[3])]
        return [event]

    net.tamper = tamper
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x")])
    net.run()
    net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, CLIENT.v4, 40000, b"x")])
    net.run()
    assert FlowFault.BAD_PACKETS in net.nodes[1 if where == "forward" else 0].lost


@both
def test_sixteen_bad_datagrams_end_the_circuit_and_fifteen_do_not(engine: Any) -> None:
    net = Net(3, engines=[engine])
    victim = net.links[1][0]
    count = 0

    def tamper(link, event):
        nonlocal count
        if link is victim and event[0] == "datagrams":
            frames = []
            for frame in event[1]:
                count += 1
                frames.append(frame[:-1] + bytes([frame[-1] ^ 1]) if count <= 15 or count == 30 else frame)
            return [("datagrams", frames)]
        return [event]

    net.tamper = tamper
    for _ in range(29):
        net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200)])
        net.run()
    assert net.nodes[2].lost == []
    assert len(net.nodes[-1].tun.written) == 14
    net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200)])
    net.run()
    assert net.nodes[2].lost == [FlowFault.BAD_PACKETS]


@both
def test_duplicates_are_dropped_and_reordering_is_not(engine: Any) -> None:
    net = Net(3, engines=[engine])
    held: list[bytes] = []

    def tamper(link, event):
        if link is net.links[1][0] and event[0] == "datagrams":
            held.extend(event[1])
            return []
        return [event]

    net.tamper = tamper
    sent = [udp4(CLIENT.v4, SERVER, 53, bytes([i]) * 1200) for i in range(8)]
    net.nodes[0].engine.on_tun_packets(sent)
    net.run()
    net.tamper = lambda link, event: [event]
    far = net.links[1][1]
    far.owner.engine.on_datagrams(far, list(reversed(held)))
    far.owner.engine.on_datagrams(far, held[:3])
    far.owner.engine.on_batch_end()
    net.run()
    assert sorted(net.nodes[-1].tun.written) == sorted(sent)
    assert net.relays[1].counters.forward.packets == 8
    assert (net.relays[1].counters.forward.dropped, net.relays[1].counters.forward.failures) == (3, 0)
    figures = getattr(net.nodes[2].engine, "figures", None)
    assert (figures(net.meters[2])[2] if figures else net.meters[2].packets) == 8
    assert net.nodes[2].lost == []


def test_a_peer_that_sends_more_than_it_was_granted_loses_the_circuit() -> None:
    net = Net(2)
    net.client.end.granted_out = 1 << 40  # a client that ignores credits
    net.links[1][0].backlog = 1 << 30  # and a next link that takes nothing
    for _ in range(40):
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300)] * 60)
        net.run()
    assert net.nodes[1].lost == [FlowFault.FLOW_CONTROL]


@both
def test_a_slow_next_link_holds_the_sender_back_within_the_window(engine: Any) -> None:
    net = Net(3, engines=[engine])
    net.links[1][0].backlog = 1 << 30
    for _ in range(60):
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300)] * 60)
        net.run()
    relay = net.nodes[1].engine
    assert relay.budget.used_bytes <= 512 * (UNIT + 1)
    assert net.nodes[1].lost == []
    net.links[1][0].backlog = 0
    for _ in range(5):
        net.nodes[1].engine.on_batch_end()
        net.run()
    assert relay.budget.used_bytes == 0
    assert net.nodes[-1].tun.written


def test_an_empty_meter_forwards_nothing_and_goes_on_when_paid() -> None:
    net = Net(3)
    net.meters[1].credit_wei = 3
    net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200) for _ in range(3)])
    net.run()
    assert len(net.nodes[-1].tun.written) == 3
    net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200)])
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"held")])
    net.run()
    assert len(net.nodes[-1].tun.written) == 3
    net.nodes[-1].engine.on_tun_packets([udp4(SERVER, CLIENT.v4, 40000, b"junk" * 300)])
    net.run()
    assert net.nodes[0].tun.written == []  # a bad exit cannot run up a bill
    net.nodes[1].engine.add_credit(net.meters[1], net.relays[:1], 100)
    net.run()
    assert len(net.nodes[-1].tun.written) == 4


def test_the_node_is_told_once_when_a_meter_runs_low() -> None:
    net = Net(3)
    engine, meter = net.nodes[1].engine, net.meters[1]
    meter.credit_wei, meter.low_wei = 5, 3
    engine.watch_meter(meter)
    for _ in range(4):
        net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200)])
        net.run()
    assert net.nodes[1].low == [meter]
    engine.add_credit(meter, [], 10)
    engine.unwatch_meter(meter)
    net.nodes[0].engine.on_tun_packets([udp4(CLIENT.v4, SERVER, 53, b"x" * 1200)] * 9)
    net.run()
    assert net.nodes[1].low == [meter]


@both
def test_dropping_a_flow_leaves_nothing_behind(engine: Any) -> None:
    net = Net(3, engines=[engine])
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1000)] * 50)
    net.run()
    for node, flow in zip(net.nodes, [net.client, *net.relays, net.exit], strict=True):
        node.engine.drop(flow)
        node.engine.drop(flow)
    net.run()
    for node in net.nodes:
        assert node.engine.budget.used_bytes == 0
        if engine is PythonEngine:
            assert all(not lanes.ends for lanes in node.engine._lanes.values())
            assert node.engine._by_address == {}
        else:
            assert node.engine.core.flow_count() == 0
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x")])
    net.run()
    assert net.nodes[0].engine.unknown_packets == 1


@both
def test_the_memory_limit_ends_the_flow_that_holds_the_most(engine: Any) -> None:
    net = Net(2, memory_limit_bytes=300_000, engines=[engine])
    net.links[1][0].backlog = 1 << 30
    for _ in range(40):
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300)] * 40)
        net.run()
    assert FlowFault.MEMORY in net.nodes[1].lost
    assert net.nodes[1].engine.budget.used_bytes <= 300_000


@pytest.mark.parametrize("garbage", [b"", b"\0", b"\0" * 11, b"\xff" * 300, bytes(range(256)) * 8])
@both
def test_garbage_on_streams_harms_only_its_circuit(engine: Any, garbage: bytes) -> None:
    net = Net(3, engines=[engine])
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x")])
    net.run()
    far = net.links[0][1]
    far.owner.engine.on_stream(far, 4 * 1000 + 2, [garbage], False)
    far.owner.engine.on_stream(far, 4 * 1001 + 2, [b"\0\0\0\1" + garbage], True)
    far.owner.engine.on_datagrams(far, [(garbage * 1400)[:LINK_FRAME].ljust(LINK_FRAME, b"\0")])
    far.owner.engine.on_batch_end()
    net.run()
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"y")])
    net.run()
    assert len(net.nodes[-1].tun.written) == 2


def _item(packet: bytes):
    from circuits.inner import Item, ItemType

    return Item(ItemType.IP, 0, packet)


@both
def test_trains_that_are_never_finished_count_as_memory(engine: Any) -> None:
    net = Net(2, memory_limit_bytes=1 << 20, engines=[engine])
    relay, far = net.nodes[1].engine, net.links[0][1]
    for circuit_id in range(2, 60):
        price = Price(Meter(), 1)
        relay.relay(bytes(32), 2, far, circuit_id, price, net.links[1][0], circuit_id, price)
        begun = circuit_id.to_bytes(4, "big") + bytes([48]) + bytes(60_000)
        relay.on_stream(far, 4 * circuit_id + 2, [begun], False)
        relay.on_batch_end()
        assert relay.budget.used_bytes <= 1 << 20
    assert set(net.nodes[1].lost) == {FlowFault.MEMORY}
    relay.on_link_closed(far, 0, "")
    assert relay.budget.used_bytes == 0
