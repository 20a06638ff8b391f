"""secp256k1 keys of purses and payees: signing digests and finding out who signed.

Owns the key in memory, low-s signatures and address derivation. Key files are `payments.io.keystore`'s.
coincurve (libsecp256k1) is imported on first use.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

from payments.books import SIGNATURE_BYTES
from payments.hashing import keccak256

if TYPE_CHECKING:
    from coincurve import PrivateKey

SECRET_BYTES = 32
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_ORDER = CURVE_ORDER // 2
"""An s above this is refused (EIP-2): otherwise every signature would have a second, equally valid form."""


class PurseKey:
    """A secp256k1 secret key and its Ethereum address. Never shown, never compared in variable time."""

    __slots__ = ("_address", "_key")

    def __init__(self, secret: bytes) -> None:
        """Take the 32-byte `secret`. Raises ValueError if it is not in 1 .. order-1."""
        from coincurve import PrivateKey

        if len(secret) != SECRET_BYTES or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise ValueError("a secp256k1 secret is 32 bytes in 1..order-1")
        self._key: PrivateKey = PrivateKey(secret)
        self._address = _address_of(self._key.public_key.format(compressed=False))

    @classmethod
    def generate(cls, rng: Callable[[int], bytes]) -> PurseKey:
        """Return a new key from `rng` (a source of secret random bytes)."""
        while True:
            secret = rng(SECRET_BYTES)
            if 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
                return cls(secret)

    @property
    def address(self) -> bytes:
        """The 20-byte Ethereum address."""
        return self._address

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for key files and transaction signing only."""
        return self._key.secret

    def sign(self, digest: bytes) -> bytes:
        """Return the signature r | s | v (65 bytes, low s, v 27 or 28) of a 32-byte digest."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return raw[:64] + bytes((raw[64] + 27,))

    def derive(self, label: bytes) -> bytes:
        """Return 32 secret bytes for `label`, from which nothing about the key can be found."""
        return keccak256(b"hopfare derive\0" + keccak256(label) + self._key.secret)

    def __repr__(self) -> str:
        """Show what is not secret."""
        return f"PurseKey(0x{self._address.hex()})"

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, PurseKey):
            return NotImplemented
        return hmac.compare_digest(self._key.secret, other._key.secret)

    def __hash__(self) -> int:
        """Hash by address."""
        return hash(self._address)

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("a purse key is not pickled")


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """Return the 20-byte address whose key signed `digest`, or None if there is none (or s is high)."""
    from coincurve import PublicKey

    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        return None
    try:
        # The binding raises ValueError for some malformed signatures and a bare Exception for others.
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None
        )
        return _address_of(key.format(compressed=False))
    except Exception:
        return None


def checksum_address(address: bytes) -> str:
    """Return the EIP-55 text form, 0x and 40 hexadecimal digits in mixed case."""
    digits = address.hex()
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(d.upper() if int(m, 16) >= 8 else d for d, m in zip(digits, marks, strict=False))


def parse_address(text: str) -> bytes:
    """Return the 20 bytes of an address in text form.

    Raises ValueError if it is not 0x and 40 hexadecimal digits, or if it is in mixed case and its EIP-55
    checksum is wrong (a mistyped address is money lost).
    """
    digits = text[2:] if text[:2] in ("0x", "0X") else ""
    if len(digits) != 40:
        raise ValueError(f"{text!r} is not an address: 0x and 40 hexadecimal digits are expected")
    address = bytes.fromhex(digits)
    if digits not in (digits.lower(), digits.upper()) and checksum_address(address)[2:] != digits:
        raise ValueError(f"{text!r} has a wrong checksum: a character is mistyped")
    return address


def _address_of(public: bytes) -> bytes:
    return keccak256(public[1:])[12:]
