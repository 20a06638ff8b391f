"""The registry's relays as one node knows them, and up to which block.

Pure: `payments.io.chain.registry` reads.

Theory. The contract's events say whose entry changed, its views say what is so. The index follows the chain
some confirmations behind its head, and remembers the hashes of blocks that it went by (checkpoints) and whose
entries it touched after each. When a checkpoint is no longer on the chain, the chain was reorganised deeper
than the confirmations: everything touched since the newest checkpoint that is still there is read anew. So it
needs no undoing, and reading an entry twice does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from payments.abi import Listing
from payments.errors import DecodeError

MAX_CHECKPOINTS = 64
MAX_LISTINGS = 100_000
MAX_INDEX_BYTES = 32 * 1024 * 1024
_VERSION = 1

_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Payee = Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Checkpoint(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A block that the index has gone by."""

    number: _U63
    hash: _Hash
    touched: tuple[_Payee, ...] = ()
    """Payees whose entries were read at it."""


class _Entry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    payee: _Payee
    identity: _Hash
    endorsement: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    ip: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    stake: Annotated[bytes, msgspec.Meta(max_length=32)]


class _File(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    version: int
    chain_id: _U63
    registry: _Payee
    checkpoints: Annotated[tuple[Checkpoint, ...], msgspec.Meta(max_length=MAX_CHECKPOINTS)]
    entries: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_LISTINGS)]


_decoder = msgspec.msgpack.Decoder(_File)


class RegistryIndex:
    """What is known of one registry."""

    def __init__(self, chain_id: int, registry: bytes) -> None:
        """Begin with nothing known of the registry (20 bytes) on chain `chain_id`."""
        self.chain_id = chain_id
        self.registry = registry
        self.listings: dict[bytes, Listing] = {}
        """By payee."""
        self.checkpoints: list[Checkpoint] = []
        """The newest last."""

    @property
    def tip(self) -> Checkpoint | None:
        """The block up to which everything is known; None at the beginning."""
        return self.checkpoints[-1] if self.checkpoints else None

    def rewind(self, to: Checkpoint | None) -> set[bytes]:
        """Forget the checkpoints after `to` (None: all); return whose entries are to be read anew."""
        touched: set[bytes] = set()
        while self.checkpoints and (to is None or self.checkpoints[-1].number > to.number):
            touched.update(self.checkpoints.pop().touched)
        return touched

    def apply(self, number: int, block_hash: bytes, changes: Mapping[bytes, Listing | None]) -> bool:
        """Take in what was read at a block: by payee its entry, or None if it has none. Tells whether
        anything is another than before.
        """
        changed = False
        for payee, listing in changes.items():
            if listing is None:
                changed = self.listings.pop(payee, None) is not None or changed
            elif self.listings.get(payee) != listing and (
                payee in self.listings or len(self.listings) < MAX_LISTINGS
            ):
                self.listings[payee] = listing
                changed = True
        self.checkpoints.append(Checkpoint(number, block_hash, tuple(sorted(changes))[:MAX_LISTINGS]))
        if len(self.checkpoints) > MAX_CHECKPOINTS:
            # Far ones grow sparse: a reorganisation is seldom deep, and the touched ones must not get lost.
            first, second = self.checkpoints[0], self.checkpoints[1]
            merged = tuple(sorted({*first.touched, *second.touched}))
            self.checkpoints[:2] = [Checkpoint(second.number, second.hash, merged)]
        return changed

    def encode(self) -> bytes:
        """Return the form for the disk."""
        entries = tuple(
            _Entry(
                one.payee,
                one.identity,
                one.endorsement,
                one.ip,
                one.port,
                one.stake_wei.to_bytes(32, "big").lstrip(b"\0"),
            )
            for one in self.listings.values()
        )
        return msgspec.msgpack.encode(
            _File(_VERSION, self.chain_id, self.registry, tuple(self.checkpoints), entries)
        )


def decode_index(data: bytes, chain_id: int, registry: bytes) -> RegistryIndex:
    """Return the index that `encode` wrote for this registry.

    Raises DecodeError for anything else, another registry's index included.
    """
    if len(data) > MAX_INDEX_BYTES:
        raise DecodeError("the registry's index is too long")
    try:
        file = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"not a registry's index: {error}") from None
    if file.version != _VERSION:
        raise DecodeError("the registry's index is of another version")
    if file.chain_id != chain_id or file.registry != registry:
        raise DecodeError("the registry's index is of another registry")
    index = RegistryIndex(chain_id, registry)
    index.checkpoints = list(file.checkpoints)
    for entry in file.entries:
        stake = int.from_bytes(entry.stake, "big")
        index.listings[entry.payee] = Listing(
            entry.payee, entry.identity, entry.endorsement, entry.ip, entry.port, stake
        )
    return index


def agree(
    answers: Iterable[Mapping[bytes, Listing | None]], known: Mapping[bytes, Listing]
) -> tuple[dict[bytes, Listing | None], int]:
    """Return what endpoints agree on, by payee, and on how many payees they do not.

    Where they name the same entry the lower stake counts. Where one has an entry and another has none, or
    another one, what was known before stays: a single endpoint that lies can neither add a relay nor remove
    one.
    """
    tables = list(answers)
    merged: dict[bytes, Listing | None] = {}
    disputed = 0
    for payee in {payee for table in tables for payee in table}:
        found = [table.get(payee) for table in tables]
        present = [one for one in found if one is not None]
        if not present:
            merged[payee] = None
        elif len(present) == len(found) and len({_terms(one) for one in present}) == 1:
            merged[payee] = min(present, key=lambda one: one.stake_wei)
        else:
            disputed += 1
            merged[payee] = known.get(payee)
    return merged, disputed


def _terms(listing: Listing) -> tuple[bytes, bytes, bytes, int]:
    return listing.identity, listing.endorsement, listing.ip, listing.port
