"""What waits in front of qh3's core: order, shares, bounds, and that acknowledgements never wait for it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from links_net import PAIR_IDS, PAIRS, Pair

from overlay.links.backends.qh3_outbox import QUANTUM_BYTES, STREAM_OVERHEAD_BYTES, Outbox
from overlay.links.constants import DATAGRAM_PACKET, LINK_FRAME

FULL = 1452


@given(
    st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=40000), st.booleans()), max_size=20),
    st.lists(st.integers(0, 30000), min_size=1, max_size=50),
)
def test_every_stream_comes_out_as_it_went_in(writes, budgets):
    outbox = Outbox()
    wanted, ended, got, fins = {}, set(), {}, set()
    for stream_id, data, fin in writes:
        if stream_id in ended:
            continue
        outbox.append(stream_id, data, fin)
        wanted[stream_id] = wanted.get(stream_id, b"") + data
        if fin:
            ended.add(stream_id)
    total = sum(map(len, wanted.values()))
    assert outbox.backlog_bytes == total == sum(outbox.stream_bytes(n) for n in range(5))
    for budget in [*budgets, 10**6, 10**6]:
        for stream_id, data, fin in outbox.take(budget):
            assert stream_id not in fins
            got[stream_id] = got.get(stream_id, b"") + bytes(data)
            if fin:
                fins.add(stream_id)
    assert got == wanted
    assert fins == ended
    assert not outbox
    assert outbox.backlog_bytes == 0


@given(st.integers(0, 100_000))
def test_a_budget_is_kept(budget_bytes):
    outbox = Outbox()
    for stream_id in range(3):
        outbox.append(stream_id, bytes(50_000), True)
    used = sum(len(data) + STREAM_OVERHEAD_BYTES for _, data, _ in outbox.take(budget_bytes))
    assert used <= max(0, budget_bytes)


def test_streams_take_turns_and_a_new_one_comes_first():
    outbox = Outbox()
    outbox.append(2, bytes(100_000), False)
    outbox.append(6, bytes(100_000), False)
    first = [stream_id for stream_id, _, _ in outbox.take(4 * QUANTUM_BYTES)]
    assert first[:4] == [2, 6, 2, 6]
    outbox.append(10, b"short", True)
    assert next(outbox.take(FULL)) == (10, b"short", True)


def test_what_is_dropped_does_not_come():
    outbox = Outbox()
    outbox.append(2, b"two", False)
    outbox.append(6, b"six", False)
    outbox.drop(2)
    outbox.drop(99)
    assert outbox.backlog_bytes == 3
    assert [stream_id for stream_id, _, _ in outbox.take(10_000)] == [6]
    outbox.append(2, b"two", False)
    outbox.frames.append(bytes(LINK_FRAME))
    outbox.clear()
    assert not outbox
    assert list(outbox.take(10_000)) == []


def test_frames_get_everything_alone_and_half_beside_streams():
    outbox = Outbox()
    outbox.frames.extend([bytes(LINK_FRAME)] * 1000)
    assert len(list(outbox.take_frames(100 * DATAGRAM_PACKET))) == 100
    outbox.append(2, bytes(1_000_000), False)
    frames = streams = 0
    for packets in [20, 1, 1, 3, 1, 7, 1, 1, 2] * 10:
        room = packets * FULL
        taken = len(list(outbox.take_frames(room))) * DATAGRAM_PACKET
        frames += taken
        streams += sum(len(data) + STREAM_OVERHEAD_BYTES for _, data, _ in outbox.take(room - taken))
    assert 0.35 < frames / (frames + streams) < 0.65


def _load(pair, count, frames, seconds):
    """Keep both sides busy; return the longest time that any lane of either side stood still."""
    links = [pair.dialler, pair.acceptor]
    streams = [[link.open_stream() for _ in range(count)] for link in links]
    turns = [0, 0]

    def feed(index):
        link = links[index]
        if frames:
            link.send_datagrams([bytes(LINK_FRAME)] * frames)
        while count and link.stream_backlog() < 256 * 1024:
            assert link.end is None, link.end
            turns[index] += 1
            link.send_stream(streams[index][turns[index] * 7 % count], bytes(16384))

    for index in (0, 1):
        pair.handlers[index].on_room = lambda _, index=index: feed(index)
        pair.handlers[index].changed = lambda index=index: feed(index)
        feed(index)
    pair.flush()
    start = pair.now
    seen = {}
    longest = 0.0
    while pair.now < start + seconds:
        assert pair.step()
        for index, handler in enumerate(pair.handlers):
            lanes = [sum(map(len, handler.streams.values()))] * bool(count) + [len(handler.frames)] * bool(
                frames
            )
            for lane, got in enumerate(lanes):
                before, since = seen.get((index, lane), (0, start))
                if got != before or pair.now > start + seconds:
                    longest = max(longest, pair.now - since)
                    seen[index, lane] = got, pair.now
    assert links[0].end is links[1].end is None
    return longest


@pytest.mark.parametrize("backends", PAIRS[:3], ids=PAIR_IDS[:3])
@pytest.mark.parametrize(
    ("count", "frames", "loss"),
    [(20, 0, 0.0), (20, 0, 0.02), (1, 4, 0.02), (4, 4, 0.01), (0, 4, 0.01)],
)
def test_a_full_window_never_keeps_acknowledgements_back(backends, count, frames, loss):
    """Left to itself qh3 stands still for seconds, or for ever, when both sides fill their windows."""
    rng = random.Random(4)
    pair = Pair(backends, delay_s=0.01, rate_bytes_per_s=2e6, queue_s=0.05).connect()
    pair.filter = lambda _, datagram: [] if rng.random() < loss else [datagram]
    assert _load(pair, count, frames, 2.0) < 0.5


def test_an_acknowledgement_goes_along_with_an_answer_or_soon_without_one():
    pair = Pair(("qh3", "qh3"), delay_s=0.0002).connect()
    pair.run_until(lambda: not any(side.connection.bytes_in_flight() for side in pair.sides))
    streams = [pair.dialler.open_stream(), pair.acceptor.open_stream()]
    sent = []
    pair.filter = lambda index, datagram: sent.append(index) or [datagram]
    connection = pair.sides[0].connection

    def answer():
        if len(pair.handlers[1].streams.get(streams[0], b"")) == 100:
            pair.acceptor.send_stream(streams[1], bytes(100))
            pair.handlers[1].changed = None

    pair.handlers[1].changed = answer
    pair.dialler.send_stream(streams[0], bytes(100))
    pair.dirty.add(0)
    pair.flush()
    assert connection.bytes_in_flight() > 0
    pair.run_until(lambda: streams[1] in pair.handlers[0].streams)
    assert connection.bytes_in_flight() == 0
    assert sent == [0, 1]
    # The answer is acknowledged alone, since nothing else goes that way.
    begun = pair.now
    pair.run_until(lambda: pair.sides[1].connection.bytes_in_flight() == 0)
    assert 0.001 < pair.now - begun < 0.02
    assert sent == [0, 1, 0]
