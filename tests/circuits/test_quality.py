"""What a node has seen of relays: one number from it, decay, blame, the file."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.errors import DecodeError
from circuits.quality import (
    HALF_LIFE_S,
    MAX_LIES,
    MAX_RELAYS,
    PRIOR_BAD,
    PRIOR_GOOD,
    QualityBook,
    decode_quality,
)

UNIX_S = 1_800_000_000.0
DAY_S = 86_400.0
PRIOR = PRIOR_GOOD / (PRIOR_GOOD + PRIOR_BAD)


def relay(number):
    return number.to_bytes(2, "big") * 16


A, B, C, D = (relay(number) for number in (1, 2, 3, 4))


def test_nobody_is_known_at_first():
    book = QualityBook()
    figures = book.figures(A, UNIX_S)
    assert figures.score == PRIOR
    assert (figures.builds, figures.uptime, figures.round_trip_s, figures.rate_bytes_per_s) == (
        0,
        None,
        None,
        0,
    )
    assert not book.knows(A)
    assert len(book) == 0


def test_builds_that_work_raise_and_those_that_fail_lower():
    book = QualityBook()
    for _ in range(50):
        book.note_works([A, B], UNIX_S)
    for _ in range(50):
        book.note_failed([C], UNIX_S)
    assert book.score(A, UNIX_S) == book.score(B, UNIX_S) > 0.97
    assert book.score(C, UNIX_S) < 0.06
    assert book.failure_rate(C, UNIX_S) == pytest.approx((1.0, 50.0))


def test_what_is_old_counts_less_and_in_the_end_nothing():
    book = QualityBook()
    for _ in range(20):
        book.note_failed([A], UNIX_S)
    at_once = book.score(A, UNIX_S)
    later = book.score(A, UNIX_S + HALF_LIFE_S)
    assert at_once < later < PRIOR
    assert book.figures(A, UNIX_S + HALF_LIFE_S).builds == pytest.approx(10)
    assert book.score(A, UNIX_S + 100 * HALF_LIFE_S) == pytest.approx(PRIOR, abs=0.02)


def test_a_spoiler_carries_the_blame_and_not_those_beside_it():
    """It spoils every build it is in; each honest relay works in all others."""
    rng = random.Random(4)
    book = QualityBook()
    honest = [relay(number) for number in range(10, 20)]
    for step in range(400):
        path = rng.sample([*honest, A], 3)
        if A in path:
            at = path.index(A)
            book.note_failed(path[max(0, at - 1) : at + 1], UNIX_S + step)
        else:
            book.note_works(path, UNIX_S + step)
    assert book.score(A, UNIX_S + 400) < 0.15
    assert min(book.score(node, UNIX_S + 400) for node in honest) > 0.85


def test_a_guard_that_lets_only_its_friends_through_sinks_and_not_the_others():
    rng = random.Random(5)
    book = QualityBook()
    honest = [relay(number) for number in range(10, 20)]
    friends = [relay(number) for number in range(30, 33)]
    for step in range(300):
        middle, leaves = rng.sample([*honest, *friends], 2)
        if middle in friends and leaves in friends:
            book.note_works([A, middle, leaves], UNIX_S + step)
        else:
            book.note_failed([A, middle], UNIX_S + step)
    assert book.score(A, UNIX_S + 300) < 0.3
    # They are harmed, for nobody has seen them work; but less than the one that is always there.
    assert min(book.score(node, UNIX_S + 300) for node in honest) > book.score(A, UNIX_S + 300)


def test_loss_round_trip_disputes_and_lies_lower_the_score():
    for number in range(5):
        book = QualityBook()
        for _ in range(30):
            for node in (A, B):
                book.note_works([node], UNIX_S)
                book.note_round_trip([node], 0.1, UNIX_S)
        before = book.score(A, UNIX_S)
        note = (
            lambda book: [book.note_loss([A], 5, 10, UNIX_S) for _ in range(10)],
            lambda book: [book.note_round_trip([A], 2.0, UNIX_S) for _ in range(30)],
            lambda book: book.note_dispute(A, UNIX_S),
            lambda book: book.note_lie(A, UNIX_S),
            lambda book: [book.note_failed([A], UNIX_S + hour * 3600) for hour in range(24)],
        )[number]
        note(book)
        assert book.score(A, UNIX_S) < 0.9 * before, number
        assert book.score(B, UNIX_S) == pytest.approx(before, rel=0.05), number


def test_a_slow_relay_among_fast_ones_loses_half_at_most():
    book = QualityBook()
    for node in (B, C, D):
        book.note_round_trip([node], 0.05, UNIX_S)
    book.note_round_trip([A], 100.0, UNIX_S)
    assert book.score(A, UNIX_S) == pytest.approx(PRIOR / 2)


def test_lies_are_forgiven_in_time():
    book = QualityBook()
    for _ in range(1000):
        book.note_lie(A, UNIX_S)
    assert book.figures(A, UNIX_S).lies == MAX_LIES
    assert book.score(A, UNIX_S + 14 * DAY_S) > 0.9 * PRIOR


def test_uptime_is_the_part_of_the_time_watched():
    book = QualityBook()
    for hour in range(48):
        if hour % 4 == 3:
            book.note_failed([A], UNIX_S + hour * 3600)
        else:
            book.note_alive([A], UNIX_S + hour * 3600)
        book.note_alive([B], UNIX_S + hour * 3600)
    assert 0.4 < book.figures(A, UNIX_S + 48 * 3600).uptime < 0.85
    assert book.figures(B, UNIX_S + 48 * 3600).uptime == 1.0
    # One sight in a month says nothing of the month.
    book.note_alive([C], UNIX_S)
    book.note_alive([C], UNIX_S + 30 * DAY_S)
    assert book.figures(C, UNIX_S + 30 * DAY_S).uptime == 1.0


def test_throughput_is_the_highest_seen_and_probes_lower_it():
    book = QualityBook()
    book.note_rate([A, B], 5e6, UNIX_S)
    book.note_rate([A, B], 1e6, UNIX_S)
    assert book.figures(A, UNIX_S).rate_bytes_per_s == 5_000_000
    assert book.figures(A, UNIX_S + 7 * DAY_S).rate_bytes_per_s == 2_500_000
    for _ in range(8):
        book.note_probe_rate([B], 1e5, UNIX_S)
    assert 100_000 <= book.figures(B, UNIX_S).rate_bytes_per_s < 130_000
    book.note_probe_rate([B], 8e6, UNIX_S)
    assert book.figures(B, UNIX_S).rate_bytes_per_s == 8_000_000
    assert book.measured_at(B) == UNIX_S
    assert book.measured_at(C) == 0.0
    book.note_probe_rate([C], 1e5, UNIX_S)
    for _ in range(8):
        book.note_probe_rate([B, C, D], 1e5, UNIX_S)
    assert book.figures(B, UNIX_S).rate_bytes_per_s == 8_000_000, "a relay known to be slow explains it"
    assert book.figures(D, UNIX_S).rate_bytes_per_s == 100_000, "which says of others only: at least that"


def test_the_book_is_bounded_and_the_longest_unheard_makes_room():
    book = QualityBook()
    for number in range(MAX_RELAYS + 10):
        book.note_works([relay(number)], UNIX_S)
        book.note_alive([relay(0)], UNIX_S)
    assert len(book) == MAX_RELAYS
    assert book.knows(relay(0))
    assert not book.knows(relay(5))
    assert len(book.encode()) < 1 << 20
    book.forget([relay(0)])
    assert not book.knows(relay(0))


def test_a_clock_that_jumps_breaks_nothing():
    book = QualityBook()
    book.note_works([A], UNIX_S)
    book.note_works([A], UNIX_S + 3600)  # an hour ahead
    book.note_works([A], UNIX_S)
    assert book.figures(A, UNIX_S).builds == pytest.approx(3, rel=0.05)
    book.note_works([A], UNIX_S + 3650 * DAY_S)
    ahead = decode_quality(book.encode(), UNIX_S)
    for _ in range(20):
        ahead.note_works([A], UNIX_S)
    assert 0 < ahead.score(A, UNIX_S) <= 1
    assert ahead.figures(A, UNIX_S + 2 * DAY_S).builds < 15, "decay goes on from now"


def test_the_file_keeps_everything_but_the_minute():
    book = QualityBook()
    book.note_works([A, B], UNIX_S + 1234.5)
    book.note_rate([A], 1e6, UNIX_S + 1234.5)
    book.note_lie(B, UNIX_S + 1234.5)
    assert book.take_changed()
    assert not book.take_changed()
    again = decode_quality(book.encode(), UNIX_S + 2000)
    for node in (A, B):
        assert again.score(node, UNIX_S + 2000) == pytest.approx(book.score(node, UNIX_S + 2000), rel=0.02)
    for record in msgspec.msgpack.decode(book.encode())[1]:
        assert record[1] % 3600 == 0, "no exact times on disk"


@settings(print_blob=True)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data):
    with pytest.raises(DecodeError):
        decode_quality(data, UNIX_S)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.__setitem__(0, 2),
        lambda s: s[1].append(s[1][0]),
        lambda s: s[1][0].__setitem__(0, b"short"),
        lambda s: s[1][0].__setitem__(2, -1.0),
        lambda s: s[1][0].__setitem__(2, float("nan")),
        lambda s: s[1][0].__setitem__(7, 1.5),
        lambda s: s[1][0].append(1),
        lambda s: s[1].extend([[relay(n), 0.0] for n in range(MAX_RELAYS + 1)]),
    ],
)
def test_a_wrong_file_is_refused(change):
    book = QualityBook()
    book.note_works([A], UNIX_S)
    stored = msgspec.msgpack.decode(book.encode())
    change(stored)
    with pytest.raises(DecodeError):
        decode_quality(msgspec.msgpack.encode(stored), UNIX_S)
    with pytest.raises(DecodeError):
        decode_quality(bytes(2_000_000), UNIX_S)


nodes = st.integers(0, 5).map(relay)
paths = st.lists(nodes, min_size=1, max_size=4, unique=True)
times = st.floats(0, 1e10)
notes = st.one_of(
    st.tuples(st.just("note_works"), paths),
    st.tuples(st.just("note_alive"), paths),
    st.tuples(st.just("note_failed"), paths),
    st.tuples(st.just("note_round_trip"), paths, st.floats(0, 1e4)),
    st.tuples(st.just("note_loss"), paths, st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.just("note_rate"), paths, st.floats(0, 1e11)),
    st.tuples(st.just("note_probe_rate"), paths, st.floats(0, 1e11)),
    st.tuples(st.just("note_dispute"), nodes),
    st.tuples(st.just("note_lie"), nodes),
)


@settings(print_blob=True, deadline=None, max_examples=80)
@given(st.lists(st.tuples(notes, times), max_size=40), times)
def test_whatever_is_noted_the_figures_stay_in_range(events, end):
    book = QualityBook()
    for (name, *arguments), at in events:
        getattr(book, name)(*arguments, at)
    again = decode_quality(book.encode(), end)
    for subject in (book, again):
        for number in range(6):
            figures = subject.figures(relay(number), end)
            assert 0.0 <= figures.score <= 1.0
            assert 0.0 <= figures.success <= 1.0
            assert 0.0 <= figures.loss <= 1.0
            assert figures.uptime is None or 0.0 <= figures.uptime <= 1.0
            assert figures.rate_bytes_per_s >= 0
