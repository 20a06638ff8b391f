"""The settings: sections, names, defaults, limits and what each means.

Each setting is written once, here: the default file of `hopfare init`, docs/operations/configuration.md and
the checks all come from this table. An attribute carries its unit in its name (`rotation_s`); in the file
the unit is part of the value and the key goes without it (``rotation = "10m"``).
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from exit.policy import DEFAULT_POLICY
from overlay.config import values
from overlay.config.values import Contact, Network, Parser
from overlay.descriptor import MAX_MEMBERS, Address
from overlay.identity import NodeId
from payments.books import MAX_CHAIN_ID

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the file and the user know of one setting."""

    key: str
    default: str
    """As written in TOML."""
    parse: Parser[object]
    text: str
    """What it means, for the default file and the manual."""


def _setting(default: str, parse: Parser[T], text: str, *, key: str = "") -> T:
    """Declare a field of a section; `default` is TOML. `key` is the name in the file, if it is another."""
    value = parse(tomllib.loads(f"value = {default}")["value"])
    return cast(T, field(default=cast(Any, value), metadata={"setting": (key, default, parse, text)}))


_NAME = values.matching(
    r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}", "at most 32 letters, digits, dots, dashes or empty"
)
_FILE = values.text


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """[node]: what every kind of node needs."""

    state_dir: str = _setting(
        '""',
        _FILE,
        "Folder for the identity, the onion keys, the guards and the control socket. One running node "
        "has one folder for itself. Empty: /var/lib/hopfare for root, else ~/.local/state/hopfare.",
    )
    log_level: str = _setting(
        '"info"',
        values.choice("debug", "info", "warning", "error"),
        "What goes to the log (standard error): debug, info, warning or error.",
    )
    quic: Literal["qh3", "aioquic"] = cast(
        Any,
        _setting(
            '"qh3"',
            values.choice("qh3", "aioquic"),
            "QUIC library: qh3 is fast; aioquic is pure Python, some five times slower, and the reference.",
        ),
    )
    engine: Literal["auto", "native", "python"] = cast(
        Any,
        _setting(
            '"auto"',
            values.choice("auto", "native", "python"),
            "What carries packets: native (Rust, with a QUIC of its own) is many times faster; python runs\n"
            "everywhere and is the reference; auto takes the native one where it is installed.",
        ),
    )
    engine_threads: int = _setting(
        "1",
        values.threads,
        "Threads of the native engine, 1 to 64: neighbours are spread over them. More than one pays where\n"
        'one thread fills a core and others are idle. "auto": one less than there are cores, at most 8.',
    )
    memory_limit_bytes: int = _setting(
        '"128 MiB"',
        values.size_bytes("16 MiB", "1 TiB"),
        "Most that packets waiting in this process may take. Above it the circuits that hold the most are\n"
        "ended.",
        key="memory_limit",
    )
    metrics: Address | None = _setting(  # noqa: RUF009 - the value is immutable
        '""',
        values.optional(values.address),
        'Address for Prometheus to fetch metrics from by HTTP, such as "127.0.0.1:9433". Totals only;\n'
        "yet keep it from strangers, to whom times and totals say something. Empty: none.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """[relay]: for `hopfare relay` and `hopfare exit`."""

    listen: tuple[Address, ...] = _setting(
        '["0.0.0.0:4433", "[::]:4433"]',
        values.each(values.address, at_most=8),
        "UDP addresses to answer on.",
    )
    advertise: tuple[Address, ...] = _setting(
        "[]",
        values.each(values.address, at_most=8),
        "Addresses that others reach this relay at, for its descriptor. Empty: the same as listen, which "
        "then must name the addresses one by one.",
    )
    price_wei_per_packet: int = _setting(
        '"0"',
        values.price_wei_per_packet,
        'What you ask for yourself, either way: "0.05 per GB" in the chain\'s coin, or "69200 wei per '
        'packet" (of 1384 bytes). Charged only with [payments]; customers learn it from your descriptor.',
        key="price",
    )
    payee: bytes = _setting(
        '""',
        values.payee,
        "Account to be paid to, 0x and 40 digits. Empty: that of payments.key_file.",
    )
    country: str = _setting('""', values.country, "Country of the machine, two letters. Shown to customers.")
    family: str = _setting(
        '""',
        _NAME,
        "A name for all relays that you run: no customer's path goes through two of one family.",
    )
    capacity_bytes_per_s: int = _setting(
        '"0"',
        values.rate_bytes_per_s,
        'What you offer each way, such as "100 Mbit/s"; "0" says nothing. Customers prefer larger ones.',
        key="capacity",
    )
    monthly_cap_bytes: int = _setting(
        '"0 B"',
        values.size_bytes("0 B", "1000 TiB"),
        'Most to carry in a calendar month (UTC), both ways together, such as "2 TB"; "0 B" for no limit.\n'
        "At 95 % no new circuits are taken, at 100 % nothing is carried until the next month.",
        key="monthly_cap",
    )
    family_members: tuple[NodeId, ...] = _setting(
        "[]",
        values.each(values.node, at_most=MAX_MEMBERS),
        "Names of your other relays. It counts where each names the other; relays with one payee need none.",
    )
    publish_lifetime_s: float = _setting(
        '"1d"',
        values.duration_s("10m", "7d"),
        "How long a descriptor that this relay publishes is good; it publishes a new one at half of that.",
        key="publish_lifetime",
    )
    test_reachability: bool = _setting(
        "true",
        values.boolean,
        "Whether others must have reached this relay before it publishes its addresses.",
    )
    port_mapping: bool = _setting(
        "false",
        values.boolean,
        "Ask the router (NAT-PMP, UPnP) to forward the port of listen to this machine.",
    )
    max_links: int = _setting("4096", values.integer(1, 1_000_000), "Most QUIC connections at a time.")
    max_links_per_address: int = _setting(
        "64",
        values.integer(1, 1_000_000),
        "Most connections from one IPv4 address or one IPv6 /64.",
    )
    max_circuits: int = _setting("65536", values.integer(1, 10_000_000), "Most circuits at a time.")
    max_circuits_per_link: int = _setting(
        "8192", values.integer(1, 1_000_000), "Most circuits through one connection."
    )
    descriptor_lifetime_s: float = _setting(
        '"30d"',
        values.duration_s("1h", "100d"),
        "How long an exported descriptor is good for: as long as the seed list it goes into.",
        key="descriptor_lifetime",
    )
    onion_key_rotation_s: float = _setting(
        '"30d"',
        values.duration_s("1h", "100d"),
        "Age at which the onion key is replaced; the old one works for the same time again. At least "
        "descriptor_lifetime, or customers of an older list could not build circuits through this relay.",
        key="onion_key_rotation",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitConfig:
    """[exit]: for `hopfare exit`."""

    policy: str = _setting(
        "'''\n" + DEFAULT_POLICY + "'''",
        values.text,
        "Where customers may connect to, in Tor's exit-policy language, first match wins; the last rule "
        "must cover everything. Private and special ranges are refused before it and cannot be opened here.",
    )
    open_ports: tuple[int, ...] = _setting(
        "[]",
        values.each(values.integer(1, 65535), at_most=16),
        "Ports that are closed whatever the policy says (25 and 445), and that you want it to decide about.",
    )
    allow_ranges: tuple[Network, ...] = _setting(
        "[]",
        values.each(values.network, at_most=64),
        "Ranges of the deny list to lift, for test networks: everybody can then reach your own machines "
        "in them.",
    )
    resolvers: tuple[Address, ...] = _setting(
        "[]",
        values.each(values.resolver, at_most=8),
        "DNS servers to ask, by IP address. Empty: those of /etc/resolv.conf.",
    )
    interface: str = _setting(
        '"hopfare0"',
        values.matching(
            r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", "a network interface's name of at most 15 characters"
        ),
        "Name of the exit's TUN interface and of its firewall table.",
    )
    ipv6: str = _setting(
        '"auto"',
        values.choice("auto", "on", "off"),
        "Whether to carry IPv6 to the internet; auto: if the machine has a default route for it.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """[client]: for `hopfare client`."""

    socks: tuple[Address, ...] = _setting(
        '["127.0.0.1:1080"]',
        values.each(values.address, at_most=8),
        "Where programs reach the SOCKS5 and HTTP CONNECT proxy. Anybody who can connect to it can use it.",
    )
    hops: int = _setting(
        "3",
        values.integer(1, 4),
        "Relays on a path, 1 to 4. With one, that relay knows both you and where you go.",
    )
    exit_country: str = _setting('""', values.country, "Leave in this country only, two letters. Empty: any.")
    exits: tuple[NodeId, ...] = _setting(
        "[]",
        values.each(values.node, at_most=256),
        "Leave at these nodes only, by name. Empty: any exit.",
    )
    guards: tuple[NodeId, ...] = _setting(
        "[]",
        values.each(values.node, at_most=16),
        "Enter at these nodes only, by name. Empty: chosen at random and kept for months, which is safer.",
    )
    middles: tuple[NodeId, ...] = _setting(
        "[]",
        values.each(values.node, at_most=256),
        "Go through these nodes only between guard and exit, by name. Empty: four that change now and then.",
    )
    middle_countries: tuple[str, ...] = _setting(
        "[]", values.each(values.country, at_most=256), "Go through these countries only. Empty: any."
    )
    middle_operators: tuple[str, ...] = _setting(
        "[]", values.each(values.operator, at_most=64), "Go through these operators' nodes only. Empty: any."
    )
    exit_operators: tuple[str, ...] = _setting(
        "[]",
        values.each(values.operator, at_most=64),
        "Leave at these operators' nodes only: their account (0x and 40 digits) or family name. Empty: any.",
    )
    guard_countries: tuple[str, ...] = _setting(
        "[]", values.each(values.country, at_most=256), "Enter in these countries only. Empty: any."
    )
    guard_operators: tuple[str, ...] = _setting(
        "[]", values.each(values.operator, at_most=64), "Enter at these operators' nodes only. Empty: any."
    )
    exclude: tuple[NodeId, ...] = _setting(
        "[]", values.each(values.node, at_most=1024), "Nodes never to use, by name."
    )
    exclude_countries: tuple[str, ...] = _setting(
        "[]", values.each(values.country, at_most=256), "Countries never to use a node in."
    )
    exclude_operators: tuple[str, ...] = _setting(
        "[]",
        values.each(values.operator, at_most=1024),
        "Operators never to use a node of: their account (0x and 40 digits) or family name.",
    )
    distinct_countries: bool = _setting(
        "false", values.boolean, "No two nodes of a path in one country, as far as they say where they are."
    )
    probes_per_hour: int = _setting(
        "12",
        values.integer(0, 3600),
        "How often, while nothing is going on, a circuit is built only to measure a relay that little is "
        "known of. Each costs as much as 100 packets. 0: never.",
    )
    isolation: tuple[str, ...] = _setting(
        '["user"]',
        values.each(values.choice("user", "destination", "port"), at_most=3),
        "What never shares a circuit: connections of different SOCKS user names and passwords (user), to "
        "different hosts (destination), to different ports (port).",
    )
    circuits_ready: int = _setting(
        "2", values.integer(1, 32), "Circuits kept built and measured for the next connection."
    )
    max_circuits: int = _setting(
        "64",
        values.integer(1, 1024),
        "Most circuits at a time; bounds what isolation can ask for.",
    )
    rotation_s: float = _setting(
        '"10m"',
        values.duration_s("10s", "1d"),
        "Age after which a circuit takes no new connections; those it has finish on it.",
        key="rotation",
    )
    max_connections: int = _setting(
        "4096", values.integer(1, 60_000), "Most connections through the proxy at a time."
    )
    whole_device: bool = _setting(
        "false",
        values.boolean,
        "Send everything that this machine does through the circuits, and let nothing else out, also after a "
        "crash.\nIt needs CAP_NET_ADMIN.",
    )
    direct: tuple[Network, ...] = _setting(
        "[]",
        values.each(values.address_or_network, at_most=64),
        "With whole_device: addresses and networks that are reached outside of the tunnel, such as "
        '["192.168.1.0/24"]\nfor printers, or whoever is logged in over ssh. DNS goes through the tunnel.',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """[network]: whose network this is."""

    name: str = _setting(
        '""',
        values.matching(r"[a-z0-9][a-z0-9-]{0,31}", "at most 32 small letters, digits and dashes"),
        "The network's name as its seed list gives it. Empty: whatever the list says.",
    )
    seed_list: str = _setting(
        '""',
        _FILE,
        "File with the signed list of the network's relays. Read again when it changes.",
    )
    discovery: Literal["gossip", "list"] = cast(
        Any,
        _setting(
            '"gossip"',
            values.choice("gossip", "list"),
            "How nodes learn of relays: gossip, from one another, with the registry (payments.registry) or "
            "the seed list saying who belongs; list, from the descriptors in the seed list only.",
        ),
    )
    bootstrap: tuple[Contact, ...] = _setting(
        "[]",
        values.each(values.contact, at_most=32),
        "Relays for the first contact, NAME@ADDRESS:PORT each, beside those that registry or seed list name.",
    )
    registry_start: int = _setting(
        "0",
        values.integer(0, 2**53),
        "Block of the registry's deployment: its events are looked for from there on.",
    )
    seed_list_key: NodeId | None = _setting(  # noqa: RUF009 - the value is immutable
        '""',
        values.optional(values.node),
        "Name of the key that signs the list: 52 characters, from whoever gave you the list.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsConfig:
    """[payments]: paying and being paid on an EVM chain. Off while chain_id is 0."""

    chain_id: int = _setting(
        "0", values.integer(0, MAX_CHAIN_ID), "Number of the chain, such as 100 for Gnosis. 0: no payments."
    )
    rpc: tuple[str, ...] = _setting(
        "[]",
        values.each(values.endpoint, at_most=8),
        "JSON-RPC endpoints of the chain. Several of different companies are better: the next one is asked "
        "when one fails, and of two that disagree about a purse the less favourable is believed.",
    )
    purses: bytes = _setting('""', values.payee, "Address of the contract that keeps the purses.")
    registry: bytes = _setting('""', values.payee, "Address of the relays' registry. Empty: none is used.")
    coin: str = _setting(
        '"coin"',
        values.matching(r"[A-Za-z][A-Za-z0-9.]{0,11}", "a coin's short name, such as ETH"),
        "What the chain's coin is called where amounts are shown.",
    )
    key_file: str = _setting(
        '""',
        _FILE,
        "This node's account: an Ethereum key file (keystore v3), which `hopfare wallet new` makes. It pays, "
        "and is paid if relay.payee is empty. Empty: key.json in the state folder.",
    )
    passphrase_file: str = _setting(
        '""',
        _FILE,
        "File whose first line is the key file's passphrase, readable by nobody else. Empty: the variable "
        "HOPFARE_PASSPHRASE, or commands ask.",
    )
    confirmations: int = _setting(
        "3", values.integer(0, 1000), "Blocks on top of a transaction before money in it is counted on."
    )
    max_window_wei: int = _setting(
        '"0.01"',
        values.amount_wei,
        "Most that is prepaid on one link, so the most that one next hop can take without service. It "
        "starts at 64 packets and grows with what is delivered. Too small for a fast link makes it slow.",
        key="max_window",
    )
    purse_deposit_wei: int = _setting(
        '"0.1"',
        values.amount_wei,
        "What is put into a new purse towards a next hop, and added whenever it is nearly used up. What "
        "remains comes back after the contract's notice.",
        key="purse_deposit",
    )
    max_in_purses_wei: int = _setting(
        '"1"', values.amount_wei, "Most that all open purses may hold together.", key="max_in_purses"
    )
    unlock_idle_days: int = _setting(
        "30",
        values.integer(0, 3650),
        "After so many days on which this node ran and used a purse for nothing, what is left in it is taken "
        "back, if that is worth its gas. 0: never.",
    )
    startup_credit_wei: int = _setting(
        '"0.001"',
        values.amount_wei,
        "For relays: what a neighbour may use before the opening of its purse is confirmed. It is lost if "
        'the opening never is. "0": service waits for confirmation.',
        key="startup_credit",
    )
    max_startup_credit_wei: int = _setting(
        '"0.01"',
        values.amount_wei,
        "For relays: most start-up credit given to all neighbours together.",
        key="max_startup_credit",
    )
    claim_multiple: int = _setting(
        "20",
        values.integer(1, 1_000_000),
        "Tickets are claimed on the chain when they are worth this many times the gas of claiming them; "
        "before a purse's unlock deadline in any case.",
    )
    claim_batch: int = _setting("32", values.integer(1, 64), "Most purses claimed in one transaction.")
    claim_interval_s: float = _setting(
        '"1m"',
        values.duration_s("1s", "1d"),
        "How often the chain is looked at for what there is to claim.",
        key="claim_interval",
    )
    claim_margin_s: float = _setting(
        '"6h"',
        values.duration_s("1s", "30d"),
        "How long before a purse's unlock deadline its tickets are claimed whatever the gas costs.",
        key="claim_margin",
    )
    budget_per_hour_wei: int | None = _setting(
        '""',
        values.optional(values.amount_wei),
        "For customers: most that is spent in any hour; then traffic stops, and says so. Empty: no limit.",
        key="budget_per_hour",
    )
    budget_per_day_wei: int | None = _setting(
        '""',
        values.optional(values.amount_wei),
        "For customers: most that is spent in any day. Empty: no limit.",
        key="budget_per_day",
    )
    budget_per_gb_wei: int | None = _setting(
        '""',
        values.optional(values.amount_wei),
        "For customers: most that a gigabyte may cost; no dearer path is chosen. Empty: no limit.",
        key="budget_per_gb",
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is paid at all."""
        return self.chain_id != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration, each value checked by itself (for their agreement: `overlay.config.check`)."""

    node: NodeConfig = NodeConfig()
    relay: RelayConfig = RelayConfig()
    exit: ExitConfig = ExitConfig()
    client: ClientConfig = ClientConfig()
    network: NetworkConfig = NetworkConfig()
    payments: PaymentsConfig = PaymentsConfig()
    state_dir: Path = Path("/var/lib/hopfare")
    """`node.state_dir` made absolute."""
    seed_list: Path | None = None
    """`network.seed_list` made absolute, against the configuration file's folder."""
    key_file: Path = Path("/var/lib/hopfare/key.json")
    """`payments.key_file` made absolute."""
    passphrase_file: Path | None = None
    """`payments.passphrase_file` made absolute."""
    file: Path | None = None
    """The file it came from; None if there is none."""

    @property
    def gossips(self) -> bool:
        """Whether descriptors come from other nodes, not from the seed list."""
        return self.network.discovery == "gossip"

    @property
    def uses_registry(self) -> bool:
        """Whether the registry says who belongs to the network; else the seed list does."""
        return self.gossips and self.payments.is_on and bool(self.payments.registry)


SECTIONS: dict[str, type[Any]] = {
    "node": NodeConfig,
    "relay": RelayConfig,
    "exit": ExitConfig,
    "client": ClientConfig,
    "network": NetworkConfig,
    "payments": PaymentsConfig,
}


def list_settings(section: str) -> dict[str, tuple[str, Setting]]:
    """Return a section's settings by key, each with its attribute's name, in their order."""
    found = {}
    for attribute in dataclasses.fields(SECTIONS[section]):
        key, default, parse, text = attribute.metadata["setting"]
        key = key or attribute.name
        found[key] = (attribute.name, Setting(key, default, parse, text))
    return found
