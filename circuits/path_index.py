"""The directory made ready for path choice: static rules, weights, and lists kept for the next call.

Owns roles, bans, countries, ports, prices and the like, the weights, and the counts behind "no exit in the
directory allows port 443". What depends on the relays already chosen is `circuits.path`. Specification:
docs/protocol/pool.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from ipaddress import ip_address
from itertools import accumulate
from statistics import median

from circuits.building.messages import Address
from circuits.candidates import Candidate, Constraints, Network, NoPath, NoPathKind, Position, Step
from circuits.handshake import Rng

RANDOM_SHARE = 0.2  # part of the choice that neither capacity nor price nor stake can buy
OPERATOR_SHARE = 0.1  # most one operator gets of a position's weight, where there are enough operators for it
CAPACITY_CLIP = 10.0  # a declared capacity counts up to this many times the median: declaring costs nothing
SPARE_EXITS = 0.02  # least factor for exits in other positions while exits are scarce
CACHE_ENTRIES = 16  # filtered lists kept by one index


class Entry:
    """A candidate with what the index works out once: what no other relay of a path may share, IP
    versions.
    """

    __slots__ = ("candidate", "families", "networks", "operator", "owners")

    def __init__(self, candidate: Candidate) -> None:
        """Work out the keys. Raises ValueError for an address that is no IP literal."""
        addresses = [ip_address(host) for host, _port in candidate.addresses]
        names = {candidate.family.encode(), candidate.operator.encode()} - {b""}
        self.candidate = candidate
        self.operator = candidate.operator or candidate.family
        self.owners = frozenset({candidate.node_id, *names})
        self.networks = frozenset(ip.packed[: 2 if ip.version == 4 else 4] for ip in addresses)
        self.families = frozenset(ip.version for ip in addresses)

    def is_related(self, other: Entry, distinct_networks: bool = True) -> bool:
        """Tell whether both share identity, family, operator, or (if asked) a /16 (IPv4) or /32 (IPv6)."""
        return not (
            self.owners.isdisjoint(other.owners)
            and (not distinct_networks or self.networks.isdisjoint(other.networks))
        )

    def address_from(self, families: frozenset[int]) -> Address | None:
        """Return the first address a node of these IP versions reaches, IPv4 before IPv6; None if there is
        none.
        """
        for version in sorted(families & self.families):
            for address in self.candidate.addresses:
                if ip_address(address[0]).version == version:
                    return address
        return None


class Selection:
    """Those that pass the static rules for one position, ready for weighted draws."""

    __slots__ = ("_by_id", "_cumulative", "entries", "failure", "steps")

    def __init__(
        self, entries: list[Entry], weights: list[float], steps: tuple[Step, ...], failure: NoPath | None
    ) -> None:
        """Made by PathIndex."""
        self.entries = entries
        self.steps = steps
        self.failure = failure
        self._by_id: dict[bytes, Entry] | None = None
        self._cumulative = list(accumulate(weights))

    @property
    def by_id(self) -> dict[bytes, Entry]:
        """The entries by identity."""
        if self._by_id is None:
            self._by_id = {entry.candidate.node_id: entry for entry in self.entries}
        return self._by_id

    def draw(self, accept: Callable[[Entry], bool], rng: Rng) -> Entry | None:
        """Return a random entry that `accept` takes, by weight; None if it takes none."""
        if not self.entries:
            return None
        total = self._cumulative[-1]
        for _ in range(12):
            entry = self.entries[
                min(bisect_right(self._cumulative, uniform(rng) * total), len(self.entries) - 1)
            ]
            if accept(entry):
                return entry
        left = [index for index, entry in enumerate(self.entries) if accept(entry)]
        if not left:
            return None
        before = [self._cumulative[i - 1] if i else 0.0 for i in left]
        cumulative = list(accumulate(self._cumulative[i] - b for i, b in zip(left, before, strict=True)))
        place = min(bisect_right(cumulative, uniform(rng) * cumulative[-1]), len(left) - 1)
        return self.entries[left[place]]


def uniform(rng: Rng) -> float:
    """Return a number from 0 up to, but without, 1, from 7 bytes of `rng`."""
    return (int.from_bytes(rng(7), "big") >> 3) / (1 << 53)


class PathIndex:
    """The directory as path choice needs it. Unchanging: a new directory or new measurements make a new
    index.

    Weights and keys are computed once (about 10 us a candidate); the filtered list of each (position,
    constraints) is kept for the next call.
    """

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        """Index the candidates; of two with one identity the later counts. Those without an address are left
        out.
        """
        unique = {candidate.node_id: candidate for candidate in candidates if candidate.addresses}
        self._entries = [Entry(candidate) for candidate in unique.values()]
        self.by_id = {entry.candidate.node_id: entry for entry in self._entries}
        everyone = [entry.candidate for entry in self._entries]
        self._weights = _base_weights(everyone)
        self._spare = _spare_factor(everyone, self._weights)
        self.cheapest_relay = min(
            (e.candidate.price_wei_per_packet for e in self._entries if e.candidate.is_relay), default=0
        )
        self._common_families = frozenset[int]({4, 6}).intersection(*(e.families for e in self._entries))
        self._cache: dict[Hashable, Selection] = {}

    def __len__(self) -> int:
        """Return the number of relays."""
        return len(self._entries)

    def select(self, position: Position, constraints: Constraints) -> Selection:
        """Return those that pass the static rules for a position; never empty without a `failure`."""
        key = self._rules_key(position, constraints)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= CACHE_ENTRIES:
                del self._cache[next(iter(self._cache))]
            found = self._cache[key] = self._filter(position, constraints)
        return found

    def _rules_key(self, position: Position, constraints: Constraints) -> Hashable:
        """Return what the static rules depend on, so that a port, say, does not bring new lists of guards."""
        c = constraints
        shared = (c.banned, c.excluded_networks, c.suites, c.max_price_wei_per_packet)
        if position is Position.EXIT:
            families = c.own_families if c.hops == 1 else None
            return (shared, c.exits, c.ports, c.needs_ipv6, families)
        if position is Position.MIDDLE or not c.own_families.isdisjoint(self._common_families):
            return (shared, c.guards if position is Position.GUARD else c.middles)
        return (shared, c.guards, c.own_families)

    def _filter(self, position: Position, constraints: Constraints) -> Selection:
        left: list[int] = list(range(len(self._entries)))
        what = "exit" if position is Position.EXIT else "relay"
        steps = [Step("in the directory", len(left))]
        if not left:
            failure = NoPath(NoPathKind.EMPTY, position, "the directory is empty", tuple(steps))
            return Selection([], [], tuple(steps), failure)
        of_role = 0
        for kind, rule, test, sentence in _rules(position, constraints):
            before = left
            left = [index for index in before if test(self._entries[index])]
            steps.append(Step(rule, len(left)))
            if kind is NoPathKind.EXIT:
                of_role = len(left)
            if not left:
                whole = len(before) == of_role
                plural = "" if len(before) == 1 else "s"
                who = (
                    f"no {what} in the directory"
                    if whole
                    else f"of {len(before)} {what}{plural} left by the other rules none"
                )
                hint = self._hint(kind, before)
                failure = NoPath(kind, position, sentence.format(who=who) + hint, tuple(steps))
                return Selection([], [], tuple(steps), failure)
        spare = 1.0 if position is Position.EXIT else self._spare
        weights = _share(
            [self._weights[index] for index in left],
            [self._entries[index] for index in left],
            spare,
        )
        return Selection([self._entries[index] for index in left], weights, tuple(steps), None)

    def _hint(self, kind: NoPathKind, before: Sequence[int]) -> str:
        if kind is NoPathKind.COUNTRY:
            countries = sorted({self._entries[index].candidate.country or "unknown" for index in before})
            return f" (there are: {', '.join(countries[:20])})"
        if kind is NoPathKind.PRICE:
            cheapest = min(self._entries[index].candidate.price_wei_per_packet for index in before)
            return f" (the cheapest asks {cheapest} wei)"
        return ""


_Rule = tuple[NoPathKind, str, Callable[[Entry], bool], str]


def _rules(position: Position, constraints: Constraints) -> list[_Rule]:
    """Return the static rules in the order they are told, as (kind, rule, test, sentence)."""
    is_exit = position is Position.EXIT
    rules: list[_Rule] = []
    if is_exit:
        rules.append(
            (
                NoPathKind.EXIT,
                "is an exit",
                lambda e: e.candidate.is_exit,
                "no relay in the directory is an exit",
            )
        )
    else:
        rules.append(
            (
                NoPathKind.EXIT,
                "carries traffic for others",
                lambda e: e.candidate.is_relay,
                "no node in the directory is a relay",
            )
        )
    suites = frozenset(constraints.suites)
    rules.append(
        (
            NoPathKind.SUITE,
            "speaks one of our cipher suites",
            lambda e: not suites.isdisjoint(e.candidate.suites),
            "{who} speaks a cipher suite of ours",
        )
    )
    if not constraints.banned.is_empty() or constraints.excluded_networks:
        networks = constraints.excluded_networks
        rules.append(
            (
                NoPathKind.BANNED,
                "is not banned",
                lambda e: (
                    not constraints.banned.touches(e.candidate) and not _is_inside(e.candidate, networks)
                ),
                "{who} may be used: the configuration bans them",
            )
        )
    only = {
        Position.EXIT: constraints.exits,
        Position.GUARD: constraints.guards,
        Position.MIDDLE: constraints.middles,
    }[position]
    if only.countries:
        names = ", ".join(sorted(only.countries))
        countries = only.countries
        rules.append(
            (
                NoPathKind.COUNTRY,
                f"is in {names}",
                lambda e: e.candidate.country in countries,
                "{who} is in " + names,
            )
        )
    if only.nodes or only.operators:
        rules.append(
            (
                NoPathKind.BANNED,
                "is one of those chosen by the configuration",
                lambda e: only.admits(e.candidate),
                "{who} is one of those that the configuration asks for",
            )
        )
    if is_exit:
        for port in constraints.ports:
            rules.append(
                (
                    NoPathKind.PORT,
                    f"allows port {port}",
                    lambda e, port=port: e.candidate.ports.allows(port),  # type: ignore[misc]
                    f"{{who}} allows port {port}",
                )
            )
        if constraints.needs_ipv6:
            rules.append(
                (NoPathKind.IPV6, "carries IPv6", lambda e: e.candidate.has_ipv6, "{who} carries IPv6")
            )
    limit = constraints.max_price_wei_per_packet
    if limit is not None:
        rules.append(
            (
                NoPathKind.PRICE,
                f"asks at most {limit} wei per packet",
                lambda e: e.candidate.price_wei_per_packet <= limit,
                f"{{who}} asks at most {limit} wei per packet",
            )
        )
    if position is Position.GUARD or (is_exit and constraints.hops == 1):
        own = constraints.own_families
        rules.append(
            (
                NoPathKind.UNREACHABLE,
                "has an address we can reach",
                lambda e: not own.isdisjoint(e.families),
                "{who} has an address of an IP version this machine has",
            )
        )
    return rules


def _is_inside(candidate: Candidate, networks: tuple[Network, ...]) -> bool:
    if not networks:
        return False
    addresses = [ip_address(host) for host, _port in candidate.addresses]
    return any(address in network for network in networks for address in addresses)


def _median(values: Iterable[int]) -> float:
    """Return the median of the values above 0, or 0."""
    positive = [value for value in values if value > 0]
    return float(median(positive)) if positive else 0.0


def _base_weights(candidates: list[Candidate]) -> list[float]:
    """Return capacity x quality, bent a little by price and stake: at most twofold each, for both are for
    sale.
    """
    usual_capacity = _median(c.capacity_bytes_per_s for c in candidates) or 1.0
    usual_price = _median(c.price_wei_per_packet for c in candidates) or 1.0
    usual_stake = _median(c.stake_wei for c in candidates)
    weights = []
    for c in candidates:
        # Who declares nothing is taken for half of the usual.
        capacity = c.capacity_bytes_per_s / usual_capacity if c.capacity_bytes_per_s else 0.5
        weight = min(capacity, CAPACITY_CLIP) * min(max(c.quality, 0.0), 1.0)
        weight *= 1 / (1 + min(c.price_wei_per_packet / usual_price, 1.0))
        if usual_stake:
            weight *= 0.5 + 0.5 * min(c.stake_wei / usual_stake, 1.0)
        weights.append(weight)
    return weights


def _spare_factor(candidates: list[Candidate], weights: list[float]) -> float:
    """Return the factor for exits as guards and middles: exits count less there while they are under a third
    of all.
    """
    total = sum(weights)
    exits = sum(weight for c, weight in zip(candidates, weights, strict=True) if c.is_exit)
    return min(1.0, max(SPARE_EXITS, 1 - total / (3 * exits))) if exits else 1.0


def _share(weights: list[float], entries: list[Entry], spare: float) -> list[float]:
    """Mix weights with chance and cap each operator's part; the result adds up to at most 1.

    `spare`: factor for exits, on both parts.
    """
    count = len(entries)
    exits = [i for i, entry in enumerate(entries) if entry.candidate.is_exit] if spare < 1 else []
    for i in exits:
        weights[i] *= spare
    total = sum(weights)
    chance = RANDOM_SHARE / (count - (1 - spare) * len(exits))
    scale = (1 - RANDOM_SHARE) / total if total > 0 else 0.0
    mixed = [weight * scale + chance for weight in weights]
    for i in exits:
        mixed[i] -= chance * (1 - spare)
    operators: dict[str, float] = {}
    unnamed = 0
    for entry, weight in zip(entries, mixed, strict=True):
        if entry.operator:
            operators[entry.operator] = operators.get(entry.operator, 0.0) + weight
        else:
            unnamed += 1
    limit = _operator_limit(sorted(operators.values(), reverse=True), sum(mixed), len(operators) + unnamed)
    above = {name: limit / share for name, share in operators.items() if share > limit}
    if above:
        mixed = [
            weight * above.get(entry.operator, 1.0) for entry, weight in zip(entries, mixed, strict=True)
        ]
    return mixed


def _operator_limit(shares: list[float], total: float, operators: int) -> float:
    """Return the weight above which an operator is cut, so that none has more than its share of what is
    left then.
    """
    part = max(OPERATOR_SHARE, 2 / max(1, operators))
    cut = 0
    for share in shares:
        if (cut + 1) * part >= 1 or share <= part * total / (1 - cut * part):
            break
        cut += 1
        total -= share
    return part * total / (1 - cut * part)
