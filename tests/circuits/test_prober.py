"""Looks at relays: budget, targets, paths like any customer's, and what the echoes say."""

import random
from dataclasses import replace

import pytest
from candidate_relays import UNIX_S, relay

from circuits.backoff import BackOff
from circuits.candidates import Constraints, Only, Position
from circuits.guards import GuardStore, Moment
from circuits.params import UNIT
from circuits.path import violation
from circuits.path_index import PathIndex
from circuits.pool.policy_watch import DESTINATIONS, MAX_WATCHED, PolicyWatch
from circuits.pool.prober import BURST_ECHOES, Look, Prober
from circuits.quality import QualityBook


class World:
    def __init__(self, candidates=None, per_hour=60, seed=1, **wish):
        if candidates is None:
            candidates = [*(relay(n) for n in range(1, 40)), *(relay(n, True) for n in range(50, 60))]
        self.rng = random.Random(seed).randbytes
        self.index = PathIndex(candidates)
        self.store, self.book, self.backoff = GuardStore(), QualityBook(), BackOff()
        self.wish = Constraints(**wish)
        self.prober = Prober(per_hour, self.rng, 0.0)

    def choose(self, now):
        moment = Moment(self.index, self.backoff, self.rng, now, UNIX_S + now)
        return self.prober.choose(self.wish, self.store, self.book, moment)

    def answer(self, look, now, *, rate_bytes_per_s=1e6, lost=0):
        tokens = look.start(self.rng, now)
        step_s = UNIT / rate_bytes_per_s
        for place, token in enumerate(tokens[lost:]):
            look.note_echo(token, now + 0.05 + place * step_s)
        look.note_result(self.book, UNIX_S + now)


def test_the_budget_holds_over_a_day_and_little_is_saved():
    world = World(per_hour=12)
    looks = [now for now in range(0, 86_400, 5) if world.choose(float(now)) is not None]
    assert 12 * 24 - 2 <= len(looks) <= 12 * 24 + 2
    assert looks[0] >= 295, "none at once: a client has other things to do at its start"
    later = World(per_hour=12)
    assert sum(later.choose(86_400.0) is not None for _ in range(20)) == 2


def test_nothing_is_looked_at_when_it_is_switched_off():
    world = World(per_hour=0)
    assert world.prober.next_time(5.0) is None
    assert all(world.choose(float(now)) is None for now in range(0, 100_000, 1000))


def test_next_time_is_when_the_budget_allows_it():
    world = World(per_hour=60)
    assert world.prober.next_time(0.0) == pytest.approx(60.0)
    assert world.choose(59.0) is None
    assert world.choose(60.0) is not None
    assert world.prober.next_time(60.0) == pytest.approx(120.0)


def test_with_one_hop_nobody_is_looked_at():
    """Every exit would learn this customer's address."""
    world = World(hops=1)
    assert all(world.choose(minute * 60.0) is None for minute in range(2, 60))


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_paths_keep_to_the_customers_rules_and_guards(hops):
    banned = Only(nodes=frozenset(relay(n).node_id for n in (3, 52)))
    world = World(hops=hops, banned=banned, exits=Only(countries=frozenset({""})))
    guards = set()
    for minute in range(2, 200):
        look = world.choose(minute * 60.0)
        assert look is not None
        path = look.path
        assert look.target in path.node_ids
        assert not set(path.node_ids) & banned.nodes
        assert len(path.hops) in ({hops} if hops in (2, 4) else {3, 4})
        if len(path.hops) == hops:
            assert violation(path, world.wish) is None
        guards.add(path.node_ids[0])
        assert look.target != path.node_ids[0], "guards are never changed for a look"
    assert len(guards) == 1


def test_a_middle_is_looked_at_behind_the_second_layer():
    """Else each relay that is looked at would learn this customer's guard."""
    world = World()
    seen = 0
    for minute in range(2, 300):
        look = world.choose(minute * 60.0)
        if look.target != look.path.exit.node_id:
            seen += 1
            kept = {k.node_id for k in world.store.get(world.wish).middles}
            assert look.path.node_ids[2] == look.target
            assert look.path.node_ids[1] in kept
    assert seen > 50


def test_in_time_everybody_is_looked_at():
    world = World()
    for minute in range(2, 400):
        now = minute * 60.0
        look = world.choose(now)
        world.answer(look, now)
    known = sum(world.book.measured_at(entry) > 0 for entry in world.index.by_id)
    assert known >= 45, "of 49"


def test_a_slow_liar_loses_its_weight():
    """Half of the exits say that they are ten times as large as they are."""
    honest = [relay(n, True, capacity_bytes_per_s=10**7) for n in range(50, 55)]
    liars = [relay(n, True, capacity_bytes_per_s=10**8) for n in range(60, 65)]
    false = {c.node_id for c in liars}
    candidates = [*(relay(n, capacity_bytes_per_s=10**7) for n in range(1, 20)), *honest, *liars]
    world = World(candidates)
    for minute in range(2, 300):
        now = minute * 60.0
        look = world.choose(now)
        slow = any(node in false for node in look.path.node_ids)
        world.answer(look, now, rate_bytes_per_s=2e5 if slow else 8e6)

    def share(candidates):
        exits = PathIndex(candidates).select(Position.EXIT, Constraints())
        return sum(part for entry, part in exits.shares() if entry.candidate.node_id in false)

    def measured(candidate):
        figures = world.book.figures(candidate.node_id, UNIX_S + 300 * 60)
        return replace(candidate, quality=figures.score, measured_bytes_per_s=figures.rate_bytes_per_s)

    before, after = share(candidates), share([measured(c) for c in candidates])
    assert before > 0.45
    assert after < 0.5 * before


def test_what_the_echoes_say():
    world = World()
    look = world.choose(60.0)
    world.answer(look, 60.0, rate_bytes_per_s=5e5)
    figures = world.book.figures(look.target, UNIX_S + 60)
    assert figures.rate_bytes_per_s == pytest.approx(5e5, rel=0.01)
    assert figures.round_trip_s == pytest.approx(0.05)
    assert figures.loss == 0.0


def test_lost_echoes_are_loss_and_few_answers_no_throughput():
    world = World()
    look = world.choose(60.0)
    world.answer(look, 60.0, lost=BURST_ECHOES - 2)
    figures = world.book.figures(look.target, UNIX_S + 60)
    assert figures.loss > 0.05
    assert figures.rate_bytes_per_s == 0
    silent = world.choose(120.0)
    world.answer(silent, 120.0, lost=BURST_ECHOES)
    assert world.book.figures(silent.target, UNIX_S + 120).loss > 0.0


def test_unknown_and_repeated_echoes_do_nothing():
    world = World()
    look = world.choose(60.0)
    assert isinstance(look, Look)
    tokens = look.start(world.rng, 60.0)
    assert not look.note_echo(b"12345678", 60.1)
    for token in tokens[:-1]:
        assert not look.note_echo(token, 60.1)
    assert not look.note_echo(tokens[0], 60.2)
    assert look.note_echo(tokens[-1], 60.2)
    assert len(look.back) == BURST_ECHOES


def test_an_empty_or_useless_directory_gives_no_look():
    assert World([]).choose(60.0) is None
    assert World([relay(1)]).choose(60.0) is None


# --- exits that refuse what they list ----------------------------------------------------------------


def test_an_exit_lies_once_several_destinations_are_refused_on_one_port():
    watch = PolicyWatch()
    assert not any(watch.note_refused(b"e", 443, "192.0.2.1") for _ in range(10)), "one destination"
    for number in range(DESTINATIONS - 2):
        assert not watch.note_refused(b"e", 443, f"192.0.2.{number + 2}")
    assert not watch.note_refused(b"e", 80, "192.0.2.9")
    assert not watch.note_refused(b"f", 443, "192.0.2.9")
    assert watch.note_refused(b"e", 443, "192.0.2.9")
    assert not watch.note_refused(b"e", 443, "192.0.2.9"), "it begins anew"


def test_a_success_between_clears_the_exit():
    watch = PolicyWatch()
    for number in range(20):
        assert not watch.note_refused(b"e", 443, f"192.0.2.{number}")
        watch.note_opened(b"e", 443)


def test_the_watch_is_bounded():
    watch = PolicyWatch()
    for port in range(1, 3 * MAX_WATCHED):
        watch.note_refused(b"e", port, "192.0.2.1")
    assert len(watch._refused) == MAX_WATCHED
