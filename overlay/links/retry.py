"""Tokens for QUIC Retry: proof that a dialler receives at the address it sends from.

The libraries' own helpers are not used: qh3's decrypts with RSA, a millisecond of CPU for each forged token,
and aioquic's would load a second QUIC library into the process.
"""

import hashlib
import ipaddress
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from overlay.errors import DecodeError

TOKEN_LIFETIME_S: Final = 15.0
"""A dialler answers a Retry at once (RFC 9000 section 8.1.4)."""
KEY_BYTES: Final = 16
NONCE_BYTES: Final = 12
_TIME: Final = struct.Struct(">Q")
_MAX_TOKEN_BYTES: Final = 128


class RetryTokens:
    """Makes and checks tokens under one key of this process."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        """Take KEY_BYTES random bytes."""
        self._aead = AESGCM(key)

    def create(
        self, address: tuple[str, int], original_cid: bytes, retry_cid: bytes, nonce: bytes, now: float
    ) -> bytes:
        """Return a token for this address that names the dialler's first destination id and the Retry's
        source id.

        `nonce` is 12 random bytes, never used before.
        """
        plain = _TIME.pack(int(now * 1000)) + original_cid
        return nonce + self._aead.encrypt(nonce, plain, _binding(address, retry_cid))

    def decode_token(self, token: bytes, address: tuple[str, int], retry_cid: bytes, now: float) -> bytes:
        """Return the dialler's first destination id.

        Raises DecodeError for a token that is not ours, of another address or Retry, or older than
        TOKEN_LIFETIME_S.
        """
        if not NONCE_BYTES < len(token) <= _MAX_TOKEN_BYTES:
            raise DecodeError("the token is not one of ours")
        try:
            plain = self._aead.decrypt(token[:NONCE_BYTES], token[NONCE_BYTES:], _binding(address, retry_cid))
        except InvalidTag:
            raise DecodeError("the token is not one of ours") from None
        age_s = now - _TIME.unpack_from(plain)[0] / 1000
        if not -1 <= age_s <= TOKEN_LIFETIME_S:
            raise DecodeError("the token is too old")
        return plain[_TIME.size :]


def _binding(address: tuple[str, int], retry_cid: bytes) -> bytes:
    packed = ipaddress.ip_address(address[0]).packed
    return hashlib.sha256(b"%d|%b|%b" % (address[1], packed, retry_cid)).digest()
