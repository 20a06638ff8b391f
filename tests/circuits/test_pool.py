"""Dialogues with the pool: a small network simulated by a queue and a clock that jumps to the next event."""

import heapq
import random
from collections import Counter

import pytest
from candidate_relays import UNIX_S, Serves
from candidate_relays import relay as made_up
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from circuits.candidates import Constraints, Only
from circuits.guards import GuardStore
from circuits.path_index import PathIndex
from circuits.pool.machine import Pool
from circuits.pool.types import (
    CircuitDead,
    CircuitReady,
    CloseCircuit,
    GuardsChanged,
    Leased,
    Need,
    NeedRefused,
    PoolSettings,
    Refused,
    SendEcho,
    StartBuild,
    State,
    Trouble,
    Waiting,
)


def relay(number, **changes):
    return made_up(number, **{"node_id": bytes([number]) * 32, "has_ipv6": True, **changes})


def network(*extra):
    return [*(relay(i) for i in range(1, 9)), relay(20, is_exit=True), relay(21, is_exit=True), *extra]


class Sim:
    """A network in which builds take `build_s`, echoes `rtt_s`, and relays in `dead` swallow everything."""

    def __init__(self, candidates=None, *, constraints=None, seed=1, hops=3, **changes):
        self.now = 1000.0
        self.build_s, self.rtt_s, self.build_timeout_s = 0.05, 0.05, 8.0
        self.dead, self.unreachable_guards = set(), set()
        self.queue, self.order = [], 0
        self.building, self.open, self.closed = {}, {}, []
        self.log = []
        self.echoes = Counter()
        self.pool = Pool(
            PathIndex(network() if candidates is None else candidates),
            constraints or Constraints(hops=hops),
            GuardStore(),
            random.Random(seed).randbytes,
            settings=PoolSettings(**changes),
            unix_offset_s=UNIX_S - self.now,
        )
        self.do(self.pool.handle_timeout(self.now))

    def at(self, delay_s, call):
        self.order += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.order, call))

    def do(self, actions):
        for action in actions:
            self.log.append((self.now, action))
            if isinstance(action, StartBuild):
                assert action.circuit_id not in self.building | self.open.keys()
                self.building[action.circuit_id] = action.path
                self.start_build(action.circuit_id, action.path)
            elif isinstance(action, SendEcho):
                assert action.circuit_id in self.open, "echo on a circuit that is not built"
                self.echoes[action.circuit_id] += 1
                if not self.dead & set(self.open[action.circuit_id].node_ids):
                    self.at(self.rtt_s, lambda a=action: self.echo(a))
            elif isinstance(action, CloseCircuit):
                assert (action.circuit_id in self.building) != (action.circuit_id in self.open)
                self.building.pop(action.circuit_id, None)
                self.open.pop(action.circuit_id, None)
                self.closed.append(action)
            elif isinstance(action, CircuitDead):
                assert action.circuit_id in self.open

    def start_build(self, circuit_id, path):
        guard = path.node_ids[0]
        if guard in self.unreachable_guards:
            self.at(0.02, lambda: self.do(self.pool.handle_guard_lost(guard, "no route", self.now)))
        elif self.dead & set(path.node_ids):
            self.at(self.build_timeout_s, lambda: self.fail(circuit_id))
        else:
            self.at(self.build_s, lambda: self.built(circuit_id))

    def built(self, circuit_id):
        if circuit_id in self.building:
            self.open[circuit_id] = self.building.pop(circuit_id)
            self.do(self.pool.handle_built(circuit_id, self.open[circuit_id].exit.has_ipv6, self.now))

    def fail(self, circuit_id, suspects=None):
        path = self.building.pop(circuit_id, None)
        if path is not None:
            suspects = tuple(range(len(path.hops))) if suspects is None else suspects
            self.do(self.pool.handle_build_failed(circuit_id, suspects, "no answer", self.now))

    def echo(self, action):
        path = self.open.get(action.circuit_id)
        if path is not None and not self.dead & set(path.node_ids):
            self.do(self.pool.handle_echo(action.circuit_id, action.token, self.now))

    def run(self, seconds):
        until = self.now + seconds
        for _ in range(200_000):
            due = self.pool.next_timeout(self.now)
            event_at = self.queue[0][0] if self.queue else float("inf")
            next_at = min(event_at, due if due is not None else float("inf"))
            if next_at > until:
                break
            self.now = max(self.now, next_at)
            if event_at <= self.now:
                heapq.heappop(self.queue)[2]()
            else:
                self.do(self.pool.handle_timeout(self.now))
        else:
            raise AssertionError("the pool does not come to rest")
        self.now = until

    def lease(self, isolation=b"", port=443, ipv6=False):
        result, actions = self.pool.lease(Need(isolation, port, ipv6), self.now)
        self.do(actions)
        return result

    def lease_within(self, seconds, **need):
        """Ask as a driver does: again after each CircuitReady.

        Returns the circuit id and the time it took.
        """
        start = self.now
        while self.now <= start + seconds:
            result = self.lease(**need)
            if isinstance(result, Leased):
                return result.circuit_id, self.now - start
            assert isinstance(result, Waiting), result
            self.run(0.05)
        raise AssertionError(f"no circuit within {seconds} s: {result}")

    def release(self, circuit_id):
        self.do(self.pool.release(circuit_id, self.now))

    def traffic(self, circuit_id, seconds):
        """Data flows in both directions, as long as the circuit lives."""
        end = self.now + seconds
        while self.now < end:
            alive = circuit_id in self.open and not self.dead & set(self.open[circuit_id].node_ids)
            self.pool.note_traffic(circuit_id, self.now, received=alive)
            self.run(0.2)

    def states(self):
        return Counter(status.state for status in self.pool.status(self.now))

    def actions(self, kind, since=0.0):
        return [action for at, action in self.log if isinstance(action, kind) and at >= since]


# --- ready circuits ----------------------------------------------------------------------------------


def test_spares_are_built_in_advance():
    sim = Sim(spares=3)
    sim.run(1)
    assert sim.states() == {State.READY: 3}
    assert len(sim.actions(CircuitReady)) == 3
    assert sim.actions(GuardsChanged)


def test_flow_gets_a_ready_circuit_at_once_and_a_spare_takes_its_place():
    sim = Sim()
    sim.run(1)
    lease = sim.lease()
    assert isinstance(lease, Leased)
    sim.run(1)
    assert sim.states() == {State.READY: 3}
    assert sorted(status.leases for status in sim.pool.status(sim.now)) == [0, 0, 1]


def test_flows_that_may_share_do_and_others_do_not():
    sim = Sim()
    sim.run(1)
    mine = {sim.lease(b"a").circuit_id for _ in range(5)}
    assert len(mine) == 1
    other, _ = sim.lease_within(1, isolation=b"b")
    nobody, _ = sim.lease_within(1)
    assert len(mine | {other, nobody}) == 3
    assert sim.lease(b"b").circuit_id == other


def test_nothing_before_the_first_circuit():
    sim = Sim()
    lease = sim.lease()
    assert isinstance(lease, Waiting)
    assert (lease.trouble, lease.sentence) == (Trouble.BUILDING, "a circuit is being built")
    assert sim.pool.explain(sim.now) == "a circuit is being built"
    assert sim.lease_within(1)[1] <= 0.1
    assert sim.pool.explain(sim.now) is None


def test_limits_on_builds_and_circuits():
    sim = Sim(spares=20, max_builds=2, max_circuits=5)
    assert sim.states() == {State.BUILDING: 2}
    sim.run(2)
    assert sim.states() == {State.READY: 5}
    for i in range(5):
        sim.lease_within(1, isolation=bytes([i]))
    refused = sim.lease(b"one more")
    assert refused == Refused(Trouble.OVERLOADED, "all circuits are in use")
    sim.release(sim.lease(b"\x00").circuit_id)
    sim.release(sim.lease(b"\x00").circuit_id)
    assert isinstance(sim.lease(b"one more"), Refused)
    assert sim.pool.status(sim.now)[0].leases == 1
    sim.release(sim.pool.status(sim.now)[0].circuit_id)
    sim.lease_within(1, isolation=b"one more")
    assert sim.closed[-1].sentence == "closed to make room"


def test_too_many_needs_are_refused():
    sim = Sim(max_demands=2)
    sim.dead |= {bytes([20]) * 32, bytes([21]) * 32}
    kinds = [type(sim.lease(port=port)) for port in (1, 2, 3)]
    assert kinds == [Waiting, Waiting, Refused]
    sim.pool.withdraw(Need(b"", 1, False))
    assert isinstance(sim.lease(port=3), Waiting)


# --- needs -------------------------------------------------------------------------------------------


def test_port_that_only_some_exits_allow():
    sim = Sim(
        [relay(i) for i in range(1, 9)]
        + [
            relay(20, is_exit=True, ports=Serves(80, 443)),
            relay(21, is_exit=True, ports=Serves(22)),
        ]
    )
    sim.run(1)
    assert {c.exit.node_id[0] for c in sim.open.values()} == {20}
    ssh, _ = sim.lease_within(1, port=22)
    assert sim.open[ssh].exit.node_id[0] == 21
    web = sim.lease(port=443).circuit_id
    assert sim.open[web].exit.node_id[0] == 20


def test_port_that_no_exit_allows():
    sim = Sim([*(relay(i) for i in range(1, 9)), relay(20, is_exit=True, ports=Serves(80, 443))])
    sim.run(1)
    assert sim.lease(port=25) == Refused(Trouble.NOT_ALLOWED, "no exit in the directory allows port 25")
    assert isinstance(sim.lease(port=443), Leased)
    assert sim.pool.explain(sim.now) is None


def test_recent_ports_are_expected_again():
    sim = Sim(
        [
            *(relay(i) for i in range(1, 9)),
            relay(20, is_exit=True, ports=Serves(80, 443)),
            relay(21, is_exit=True, ports=Serves(80, 443, 22)),
        ]
    )
    sim.lease_within(1, port=22)
    sim.run(2)
    for i in range(3):
        sim.release(sim.lease_within(1, isolation=bytes([i]))[0])
    sim.run(2)
    spares = [s for s in sim.pool.status(sim.now) if s.used_s is None]
    assert spares[-1].relays[-1].node_id[0] == 21


def test_ipv6():
    sim = Sim([*(relay(i) for i in range(1, 9)), relay(20, is_exit=True, has_ipv6=False)])
    sim.run(1)
    assert sim.lease(ipv6=True) == Refused(Trouble.NO_IPV6, "no exit in the directory carries IPv6")
    sim = Sim()
    six, _ = sim.lease_within(1, ipv6=True)
    assert sim.open[six].exit.has_ipv6


def test_exit_that_gives_no_ipv6_although_it_promised():
    sim = Sim(spares=1)
    (circuit_id,) = sim.building
    sim.open[circuit_id] = sim.building.pop(circuit_id)
    sim.do(sim.pool.handle_built(circuit_id, False, sim.now))
    assert isinstance(sim.lease(ipv6=True), Waiting)
    assert isinstance(sim.lease(), Leased)


def test_no_path_at_all_says_why():
    sim = Sim([relay(1), relay(2)])
    assert sim.pool.explain(sim.now) == "no relay in the directory is an exit"
    assert sim.lease() == Refused(Trouble.NO_PATH, "no relay in the directory is an exit")
    sim.do(sim.pool.set_index(PathIndex(network()), sim.now))
    sim.lease_within(1)
    sim = Sim(constraints=Constraints(exits=Only(countries=frozenset({"DE"}))))
    assert sim.lease().sentence == "no exit in the directory is in DE (there are: unknown)"


# --- death -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [1, 2])
def test_relay_killed_in_mid_download_costs_new_flows_at_most_three_seconds(seed, place):
    sim = Sim(seed=seed)
    sim.run(5)
    circuit_id = sim.lease().circuit_id
    sim.traffic(circuit_id, 3)
    killed_at = sim.now
    sim.dead.add(sim.open[circuit_id].node_ids[place])
    while sim.now < killed_at + 3:
        sim.pool.note_traffic(circuit_id, sim.now, received=False)
        sim.run(0.2)
    fresh, waited_s = sim.lease_within(3)
    assert fresh != circuit_id
    if waited_s == 0:
        # A spare that goes through the dead relay too may be handed out; it is found out in turn.
        sim.run(3)
        fresh, waited_s = sim.lease_within(3)
    assert not sim.dead & set(sim.open[fresh].node_ids)
    sim.run(6)
    (dead,) = [d for d in sim.actions(CircuitDead) if d.circuit_id == circuit_id]
    assert dead.leases == 1
    assert "silent" in dead.sentence
    sim.do(sim.pool.release(circuit_id, sim.now))


def test_silent_spare_is_found_and_replaced():
    sim = Sim()
    sim.run(10)
    victims = dict(sim.open)
    sim.dead.add(next(iter(victims.values())).node_ids[1])
    sim.run(60)
    assert sim.states()[State.READY] >= 2
    assert all(not sim.dead & set(path.node_ids) for path in sim.open.values())
    assert any(dead.leases == 0 for dead in sim.actions(CircuitDead))


def test_closed_by_the_network():
    sim = Sim()
    sim.run(1)
    circuit_id = sim.lease().circuit_id
    path = sim.open[circuit_id]
    sim.do(sim.pool.handle_closed(circuit_id, "a link of the circuit was lost", sim.now))
    assert sim.actions(CircuitDead) == [CircuitDead(circuit_id, 1, "a link of the circuit was lost")]
    assert isinstance(sim.lease(), Leased)
    sim.run(0.5)
    newest = sim.pool.status(sim.now)[-1]
    assert not set(path.node_ids[1:]) & {relay.node_id for relay in newest.relays}


def test_lost_guard_takes_its_circuits_and_another_guard_is_used():
    sim = Sim()
    sim.run(1)
    sim.lease()
    sim.run(1)
    guard = next(iter(sim.open.values())).node_ids[0]
    sim.unreachable_guards.add(guard)
    before = len(sim.open)
    sim.do(sim.pool.handle_guard_lost(guard, "the link to the guard was lost", sim.now))
    assert len(sim.actions(CircuitDead)) == before
    circuit_id, waited_s = sim.lease_within(2)
    assert waited_s < 0.5
    assert sim.open[circuit_id].node_ids[0] != guard
    sim.unreachable_guards.clear()
    sim.run(3700)
    assert sim.open[sim.lease_within(1)[0]].node_ids[0] == guard


def test_no_uplink_is_told_and_overcome():
    sim = Sim()
    sim.run(1)
    sim.unreachable_guards |= {bytes([i]) * 32 for i in range(1, 30)}
    guard = next(iter(sim.open.values())).node_ids[0]
    sim.do(sim.pool.handle_guard_lost(guard, "the link to the guard was lost", sim.now))
    sim.run(2)
    lease = sim.lease()
    assert isinstance(lease, Waiting)
    assert lease.trouble is Trouble.OFFLINE
    assert "no guard can be reached (3 tried)" in lease.sentence
    starts = len(sim.actions(StartBuild))
    sim.run(60)
    assert len(sim.actions(StartBuild)) - starts < 40
    sim.unreachable_guards.clear()
    assert sim.lease_within(61)[1] < 61
    assert isinstance(sim.lease(), Leased)


def test_failed_builds_are_repeated_ever_more_slowly_and_told():
    sim = Sim()
    for exit_number in (20, 21):
        sim.dead.add(bytes([exit_number]) * 32)
    sim.build_timeout_s = 0.01
    sim.run(300)
    starts = sim.actions(StartBuild)
    assert 10 < len(starts) < 60
    assert sim.pool.explain(sim.now).startswith("no circuit could be built: no answer; next attempt in")
    sim.dead.clear()
    assert sim.lease_within(6)[1] <= 6


def test_silent_build_is_given_up():
    sim = Sim(build_timeout_s=2.0)
    sim.dead |= {bytes([20]) * 32, bytes([21]) * 32}
    sim.queue.clear()
    sim.run(2.5)
    assert sim.closed
    assert {closed.sentence for closed in sim.closed} == {"not built in time"}


def test_waiting_flow_gets_a_second_attempt():
    sim = Sim(spares=0, hedge_s=1.0)
    sim.build_s = 100.0
    sim.lease()
    assert len(sim.building) == 1
    sim.run(1.1)
    assert len(sim.building) == 2
    sim.run(10)
    assert len(sim.building) == 3


# --- measuring ---------------------------------------------------------------------------------------


def test_idle_pool_does_little():
    sim = Sim()
    sim.run(10)
    before, timeouts = sum(sim.echoes.values()), 0
    end = sim.now + 600
    while sim.now < end:
        due = sim.pool.next_timeout(sim.now)
        assert due is not None
        timeouts += 1
        sim.run(max(0.001, due - sim.now))
    assert sum(sim.echoes.values()) - before <= 2 * 600 / 30 + 4
    assert timeouts <= 120


def test_round_trip_is_measured():
    sim = Sim()
    sim.rtt_s = 0.12
    sim.run(200)
    for status in sim.pool.status(sim.now):
        assert status.rtt_s == pytest.approx(0.12)
        assert status.loss == 0.0


def test_echoes_follow_use():
    sim = Sim()
    sim.run(5)
    circuit_id = sim.lease().circuit_id
    before = sim.echoes[circuit_id]
    sim.traffic(circuit_id, 30)
    busy = sim.echoes[circuit_id] - before
    assert 5 <= busy <= 12
    sim.run(15)
    before = sim.echoes[circuit_id]
    sim.run(150)
    assert 8 <= sim.echoes[circuit_id] - before <= 12


def test_circuit_that_becomes_slow_gets_no_new_flows():
    sim = Sim()
    sim.run(40)
    slow = sim.lease().circuit_id
    original = sim.echo
    sim.echo = lambda action: (
        sim.at(2.0, lambda: original(action)) if action.circuit_id == slow else original(action)
    )
    sim.traffic(slow, 40)
    fresh = sim.lease().circuit_id
    assert fresh != slow
    assert slow in sim.open
    assert not [d for d in sim.actions(CircuitDead) if d.circuit_id == slow]


def test_process_that_stalls_does_not_kill_its_circuits():
    sim = Sim()
    sim.run(10)
    circuit_id = sim.lease().circuit_id
    sim.traffic(circuit_id, 1)
    sim.now += 30
    sim.run(10)
    assert not sim.actions(CircuitDead)
    assert circuit_id in sim.open


def test_foreign_and_repeated_echoes_are_ignored():
    sim = Sim()
    sim.run(1)
    sim.do(sim.pool.handle_echo(1, b"whatever", sim.now))
    sim.do(sim.pool.handle_echo(999, b"whatever", sim.now))
    token = sim.actions(SendEcho)[0].token
    rtt_s = sim.pool.status(sim.now)[0].rtt_s
    sim.do(sim.pool.handle_echo(1, token, sim.now))
    assert sim.pool.status(sim.now)[0].rtt_s == rtt_s


# --- rotation ----------------------------------------------------------------------------------------


def test_rotation_moves_new_flows_and_lets_old_ones_finish():
    sim = Sim()
    sim.run(1)
    old = sim.lease().circuit_id
    sim.run(530)
    assert sim.lease().circuit_id == old
    sim.run(75)
    fresh = sim.lease().circuit_id
    assert fresh != old
    assert sim.open[old]
    assert sim.states()[State.DRAINING] == 1
    sim.release(old)
    assert old in sim.open
    sim.release(old)
    assert old not in sim.open
    assert sim.closed[-1] == CloseCircuit(old, "rotated out")


def test_renewal_moves_new_flows_at_once_and_lets_old_ones_finish():
    sim = Sim()
    sim.run(1)
    before = set(sim.open)
    old = sim.lease().circuit_id
    sim.do(sim.pool.renew(sim.now))
    fresh, waited_s = sim.lease_within(2)
    assert fresh not in before
    assert waited_s < 1
    assert set(sim.open) & before == {old}
    sim.release(old)
    assert old not in sim.open
    sim.do(sim.pool.close())
    assert sim.pool.renew(sim.now) == []


def test_drain_has_an_end():
    sim = Sim(drain_s=100.0)
    sim.run(1)
    old = sim.lease().circuit_id
    sim.run(800)
    assert old not in sim.open
    assert CircuitDead(old, 1, "the circuit reached its greatest age") in sim.actions(CircuitDead)


def test_unused_circuits_are_renewed():
    sim = Sim(spare_life_s=200.0)
    sim.run(1)
    first = set(sim.open)
    sim.run(201)
    assert not first & set(sim.open)
    assert sim.states() == {State.READY: 2}
    assert not sim.actions(CircuitDead)


def test_spares_seldom_share_their_exit():
    shared = 0
    for seed in range(30):
        sim = Sim(seed=seed)
        sim.run(1)
        shared += len({path.exit.node_id for path in sim.open.values()}) == 1
    assert shared <= 6


def test_close():
    sim = Sim()
    sim.run(1)
    sim.do(sim.pool.close())
    assert not sim.open
    assert sim.lease() == Refused(Trouble.CLOSED, "hopfare is shutting down")
    assert sim.pool.handle_timeout(sim.now) == []
    assert sim.pool.next_timeout(sim.now) is None


def test_one_hop_and_four():
    for hops in (1, 2, 4):
        sim = Sim(hops=hops)
        circuit_id, _ = sim.lease_within(1)
        assert len(sim.open[circuit_id].hops) == hops


def test_late_and_foreign_reports_are_harmless():
    sim = Sim()
    sim.run(1)
    for circuit_id in (1, 999):
        sim.do(sim.pool.handle_built(circuit_id, True, sim.now))
        sim.do(sim.pool.handle_build_failed(circuit_id, (0,), "late", sim.now))
        sim.do(sim.pool.release(circuit_id, sim.now))
    sim.do(sim.pool.handle_closed(999, "late", sim.now))
    sim.pool.note_traffic(999, sim.now, received=True)
    assert sim.states() == {State.READY: 2}


def test_needs_do_not_show_in_repr():
    assert "443" not in repr(Need(b"secret", 443))
    assert "secret" not in repr(NeedRefused(Need(b"secret", 443), Trouble.FAILING, "x"))


# --- anything goes -----------------------------------------------------------------------------------


class Weather(RuleBasedStateMachine):
    """Flows come and go while relays die and recover: the pool comes to rest, stays in bounds, never
    mixes isolations.
    """

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed):
        self.sim = Sim(seed=seed, max_circuits=8, max_builds=2, drain_s=900.0)
        self.leases = []
        self.owner = {}

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 7.0, 40.0, 400.0]))
    def time_passes(self, seconds):
        self.sim.run(seconds)

    @rule(isolation=st.sampled_from([b"", b"a", b"b"]), port=st.sampled_from([443, 22, 0]))
    def flow_starts(self, isolation, port):
        result = self.sim.lease(isolation, port)
        if isinstance(result, Leased):
            assert result.circuit_id in self.sim.open
            assert self.owner.setdefault(result.circuit_id, isolation) == isolation
            self.leases.append(result.circuit_id)
        else:
            assert result.sentence

    @rule()
    def flow_ends(self):
        if self.leases:
            self.sim.release(self.leases.pop())

    @rule(number=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 20, 21]))
    def relay_dies(self, number):
        self.sim.dead.add(bytes([number]) * 32)

    @rule(number=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]))
    def guard_vanishes(self, number):
        self.sim.unreachable_guards.add(bytes([number]) * 32)
        self.sim.do(self.sim.pool.handle_guard_lost(bytes([number]) * 32, "gone", self.sim.now))

    @rule()
    def all_recover(self):
        self.sim.dead.clear()
        self.sim.unreachable_guards.clear()

    @rule()
    def network_closes_one(self):
        if self.sim.open:
            circuit_id = next(iter(self.sim.open))
            self.sim.do(self.sim.pool.handle_closed(circuit_id, "closed", self.sim.now))

    @invariant()
    def in_bounds(self):
        if not hasattr(self, "sim"):
            return
        sim = self.sim
        assert len(sim.building) + len(sim.open) <= 8
        assert len(sim.building) <= 2
        ids = {status.circuit_id for status in sim.pool.status(sim.now)}
        assert ids == sim.building.keys() | sim.open.keys()

    def teardown(self):
        if hasattr(self, "sim"):
            self.all_recover()
            self.sim.run(1000)
            for circuit_id in self.leases:
                self.sim.release(circuit_id)
            assert isinstance(self.sim.lease(b"at last"), Leased)


Weather.TestCase.settings = settings(max_examples=40, stateful_step_count=30, print_blob=True, deadline=None)
TestWeather = Weather.TestCase
