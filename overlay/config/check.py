"""Whether settings that are each fine by themselves agree, for the kind of node that is to run.

Returns sentences, the configuration's names in them; an empty list means go.
"""

from __future__ import annotations

import ipaddress

from overlay.config.model import Config
from overlay.descriptor import Address, is_usable_address


def advertised_addresses(config: Config) -> tuple[Address, ...]:
    """Return the addresses for the descriptor: those given, else those of `listen` that are concrete."""
    if config.relay.advertise:
        return config.relay.advertise
    return tuple(address for address in config.relay.listen if is_usable_address(address.ip))


def check_network(config: Config) -> list[str]:
    """Check what everybody needs who uses a network: the seed list and its key, or a registry."""
    problems: list[str] = []
    if config.uses_registry:
        return problems
    if config.seed_list is None and config.network.seed_list_key is None:
        return [
            "no network is named: either network.seed_list and network.seed_list_key (somebody's "
            "signed list of relays and the key that signs it), or a chain and its registry "
            "([payments] with chain_id, rpc, purses and registry)"
        ]
    if config.seed_list is None:
        problems.append("network.seed_list is not set: name the file with the network's list of relays")
    if config.network.seed_list_key is None:
        problems.append("network.seed_list_key is not set: name the key that signs the seed list")
    return problems


def check_payments(config: Config) -> list[str]:
    """Check what paying and being paid needs; nothing is needed while payments are off."""
    payments = config.payments
    if not payments.is_on:
        given = [name for name, value in (("rpc", payments.rpc), ("purses", payments.purses)) if value]
        return [f"payments.{name} is set, but payments.chain_id is not: say which chain" for name in given]
    problems = []
    if not payments.rpc:
        problems.append("payments.rpc is not set: name at least one JSON-RPC endpoint of the chain")
    if not payments.purses:
        problems.append("payments.purses is not set: name the contract that the network's purses are in")
    if payments.purses and payments.purses == payments.registry:
        problems.append("payments.purses and payments.registry are the same address; they are two contracts")
    if payments.max_in_purses_wei < payments.purse_deposit_wei:
        problems.append(
            "payments.max_in_purses is less than payments.purse_deposit: no purse could be opened"
        )
    if payments.purse_deposit_wei < payments.max_window_wei:
        problems.append("payments.purse_deposit is less than payments.max_window: a purse could not fill it")
    if payments.max_startup_credit_wei < payments.startup_credit_wei:
        problems.append("payments.max_startup_credit is less than payments.startup_credit")
    hour, day = payments.budget_per_hour_wei, payments.budget_per_day_wei
    if hour is not None and day is not None and day < hour:
        problems.append("payments.budget_per_day is less than payments.budget_per_hour")
    return problems


def check_relay(config: Config, *, with_network: bool = True) -> list[str]:
    """Check the settings of a relay or an exit; without a network for commands that only describe it."""
    problems = check_network(config) if with_network else []
    problems += check_payments(config)
    relay = config.relay
    if not relay.listen:
        problems.append("relay.listen is empty: a relay answers on at least one address")
    if not advertised_addresses(config) and not (with_network and config.gossips):
        problems.append(
            "relay.advertise is not set, and relay.listen names no single address: "
            'say where others reach this relay, such as advertise = ["203.0.113.7:4433"]'
        )
    problems += [
        f"relay.advertise: nobody can dial {address}"
        for address in relay.advertise
        if not is_usable_address(address.ip)
    ]
    if relay.onion_key_rotation_s < relay.descriptor_lifetime_s:
        problems.append(
            "relay.onion_key_rotation is shorter than relay.descriptor_lifetime: customers with an older "
            "descriptor could not build circuits"
        )
    if relay.max_circuits_per_link > relay.max_circuits:
        problems.append("relay.max_circuits_per_link is more than relay.max_circuits")
    return problems


def check_client(config: Config) -> list[str]:
    """Check the settings of a client."""
    problems = [*check_network(config), *check_payments(config)]
    client = config.client
    if not client.socks:
        problems.append("client.socks is empty: programs need an address to reach the proxy at")
    for name, chosen in (("guards", client.guards), ("exits", client.exits)):
        if chosen and set(chosen) <= set(client.exclude):
            problems.append(f"client.exclude names every one of client.{name}")
    if client.exit_country and client.exit_country in client.exclude_countries:
        problems.append(
            f"client.exclude_countries names {client.exit_country}, the exit_country that you ask for"
        )
    if client.direct and not client.whole_device:
        problems.append("client.direct is for client.whole_device = true: elsewhere nothing is routed")
    problems += [
        f"client.direct: {network} would let everything out"
        for network in client.direct
        if network.prefixlen == 0
    ]
    if client.circuits_ready > client.max_circuits:
        problems.append("client.circuits_ready is more than client.max_circuits")
    return problems


def list_warnings(config: Config) -> list[str]:
    """Return what is allowed but worth a warning at the start of a client."""
    warnings = []
    for address in config.client.socks:
        if not ipaddress.ip_address(address.ip).is_loopback:
            warnings.append(
                f"client.socks = {address}: everybody who reaches this address can use your circuits"
            )
    if config.client.hops == 1:
        warnings.append("client.hops = 1: the one relay knows both you and where you go")
    return warnings
