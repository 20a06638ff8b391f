"""The native queues and credits decide as the reference's do."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from native_parts import TICK_NS, seconds, testing

from overlay.engine.lanes import LinkLanes
from overlay.engine.queues import CodelQueue, MemoryBudget

GAPS_NS = st.sampled_from([ticks * TICK_NS for ticks in (0, 0, 1, 3, 9, 11, 82, 2560)])


@given(
    st.lists(
        st.tuples(st.sampled_from(("push", "push", "pop")), st.integers(1, 3000), GAPS_NS), max_size=300
    ),
    st.sampled_from((20_000, 1_000_000)),
)
@settings(max_examples=200)
def test_codel_queues_agree(script, memory):
    budget = MemoryBudget(memory)
    reference = CodelQueue(30_000, budget)
    native = testing.CodelQueue(30_000, memory)
    now = 1_000_000_000
    for number, (what, size, gap) in enumerate(script):
        now += gap
        if what == "push":
            assert native.push(number, size, now) == reference.push(number, size, seconds(now))
        else:
            assert native.pop(now) == reference.pop(seconds(now))
        state = (reference.size_bytes, reference.peek_size(), reference.dropped, budget.used_bytes)
        assert native.state() == state


def test_a_standing_queue_is_thinned_alike():
    budget = MemoryBudget(1 << 30)
    reference, native = CodelQueue(1 << 30, budget), testing.CodelQueue(1 << 30, 1 << 30)
    now = 1_000_000_000
    got = 0
    for number in range(3000):
        now += TICK_NS
        reference.push(number, 1000, seconds(now))
        native.push(number, 1000, now)
        if number % 3:
            item = reference.pop(seconds(now))
            assert native.pop(now) == item
            got += item is not None
    assert reference.dropped > 100
    assert got > 1000


@dataclass
class Link:
    rtt_s: float


class Nothing:
    """A flow that is never asked."""


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("consume", "consume", "grant", "send", "receive")),
            st.integers(1, 48),
            GAPS_NS,
            st.booleans(),
        ),
        max_size=300,
    )
)
@settings(max_examples=200)
def test_credits_agree(script):
    budget = MemoryBudget(100)
    lanes = LinkLanes(Link(0.02), budget, lambda lanes: None)
    end = lanes.attach(1, Nothing())
    native = testing.Credit()
    now = 1_000_000_000
    for what, units, gap, is_tight in script:
        now += gap
        budget.used_bytes = 90 if is_tight else 0
        if what == "consume":
            lanes.grants.clear()
            end.consume(units, seconds(now))
            assert native.consume(units, now, 20_000_000, is_tight) == lanes.grants.get(1)
        elif what == "receive":
            end.received += units
            assert native.receive(units) == (end.received <= end.granted_in)
        elif what == "send":
            units = min(units, end.granted_out - end.sent)
            end.sent += units
            native.send(units)
        else:
            total = end.granted_out + units * 37 - 400
            if total <= end.granted_out:
                assert native.grant(max(0, total)) is False
            elif total - end.sent > 16384:
                assert native.grant(total) is None
            else:
                end.granted_out = total
                assert native.grant(total) is True
        assert native.sendable() == min(48, end.granted_out - end.sent)
