"""Neighbours who change, replay, drop, reorder and make up packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onion_paths import Path, backward_body, forward_body, root_of, seeded

from circuits.keychain import EpochKeys
from circuits.onion import LANE_DATAGRAM, LANE_STREAM, ClientForward, Command, RelayForward
from circuits.params import DATAGRAM_FAILURES_LIMIT, EPOCH_AGE_S, EPOCHS_AHEAD, UNIT, WINDOW
from circuits.suites import SUITES, get_suite

LANES = (LANE_DATAGRAM, LANE_STREAM)
suites, lanes, seeds = st.sampled_from(SUITES), st.sampled_from(LANES), st.integers()
some_hops = st.integers(1, 4)
# Where a packet is changed: anywhere, but often in its header, where more can go wrong.
places = st.one_of(st.integers(0, 96), st.integers(0, UNIT - 1))


def make_path(hops, suite, lane=LANE_DATAGRAM, seed=0):
    return Path([root_of(f"{seed} {hop}") for hop in range(hops)], suite, lane, seed)


def change(packet, place, by):
    changed = bytearray(packet)
    changed[place] ^= by
    return bytes(changed)


@given(suites, lanes, some_hops, seeds, places, st.integers(1, 255), st.data())
def test_any_change_on_a_link_is_refused_at_its_end(suite, lane, hops, seed, place, by, data):
    path = make_path(hops, suite, lane, seed)
    link = data.draw(st.integers(0, hops - 1))
    packets = path.client_forward.seal_many([forward_body(1, seed)], 0.0)
    for relay in path.relays_forward[:link]:
        packets = [opened.data for opened in relay.open_many(packets, 0.0)]
    relay = path.relays_forward[link]
    assert relay.open_many([change(packets[0], place, by)], 0.0) == [None]
    assert relay.failures + relay.dropped == 1
    if lane == LANE_STREAM:
        assert relay.broken
        assert relay.open_many(packets, 0.0) == [None]
    else:  # the counter was not used up by the forgery
        assert relay.open_many(packets, 0.0)[0] is not None


@given(suites, lanes, some_hops, seeds, places, st.integers(1, 255), st.data())
def test_any_change_on_the_way_back_is_refused_by_the_client(suite, lane, hops, seed, place, by, data):
    path = make_path(hops, suite, lane, seed)
    link = data.draw(st.integers(0, hops - 1))  # 0: next to the client
    packets = path.exit_backward.seal_many([backward_body(1, seed)], 0.0)
    for relay in reversed(path.relays_backward[link:]):
        packets = relay.wrap_many(packets, 0.0)
    bad = [change(packets[0], place, by)]
    for relay in reversed(path.relays_backward[:link]):
        bad = relay.wrap_many(bad, 0.0)
    # The header's tail is filler: behind the counters of the hops passed, nobody reads it.
    ignored = 8 * (hops - link) <= place < 32
    opened = path.client_backward.open_many(bad, 0.0)
    if ignored:
        assert opened == [backward_body(1, seed)]
    else:
        assert opened == [None]
        assert path.client_backward.failures + path.client_backward.dropped == 1


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("lane", LANES)
def test_every_bit_of_the_header_counts(suite, lane):
    path = make_path(2, suite, lane)
    (packet,) = path.client_forward.seal_many([forward_body(1)], 0.0)
    for place in range(96):
        for bit in range(8):
            relay = RelayForward(path.roots[0], suite, lane)
            assert relay.open_many([change(packet, place, 1 << bit)], 0.0) == [None]


@given(suites, st.lists(st.integers(0, 63), max_size=200), st.data())
def test_no_counter_is_accepted_twice(suite, order, data):
    path = make_path(2, suite)
    packets = path.client_forward.seal_many([forward_body(1)] * 64, 0.0)
    relay, exit_relay = path.relays_forward
    opened = []
    while order:
        size = data.draw(st.integers(1, len(order)))
        opened += [
            (place, one)
            for place, one in zip(
                order[:size], relay.open_many([packets[place] for place in order[:size]], 0.0), strict=True
            )
            if one is not None
        ]
        del order[:size]
    accepted = [place for place, _ in opened]
    assert len(set(accepted)) == len(accepted)
    assert relay.failures == 0
    assert not relay.broken
    assert None not in exit_relay.open_many([one.data for _, one in opened], 0.0)


def test_the_window_has_an_edge():
    path = make_path(1, 2)
    relay = path.relays_forward[0]
    batches = [path.client_forward.seal_many([forward_body(1)] * 64, 0.0) for _ in range(WINDOW // 64 + 2)]
    packets = [packet for batch in batches for packet in batch]
    highest = len(packets) - 1
    assert relay.open_many([packets[highest]], 0.0)[0] is not None
    assert relay.open_many([packets[highest - WINDOW]], 0.0) == [None]
    assert relay.open_many([packets[highest - WINDOW + 1]], 0.0)[0] is not None
    assert (relay.failures, relay.dropped) == (0, 1)


def test_the_client_takes_no_answer_twice():
    path = make_path(3, 2)
    packets = path.backward_links([backward_body(1, 1), backward_body(1, 2)])[0]
    assert path.client_backward.open_many([packets[1], packets[1], packets[0]], 0.0) == [
        backward_body(1, 2),
        None,
        backward_body(1, 1),
    ]
    # A relay that sends an old packet on again under a new counter of its own gains nothing.
    again = path.backward_links([backward_body(1, 3)])
    middle = again[1]
    twice = path.relays_backward[0].wrap_many(middle, 0.0)
    assert path.client_backward.open_many([*again[0], *twice], 0.0) == [backward_body(1, 3), None]
    assert (path.client_backward.failures, path.client_backward.dropped) == (0, 2)


@pytest.mark.parametrize("part", ["relay", "client"])
def test_sixteen_failures_break_the_datagram_lane(part):
    path = make_path(2, 2)
    good = path.client_forward.seal_many([forward_body(1)], 0.0)
    lane, packet = path.relays_forward[0], good[0]
    if part == "client":
        lane, packet = path.client_backward, path.backward_links([backward_body(1)])[0][0]
    bad = [change(packet, 500, 1), packet[:-1], packet + bytes(UNIT), b""]
    for count in range(1, DATAGRAM_FAILURES_LIMIT):
        assert lane.open_many([bad[count % 4]], 0.0) == [None]
        assert (lane.failures, lane.broken) == (count, False)
    # The last one in the middle of a batch: what came before is opened, nothing after.
    first, *others = lane.open_many([packet, bad[1], packet], 0.0)
    assert first is not None
    assert others == [None, None]
    assert lane.broken
    assert lane.open_many([packet], 0.0) == [None]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 24, 96, UNIT - 1, UNIT + 1, 2 * UNIT, 49 * UNIT])
def test_wrong_lengths_are_failures_everywhere(size):
    packet = bytes(size)
    path = make_path(2, 2)
    assert path.relays_forward[0].open_many([packet], 0.0) == [None]
    assert path.relays_forward[0].failures == 1
    assert path.client_backward.open_many([packet], 0.0) == [None]
    assert path.client_backward.failures == 1
    assert path.relays_backward[0].wrap_many([packet], 0.0) == []
    assert path.relays_backward[0].failures == 1


def test_a_relay_leaves_out_what_has_a_wrong_length_on_the_way_back():
    path = make_path(3, 2)
    first, second = path.exit_backward.seal_many([backward_body(1, 1), backward_body(1, 2)], 0.0)
    middle, guard = path.relays_backward[1], path.relays_backward[0]
    packets = guard.wrap_many(middle.wrap_many([first, b"garbage", second], 0.0), 0.0)
    assert path.client_backward.open_many(packets, 0.0) == [backward_body(1, 1), backward_body(1, 2)]
    assert (middle.failures, middle.broken) == (1, False)


@pytest.mark.parametrize(("units", "good"), [(1, True), (48, True), (49, False)])
def test_trains_have_a_largest_size(units, good):
    path = make_path(2, 2, LANE_STREAM)
    wrapped = path.relays_backward[0].wrap_many([bytes(units * UNIT)], 0.0)
    assert [len(packet) for packet in wrapped] == ([units * UNIT] if good else [])
    assert path.relays_backward[0].broken is not good


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2), (0, 1, 0)])
def test_trains_come_in_order_or_the_lane_is_broken(order):
    path = make_path(2, 2, LANE_STREAM)
    trains = path.client_forward.seal_many([forward_body(2)] * 3, 0.0)
    opened = path.relays_forward[0].open_many([trains[place] for place in order], 0.0)
    assert [one is not None for one in opened] == [True] * (len(order) - 1) + [False]
    assert path.relays_forward[0].broken
    back = path.backward_links([backward_body(2)] * 3)[0]
    opened = path.client_backward.open_many([back[place] for place in order], 0.0)
    assert [one is not None for one in opened] == [True] * (len(order) - 1) + [False]
    assert path.client_backward.broken


@pytest.mark.parametrize("lane", LANES)
def test_an_epoch_may_be_lost_whole_on_the_datagram_lane_only(lane):
    """Quiet circuits send one packet an epoch: a receiver that lost a few must still find the sender."""
    path = make_path(2, 2, lane)
    sent = [
        path.client_forward.seal_many([forward_body(1, index)], index * EPOCH_AGE_S)
        for index in range(EPOCHS_AHEAD + 3)
    ]
    relay = path.relays_forward[0]
    assert relay.open_many(sent[0], 0.0)[0] is not None
    late = relay.open_many(sent[EPOCHS_AHEAD], 0.0)[0]
    assert (late is not None) is (lane == LANE_DATAGRAM)
    fresh = make_path(2, 2, lane).relays_forward[0]
    assert fresh.open_many(sent[EPOCHS_AHEAD + 2], 0.0) == [None]
    assert fresh.failures == 1


def test_a_lost_run_of_epochs_on_the_way_back_is_made_up_for_at_every_hop():
    path = make_path(4, 2)
    for index in range(EPOCHS_AHEAD):
        path.backward_links([backward_body(1)], index * EPOCH_AGE_S)
    packets = path.backward_links([backward_body(1, 9)], EPOCHS_AHEAD * EPOCH_AGE_S)[0]
    assert path.client_backward.open_many(packets, 0.0) == [backward_body(1, 9)]


@pytest.mark.parametrize("lane", LANES)
def test_all_hops_go_along_through_many_epochs(lane):
    path = make_path(3, 2, lane)
    for index in range(3 * EPOCHS_AHEAD):
        now = index * EPOCH_AGE_S
        assert path.forward_links([forward_body(1, index)], now)[1][0].data == forward_body(1, index)
        packets = path.backward_links([backward_body(1, index)], now)[0]
        assert path.client_backward.open_many(packets, now) == [backward_body(1, index)]


def test_forged_epochs_move_no_receiver():
    path = make_path(3, 2)
    (good,) = path.backward_links([backward_body(1)])[0]
    ahead = int.from_bytes(good[:8], "little") + (1 << 20)
    for counter in (ahead, 0, (1 << 64) - 1, 1 << 56):
        forged = counter.to_bytes(8, "little") + good[8:]
        assert path.client_backward.open_many([forged], 0.0) == [None]
    assert path.client_backward.open_many([good], 0.0) == [backward_body(1)]


def test_an_unknown_command_of_the_client_is_a_failure():
    path = make_path(2, 2)
    packets = path.client_forward.seal_many([forward_body(1)], 0.0, hop=1, command=77)
    relay = path.relays_forward[0]
    assert relay.open_many(packets, 0.0) == [None]
    assert relay.failures == 1


@given(suites, lanes, st.lists(st.binary(max_size=120), max_size=8), st.integers(0, 3))
def test_garbage_raises_nothing(suite, lane, chunks, units):
    path = make_path(3, suite, lane)
    packets = [chunk.ljust(units * UNIT, b"\x5a") for chunk in chunks]
    assert set(path.relays_forward[0].open_many(packets, 0.0)) <= {None}
    assert set(path.client_backward.open_many(packets, 0.0)) <= {None}
    assert len(path.relays_backward[0].wrap_many(packets, 0.0)) <= len(packets)


def test_forgeries_do_not_open_the_next_epochs_door():
    """A forged jump leaves sender and receiver together; the honest jump later is followed."""
    path = make_path(1, 2)
    relay = path.relays_forward[0]
    (packet,) = path.client_forward.seal_many([forward_body(1)], 0.0)
    counter = int.from_bytes(packet[:7], "little")
    jump = (((counter >> 20) + 1) << 20).to_bytes(7, "little") + packet[7:]
    assert relay.open_many([jump, packet], 0.0)[0] is None
    later = path.client_forward.seal_many([forward_body(1, 2)], EPOCH_AGE_S)
    assert relay.open_many(later, EPOCH_AGE_S)[0].data == forward_body(1, 2)


@pytest.mark.parametrize("lane", LANES)
def test_spare_circuits_make_no_ciphers(lane, monkeypatch):
    """Memory: only the first packet makes ciphers and windows."""
    made = []
    suite = get_suite(2)
    monkeypatch.setattr(type(suite), "new_aead", lambda self, key: made.append("aead"))
    monkeypatch.setattr(type(suite), "new_stream", lambda self, key: made.append("stream"))
    path = make_path(4, 2, lane)
    path.relays_forward[0].expire(0.0)
    path.client_forward.expire(0.0)
    path.client_backward.expire(0.0)
    path.exit_backward.expire(0.0)
    path.relays_backward[0].expire(0.0)
    assert made == []


def test_old_keys_are_gone():
    """After the change and its grace nothing in a receiver opens what was recorded before."""
    path = make_path(1, 2)
    relay = path.relays_forward[0]
    recorded = path.client_forward.seal_many([forward_body(1), forward_body(1)], 0.0)
    assert relay.open_many(recorded[:1], 0.0)[0].command is Command.DELIVER
    after = path.client_forward.seal_many([forward_body(1)], EPOCH_AGE_S)
    assert relay.open_many(after, EPOCH_AGE_S)[0] is not None
    relay.expire(EPOCH_AGE_S + 3.0)
    chain = relay._chain
    held = [getattr(chain, name) for kind in type(chain).__mro__ for name in getattr(kind, "__slots__", ())]
    assert [keys.epoch for keys in held if isinstance(keys, EpochKeys)] == [chain.current.epoch]
    assert relay.open_many(recorded[1:], EPOCH_AGE_S + 3.0) == [None]


def test_the_random_tail_comes_from_the_source_given():
    asked = []

    def source(size):
        asked.append(size)
        return bytes(size)

    client = ClientForward([root_of("a"), root_of("b")], 2, LANE_DATAGRAM, source)
    client.seal_many([forward_body(1)] * 5, 0.0)
    assert asked == [5 * 48]
    assert len(seeded(1)(3)) == 3
