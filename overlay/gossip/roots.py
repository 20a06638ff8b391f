"""The root list: who belongs to the network. The registry or a signed seed list gives it; all else is alike.

Owns the value and what makes it from either source. Does not own how a source is read (overlay.node.io and
payments.io do) or what a node says of itself (overlay.descriptor).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlay.descriptor import Address, is_usable_address
from overlay.identity import NodeId, verify
from payments.registry import ENDORSEMENT_CONTEXT, decode_ip, endorsement_message

if TYPE_CHECKING:
    from overlay.seedlist import SeedList
    from payments.abi import Listing


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the root list."""

    identity: NodeId
    payee: bytes
    """20 bytes, or empty where the list names none."""
    stake_wei: int
    """0 on a seed list."""
    addresses: tuple[Address, ...]
    """Where it was reached when the list was made: for the first contact."""


class RootList:
    """An unchanging set of members, one for each identity."""

    __slots__ = ("_members", "source")

    def __init__(self, members: Iterable[Member] = (), source: str = "nothing") -> None:
        """Of several members with one identity the one with the greatest stake counts, of those the one with
        the lowest payee. `source` says in a word or two where they are from.
        """
        chosen: dict[bytes, Member] = {}
        for member in members:
            known = chosen.get(member.identity)
            if known is None or (-member.stake_wei, member.payee) < (-known.stake_wei, known.payee):
                chosen[member.identity] = member
        self._members: Mapping[bytes, Member] = chosen
        self.source = source

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Go through the members."""
        return iter(self._members.values())

    def __contains__(self, identity: object) -> bool:
        """Tell whether an identity is a member."""
        return identity in self._members

    def get(self, identity: bytes) -> Member | None:
        """Return a member, or None."""
        return self._members.get(identity)


def root_list_of_seed_list(seed_list: SeedList) -> RootList:
    """Return the members of a verified list: those it names, and the nodes whose descriptors it holds."""
    members = [Member(entry.identity, entry.payee, 0, entry.addresses) for entry in seed_list.members]
    named = {member.identity for member in members}
    members += [
        Member(entry.descriptor.node_id, entry.descriptor.payee, 0, entry.descriptor.addresses)
        for entry in seed_list.descriptors
        if entry.descriptor.node_id not in named
    ]
    return RootList(members, "the seed list")


class EndorsedListings:
    """Turns the registry's listings into members; remembers whose endorsement it has checked."""

    __slots__ = ("_chain_id", "_checked", "_registry", "refused")

    def __init__(self, chain_id: int, registry: bytes) -> None:
        """Check endorsements for the registry (20 bytes) on chain `chain_id`."""
        self._chain_id, self._registry = chain_id, registry
        self._checked: dict[tuple[bytes, bytes, bytes], bool] = {}
        self.refused = 0
        """Listings without their identity's word, in the last `root_list`."""

    def trust(self, listings: Iterable[Listing], refused: frozenset[bytes]) -> None:
        """Take it that the endorsements of `listings` were checked before, and held but for those payees."""
        self._checked = {
            (one.identity, one.payee, one.endorsement): one.payee not in refused for one in listings
        }

    def refused_payees(self) -> frozenset[bytes]:
        """Return the payees whose listings were without their identity's word in the last `root_list`."""
        return frozenset(payee for (_, payee, _), holds in self._checked.items() if not holds)

    def root_list(self, listings: Iterable[Listing]) -> RootList:
        """Return the members among `listings`: those whose identity has signed for the payee."""
        members = []
        checked: dict[tuple[bytes, bytes, bytes], bool] = {}
        self.refused = 0
        for listing in listings:
            key = (listing.identity, listing.payee, listing.endorsement)
            holds = self._checked.get(key)
            if holds is None:
                message = endorsement_message(self._chain_id, self._registry, listing.payee)
                holds = verify(listing.identity, ENDORSEMENT_CONTEXT, message, listing.endorsement)
            checked[key] = holds
            if not holds:
                self.refused += 1
                continue
            ip = decode_ip(listing.ip)
            addresses = (Address(ip, listing.port),) if is_usable_address(ip) and listing.port else ()
            members.append(Member(NodeId(listing.identity), listing.payee, listing.stake_wei, addresses))
        self._checked = checked
        return RootList(members, "the registry")
