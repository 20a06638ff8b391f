"""A guard that goes silent: others are used at once, and its circuits are back when it answers."""

import random

from circuits.candidates import Candidate, Constraints
from circuits.guards import GuardStore
from circuits.path_index import PathIndex
from circuits.pool.machine import Pool
from circuits.pool.types import CloseCircuit, Leased, Need, StartBuild, State, Waiting

NOW = 1000.0
WHY = "the guard does not answer"


class AllPorts:
    def allows(self, port):
        return True


def relay(number):
    address = ((f"10.{number}.0.1", 1),)
    return Candidate(
        bytes([number]) * 32, bytes(32), address, True, is_exit=number > 8, ports=AllPorts(), has_ipv6=True
    )


def built_pool(circuits=2):
    """A pool with ready circuits over one guard, and nothing being built."""
    index = PathIndex([relay(number) for number in (*range(1, 9), 20, 21)])
    pool = Pool(index, Constraints(hops=3), GuardStore(), random.Random(5).randbytes, unix_offset_s=1.8e9)
    paths = {}
    actions = pool.handle_timeout(NOW)
    while starts := [action for action in actions if isinstance(action, StartBuild)]:
        actions = []
        for start in starts:
            paths[start.circuit_id] = start.path
            actions += pool.handle_built(start.circuit_id, True, NOW)
    assert len(paths) == circuits
    return pool, paths


def starts_of(actions):
    return [action for action in actions if isinstance(action, StartBuild)]


def test_new_flows_leave_a_silent_guard_and_old_ones_stay():
    pool, paths = built_pool()
    (guard,) = {path.node_ids[0] for path in paths.values()}
    lease, _ = pool.lease(Need(port=80), NOW)
    assert isinstance(lease, Leased)
    actions = pool.handle_guard_silent(guard, WHY, NOW + 3)
    assert not {action.circuit_id for action in actions if isinstance(action, CloseCircuit)} & paths.keys()
    begun = starts_of(actions)
    assert begun
    assert all(start.path.node_ids[0] != guard for start in begun)
    assert isinstance(pool.lease(Need(port=80), NOW + 3)[0], Waiting)
    pool.handle_built(begun[0].circuit_id, True, NOW + 3.1)
    assert pool.lease(Need(port=80), NOW + 3.1)[0] == Leased(begun[0].circuit_id)
    rows = {row.circuit_id: row for row in pool.status(NOW + 3.1)}
    assert rows[lease.circuit_id].state is State.READY
    assert rows[lease.circuit_id].leases == 1
    assert rows[lease.circuit_id].suspect


def test_builds_over_a_silent_guard_are_given_up_and_none_is_begun():
    pool, paths = built_pool()
    (guard,) = {path.node_ids[0] for path in paths.values()}
    _, actions = pool.lease(Need(b"alone", 80), NOW)
    _, more = pool.lease(Need(b"other", 80), NOW)
    stuck = starts_of([*actions, *more])
    assert {start.path.node_ids[0] for start in stuck} == {guard}
    actions = pool.handle_guard_silent(guard, WHY, NOW + 3)
    closed = {action.circuit_id for action in actions if isinstance(action, CloseCircuit)}
    assert closed == {start.circuit_id for start in stuck}
    for second in range(4, 9):
        actions += pool.handle_guard_silent(guard, WHY, NOW + second)
        actions += pool.handle_timeout(NOW + second)
    assert all(start.path.node_ids[0] != guard for start in starts_of(actions))


def test_a_guard_that_answers_again_has_its_circuits_back():
    pool, paths = built_pool()
    (guard,) = {path.node_ids[0] for path in paths.values()}
    pool.handle_guard_silent(guard, WHY, NOW + 3)
    assert isinstance(pool.lease(Need(port=80), NOW + 3)[0], Waiting)
    pool.handle_guard_heard(guard)
    lease, _ = pool.lease(Need(port=80), NOW + 3.5)
    assert isinstance(lease, Leased)
    assert paths[lease.circuit_id].node_ids[0] == guard
