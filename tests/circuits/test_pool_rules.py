"""The customer's rules against the real pool: limits over 200 circuits, changed rules, raised prices."""

import random
from dataclasses import replace

import pytest
from candidate_relays import UNIX_S
from candidate_relays import relay as made_up
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.backoff import BackOff
from circuits.building.messages import price_chain
from circuits.candidates import Constraints, NoPath, NoPathKind, Only
from circuits.guards import GuardStore, Moment
from circuits.path import Path, choose_path, violation
from circuits.path_index import PathIndex
from circuits.pool.machine import Pool
from circuits.pool.types import (
    CloseCircuit,
    Leased,
    Need,
    NeedRefused,
    PoolSettings,
    SendEcho,
    StartBuild,
    State,
    Trouble,
    Waiting,
)
from circuits.quality import QualityBook


def relay(number, **changes):
    return made_up(number, **{"has_ipv6": True, **changes})


COUNTRIES = ("DE", "FR", "NL", "SE")


def market(seed=1, count=40):
    """Relays of many countries and prices; every third an exit."""
    rng = random.Random(seed)
    return [
        relay(
            number,
            is_exit=number % 3 == 0,
            country=rng.choice(COUNTRIES),
            price_wei_per_packet=rng.choice((10, 50, 100, 400)),
        )
        for number in range(1, count + 1)
    ]


class Customer:
    """A pool whose builds succeed at once unless a relay refuses; keeps every path."""

    def __init__(self, candidates, constraints, seed=1, **changes):
        self.now = 1000.0
        self.paths = {}
        self.all_paths = []
        self.closed = []
        self.refused = []
        self.refuses = lambda path: None
        self.book = QualityBook()
        self.pool = Pool(
            PathIndex(candidates),
            constraints,
            GuardStore(),
            random.Random(seed).randbytes,
            settings=PoolSettings(**changes),
            quality=self.book,
            unix_offset_s=UNIX_S,
        )
        self.do(self.pool.handle_timeout(self.now))

    def do(self, actions):
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, StartBuild):
                self.paths[action.circuit_id] = action.path
                self.all_paths.append(action.path)
                suspects = self.refuses(action.path)
                if suspects is None:
                    built = self.pool.handle_built(action.circuit_id, True, self.now)
                else:
                    del self.paths[action.circuit_id]
                    built = self.pool.handle_build_failed(
                        action.circuit_id,
                        suspects,
                        "the price offered is lower than the one it asks",
                        self.now,
                    )
                waiting += built
            elif isinstance(action, SendEcho):
                waiting += self.pool.handle_echo(action.circuit_id, action.token, self.now)
            elif isinstance(action, CloseCircuit):
                self.closed.append(action)
                self.paths.pop(action.circuit_id, None)
            elif isinstance(action, NeedRefused):
                self.refused.append(action)

    def wait(self, seconds=1.0):
        self.now += seconds
        self.do(self.pool.handle_timeout(self.now))

    def lease(self, isolation=b"", port=443):
        outcome, actions = self.pool.lease(Need(isolation, port), self.now)
        self.do(actions)
        return outcome

    def set(self, constraints):
        self.do(self.pool.set_constraints(constraints, self.now))


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_limits_of_price_country_and_hops_over_two_hundred_circuits(hops):
    wanted = Constraints(
        hops=hops, exits=Only(countries=frozenset({"DE"})), max_price_wei_per_packet=120 * hops
    )
    customer = Customer(market(count=120), wanted, max_circuits=500)
    number = 0
    while len(customer.all_paths) < 200:
        number += 1
        customer.lease(b"%d" % number)
        customer.wait(0.1)
    for path in customer.all_paths:
        assert len(path.hops) == hops
        assert path.exit.country == "DE"
        asked = [hop.candidate.price_wei_per_packet for hop in path.hops]
        assert path.price_wei_per_packet == price_chain(asked)[0][0] <= 120 * hops
    # A limit is not a preference for one relay: several exits and middles were used.
    if hops > 1:
        assert len({path.exit.node_id for path in customer.all_paths}) > 1


def test_rules_that_change_hold_from_then_on_and_old_flows_finish():
    customer = Customer(market(), Constraints(hops=3))
    old = customer.lease(b"a")
    assert isinstance(old, Leased)
    before = len(customer.all_paths)
    german = Constraints(hops=2, exits=Only(countries=frozenset({"DE"})))
    customer.set(german)
    customer.wait()
    rows = {row.circuit_id: row for row in customer.pool.status(customer.now)}
    assert rows[old.circuit_id].state is State.DRAINING, "its flow goes on"
    assert all(violation(path, german) is None for path in customer.all_paths[before:])
    new = customer.lease(b"a")
    assert isinstance(new, Leased)
    assert new.circuit_id != old.circuit_id
    assert violation(customer.paths[new.circuit_id], german) is None
    customer.do(customer.pool.release(old.circuit_id, customer.now))
    assert old.circuit_id not in customer.paths


def test_circuits_that_keep_to_the_new_rules_stay():
    customer = Customer(market(), Constraints(hops=3))
    kept = set(customer.paths)
    customer.set(Constraints(hops=3, max_price_wei_per_packet=100_000))
    assert set(customer.paths) == kept
    customer.set(
        Constraints(hops=3, banned=Only(nodes=frozenset(next(iter(customer.paths.values())).node_ids)))
    )
    assert not kept & set(customer.paths)


def test_rules_that_leave_nobody_say_which_and_how_many():
    customer = Customer(market(), Constraints(hops=3))
    customer.set(Constraints(hops=3, exits=Only(countries=frozenset({"XX"}))))
    assert not isinstance(customer.lease(b"z"), Leased)
    customer.wait(20)
    found = customer.pool.no_path
    assert isinstance(found, NoPath)
    assert found.kind is NoPathKind.COUNTRY
    assert found.steps[-1].left == 0
    assert "is in XX" in customer.pool.explain(customer.now)
    customer.set(Constraints(hops=3))
    customer.wait()
    assert isinstance(customer.lease(b"z"), Leased)
    assert customer.pool.no_path is None


def test_a_price_raised_after_the_build_changes_no_circuit_and_all_later_ones():
    candidates = market()
    customer = Customer(candidates, Constraints(hops=3, max_price_wei_per_packet=600), spares=1)
    lease = customer.lease()
    path = customer.paths[lease.circuit_id]
    agreed = path.price_wei_per_packet
    greedy = path.exit.node_id
    raised = [replace(c, price_wei_per_packet=10**6) if c.node_id == greedy else c for c in candidates]
    customer.do(customer.pool.set_index(PathIndex(raised), customer.now))
    before = len(customer.all_paths)
    (row,) = [row for row in customer.pool.status(customer.now) if row.circuit_id == lease.circuit_id]
    assert (row.state, row.price_wei_per_packet) == (State.READY, agreed)
    for number in range(30):
        customer.lease(b"%d" % number)
        customer.wait(0.1)
    assert len(customer.all_paths) > before
    for path in customer.all_paths[before:]:
        assert greedy not in path.node_ids
        assert path.price_wei_per_packet <= 600


def test_a_relay_that_wants_more_than_it_says_is_avoided_and_loses_quality():
    customer = Customer(market(), Constraints(hops=3), max_circuits=300)
    greedy = customer.paths[min(customer.paths)].exit.node_id
    customer.refuses = lambda path: (2,) if path.exit.node_id == greedy else None
    score = customer.book.score(greedy, UNIX_S + customer.now)
    refused_before = len(customer.all_paths)
    for number in range(60):
        customer.lease(b"%d" % number)
        customer.wait(1.0)
    tried = sum(path.exit.node_id == greedy for path in customer.all_paths[refused_before:])
    assert tried <= 8, "back-off doubles"
    if tried:
        assert customer.book.score(greedy, UNIX_S + customer.now) < score


def test_a_relay_with_a_false_address_sinks_and_not_those_that_cannot_reach_it():
    """The relay before it says that it could not reach it: one of the two is to blame."""
    customer = Customer(market(), Constraints(hops=3), max_circuits=300)
    false = customer.paths[min(customer.paths)].exit.node_id
    middles = set()
    customer.refuses = lambda path: (1, 2) if path.exit.node_id == false else None
    for number in range(400):
        customer.lease(b"%d" % (number % 50))
        customer.wait(5.0)
        if number % 10 == 0:
            customer.do(customer.pool.renew(customer.now))
    for path in customer.all_paths:
        if path.exit.node_id == false:
            middles.add(path.node_ids[1])
    scores = {node: customer.book.score(node, UNIX_S + customer.now) for node in (*middles, false)}
    assert scores.pop(false) < 0.75
    assert min(scores.values()) > 0.85


def test_an_exit_that_refuses_what_it_lists_is_left_and_loses_quality():
    customer = Customer(market(), Constraints(hops=3))
    lease = customer.lease()
    liar = customer.paths[lease.circuit_id].exit.node_id
    honest_score = customer.book.score(liar, UNIX_S + customer.now)
    customer.do(customer.pool.handle_lie(lease.circuit_id, customer.now))
    customer.wait(0.1)
    again = customer.lease()
    assert isinstance(again, Leased)
    assert customer.paths[again.circuit_id].exit.node_id != liar
    assert customer.book.score(liar, UNIX_S + customer.now) < 0.6 * honest_score
    assert customer.pool.handle_lie(999, customer.now) == []


def test_an_exit_that_says_ipv6_and_gives_none_loses_quality():
    book = QualityBook()
    pool = Pool(PathIndex(market()), Constraints(), GuardStore(), random.Random(1).randbytes, quality=book)
    (start, *_) = [a for a in pool.handle_timeout(0.0) if isinstance(a, StartBuild)]
    pool.handle_built(start.circuit_id, False, 0.0)
    assert book.figures(start.path.exit.node_id, 0.0).lies == 1


def test_a_wrong_clock_lowers_nobody():
    book = QualityBook()
    pool = Pool(PathIndex(market()), Constraints(), GuardStore(), random.Random(1).randbytes, quality=book)
    (start, *_) = [a for a in pool.handle_timeout(0.0) if isinstance(a, StartBuild)]
    pool.handle_build_failed(start.circuit_id, (1,), "its clock and ours differ", 0.0, clock=True)
    assert not book.knows(start.path.node_ids[1])
    assert pool.backoff.is_waiting(start.path.node_ids[1], 0.0), "others are tried first"


def test_a_lost_line_lowers_no_guard():
    customer = Customer(market(), Constraints(hops=3))
    guard = next(iter(customer.paths.values())).node_ids[0]
    score = customer.book.score(guard, UNIX_S + customer.now)
    customer.refuses = lambda path: (0,)
    for _ in range(10):
        customer.do(customer.pool.handle_guard_lost(guard, "no route", customer.now))
        customer.wait(70.0)
    customer.refuses = lambda path: None
    customer.wait(70.0)
    assert customer.book.score(guard, UNIX_S + customer.now) == pytest.approx(score, rel=0.05)


def test_a_guard_that_cannot_be_reached_while_others_can_loses_quality():
    customer = Customer(market(), Constraints(hops=3))
    guard = next(iter(customer.paths.values())).node_ids[0]
    score = customer.book.score(guard, UNIX_S + customer.now)
    for _ in range(6):
        customer.do(customer.pool.handle_guard_lost(guard, "refused", customer.now))
        customer.lease()
        customer.wait(1.0)
    assert customer.book.score(guard, UNIX_S + customer.now) < score


# --- the constraints, whatever the directory --------------------------------------------------------

few = st.frozensets(st.sampled_from(COUNTRIES), max_size=2)
candidates_lists = st.lists(
    st.builds(
        lambda number, exit_, country, price, operator, network, ipv4, members, draining, stake: relay(
            number,
            is_exit=exit_,
            country=country,
            price_wei_per_packet=price,
            operator=operator,
            addresses=(((f"10.{network}.0.1", 1) if ipv4 else (f"2001:db{network:x}::1", 1)),),
            members=tuple(member.to_bytes(2, "big") * 16 for member in members),
            is_draining=draining,
            stake_wei=stake,
        ),
        st.integers(1, 60),
        st.booleans(),
        st.sampled_from(("", *COUNTRIES)),
        st.integers(0, 500),
        st.sampled_from(("", "", "", "x", "y")),
        st.integers(1, 30),
        st.sampled_from((True, True, True, False)),
        st.lists(st.integers(1, 60), max_size=3),
        st.sampled_from((False, False, False, True)),
        st.integers(0, 10**20),
    ),
    max_size=30,
)
wishes = st.builds(
    Constraints,
    hops=st.integers(1, 4),
    banned=st.builds(Only, countries=few, operators=st.sampled_from((frozenset(), frozenset({"x"})))),
    exits=st.builds(Only, countries=few),
    guards=st.builds(Only, countries=few),
    max_price_wei_per_packet=st.one_of(st.none(), st.integers(0, 2500)),
    distinct_countries=st.booleans(),
    needs_ipv6=st.booleans(),
)


@settings(print_blob=True, deadline=None, max_examples=200)
@given(candidates_lists, wishes, st.integers(0, 2**32))
def test_the_rules_hold_in_every_directory(candidates, wish, seed):
    index = PathIndex(candidates)
    store, rng = GuardStore(), random.Random(seed).randbytes
    moment = Moment(index, BackOff(), rng, 0.0, UNIX_S)
    for _ in range(3):
        result = choose_path(wish, store.get(wish), moment)
        if isinstance(result, NoPath):
            assert result.sentence
            continue
        assert isinstance(result, Path)
        relays = [hop.candidate for hop in result.hops]
        assert len(relays) == len({r.node_id for r in relays}) == wish.hops
        assert violation(result, wish) is None
        assert relays[-1].is_exit
        assert all(r.is_relay for r in relays[:-1])
        assert not any(r.is_draining for r in relays)
        assert not any(wish.banned.touches(r) for r in relays)
        assert wish.exits.admits(relays[-1])
        assert wish.hops == 1 or wish.guards.admits(relays[0])
        operators = [r.operator for r in relays if r.operator]
        assert len(operators) == len(set(operators))
        networks = [
            r.addresses[0][0].split(".")[1] if "." in r.addresses[0][0] else r.addresses[0][0] for r in relays
        ]
        assert len(networks) == len(set(networks))
        versions = ["." in r.addresses[0][0] for r in relays]
        assert len(set(versions)) == 1, "neighbours reach one another"
        for one in relays:
            for other in relays:
                mutual = other.node_id in one.members and one.node_id in other.members
                assert one is other or not mutual
        price = price_chain([r.price_wei_per_packet for r in relays])[0][0]
        assert price == result.price_wei_per_packet
        assert wish.max_price_wei_per_packet is None or price <= wish.max_price_wei_per_packet
        if wish.distinct_countries:
            countries = [r.country for r in relays if r.country]
            assert len(countries) == len(set(countries))


@settings(print_blob=True, deadline=None, max_examples=100)
@given(candidates_lists, wishes, st.integers(0, 2**32))
def test_where_a_path_exists_one_is_found(candidates, wish, seed):
    """Up to two relays, where all pairs can be tried; more may need more luck than six attempts have."""
    wish = replace(wish, hops=min(2, wish.hops))
    index = PathIndex(candidates)
    moment = Moment(index, BackOff(), random.Random(seed).randbytes, 0.0, UNIX_S)
    result = choose_path(wish, GuardStore().get(wish), moment)
    everyone = [entry.candidate for entry in index.by_id.values()]
    exits = [
        c
        for c in everyone
        if c.is_exit and not c.is_draining and wish.exits.admits(c) and not wish.banned.touches(c)
    ]
    firsts = [
        c for c in everyone if not c.is_draining and wish.guards.admits(c) and not wish.banned.touches(c)
    ]

    def goes(*relays):
        entries = [index.by_id[r.node_id] for r in relays]
        if wish.max_price_wei_per_packet is not None:
            asked = [r.price_wei_per_packet for r in relays]
            if price_chain(asked)[0][0] > wish.max_price_wei_per_packet:
                return False
        if len(relays) == 1:
            return True
        if wish.distinct_countries and relays[0].country and relays[0].country == relays[1].country:
            return False
        return not entries[0].is_related(entries[1]) and bool(entries[0].families & entries[1].families)

    exists = any(goes(e) for e in exits) if wish.hops == 1 else any(goes(g, e) for g in firsts for e in exits)
    assert isinstance(result, Path) == exists or (not exists and isinstance(result, NoPath)), result


def test_waiting_flows_are_told_the_rule():
    customer = Customer(market(), Constraints(hops=3, max_price_wei_per_packet=5))
    outcome = customer.lease()
    assert not isinstance(outcome, Leased | Waiting)
    assert outcome.trouble is Trouble.NO_PATH
    assert "asks at most 5 wei per packet" in outcome.sentence
