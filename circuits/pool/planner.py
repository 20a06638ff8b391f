"""When to build and what: demands first, then spares, within the limits and the back-off.

Shares the pool's circuits; adds to them and, to make room, takes from them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from circuits.backoff import BackOff
from circuits.candidates import Constraints, NoPath, NoPathKind, Position
from circuits.guards import GuardStore, Moment
from circuits.handshake import Rng
from circuits.path import Path, choose_path
from circuits.path_index import PathIndex, uniform
from circuits.pool.circuit import Circuit
from circuits.pool.demands import Demands
from circuits.pool.types import (
    TROUBLE_OF,
    Action,
    CloseCircuit,
    GuardsChanged,
    Need,
    NeedRefused,
    PoolSettings,
    StartBuild,
    State,
    Trouble,
)

RETRY_FIRST_S = 0.25
RETRY_LONGEST_S = 60.0
RETRY_WANTED_S = 5.0  # longest wait while a flow waits
NO_PATH_RETRY_S = 10.0  # ask again for a path although nothing changed that we know of
DIFFERENT_TRIES = 5  # paths drawn for a spare, to take the one least like the circuits there are


class Planner:
    """Starts builds and knows why it does not."""

    def __init__(
        self,
        circuits: dict[int, Circuit],
        demands: Demands,
        index: PathIndex,
        constraints: Constraints,
        guards: GuardStore,
        backoff: BackOff,
        rng: Rng,
        settings: PoolSettings,
        unix_offset_s: float,
    ) -> None:
        """Plan for `circuits` and `demands`, which belong to the pool."""
        self._circuits = circuits
        self._demands = demands
        self._index = index
        self._constraints = constraints
        self._guards = guards
        self._backoff = backoff
        self._rng = rng
        self._settings = settings
        self._next_id = 1
        self._failures = 0
        self._build_at = 0.0
        self._spares_at = 0.0
        self.unix_offset_s = unix_offset_s
        self.last_failure = ""
        self.no_path: NoPath | None = None

    def set_index(self, index: PathIndex) -> None:
        """Use a new directory from now on."""
        self._index = index
        self._spares_at = 0.0
        self.no_path = None

    def set_constraints(self, constraints: Constraints) -> None:
        """Obey other rules from now on, and try at once."""
        self._constraints = constraints
        self._spares_at = 0.0
        self._build_at = 0.0
        self._failures = 0
        self.no_path = None

    def want_spares(self) -> None:
        """Think about spares at the next `plan`, whatever was to be waited for."""
        self._spares_at = 0.0

    def note_built(self) -> None:
        """A build succeeded: no back-off."""
        self._failures = 0
        self._build_at = 0.0
        self.last_failure = ""

    def note_failure(self, sentence: str, now: float) -> None:
        """A build failed: wait before the next, twice as long after each failure in a row, shorter while
        a flow waits.
        """
        self.last_failure = sentence
        self._failures += 1
        longest = RETRY_WANTED_S if self._demands else RETRY_LONGEST_S
        wait_s = min(longest, RETRY_FIRST_S * 2 ** min(self._failures - 1, 20))
        self._build_at = now + wait_s * (0.75 + 0.5 * uniform(self._rng))

    def note_waiting(self, now: float) -> None:
        """A flow waits now: a long back-off for spares does not apply to it."""
        if self.no_path is None:
            self._build_at = min(self._build_at, now + RETRY_WANTED_S)

    def plan(self, now: float) -> list[Action]:
        """Start the builds that are wanted and allowed now."""
        actions: list[Action] = []
        while self._may_build(now):
            need, spares = self._demands.wanted(self._circuits.values(), now)
            if need is not None:
                actions += self._build_for(need, now)
            elif spares and now >= self._spares_at and len(self._circuits) < self._settings.max_circuits:
                actions += self._build_spare(now)
            else:
                break
        if self._guards.take_changed():
            actions.append(GuardsChanged())
        return actions

    def next_time(self, now: float) -> float | None:
        """Return when `plan` may start a build without any other input, or None."""
        builds = sum(c.state is State.BUILDING for c in self._circuits.values())
        if builds >= self._settings.max_builds:
            return None
        need, spares = self._demands.wanted(self._circuits.values(), now)
        if need is not None:
            return self._build_at
        if spares and len(self._circuits) < self._settings.max_circuits:
            return max(self._build_at, self._spares_at)
        return None

    def explain(self, now: float) -> tuple[Trouble, str]:
        """Return why nothing is being built, in one sentence."""
        if self.no_path is not None:
            offline = self.no_path.kind is NoPathKind.UNREACHABLE and self.no_path.position is Position.GUARD
            return Trouble.OFFLINE if offline else Trouble.NO_PATH, self.no_path.sentence
        if self.last_failure:
            wait_s = max(0.0, self._build_at - now)
            sentence = f"no circuit could be built: {self.last_failure}; next attempt in {wait_s:.0f} s"
            return Trouble.FAILING, sentence
        return Trouble.BUILDING, "no circuit is ready yet"

    def _may_build(self, now: float) -> bool:
        builds = sum(c.state is State.BUILDING for c in self._circuits.values())
        return builds < self._settings.max_builds and now >= self._build_at

    def _build_for(self, need: Need, now: float) -> list[Action]:
        """Start a build for a need, or refuse the need; at least one of both happens, or the next build
        is put off.
        """
        room = self._make_room(need)
        if room is None:
            self._demands.remove(need)
            return [NeedRefused(need, Trouble.OVERLOADED, "all circuits are in use")]
        result = self._choose((need.port,) if need.port else (), need.ipv6, now)
        if isinstance(result, Path):
            return [*room, self._start(result, now)]
        if result.kind is NoPathKind.UNREACHABLE and result.retry_at is not None:
            self._build_at = max(result.retry_at, now + RETRY_FIRST_S)
            return room
        # What is wrong with this need says nothing about others.
        self.no_path = None
        self._demands.remove(need)
        return [*room, NeedRefused(need, TROUBLE_OF.get(result.kind, Trouble.NO_PATH), result.sentence)]

    def _make_room(self, need: Need) -> list[Action] | None:
        """Close the circuit unused for longest if the pool is full; None if all are in use."""
        if len(self._circuits) < self._settings.max_circuits:
            return []
        idle = [
            (c.health.last_activity, i)
            for i, c in self._circuits.items()
            if not c.leases and c.state is not State.BUILDING and not (c.isolation is None and c.fits(need))
        ]
        if not idle:
            return None
        oldest = min(idle)[1]
        del self._circuits[oldest]
        return [CloseCircuit(oldest, "closed to make room")]

    def _build_spare(self, now: float) -> list[Action]:
        """Build for the usual ports and those asked for lately; where no exit has all of them, for fewer."""
        usual = self._settings.spare_ports
        more = tuple(dict.fromkeys((*usual, *self._demands.recent_ports(now))))
        retry_at = now + NO_PATH_RETRY_S
        for ports, ipv6 in product(dict.fromkeys((more, usual, ())), (True, False)):
            result = self._choose(ports, ipv6, now)
            if isinstance(result, Path):
                return [self._start(self._least_alike(result, ports, ipv6, now), now)]
            if result.kind not in (NoPathKind.PORT, NoPathKind.IPV6):
                retry_at = min(retry_at, result.retry_at or retry_at)
                break
        self._spares_at = max(retry_at, now + RETRY_FIRST_S)
        return []

    def _least_alike(self, path: Path, ports: tuple[int, ...], ipv6: bool, now: float) -> Path:
        """Draw a few more paths and return the one that shares the fewest relays with other circuits.

        So that one relay's death does not take the spares along.
        """
        others = [c.path.node_ids[1:] for c in self._circuits.values() if c.state is not State.DRAINING]

        def likeness(candidate: Path) -> int:
            # The exit counts twice: there are fewer of them.
            nodes = (*candidate.node_ids[1:], candidate.exit.node_id)
            return sum(node in other for other in others for node in nodes)

        for _ in range(DIFFERENT_TRIES - 1):
            if not likeness(path):
                break
            other = self._choose(ports, ipv6, now)
            if isinstance(other, Path) and likeness(other) < likeness(path):
                path = other
        return path

    def _choose(self, ports: tuple[int, ...], ipv6: bool, now: float) -> Path | NoPath:
        constraints = replace(self._constraints, ports=ports, needs_ipv6=ipv6)
        moment = Moment(self._index, self._backoff, self._rng, now, now + self.unix_offset_s)
        result = choose_path(constraints, self._guards.get(constraints), moment)
        self.no_path = result if isinstance(result, NoPath) else None
        return result

    def _start(self, path: Path, now: float) -> StartBuild:
        circuit_id = self._next_id
        self._next_id += 1
        self._circuits[circuit_id] = Circuit(path, self._settings, now)
        return StartBuild(circuit_id, path)
