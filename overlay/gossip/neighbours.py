"""Which relays a node keeps links to for discovery's sake.

Theory. A node picks its neighbours itself, at random from the root list, no two of one network or payee as
long as there are others: whoever wants to surround it must own most of the root list. A neighbour that cannot
be reached is passed over for a while and another is picked; one is exchanged now and then, so that the graph
of links goes on mixing. Links that others make are used too, but are no reason to pick fewer.

Pure. Returns whom to dial and whose links are no longer wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from overlay.descriptor import Address
from overlay.gossip.roots import Member
from overlay.gossip.store import Store, network_of

WANTED = 5
"""Neighbours of one's own choice: a random graph in which everybody picks five stays whole when a third
leaves at once.
"""
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 600.0
EXCHANGE_S = 1800.0
MAX_DIALS = 4
MAX_REMEMBERED = 4096


class Random(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high]."""

    def shuffle(self, x: list[Member]) -> None:
        """Put a list in random order."""


@dataclass(frozen=True, slots=True)
class DialNeighbour:
    """Make a link to this relay, at the first of these addresses that answers."""

    identity: bytes
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class LetGo:
    """A link to this relay is not needed any more, as far as discovery goes."""

    identity: bytes


@dataclass(slots=True)
class _Failure:
    count: int = 0
    until: float = 0.0


@dataclass(slots=True)
class Neighbours:
    """One node's choice."""

    own: bytes
    rng: Random
    wanted: int = WANTED
    own_families: frozenset[int] = frozenset({4, 6})
    """IP versions in which this node has a socket."""
    chosen: dict[bytes, float] = field(default_factory=dict)
    """Identities, and when each was picked."""
    _dialling: set[bytes] = field(default_factory=set)
    _failures: dict[bytes, _Failure] = field(default_factory=dict)
    _next_exchange: float | None = None

    def decide(
        self, store: Store, linked: Iterable[bytes], now: float, extra: Iterable[Member] = ()
    ) -> list[DialNeighbour | LetGo]:
        """Return what is to be done. `linked`: relays to which a link is up; `extra`: members from the
        configuration, for the first contact.
        """
        up = set(linked)
        outputs: list[DialNeighbour | LetGo] = []
        if self._next_exchange is None:
            self._next_exchange = now + self.rng.uniform(0.5, 1.0) * EXCHANGE_S
        for identity in list(self.chosen):
            if identity not in up and identity not in self._dialling and self._rests(identity, now):
                del self.chosen[identity]
        if now >= self._next_exchange:
            self._next_exchange = now + self.rng.uniform(0.75, 1.25) * EXCHANGE_S
            if len(self.chosen) >= self.wanted and len(store.roots) > self.wanted + 1:
                oldest = min(self.chosen, key=lambda one: self.chosen[one])
                del self.chosen[oldest]
                self._failures[oldest] = _Failure(1, now + EXCHANGE_S / 2)
                outputs.append(LetGo(oldest))
        if len(self.chosen) < self.wanted:
            self._pick(store, extra, now)
        for identity in self.chosen:
            if identity in up or identity in self._dialling or self._rests(identity, now):
                continue
            if len(self._dialling) >= MAX_DIALS:
                break
            addresses = self._addresses(store, extra, identity)
            if addresses:
                self._dialling.add(identity)
                outputs.append(DialNeighbour(identity, addresses))
        return outputs

    def handle_dialled(self, identity: bytes, is_up: bool, now: float) -> None:
        """A dial has come to its end."""
        self._dialling.discard(identity)
        if is_up:
            self._failures.pop(identity, None)
            return
        if len(self._failures) >= MAX_REMEMBERED:
            self._failures.pop(next(iter(self._failures)))
        failure = self._failures.setdefault(identity, _Failure())
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failure.count, 16))
        failure.count += 1
        failure.until = now + self.rng.uniform(delay_s / 2, delay_s)

    def _pick(self, store: Store, extra: Iterable[Member], now: float) -> None:
        candidates = [
            member
            for member in (*store.roots, *extra)
            if member.identity != self.own
            and member.identity not in self.chosen
            and not self._rests(member.identity, now)
            and self._addresses(store, extra, member.identity)
        ]
        self.rng.shuffle(candidates)
        networks = {network for identity in self.chosen for network in self._networks(store, extra, identity)}
        payees = {
            member.payee
            for identity in self.chosen
            if (member := store.roots.get(identity)) is not None and member.payee
        }
        alike: list[Member] = []
        for member in candidates:
            if len(self.chosen) >= self.wanted:
                return
            near = self._networks(store, extra, member.identity)
            if near & networks or member.payee in payees:
                alike.append(member)
                continue
            self.chosen[member.identity] = now
            networks |= near
            payees |= {member.payee} - {b""}
        for member in alike:  # better neighbours of one network than none
            if len(self.chosen) >= self.wanted:
                return
            self.chosen[member.identity] = now

    def _rests(self, identity: bytes, now: float) -> bool:
        failure = self._failures.get(identity)
        return failure is not None and now < failure.until

    def _networks(self, store: Store, extra: Iterable[Member], identity: bytes) -> set[bytes]:
        return {network_of(address.ip) for address in self._addresses(store, extra, identity)}

    def _addresses(self, store: Store, extra: Iterable[Member], identity: bytes) -> tuple[Address, ...]:
        """What the relay says of itself, else what the root list or the configuration says."""
        entry = store.get(identity)
        member = store.roots.get(identity)
        addresses: tuple[Address, ...] = ()
        if entry is not None:
            addresses = entry.descriptor.addresses
        elif member is not None:
            addresses = member.addresses
        if not addresses:
            addresses = next((one.addresses for one in extra if one.identity == identity), ())
        return tuple(address for address in addresses if (6 if ":" in address.ip else 4) in self.own_families)
