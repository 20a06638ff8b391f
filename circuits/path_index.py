"""The directory made ready for path choice: static rules, and lists kept for the next call.

Owns roles, bans, countries, ports, prices and the like, and the counts behind "no exit in the directory
allows port 443". Weights are `circuits.path_weights`; what depends on the relays already chosen is
`circuits.path`. Specification: docs/protocol/pool.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import accumulate

from circuits.building.messages import Address, price_chain
from circuits.candidates import (
    Candidate,
    Constraints,
    Network,
    NoPath,
    NoPathKind,
    Position,
    Step,
    show_price,
)
from circuits.handshake import Rng
from circuits.path_weights import base_weights, share_weights, spare_factor, stake_backing

CACHE_ENTRIES = 16  # filtered lists kept by one index
DRAWS = 24  # by weight, before everybody is looked at


class Entry:
    """A candidate with what the index works out once: what no other relay of a path may share, IP
    versions.
    """

    __slots__ = ("candidate", "country", "families", "networks", "operator", "owners")

    def __init__(self, candidate: Candidate, known: Entry | None = None) -> None:
        """Work out the keys, or take them from `known`, the same relay's entry in an older index.

        Raises ValueError for an address that is no IP literal.
        """
        self.candidate = candidate
        self.country = candidate.country
        self.networks: tuple[bytes, ...]
        self.families: frozenset[int]
        if known is not None and known.candidate.addresses == candidate.addresses:
            self.networks, self.families = known.networks, known.families
        else:
            addresses = [ip_address(host) for host, _port in candidate.addresses]
            self.networks = tuple(dict.fromkeys(ip.packed[: 2 if ip.version == 4 else 4] for ip in addresses))
            self.families = _VERSIONS[frozenset(ip.version for ip in addresses)]
        payee = candidate.payee.hex()
        self.operator = payee or candidate.operator or candidate.family
        names = {candidate.family, candidate.operator, payee} - {""}
        self.owners: frozenset[str | bytes] = frozenset({candidate.node_id, *names})

    def is_related(self, other: Entry, distinct_networks: bool = True) -> bool:
        """Tell whether both share identity, family, operator, or (if asked) a /16 (IPv4) or /32 (IPv6)."""
        return not self.owners.isdisjoint(other.owners) or (distinct_networks and self.shares_network(other))

    def shares_network(self, other: Entry) -> bool:
        """Tell whether both have an address in one /16 (IPv4) or /32 (IPv6)."""
        networks = other.networks
        return any(network in networks for network in self.networks)

    def address_from(self, families: frozenset[int]) -> Address | None:
        """Return the first address a node of these IP versions reaches, IPv4 before IPv6; None if there is
        none.
        """
        for version in sorted(families & self.families):
            for address in self.candidate.addresses:
                if ip_address(address[0]).version == version:
                    return address
        return None


_VERSIONS = {frozenset(v): frozenset(v) for v in ((4,), (6,), (4, 6))}


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

    def share(self, entry: Entry) -> float:
        """Return one entry's part (0 to 1) of the whole weight."""
        index = self.entries.index(entry)
        below = self._cumulative[index - 1] if index else 0.0
        return (self._cumulative[index] - below) / self._cumulative[-1]

    def shares(self) -> Iterator[tuple[Entry, float]]:
        """Yield each entry with its part (0 to 1) of the whole weight: how likely it is to be drawn."""
        below = 0.0
        for entry, upto in zip(self.entries, self._cumulative, strict=True):
            yield entry, (upto - below) / self._cumulative[-1]
            below = upto

    def draw(self, accept: Callable[[Entry], bool], rng: Rng) -> Entry | None:
        """Return a random entry that `accept` takes, by weight; None if it takes none."""
        if not self.entries:
            return None
        total = self._cumulative[-1]
        for _ in range(min(DRAWS, 2 * len(self.entries))):
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

    Weights and keys are computed once (about 10 us a candidate, less for those that `before` knew); the
    filtered list of each (position, constraints) is kept for the next call.
    """

    def __init__(self, candidates: Iterable[Candidate], before: PathIndex | None = None) -> None:
        """Index the candidates; of two with one identity the later counts. Those without an address are left
        out. `before`: an older index of much the same relays.
        """
        known = before.by_id if before is not None else {}
        unique = {candidate.node_id: candidate for candidate in candidates if candidate.addresses}
        self._entries = [Entry(candidate, known.get(candidate.node_id)) for candidate in unique.values()]
        self.by_id: dict[bytes, Entry] = {entry.candidate.node_id: entry for entry in self._entries}
        _join_families(self.by_id)
        everyone = list(unique.values())
        # Columns, for rules that look at every relay.
        self._prices = [c.price_wei_per_packet for c in everyone]
        self._exits = [i for i, c in enumerate(everyone) if c.is_exit]
        self._relays = [i for i, c in enumerate(everyone) if c.is_relay]
        self._suites = [c.suites for c in everyone]
        self._is_exit = [c.is_exit for c in everyone]
        self._networks = _number(entry.networks[0] for entry in self._entries)
        # Who has no operator is one of its own.
        self._operators = _number(entry.operator or entry.candidate.node_id for entry in self._entries)
        self._has_draining = any(c.is_draining for c in everyone)
        self._all_suites = set(self._suites)
        self._weights = base_weights(everyone)
        self._backing = stake_backing(everyone)
        self._spare = spare_factor(everyone, self._weights)
        self.cheapest_relay = min((self._prices[i] for i in self._relays), default=0)
        self._common_families = frozenset[int]({4, 6}).intersection(*{e.families for e in self._entries})
        self._cache: dict[Hashable, Selection] = {}
        # Where no rule leaves anybody out, by whether for exits.
        self._whole = {True: self._share(self._exits, True), False: self._share(self._relays, False)}
        self._limits: dict[tuple[bool, int, int], int] = {}

    def __len__(self) -> int:
        """Return the number of relays."""
        return len(self._entries)

    def select(self, position: Position, constraints: Constraints) -> Selection:
        """Return those that pass the static rules for a position; never empty without a `failure`."""
        key = self._rules_key(position, constraints)
        found = self._cache.pop(key, None)
        if found is None:
            if len(self._cache) >= CACHE_ENTRIES:
                del self._cache[next(iter(self._cache))]
            found = self._filter(position, constraints)
        self._cache[key] = found  # the order is that of the last use
        return found

    def own_limit(self, position: Position, constraints: Constraints) -> int | None:
        """Return the most a relay may ask for at a position: the path's limit if all others are the
        cheapest; None without a limit, -1 where the others alone cost more.
        """
        limit = constraints.max_price_wei_per_packet
        if limit is None:
            return None
        key = (position is Position.EXIT, constraints.hops, limit)
        if key in self._limits:
            return self._limits[key]
        if len(self._limits) >= CACHE_ENTRIES:
            self._limits.clear()
        others = [self.cheapest_relay] * (constraints.hops - 1)
        # Guards and middles share one limit, and so one list; rounding makes hardly a difference between
        # their places, and the whole path's price is checked again when it is complete.
        places = (len(others),) if position is Position.EXIT else range(min(2, len(others)))
        most = max((most_affordable(others[:at], others[at:], limit) for at in places), default=limit)
        self._limits[key] = most
        return most

    def _rules_key(self, position: Position, constraints: Constraints) -> Hashable:
        """Return what the static rules depend on, so that a port, say, does not bring new lists of guards."""
        c = constraints
        price = self.own_limit(position, c)
        shared = (c.banned, c.excluded_networks, c.suites, price, price is not None and c.hops)
        if position is Position.EXIT:
            families = c.own_families if c.hops == 1 else None
            return (shared, c.exits, c.ports, c.needs_ipv6, families)
        if position is Position.MIDDLE or not c.own_families.isdisjoint(self._common_families):
            return (shared, c.guards if position is Position.GUARD else c.middles)
        return (shared, c.guards, c.own_families)

    def _filter(self, position: Position, constraints: Constraints) -> Selection:
        is_exit = position is Position.EXIT
        what = "exit" if is_exit else "relay"
        steps = [Step("in the directory", len(self._entries))]
        if not self._entries:
            failure = NoPath(NoPathKind.EMPTY, position, "the directory is empty", tuple(steps))
            return Selection([], [], tuple(steps), failure)
        left: Sequence[int] = range(len(self._entries))
        of_role = 0
        for kind, rule, keep, sentence in self._rules(position, constraints):
            before = left
            left = keep(before)
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
        entries = [self._entries[index] for index in left]
        weights = self._whole[is_exit] if len(left) == of_role else self._share(left, is_exit)
        return Selection(entries, weights, tuple(steps), None)

    def _share(self, left: Sequence[int], is_exit: bool) -> list[float]:
        """Return the weights of those left for a position."""
        spare = 1.0 if is_exit else self._spare
        return share_weights(
            [self._weights[index] for index in left],
            [self._networks[index] for index in left],
            [self._operators[index] for index in left],
            [self._backing[index] for index in left],
            [self._is_exit[index] for index in left] if spare < 1 else [],
            spare,
        )

    def _hint(self, kind: NoPathKind, before: Sequence[int]) -> str:
        if kind is NoPathKind.COUNTRY:
            countries = sorted({self._entries[index].country or "unknown" for index in before})
            return f" (there are: {', '.join(countries[:20])})"
        if kind is NoPathKind.PRICE:
            return f" (the cheapest asks {show_price(min(self._prices[index] for index in before))})"
        return ""

    def _rules(self, position: Position, constraints: Constraints) -> list[_Rule]:
        """Return the static rules in the order they are told, as (kind, rule, filter, sentence)."""
        entries = self._entries
        is_exit = position is Position.EXIT
        rules: list[_Rule] = []

        def add(kind: NoPathKind, rule: str, keep: Callable[[Entry], bool], sentence: str) -> None:
            rules.append((kind, rule, lambda left: [i for i in left if keep(entries[i])], sentence))

        if is_exit:
            sentence = "no relay in the directory is an exit"
            rules.append((NoPathKind.EXIT, "is an exit", lambda _: self._exits, sentence))
        else:
            sentence = "no node in the directory is a relay"
            rules.append((NoPathKind.EXIT, "carries traffic for others", lambda _: self._relays, sentence))
        rules.append(
            (
                NoPathKind.SUITE,
                "speaks one of our cipher suites",
                lambda left: self._with_suite(left, frozenset(constraints.suites)),
                "{who} speaks a cipher suite of ours",
            )
        )
        if self._has_draining:
            add(
                NoPathKind.DRAINING,
                "is not about to leave",
                lambda e: not e.candidate.is_draining,
                "{who} is there to stay: they take nothing new",
            )
        banned, networks = constraints.banned, constraints.excluded_networks
        if not banned.is_empty() or networks:
            names = frozenset[str | bytes](banned.nodes | banned.operators)
            add(
                NoPathKind.BANNED,
                "is not banned",
                lambda e: (
                    names.isdisjoint(e.owners)
                    and e.country not in banned.countries
                    and not _is_inside(e.candidate, networks)
                ),
                "{who} may be used: the configuration bans them",
            )
        only = {
            Position.EXIT: constraints.exits,
            Position.GUARD: constraints.guards,
            Position.MIDDLE: constraints.middles,
        }[position]
        if only.countries:
            where = ", ".join(sorted(only.countries))
            add(
                NoPathKind.COUNTRY,
                f"is in {where}",
                lambda e: e.country in only.countries,
                "{who} is in " + where,
            )
        if only.nodes or only.operators:
            add(
                NoPathKind.BANNED,
                "is one of those chosen by the configuration",
                lambda e: only.admits(e.candidate),
                "{who} is one of those that the configuration asks for",
            )
        if is_exit:
            for port in constraints.ports:
                rules.append(_port_rule(entries, port))
            if constraints.needs_ipv6:
                add(NoPathKind.IPV6, "carries IPv6", lambda e: e.candidate.has_ipv6, "{who} carries IPv6")
        rules += self._price_rules(position, constraints)
        if position is Position.GUARD or (is_exit and constraints.hops == 1):
            own = constraints.own_families
            everybody = not own.isdisjoint(self._common_families)
            add(
                NoPathKind.UNREACHABLE,
                "has an address we can reach",
                lambda e: everybody or not own.isdisjoint(e.families),
                "{who} has an address of an IP version this machine has",
            )
        return rules

    def _price_rules(self, position: Position, constraints: Constraints) -> list[_Rule]:
        limit, own = constraints.max_price_wei_per_packet, self.own_limit(position, constraints)
        if limit is None or own is None:
            return []
        prices = self._prices
        shown = show_price(limit)
        rules: list[_Rule] = [
            (
                NoPathKind.PRICE,
                f"asks at most {shown}",
                lambda left: [i for i in left if prices[i] <= limit],
                f"{{who}} asks at most {shown}",
            )
        ]
        if own < limit:
            hops = constraints.hops
            rules.append(
                (
                    NoPathKind.PRICE,
                    f"asks at most {show_price(max(0, own))}, the rest being for the other relays",
                    lambda left: [i for i in left if prices[i] <= own],
                    f"no path of {hops} relays costs at most {shown}",
                )
            )
        return rules

    def _with_suite(self, left: Sequence[int], suites: frozenset[int]) -> Sequence[int]:
        fitting = {offered for offered in self._all_suites if not suites.isdisjoint(offered)}
        if len(fitting) == len(self._all_suites):
            return left
        return [i for i in left if self._suites[i] in fitting]


_Rule = tuple[NoPathKind, str, Callable[[Sequence[int]], Sequence[int]], str]


def most_affordable(before: Sequence[int], after: Sequence[int], limit: int) -> int:
    """Return the highest price that a relay between others of these prices may ask for, so that the path
    costs at most `limit`; -1 if the others alone cost more. All in wei per packet.
    """

    def fits(price: int) -> bool:
        return price_chain([*before, price, *after])[0][0] <= limit

    if not fits(0):
        return -1
    low, high = 0, limit + 1  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _port_rule(entries: Sequence[Entry], port: int) -> _Rule:
    def keep(left: Sequence[int]) -> list[int]:
        return [i for i in left if entries[i].candidate.ports.allows(port)]

    return NoPathKind.PORT, f"allows port {port}", keep, f"{{who}} allows port {port}"


def _number(names: Iterable[Hashable]) -> list[int]:
    """Return a small number for each name, the same for the same one."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _join_families(by_id: dict[bytes, Entry]) -> None:
    """Relate relays that name each other as family, by a key that both own."""
    for node_id, entry in by_id.items():
        for other_id in entry.candidate.members:
            other = by_id.get(other_id)
            if other is not None and other_id != node_id and node_id in other.candidate.members:
                entry.owners |= {min(node_id, other_id) + max(node_id, other_id)}


def _is_inside(candidate: Candidate, networks: tuple[Network, ...]) -> bool:
    if not networks:
        return False
    addresses = [ip_address(host) for host, _port in candidate.addresses]
    return any(address in network for network in networks for address in addresses)
