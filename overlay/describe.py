"""What a node says of itself: its descriptor from its configuration and keys."""

from __future__ import annotations

from exit.policy import parse_policy
from overlay.config.check import advertised_addresses
from overlay.config.model import Config
from overlay.descriptor import Address, Descriptor, Role, SignedDescriptor, sign_descriptor
from overlay.errors import ConfigError
from overlay.identity import Identity
from overlay.ports import NO_PORTS, PortSummary, decode_summary, shorten
from overlay.version import VERSION


def describe_node(
    config: Config,
    identity: Identity,
    *,
    onion_key: bytes,
    previous_onion_key: bytes = b"",
    as_exit: bool,
    has_ipv6: bool,
    suites: tuple[int, ...],
    now_s: float,
    addresses: tuple[Address, ...] | None = None,
    lifetime_s: float | None = None,
    sequence: int | None = None,
    payee: bytes | None = None,
    payee_proof: bytes = b"",
    is_draining: bool = False,
    onion_key_made_s: int = 0,
    onion_key_period_s: int = 0,
) -> SignedDescriptor:
    """Return the node's descriptor, signed, valid from `now_s`.

    `has_ipv6` tells whether an exit reaches IPv6. `addresses`, `lifetime_s` and `payee` are by default the
    configured ones; `sequence` by default is the time in seconds, so a later descriptor of one node replaces
    an earlier one. Raises ConfigError if a setting cannot stand in
    a descriptor, such as addresses that nobody can dial; the settings are expected to have passed
    `overlay.config.check.check_relay`.
    """
    ports = _serve(config) if as_exit else NO_PORTS
    roles = Role.RELAY | Role.EXIT if as_exit else Role.RELAY
    published_s = int(now_s)
    try:
        return sign_descriptor(
            identity,
            Descriptor(
                identity=identity.node_id,
                sequence=published_s if sequence is None else sequence,
                published_s=published_s,
                expires_s=published_s + int(lifetime_s or config.relay.descriptor_lifetime_s),
                addresses=advertised_addresses(config) if addresses is None else addresses,
                onion_key=onion_key,
                previous_onion_key=previous_onion_key,
                role_bits=roles.value,
                price_wei_per_packet=config.relay.price_wei_per_packet,
                payee=config.relay.payee if payee is None else payee,
                payee_proof=payee_proof,
                is_draining=is_draining,
                onion_key_made_s=onion_key_made_s,
                onion_key_period_s=onion_key_period_s,
                exit_policy_summary=str(ports),
                has_ipv6=as_exit and has_ipv6,
                country=config.relay.country,
                family=config.relay.family,
                # Its own name may be among them: one list for all relays of an operator.
                members=tuple(one for one in config.relay.family_members if one != identity.node_id),
                monthly_cap_bytes=config.relay.monthly_cap_bytes,
                capacity_bytes_per_s=config.relay.capacity_bytes_per_s,
                software_version=VERSION,
                suites=suites,
            ),
        )
    except ValueError as error:
        raise ConfigError(f"no descriptor can be made of the configuration: {error}") from None


def _serve(config: Config) -> PortSummary:
    policy = parse_policy(config.exit.policy, open_ports=config.exit.open_ports)
    return shorten(decode_summary(policy.summary, limit=len(policy.summary)))
