"""Seed lists: the signed root list of a network that has no registry.

Whoever runs a private or a test network collects the relays' descriptors, signs them as one list with a key
of its own, and hands the file to everybody, who names the key's public half in the configuration. Owns the
file's form and checks; the registry will take its place as the root list, descriptors stay the same.

The file is an `overlay.envelope` signed in the context "seed list" over the msgpack array ``[version,
network, sequence, published_s, expires_s, [descriptor, ...], [[identity, payee, [address, ...]], ...]]``,
each descriptor whole, as its node signed it: the list vouches for who belongs to the network, never for what
a node says of itself. The last element names members without a descriptor, which they publish themselves
(`overlay.gossip`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from overlay.descriptor import (
    FUTURE_TOLERANCE_S,
    MAX_ADDRESSES,
    MAX_DESCRIPTOR_BYTES,
    MAX_LIFETIME_S,
    MAX_TIME_S,
    PAYEE_BYTES,
    Address,
    SignedDescriptor,
    Staleness,
    decode_descriptor,
    is_usable_address,
)
from overlay.envelope import OVERHEAD_BYTES, decode_envelope, sign_envelope
from overlay.errors import DecodeError
from overlay.identity import NODE_ID_BYTES, Identity, NodeId, verify

FORMAT_VERSION = 2
MAX_NODES = 2048
MAX_MEMBERS = 16_384
MAX_SEED_LIST_BYTES = OVERHEAD_BYTES + 256 + MAX_NODES * (MAX_DESCRIPTOR_BYTES + 3) + MAX_MEMBERS * 512
"""About 12 MiB: the most nodes, each with the longest descriptor, the most members with eight addresses, and
the list's own fields.
"""

_CONTEXT = b"seed list"
NETWORK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class ListedMember(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A node that belongs to the network, without its descriptor."""

    identity_bytes: Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
    payee: Annotated[bytes, msgspec.Meta(max_length=PAYEE_BYTES)]
    """20 bytes, or empty if the list does not say."""
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    """Where to look for it."""

    @property
    def identity(self) -> NodeId:
        """The identity, as a NodeId."""
        return NodeId(self.identity_bytes)


class _Body(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    format_version: int
    network: Annotated[str, msgspec.Meta(max_length=32)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    published_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)]
    expires_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)]
    descriptors: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_DESCRIPTOR_BYTES)], ...],
        msgspec.Meta(max_length=MAX_NODES),
    ]
    members: Annotated[tuple[ListedMember, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


_decoder = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class SeedList:
    """A seed list whose signature holds."""

    network: str
    signer: NodeId
    sequence: int
    published_s: int
    expires_s: int
    descriptors: tuple[SignedDescriptor, ...]
    members: tuple[ListedMember, ...]
    """Nodes that belong to the network and are named without a descriptor."""
    refused: tuple[str, ...]
    """Why each descriptor left out was left out: a newer format, a node listed twice."""


def sign_seed_list(
    identity: Identity,
    network: str,
    descriptors: Iterable[SignedDescriptor],
    *,
    sequence: int,
    published_s: int,
    expires_s: int,
    members: Iterable[ListedMember] = (),
) -> bytes:
    """Return the file of a list of `descriptors` and `members`, signed by the seed-list key `identity`.

    Raises ValueError for a bad network name, more than 2048 descriptors or 16,384 members, a node twice, or a
    lifetime out of range.
    """
    body = _Body(
        FORMAT_VERSION,
        network,
        sequence,
        published_s,
        expires_s,
        tuple(entry.encoded for entry in descriptors),
        tuple(members),
    )
    encoded = sign_envelope(identity, _CONTEXT, msgspec.msgpack.encode(body))
    try:
        decoded = decode_seed_list(encoded, identity.node_id)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    if decoded.refused:
        raise ValueError(decoded.refused[0])
    return encoded


def decode_seed_list(data: bytes, signer: NodeId) -> SeedList:
    """Read a seed list and check that `signer` signed it; a single descriptor that cannot be read is left
    out.

    Raises DecodeError for a list that is too long, malformed or signed by another key.
    """
    envelope = decode_envelope(data, MAX_SEED_LIST_BYTES, "the seed list")
    if not verify(signer, _CONTEXT, envelope.body, envelope.signature):
        raise DecodeError("the seed list is not signed by the key that the configuration names")
    try:
        body = _decoder.decode(envelope.body)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the seed list is malformed: {error}") from None
    if body.format_version != FORMAT_VERSION:
        raise DecodeError(
            f"the seed list has format {body.format_version}, this hopfare reads format {FORMAT_VERSION}"
        )
    if NETWORK_NAME.fullmatch(body.network) is None:
        raise DecodeError("the seed list's network name has characters that are not allowed")
    if not 0 < body.expires_s - body.published_s <= MAX_LIFETIME_S:
        raise DecodeError("the seed list expires before it is published, or lives longer than allowed")
    for member in body.members:
        if len(member.payee) not in (0, PAYEE_BYTES) or not all(
            is_usable_address(address.ip) for address in member.addresses
        ):
            raise DecodeError("the seed list names a member with a payee or an address that cannot be")
    if len({member.identity_bytes for member in body.members}) != len(body.members):
        raise DecodeError("the seed list names a member twice")
    accepted: dict[bytes, SignedDescriptor] = {}
    refused = []
    for encoded in body.descriptors:
        try:
            entry = decode_descriptor(encoded)
        except DecodeError as error:
            refused.append(str(error))
            continue
        if entry.descriptor.identity in accepted:
            refused.append(f"the node {entry.descriptor.name} is listed twice")
            continue
        accepted[entry.descriptor.identity] = entry
    return SeedList(
        body.network,
        signer,
        body.sequence,
        body.published_s,
        body.expires_s,
        tuple(accepted.values()),
        body.members,
        tuple(refused),
    )


def find_list_staleness(seed_list: SeedList, now_s: float) -> Staleness | None:
    """Tell why `seed_list` is not to be used at `now_s` (seconds since 1970), or return None if it may be."""
    if now_s >= seed_list.expires_s:
        return Staleness.EXPIRED
    if seed_list.published_s > now_s + FUTURE_TOLERANCE_S:
        return Staleness.FROM_THE_FUTURE
    return None
