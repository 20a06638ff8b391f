"""The descriptors a node holds: what is taken in, what is kept of too many, and digests over all of it.

Theory. Every node is to end with the same set, whatever order things arrive in. So each rule about what stays
depends on the descriptors and the root list alone: of one identity the higher sequence stays, of two with one
sequence the one with the lower hash; of too many from one network or operator those with more stake for each
network they name, then those whose identity has the lower hash. Only what belongs to a member of the root
list is held at all.

The set is split into 256 parts by the first byte of the identity. A part's digest is a hash over the sorted
hashes of its descriptors' bytes, so it covers content: two descriptors with one sequence number differ.

Pure. Times: `now` is the caller's steady clock, `unix_s` seconds since 1970.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from overlay.descriptor import (
    FUTURE_TOLERANCE_S,
    SignedDescriptor,
    check_signatures,
    decode_unchecked,
)
from overlay.errors import DecodeError
from overlay.gossip.limits import BUCKETS, ROOT_BYTES, SHORT_BYTES, GossipLimits
from overlay.gossip.roots import Member, RootList
from overlay.identity import NodeId


class Verdict(enum.Enum):
    """What became of an offered descriptor."""

    NEW = "new"
    CHANGED = "changed"
    """It took the place of an older one."""
    HELD = "held already"
    OLD = "older than the one held"
    LOST = "conflicts with the one held, which stays"
    NOT_A_MEMBER = "of a node that is not in the root list"
    WRONG_PAYEE = "names another payee than the root list, or one that did not sign"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "dated in the future"
    LIVES_TOO_LONG = "lives longer than allowed"
    TOO_OFTEN = "changes too often"
    TOO_MANY = "one of too many from its network or operator"
    MALFORMED = "cannot be read"
    FORGED = "a signature does not hold"

    @property
    def is_taken(self) -> bool:
        """Whether the descriptor is now held and was not before."""
        return self in (Verdict.NEW, Verdict.CHANGED)

    @property
    def is_fault(self) -> bool:
        """Whether a node that passes it on breaks the rules: it would have had to refuse it as well."""
        return self in (Verdict.MALFORMED, Verdict.FORGED, Verdict.LIVES_TOO_LONG)


@dataclass(eq=False, slots=True)
class _Held:
    entry: SignedDescriptor
    hash: bytes
    rank: tuple[int, bytes]
    """Greater stays longer."""
    groups: tuple[bytes, ...]
    level: float
    """Of the bucket that bounds how often this node may change."""
    refilled: float


_EMPTY = hashlib.blake2b(b"", digest_size=SHORT_BYTES).digest()
"""The digest of a part without any descriptor."""


def hash_descriptor(encoded: bytes) -> bytes:
    """Return the 16-byte hash of a descriptor's wire form; its first 8 bytes are the short hash."""
    return hashlib.blake2b(encoded, digest_size=ROOT_BYTES).digest()


def short_hash(encoded: bytes) -> bytes:
    """Return the 8-byte short hash of a descriptor's wire form."""
    return hash_descriptor(encoded)[:SHORT_BYTES]


class Store:
    """One node's directory as gossip keeps it."""

    __slots__ = (
        "_buckets",
        "_by_id",
        "_by_short",
        "_digests",
        "_groups",
        "_limits",
        "_root",
        "conflicts",
        "own",
        "rival_sequence",
        "roots",
    )

    def __init__(self, roots: RootList, limits: GossipLimits, own: bytes = b"") -> None:
        """Begin empty. `own` is this node's identity: nothing that others say replaces its descriptor."""
        self.roots = roots
        self.own = own
        self.conflicts = 0
        """Pairs of descriptors seen that have one identity and one sequence number."""
        self.rival_sequence = -1
        """The highest sequence number that others have seen signed by this node: its own next one must be
        higher, also after its clock went back.
        """
        self._limits = limits
        self._by_id: dict[bytes, _Held] = {}
        self._by_short: dict[bytes, bytes] = {}
        self._buckets: dict[int, set[bytes]] = {}
        """Identities of each part that has any."""
        self._digests: dict[int, bytes] = {}
        """Of parts that have any, as far as they are worked out."""
        self._root: bytes | None = None
        self._groups: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        """Return the number of descriptors held."""
        return len(self._by_id)

    def __iter__(self) -> Iterator[SignedDescriptor]:
        """Go through the descriptors held."""
        return (held.entry for held in self._by_id.values())

    def __contains__(self, short: object) -> bool:
        """Tell whether a descriptor with this short hash is held."""
        return short in self._by_short

    def get(self, identity: bytes) -> SignedDescriptor | None:
        """Return the descriptor of a node, or None."""
        held = self._by_id.get(identity)
        return None if held is None else held.entry

    def get_short(self, short: bytes) -> bytes | None:
        """Return the wire form of the descriptor with a short hash, or None."""
        identity = self._by_short.get(short)
        return None if identity is None else self._by_id[identity].entry.encoded

    def missing_members(self) -> list[Member]:
        """Return members of the root list of which no descriptor is held: the sign of an incomplete view."""
        return [member for member in self.roots if member.identity not in self._by_id]

    # -- taking in --

    def offer(
        self, encoded: bytes, now: float, unix_s: float, *, is_own: bool = False, is_checked: bool = False
    ) -> Verdict:
        """Take in a descriptor if it is to be held; `is_own` for this node's own, freshly signed,
        `is_checked` for one whose signatures have been checked before (this node's own file).

        The checks that cost least come first; no signature is checked for what would be refused anyway.
        """
        hashed = hash_descriptor(encoded)
        if hashed[:SHORT_BYTES] in self._by_short:
            return Verdict.HELD
        try:
            entry = decode_unchecked(encoded)
        except DecodeError:
            return Verdict.MALFORMED
        descriptor = entry.descriptor
        identity = descriptor.node_id
        member = self.roots.get(identity)
        if member is None and not is_own:
            return Verdict.NOT_A_MEMBER
        if unix_s >= descriptor.expires_s:
            return Verdict.EXPIRED
        if descriptor.published_s > unix_s + FUTURE_TOLERANCE_S:
            return Verdict.FROM_THE_FUTURE
        if descriptor.expires_s - descriptor.published_s > self._limits.max_lifetime_s:
            return Verdict.LIVES_TOO_LONG
        if identity == self.own and not is_own:
            # This node alone says what is so of it.
            return Verdict.OLD if self._note_rival(entry) else Verdict.FORGED
        held = self._by_id.get(identity)
        if not is_own and member is not None and not _names_payee(entry, member):
            return Verdict.WRONG_PAYEE
        if held is not None:
            verdict = self._compare(held, entry, hashed)
            if verdict is not None:
                return verdict
        if not is_own:
            level, refused = self._allow(held, now)
            if refused is not None:
                return refused
            try:
                if not is_checked:
                    check_signatures(entry)
            except DecodeError:
                return Verdict.FORGED
        else:
            level = self._limits.change_burst
        if held is not None and descriptor.sequence == held.entry.descriptor.sequence:
            self.conflicts += 1
        rank = _rank(entry, member)
        groups = () if is_own else _groups_of(entry, member)
        if not self._make_room(identity, rank, groups):
            return Verdict.TOO_MANY
        if held is not None:
            self._remove(identity)
        self._insert(identity, _Held(entry, hashed, rank, groups, level, now))
        return Verdict.NEW if held is None else Verdict.CHANGED

    def _compare(self, held: _Held, entry: SignedDescriptor, hashed: bytes) -> Verdict | None:
        """Say why the held descriptor stays, or None if the other one is to take its place."""
        ours, theirs = held.entry.descriptor.sequence, entry.descriptor.sequence
        if theirs < ours:
            return Verdict.OLD
        if theirs == ours and held.hash < hashed:
            return Verdict.LOST
        return None

    def _note_rival(self, entry: SignedDescriptor) -> bool:
        """Look at what others say is this node's; False if it is forged."""
        if entry.descriptor.sequence <= self.rival_sequence:
            return True  # nothing new, so no signature need be checked
        try:
            check_signatures(entry)
        except DecodeError:
            return False
        self.rival_sequence = entry.descriptor.sequence
        return True

    def _allow(self, held: _Held | None, now: float) -> tuple[float, Verdict | None]:
        limits = self._limits
        if held is None:
            return limits.change_burst, None
        level = min(limits.change_burst, held.level + max(0.0, now - held.refilled) / limits.change_every_s)
        if level < 1:
            return level, Verdict.TOO_OFTEN
        return level - 1, None

    def _make_room(self, identity: NodeId, rank: tuple[int, bytes], groups: tuple[bytes, ...]) -> bool:
        """Drop whom it takes so that no group is too large; False if it is the newcomer that stays out."""
        drop: set[bytes] = set()
        full: list[set[bytes]] = []
        for group in groups:
            members = self._groups.get(group, set())
            if identity not in members and len(members) >= self._limit_of(group):
                full.append(members)
        if identity not in self._by_id and len(self._by_id) >= self._limits.max_entries:
            full.append(set(self._by_id))
        for members in full:
            lowest = min((one for one in members if one != self.own), key=lambda one: self._by_id[one].rank)
            if self._by_id[lowest].rank >= rank:
                return False
            drop.add(lowest)
        for one in drop:
            self._remove(one)
        return True

    def _limit_of(self, group: bytes) -> int:
        return self._limits.max_per_operator if group[:1] == b"p" else self._limits.max_per_prefix

    # -- leaving --

    def set_roots(self, roots: RootList) -> bool:
        """Go by another root list; what no longer belongs is dropped. Tells whether anything was."""
        self.roots = roots
        gone = []
        for identity, held in self._by_id.items():
            member = roots.get(identity)
            if identity == self.own:
                continue
            if member is None or not _names_payee(held.entry, member):
                gone.append(identity)
            else:
                held.rank = _rank(held.entry, member)
        for identity in gone:
            self._remove(identity)
        return bool(gone)

    def expire(self, unix_s: float) -> bool:
        """Drop what has expired. Tells whether anything was dropped."""
        gone = [
            identity for identity, held in self._by_id.items() if unix_s >= held.entry.descriptor.expires_s
        ]
        for identity in gone:
            self._remove(identity)
        return bool(gone)

    # -- digests --

    @property
    def root(self) -> bytes:
        """The 16-byte hash over everything held."""
        if self._root is None:
            self._root = hashlib.blake2b(self.bucket_digests(), digest_size=ROOT_BYTES).digest()
        return self._root

    def bucket_digests(self) -> bytes:
        """Return the 256 hashes of the parts, 8 bytes each."""
        if not self._buckets:
            return _EMPTY * BUCKETS
        return b"".join([self._digest(bucket) for bucket in range(BUCKETS)])

    def differing(self, digests: bytes) -> list[int]:
        """Return the parts that are not as another node's `bucket_digests` have them."""
        return [
            bucket
            for bucket in range(BUCKETS)
            if digests[bucket * SHORT_BYTES : (bucket + 1) * SHORT_BYTES] != self._digest(bucket)
        ]

    def shorts(self, bucket: int) -> list[bytes]:
        """Return the short hashes of a part's descriptors."""
        return [self._by_id[identity].hash[:SHORT_BYTES] for identity in self._buckets.get(bucket, ())]

    def missing(self, bucket: int, known: frozenset[bytes]) -> list[bytes]:
        """Return the wire forms of a part's descriptors whose short hashes are not in `known`."""
        held = [self._by_id[identity] for identity in self._buckets.get(bucket, ())]
        return [one.entry.encoded for one in held if one.hash[:SHORT_BYTES] not in known]

    def _digest(self, bucket: int) -> bytes:
        if bucket not in self._buckets:
            return _EMPTY
        digest = self._digests.get(bucket)
        if digest is None:
            hashes = sorted([self._by_id[identity].hash for identity in self._buckets[bucket]])
            digest = hashlib.blake2b(b"".join(hashes), digest_size=SHORT_BYTES).digest()
            self._digests[bucket] = digest
        return digest

    # -- inside --

    def _insert(self, identity: bytes, held: _Held) -> None:
        self._by_id[identity] = held
        self._by_short[held.hash[:SHORT_BYTES]] = identity
        self._buckets.setdefault(identity[0], set()).add(identity)
        for group in held.groups:
            self._groups.setdefault(group, set()).add(identity)
        self._touch(identity)

    def _remove(self, identity: bytes) -> None:
        held = self._by_id.pop(identity)
        del self._by_short[held.hash[:SHORT_BYTES]]
        part = self._buckets[identity[0]]
        part.discard(identity)
        if not part:
            del self._buckets[identity[0]]
        for group in held.groups:
            members = self._groups[group]
            members.discard(identity)
            if not members:
                del self._groups[group]
        self._touch(identity)

    def _touch(self, identity: bytes) -> None:
        self._digests.pop(identity[0], None)
        self._root = None


def _names_payee(entry: SignedDescriptor, member: Member) -> bool:
    """Tell whether the payee is the root list's, or, where that names none, one that has signed."""
    descriptor = entry.descriptor
    if member.payee:
        return descriptor.payee == member.payee
    return not descriptor.payee or bool(descriptor.payee_proof)


def _rank(entry: SignedDescriptor, member: Member | None) -> tuple[int, bytes]:
    """Return how long a descriptor stays where there are too many: by its stake, divided among the networks
    it names. Nobody has proven its addresses, and one stake must not push others out of several networks.
    """
    identity = hashlib.blake2b(entry.descriptor.identity, digest_size=16).digest()
    if member is None:
        return 0, identity
    networks = {network_of(address.ip) for address in entry.descriptor.addresses}
    of_ipv4 = sum(len(network) == 2 for network in networks)
    return member.stake_wei // max(of_ipv4, len(networks) - of_ipv4), identity


def _groups_of(entry: SignedDescriptor, member: Member | None) -> tuple[bytes, ...]:
    """Return the groups that a descriptor counts towards: its networks and its payee."""
    groups = {b"n" + network_of(address.ip) for address in entry.descriptor.addresses}
    payee = member.payee if member is not None and member.payee else entry.descriptor.payee
    if payee:
        groups.add(b"p" + payee)
    return tuple(sorted(groups))


@lru_cache(maxsize=4096)
def network_of(text: str) -> bytes:
    """Return the IPv4 /16 (2 bytes) or IPv6 /32 (4 bytes) of a numeric address."""
    if ":" not in text:
        first, second, _ = text.split(".", 2)
        return bytes((int(first), int(second)))
    return ipaddress.IPv6Address(text).packed[:4]
