"""Whole-device mode: names, numbers, routing rules, two nftables tables. Pure; `exit.io.device` loads them.

The machine's packets go by a veth pair into the customer's namespace, which gives them the current circuit's
inner address (source NAT) and hands them to the TUN:

    programs -> rule 1189, table 26735 -> hopfare1 =veth= host0 -> `inet hopfare_gateway` -> TUN -> circuit

Two tables, one on the machine and one in the namespace:

| table, chain | hook | does |
|---|---|---|
| `hopfare_device` `leave` | postrouting, last | the lock: out goes what is for the tunnel, the client's own \
packets to relays that it has dialled, what the user excepted, DHCP and neighbour discovery; nothing else |
| `hopfare_device` `early` | output | ends connections that were made before, with a reset |
| `hopfare_device` `names`, `names_of_others` | output and prerouting, nat | sends every DNS question to the \
exit's DNS |
| `hopfare_device` `others` | postrouting, nat | containers and machines behind this one share its address |
| `hopfare_device` `enter` | prerouting, raw | nobody from outside reaches the tunnel's address |
| `hopfare_device` `remember` | prerouting | answers to the client's packets carry its mark, for rp_filter |
| `hopfare_gateway` `forward` | forward | from the machine to the TUN; answers back; nothing else |
| `hopfare_gateway` `nat` | postrouting | a new flow gets the current circuit's address and keeps it |

The lock does not depend on the routes: whatever changes those, a packet leaves only by a rule of `leave`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from exit.addresses import DNS_V4, DNS_V6

#: SO_MARK of the client's own packets: "hopf".
MARK = 0x686F7066
TABLE = "hopfare_device"
GATEWAY_TABLE = "hopfare_gateway"
#: The machine's end of the veth pair, and the namespace's.
DEVICE, INNER_DEVICE = "hopfare1", "host0"
#: RFC 7335: addresses for the ends of an IPv4 tunnel inside one machine; no exit carries them anywhere.
HOST_V4, GATEWAY_V4, LENGTH_V4 = "192.0.0.2", "192.0.0.1", 29
#: A ULA beside the inner addresses' own prefix.
HOST_V6, GATEWAY_V6, LENGTH_V6 = "fd68:6f70:6662::2", "fd68:6f70:6662::1", 64
ROUTE_TABLE = 26735
PRIORITY_DIRECT, PRIORITY_DHCP, PRIORITY_TUNNEL = 1180, 1181, 1189
TTL = 64
#: Relays that may be reached at a time.
MAX_ADMITTED = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Peer = tuple[str, int]
"""A numeric address and a port."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the client's own packets may reach: relays by UDP, and the chain's endpoints by TCP."""

    relays: tuple[Peer, ...] = ()
    chain: tuple[Peer, ...] = ()


def render_lock(direct: Iterable[Network], admitted: Admitted) -> str:
    """Return a script that puts the machine's table in place at once, of a former one as well."""
    direct = tuple(direct)
    direct4 = [str(one) for one in direct if one.version == 4]
    direct6 = [str(one) for one in direct if one.version == 6]
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set relays4 {{ type ipv4_addr . inet_service; }}
  set relays6 {{ type ipv6_addr . inet_service; }}
  set chain4 {{ type ipv4_addr . inet_service; }}
  set chain6 {{ type ipv6_addr . inet_service; }}
{_networks("direct4", "ipv4_addr", direct4)}
{_networks("direct6", "ipv6_addr", direct6)}

  chain enter {{
    type filter hook prerouting priority raw; policy accept;
    iifname {{ "lo", "{DEVICE}" }} accept
    ip daddr {HOST_V4} counter drop
    ip6 daddr {HOST_V6} counter drop
  }}

  chain remember {{
    type filter hook prerouting priority mangle; policy accept;
    ct mark {MARK} meta mark set ct mark
  }}

  chain names {{
    type nat hook output priority -100; policy accept;
    oifname "lo" accept
    meta l4proto {{ tcp, udp }} th dport 53 jump to_exit
  }}

  chain names_of_others {{
    type nat hook prerouting priority -100; policy accept;
    iifname {{ "lo", "{DEVICE}" }} accept
    fib daddr type local accept
    meta l4proto {{ tcp, udp }} th dport 53 jump to_exit
  }}

  chain to_exit {{
    meta nfproto ipv4 dnat ip to {DNS_V4}
    meta nfproto ipv6 dnat ip6 to {DNS_V6}
  }}

  chain early {{
    type filter hook output priority filter; policy accept;
    oifname "{DEVICE}" ip saddr != {HOST_V4} meta l4proto tcp counter reject with tcp reset
    oifname "{DEVICE}" ip6 saddr != {{ {HOST_V6}, fe80::/10 }} meta l4proto tcp counter reject with tcp reset
  }}

  chain others {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{DEVICE}" ip saddr != {HOST_V4} masquerade
    oifname "{DEVICE}" ip6 saddr != {{ {HOST_V6}, fe80::/10 }} masquerade
  }}

  chain leave {{
    type filter hook postrouting priority 200; policy drop;
    oifname "lo" accept
    meta mark {MARK} jump own
    oifname "{DEVICE}" ip saddr {HOST_V4} accept
    oifname "{DEVICE}" ip6 saddr {HOST_V6} accept
    oifname "{DEVICE}" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    oifname "{DEVICE}" counter drop
    iifname "{DEVICE}" ct direction reply accept
    meta l4proto {{ tcp, udp }} th dport {{ 53, 853 }} counter drop
    ip daddr @direct4 accept
    ip6 daddr @direct6 accept
    udp sport 68 udp dport 67 accept
    ip6 daddr {{ fe80::/10, ff02::1:2 }} udp sport 546 udp dport 547 accept
    ip6 hoplimit 255 icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    counter drop
  }}

  chain own {{
    ct mark set meta mark
    oifname "{DEVICE}" counter drop
    ip daddr . udp dport @relays4 accept
    ip6 daddr . udp dport @relays6 accept
    ip daddr . tcp dport @chain4 accept
    ip6 daddr . tcp dport @chain6 accept
  }}
}}
""" + render_admitted(admitted)


def render_admitted(admitted: Admitted) -> str:
    """Return a script that makes exactly these reachable for the client's own packets, in a table that
    stands.
    """
    lines = []
    for name, peers in (("relays", admitted.relays), ("chain", admitted.chain)):
        for version in (4, 6):
            kept = sorted({peer for peer in peers if ipaddress.ip_address(peer[0]).version == version})
            lines.append(f"flush set inet {TABLE} {name}{version}")
            if kept:
                elements = ", ".join(f"{host} . {port}" for host, port in kept)
                lines.append(f"add element inet {TABLE} {name}{version} {{ {elements} }}")
    return "\n".join(lines) + "\n"


def render_removal() -> str:
    """Return a script that lifts the lock and does not mind when there is none."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def list_rules(direct: Iterable[Network], *, has_ipv6: bool) -> list[str]:
    """Return the routing rules, each as the words of `ip` behind `rule add`, its family first.

    What carries the client's mark keeps the machine's own routes. Rules name a priority each of their own
    kind, by which they are removed.
    """
    families = [4, 6] if has_ipv6 else [4]
    rules = [
        f"-{network.version} priority {PRIORITY_DIRECT} to {network} table main"
        for network in direct
        if network.version in families
    ]
    rules.append(f"-4 priority {PRIORITY_DHCP} ipproto udp sport 68 dport 67 table main")
    rules += [
        f"-{version} priority {PRIORITY_TUNNEL} not fwmark {MARK:#x} table {ROUTE_TABLE}"
        for version in families
    ]
    return rules


def list_routes(*, has_ipv6: bool) -> list[str]:
    """Return the routes of our table, as the words of `ip` behind `route replace`, the family first.

    The second of a family stays when the device is gone, and refuses at once. `onlink`, because a look-up of
    the IPv6 gateway would find this very route.
    """
    routes = [
        f"-4 default via {GATEWAY_V4} dev {DEVICE} onlink src {HOST_V4} table {ROUTE_TABLE} metric 100",
        f"-4 unreachable default table {ROUTE_TABLE} metric 4096",
    ]
    if has_ipv6:
        routes += [
            f"-6 default via {GATEWAY_V6} dev {DEVICE} onlink src {HOST_V6} table {ROUTE_TABLE} metric 100",
            f"-6 unreachable default table {ROUTE_TABLE} metric 4096",
        ]
    return routes


def render_gateway(tun: str) -> str:
    """Return the script of the namespace's table. `tun` is the namespace's TUN. Raises ValueError for a name
    that is none.
    """
    if not _NAME.fullmatch(tun):
        raise ValueError(f"{tun!r} must be 1 to 15 of A-Z, a-z, 0-9, _, . and -")
    return f"""\
table inet {GATEWAY_TABLE} {{
  map source4 {{ type mark : ipv4_addr; }}
  map source6 {{ type mark : ipv6_addr; }}
  set alive4 {{ type ipv4_addr; }}
  set alive6 {{ type ipv6_addr; }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != "{INNER_DEVICE}" accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    counter drop
  }}

  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{tun}" oifname "{INNER_DEVICE}" ct state established,related accept
    iifname != "{INNER_DEVICE}" counter drop
    oifname != "{tun}" counter drop
    ip saddr != {HOST_V4} counter drop
    ip6 saddr != {HOST_V6} counter drop
    ct state invalid counter drop
    ct direction original ct status snat ct reply ip daddr != @alive4 goto gone
    ct direction original ct status snat ct reply ip6 daddr != @alive6 goto gone
    ct state new tcp flags & (fin|syn|rst|ack) != syn reject with tcp reset
    ip ttl set {TTL}
    ip6 hoplimit set {TTL}
    ip dscp set cs0
    ip6 dscp set cs0
    tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu
    tcp flags & (syn|rst) == syn reset tcp option timestamp
    accept
  }}

  chain gone {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}

  chain nat {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{tun}" ip saddr {HOST_V4} snat ip to meta mark map @source4
    oifname "{tun}" ip6 saddr {HOST_V6} snat ip6 to meta mark map @source6
  }}
}}
"""


def render_source(version: int, old: str, new: str) -> str:
    """Return a script that gives new flows of an IP version the address `new` in place of `old`.

    "-" is no address. Flows that have one keep it.
    """
    lines = []
    if old != "-":
        lines.append(f"delete element inet {GATEWAY_TABLE} source{version} {{ 0 }}")
    if new != "-":
        lines.append(f"add element inet {GATEWAY_TABLE} source{version} {{ 0 : {new} }}")
        lines.append(f"add element inet {GATEWAY_TABLE} alive{version} {{ {new} }}")
    return "\n".join(lines) + "\n"


def render_gone(address: str) -> str:
    """Return a script by which flows with this address are told to end: its circuit is gone."""
    version = ipaddress.ip_address(address).version
    name = f"inet {GATEWAY_TABLE} alive{version} {{ {address} }}"
    # Deleting what is not there is an error, adding what is there is none.
    return f"add element {name}\ndelete element {name}\n"


def _networks(name: str, kind: str, networks: list[str]) -> str:
    elements = f" elements = {{ {', '.join(networks)} }};" if networks else ""
    return f"  set {name} {{ type {kind}; flags interval; auto-merge;{elements} }}"
