from hypothesis import given
from hypothesis import strategies as st

from overlay.engine.queues import CODEL_INTERVAL_S, CODEL_TARGET_S, CodelQueue, MemoryBudget


def test_an_unhurried_queue_drops_nothing() -> None:
    queue: CodelQueue[int] = CodelQueue(10_000, MemoryBudget(10_000))
    now = 0.0
    for i in range(1000):
        assert queue.push(i, 10, now)
        assert queue.pop(now + CODEL_TARGET_S / 2) == i
        now += 0.01
    assert queue.dropped == 0


def test_a_standing_queue_is_cut() -> None:
    queue: CodelQueue[int] = CodelQueue(1_000_000, MemoryBudget(1_000_000))
    now, sent = 0.0, 0
    while now < 5:
        queue.push(sent, 100, now)
        queue.push(sent, 100, now)
        sent += 1
        queue.pop(now)  # half the rate that comes in
        now += 0.001
    assert queue.dropped > 50


def test_one_burst_passes() -> None:
    queue: CodelQueue[int] = CodelQueue(1_000_000, MemoryBudget(1_000_000))
    for i in range(50):
        queue.push(i, 100, 0.0)
    now, got = 0.0, []
    while queue:
        got.append(queue.pop(now))
        now += CODEL_INTERVAL_S / 60
    assert got == list(range(50))


@given(st.lists(st.one_of(st.integers(1, 500), st.none()), max_size=200), st.integers(1, 2000))
def test_bytes_are_accounted_for(steps: list[int | None], limit: int) -> None:
    budget = MemoryBudget(10_000)
    queue: CodelQueue[int] = CodelQueue(limit, budget)
    now = 0.0
    for size in steps:
        now += 0.05
        if size is None:
            queue.pop(now)
        else:
            taken = queue.push(size, size, now)
            assert taken or queue.size_bytes + size > limit
        assert queue.size_bytes == budget.used_bytes <= limit
        assert (len(queue) == 0) == (queue.size_bytes == 0)
    queue.clear()
    assert budget.used_bytes == 0


def test_a_full_process_takes_nothing_more() -> None:
    budget = MemoryBudget(100)
    one: CodelQueue[str] = CodelQueue(1000, budget)
    other: CodelQueue[str] = CodelQueue(1000, budget)
    assert one.push("a", 101, 0.0)
    assert budget.over
    assert not other.push("b", 1, 0.0)
    assert one.pop(0.0) == "a"
    assert other.push("b", 1, 0.0)


def test_unpop_puts_an_item_back_in_front() -> None:
    queue: CodelQueue[str] = CodelQueue(1000, MemoryBudget(1000))
    queue.push("a", 1, 0.0)
    queue.push("b", 1, 0.0)
    item = queue.pop(0.0)
    assert item == "a"
    queue.unpop(item, 1, 0.0)
    assert [queue.pop(0.0), queue.pop(0.0)] == ["a", "b"]
