import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from circuits.building.replay import MAX_BUCKETS, ReplayMemory


def make(capacity: int = 100) -> ReplayMemory:
    return ReplayMemory(random.Random(1).randbytes, capacity)


def test_remembers_for_the_hours_it_could_be_replayed_in():
    memory = make()
    assert not memory.contains(b"x" * 32)
    assert memory.remember(b"x" * 32, 500, 500)
    for hour in (500, 501, 502, 503):
        assert memory.contains(b"x" * 32)
        memory.remember(hour.to_bytes(32, "big"), hour, hour)
    assert len(memory) == 5


def test_full_memory_takes_nothing_until_an_hour_is_over():
    memory = make(capacity=3)
    assert all(memory.remember(bytes([i]) * 32, 500, 500) for i in range(3))
    assert not memory.remember(b"z" * 32, 500, 500)
    assert not memory.contains(b"z" * 32)
    assert not memory.remember(b"z" * 32, 501, 501)
    assert memory.remember(b"z" * 32, 502, 502)
    assert memory.contains(b"z" * 32)
    assert not memory.contains(bytes(32))
    assert len(memory) == 1


def test_clock_that_jumps_ahead_and_back_does_not_forget():
    memory = make()
    memory.remember(b"x" * 32, 500, 500)
    memory.remember(b"y" * 32, 900, 900)
    assert memory.contains(b"x" * 32)


def test_hours_are_bounded():
    memory = make()
    for hour in range(50):
        memory.remember(hour.to_bytes(32, "big"), hour, hour)
    assert len(memory) == MAX_BUCKETS


def test_many_entries_do_not_collide_across_alignment():
    memory, rng = make(capacity=50_000), random.Random(5)
    keys = [rng.randbytes(32) for _ in range(20_000)]
    assert all(memory.remember(key, 1, 1) for key in keys)
    assert all(memory.contains(key) for key in keys)
    assert not any(memory.contains(rng.randbytes(32)) for _ in range(5_000))


class Model(RuleBasedStateMachine):
    """Against a plain dictionary: nothing inside the window is ever forgotten, and the size is bounded."""

    def __init__(self):
        super().__init__()
        self.memory, self.now, self.model = make(capacity=12), 1000, {}

    @rule(step=st.integers(0, 2))
    def time_passes(self, step):
        self.now += step

    @rule(key=st.integers(0, 30), offset=st.integers(-1, 1))
    def build(self, key, offset):
        x = key.to_bytes(32, "big")
        if self.memory.contains(x):
            return
        assert key not in self.model or self.model[key] < self.now - 1
        if self.memory.remember(x, self.now + offset, self.now):
            self.model[key] = self.now + offset

    @precondition(lambda self: self.model)
    @invariant()
    def remembers(self):
        assert len(self.memory) <= 12
        for key, hour in self.model.items():
            if hour >= self.now - 1:
                assert self.memory.contains(key.to_bytes(32, "big"))


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=60, print_blob=True, deadline=None)
TestReplayMemory = Model.TestCase
