"""Relays further on that break circuits together to move a customer from guard to guard: how far they get."""

import random
from collections.abc import Callable

import pytest

from circuits.backoff import BackOff
from circuits.candidates import Candidate, Constraints
from circuits.guards import GuardStore
from circuits.path import Path
from circuits.path_index import PathIndex
from circuits.pool.blame import DAY_S, GUARD_REST_S, RESTS_A_DAY
from circuits.pool.machine import Pool
from circuits.pool.types import (
    Action,
    CircuitDead,
    CloseCircuit,
    GuardPassedOver,
    GuardTakenBack,
    Leased,
    Need,
    SendEcho,
    StartBuild,
)

UNIX_S = 1_800_000_000.0


class AllPorts:
    def allows(self, port: int) -> bool:
        return True


def relay(number: int, *, is_exit: bool = False) -> Candidate:
    address = ((f"10.{number}.0.1", 1),)
    return Candidate(
        bytes([number]) * 32,
        bytes(32),
        address,
        not is_exit,
        is_exit=is_exit,
        ports=AllPorts(),
        has_ipv6=True,
    )


NETWORK = [*(relay(n) for n in range(1, 21)), *(relay(n, is_exit=True) for n in range(40, 46))]


class Customer:
    """A pool whose builds succeed at once; every flow's circuit may be broken. Counts guards' use by time."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.paths: dict[int, Path] = {}
        self.moves: list[GuardPassedOver | GuardTakenBack] = []
        self.on_guard: dict[bytes, float] = {}
        self.store = GuardStore()
        self.pool = Pool(
            PathIndex(NETWORK),
            Constraints(),
            self.store,
            random.Random(seed).randbytes,
            backoff=BackOff(),
            unix_offset_s=UNIX_S,
        )
        self.do(self.pool.handle_timeout(self.now))

    def do(self, actions: list[Action]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, StartBuild):
                self.paths[action.circuit_id] = action.path
                waiting += self.pool.handle_built(action.circuit_id, True, self.now)
            elif isinstance(action, SendEcho):
                waiting += self.pool.handle_echo(action.circuit_id, action.token, self.now)
            elif isinstance(action, CloseCircuit):
                self.paths.pop(action.circuit_id, None)
            elif isinstance(action, GuardPassedOver | GuardTakenBack):
                self.moves.append(action)
            else:
                assert not isinstance(action, CircuitDead) or action.leases <= 1

    def live(self, seconds: float, breaks: Callable[[Path], bool], every_s: float = 20.0) -> None:
        """A flow every few seconds; those on circuits that `breaks` names break."""
        until = self.now + seconds
        while self.now < until:
            outcome, actions = self.pool.lease(Need(), self.now)
            self.do(actions)
            if isinstance(outcome, Leased):
                path = self.paths[outcome.circuit_id]
                guard = path.node_ids[0]
                self.on_guard[guard] = self.on_guard.get(guard, 0.0) + every_s
                if breaks(path):
                    self.do(self.pool.handle_closed(outcome.circuit_id, "changed", self.now))
                else:
                    self.do(self.pool.release(outcome.circuit_id, self.now))
                    # The next flow takes another circuit, as after a rotation.
                    self.do(self.pool.renew(self.now))
            self.now += every_s
            self.do(self.pool.handle_timeout(self.now))

    def primary(self) -> list[bytes]:
        return [kept.node_id for kept in self.store.get(Constraints()).guards[:3]]


@pytest.mark.parametrize("seed", [1])
def test_breaking_every_circuit_keeps_nobody_off_the_guard_for_long(seed: int) -> None:
    customer = Customer(seed)
    first, second, third = customer.primary()
    customer.live(DAY_S / 4, lambda _: True)
    assert customer.on_guard.get(third, 0.0) == 0.0, "never a third guard"
    assert customer.on_guard.get(second, 0.0) < 0.05 * DAY_S / 4
    passed = [move for move in customer.moves if isinstance(move, GuardPassedOver)]
    back = [move for move in customer.moves if isinstance(move, GuardTakenBack)]
    assert passed
    assert len(back) == len(passed), "each time it showed that it was not the guard"
    assert {move.node_id for move in customer.moves} == {first}
    assert len(customer.store.get(Constraints()).guards) == 3, "no new guard"


@pytest.mark.parametrize("seed", [1])
def test_breaking_only_over_the_first_guard_costs_an_hour_a_day_and_shows(seed: int) -> None:
    """Middles know the guard, so together they can break just its circuits: the best they can do."""
    customer = Customer(seed)
    first, second, third = customer.primary()
    customer.live(DAY_S, lambda path: path.node_ids[0] == first)
    passed = [move for move in customer.moves if isinstance(move, GuardPassedOver)]
    assert 1 <= len(passed) <= RESTS_A_DAY
    assert customer.on_guard.get(second, 0.0) <= RESTS_A_DAY * GUARD_REST_S + 120
    assert customer.on_guard.get(third, 0.0) == 0.0


@pytest.mark.parametrize("seed", [1])
def test_half_of_the_second_layer_moves_nobody_for_long(seed: int) -> None:
    customer = Customer(seed)
    customer.live(30.0, lambda _: False)
    _, second, third = customer.primary()
    bad = {kept.node_id for kept in customer.store.get(Constraints()).middles[:2]}
    customer.live(DAY_S / 4, lambda path: path.node_ids[1] in bad)
    assert customer.on_guard.get(second, 0.0) < 0.05 * DAY_S / 4
    assert customer.on_guard.get(third, 0.0) == 0.0


@pytest.mark.parametrize("seed", range(2))
def test_a_bad_guard_is_still_avoided_where_the_next_one_is_sound(seed: int) -> None:
    customer = Customer(seed)
    first, second, _ = customer.primary()
    customer.live(600.0, lambda path: path.node_ids[0] == first)
    assert customer.on_guard[second] > 0.5 * 600.0
    assert [move.node_id for move in customer.moves if isinstance(move, GuardPassedOver)] == [first]
    assert customer.pool.resting_guard(customer.now) == first
