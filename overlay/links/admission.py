"""Who may begin a link: bounds on handshakes and links, per address and in all, and when a Retry is due.

Pure: the endpoint tells what happens and asks what to do with an Initial of an unknown dialler. Addresses are
kept as a prefix: an IPv4 address, or an IPv6 /64, since a single customer has all of it.
"""

import ipaddress
from collections import Counter
from enum import Enum, auto
from typing import Final

from overlay.links.bucket import Bucket
from overlay.links.limits import LinkLimits

MAX_BUCKETS: Final = 8192
"""Addresses whose handshake rate is remembered; full buckets are forgotten first, then all."""


class Verdict(Enum):
    """What to do with an Initial."""

    ACCEPT = auto()
    RETRY = auto()
    """Ask for proof of address first."""
    REFUSE = auto()
    """Do the handshake and then close the link with a sentence."""
    DROP = auto()


def address_prefix(host: str) -> bytes:
    """Return what limits per address count by: 4 bytes of IPv4 or the first 8 of IPv6, mapped IPv4 being
    IPv4.

    Raises ValueError for text that is not an address.
    """
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return address.packed[:8] if address.ipv4_mapped is None else address.ipv4_mapped.packed
    return address.packed


class Admission:
    """Counts one endpoint's accepted links."""

    __slots__ = ("_all", "_buckets", "_half_open", "_half_open_by", "_limits", "_links", "_links_by")

    def __init__(self, limits: LinkLimits, now: float) -> None:
        """Begin with no link."""
        self._limits = limits
        self._half_open = 0
        self._half_open_by: Counter[bytes] = Counter()
        self._links = 0
        self._links_by: Counter[bytes] = Counter()
        self._all = Bucket(limits.handshakes_per_s, limits.handshake_burst, now)
        self._buckets: dict[bytes, Bucket] = {}

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return self._half_open

    @property
    def links(self) -> int:
        """Accepted links that are up."""
        return self._links

    def decide(self, prefix: bytes, has_token: bool, now: float) -> Verdict:
        """Judge an Initial from `prefix`; `has_token` says that its address is proven. ACCEPT and REFUSE take
        from the rates.
        """
        limits = self._limits
        if self._half_open >= limits.max_half_open:
            return Verdict.DROP
        if self._half_open >= limits.retry_half_open and not has_token:
            return Verdict.RETRY
        if self._half_open_by[prefix] >= limits.max_half_open_per_address:
            # Without proof the address may be someone else's, forged to keep them out.
            return Verdict.DROP if has_token else Verdict.RETRY
        if not self._bucket(prefix, now).take(1, now):
            return Verdict.DROP if has_token else Verdict.RETRY
        if not self._all.take(1, now):
            return Verdict.DROP
        if self._links >= limits.max_links or self._links_by[prefix] >= limits.max_links_per_address:
            return Verdict.REFUSE
        return Verdict.ACCEPT

    def opened(self, prefix: bytes) -> None:
        """A handshake begins."""
        self._half_open += 1
        self._half_open_by[prefix] += 1

    def established(self, prefix: bytes) -> None:
        """A handshake became a link."""
        self.abandoned(prefix)
        self._links += 1
        self._links_by[prefix] += 1

    def abandoned(self, prefix: bytes) -> None:
        """A handshake ended without a link."""
        self._half_open -= 1
        _decrement(self._half_open_by, prefix)

    def closed(self, prefix: bytes) -> None:
        """A link ended."""
        self._links -= 1
        _decrement(self._links_by, prefix)

    def _bucket(self, prefix: bytes, now: float) -> Bucket:
        bucket = self._buckets.get(prefix)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets = {key: old for key, old in self._buckets.items() if not old.is_full(now)}
                if len(self._buckets) >= MAX_BUCKETS:
                    self._buckets.clear()
            limits = self._limits
            bucket = Bucket(limits.handshakes_per_address_per_s, limits.handshake_burst_per_address, now)
            self._buckets[prefix] = bucket
        return bucket


def _decrement(counter: Counter[bytes], key: bytes) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
