"""Whole paths: what goes in comes out, sizes are equal, and the wire is that of the reference."""

import onion_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onion_paths import NEAR_EPOCH_END, Path, backward_body, forward_body, root_of, seeded

from circuits.keychain import EpochKeys
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
from circuits.params import COUNTER_LIMIT, EPOCH_AGE_S, MAX_TRAIN_UNITS, UNIT
from circuits.suites import SUITES, get_suite

LANES = (LANE_DATAGRAM, LANE_STREAM)
suites, lanes, hop_counts, seeds = (
    st.sampled_from(SUITES),
    st.sampled_from(LANES),
    st.integers(1, 4),
    st.integers(),
)


def units_of(lane):
    return st.lists(st.just(1) if lane == LANE_DATAGRAM else st.integers(1, MAX_TRAIN_UNITS), max_size=5)


def make_roots(hops, seed=0):
    return [root_of(f"{seed} {hop}") for hop in range(hops)]


@given(suite=suites, lane=lanes, hops=hop_counts, seed=seeds, data=st.data())
def test_what_goes_in_comes_out_in_batches_of_any_size(suite, lane, hops, seed, data):
    path = Path(make_roots(hops, seed), suite, lane, seed)
    for _ in range(data.draw(st.integers(1, 3))):
        units = data.draw(units_of(lane))
        now = data.draw(st.sampled_from([0.0, 130.0, 300.0]))
        bodies = [forward_body(count, index) for index, count in enumerate(units)]
        links, opened = path.forward_links(bodies, now)
        assert [(one.command, one.data) for one in opened] == [(Command.DELIVER, body) for body in bodies]
        answers = [backward_body(count, index) for index, count in enumerate(units)]
        back = path.backward_links(answers, now)
        assert path.client_backward.open_many(back[0], now) == answers
        assert len(links) == len(back) == hops
        for packets in (*links, *back):
            assert [len(packet) for packet in packets] == [count * UNIT for count in units]


@given(suite=suites, lane=lanes, hops=hop_counts, seed=seeds, units=st.integers(1, 3))
def test_the_wire_is_that_of_the_reference(suite, lane, hops, seed, units):
    if lane == LANE_DATAGRAM:
        units = 1
    roots = make_roots(hops, seed)
    path = Path(roots, suite, lane, seed)
    body, answer = forward_body(units), backward_body(units, 1)
    rng = seeded(seed)
    filler = rng(24 * (4 - hops))
    counters = [reference.first_counter(root, "fwd", lane) for root in roots]
    packet = reference.client_forward(roots, suite, lane, counters, body, filler)
    links, _ = path.forward_links([body])
    assert links[0] == [packet]
    for root, link in zip(roots, links, strict=True):
        assert link == [packet]
        command, opened, packet = reference.relay_forward(root, suite, lane, packet)
    assert (command, opened) == (reference.DELIVER, body)
    links = path.backward_links([answer])
    assert reference.client_backward(roots, suite, lane, links[0][0]) == answer


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(("lane", "label"), [(LANE_DATAGRAM, "fwd"), (LANE_STREAM, "fwd stream")])
def test_a_batch_may_cross_the_ends_of_epochs_at_every_hop(suite, lane, label):
    roots = [root_of(name) for name in NEAR_EPOCH_END[label]][:4]
    path = Path(roots, suite, lane)
    bodies = [forward_body(1, index) for index in range(40)]
    links, opened = path.forward_links(bodies)
    assert [one.data for one in opened] == bodies
    for root, packets in zip(roots, links, strict=True):
        first = reference.first_counter(root, "fwd", lane)
        assert [int.from_bytes(packet[:7], "little") for packet in packets] == list(range(first, first + 40))
        assert reference.relay_forward(root, suite, lane, packets[-1])[0] in (
            Command.FORWARD,
            Command.DELIVER,
        )


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(("lane", "label"), [(LANE_DATAGRAM, "bwd"), (LANE_STREAM, "bwd stream")])
def test_backward_batches_may_cross_the_ends_of_epochs_too(suite, lane, label):
    roots = [root_of(name) for name in NEAR_EPOCH_END[label]][:4]
    path = Path(roots, suite, lane)
    bodies = [backward_body(1, index) for index in range(60)]
    links = path.backward_links(bodies)
    assert path.client_backward.open_many(links[0], 0.0) == bodies
    assert reference.client_backward(roots, suite, lane, links[0][-1]) == bodies[-1]


@given(suite=suites, seed=seeds, hops=hop_counts, data=st.data())
def test_epoch_edges_under_reordering(suite, seed, hops, data):
    """Packets on both sides of a natural change and of a jump, mixed: each is accepted once, none fails."""
    roots = [root_of(name) for name in NEAR_EPOCH_END["fwd"]][:hops]
    path = Path(roots, suite, LANE_DATAGRAM, seed)
    packets = path.client_forward.seal_many([forward_body(1, index) for index in range(24)], 0.0)
    packets += path.client_forward.seal_many([forward_body(1, index) for index in range(24, 32)], EPOCH_AGE_S)
    shuffled = data.draw(st.permutations(range(len(packets))))
    # The latest epoch first would end the wait for those before it: an honest network reorders neighbours.
    order = sorted(range(len(packets)), key=lambda place: place + shuffled[place] % 12)
    sent = [packets[place] for place in order for _ in range(data.draw(st.integers(1, 2)))]
    opened = []
    relay = path.relays_forward[0]
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        opened += [one for one in relay.open_many(sent[:size], EPOCH_AGE_S) if one is not None]
        del sent[:size]
    assert len({one.data for one in opened}) == len(opened)
    assert relay.failures == 0
    # Three epochs are in play, and a receiver holds two: only the first one's latecomers may be lost.
    left = NEAR_EPOCH_END["fwd"][next(iter(NEAR_EPOCH_END["fwd"]))]
    assert len(opened) >= len(packets) - left


@given(suite=suites, lane=lanes, hops=hop_counts, seed=seeds)
def test_cover_traffic_ends_at_any_hop(suite, lane, hops, seed):
    path = Path(make_roots(hops, seed), suite, lane, seed)
    for target in range(1, hops + 1):
        packets = path.client_forward.seal_many([forward_body(1)], 0.0, hop=target, command=Command.DROP)
        for relay in path.relays_forward[:target]:
            (opened,) = relay.open_many(packets, 0.0)
            packets = [opened.data]
        assert (opened.command, opened.data) == (Command.DROP, b"")
    assert path.forward_links([forward_body(1)])[1][0].command is Command.DELIVER


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("lane", LANES)
def test_the_path_shows_no_length(suite, lane):
    """What a hop reads of a header looks random at every place of paths of every length: no run of zeros."""
    for hops in range(1, 5):
        path = Path(make_roots(hops), suite, lane)
        links, _ = path.forward_links([bytes(len(forward_body(1)))] * 8)
        for packets in (*links, *path.backward_links([bytes(len(backward_body(1)))] * 8)):
            for packet in packets:
                head = packet[24:96] if packets in links else packet[8:48]
                assert bytes(4) not in head
        # After its own layer the exit sees three slots of what cannot be told from random bytes.
        for packet in links[-1]:
            stripped = reference.relay_forward(path.roots[-1], suite, lane, packet)[2]
            assert bytes(4) not in stripped[:96]


@given(suite=suites, lane=lanes, hops=st.integers(2, 4), seed=seeds)
def test_links_share_no_bytes(suite, lane, hops, seed):
    path = Path(make_roots(hops, seed), suite, lane, seed)
    body, answer = forward_body(1, "body"), backward_body(1, "answer")
    for links in (path.forward_links([body])[0], path.backward_links([answer])):
        seen = set()
        for (packet,) in links:
            pieces = {packet[at : at + 8] for at in range(len(packet) - 7)}
            assert not pieces & seen
            seen |= pieces
    # The client's data is on no link either.
    assert not {body[at : at + 8] for at in range(len(body) - 7)} & seen


def test_two_packets_of_one_body_have_nothing_in_common():
    path = Path(make_roots(3), 2)
    body = forward_body(1)
    links, _ = path.forward_links([body, body])
    for first, second in links:
        assert first[96:] != second[96:]
        assert first[24:96] != second[24:96]


def test_lanes_and_directions_share_no_keys():
    roots = make_roots(2)
    packets = ClientForward(roots, 2, LANE_DATAGRAM, seeded(0)).seal_many([forward_body(1)], 0.0)
    assert RelayForward(roots[0], 2, LANE_STREAM).open_many(packets, 0.0) == [None]
    assert RelayForward(roots[1], 2, LANE_DATAGRAM).open_many(packets, 0.0) == [None]
    assert RelayForward(roots[0], 1, LANE_DATAGRAM).open_many(packets, 0.0) == [None]


def test_wrong_use_is_refused():
    roots = make_roots(2)
    for hops in ([], [root_of("x")] * 5):
        with pytest.raises(ValueError, match="1 to 4 hops"):
            ClientForward(hops, 2, LANE_DATAGRAM, seeded(0))
        with pytest.raises(ValueError, match="1 to 4 hops"):
            ClientBackward(hops, 2, LANE_DATAGRAM)
    with pytest.raises(ValueError, match="no lane"):
        RelayForward(roots[0], 2, 3)
    with pytest.raises(ValueError, match="cipher suite"):
        RelayForward(roots[0], 3, LANE_STREAM)
    client = ClientForward(roots, 2, LANE_DATAGRAM, seeded(0))
    last = ExitBackward(roots[1], 2, LANE_DATAGRAM, seeded(0))
    for size in (0, 1287, 1289, 1384 * 2 - 96):
        with pytest.raises(ValueError, match="body"):
            client.seal_many([bytes(size)], 0.0)
    for size in (0, 1335, 1337, 1384 * 2 - 48):
        with pytest.raises(ValueError, match="body"):
            last.seal_many([bytes(size)], 0.0)
    with pytest.raises(ValueError, match="hop 3 of 2"):
        client.seal_many([forward_body(1)], 0.0, hop=3)


@pytest.mark.parametrize("lane", LANES)
def test_used_up_counters_break_a_sender(lane):
    """What fits is sent; then nothing ever again."""
    roots = make_roots(2)
    senders = (
        (ClientForward(roots, 2, lane, seeded(0)), "seal_many", [forward_body(1)] * 4),
        (ExitBackward(roots[1], 2, lane, seeded(0)), "seal_many", [backward_body(1)] * 4),
        (RelayBackward(roots[0], 2, lane), "wrap_many", [bytes(UNIT)] * 4),
    )
    for sender, method, inputs in senders:
        chain = sender._chains[1] if isinstance(sender, ClientForward) else sender._chain
        chain.keys = EpochKeys(get_suite(2), bytes(32), (COUNTER_LIMIT >> 20) - 1)
        chain.counter = COUNTER_LIMIT - 4
        assert len(getattr(sender, method)(inputs, 0.0)) == 3
        assert sender.broken
        assert getattr(sender, method)(inputs, 0.0) == []


def test_empty_batches():
    path = Path(make_roots(2), 2)
    links, opened = path.forward_links([])
    assert (links, opened) == ([[], []], [])
    assert path.client_backward.open_many(path.backward_links([])[0], 0.0) == []
    assert not path.client_forward.broken
    assert not path.exit_backward.broken
