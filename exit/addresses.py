"""Inner addresses: one IPv4 and one IPv6 address per circuit. Owns who has which, and for how long none may.

The client proposes (it must tell its circuits apart, over all exits), the exit decides. Addresses of a
circuit that ended rest for two minutes, so that late packets from the internet do not reach the next
customer. The first /24 and the first /64 are the exit's own: the DNS is at the same addresses at every exit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

INNER_V4 = ipaddress.IPv4Network("100.64.0.0/10")
INNER_V6 = ipaddress.IPv6Network("fd68:6f70:6661::/48")
DNS_V4 = ipaddress.IPv4Address("100.64.0.1")
DNS_V6 = ipaddress.IPv6Address("fd68:6f70:6661::1")
DNS_V4_PACKED = DNS_V4.packed
DNS_V6_PACKED = DNS_V6.packed

#: How long a released address rests. Linux forgets an unanswered UDP flow after 120 s at most.
QUARANTINE_S = 120.0
#: Circuits with addresses at a time. The exit refuses more; about 300 bytes each.
MAX_LEASES = 20_000
#: Addresses resting at a time; beyond it the one that rested longest is free again.
MAX_RESTING = 100_000

_V4_FIRST = int(INNER_V4.network_address)
_V4_BITS = 32 - INNER_V4.prefixlen
_V6_FIRST = int(INNER_V6.network_address)
_V6_BITS = 128 - INNER_V6.prefixlen
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """A circuit's inner addresses, packed: 4 bytes, and 16 bytes or None at an exit without IPv6."""

    v4: bytes
    v6: bytes | None


class AddressPool:
    """Leases of inner addresses. Pure: the caller gives `now` in seconds and random bytes."""

    __slots__ = ("_has_ipv6", "_limit", "_quarantine_s", "_resting", "_resting_limit", "_rng", "_used")

    def __init__(
        self,
        rng: Callable[[int], bytes],
        *,
        has_ipv6: bool = True,
        limit: int = MAX_LEASES,
        quarantine_s: float = QUARANTINE_S,
        resting_limit: int = MAX_RESTING,
    ) -> None:
        """Lease at most `limit` pairs at a time; `rng(n)` returns n random bytes."""
        self._rng = rng
        self._has_ipv6 = has_ipv6
        self._limit = limit
        self._quarantine_s = quarantine_s
        self._resting_limit = resting_limit
        self._used: dict[bytes, Lease] = {}
        #: When each resting address was released; oldest first.
        self._resting: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Return how many addresses, IPv4 and IPv6 together, are leased."""
        return len(self._used)

    def lease(self, proposed_v4: bytes, proposed_v6: bytes, now: float) -> Lease | None:
        """Return addresses for a circuit: each as proposed if it is fit and free, else another; None when
        full.

        A proposal may be anything a peer sends, also empty.
        """
        self._wake(now)
        if len(self._used) >= self._limit * (2 if self._has_ipv6 else 1):
            return None
        v4 = proposed_v4 if is_inner_v4(proposed_v4) and self._is_free(proposed_v4) else self._choose(4)
        if v4 is None:
            return None
        v6: bytes | None = None
        if self._has_ipv6:
            v6 = proposed_v6 if is_inner_v6(proposed_v6) and self._is_free(proposed_v6) else self._choose(6)
            if v6 is None:
                return None
        lease = Lease(v4, v6)
        self._used[v4] = lease
        if v6 is not None:
            self._used[v6] = lease
        return lease

    def release(self, lease: Lease, now: float) -> None:
        """Give the lease's addresses back; they rest first. Harmless for a lease that is not held."""
        for address in (lease.v4, lease.v6):
            if address is None or self._used.get(address) is not lease:
                continue
            del self._used[address]
            self._resting[address] = now
        while len(self._resting) > self._resting_limit:
            del self._resting[next(iter(self._resting))]

    def _is_free(self, address: bytes) -> bool:
        return address not in self._used and address not in self._resting

    def _choose(self, version: int) -> bytes | None:
        for _ in range(_TRIES):
            address = random_inner(self._rng, version)
            if self._is_free(address):
                return address
        return None

    def _wake(self, now: float) -> None:
        for address, released_s in list(self._resting_front()):
            # A release in the future means that the clock jumped back: do not hold the address for ever.
            if released_s + self._quarantine_s > now >= released_s:
                break
            del self._resting[address]

    def _resting_front(self) -> list[tuple[bytes, float]]:
        """Return the first few resting addresses: what one lease costs stays bounded."""
        front = []
        for item in self._resting.items():
            front.append(item)
            if len(front) == 8:
                break
        return front


def is_inner_v4(address: bytes) -> bool:
    """Tell whether the packed address is one that a circuit may have: inner, and neither the exit's own nor
    an end.
    """
    return (
        len(address) == 4
        and address[0] == 100
        and address[1] >> 6 == 1
        and (address[1] & 0x3F != 0 or address[2] != 0)
        and 0 < address[3] < 255
    )


def is_inner_v6(address: bytes) -> bool:
    """Tell whether the packed address is one that a circuit may have: inner, not in the exit's own /64."""
    return len(address) == 16 and address[:6] == _V6_PREFIX and address[6:8] != b"\0\0"


def random_inner(rng: Callable[[int], bytes], version: int) -> bytes:
    """Return a random address that a circuit may have; for clients' proposals too."""
    while True:
        if version == 4:
            address = (_V4_FIRST | int.from_bytes(rng(4), "big") % (1 << _V4_BITS)).to_bytes(4, "big")
            if is_inner_v4(address):
                return address
        else:
            address = (_V6_FIRST | int.from_bytes(rng(16), "big") % (1 << _V6_BITS)).to_bytes(16, "big")
            if is_inner_v6(address):
                return address


_V6_PREFIX = INNER_V6.network_address.packed[:6]
