"""What path choice knows of a relay, what a customer demands of a path, and why there is none.

The fields are all there is to a choice: nothing else of a relay's descriptor reaches it. Specification:
docs/protocol/pool.md. The rules are applied by `circuits.path_index` and `circuits.path`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from circuits.building.messages import Address
from circuits.building.records import RECORDS
from circuits.params import UNIT

Network = IPv4Network | IPv6Network


class Ports(Protocol):
    """The ports an exit serves."""

    def allows(self, port: int) -> bool:
        """Tell whether connections to `port` are served."""


class Position(Enum):
    """A relay's place on a path."""

    GUARD = "guard"
    MIDDLE = "middle"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A relay as path choice sees it. `operator`: whoever runs it, as the root list says (as a rule the payee
    as text), empty if unknown, as `family` and `country`, which are the relay's own word.

    `members`: the identities that the relay calls its family; it counts where both relays name each other.
    `payee` (20 bytes or empty) is proven by its key. `capacity_bytes_per_s` is the relay's own word (0:
    none); `measured_bytes_per_s` (0: not yet) and `quality` (0 to 1) are this node's own measurements
    (`circuits.quality`), and cap what the relay says; `stake_wei` is from the root list. One that
    `is_draining` carries what it carries and wants nothing new.
    """

    node_id: bytes
    onion_key: bytes
    addresses: tuple[Address, ...]
    is_relay: bool
    is_exit: bool
    ports: Ports
    has_ipv6: bool = False
    country: str = ""
    family: str = ""
    operator: str = ""
    price_wei_per_packet: int = 0
    capacity_bytes_per_s: int = 0
    quality: float = 1.0
    stake_wei: int = 0
    suites: tuple[int, ...] = (1, 2)
    payee: bytes = b""
    members: tuple[bytes, ...] = ()
    measured_bytes_per_s: int = 0
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """A set of relays by identity, country and operator (payee or family); an empty part says nothing."""

    nodes: frozenset[bytes] = frozenset()
    countries: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()

    def is_empty(self) -> bool:
        """Tell whether nothing is said."""
        return not (self.nodes or self.countries or self.operators)

    def touches(self, candidate: Candidate) -> bool:
        """Tell whether any part names the relay: the meaning of a ban."""
        return (
            candidate.node_id in self.nodes
            or candidate.country in self.countries
            or candidate.operator in self.operators
            or candidate.family in self.operators
            or candidate.payee.hex() in self.operators
        )

    def admits(self, candidate: Candidate) -> bool:
        """Tell whether every part that says something names the relay: the meaning of a choice."""
        return (
            (not self.nodes or candidate.node_id in self.nodes)
            and (not self.countries or candidate.country in self.countries)
            and (
                not self.operators
                or candidate.operator in self.operators
                or candidate.family in self.operators
                or candidate.payee.hex() in self.operators
            )
        )


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a path must fulfil.

    `max_price_wei_per_packet` is for the whole path, as the client pays it (None: any). `ports`: the exit
    must serve all of them. `own_families`: IP versions (4, 6) in which this node reaches its guard.
    `distinct_networks` False lets relays share a /16 or /32, for a test network on one machine;
    `distinct_countries` forbids two relays in one country. Raises ValueError for hops outside 1 to 4.
    """

    hops: int = 3
    banned: Only = field(default_factory=Only)
    exits: Only = field(default_factory=Only)
    guards: Only = field(default_factory=Only)
    middles: Only = field(default_factory=Only)
    ports: tuple[int, ...] = ()
    needs_ipv6: bool = False
    max_price_wei_per_packet: int | None = None
    excluded_networks: tuple[Network, ...] = ()
    suites: tuple[int, ...] = (2, 1)
    own_families: frozenset[int] = frozenset({4, 6})
    distinct_networks: bool = True
    distinct_countries: bool = False

    def __post_init__(self) -> None:
        """Check the number of hops."""
        if not 1 <= self.hops <= RECORDS:
            raise ValueError(f"a path has 1 to {RECORDS} hops")


def show_price(wei_per_packet: int) -> str:
    """Return a price for people: per gigabyte in the chain's coin, or in wei per packet where that is
    clearer.
    """
    per_gb = wei_per_packet * 1e9 / UNIT / 1e18
    if wei_per_packet and per_gb < 1e-9:
        return f"{wei_per_packet} wei per packet"
    return f"{Decimal(f'{per_gb:.4g}'):f} per GB"


@dataclass(frozen=True, slots=True)
class Step:
    """One rule of a choice: what it demands, and how many candidates it left."""

    rule: str
    left: int


class NoPathKind(Enum):
    """Which rule left nobody."""

    EMPTY = "empty"
    EXIT = "exit"
    BANNED = "banned"
    COUNTRY = "country"
    PORT = "port"
    IPV6 = "ipv6"
    SUITE = "suite"
    PRICE = "price"
    GUARD = "guard"
    RELATED = "related"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class NoPath:
    """Why there is no path: the rule, a sentence for people, the steps up to it, and when asking again makes
    sense.
    """

    kind: NoPathKind
    position: Position
    sentence: str
    steps: tuple[Step, ...] = ()
    retry_at: float | None = None
