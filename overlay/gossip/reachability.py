"""Whether others can reach this relay: what it asks of them, what it does for them, and what that tells.

Theory. A relay asks a neighbour to dial the addresses that it is about to publish. The neighbour does so from
a socket of its own that has sent nothing to that address before: an answer to a known sender would come
through a firewall that lets no stranger in. It dials only the IP address that the request came from, or one
that the root list or the asker's descriptor names, and seldom, so that nobody can be made to knock at other
people's doors. A dial is a QUIC handshake in which the relay proves its identity.

Pure.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from overlay.descriptor import Address
from overlay.gossip.store import network_of
from overlay.links.bucket import Bucket

ASK = 3
"""Neighbours asked about an address, of different networks if there are."""
AGREE = 2
"""So many must agree, if so many could be asked."""
PEER_EVERY_S = 20.0
PEER_BURST = 3
TARGET_EVERY_S = 10.0
TARGET_BURST = 4
ALL_PER_S = 4.0
ALL_BURST = 16
MAX_TARGETS = 4096


class Outcome(enum.IntEnum):
    """What became of dialling back one address; on the wire."""

    REACHED = 0
    NO_ANSWER = 1
    OTHER_IDENTITY = 2
    """Something answers there, but with another key."""
    NOT_TRIED = 3
    """Not the address that the request came from, nor one that is published."""
    NO_FAMILY = 4
    """The other relay has no way to addresses of this kind."""
    TOO_OFTEN = 5
    PATH_TOO_SMALL = 6
    """It answers small packets only."""


class DialBackGate:
    """Which requests to dial back are carried out."""

    __slots__ = ("_all", "_peers", "_targets")

    def __init__(self, now: float) -> None:
        """Begin with nothing done."""
        self._all = Bucket(ALL_PER_S, ALL_BURST, now)
        self._peers: dict[bytes, Bucket] = {}
        self._targets: dict[bytes, Bucket] = {}

    def judge(
        self,
        peer: bytes,
        peer_ip: str,
        declared: Iterable[Address],
        addresses: Iterable[Address],
        own_families: frozenset[int],
        now: float,
    ) -> list[tuple[Address, Outcome | None]]:
        """Say for each of `addresses` whether it is to be dialled (None), or why not."""
        allowed = {peer_ip} | {address.ip for address in declared}
        judged: list[tuple[Address, Outcome | None]] = []
        if not self._bucket(self._peers, peer, 1 / PEER_EVERY_S, PEER_BURST, now).take(1, now):
            return [(address, Outcome.TOO_OFTEN) for address in addresses]
        for address in addresses:
            outcome: Outcome | None = None
            if address.ip not in allowed:
                outcome = Outcome.NOT_TRIED
            elif (6 if ":" in address.ip else 4) not in own_families:
                outcome = Outcome.NO_FAMILY
            else:
                key = network_of(address.ip) + address.ip.encode()
                target = self._bucket(self._targets, key, 1 / TARGET_EVERY_S, TARGET_BURST, now)
                if not (target.take(1, now) and self._all.take(1, now)):
                    outcome = Outcome.TOO_OFTEN
            judged.append((address, outcome))
        return judged

    def _bucket(
        self, buckets: dict[bytes, Bucket], key: bytes, rate_per_s: float, burst: float, now: float
    ) -> Bucket:
        bucket = buckets.get(key)
        if bucket is None:
            if len(buckets) >= MAX_TARGETS:
                for old in [old for old, one in buckets.items() if one.is_full(now)] or [next(iter(buckets))]:
                    del buckets[old]
            bucket = buckets[key] = Bucket(rate_per_s, burst, now)
        return bucket


class Finding(enum.Enum):
    """What is known of one address."""

    UNKNOWN = "not tested"
    REACHABLE = "reachable"
    FIREWALL = "firewall"
    NAT = "nat"
    WRONG_ADDRESS = "wrong address"
    OTHER_NODE = "another node"
    PATH_TOO_SMALL = "path too small"


@dataclass(slots=True)
class AddressTest:
    """What neighbours have said of one address, each once."""

    address: Address
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)

    def finding(self, seen: Iterable[str], local: frozenset[str]) -> Finding:
        """Judge. `seen`: at which IP addresses neighbours see this node; `local`: those of its interfaces."""
        counts = Counter(
            outcome
            for outcome in self.outcomes.values()
            if outcome not in (Outcome.NO_FAMILY, Outcome.TOO_OFTEN, Outcome.NOT_TRIED)
        )
        total = sum(counts.values())
        version = ":" in self.address.ip
        others = [ip for ip in seen if (":" in ip) is version]
        common = Counter(others).most_common(1)
        if not total:
            # An address that the request did not come from, and that is not published yet: a wrong one if
            # this node is seen at another of its kind, else one that can be tested once it is published.
            refused = Outcome.NOT_TRIED in self.outcomes.values()
            is_other = bool(common) and common[0][0] != self.address.ip
            return Finding.WRONG_ADDRESS if refused and is_other else Finding.UNKNOWN
        if counts[Outcome.REACHED] >= min(AGREE, total):
            return Finding.REACHABLE
        if common and common[0][0] != self.address.ip:
            if self.address.ip in local and common[0][0] not in local:
                return Finding.NAT
            return Finding.WRONG_ADDRESS
        if counts[Outcome.OTHER_IDENTITY]:
            return Finding.OTHER_NODE
        if counts[Outcome.PATH_TOO_SMALL]:
            return Finding.PATH_TOO_SMALL
        if self.address.ip not in local:
            return Finding.NAT
        return Finding.FIREWALL


def explain(finding: Finding, address: Address, seen: Iterable[str]) -> str:
    """Return the sentence for the operator; empty where there is nothing to complain of."""
    version = ":" in address.ip
    others = Counter(ip for ip in seen if (":" in ip) is version).most_common(1)
    seen_at = others[0][0] if others else "another address"
    sentences = {
        Finding.FIREWALL: (
            f"nobody can reach {address}: other relays got no answer, and this machine has that address. "
            f"A firewall keeps them out: let UDP port {address.port} in"
        ),
        Finding.NAT: (
            f"nobody can reach {address}: this machine is behind a router that translates addresses (others "
            f"see it as {seen_at}). Forward UDP port {address.port} to it, or set relay.port_mapping = true "
            "to have the router asked"
        ),
        Finding.WRONG_ADDRESS: (
            f"nobody can reach {address}: other relays see this machine as {seen_at}. Set relay.advertise "
            "to the address that it has, or leave it empty"
        ),
        Finding.OTHER_NODE: f"at {address} another node answers: relay.advertise or a port forward is wrong",
        Finding.PATH_TOO_SMALL: (
            f"at {address} only small packets arrive: the path must carry 1500-byte packets (a tunnel "
            "or a PPPoE line makes them smaller)"
        ),
    }
    return sentences.get(finding, "")
