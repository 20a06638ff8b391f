"""The two cipher suites of a circuit, and the choice between them (docs/protocol/onion.md, "Suites").

Owns which cipher a suite's bodies and streams use and how a counter becomes a nonce. Keeps no keys: what it
returns does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

SUITE_CHACHA = 1
SUITE_AES = 2
SUITES = (SUITE_CHACHA, SUITE_AES)

AEAD_NONCE_SHIFT = 32
"""`(counter << AEAD_NONCE_SHIFT)` as 12 little-endian bytes is the AEAD's nonce, 4 zero bytes |
LE64(counter)."""

_NO_NONCE = bytes(16)


class Aead(Protocol):
    """What is used of AESGCM and ChaCha20Poly1305; the tag is the last 16 bytes of a sealed message."""

    def encrypt(self, nonce: bytes, data: bytes | memoryview, associated_data: bytes | None) -> bytes:
        """Seal."""

    def decrypt(self, nonce: bytes, data: bytes | memoryview, associated_data: bytes | None) -> bytes:
        """Open; raises cryptography's InvalidTag."""


class Suite:
    """One suite. `(counter << stream_shift)` as 16 little-endian bytes is what a stream's reset_nonce
    takes.

    AES-256-CTR wants nonce(12) | big-endian block number(4), ChaCha20 little-endian block number(4) |
    nonce(12); both start at block 0, so only the place of the counter differs.
    """

    __slots__ = ("_aead", "_stream", "name", "number", "stream_shift")

    def __init__(
        self,
        number: int,
        name: str,
        aead: Callable[[bytes], Aead],
        stream: Callable[[bytes], CipherContext],
        stream_shift: int,
    ) -> None:
        """Used by this module only; see `get_suite`."""
        self.number = number
        self.name = name
        self.stream_shift = stream_shift
        self._aead = aead
        self._stream = stream

    def __repr__(self) -> str:
        """Show number and name."""
        return f"Suite({self.number}, {self.name!r})"

    def new_aead(self, key: bytes) -> Aead:
        """The body cipher for a key of 32 bytes, about 2.4 KB."""
        return self._aead(key)

    def new_stream(self, key: bytes) -> CipherContext:
        """The stream cipher for a key of 32 bytes, about 1 KB. Reset its nonce before every use."""
        return self._stream(key)


def _aes_stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(_NO_NONCE)).encryptor()


def _chacha_stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.ChaCha20(key, _NO_NONCE), None).encryptor()


_BY_NUMBER = {
    SUITE_CHACHA: Suite(SUITE_CHACHA, "ChaCha20-Poly1305", ChaCha20Poly1305, _chacha_stream, 64),
    SUITE_AES: Suite(SUITE_AES, "AES-256-GCM", AESGCM, _aes_stream, 32),
}


def get_suite(number: int) -> Suite:
    """The suite of this number. Raises ValueError when there is none: the build refuses unknown suites
    first."""
    suite = _BY_NUMBER.get(number)
    if suite is None:
        raise ValueError(f"no cipher suite has the number {number!r}")
    return suite


def preferred_suite(cpu_flags: Collection[str]) -> int:
    """The suite that a processor with these flags does faster.

    `cpu_flags`: names as Linux prints them in /proc/cpuinfo. AES-GCM in software leaks keys through caches
    and is slow, so both of its instructions must be there: `aes` and the carry-less product (`pclmulqdq`
    on x86, `pmull` on ARM).
    """
    return (
        SUITE_AES
        if "aes" in cpu_flags and ("pclmulqdq" in cpu_flags or "pmull" in cpu_flags)
        else SUITE_CHACHA
    )


def choose_suite(preferred: int, offers: Iterable[Collection[int]]) -> int | None:
    """The suite for a circuit: `preferred` if every hop offers it, else another that all offer, else
    None."""
    shared = set(SUITES)
    for offer in offers:
        shared &= set(offer)
    return preferred if preferred in shared else max(shared, default=None)
