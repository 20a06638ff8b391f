import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.params import WINDOW
from circuits.window import ReplayWindow

FIRST = 5 << 20


def test_each_counter_once():
    window = ReplayWindow(FIRST)
    for counter in (FIRST, FIRST + 1, FIRST + 9, FIRST + 3):
        assert window.is_fresh(counter)
        window.mark(counter)
        assert not window.is_fresh(counter)
    assert window.is_fresh(FIRST + 2)


@pytest.mark.parametrize("lowest_bits", range(8))
def test_edge_of_the_window(lowest_bits):
    window = ReplayWindow(FIRST)
    highest = FIRST + 3 * WINDOW + lowest_bits
    window.mark(highest)
    assert window.is_fresh(highest - WINDOW + 1)
    assert not window.is_fresh(highest - WINDOW)
    window.mark(highest - WINDOW + 1)
    assert not window.is_fresh(highest - WINDOW + 1)
    assert not window.is_fresh(highest)
    assert window.is_fresh(highest - WINDOW + 2)


def test_it_starts_where_its_bits_start():
    with pytest.raises(ValueError, match="multiple of 8"):
        ReplayWindow(3)


def test_it_is_small():
    window = ReplayWindow(FIRST)
    window.mark(FIRST + 70_000)
    assert len(window._ring) == WINDOW // 8 + 1


@pytest.mark.parametrize(
    "step", [1, 3, 7, 8, 9, 63, 64, 1000, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 8, 3 * WINDOW]
)
def test_what_left_the_ring_leaves_no_trace(step):
    window, marked, counter = ReplayWindow(FIRST), set(), FIRST
    while counter < FIRST + 4 * WINDOW:
        for near in (counter, counter - 1, counter - step // 2, counter - WINDOW + 1):
            fresh = near >= FIRST and near not in marked and near > window.highest - WINDOW
            if near >= FIRST:
                assert window.is_fresh(near) == fresh
            if fresh:
                window.mark(near)
                marked.add(near)
        counter += step


steps = st.one_of(
    st.integers(-20, 20),
    st.integers(-WINDOW - 20, -WINDOW + 20),
    st.integers(WINDOW - 20, WINDOW + 20),
    st.integers(-2 * WINDOW, 2 * WINDOW),
)


@given(st.lists(steps, max_size=300))
def test_agrees_with_a_set(moves):
    window, marked, highest = ReplayWindow(FIRST), set(), FIRST - 1
    for move in moves:
        counter = max(FIRST, highest + move)
        fresh = counter not in marked and counter > highest - WINDOW
        assert window.is_fresh(counter) == fresh
        if fresh:
            window.mark(counter)
            marked.add(counter)
            highest = max(highest, counter)
        assert window.highest == highest
