"""keccak-256, the one hash of books, chains and contracts.

The backend is safe-pysha3 (about 1.2 us for 32 bytes); pycryptodome, which eth-account brings along, stands
in where that wheel is missing (about 8 us; the speed targets of docs/protocol/payments.md then do not hold).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

HASH_BYTES = 32


class _Hasher(Protocol):
    def digest(self) -> bytes: ...


def _choose() -> tuple[str, Callable[[bytes], _Hasher]]:
    try:
        import _pysha3  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from Crypto.Hash import keccak

        def new(data: bytes) -> _Hasher:
            return keccak.new(data=data, digest_bits=256)

        return "pycryptodome", new
    return "safe-pysha3", _pysha3.keccak_256


BACKEND, new_hash = _choose()
"""The backend's name, and its function from bytes to an object with `digest()`; for tight loops."""


def keccak256(data: bytes) -> bytes:
    """Return the 32-byte keccak-256 of `data` (the padding of Ethereum, not that of SHA3-256)."""
    return new_hash(data).digest()
