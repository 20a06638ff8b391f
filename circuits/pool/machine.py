"""The pool's machine: inputs with `now` in, actions out.

Owns which circuits exist, which one a new flow gets, when to probe, rotate and close, and the sentence
that says why there is none. Does not own the building (`circuits.building.client`), the carrying, or the
clock. Fails closed: without a fitting circuit a flow waits or is refused. Every input returns the actions
to carry out, in order; `handle_timeout` may come early or twice. Specification: docs/protocol/pool.md.
"""

from __future__ import annotations

from circuits.backoff import BackOff
from circuits.candidates import Constraints, NoPath
from circuits.guards import GuardStore
from circuits.handshake import Rng
from circuits.path import violation
from circuits.path_index import PathIndex, uniform
from circuits.pool.blame import Blame, GuardVerdict
from circuits.pool.circuit import Circuit
from circuits.pool.demands import Demands
from circuits.pool.planner import Planner
from circuits.pool.types import (
    Action,
    CircuitDead,
    CircuitReady,
    CircuitStatus,
    CloseCircuit,
    GuardPassedOver,
    GuardTakenBack,
    Leased,
    Need,
    NeedRefused,
    PoolSettings,
    Refused,
    SendEcho,
    State,
    Trouble,
    Waiting,
)
from circuits.quality import QualityBook

TOKEN_BYTES = 8
BREAKING_GUARD = (
    "circuits over this guard keep breaking, whichever relays follow: another guard is used for 15 minutes"
)
NOT_THE_GUARD = (
    "circuits break over another guard as well, so it was not the first one: that one is used again, and no "
    "guard is passed over for a while"
)
ECHOES_TO_JUDGE = 4  # known ends of echoes before a circuit's loss says something of its relays
SLOW_EVERY_S = 60.0  # an unused circuit that became slow is replaced at most this often


class Pool:
    """All circuits of one client."""

    def __init__(
        self,
        index: PathIndex,
        constraints: Constraints,
        guards: GuardStore,
        rng: Rng,
        *,
        settings: PoolSettings | None = None,
        backoff: BackOff | None = None,
        quality: QualityBook | None = None,
        unix_offset_s: float = 0.0,
    ) -> None:
        """Set up; nothing happens before the first `handle_timeout`.

        `constraints` without ports and IPv6, which come with the needs. What is seen of relays goes into
        `quality`. `unix_offset_s`: time of day minus the steady clock.
        """
        self._settings = settings or PoolSettings()
        self._rng = rng
        self._circuits: dict[int, Circuit] = {}
        self._demands = Demands(self._settings)
        backoff = backoff or BackOff()
        self.backoff = backoff
        self.quality = quality if quality is not None else QualityBook()
        self._blame = Blame(backoff, self.quality, unix_offset_s)
        self._guards_heard: dict[bytes, float] = {}
        self._planner = Planner(
            self._circuits,
            self._demands,
            index,
            constraints,
            guards,
            backoff,
            rng,
            self._settings,
            unix_offset_s,
        )
        self._slow_at = 0.0
        self._closed = False

    # --- flows -------------------------------------------------------------------------------------------

    def lease(self, need: Need, now: float) -> tuple[Leased | Waiting | Refused, list[Action]]:
        """Give a new flow a circuit, or say why it waits or is refused.

        A need that waits is remembered and built for, until `withdraw` or some time without a repetition.
        """
        if self._closed:
            return Refused(Trouble.CLOSED, "hopfare is shutting down"), []
        if need.port:
            self._demands.note_port(need.port, now)
        usable = [(c.rank(), i) for i, c in self._circuits.items() if c.fits(need) and c.is_usable(now)]
        if usable:
            chosen = min(usable)[1]
            self._demands.remove(need)
            self._circuits[chosen].claim(need.isolation, uniform(self._rng), now)
            return Leased(chosen), [*self._probe(chosen, now), *self._planner.plan(now)]
        if not self._demands.note(need, now):
            return Refused(Trouble.OVERLOADED, "too many connections wait for a circuit"), []
        self._planner.note_waiting(now)
        actions = self._planner.plan(now)
        for action in actions:
            if isinstance(action, NeedRefused) and action.need == need:
                actions.remove(action)
                return Refused(action.trouble, action.sentence), actions
        return Waiting(*self._why_waiting(need, now)), actions

    def release(self, circuit_id: int, now: float) -> list[Action]:
        """Take a lease back. Of a circuit that is gone: nothing happens."""
        circuit = self._circuits.get(circuit_id)
        if circuit is None or not circuit.leases:
            return []
        circuit.leases -= 1
        return self._retire(now)

    def withdraw(self, need: Need) -> None:
        """Forget a need nobody waits for any more."""
        self._demands.remove(need)

    def note_traffic(self, circuit_id: int, now: float, *, received: bool) -> None:
        """Traffic passed; a few calls a second are enough.

        `received`: something authentic came from the exit.
        """
        circuit = self._circuits.get(circuit_id)
        if circuit is not None:
            circuit.health.last_activity = now
            if received:
                circuit.health.note_heard(now)

    def note_rate(self, circuit_id: int, rate_bytes_per_s: float, now: float) -> None:
        """A circuit carried so much over a second or so: each of its relays can."""
        circuit = self._circuits.get(circuit_id)
        if circuit is not None:
            self._blame.note_rate(circuit.path, rate_bytes_per_s, now)

    def note_guard_heard(self, node_id: bytes, at: float) -> None:
        """The link to a guard brought something: silence of its circuits is then no want of uplink."""
        if len(self._guards_heard) >= 64:
            self._guards_heard.clear()
        self._guards_heard[node_id] = at

    # --- circuits ----------------------------------------------------------------------------------------

    def handle_built(self, circuit_id: int, has_ipv6: bool, now: float) -> list[Action]:
        """A build succeeded; `has_ipv6`: the exit gave an IPv6 address."""
        circuit = self._circuits.get(circuit_id)
        if circuit is None or circuit.state is not State.BUILDING:
            return []
        circuit.note_built(has_ipv6, now)
        self._planner.note_built()
        self._blame.note_built(circuit.path, now)
        if circuit.path.exit.has_ipv6 and not has_ipv6:
            self.quality.note_lie(circuit.path.exit.node_id, now + self._planner.unix_offset_s)
        return [*self._probe(circuit_id, now), CircuitReady(circuit_id), *self._planner.plan(now)]

    def handle_build_failed(
        self,
        circuit_id: int,
        suspects: tuple[int, ...],
        sentence: str,
        now: float,
        *,
        clock: bool = False,
    ) -> list[Action]:
        """A build failed; `suspects` (indices of hops) and `sentence` as in
        `circuits.building.client.BuildFailed`; `clock`: over the time of day, which may be our own fault.
        """
        circuit = self._circuits.get(circuit_id)
        if circuit is None or circuit.state is not State.BUILDING:
            return []
        del self._circuits[circuit_id]
        self._blame.note_build_failed(circuit.path, suspects, now, clock=clock)
        self._planner.note_failure(sentence, now)
        return self._planner.plan(now)

    def handle_guard_lost(self, node_id: bytes, sentence: str, now: float) -> list[Action]:
        """The link to a guard was lost or could not be made: all circuits over it are gone."""
        actions: list[Action] = []
        self._blame.note_guard_lost(node_id, now)
        for circuit_id, circuit in list(self._circuits.items()):
            if circuit.path.node_ids[0] == node_id:
                actions += self._drop(circuit_id, circuit, sentence)
        self._planner.last_failure = sentence
        return [*actions, *self._planner.plan(now)]

    def handle_guard_silent(self, node_id: bytes, sentence: str, now: float) -> list[Action]:
        """The link to a guard is up and does not answer: nobody further on can be the cause.

        Its circuits take no new flows until `handle_guard_heard`, and its builds are given up: others go over
        another guard. To be repeated as long as it lasts.
        """
        actions: list[Action] = []
        self._blame.note_guard_lost(node_id, now)
        for circuit_id, circuit in list(self._circuits.items()):
            if circuit.path.node_ids[0] == node_id:
                circuit.guard_is_silent = True
                if circuit.state is State.BUILDING:
                    actions += self._drop(circuit_id, circuit, sentence)
        self._planner.last_failure = sentence
        return [*actions, *self._planner.plan(now)]

    def handle_guard_heard(self, node_id: bytes) -> None:
        """A guard that was silent answers again: its circuits are as good as they were."""
        for circuit in self._circuits.values():
            if circuit.path.node_ids[0] == node_id:
                circuit.guard_is_silent = False

    def handle_closed(
        self, circuit_id: int, sentence: str, now: float, *, is_fault: bool = True
    ) -> list[Action]:
        """A circuit that was built is closed: by the network or, where that `is_fault` of nobody's, by
        ourselves.
        """
        circuit = self._circuits.get(circuit_id)
        if circuit is None:
            return []
        if circuit.state is State.BUILDING:
            return self.handle_build_failed(circuit_id, (0,), sentence, now)
        actions = self._drop(circuit_id, circuit, sentence)
        if is_fault:
            self._note_silent(circuit, now)
            actions += self._note_broken(circuit, now)
        return [*actions, *self._planner.plan(now)]

    def handle_echo(self, circuit_id: int, token: bytes, now: float) -> list[Action]:
        """An echo came back."""
        circuit = self._circuits.get(circuit_id)
        if circuit is not None and circuit.health.note_echo(token, now):
            circuit.is_blamed = False
            self._blame.note_echo(circuit.path, now, circuit.health.last_rtt_s)
        return []

    def handle_lie(self, circuit_id: int, now: float) -> list[Action]:
        """A circuit's exit does not do what its descriptor says: new flows go elsewhere."""
        circuit = self._circuits.get(circuit_id)
        if circuit is None:
            return []
        leaves = circuit.path.exit.node_id
        self.quality.note_lie(leaves, now + self._planner.unix_offset_s)
        self.backoff.note_failure(leaves, now)
        for other in self._circuits.values():
            if other.state is State.READY and other.path.exit.node_id == leaves:
                other.retire_at = min(other.retire_at, now)
        return [*self._retire(now), *self._planner.plan(now)]

    # --- surroundings ------------------------------------------------------------------------------------

    def set_index(self, index: PathIndex, now: float) -> list[Action]:
        """Use a new directory. Circuits that exist stay."""
        self._planner.set_index(index)
        return [] if self._closed else self._planner.plan(now)

    def set_constraints(self, constraints: Constraints, now: float) -> list[Action]:
        """Obey other rules from now on: circuits that break them take no new flows, builds that do are given
        up. Old flows finish where they are.
        """
        self._planner.set_constraints(constraints)
        if self._closed:
            return []
        actions: list[Action] = []
        for circuit_id, circuit in list(self._circuits.items()):
            why = violation(circuit.path, constraints)
            if why is not None and circuit.state is State.BUILDING:
                del self._circuits[circuit_id]
                actions.append(CloseCircuit(circuit_id, f"the rules have changed: {why}"))
            elif why is not None:
                circuit.retire_at = min(circuit.retire_at, now)
        return [*actions, *self._retire(now), *self._planner.plan(now)]

    def set_unix_offset(self, unix_offset_s: float) -> None:
        """Take a change of the time of day against the steady clock."""
        self._planner.unix_offset_s = unix_offset_s
        self._blame.unix_offset_s = unix_offset_s

    def renew(self, now: float) -> list[Action]:
        """Give new flows other circuits from now on (Tor's NEWNYM); old flows finish on theirs, builds under
        way are given up.
        """
        if self._closed:
            return []
        actions: list[Action] = []
        for circuit_id, circuit in list(self._circuits.items()):
            if circuit.state is State.BUILDING:
                del self._circuits[circuit_id]
                actions.append(CloseCircuit(circuit_id, "new circuits were asked for"))
            else:
                circuit.retire_at = min(circuit.retire_at, now)
        self._planner.want_spares()
        return [*actions, *self._retire(now), *self._planner.plan(now)]

    def close(self) -> list[Action]:
        """Close everything; later leases are refused."""
        self._closed = True
        self._demands.clear()
        ids = list(self._circuits)
        self._circuits.clear()
        return [CloseCircuit(circuit_id, "hopfare is shutting down") for circuit_id in ids]

    def handle_timeout(self, now: float) -> list[Action]:
        """Do what is due."""
        if self._closed:
            return []
        actions: list[Action] = []
        for circuit_id, circuit in list(self._circuits.items()):
            if circuit_id not in self._circuits:  # dropped with its guard a moment ago
                continue
            if circuit.state is State.BUILDING:
                if now >= circuit.retire_at:
                    everyone = tuple(range(len(circuit.path.hops)))
                    actions.append(CloseCircuit(circuit_id, "not built in time"))
                    actions += self.handle_build_failed(
                        circuit_id, everyone, "no answer from the path in time", now
                    )
                continue
            if circuit.health.is_suspect(now):
                self._note_silent(circuit, now)
            if circuit.health.is_dead(now):
                sentence = f"the circuit has been silent for {now - circuit.health.last_heard:.0f} s"
                self._planner.last_failure = sentence
                actions += self._drop(circuit_id, circuit, sentence)
                heard = self._guards_heard.get(circuit.path.node_ids[0])
                if heard is not None and heard > circuit.health.last_heard + 1.0:
                    actions += self._note_broken(circuit, now)
            else:
                actions += self._probe(circuit_id, now)
        actions += self._replace_slow(now)
        actions += self._retire(now)
        self._demands.expire(now)
        return [*actions, *self._planner.plan(now)]

    def next_timeout(self, now: float) -> float | None:
        """Return when `handle_timeout` has something to do, not before `now`; None once closed."""
        if self._closed:
            return None
        times = list(self._demands.times(now))
        for circuit in self._circuits.values():
            times.append(circuit.retire_at)
            if circuit.state is not State.BUILDING:
                times.append(circuit.health.next_echo(circuit.leases, now))
                change = circuit.health.next_change(now)
                if change is not None:
                    times.append(change)
        planned = self._planner.next_time(now)
        if planned is not None:
            times.append(planned)
        return max(now, min(times)) if times else None

    # --- what the user is told ---------------------------------------------------------------------------

    def status(self, now: float) -> list[CircuitStatus]:
        """Return all circuits, oldest first."""
        return [circuit.describe(circuit_id, now) for circuit_id, circuit in self._circuits.items()]

    @property
    def no_path(self) -> NoPath | None:
        """Why the last choice of a path found none, with what each rule left; None if it found one."""
        return self._planner.no_path

    def resting_guard(self, now: float) -> bytes | None:
        """Return the guard that is passed over now because circuits over it broke, or None."""
        return self._blame.resting_guard(now)

    def explain(self, now: float) -> str | None:
        """Return why there is no usable circuit, in one sentence; None if there is one."""
        if any(circuit.is_usable(now) for circuit in self._circuits.values()):
            return None
        return self._why_waiting(Need(), now)[1]

    def _why_waiting(self, need: Need, now: float) -> tuple[Trouble, str]:
        failure = self._planner.last_failure
        after = f"; the last attempt failed: {failure}" if failure else ""
        if any(c.state is State.BUILDING and c.fits(need) for c in self._circuits.values()):
            return Trouble.BUILDING, f"a circuit is being built{after}"
        if any(c.state is State.READY and c.fits(need) for c in self._circuits.values()):
            return Trouble.FAILING, "the circuits that fit have gone silent; others are being built"
        return self._planner.explain(now)

    # --- probe, drop, rotate -----------------------------------------------------------------------------

    def _probe(self, circuit_id: int, now: float) -> list[Action]:
        circuit = self._circuits[circuit_id]
        if now < circuit.health.next_echo(circuit.leases, now):
            return []
        token = self._rng(TOKEN_BYTES)
        circuit.health.note_sent_echo(token, now)
        return [SendEcho(circuit_id, token)]

    def _note_silent(self, circuit: Circuit, now: float) -> None:
        """Avoid a silent circuit's relays in the builds that replace it; once for each silence."""
        if not circuit.is_blamed:
            circuit.is_blamed = True
            self._blame.note_died(circuit.path, now)

    def _note_loss(self, circuit: Circuit, now: float) -> None:
        """Enter what a circuit lost in its life; those that died are entered as broken instead."""
        health = circuit.health
        if health.sent >= ECHOES_TO_JUDGE:
            unix_s = now + self._planner.unix_offset_s
            self.quality.note_loss(circuit.path.node_ids, health.lost, health.sent, unix_s)

    def _note_broken(self, circuit: Circuit, now: float) -> list[Action]:
        """Have another guard used if it is this circuit's that breaks circuits; flows that go on may."""
        resting = self._blame.resting_guard(now)
        verdict = self._blame.note_broken(circuit.path, now)
        if verdict is GuardVerdict.NOTHING:
            return []
        if verdict is GuardVerdict.TAKEN_BACK and resting is not None:
            return [GuardTakenBack(resting, NOT_THE_GUARD)]
        guard = circuit.path.node_ids[0]
        self._planner.last_failure = BREAKING_GUARD
        actions: list[Action] = [GuardPassedOver(guard, BREAKING_GUARD)]
        for circuit_id, other in list(self._circuits.items()):
            if other.path.node_ids[0] != guard:
                continue
            if not other.leases:
                actions += self._drop(circuit_id, other, BREAKING_GUARD)
            elif other.state is State.READY:
                other.state = State.DRAINING
                other.retire_at = now + self._settings.drain_s
        return actions

    def _drop(self, circuit_id: int, circuit: Circuit, sentence: str) -> list[Action]:
        del self._circuits[circuit_id]
        closing = CloseCircuit(circuit_id, sentence)
        if circuit.state is State.BUILDING:
            return [closing]
        return [CircuitDead(circuit_id, circuit.leases, sentence), closing]

    def _retire(self, now: float) -> list[Action]:
        """Rotate out what is too old, close what is unused then, and end old flows after the longest
        drain.
        """
        actions: list[Action] = []
        for circuit_id, circuit in list(self._circuits.items()):
            if circuit.state is State.READY and now >= circuit.retire_at:
                circuit.state = State.DRAINING
                circuit.retire_at = now + self._settings.drain_s
            if circuit.state is State.DRAINING:
                if not circuit.leases:
                    del self._circuits[circuit_id]
                    self._note_loss(circuit, now)
                    actions.append(CloseCircuit(circuit_id, "rotated out"))
                elif now >= circuit.retire_at:
                    actions += self._drop(circuit_id, circuit, "the circuit reached its greatest age")
        return actions

    def _replace_slow(self, now: float) -> list[Action]:
        """Close one unused circuit that became slow, if others are there; slow ones in use get no new
        flows anyway.
        """
        if now < self._slow_at:
            return []
        spares = [(i, c) for i, c in self._circuits.items() if c.isolation is None and c.is_usable(now)]
        slow = [i for i, c in spares if c.health.is_slow()]
        if not slow or len(slow) == len(spares):
            return []
        self._slow_at = now + SLOW_EVERY_S
        self._note_loss(self._circuits.pop(slow[0]), now)
        return [CloseCircuit(slow[0], "the circuit became slow")]
