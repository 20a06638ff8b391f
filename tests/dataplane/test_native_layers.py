"""The native onion layers, key chains and windows do what `circuits` does, packet for packet."""

from hypothesis import given, settings
from hypothesis import strategies as st
from native_parts import TICK_NS, seconds, testing

from circuits import onion
from circuits.keychain import derive_chain
from circuits.params import EPOCH_AGE_S, EPOCH_BITS, UNIT
from circuits.window import ReplayWindow

ROOTS = [bytes([i]) * 32 for i in (1, 2, 3, 4)]
SUITES = st.sampled_from((1, 2))
LANES = st.sampled_from((onion.LANE_DATAGRAM, onion.LANE_STREAM))
STEPS_NS = st.sampled_from((0, TICK_NS, 3_000_000_000, 60_000_000_000, 130_000_000_000))
FILL = 0xA5


def fill(size):
    return bytes([FILL]) * size


def units_of(lane, wanted):
    return 1 if lane == onion.LANE_DATAGRAM else wanted


def health(lane):
    return (lane.failures, lane.dropped, lane.broken)


@st.composite
def journeys(draw):
    """What becomes of packets on a link: each is passed on, lost, doubled, late, cut or changed."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["pass"] * 6 + ["lose", "double", "late", "cut", "change"]),
                STEPS_NS,
                st.integers(0, UNIT * 3 - 1),
            ),
            min_size=1,
            max_size=40,
        )
    )


def tampered(packets, journey, late):
    """The packets that arrive when `packet` is treated as told; `late` keeps those that come at the end."""
    fate, _, place = journey
    for packet in packets:
        if fate == "pass":
            yield packet
        elif fate == "double":
            yield packet
            yield packet
        elif fate == "late":
            late.append(packet)
        elif fate == "cut":
            yield packet[: place % len(packet)]
        elif fate == "change":
            at = place % len(packet)
            yield packet[:at] + bytes([packet[at] ^ 0x40]) + packet[at + 1 :]


@given(SUITES, LANES, st.integers(1, 4), st.integers(1, 3), journeys(), st.data())
def test_forward_layers_agree(suite, lane, hops, units, script, data):
    units = units_of(lane, units)
    roots = ROOTS[:hops]
    reference = onion.ClientForward(roots, suite, lane, fill)
    native = testing.ClientForward(roots, suite, lane)
    at = data.draw(st.integers(0, hops - 1), label="hop")
    relays = [onion.RelayForward(root, suite, lane) for root in roots]
    natives = [testing.RelayForward(root, suite, lane) for root in roots]
    now = 1_000_000_000_000
    late = []
    for number, journey in enumerate([*script, ("end", 0, 0)]):
        now += journey[1]
        packets = []
        if journey[0] != "end":
            body = bytes([number]) * (UNIT * units - 96)
            command = data.draw(st.sampled_from((1, 1, 1, 2)), label="command")
            (packet,) = reference.seal_many([body], seconds(now), None, onion.Command(command))
            assert native.seal(body, now, FILL, None, command) == packet
            packets = [packet]
        for index in range(hops):
            if index == at:
                packets = late if journey[0] == "end" else list(tampered(packets, journey, late))
            following = []
            for packet in packets:
                (expected,) = relays[index].open_many([packet], seconds(now))
                found = natives[index].open(packet, now, number % 2 == 0)
                assert found == (None if expected is None else (int(expected.command), expected.data))
                assert natives[index].health == health(relays[index])
                if expected is not None and expected.command == onion.Command.FORWARD:
                    following.append(expected.data)
            packets = following


@given(SUITES, LANES, st.integers(1, 4), st.integers(1, 3), journeys())
def test_backward_layers_agree(suite, lane, hops, units, script):
    units = units_of(lane, units)
    roots = ROOTS[:hops]
    exit_, native_exit = (
        onion.ExitBackward(roots[-1], suite, lane, fill),
        testing.ExitBackward(roots[-1], suite, lane),
    )
    relays = [onion.RelayBackward(root, suite, lane) for root in roots[:-1]]
    natives = [testing.RelayBackward(root, suite, lane) for root in roots[:-1]]
    client, native_client = (
        onion.ClientBackward(roots, suite, lane),
        testing.ClientBackward(roots, suite, lane),
    )
    now = 1_000_000_000_000
    late = []
    for number, journey in enumerate([*script, ("end", 0, 0)]):
        now += journey[1]
        if journey[0] == "end":
            packets = late
        else:
            body = bytes([number]) * (UNIT * units - 48)
            (packet,) = exit_.seal_many([body], seconds(now))
            assert native_exit.seal(body, now, FILL) == packet
            for relay, native in zip(reversed(relays), reversed(natives), strict=True):
                (wrapped,) = relay.wrap_many([packet], seconds(now))
                assert native.wrap(packet, now, number % 2 == 0) == wrapped
                packet = wrapped
            packets = list(tampered([packet], journey, late))
        for packet in packets:
            (expected,) = client.open_many([packet], seconds(now))
            assert native_client.open(packet, now) == expected
            assert native_client.health == health(client)


@given(st.lists(st.tuples(STEPS_NS, st.booleans()), max_size=12))
def test_expiry_between_packets_agrees(script):
    reference = onion.ClientForward(ROOTS[:2], 2, onion.LANE_DATAGRAM, fill)
    native = testing.ClientForward(ROOTS[:2], 2, onion.LANE_DATAGRAM)
    now = 5_000_000_000
    for step, sends in script:
        now += step
        reference.expire(seconds(now))
        native.expire(now)
        if sends:
            assert [native.seal(bytes(1288), now, FILL, None, 1)] == reference.seal_many(
                [bytes(1288)], seconds(now)
            )


@given(SUITES, st.integers(1, 3), st.integers(1, 3))
def test_cover_for_any_hop_agrees(suite, hops, hop):
    hop = min(hop, hops)
    reference = onion.ClientForward(ROOTS[:hops], suite, onion.LANE_DATAGRAM, fill)
    native = testing.ClientForward(ROOTS[:hops], suite, onion.LANE_DATAGRAM)
    for _ in range(2):
        expected = reference.seal_many([bytes(1288)], 1.0, hop, onion.Command.DROP)
        assert [native.seal(bytes(1288), 1_000_000_000, FILL, hop, 2)] == expected


@given(st.lists(st.one_of(st.integers(-9000, 20), st.integers(1, 20_000)), min_size=1, max_size=300))
@settings(max_examples=200)
def test_windows_agree(steps):
    first = 7 << EPOCH_BITS
    reference, native = ReplayWindow(first), testing.Window(first)
    counter = first
    for step in steps:
        counter = max(first, min(reference.highest + step, first + (1 << EPOCH_BITS) - 1))
        fresh = reference.is_fresh(counter)
        assert native.is_fresh(counter) == fresh
        if fresh:
            reference.mark(counter)
            native.mark(counter)


def test_counters_start_where_the_reference_starts():
    for number, label in enumerate(("fwd", "bwd", "fwd stream", "bwd stream")):
        for root in ROOTS:
            assert testing.first_counter(root, number) == derive_chain(root, label)[1]


def test_the_reach_ahead_is_the_same():
    """A receiver that sleeps through epochs of a sender that sends one packet in each."""
    for epochs in range(1, 11):
        sender = onion.ClientForward(ROOTS[:1], 2, onion.LANE_DATAGRAM, fill)
        relay, native = onion.RelayForward(ROOTS[0], 2, 1), testing.RelayForward(ROOTS[0], 2, 1)
        now = 0
        for _ in range(epochs + 1):
            (packet,) = sender.seal_many([bytes(1288)], seconds(now))
            now += int(EPOCH_AGE_S * 1_000_000_000)
        (expected,) = relay.open_many([packet], seconds(now))
        assert (native.open(packet, now, True) is None) == (expected is None)
        assert native.health == health(relay)
