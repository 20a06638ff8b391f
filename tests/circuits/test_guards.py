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


def test_clock_that_was_ahead_does_not_keep_a_guard_for_ever():
    world = World()
    world.guard(3650 * DAY_S)
    world.guard(0.0)
    assert all(k.expires_s <= UNIX_S + 121 * DAY_S for k in world.kept.guards)


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
        lambda s: s.update(version=2),
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
