"""The attacks of test_hostile_engine on the native engine's core, alone and on paths of both engines."""

import random
from collections import deque

import pytest
from engine_chain import HAS_NATIVE
from engine_net import CLIENT, DNS, FakeLink, Net, tcp4, udp4
from hypothesis import given, settings
from hypothesis import strategies as st
from mischief import MISCHIEF, SERVER, Event, Mischief, exchange, flip, hostile_body, pad, shorten

from circuits.inner import Direction
from circuits.onion import LANE_DATAGRAM, LANE_STREAM
from circuits.params import LINK_FRAME
from overlay.engine.interface import FlowFault, InnerAddresses
from overlay.engine.python import PythonEngine

if not HAS_NATIVE:
    pytest.skip("the native engine is not installed", allow_module_level=True)

from native_core import CoreEngine

LANES = st.sampled_from([LANE_DATAGRAM, LANE_STREAM])
MIXTURES = st.lists(st.sampled_from([CoreEngine, CoreEngine, PythonEngine]), min_size=5, max_size=5)


def assert_nothing_stays(net: Net) -> None:
    """After its circuit was dropped everywhere, a core has nothing left but its streams of credits."""
    net.tamper = lambda link, event: [event]
    for node, flow in zip(net.nodes, [net.client, *net.relays, net.exit], strict=True):
        node.engine.drop(flow)
    net.run()
    for node in net.nodes:
        if isinstance(node.engine, CoreEngine):
            core = node.engine.core
            assert (core.used_bytes(), core.flow_count()) == (0, 0)
            for number in range(2):
                assert core.stream_counts(number)[1] <= 1


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    hops=st.integers(1, 4),
    place=st.integers(0, 3),
    far_side=st.booleans(),
    kinds=st.lists(st.sampled_from(MISCHIEF), min_size=1, max_size=3, unique=True),
    often=st.sampled_from([0.05, 0.5, 1.0]),
    mixture=MIXTURES,
)
def test_any_mischief_harms_the_circuit_at_most_on_mixed_paths(
    seed: int,
    hops: int,
    place: int,
    far_side: bool,
    kinds: list[Mischief],
    often: float,
    mixture: list,
) -> None:
    rng = random.Random(seed)
    net = Net(hops, engines=mixture)
    bad = net.links[place % hops][1 if far_side else 0]
    kept: deque = deque(maxlen=50)

    def tamper(link: FakeLink, event: Event) -> list[Event]:
        if link is not bad or rng.random() >= often:
            return [event]
        return rng.choice(kinds)(rng, event, kept)

    net.tamper = tamper
    sent = exchange(net, rng, 5)
    came_out = {*net.nodes[0].tun.written, *net.nodes[-1].tun.written}
    assert came_out <= sent, "a packet came out that nobody sent"
    assert all(len(node.lost) <= 1 for node in net.nodes), "one circuit is lost once"
    assert_nothing_stays(net)


@pytest.mark.parametrize("mischief", [flip, shorten, pad], ids=lambda mischief: mischief.__name__)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_changed_train_ends_its_circuit_and_no_other_on_cores(
    mischief: Mischief, direction: str, place: int
) -> None:
    rng = random.Random(place)
    net = Net(3, engines=[CoreEngine])
    other = InnerAddresses(bytes([100, 64, 7, 7]), None)
    net.add_circuit(2, [bytes([i]) * 32 for i in (11, 12, 13)], other)
    bad = net.links[place][0 if direction == "forward" else 1]
    victims: set[int] = set()

    def tamper(link: FakeLink, event: Event) -> list[Event]:
        if link is not bad or event[0] != "stream" or len(event[2]) <= LINK_FRAME - 8:
            return [event]
        victims.add(event[1])
        return mischief(rng, event, deque()) if event[1] == min(victims) else [event]

    def both(payload: bytes) -> None:
        for source in (CLIENT.v4, other.v4):
            net.nodes[0].engine.on_tun_packets([tcp4(source, SERVER, 443, payload)])
            net.run()
            net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, source, 40000, payload)])
            net.run()

    both(b"first")
    net.tamper = tamper
    for n in range(3):
        both(b"again %d" % n)
    faults = [fault for node in net.nodes for fault in node.lost]
    assert faults
    assert set(faults) <= {FlowFault.BAD_PACKETS, FlowFault.BAD_FRAMING, FlowFault.STREAM_RESET}
    assert len([p for p in net.nodes[-1].tun.written if p[12:16] == other.v4]) == 4
    assert len([p for p in net.nodes[0].tun.written if p[16:20] == other.v4]) == 4


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), hops=st.integers(1, 3), lane=LANES)
def test_a_hostile_customer_gets_only_its_own_packets_out_of_a_native_exit(
    seed: int, hops: int, lane: int
) -> None:
    rng = random.Random(seed)
    net = Net(hops, engines=[PythonEngine, CoreEngine])
    link = net.links[0][0]
    link.outbox.append(("stream", link.first_stream, b"\0\0\0\1", False))
    for _ in range(20):
        maker = rng.choice([tcp4, udp4])
        source = rng.choice([CLIENT.v4, CLIENT.v4, bytes([100, 64, 0, 9]), DNS.v4, bytes(4)])
        packet = maker(source, SERVER, rng.choice([25, 443]), rng.randbytes(rng.randrange(600)))
        units = rng.randint(1, 4) if lane == LANE_STREAM else 1
        body = hostile_body(rng, packet, Direction.FORWARD, units)
        send_sealed(net, link, lane, units, net.client._seal(lane, [body], net.clock.now)[0])
    for packet in net.nodes[-1].tun.written:
        assert packet[12:16] == CLIENT.v4 if packet[0] >> 4 == 4 else packet[8:24] == CLIENT.v6
    assert_nothing_stays(net)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), hops=st.integers(1, 3), lane=LANES)
def test_a_hostile_exit_reaches_only_the_native_client_s_own_address(seed: int, hops: int, lane: int) -> None:
    rng = random.Random(seed)
    net = Net(hops, engines=[CoreEngine] * hops + [PythonEngine])
    link = net.links[-1][1]
    link.outbox.append(("stream", link.first_stream, b"\0\0\0\1", False))
    for _ in range(20):
        maker = rng.choice([tcp4, udp4])
        target = rng.choice([CLIENT.v4, CLIENT.v4, bytes([127, 0, 0, 1]), bytes([100, 64, 1, 3])])
        packet = maker(SERVER, target, 40000, rng.randbytes(rng.randrange(600)))
        units = rng.randint(1, 4) if lane == LANE_STREAM else 1
        body = hostile_body(rng, packet, Direction.BACKWARD, units)
        send_sealed(net, link, lane, units, net.exit._seal(lane, [body], net.clock.now)[0])
    for packet in net.nodes[0].tun.written:
        assert packet[16:20] == CLIENT.v4 if packet[0] >> 4 == 4 else packet[24:40] == CLIENT.v6
    assert_nothing_stays(net)


def send_sealed(net: Net, link: FakeLink, lane: int, units: int, sealed: bytes) -> None:
    if lane == LANE_STREAM:
        link.outbox.append(("stream", link.first_stream, bytes((units,)) + sealed, False))
    else:
        link.outbox.append(("datagrams", [b"\0\0\0\1" + sealed]))
    net.run()


def test_a_peer_that_ignores_credits_loses_the_circuit_at_a_native_relay() -> None:
    net = Net(2, engines=[PythonEngine, CoreEngine, PythonEngine])
    net.exit.end.granted_out = 1 << 40
    net.links[0][1].backlog = 1 << 30  # the relay cannot send on: an honest exit would stop
    for n in range(40):
        net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, CLIENT.v4, 40000, b"x" * 1300, n)] * 60)
        net.run()
    assert net.nodes[1].lost == [FlowFault.FLOW_CONTROL]
    assert net.nodes[1].engine.core.used_bytes() == 0


def test_a_flood_on_unknown_circuits_leaves_nothing_in_a_core() -> None:
    net = Net(2, engines=[CoreEngine])
    far = net.links[0][1]
    engine = far.owner.engine
    rng = random.Random(7)
    for _ in range(200):
        engine.on_datagrams(far, [rng.randbytes(LINK_FRAME) for _ in range(20)])
        engine.on_stream(far, 4 * rng.randrange(2, 1 << 14) + 2, [rng.randbytes(20)], True)
    engine.on_batch_end()
    assert engine.core.stream_counts(0) == (0, 0)
    assert engine.core.used_bytes() == 0
    assert net.nodes[1].lost == []
