"""The directory: the descriptors a node knows, asked by identity, by what an exit serves, and by address.

Owns the choice of the newest descriptor of a node and the reasons why none fits. Does not own where
descriptors come from or how a path is weighted (circuits.path). A value: a changed directory is a new one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from overlay.descriptor import Descriptor, Role, SignedDescriptor, Staleness, find_staleness
from overlay.identity import NodeId
from overlay.seedlist import SeedList, find_list_staleness

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Directory:
    """An unchanging set of verified descriptors, one for each node."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[SignedDescriptor] = ()) -> None:
        """Make the directory of `entries`; of several for one node the one with the highest sequence is
        kept.
        """
        newest: dict[NodeId, SignedDescriptor] = {}
        for entry in entries:
            node_id = entry.descriptor.node_id
            known = newest.get(node_id)
            if known is None or entry.descriptor.sequence > known.descriptor.sequence:
                newest[node_id] = entry
        self._entries: Mapping[NodeId, SignedDescriptor] = MappingProxyType(newest)

    @classmethod
    def from_seed_list(cls, seed_list: SeedList, now_s: float) -> Directory:
        """Return the directory of a verified list; it is empty if the list as a whole is stale at `now_s`."""
        return cls(() if find_list_staleness(seed_list, now_s) else seed_list.descriptors)

    def __len__(self) -> int:
        """Return the number of nodes, stale ones included."""
        return len(self._entries)

    def __iter__(self) -> Iterator[SignedDescriptor]:
        """Go through all entries, stale ones included."""
        return iter(self._entries.values())

    def get(self, node_id: bytes) -> SignedDescriptor | None:
        """Return the entry of a node, stale or not, or None."""
        return self._entries.get(NodeId(node_id))

    def relays(self, now_s: float) -> list[Descriptor]:
        """Return the nodes that may stand anywhere but at a path's end, as of `now_s`."""
        return [entry.descriptor for entry in self._usable(now_s) if Role.RELAY in entry.descriptor.roles]

    def exits(
        self, now_s: float, *, port: int | None = None, ipv6: bool = False, country: str = ""
    ) -> list[Descriptor]:
        """Return the exits that serve `port` (None: any), carry IPv6 if asked, and stand in `country` if
        given.
        """
        return [
            entry.descriptor
            for entry in self._usable(now_s)
            if entry.descriptor.is_exit
            and (port is None or entry.ports.allows(port))
            and (entry.descriptor.has_ipv6 or not ipv6)
            and (not country or entry.descriptor.country == country.upper())
        ]

    def known_addresses(self) -> frozenset[IpAddress]:
        """Return every address of every node, stale ones too: what an exit must never send a customer to."""
        return frozenset(
            ipaddress.ip_address(address.ip)
            for entry in self._entries.values()
            for address in entry.descriptor.addresses
        )

    def explain_no_exit(
        self, now_s: float, *, port: int | None = None, ipv6: bool = False, country: str = ""
    ) -> str | None:
        """Return why `exits` finds none, as a sentence for the user, or None if it finds one."""
        if self.exits(now_s, port=port, ipv6=ipv6, country=country):
            return None
        stale = self.explain_staleness(now_s)
        if not self._usable(now_s):
            return stale or "The directory is empty: no relay is known."
        if not self.exits(now_s):
            return "No node in the directory is an exit."
        if country and not self.exits(now_s, country=country):
            return f"No exit in the directory is in {country.upper()}."
        where = f" in {country.upper()}" if country else ""
        if port is not None and not self.exits(now_s, port=port, country=country):
            return f"No exit{where} in the directory allows port {port}."
        if ipv6 and not self.exits(now_s, ipv6=True, country=country):
            return f"No exit{where} in the directory carries IPv6."
        return f"No exit{where} in the directory allows port {port} and carries IPv6."

    def explain_staleness(self, now_s: float) -> str | None:
        """Return a sentence about descriptors too old or too new for use at `now_s`, or None."""
        stale = Counter(
            found for entry in self._entries.values() if (found := find_staleness(entry.descriptor, now_s))
        )
        parts = []
        if expired := stale[Staleness.EXPIRED]:
            parts.append(f"{expired} of {len(self)} descriptors have expired: get a newer seed list.")
        if future := stale[Staleness.FROM_THE_FUTURE]:
            parts.append(
                f"{future} of {len(self)} descriptors are dated in the future: is this machine's clock right?"
            )
        return " ".join(parts) or None

    def _usable(self, now_s: float) -> list[SignedDescriptor]:
        return [entry for entry in self._entries.values() if find_staleness(entry.descriptor, now_s) is None]
