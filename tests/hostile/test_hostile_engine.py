"""Engines between hostile neighbours: whatever links and circuits carry, nothing raises, nothing stays, and
what comes out of a TUN is what went in at the other.
"""

import random
from collections import deque

import pytest
from engine_net import CLIENT, DNS, FakeLink, Net, tcp4, udp4
from hypothesis import given
from hypothesis import strategies as st
from mischief import MISCHIEF, SERVER, Event, Mischief, exchange, flip, hostile_body, pad, shorten

from circuits.inner import Direction
from circuits.onion import LANE_DATAGRAM, LANE_STREAM
from circuits.params import LINK_FRAME, UNIT
from exit.denied import DENIED_PORTS, DenyList
from exit.policy import PolicyTable, parse_policy
from overlay.engine.gate import ExitGate, GateCounters
from overlay.engine.interface import FlowFault, InnerAddresses
from overlay.engine.python import PythonEngine
from overlay.links.backends.base import StreamLimitError


def assert_nothing_stays(net: Net) -> None:
    net.tamper = lambda link, event: [event]
    for node, flow in zip(net.nodes, [net.client, *net.relays, net.exit], strict=True):
        node.engine.drop(flow)
    net.run()
    for node in net.nodes:
        assert node.engine.budget.used_bytes == 0
        assert node.engine._by_address == {}
        for lanes in node.engine._lanes.values():
            assert lanes.ends == {}
            assert all(
                inbound.reader is None and len(inbound.head) < 4 for inbound in lanes._inbound.values()
            )
        node.engine.on_batch_end()
        assert all(not lanes.trains and not lanes.singles for lanes in node.engine._lanes.values())


@given(
    seed=st.integers(0, 2**32),
    hops=st.integers(1, 4),
    place=st.integers(0, 3),
    far_side=st.booleans(),
    kinds=st.lists(st.sampled_from(MISCHIEF), min_size=1, max_size=3, unique=True),
    often=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_any_mischief_at_any_place_harms_the_circuit_at_most(
    seed: int, hops: int, place: int, far_side: bool, kinds: list[Mischief], often: float
) -> None:
    rng = random.Random(seed)
    net = Net(hops)
    bad = net.links[place % hops][1 if far_side else 0]
    kept: deque = deque(maxlen=50)

    def tamper(link: FakeLink, event: Event) -> list[Event]:
        if link is not bad or rng.random() >= often:
            return [event]
        return rng.choice(kinds)(rng, event, kept)

    net.tamper = tamper
    sent = exchange(net, rng, 6)
    came_out = {*net.nodes[0].tun.written, *net.nodes[-1].tun.written}
    assert came_out <= sent, "a packet came out that nobody sent"
    assert all(len(node.lost) <= 1 for node in net.nodes), "one circuit is lost once"
    assert_nothing_stays(net)


@pytest.mark.parametrize("mischief", [flip, shorten, pad], ids=lambda mischief: mischief.__name__)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_changed_train_ends_its_circuit_with_a_fault_and_no_other(
    mischief: Mischief, direction: str, place: int
) -> None:
    rng = random.Random(place)
    net = Net(3)
    first = net.client
    other = InnerAddresses(bytes([100, 64, 7, 7]), None)
    net.add_circuit(2, [bytes([i]) * 32 for i in (11, 12, 13)], other)
    bad = net.links[place][0 if direction == "forward" else 1]

    def tamper(link: FakeLink, event: Event) -> list[Event]:
        if link is bad and event[0] == "stream" and event[1] == link.first_stream and len(event[2]) > UNIT:
            return mischief(rng, event, deque())
        return [event]

    for source in (CLIENT.v4, other.v4):
        net.nodes[0].engine.on_tun_packets([tcp4(source, SERVER, 443, b"first")])
        net.run()
        net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, source, 40000, b"first")])
        net.run()
    net.tamper = tamper
    for n in range(3):
        for source in (CLIENT.v4, other.v4):
            net.nodes[0].engine.on_tun_packets([tcp4(source, SERVER, 443, b"again", n)])
            net.run()
            net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, source, 40000, b"again", n)])
            net.run()
    # The change is found by the next who holds a key on that way; then the word goes along by stream resets.
    faults = [fault for node in net.nodes for fault in node.lost]
    assert faults
    assert set(faults) <= {FlowFault.BAD_PACKETS, FlowFault.BAD_FRAMING, FlowFault.STREAM_RESET}
    assert first.closed or direction == "forward"
    assert len([p for p in net.nodes[-1].tun.written if p[12:16] == other.v4]) == 4
    assert len([p for p in net.nodes[0].tun.written if p[16:20] == other.v4]) == 4


def test_a_peer_that_ignores_credits_backward_loses_the_circuit_and_its_data() -> None:
    net = Net(2)
    net.exit.end.granted_out = 1 << 40
    net.links[0][1].backlog = 1 << 30  # the relay cannot send on: an honest exit would stop
    for n in range(40):
        net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, CLIENT.v4, 40000, b"x" * 1300, n)] * 60)
        net.run()
    assert net.nodes[1].lost == [FlowFault.FLOW_CONTROL]
    assert net.nodes[1].engine.budget.used_bytes == 0


@pytest.mark.parametrize("who", ["client", "relay", "exit"])
def test_a_peer_that_lets_no_stream_be_opened_loses_the_circuit(who: str) -> None:
    """QUIC lets a peer allow no streams at all; that is its circuits' end, not the node's."""
    net = Net(2)
    link = {"client": net.links[0][0], "relay": net.links[1][0], "exit": net.links[1][1]}[who]

    def refuse() -> int:
        raise StreamLimitError("too many streams")

    link.open_stream = refuse  # type: ignore[method-assign]
    net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300, n) for n in range(300)])
    net.run()
    net.nodes[-1].engine.on_tun_packets([tcp4(SERVER, CLIENT.v4, 40000, b"x" * 1300, n) for n in range(300)])
    net.run()
    assert link.owner.lost == [FlowFault.FLOW_CONTROL]
    assert link.owner.engine.budget.used_bytes == 0


def test_a_peer_that_lets_no_stream_of_credits_be_opened_loses_the_link() -> None:
    net = Net(1)
    far = net.links[0][1]

    def refuse() -> int:
        raise StreamLimitError("too many streams")

    far.open_stream = refuse  # type: ignore[method-assign]
    for n in range(5):
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300, n)] * 100)
        net.run()
    assert far.closed is not None
    assert "credits" in far.closed


def test_a_flood_on_unknown_circuits_leaves_nothing() -> None:
    net = Net(2)
    far = net.links[0][1]
    engine = far.owner.engine
    rng = random.Random(7)
    for _ in range(200):
        engine.on_datagrams(far, [rng.randbytes(LINK_FRAME) for _ in range(20)])
        engine.on_stream(far, 4 * rng.randrange(2, 1 << 14) + 2, [rng.randbytes(20)], True)
    engine.on_batch_end()
    lanes = engine._lanes[far]
    assert lanes.unknown_frames >= 4000
    assert lanes._inbound == {}
    assert engine.budget.used_bytes == 0
    assert net.nodes[1].lost == []


# -- what a hostile customer or exit puts into its own circuit ----


@given(seed=st.integers(0, 2**32), hops=st.integers(1, 3), lane=st.sampled_from([LANE_DATAGRAM, LANE_STREAM]))
def test_a_hostile_customer_gets_only_its_own_packets_out(seed: int, hops: int, lane: int) -> None:
    rng = random.Random(seed)
    net = Net(hops)
    link = net.links[0][0]
    link.outbox.append(("stream", link.first_stream, b"\0\0\0\1", False))
    now = net.clock.now
    for _ in range(20):
        maker = rng.choice([tcp4, udp4])
        source = rng.choice([CLIENT.v4, CLIENT.v4, bytes([100, 64, 0, 9]), DNS.v4, bytes(4)])
        packet = maker(source, SERVER, rng.choice([25, 443]), rng.randbytes(rng.randrange(600)))
        units = rng.randint(1, 4) if lane == LANE_STREAM else 1
        sealed = net.client._seal(lane, [hostile_body(rng, packet, Direction.FORWARD, units)], now)
        if lane == LANE_STREAM:
            link.outbox.append(("stream", link.first_stream, bytes((units,)) + sealed[0], False))
        else:
            link.outbox.append(("datagrams", [b"\0\0\0\1" + sealed[0]]))
        net.run()
    for packet in net.nodes[-1].tun.written:
        version = packet[0] >> 4
        assert packet[12:16] == CLIENT.v4 if version == 4 else packet[8:24] == CLIENT.v6
    assert_nothing_stays(net)


@given(seed=st.integers(0, 2**32), hops=st.integers(1, 3), lane=st.sampled_from([LANE_DATAGRAM, LANE_STREAM]))
def test_a_hostile_exit_reaches_only_the_circuits_own_address(seed: int, hops: int, lane: int) -> None:
    rng = random.Random(seed)
    net = Net(hops)
    link = net.links[-1][1]
    link.outbox.append(("stream", link.first_stream, b"\0\0\0\1", False))
    now = net.clock.now
    for _ in range(20):
        maker = rng.choice([tcp4, udp4])
        target = rng.choice([CLIENT.v4, CLIENT.v4, bytes([127, 0, 0, 1]), bytes([100, 64, 1, 3])])
        packet = maker(SERVER, target, 40000, rng.randbytes(rng.randrange(600)))
        units = rng.randint(1, 4) if lane == LANE_STREAM else 1
        sealed = net.exit._seal(lane, [hostile_body(rng, packet, Direction.BACKWARD, units)], now)
        if lane == LANE_STREAM:
            link.outbox.append(("stream", link.first_stream, bytes((units,)) + sealed[0], False))
        else:
            link.outbox.append(("datagrams", [b"\0\0\0\1" + sealed[0]]))
        net.run()
    for packet in net.nodes[0].tun.written:
        version = packet[0] >> 4
        assert packet[16:20] == CLIENT.v4 if version == 4 else packet[24:40] == CLIENT.v6
    assert_nothing_stays(net)


# -- the deny list, through whole circuits ----


def exit_with_the_real_rules(net: Net) -> GateCounters:
    """Give the last node an engine with the deny list and a policy that accepts all."""
    counters = GateCounters()
    node = net.nodes[-1]
    table = PolicyTable(parse_policy("accept *:*"), DenyList())
    engine = PythonEngine(
        node,
        clock=net.clock,
        rng=random.Random(1).randbytes,
        gate=lambda addresses: ExitGate(table, addresses, DNS, counters),
    )
    engine.attach_tun(node.tun, by_source=False)
    node.engine = engine
    engine.on_link_up(net.links[-1][1])
    roots = [bytes([i]) * 32 for i in range(21, 21 + len(net.links))]
    net.nodes[0].engine.drop(net.client)
    net.relays.clear()
    net.add_circuit(9, roots, CLIENT)
    net.run()
    return counters


def udp6(source: bytes, destination: bytes, port: int) -> bytes:
    from exit.packets import transport_checksum

    segment = (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + (9).to_bytes(2, "big") + b"\0\0x"
    segment = (
        segment[:6] + transport_checksum(source, destination, 17, segment).to_bytes(2, "big") + segment[8:]
    )
    return b"\x60\0\0\0" + len(segment).to_bytes(2, "big") + b"\x11\x40" + source + destination + segment


def test_no_denied_destination_gets_out_and_each_is_answered_or_silent() -> None:
    net = Net(2)
    counters = exit_with_the_real_rules(net)
    deny = DenyList()
    assert CLIENT.v6 is not None
    count = 0
    for version, source, make in ((4, CLIENT.v4, udp4), (6, CLIENT.v6, None)):
        for network in deny.networks(version):
            first, last = network.network_address.packed, network.broadcast_address.packed
            for destination in (first, last):
                if destination in (DNS.v4, DNS.v6):
                    continue
                packet = make(source, destination, 443, b"x") if make else udp6(source, destination, 443)
                net.nodes[0].engine.on_tun_packets([packet])
                count += 1
                net.clock.now += 1.0
                net.run()
    # The same through addresses that carry another inside: IPv4-mapped, NAT64, 6to4.
    for text in (
        "::ffff:127.0.0.1",
        "::ffff:203.0.113.7",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "2001:0:7f00:1::1",
    ):
        import ipaddress

        destination = ipaddress.IPv6Address(text).packed
        net.nodes[0].engine.on_tun_packets([udp6(CLIENT.v6, destination, 443)])
        count += 1
        net.run()
    for port in DENIED_PORTS:
        net.nodes[0].engine.on_tun_packets([tcp4(CLIENT.v4, bytes([9, 9, 9, 9]), port, b"")])
        count += 1
        net.run()
    assert net.nodes[-1].tun.written == []
    assert counters.refused + counters.malformed == count
    assert count > 50
    # Told at once: ICMP answers came, all from the exit's own inner address.
    answers = net.nodes[0].tun.written
    assert len(answers) > 10
    assert {packet[12:16] if packet[0] >> 4 == 4 else packet[8:24] for packet in answers} <= {DNS.v4, DNS.v6}
    allowed = udp4(CLIENT.v4, bytes([9, 9, 9, 9]), 443, b"fine")
    net.nodes[0].engine.on_tun_packets([allowed])
    net.run()
    assert net.nodes[-1].tun.written == [allowed]
