"""The exit's firewall: the text of one nftables table. Owns the rules; pure. `exit.io.network` loads and
removes it.

The table `inet hopfare_NAME` is the second gate behind the engine, and does what only the kernel can do:

| chain | hook | does | |---|---|---| | `spoof` | prerouting, raw | drops what comes from the TUN without an
inner source address | | `to_exit` | input | from the TUN only DNS and echo to the exit's inner addresses;
from elsewhere nothing to them | | `normalise` | forward, mangle | one TTL, no DSCP, no flow label, an IPv4
identification that says nothing (0 where there will be no fragments, else random), no TCP timestamps; the MSS
clamped both ways | | `gate` | forward | from the TUN: deny list, policy, flows per circuit; to the TUN:
answers only | | `nat` | postrouting | masquerade, IPv4 and IPv6, with random ports |

A flow is judged when it starts; its later packets pass by connection tracking, which also puts fragments
together first. Everything else that the machine forwards is left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from exit.addresses import DNS_V4, DNS_V6, INNER_V4, INNER_V6
from exit.denied import DenyList
from exit.policy import Policy, Rule

#: What hosts commonly start with (Linux, macOS, Android).
TTL = 64
#: Flows that one circuit may have open: a busy browser uses some hundreds, the machine's table holds 65,536
#: or more.
FLOWS_PER_CIRCUIT = 4096
#: Circuits whose flows are counted.
COUNTED_CIRCUITS = 65_535
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True, slots=True)
class Firewall:
    """What the table depends on. `name` makes the table's name, `tun` is the device, `mtu_bytes` its MTU."""

    name: str
    tun: str
    mtu_bytes: int
    policy: Policy
    deny: DenyList
    has_ipv6: bool = True
    flows_per_circuit: int = FLOWS_PER_CIRCUIT
    new_ids: bool = True
    """Whether the kernel makes random numbers for IPv4 identifications (nft_numgen)."""

    def __post_init__(self) -> None:
        """Refuse names that would not be names in nftables; raises ValueError."""
        for name in (self.name, self.tun):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} must be 1 to 15 of A-Z, a-z, 0-9, _, . and -")
        if not 1280 <= self.mtu_bytes <= 65535:
            raise ValueError(f"an MTU of {self.mtu_bytes} is not between 1280 and 65535")

    @property
    def table(self) -> str:
        """Return the table's name, without its family: `name`, with `hopfare_` in front unless it says so."""
        return self.name if self.name.startswith("hopfare") else f"hopfare_{self.name}"


def render(firewall: Firewall) -> str:
    """Return a script for `nft -f` that puts the table in place, whole, of a former one as well."""
    return f"table inet {firewall.table}\ndelete table inet {firewall.table}\n" + _table(firewall)


def render_exact(firewall: Firewall, deny: DenyList) -> str:
    """Return a script that replaces the table's exact denied addresses by those of `deny`."""
    lines = []
    for name, addresses in _exact(deny):
        lines.append(f"flush set inet {firewall.table} {name}")
        if addresses:
            lines.append(f"add element inet {firewall.table} {name} {{ {', '.join(addresses)} }}")
    return "\n".join(lines) + "\n"


def render_removal(table: str) -> str:
    """Return a script that removes the table and does not mind when there is none."""
    return f"table inet {table}\ndelete table inet {table}\n"


def _table(firewall: Firewall) -> str:
    tun = f'"{firewall.tun}"'
    v4, v6, dns4, dns6 = str(INNER_V4), str(INNER_V6), str(DNS_V4), str(DNS_V6)
    mss4, mss6 = firewall.mtu_bytes - 40, firewall.mtu_bytes - 60
    exact = dict(_exact(firewall.deny))
    no_ipv6 = "" if firewall.has_ipv6 else "    meta nfproto ipv6 counter drop\n"
    new_ids = "    ip id set numgen random mod 4294967295\n" if firewall.new_ids else ""
    # The identification gets the first two bytes of numgen's four, which a smaller range would leave 0. A
    # datagram that was put together here may be cut again, so only what fits as it came gets 0.
    return f"""\
table inet {firewall.table} {{
{_set("denied4", "ipv4_addr", [str(network) for network in firewall.deny.networks(4)], "interval")}
{_set("denied6", "ipv6_addr", [str(network) for network in firewall.deny.networks(6)], "interval")}
{_set("exact4", "ipv4_addr", exact["exact4"])}
{_set("exact6", "ipv6_addr", exact["exact6"])}
  set flows4 {{ type ipv4_addr; size {COUNTED_CIRCUITS}; flags dynamic; }}
  set flows6 {{ type ipv6_addr; size {COUNTED_CIRCUITS}; flags dynamic; }}

  chain spoof {{
    type filter hook prerouting priority raw; policy accept;
    iifname {tun} ip saddr != {v4} counter drop
    iifname {tun} ip6 saddr != {v6} counter drop
    iifname {tun} ip hdrlength != 5 counter drop
    iifname {tun} exthdr hbh exists counter drop
    iifname {tun} exthdr rt exists counter drop
    iifname {tun} exthdr dst exists counter drop
  }}

  chain to_exit {{
    type filter hook input priority filter; policy accept;
    iifname {tun} goto from_circuits
    iifname "lo" accept
    ip daddr {dns4} counter drop
    ip6 daddr {dns6} counter drop
  }}

  chain from_circuits {{
    ct state invalid counter drop
    ip daddr {dns4} jump services
    ip6 daddr {dns6} jump services
    counter drop
  }}

  chain services {{
    udp dport 53 accept
    tcp dport 53 accept
    icmp type echo-request accept
    icmpv6 type echo-request accept
  }}

  chain normalise {{
    type filter hook forward priority mangle; policy accept;
    oifname {tun} tcp flags & (syn|rst) == syn jump clamp
    iifname != {tun} accept
    ip ttl set {TTL}
    ip6 hoplimit set {TTL}
{new_ids}    ip frag-off & 0x4000 != 0 ip length <= {firewall.mtu_bytes} ip id set 0
    ip frag-off & 0x4000 != 0 meta l4proto tcp ip id set 0
    ip dscp set cs0
    ip6 dscp set cs0
    ip6 flowlabel set 0
    tcp flags & (syn|rst) == syn jump clamp
    tcp flags & (syn|rst) == syn reset tcp option timestamp
  }}

  chain clamp {{
    meta nfproto ipv4 tcp option maxseg size set {mss4}
    meta nfproto ipv6 tcp option maxseg size set {mss6}
  }}

  chain gate {{
    type filter hook forward priority filter; policy accept;
    iifname {tun} goto outward
    oifname {tun} goto inward
  }}

  chain outward {{
    oifname {tun} counter drop
    ct state invalid counter drop
    meta l4proto != {{ tcp, udp, icmp, icmpv6 }} counter drop
    icmp type != echo-request counter drop
    icmpv6 type != echo-request counter drop
    ct state established,related accept
    tcp flags & (fin|syn|rst|ack) != syn counter drop
{no_ipv6}\
    ip daddr @denied4 counter drop
    ip6 daddr @denied6 counter drop
    ip daddr @exact4 counter drop
    ip6 daddr @exact6 counter drop
    fib daddr type != unicast counter drop
    ct state new add @flows4 {{ ip saddr ct count over {firewall.flows_per_circuit} }} counter drop
    ct state new add @flows6 {{ ip6 saddr ct count over {firewall.flows_per_circuit} }} counter drop
    meta l4proto {{ icmp, icmpv6 }} goto echo
    goto ports
  }}

  chain ports {{
{_rules(firewall.policy.rules)}
    counter drop
  }}

  chain echo {{
{_echo_rules(firewall.policy.rules)}
    counter drop
  }}

  chain inward {{
    icmp type redirect counter drop
    ct state established,related accept
    counter drop
  }}

  chain nat {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname != {tun} ip saddr {v4} masquerade fully-random
    oifname != {tun} ip6 saddr {v6} masquerade fully-random
  }}
}}
"""


def _set(name: str, kind: str, elements: Iterable[str], flags: str = "") -> str:
    listed = ", ".join(elements)
    flag_text = f" flags {flags};" if flags else ""
    element_text = f" elements = {{ {listed} }};" if listed else ""
    return f"  set {name} {{ type {kind};{flag_text}{element_text} }}"


def _exact(deny: DenyList) -> list[tuple[str, list[str]]]:
    texts = {4: [], 6: []}  # type: dict[int, list[str]]
    for packed in sorted(deny.exact):
        address = ipaddress.ip_address(packed)
        texts[address.version].append(str(address))
    return [("exact4", texts[4]), ("exact6", texts[6])]


def _rules(rules: Iterable[Rule]) -> str:
    lines = []
    for rule in rules:
        ports = ""
        if not rule.covers_all_ports():
            span = f"{rule.min_port}-{rule.max_port}" if rule.max_port > rule.min_port else str(rule.min_port)
            ports = f"th dport {span}"
        lines.append(_line(rule, ports))
    return "\n".join(lines)


def _echo_rules(rules: Iterable[Rule]) -> str:
    """Return the rules for an address alone: any open port opens it, only a full refusal closes it."""
    return "\n".join(_line(rule, "") for rule in rules if rule.accept or rule.covers_all_ports())


def _line(rule: Rule, ports: str) -> str:
    verdict = "accept" if rule.accept else "counter drop"
    return "    " + " ".join(part for part in (_destination(rule), ports, verdict) if part)


def _destination(rule: Rule) -> str:
    if not rule.version:
        return ""
    if not rule.mask:
        return f"meta nfproto ipv{rule.version}"
    keyword = "ip" if rule.version == 4 else "ip6"
    network = ipaddress.ip_address(rule.network.to_bytes(4 if rule.version == 4 else 16, "big"))
    bits = 32 if rule.version == 4 else 128
    inverse = (1 << bits) - 1 - rule.mask
    if inverse & (inverse + 1):  # a mask with gaps, which Tor's grammar allows for IPv4
        return f"{keyword} daddr & {ipaddress.ip_address(rule.mask)} == {network}"
    return f"{keyword} daddr {network}/{bits - inverse.bit_length()}"
