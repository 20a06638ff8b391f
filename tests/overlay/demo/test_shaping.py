"""The emulated link's decisions: delivery times, order, loss, rate."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.demo.shaping import Conditions, Shaper


def test_a_perfect_link_delivers_at_once() -> None:
    shaper = Shaper(Conditions(), random.Random(1))
    assert [shaper.admit(now, 1500) for now in (1.0, 1.0, 2.5)] == [[1.0], [1.0], [2.5]]


def test_delay_is_added() -> None:
    shaper = Shaper(Conditions(delay_ms=20), random.Random(1))
    assert shaper.admit(1.0, 100) == [pytest.approx(1.02)]


def test_rate_spaces_packets_and_a_full_queue_drops() -> None:
    shaper = Shaper(Conditions(rate_bit_per_s=8000, queue_ms=1500), random.Random(1))
    due = [shaper.admit(0.0, 1000) for _ in range(4)]
    assert due == [[1.0], [2.0], [], []]
    assert (shaper.passed, shaper.dropped) == (2, 2)
    assert shaper.admit(10.0, 1000) == [11.0]


@given(seed=st.integers(0, 2**32), jitter=st.floats(0, 100), gaps=st.lists(st.floats(0, 0.01), max_size=50))
def test_jitter_keeps_the_order_and_never_delivers_early(seed: int, jitter: float, gaps: list[float]) -> None:
    shaper, now, last = Shaper(Conditions(delay_ms=5, jitter_ms=jitter), random.Random(seed)), 0.0, 0.0
    for gap in gaps:
        now += gap
        (due,) = shaper.admit(now, 1500)
        assert due >= now + 0.005 - 1e-9
        assert due >= last
        last = due


@given(seed=st.integers(0, 2**32))
def test_the_seed_decides_everything(seed: int) -> None:
    wanted = Conditions(delay_ms=5, jitter_ms=9, loss=0.3, reorder=0.2, duplicate=0.2, rate_bit_per_s=1e7)
    one, other = (Shaper(wanted, random.Random(seed)) for _ in range(2))
    times = [i / 1000 for i in range(200)]
    assert [one.admit(t, 1200) for t in times] == [other.admit(t, 1200) for t in times]


def test_shares_come_out_about_right() -> None:
    shaper = Shaper(Conditions(delay_ms=50, loss=0.1, reorder=0.25, duplicate=0.5), random.Random(7))
    results = [shaper.admit(0.0, 100) for _ in range(10_000)]
    arrived = [r for r in results if r]
    assert 800 < shaper.dropped < 1200
    assert shaper.dropped == 10_000 - len(arrived)
    assert 0.45 < sum(len(r) == 2 for r in arrived) / len(arrived) < 0.55
    assert 0.2 < sum(r[0] == 0.0 for r in arrived) / len(arrived) < 0.3


@pytest.mark.parametrize("bad", [{"loss": 1.5}, {"reorder": -0.1}, {"delay_ms": -1}])
def test_impossible_conditions_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Conditions(**bad)
