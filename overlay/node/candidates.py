"""The directory in the words of path choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.candidates import Candidate, Constraints, Only
from overlay.descriptor import Role, find_staleness
from payments.pricing import GIGABYTE, PACKET_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from circuits.quality import QualityBook
    from overlay.config.model import ClientConfig, Config
    from overlay.directory import Directory


def list_candidates(
    directory: Directory,
    unix_s: float,
    book: QualityBook | None = None,
    stakes: Mapping[bytes, int] | None = None,
) -> list[Candidate]:
    """Every relay of the directory whose descriptor is good at ``unix_s``.

    Quality and throughput are what `book` has of this node's own measuring; ``stakes`` are wei by identity,
    from the root list.
    """
    found = []
    for entry in directory:
        descriptor = entry.descriptor
        if find_staleness(descriptor, unix_s) is not None:
            continue
        figures = book.figures(descriptor.identity, unix_s) if book is not None else None
        found.append(
            Candidate(
                node_id=descriptor.identity,
                onion_key=descriptor.onion_key,
                addresses=tuple((address.ip, address.port) for address in descriptor.addresses),
                is_relay=Role.RELAY in descriptor.roles,
                is_exit=descriptor.is_exit,
                ports=entry.ports,
                has_ipv6=descriptor.has_ipv6,
                country=descriptor.country,
                family=descriptor.family,
                operator=descriptor.payee.hex(),
                price_wei_per_packet=descriptor.price_wei_per_packet,
                capacity_bytes_per_s=descriptor.capacity_bytes_per_s,
                quality=figures.score if figures is not None else 1.0,
                measured_bytes_per_s=figures.rate_bytes_per_s if figures is not None else 0,
                stake_wei=(stakes or {}).get(descriptor.identity, 0),
                suites=descriptor.suites,
                payee=descriptor.payee,
                members=descriptor.members,
                is_draining=descriptor.is_draining,
            )
        )
    return found


def make_constraints(config: Config, suites: tuple[int, ...], own_families: frozenset[int]) -> Constraints:
    """What the customer's configuration demands of every path."""
    client = config.client
    return Constraints(
        hops=client.hops,
        banned=Only(
            nodes=frozenset(client.exclude),
            countries=frozenset(client.exclude_countries),
            operators=frozenset(client.exclude_operators),
        ),
        exits=Only(
            nodes=frozenset(client.exits),
            countries=_countries(client),
            operators=frozenset(client.exit_operators),
        ),
        guards=Only(
            nodes=frozenset(client.guards),
            countries=frozenset(client.guard_countries),
            operators=frozenset(client.guard_operators),
        ),
        middles=Only(
            nodes=frozenset(client.middles),
            countries=frozenset(client.middle_countries),
            operators=frozenset(client.middle_operators),
        ),
        max_price_wei_per_packet=_most_wei_per_packet(config.payments.budget_per_gb_wei),
        suites=suites,
        own_families=own_families,
        distinct_countries=client.distinct_countries,
    )


def _countries(client: ClientConfig) -> frozenset[str]:
    return frozenset({client.exit_country}) if client.exit_country else frozenset()


def _most_wei_per_packet(wei_per_gb: int | None) -> int | None:
    """The most that a packet may cost so that a gigabyte costs no more than that: rounded down."""
    return None if wei_per_gb is None else wei_per_gb * PACKET_BYTES // GIGABYTE
