"""The exit's deny list: which destinations no operator's policy can open. Owns the ranges and their
arithmetic.

The ranges come from the IANA special-purpose registries (RFC 6890 and its updates) and from what cloud hosts
use for their machines' secrets. On top of them come exact addresses, given by the node: those of the machine
itself, its gateways, its public addresses, and those of known relays (an exit that connects to relays makes
loops and amplifies).

`allow` lifts ranges for test networks. It never lifts an exact address, and never opens an IPv4 destination
that is only hidden in an IPv6 one: mapped, compatible, NAT64 and 6to4 forms are unpacked and judged as the
IPv4 address.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: First and last address of a range, as integers.
Range = tuple[int, int]

DENIED_RANGES_V4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carrier-grade NAT, and the inner addresses; contains Alibaba's 100.100.100.200
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's platform address: public by its number only
    "169.254.0.0/16",  # link local, metadata services
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments; contains Oracle's 192.0.0.192
    "192.0.2.0/24",  # documentation
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
)
DENIED_RANGES_V6 = (
    "::/8",  # unspecified, loopback, IPv4-mapped and -compatible
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",  # local NAT64
    "100::/64",  # discard
    "2001::/23",  # protocol assignments, Teredo, ORCHID
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "3fff::/20",  # documentation
    "fc00::/7",  # unique local; contains Amazon's fd00:ec2::254
    "fe80::/10",  # link local
    "fec0::/10",  # site local, deprecated
    "ff00::/8",  # multicast
)
#: Ports that only an explicit wish of the operator opens: mail to mail servers (spam), Windows file sharing
#: (worms).
DENIED_PORTS = (25, 445)

_V6_MAPPED = (0xFFFF << 32, (0xFFFF << 32) | 0xFFFFFFFF)
_V6_COMPATIBLE_LAST = 0xFFFFFFFF
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::")) >> 32
_NAT64_LOCAL = int(ipaddress.IPv6Address("64:ff9b:1::")) >> 80
_SIX_TO_FOUR = 0x2002


class DenyList:
    """A set of denied IPv4 and IPv6 destinations. Immutable; lookups cost one bisection."""

    __slots__ = ("_bounds", "_ends", "exact", "ranges")

    def __init__(
        self, *, allow: Iterable[str] = (), addresses: Iterable[str | bytes] = (), extra: Iterable[str] = ()
    ) -> None:
        """Deny the built-in ranges without those in `allow`, the networks in `extra`, and exact `addresses`.

        `addresses` are texts or packed (4 or 16 bytes); a scope (`%eth0`) is ignored. Raises ValueError for a
        text that is no address or network, with the text in the message.
        """
        lifted = [parse_network(text) for text in allow]
        added = [parse_network(text) for text in extra]
        exact: set[bytes] = {pack_address(address) for address in addresses}
        self.exact = frozenset(exact)
        #: By version, sorted and merged, without the exact addresses.
        self.ranges: dict[int, tuple[Range, ...]] = {}
        self._bounds: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        for version, base in ((4, DENIED_RANGES_V4), (6, DENIED_RANGES_V6)):
            kept = subtract(
                [_range_of(parse_network(text)) for text in base],
                [_range_of(network) for network in lifted if network.version == version],
            )
            kept += [_range_of(network) for network in added if network.version == version]
            merged = merge(kept)
            self.ranges[version] = tuple(merged)
            size = 4 if version == 4 else 16
            own = [int.from_bytes(address, "big") for address in exact if len(address) == size]
            every = merge([*merged, *((value, value) for value in own)])
            self._bounds[version] = [first for first, _ in every]
            self._ends[version] = [last for _, last in every]

    def __contains__(self, address: bytes) -> bool:
        """Tell whether the packed address (4 or 16 bytes) is denied, also as an IPv4 address inside an IPv6
        one.
        """
        size = len(address)
        value = int.from_bytes(address, "big")
        if size == 4:
            return self._has(4, value)
        if size != 16 or self._has(6, value):
            return True
        return any(self._has(4, inner) for inner in embedded_v4(value))

    def every(self) -> list[tuple[int, int, int]]:
        """Return all that is denied as (IP version, first, last), sorted by version, exact addresses too."""
        return [
            (version, first, last)
            for version in (4, 6)
            for first, last in zip(self._bounds[version], self._ends[version], strict=True)
        ]

    def in_ranges(self, version: int, value: int) -> bool:
        """Tell whether the address, as an integer, is in a denied range; exact addresses do not count."""
        return any(first <= value <= last for first, last in self.ranges[version])

    def networks(self, version: int) -> list[Network]:
        """Return the denied ranges of one IP version as networks, without the exact addresses."""
        return [network for bounds in self.ranges[version] for network in networks_of(version, bounds)]

    def _has(self, version: int, value: int) -> bool:
        index = bisect_right(self._bounds[version], value) - 1
        return index >= 0 and value <= self._ends[version][index]


def embedded_v4(value: int) -> list[int]:
    """Return the IPv4 addresses, as integers, that the IPv6 address `value` may stand for; mostly none.

    RFC 4291 (mapped, compatible), RFC 6052 and 8215 (NAT64), RFC 3056 (6to4). A local NAT64 prefix may be
    used at several lengths, so all its forms are returned.
    """
    low = value & 0xFFFFFFFF
    if _V6_MAPPED[0] <= value <= _V6_MAPPED[1] or 1 < value <= _V6_COMPATIBLE_LAST:
        return [low]
    if value >> 32 == _NAT64:
        return [low]
    if value >> 80 == _NAT64_LOCAL:
        # RFC 6052 section 2.2: prefixes of 48, 56, 64 and 96 bits, with the byte at bits 64 to 71 left out
        joined = (value >> 64 & 0xFFFF) << 48 | (value & 0xFFFFFFFFFFFFFF) >> 8
        return [joined >> 32, joined >> 24 & 0xFFFFFFFF, joined >> 16 & 0xFFFFFFFF, low]
    if value >> 112 == _SIX_TO_FOUR:
        return [value >> 80 & 0xFFFFFFFF]
    return []


def parse_network(text: str) -> Network:
    """Return the network or single address that `text` names; ValueError with the text when it is none."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is no IP network, write for example 192.0.2.0/24 or 2001:db8::/32"
        ) from None


def pack_address(address: str | bytes) -> bytes:
    """Return 4 or 16 bytes for a text or packed address; ValueError when it is none."""
    if isinstance(address, bytes):
        if len(address) not in (4, 16):
            raise ValueError(f"a packed address has 4 or 16 bytes, not {len(address)}")
        return address
    try:
        return ipaddress.ip_address(address.strip().split("%", 1)[0]).packed
    except ValueError:
        raise ValueError(f"{address!r} is no IP address") from None


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Return the union of `ranges`, sorted, with touching ones joined."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def subtract(ranges: Sequence[Range], holes: Sequence[Range]) -> list[Range]:
    """Return what is in `ranges` and in none of `holes`, sorted and merged."""
    left = merge(ranges)
    for hole_first, hole_last in merge(holes):
        kept: list[Range] = []
        for first, last in left:
            if last < hole_first or first > hole_last:
                kept.append((first, last))
                continue
            if first < hole_first:
                kept.append((first, hole_first - 1))
            if last > hole_last:
                kept.append((hole_last + 1, last))
        left = kept
    return left


def networks_of(version: int, bounds: Range) -> list[Network]:
    """Return the fewest networks that cover the range exactly."""
    first, last = bounds
    if version == 4:
        return list(
            ipaddress.summarize_address_range(ipaddress.IPv4Address(first), ipaddress.IPv4Address(last))
        )
    return list(ipaddress.summarize_address_range(ipaddress.IPv6Address(first), ipaddress.IPv6Address(last)))


def _range_of(network: Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)
