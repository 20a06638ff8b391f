"""Choice of a path: exit first, then the guard, then the middles.

Owns what depends on relays chosen before: no two of one identity, family, operator or network, a common
IP version between neighbours, the price of the whole path. The static rules are in `circuits.path_index`,
guards and second layer in `circuits.guards`. Specification: docs/protocol/pool.md, section "Paths".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from circuits.building.client import BuildHop
from circuits.building.messages import Address, price_chain
from circuits.candidates import Candidate, Constraints, NoPath, NoPathKind, Position
from circuits.guards import GuardSet, Moment
from circuits.path_index import Entry, Selection

ATTEMPTS = 6  # an exit may leave no guard or middle; the next draw takes another


@dataclass(frozen=True, slots=True)
class PathHop:
    """One relay of a path, the address its neighbour before reaches it at, and why it was chosen."""

    position: Position
    candidate: Candidate
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Path:
    """A chosen path, guard first. `price_wei_per_packet`: what the client pays for the whole of it."""

    hops: tuple[PathHop, ...]
    price_wei_per_packet: int

    @property
    def exit(self) -> Candidate:
        """The last relay."""
        return self.hops[-1].candidate

    @property
    def node_ids(self) -> tuple[bytes, ...]:
        """The identities, first hop first."""
        return tuple(hop.candidate.node_id for hop in self.hops)

    def build_hops(self) -> list[BuildHop]:
        """Return the hops in the form the circuit build wants."""
        return [
            BuildHop(
                hop.candidate.node_id,
                hop.candidate.onion_key,
                hop.address,
                hop.candidate.price_wei_per_packet,
            )
            for hop in self.hops
        ]


def choose_path(constraints: Constraints, guards: GuardSet, moment: Moment) -> Path | NoPath:
    """Choose a path of `constraints.hops` relays, or tell which rule leaves nobody.

    May add to `guards` (see its `changed`). Of several attempts that fail, the last one's reason is returned.
    """
    choice = _Choice(constraints, guards, moment)
    result: Path | NoPath = choice.attempt()
    for _ in range(ATTEMPTS - 1):
        if isinstance(result, Path) or result.kind not in (NoPathKind.RELATED, NoPathKind.PRICE):
            break
        result = choice.attempt()
    return result


class _Choice:
    """One call of `choose_path`."""

    def __init__(self, constraints: Constraints, guards: GuardSet, moment: Moment) -> None:
        self._constraints = constraints
        self._guards = guards
        self._moment = moment
        self._exits = moment.index.select(Position.EXIT, constraints)
        self._cheapest = moment.index.cheapest_relay
        self._failures = 0
        self._useless_guards: set[bytes] = set()  # left no middle in an attempt before

    def attempt(self) -> Path | NoPath:
        if self._exits.failure is not None:
            return self._exits.failure
        hops = self._constraints.hops
        if hops == 1:
            found = self._draw_exit([])
            return found if isinstance(found, NoPath) else self._finish([(Position.EXIT, *found)])
        selection = self._moment.index.select(Position.GUARD, self._constraints)
        if selection.failure is not None:
            return replace(selection.failure, position=Position.GUARD)
        middles = self._moment.index.select(Position.MIDDLE, self._constraints)
        if hops > 2 and middles.failure is not None:
            return replace(middles.failure, position=Position.MIDDLE)
        # The guard most likely to be used is kept out of the exits' draw: guards are few, exits many.
        usual = self._guards.choose_guard(selection, self._is_useful, self._moment)
        if usual is None and self._useless_guards:
            return self._related(Position.MIDDLE, middles, "middle", "the guard and the exit")
        if usual is None:
            return self._no_guard_reachable()
        found = self._draw_exit([usual[0]])
        if isinstance(found, NoPath):
            found = self._draw_exit([])
        if isinstance(found, NoPath):
            return found
        exit_entry = found[0]

        def fits(entry: Entry) -> bool:
            return self._is_useful(entry) and self._fits(entry, [exit_entry], touching=hops == 2)

        guard = self._guards.choose_guard(selection, fits, self._moment)
        if guard is None:
            if any(fits(entry) for entry in selection.entries):
                return self._no_guard_reachable()
            return self._related(Position.GUARD, selection, "guard", "the exit")
        chosen = [(Position.GUARD, *guard)]
        for number in range(hops - 2):
            middle = self._draw_middle(
                middles, [entry for _, entry, _ in chosen], exit_entry, hops - 3 == number
            )
            if middle is None:
                # First other exits are tried; only then other guards, because a guard that is added stays.
                self._failures += 1
                if self._failures > ATTEMPTS // 2:
                    self._useless_guards.add(guard[0].candidate.node_id)
                return self._related(Position.MIDDLE, middles, "middle", "the guard and the exit")
            chosen.append((Position.MIDDLE, *middle))
        chosen.append((Position.EXIT, *found))
        return self._finish(chosen)

    def _is_useful(self, entry: Entry) -> bool:
        return entry.candidate.node_id not in self._useless_guards

    def _draw_exit(self, others: list[Entry]) -> tuple[Entry, str] | NoPath:
        moment, selection = self._moment, self._exits
        touching = self._constraints.hops == 2

        def fits(entry: Entry) -> bool:
            return self._fits(entry, others, touching=touching, is_exit=True)

        def works(entry: Entry) -> bool:
            return fits(entry) and not moment.backoff.is_waiting(entry.candidate.node_id, moment.now)

        found = selection.draw(works, moment.rng)
        if found is not None:
            return found, f"drawn by weight from {len(selection.entries)} exits that fit"
        found = selection.draw(fits, moment.rng)
        if found is not None:
            return found, "drawn from exits that failed lately; there is no other"
        return self._related(Position.EXIT, selection, "exit", "the guard")

    def _draw_middle(
        self, selection: Selection, before: list[Entry], exit_entry: Entry, last: bool
    ) -> tuple[Entry, str] | None:
        def fits(entry: Entry) -> bool:
            return (
                not before[-1].families.isdisjoint(entry.families)
                and (not last or not entry.families.isdisjoint(exit_entry.families))
                and self._fits(entry, [*before, exit_entry])
            )

        return self._guards.choose_middle(selection, fits, self._moment)

    def _fits(
        self, entry: Entry, others: list[Entry], *, touching: bool = False, is_exit: bool = False
    ) -> bool:
        """Tell whether a relay goes with those chosen: unrelated, affordable, and with a common IP
        version if they touch.
        """
        constraints = self._constraints
        if any(entry.is_related(other, constraints.distinct_networks) for other in others):
            return False
        if touching and others and all(entry.families.isdisjoint(other.families) for other in others):
            return False
        limit = constraints.max_price_wei_per_packet
        if limit is None:
            return True
        # `others` are in path order, the exit last if it is known; relays still open count as the
        # cheapest there is.
        place = len(others) if is_exit else max(0, len(others) - 1)
        known = [*others[:place], entry, *others[place:]]
        prices = [e.candidate.price_wei_per_packet for e in known]
        open_hops = constraints.hops - len(prices)
        at = max(0, len(prices) - 1)
        prices[at:at] = [self._cheapest] * open_hops
        return price_chain(prices)[0][0] <= limit

    def _finish(self, chosen: list[tuple[Position, Entry, str]]) -> Path | NoPath:
        families = self._constraints.own_families
        hops = []
        for position, entry, reason in chosen:
            address = entry.address_from(families)
            if address is None:
                sentence = "two neighbours of the path have no IP version in common"
                return NoPath(NoPathKind.RELATED, position, sentence)
            hops.append(PathHop(position, entry.candidate, address, reason))
            families = entry.families
        price = price_chain([hop.candidate.price_wei_per_packet for hop in hops])[0][0]
        return Path(tuple(hops), price)

    def _no_guard_reachable(self) -> NoPath:
        retry_at = self._guards.retry_at(self._moment)
        wait_s = max(1, round(retry_at - self._moment.now))
        sentence = f"no guard can be reached ({len(self._guards.guards)} tried); next attempt in {wait_s} s"
        return NoPath(NoPathKind.UNREACHABLE, Position.GUARD, sentence, (), retry_at)

    def _related(self, position: Position, selection: Selection, what: str, others: str) -> NoPath:
        """Tell why none of a selection goes with the others: the price, if that is what is in the way,
        else relation.
        """
        count = len(selection.entries)
        limit = self._constraints.max_price_wei_per_packet
        if limit is not None and not any(
            self._fits(entry, [], is_exit=True) for entry in self._exits.entries
        ):
            sentence = f"no path of {self._constraints.hops} relays costs at most {limit} wei per packet"
            return NoPath(NoPathKind.PRICE, position, sentence, selection.steps)
        sentence = (
            f"none of {count} relays that fit as {what} is independent of {others} "
            "(identity, family, operator, network, IP version or price)"
        )
        return NoPath(NoPathKind.RELATED, position, sentence, selection.steps)
