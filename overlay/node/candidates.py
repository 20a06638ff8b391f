"""The directory in the words of path choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.candidates import Candidate, Constraints, Only
from overlay.descriptor import Role, find_staleness

if TYPE_CHECKING:
    from overlay.config.model import ClientConfig
    from overlay.directory import Directory


def list_candidates(directory: Directory, unix_s: float) -> list[Candidate]:
    """Every relay of the directory whose descriptor is good at ``unix_s``."""
    found = []
    for entry in directory:
        descriptor = entry.descriptor
        if find_staleness(descriptor, unix_s) is not None:
            continue
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
                suites=descriptor.suites,
            )
        )
    return found


def make_constraints(
    config: ClientConfig, suites: tuple[int, ...], own_families: frozenset[int]
) -> Constraints:
    """What the customer's configuration demands of every path."""
    country = frozenset({config.exit_country}) if config.exit_country else frozenset[str]()
    return Constraints(
        hops=config.hops,
        banned=Only(nodes=frozenset(config.exclude), countries=frozenset(config.exclude_countries)),
        exits=Only(nodes=frozenset(config.exits), countries=country),
        guards=Only(nodes=frozenset(config.guards)),
        suites=suites,
        own_families=own_families,
    )
