import json
import random

import pytest
from candidate_relays import UNIX_S, relay
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.backoff import BackOff
from circuits.candidates import Constraints, NoPath, NoPathKind, Only
from circuits.errors import DecodeError
from circuits.guards import (
    ADD_GUARD_AFTER_S,
    MAX_GUARDS,
    MAX_SETS,
    MIDDLES,
    PRIMARY_GUARDS,
    GuardStore,
    Moment,
    decode_guards,
)
from circuits.path import choose_path
from circuits.path_index import PathIndex

DAY_S = 86_400.0


class World:
    def __init__(self, count=20, seed=1):
        self.candidates = [relay(i) for i in range(count)] + [relay(100 + i, True) for i in range(3)]
        self.index = PathIndex(self.candidates)
        self.backoff, self.store, self.rng = BackOff(), GuardStore(), random.Random(seed).randbytes

    def list_only(self, keep):
        self.index = PathIndex(c for c in self.candidates if keep(c))

    def choose(self, now=0.0, **constraints):
        wanted = Constraints(**constraints)
        moment = Moment(self.index, self.backoff, self.rng, now, UNIX_S + now)
        return choose_path(wanted, self.store.get(wanted), moment)

    def guard(self, now=0.0, **constraints):
        return self.choose(now, **constraints).hops[0].candidate.node_id

    @property
    def kept(self):
        return self.store.get(Constraints())


def test_one_guard_is_used_for_months():
    world = World()
    first = world.guard()
    assert {world.guard(day * DAY_S) for day in range(55)} == {first}
    assert len(world.kept.guards) == PRIMARY_GUARDS
    later = {world.guard(day * DAY_S) for day in range(55, 400, 5)}
    assert 3 <= len(later) <= 8


def test_middles_come_from_four_that_change_within_days():
    world = World()
    middles = {world.choose(hops=4).hops[i].candidate.node_id for _ in range(60) for i in (1, 2)}
    assert len(middles) == MIDDLES
    world.choose(13 * DAY_S)
    assert not middles & {k.node_id for k in world.kept.middles} or len(world.kept.middles) == MIDDLES
    assert all(DAY_S <= k.expires_s - k.added_s <= 12 * DAY_S for k in world.kept.middles)


def test_unreachable_guard_is_passed_over_and_comes_back():
    world = World()
    first = world.guard()
    world.backoff.note_failure(first, 10.0)
    second = world.guard(10.0)
    assert second != first
    assert second in {k.node_id for k in world.kept.guards}
    assert len(world.kept.guards) == PRIMARY_GUARDS
    assert world.guard(16.0) == first
    world.backoff.note_failure(first, 16.0)
    assert world.guard(20.0) == second
    world.backoff.note_success(first)
    assert world.guard(20.0) == first


def test_lost_uplink_does_not_use_up_guards():
    world = World()
    world.guard()
    now = 0.0
    while now < ADD_GUARD_AFTER_S - 1:
        for kept in world.kept.guards:
            world.backoff.note_failure(kept.node_id, now)
        result = world.choose(now)
        assert isinstance(result, NoPath)
        assert (result.kind, len(world.kept.guards)) == (NoPathKind.UNREACHABLE, PRIMARY_GUARDS)
        assert "no guard can be reached (3 tried); next attempt in" in result.sentence
        assert result.retry_at > now
        now += 1.0
    # An hour without any guard: one more a minute, and never more than the bound.
    while now < 3600:
        for kept in world.kept.guards:
            world.backoff.note_failure(kept.node_id, now)
        world.choose(now)
        now += 5.0
    assert len(world.kept.guards) <= MAX_GUARDS


def test_all_guards_dead_for_good_does_not_lock_the_customer_out():
    world = World()
    world.guard()
    dead = {k.node_id for k in world.kept.guards}
    now = 0.0
    while now < 120:
        result = world.choose(now)
        if not isinstance(result, NoPath) and result.hops[0].candidate.node_id not in dead:
            break
        for node in dead:
            world.backoff.note_failure(node, now)
        now += 1.0
    assert now <= ADD_GUARD_AFTER_S + 5


def test_unlisted_guard_keeps_its_place_for_a_week():
    world = World()
    first = world.guard()
    world.list_only(lambda c: c.node_id != first)
    assert world.guard(60.0) != first
    world.list_only(lambda c: True)
    assert world.guard(6 * DAY_S) == first
    world.list_only(lambda c: c.node_id != first)
    world.guard(7 * DAY_S)
    world.guard(15 * DAY_S)
    world.list_only(lambda c: True)
    assert world.guard(15 * DAY_S) != first


def test_dead_middle_is_avoided():
    world = World()
    middles = {world.choose().hops[1].candidate.node_id for _ in range(40)}
    for node in middles:
        world.backoff.note_failure(node, 0.0)
    path = world.choose(1.0)
    assert path.hops[1].candidate.node_id not in middles
    assert path.hops[1].reason == "drawn by weight; no relay of our second layer fits"
    assert world.choose(60.0).hops[1].candidate.node_id in middles


def test_filter_sets_have_guards_of_their_own_but_bans_do_not():
    world = World()
    usual = world.guard()
    chosen = Only(nodes=frozenset(c.node_id for c in world.candidates[:6]))
    other = world.guard(guards=chosen)
    assert other in chosen.nodes
    assert world.guard() == usual
    assert world.guard(guards=chosen) == other
    assert world.guard(banned=Only(nodes=frozenset({b"\x00\x63" * 16}))) == usual
    banned = Only(nodes=frozenset({usual}))
    assert world.guard(banned=banned) in {k.node_id for k in world.kept.guards} - {usual}
    assert world.guard() == usual


def test_number_of_filter_sets_is_bounded():
    world = World()
    for number in range(MAX_SETS + 3):
        world.guard(
            float(number), guards=Only(countries=frozenset(), nodes=frozenset({bytes([0, number]) * 16}))
        )
    assert len(json.loads(world.store.encode())["sets"]) == MAX_SETS


def test_state_survives_the_disk():
    world = World()
    first = world.guard()
    assert world.store.take_changed()
    assert not world.store.take_changed()
    world.guard()
    assert not world.store.take_changed()
    encoded = world.store.encode()
    world.store = decode_guards(encoded)
    assert world.store.encode() == encoded
    assert world.guard(30 * DAY_S) == first


def ids(kept):
    return [k.node_id for k in kept]


class Clock:
    """A machine's two clocks: the steady one goes on, the time of day is what somebody says."""

    def __init__(self, world):
        self.world, self.now, self.unix_s = world, 0.0, UNIX_S

    def use(self, seconds=0.0, unix_s=None):
        """Choose a path after so much real time; the time of day goes along, or is set."""
        self.now += seconds
        self.unix_s = self.unix_s + seconds if unix_s is None else unix_s
        world, wanted = self.world, Constraints()
        moment = Moment(world.index, world.backoff, world.rng, self.now, self.unix_s)
        return choose_path(wanted, world.store.get(wanted), moment)

    def restart(self, unix_s):
        """Another run from the disk, the time of day as given."""
        self.world.store = decode_guards(self.world.store.encode())
        self.now = 1e6
        return self.use(unix_s=unix_s)


@pytest.mark.parametrize("wrong_s", [0.0, UNIX_S - 400 * DAY_S, UNIX_S + 400 * DAY_S, UNIX_S + 4000 * DAY_S])
def test_a_clock_that_jumps_by_months_costs_no_guard_and_keeps_none_for_ever(wrong_s):
    clock = Clock(world := World())
    clock.use()
    guards = ids(world.kept.guards)
    middles = ids(world.kept.middles)
    for _ in range(5):
        clock.use(60.0, unix_s=wrong_s)
        clock.use(60.0, unix_s=UNIX_S + clock.now)
    assert ids(world.kept.guards) == guards
    assert ids(world.kept.middles) == middles
    for _ in range(121):
        clock.use(DAY_S)
    assert not set(guards) & set(ids(world.kept.guards)), "kept for its time, and not for longer"


@pytest.mark.parametrize("wrong_s", [100.0, UNIX_S + 4000 * DAY_S])
def test_a_start_with_a_wrong_clock_costs_no_guard(wrong_s):
    """A machine without a battery starts in 1970 and is set right a minute later."""
    clock = Clock(world := World())
    clock.use()
    guards = ids(world.kept.guards)
    for day in range(3):
        clock.restart(wrong_s)
        assert ids(world.kept.guards) == guards
        clock.use(60.0, unix_s=UNIX_S + day * DAY_S)
        assert ids(world.kept.guards) == guards


def test_time_between_runs_and_in_sleep_counts():
    clock = Clock(world := World())
    clock.use()
    guards = ids(world.kept.guards)
    for week in range(1, 5):
        clock.restart(UNIX_S + week * 7 * DAY_S)
    for day in range(60):
        clock.use(3600.0, unix_s=UNIX_S + (28 + day) * DAY_S)  # it sleeps for most of the day
    kept = world.kept.guards
    assert max(k.expires_s for k in kept if k.node_id in guards) - world.kept.time.time_s < 33 * DAY_S
    absent = world.kept.time.time_s
    clock.restart(clock.unix_s + 3000 * DAY_S)
    assert world.kept.time.time_s == absent + 30 * DAY_S


def test_a_first_start_with_a_wrong_clock_keeps_the_guards_it_chose():
    clock = Clock(world := World())
    clock.use(unix_s=77.0)
    guards = ids(world.kept.guards)
    clock.use(60.0, unix_s=UNIX_S)
    assert ids(world.kept.guards) == guards
    clock.restart(UNIX_S + DAY_S)
    assert ids(world.kept.guards) == guards


def test_a_state_of_the_first_version_is_read():
    world = World()
    guard = world.guard()
    stored = json.loads(world.store.encode())
    del stored["time_s"], stored["seen_s"]
    world.store = decode_guards(json.dumps({**stored, "version": 1}).encode())
    assert world.guard(20 * DAY_S) == guard
    assert world.kept.time.time_s == UNIX_S + 20 * DAY_S


def test_the_time_is_stored_once_a_day():
    world = World()
    world.guard()
    assert world.store.take_changed()
    world.guard(DAY_S - 1)
    assert not world.store.take_changed()
    world.guard(DAY_S + 1)
    assert world.store.take_changed()
    assert not world.store.take_changed()


def test_relays_missing_for_a_moment_are_not_replaced():
    world = World()
    world.choose()
    guards, middles = ids(world.kept.guards), ids(world.kept.middles)
    world.list_only(lambda c: c.node_id not in (guards[1], middles[0], middles[1]))
    world.choose(60.0)
    assert ids(world.kept.guards) == guards
    assert ids(world.kept.middles) == middles
    world.list_only(lambda c: True)
    world.choose(1800.0)
    assert ids(world.kept.guards) == guards
    assert ids(world.kept.middles) == middles
    # Longer than a moment: others join, and those missing keep their places for a while.
    world.list_only(lambda c: c.node_id not in (guards[1], middles[0], middles[1]))
    world.choose(2000.0)
    world.choose(2000.0 + 3700.0)
    assert len(world.kept.guards) == 4
    assert len(world.kept.middles) == 6
    assert ids(world.kept.middles)[:4] == middles
    world.choose(3 * DAY_S)
    assert not set(middles[:2]) & set(ids(world.kept.middles))
    assert guards[1] in ids(world.kept.guards)


def test_a_second_layer_that_is_missing_as_a_whole_is_replaced_as_far_as_needed():
    world = World()
    world.choose()
    middles = ids(world.kept.middles)
    world.list_only(lambda c: c.node_id not in middles)
    paths = {world.choose(60.0 + n).hops[1].candidate.node_id for n in range(40)}
    assert len(paths) == 2
    world.list_only(lambda c: True)
    world.choose(120.0)
    assert ids(world.kept.middles)[:4] == middles


def test_guards_are_unrelated_where_possible():
    world = World()
    world.candidates = [relay(i, family="one" if i < 18 else "") for i in range(20)] + [relay(100, True)]
    world.index = PathIndex(world.candidates)
    world.guard()
    families = [world.index.by_id[k.node_id].candidate.family for k in world.kept.guards]
    assert families.count("one") <= 1


@settings(print_blob=True)
@given(st.binary(max_size=200))
def test_garbage_state_is_refused(data):
    with pytest.raises(DecodeError):
        decode_guards(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(version=3),
        lambda s: s["sets"].extend(s["sets"] * 20),
        lambda s: s["sets"][0]["guards"].extend(s["sets"][0]["guards"][:1]),
        lambda s: s["sets"][0]["guards"][0].update(node_id="AAAA"),
        lambda s: s["sets"][0].update(more=1),
        lambda s: s["sets"][0]["guards"][0].update(expires_s="soon"),
    ],
)
def test_wrong_state_is_refused(change):
    world = World()
    world.guard()
    stored = json.loads(world.store.encode())
    change(stored)
    with pytest.raises(DecodeError):
        decode_guards(json.dumps(stored).encode())
    with pytest.raises(DecodeError):
        decode_guards(b" " * 100_000)
