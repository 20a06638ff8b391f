"""Proof that a payee lets an identity earn for it: the payee's signature over the identity.

Owns what is signed and its check; keys are `payments.keys`'. The signed digest is Keccak-256 over
``"hopfare payee" | 00 | identity (32)``, so it is valid for one identity on every chain and is neither a
transaction nor an EIP-712 message. The registry proves the same pair by itself: there the payee is who sent
the transaction.
"""

from __future__ import annotations

from typing import Protocol

from payments.hashing import keccak256
from payments.keys import recover

PAYEE_PROOF_BYTES = 65
_PREFIX = b"hopfare payee\0"


class PayeeSigner(Protocol):
    """What proves a payee: `payments.keys.PurseKey`."""

    def sign(self, digest: bytes) -> bytes:
        """Return the signature r | s | v of a 32-byte digest."""


def prove_payee(key: PayeeSigner, identity: bytes) -> bytes:
    """Return the 65-byte proof that the account of `key` lets `identity` (32 bytes) earn for it."""
    return key.sign(_digest(identity))


def is_proof(proof: bytes, identity: bytes, payee: bytes) -> bool:
    """Tell whether `proof` is the signature of `payee` (20 bytes) for `identity`, False also for
    malformed ones.
    """
    return len(proof) == PAYEE_PROOF_BYTES and recover(_digest(identity), proof) == payee


def _digest(identity: bytes) -> bytes:
    return keccak256(_PREFIX + identity)
