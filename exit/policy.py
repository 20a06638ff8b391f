"""The exit policy: what an operator lets out, with the deny list on top. Owns text, compiled rules and
verdicts.

Text is Tor's exit-policy grammar, read by `stem.exit_policy`: one `accept` or `reject` rule per line (or
several, separated by commas), the first that matches decides, `#` starts a comment, and the last rule must
cover everything:

    reject 198.51.100.0/24:*      # whole network
    accept *:80, accept *:443
    accept6 [2606:4700::]/32:1024-65535
    reject *:*

The deny list (`exit.denied`) comes first and no rule opens it. Only TCP, UDP and ICMP echo leave; rules do
not tell TCP from UDP. `PolicyTable.verdict` is the data path's question; nftables asks it again (`exit.nft`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from exit.denied import DENIED_PORTS, DenyList, pack_address
from exit.errors import PolicyError

if TYPE_CHECKING:
    from stem.exit_policy import ExitPolicyRule  # type: ignore[import-untyped]

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
#: In place of a port: "is anything at all let out to this address?" For ICMP echo and for later fragments.
ANY_PORT = -1
MAX_RULES = 1000
MAX_TEXT_CHARS = 100_000
#: Verdicts remembered, in each of two generations. About 200 bytes each.
CACHE_ENTRIES = 16_384

#: What Tor ships: everything but mail, file sharing and the ports that bring an operator complaints.
DEFAULT_POLICY = """\
reject *:25
reject *:119
reject *:135-139
reject *:445
reject *:563
reject *:1214
reject *:4661-4666
reject *:6346-6429
reject *:6699
reject *:6881-6999
accept *:*
"""


class Verdict(Enum):
    """What the exit does with a packet."""

    ACCEPT = "accept"
    #: The destination is on the deny list.
    DENIED_ADDRESS = "denied address"
    #: The operator's policy, or the denied ports.
    DENIED_PORT = "denied port"
    #: Neither TCP, UDP nor ICMP echo.
    DENIED_PROTOCOL = "denied protocol"
    #: This exit has no way out for IPv6.
    NO_IPV6 = "no IPv6"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `version` is 4, 6, or 0 for both; `network` and `mask` are integers; ports are inclusive."""

    accept: bool
    version: int
    network: int
    mask: int
    min_port: int
    max_port: int
    line: int

    def covers_all_ports(self) -> bool:
        """Tell whether every port is meant."""
        return self.min_port <= 1 and self.max_port == 65535


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy read from text. `summary` is for the descriptor; `notes` are sentences the operator should
    read.
    """

    rules: tuple[Rule, ...]
    summary: str
    notes: tuple[str, ...] = ()

    @property
    def lets_anything_out(self) -> bool:
        """Tell whether some destination is open at all."""
        return self.summary != "reject 1-65535"


def parse_policy(text: str, *, open_ports: Iterable[int] = ()) -> Policy:
    """Read an operator's policy. `open_ports` lifts ports that are denied by default (25, 445).

    Raises PolicyError with the line, the problem and what would be right.
    """
    # stem brings urllib and much else along (75 ms): only those who compile a policy pay for it.
    import stem.exit_policy as tor  # type: ignore[import-untyped]

    if len(text) > MAX_TEXT_CHARS:
        raise PolicyError(0, f"it has {len(text)} characters", f"at most {MAX_TEXT_CHARS} are read")
    closed = [port for port in DENIED_PORTS if port not in set(open_ports)]
    parsed = [tor.ExitPolicyRule(f"reject *:{port}") for port in closed]
    rules = [_convert(rule, 0) for rule in parsed]
    notes: list[str] = []
    ended_at = 0
    for line, words in _statements(text):
        for rule_text in _expand_private(line, words, tor.PRIVATE_ADDRESSES):
            try:
                rule = tor.ExitPolicyRule(rule_text)
            except ValueError as error:
                raise PolicyError(line, str(error), _hint(words)) from None
            if rule.min_port == 0:
                if rule.max_port == 0:
                    raise PolicyError(line, "port 0 does not exist", "write a port from 1 to 65535, or *")
                rule.min_port = 1
            if rule.get_address_type() == tor.AddressType.IPv4 and words.split()[0].endswith("6"):
                raise PolicyError(
                    line, f"{words!r} names an IPv4 address", "write accept or reject without the 6"
                )
            converted = _convert(rule, line)
            if ended_at:
                notes.append(f"exit policy, line {line}: never reached, line {ended_at} covers everything")
                continue
            notes.extend(_useless_accept(converted))
            parsed.append(rule)
            rules.append(converted)
            if rule.is_address_wildcard() and rule.is_port_wildcard():
                ended_at = line
            if len(rules) > MAX_RULES:
                raise PolicyError(line, f"more than {MAX_RULES} rules", "join networks or port ranges")
    if not ended_at:
        raise PolicyError(
            0, "it does not say what happens to everything else", "end it with `reject *:*` or `accept *:*`"
        )
    summary = str(tor.ExitPolicy(*parsed).summary()).replace(", ", ",")
    return Policy(tuple(rules), summary, tuple(notes))


def allows_port(summary: str, port: int) -> bool:
    """Tell whether a descriptor's summary (`accept 80,443` or `reject 1-1024`) lets `port` out; False if
    malformed.

    A summary cannot tell about single addresses; the exit itself may still refuse.
    """
    word, _, ports = summary.partition(" ")
    if word not in ("accept", "reject") or len(summary) > MAX_SUMMARY_CHARS or not 1 <= port <= 65535:
        return False
    hit = False
    for part in ports.split(","):
        match = _PORTS.fullmatch(part.strip())
        if match is None:
            return False
        first = int(match[1])
        hit = hit or first <= port <= int(match[2] or first)
    return hit is (word == "accept")


#: A descriptor is refused with a longer one; Tor's own limit for a summary is near 1000.
MAX_SUMMARY_CHARS = 1000
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")


CompiledRule = tuple[bool, int, int, int, int]
CompiledTable = tuple[bool, list[bytes], list[tuple[int, int, int]], list[CompiledRule], list[CompiledRule]]


class PolicyTable:
    """Verdicts for the data path: rules and deny list behind a cache of bounded size."""

    __slots__ = ("_deny", "_fresh", "_has_ipv6", "_limit", "_local", "_rules4", "_rules6", "_stale")

    def __init__(
        self,
        policy: Policy,
        deny: DenyList,
        *,
        has_ipv6: bool = True,
        dns_addresses: Iterable[str | bytes] = (),
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        """Judge by `policy` under `deny`; port 53 and echo of the exit's own `dns_addresses` are open all the
        same.

        `has_ipv6` False refuses every other IPv6 destination.
        """
        self._rules4 = _rules_for(policy.rules, 4)
        self._rules6 = _rules_for(policy.rules, 6)
        self._deny = deny
        self._has_ipv6 = has_ipv6
        self._local = frozenset(pack_address(address) for address in dns_addresses)
        self._limit = cache_entries
        self._fresh: dict[tuple[int, bytes, int], Verdict] = {}
        self._stale: dict[tuple[int, bytes, int], Verdict] = {}

    def verdict(self, version: int, protocol: int, destination: bytes, port: int) -> Verdict:
        """Judge one packet: IP version, protocol number, packed destination, destination port.

        `port` is ANY_PORT for ICMP echo requests and for fragments without a transport header. Of ICMP and
        ICMPv6 `parse` lets only echo requests come this far.
        """
        key = (protocol, destination, port)
        found = self._fresh.get(key)
        if found is not None:
            return found
        # Two generations stand for "least recently used": a hit costs no bookkeeping, what is used moves on.
        found = self._stale.get(key)
        if found is None:
            found = self._judge(version, protocol, destination, port)
        if len(self._fresh) >= self._limit:
            self._stale = self._fresh
            self._fresh = {}
        self._fresh[key] = found
        return found

    def replace_deny(self, deny: DenyList) -> None:
        """Use another deny list from now on, for example when relays come and go."""
        self._deny = deny
        self._fresh = {}
        self._stale = {}

    def compiled(self) -> CompiledTable:
        """Return what a verdict is made of, for an engine that judges by itself: whether IPv6 leaves, the
        packed DNS addresses, denied ranges as (IP version, first, last), sorted, and the rules of both
        versions as (accept, network, mask, first port, last port).
        """
        return self._has_ipv6, list(self._local), self._deny.every(), self._rules4, self._rules6

    def _judge(self, version: int, protocol: int, destination: bytes, port: int) -> Verdict:
        if protocol not in (TCP, UDP, ICMP if version == 4 else ICMPV6):
            return Verdict.DENIED_PROTOCOL
        if destination in self._local:
            return Verdict.ACCEPT if port in (53, ANY_PORT) else Verdict.DENIED_ADDRESS
        if destination in self._deny or len(destination) != (4 if version == 4 else 16):
            return Verdict.DENIED_ADDRESS
        if version == 6 and not self._has_ipv6:
            return Verdict.NO_IPV6
        if port == 0:
            return Verdict.DENIED_PORT
        value = int.from_bytes(destination, "big")
        for accept, network, mask, min_port, max_port in self._rules4 if version == 4 else self._rules6:
            if value & mask != network:
                continue
            if port == ANY_PORT:
                if accept or (min_port <= 1 and max_port == 65535):
                    return Verdict.ACCEPT if accept else Verdict.DENIED_PORT
            elif min_port <= port <= max_port:
                return Verdict.ACCEPT if accept else Verdict.DENIED_PORT
        return Verdict.DENIED_PORT


def _rules_for(rules: Sequence[Rule], version: int) -> list[tuple[bool, int, int, int, int]]:
    return [
        (rule.accept, rule.network, rule.mask, rule.min_port, rule.max_port)
        for rule in rules
        if rule.version in (0, version)
    ]


def _statements(text: str) -> Iterable[tuple[int, str]]:
    """Yield each rule's text with its line, counted from 1."""
    for line, content in enumerate(text.splitlines(), 1):
        for part in content.split("#", 1)[0].split(","):
            words = " ".join(part.split())
            if words:
                yield line, words


def _expand_private(line: int, words: str, private: Sequence[str]) -> list[str]:
    action, _, pattern = words.partition(" ")
    target, _, port = pattern.strip().rpartition(":")
    if target != "private":
        return [words]
    if action != "reject":
        raise PolicyError(
            line,
            f"{words!r} would open private addresses",
            "they are on the deny list; a test network names them in allow_ranges",
        )
    return [f"reject {network}:{port}" for network in private]


def _convert(rule: ExitPolicyRule, line: int) -> Rule:
    if rule.is_address_wildcard():
        return Rule(rule.is_accept, 0, 0, 0, rule.min_port, rule.max_port, line)
    address = ipaddress.ip_address(rule.address)
    mask = int(ipaddress.ip_address(rule.get_mask()))
    return Rule(
        rule.is_accept, address.version, int(address) & mask, mask, rule.min_port, rule.max_port, line
    )


def _useless_accept(rule: Rule) -> list[str]:
    """Return a note when the rule opens a single address or network that starts on the built-in deny list."""
    if not rule.accept or rule.version == 0 or rule.mask == 0:
        return []
    packed = rule.network.to_bytes(4 if rule.version == 4 else 16, "big")
    if packed not in DenyList():
        return []
    return [
        f"exit policy, line {rule.line}: {ipaddress.ip_address(packed)} is on the deny list;"
        " the rule opens it only if allow_ranges names it"
    ]


def _hint(words: str) -> str:
    action, _, pattern = words.partition(" ")
    if action not in ("accept", "reject", "accept6", "reject6"):
        return "a rule starts with accept or reject, for example `accept *:443`"
    if ":" not in pattern or (pattern.count(":") > 1 and "[" not in pattern):
        return "write ADDRESS:PORTS, for example `accept *:443` or `reject [2001:db8::]/32:*`"
    return (
        "an address is *, an IPv4 network such as 192.0.2.0/24 or an IPv6 network such as [2001:db8::]/32;"
        " ports are *, 443 or 1024-65535"
    )
