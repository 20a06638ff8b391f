"""Choice of a path: exit first, then the guard, then the middles.

Owns what depends on relays chosen before: no two of one identity, family, operator, network or (if asked)
country, a common IP version between neighbours, the price of the whole path. The static rules are in
`circuits.path_index`, guards and second layer in `circuits.guards`. Specification: docs/protocol/pool.md,
section "Paths".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from circuits.building.client import BuildHop
from circuits.building.messages import Address, price_chain
from circuits.candidates import Candidate, Constraints, NoPath, NoPathKind, Position, Step, show_price
from circuits.guards import GuardSet, Moment
from circuits.path_index import Entry, Selection, most_affordable

ATTEMPTS = 6  # an exit may leave no guard or middle; the next draw takes another


@dataclass(frozen=True, slots=True)
class PathHop:
    """One relay of a path, the address its neighbour before reaches it at, and why it was chosen: in words,
    and how many candidates each static rule left.
    """

    position: Position
    candidate: Candidate
    address: Address
    reason: str
    steps: tuple[Step, ...] = ()


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


def choose_path(
    constraints: Constraints, guards: GuardSet, moment: Moment, *, middle: bytes | None = None
) -> Path | NoPath:
    """Choose a path of `constraints.hops` relays, or tell which rule leaves nobody.

    `middle`: the identity of the relay that must be the last middle, for a look at it. May add to `guards`
    (see its `changed`). Of several attempts that fail, the last one's reason is returned.
    """
    choice = _Choice(constraints, guards, moment, middle)
    result: Path | NoPath = choice.attempt()
    for _ in range(ATTEMPTS - 1):
        if isinstance(result, Path) or result.kind not in (NoPathKind.RELATED, NoPathKind.PRICE):
            break
        result = choice.attempt()
    return result


def violation(path: Path, constraints: Constraints) -> str | None:
    """Return which of the customer's rules a path breaks, as a clause, or None if it keeps all of them.

    For circuits that stand when the rules change; ports and IPv6 are for the flows to ask.
    """
    if len(path.hops) != constraints.hops:
        return f"it has {len(path.hops)} relays, not {constraints.hops}"
    limit = constraints.max_price_wei_per_packet
    if limit is not None and path.price_wei_per_packet > limit:
        return f"it costs {show_price(path.price_wei_per_packet)}, more than {show_price(limit)}"
    entries = [Entry(hop.candidate) for hop in path.hops]
    for hop in path.hops:
        only = {
            Position.EXIT: constraints.exits,
            Position.GUARD: constraints.guards,
            Position.MIDDLE: constraints.middles,
        }[hop.position]
        if not only.admits(hop.candidate):
            return f"its {hop.position.value} is not one of those asked for"
        if constraints.banned.touches(hop.candidate):
            return f"its {hop.position.value} is banned"
    if constraints.distinct_countries:
        countries = [entry.country for entry in entries if entry.country]
        if len(set(countries)) != len(countries):
            return "two of its relays are in one country"
    return None


class _Choice:
    """One call of `choose_path`."""

    def __init__(
        self, constraints: Constraints, guards: GuardSet, moment: Moment, pinned: bytes | None
    ) -> None:
        self._constraints = constraints
        self._pinned = pinned
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
            return self._no_middle(middles, [], None)
        if usual is None:
            return self._no_guard_reachable()
        found = self._draw_exit([usual[0]])
        if isinstance(found, NoPath):
            found = self._draw_exit([])
        if isinstance(found, NoPath):
            return found
        exit_entry = found[0]
        rules = self._rules([], [exit_entry], touching=hops == 2)

        follows = _all_of(rules)

        def fits(entry: Entry) -> bool:
            return follows(entry) and self._is_useful(entry)

        guard = self._guards.choose_guard(selection, fits, self._moment)
        if guard is None:
            if any(fits(entry) for entry in selection.entries):
                return self._no_guard_reachable()
            return self._nobody(Position.GUARD, selection, rules, "the exit")
        chosen = [(Position.GUARD, *guard)]
        for number in range(hops - 2):
            before = [entry for _, entry, _ in chosen]
            last = hops - 3 == number
            middle = self._draw_middle(middles, before, exit_entry, last=last)
            if middle is None:
                # First other exits are tried; only then other guards, because a guard that is added stays.
                self._failures += 1
                if self._failures > ATTEMPTS // 2:
                    self._useless_guards.add(guard[0].candidate.node_id)
                return self._no_middle(middles, before, exit_entry, last=last)
            chosen.append((Position.MIDDLE, *middle))
        chosen.append((Position.EXIT, *found))
        return self._finish(chosen)

    def _is_useful(self, entry: Entry) -> bool:
        return entry.candidate.node_id not in self._useless_guards

    def _draw_exit(self, others: list[Entry]) -> tuple[Entry, str] | NoPath:
        moment, selection = self._moment, self._exits
        rules = self._rules(others, [], touching=self._constraints.hops == 2)
        fits = _all_of(rules)

        def works(entry: Entry) -> bool:
            return fits(entry) and not moment.backoff.is_waiting(entry.candidate.node_id, moment.now)

        found = selection.draw(works, moment.rng)
        if found is not None:
            part = selection.share(found)
            return found, f"drawn by weight from {len(selection.entries)} exits that fit, its part {part:.2%}"
        found = selection.draw(fits, moment.rng)
        if found is not None:
            return found, "drawn from exits that failed lately; there is no other"
        return self._nobody(Position.EXIT, selection, rules, "the guard")

    def _draw_middle(
        self, selection: Selection, before: list[Entry], exit_entry: Entry, *, last: bool
    ) -> tuple[Entry, str] | None:
        fits = _all_of(self._rules(before, [exit_entry], touching=True, last=last))
        if self._pinned is not None and last:
            entry = selection.by_id.get(self._pinned)
            return None if entry is None or not fits(entry) else (entry, "to measure it")
        return self._guards.choose_middle(selection, fits, self._moment)

    def _rules(
        self, before: list[Entry], after: list[Entry], *, touching: bool, last: bool = True
    ) -> list[_Rule]:
        """Return what a relay must fulfil beside those chosen, which stand before and after it on the path.

        `touching`: it is the neighbour of the last of `before`, and (`last`) of the first of `after`. The
        order is that of the telling.
        """
        others = [*before, *after]
        rules: list[_Rule] = []
        if others:
            owners = frozenset[str | bytes]().union(*(other.owners for other in others))
            rules.append(
                (
                    NoPathKind.RELATED,
                    "shares no identity, family or operator",
                    lambda e: owners.isdisjoint(e.owners),
                )
            )
        if others and self._constraints.distinct_networks:
            networks = frozenset(network for other in others for network in other.networks)
            rules.append(
                (
                    NoPathKind.RELATED,
                    "shares no network (/16, /32)",
                    lambda e: networks.isdisjoint(e.networks),
                )
            )
        if others and self._constraints.distinct_countries:
            countries = {other.country for other in others} - {""}
            rules.append((NoPathKind.RELATED, "is in another country", lambda e: e.country not in countries))
        if touching:
            neighbours = [*before[-1:], *(after[:1] if last else [])]
            rules.append(
                (
                    NoPathKind.RELATED,
                    "has an IP version in common with its neighbours",
                    lambda e: all(not e.families.isdisjoint(n.families) for n in neighbours),
                )
            )
        limit = self._constraints.max_price_wei_per_packet
        if limit is not None and others:
            # Relays still open count as the cheapest there is.
            still = [self._cheapest] * (self._constraints.hops - 1 - len(others))
            ask = [e.candidate.price_wei_per_packet for e in before]
            onward = [e.candidate.price_wei_per_packet for e in after]
            most = (
                most_affordable(ask, [*still, *onward], limit)
                if after
                else most_affordable([*ask, *still], [], limit)
            )
            rules.append(
                (
                    NoPathKind.PRICE,
                    f"keeps the path's price at {show_price(limit)}",
                    lambda e: e.candidate.price_wei_per_packet <= most,
                )
            )
        return rules

    def _finish(self, chosen: list[tuple[Position, Entry, str]]) -> Path | NoPath:
        families = self._constraints.own_families
        hops = []
        for position, entry, reason in chosen:
            address = entry.address_from(families)
            if address is None:
                sentence = "two neighbours of the path have no IP version in common"
                return NoPath(NoPathKind.RELATED, position, sentence)
            steps = self._moment.index.select(position, self._constraints).steps
            hops.append(PathHop(position, entry.candidate, address, reason, steps))
            families = entry.families
        price = price_chain([hop.candidate.price_wei_per_packet for hop in hops])[0][0]
        limit = self._constraints.max_price_wei_per_packet
        if limit is not None and price > limit:
            sentence = f"no path of {len(hops)} relays costs at most {show_price(limit)}"
            return NoPath(NoPathKind.PRICE, Position.EXIT, sentence)
        return Path(tuple(hops), price)

    def _no_guard_reachable(self) -> NoPath:
        retry_at = self._guards.retry_at(self._moment)
        wait_s = max(1, round(retry_at - self._moment.now))
        sentence = f"no guard can be reached ({len(self._guards.guards)} tried); next attempt in {wait_s} s"
        return NoPath(NoPathKind.UNREACHABLE, Position.GUARD, sentence, (), retry_at)

    def _no_middle(
        self, selection: Selection, before: list[Entry], exit_entry: Entry | None, *, last: bool = True
    ) -> NoPath:
        rules = [] if exit_entry is None else self._rules(before, [exit_entry], touching=True, last=last)
        return self._nobody(Position.MIDDLE, selection, rules, "the guard and the exit")

    def _nobody(self, position: Position, selection: Selection, rules: list[_Rule], others: str) -> NoPath:
        """Tell why none of a selection goes with the others: what each rule left, and which left nobody."""
        left = selection.entries
        steps = list(selection.steps)
        kind = NoPathKind.RELATED
        for rule_kind, rule, keep in rules:
            left = [entry for entry in left if keep(entry)]
            steps.append(Step(f"{rule}, beside {others}", len(left)))
            if not left:
                kind = rule_kind
                break
        limit = self._constraints.max_price_wei_per_packet
        if kind is NoPathKind.PRICE and limit is not None:
            sentence = f"no path of {self._constraints.hops} relays costs at most {show_price(limit)}"
            return NoPath(kind, position, sentence, tuple(steps))
        sentence = (
            f"none of {len(selection.entries)} relays that fit as {position.value} is independent of "
            f"{others} (identity, family, operator, network, IP version or price)"
        )
        return NoPath(kind, position, sentence, tuple(steps))


_Rule = tuple[NoPathKind, str, Callable[[Entry], bool]]


def _all_of(rules: list[_Rule]) -> Callable[[Entry], bool]:
    """Return all rules as one, the last first: a price leaves most out, and is quickly looked at."""
    tests = tuple(keep for _, _, keep in reversed(rules))

    def fits(entry: Entry) -> bool:
        for keep in tests:  # noqa: SIM110 - a generator would double the time
            if not keep(entry):
                return False
        return True

    return fits
