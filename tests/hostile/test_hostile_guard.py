"""A guard that builds circuits well and then breaks them is passed over for a while, and nobody else is."""

import random
from collections.abc import Callable

import pytest

from circuits.backoff import BackOff
from circuits.candidates import Candidate, Constraints, Only
from circuits.guards import GuardStore
from circuits.path import Path
from circuits.path_index import PathIndex
from circuits.pool.blame import GUARD_REST_S
from circuits.pool.machine import Pool
from circuits.pool.types import (
    Action,
    CircuitDead,
    CloseCircuit,
    GuardPassedOver,
    Leased,
    Need,
    SendEcho,
    StartBuild,
)


class AllPorts:
    def allows(self, port: int) -> bool:
        return True


def relay(number: int, *, is_exit: bool = False) -> Candidate:
    return Candidate(
        bytes([number]) * 32,
        bytes(32),
        ((f"10.{number}.0.1", 1),),
        True,
        is_exit=is_exit,
        ports=AllPorts(),
        has_ipv6=True,
    )


NETWORK = [*(relay(n) for n in range(1, 9)), *(relay(n, is_exit=True) for n in (20, 21, 22))]


class Customer:
    """A pool whose builds all succeed at once, and which breaks or silences circuits as told."""

    def __init__(self, seed: int, guards: tuple[int, ...] = (), hops: int = 3) -> None:
        only = Only(nodes=frozenset(bytes([n]) * 32 for n in guards))
        self.now = 1000.0
        self.paths: dict[int, Path] = {}
        self.passed_over: list[bytes] = []
        self.silent: Callable[[Path], bool] = lambda _: False
        self.died = 0
        self.backoff = BackOff()
        self.pool = Pool(
            PathIndex(NETWORK),
            Constraints(hops=hops, guards=only),
            GuardStore(),
            random.Random(seed).randbytes,
            backoff=self.backoff,
        )
        self.do(self.pool.handle_timeout(self.now))

    def do(self, actions: list[Action]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, StartBuild):
                self.paths[action.circuit_id] = action.path
                waiting += self.pool.handle_built(action.circuit_id, True, self.now)
            elif isinstance(action, SendEcho) and not self.silent(self.paths[action.circuit_id]):
                waiting += self.pool.handle_echo(action.circuit_id, action.token, self.now)
            elif isinstance(action, CloseCircuit):
                self.paths.pop(action.circuit_id, None)
            elif isinstance(action, CircuitDead):
                self.died += 1
            elif isinstance(action, GuardPassedOver):
                assert "guard" in action.sentence
                self.passed_over.append(action.node_id)

    def use_and_break(self, breaks: Callable[[Path], bool]) -> Path:
        """One flow: it gets a circuit, which breaks or serves."""
        outcome, actions = self.pool.lease(Need(), self.now)
        self.do(actions)
        while not isinstance(outcome, Leased):
            self.pass_time(0.5)
            outcome, actions = self.pool.lease(Need(), self.now)
            self.do(actions)
        path = self.paths[outcome.circuit_id]
        if breaks(path):
            self.do(self.pool.handle_closed(outcome.circuit_id, "packets were changed", self.now))
        else:
            self.do(self.pool.release(outcome.circuit_id, self.now))
        self.pass_time(1.0)
        return path

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.pool.handle_timeout(self.now))


@pytest.mark.parametrize("seed", range(8))
def test_a_guard_that_breaks_every_circuit_is_passed_over_and_comes_back_later(seed: int) -> None:
    customer = Customer(seed)
    bad = customer.use_and_break(lambda _: False).node_ids[0]
    for _ in range(20):
        customer.use_and_break(lambda path: path.node_ids[0] == bad)
        if customer.passed_over:
            break
    assert customer.passed_over == [bad]
    later = [customer.use_and_break(lambda path: path.node_ids[0] == bad) for _ in range(20)]
    assert all(path.node_ids[0] != bad for path in later)
    customer.pass_time(GUARD_REST_S)
    customer.do(customer.pool.renew(customer.now))
    customer.pass_time(1.0)
    assert customer.use_and_break(lambda _: False).node_ids[0] == bad, "guards are kept for months"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("position", [1, 2])
def test_one_relay_further_on_moves_nobody_off_the_guard(seed: int, position: int) -> None:
    customer = Customer(seed)
    first = customer.use_and_break(lambda _: False)
    bad = first.node_ids[position]
    for _ in range(150):
        customer.use_and_break(lambda path: bad in path.node_ids)
    assert customer.passed_over == []


def test_the_only_guard_there_may_be_goes_on_being_used() -> None:
    customer = Customer(1, guards=(3,))
    for _ in range(60):
        path = customer.use_and_break(lambda _: True)
        assert path.node_ids[0] == bytes([3]) * 32
    assert customer.passed_over


@pytest.mark.parametrize("heard", [True, False])
def test_silence_is_the_guards_fault_only_while_its_link_is_heard(heard: bool) -> None:
    customer = Customer(2)
    bad = customer.use_and_break(lambda _: False).node_ids[0]
    customer.silent = lambda path: path.node_ids[0] == bad
    leased: set[int] = set()
    for _ in range(400):
        outcome, actions = customer.pool.lease(Need(), customer.now)
        customer.do(actions)
        if isinstance(outcome, Leased):
            leased.add(outcome.circuit_id)
            customer.pool.note_traffic(outcome.circuit_id, customer.now, received=False)
        if heard:
            customer.pool.note_guard_heard(bad, customer.now)
        customer.pass_time(0.3)
        if customer.passed_over:
            break
    assert customer.died >= 6
    assert customer.passed_over == ([bad] if heard else [])


def test_paths_of_one_hop_have_no_guard_to_blame() -> None:
    customer = Customer(3, hops=1)
    for _ in range(30):
        customer.use_and_break(lambda _: True)
    assert customer.passed_over == []
