"""A relay's X25519 onion keys: the current one, the one before, when they change, and their form on disk.

Pure: a driver reads and writes the file (0600) and asks `rotated` now and then. Times are seconds since 1970
(UTC).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from circuits.errors import DecodeError
from circuits.handshake import KEY_BYTES, Rng

ROTATION_S = 86_400  # a new key every day, unless the node's descriptors live longer


@dataclass(frozen=True, slots=True)
class OnionKey:
    """One key pair. `repr` shows nothing of it."""

    private: X25519PrivateKey
    public: bytes
    created_s: int

    def __repr__(self) -> str:
        """Hide the key."""
        return f"OnionKey(created_s={self.created_s})"


class _Stored(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    secret: bytes
    created_s: int

    def __repr__(self) -> str:
        return f"_Stored(created_s={self.created_s})"


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    version: int
    current: _Stored
    previous: _Stored | None = None


def _key(secret: bytes, created_s: int) -> OnionKey:
    private = X25519PrivateKey.from_private_bytes(secret)
    return OnionKey(private, private.public_key().public_bytes_raw(), created_s)


@dataclass(frozen=True, slots=True)
class OnionKeys:
    """The keys a relay opens first messages with. Immutable: a rotation returns another object."""

    current: OnionKey
    previous: OnionKey | None = None

    @classmethod
    def generate(cls, unix_s: float, rng: Rng) -> OnionKeys:
        """Make the first key, from 32 bytes of `rng`."""
        return cls(_key(rng(KEY_BYTES), int(unix_s)))

    def rotated(self, unix_s: float, rng: Rng, rotation_s: float = ROTATION_S) -> OnionKeys:
        """Return the keys to use now: itself while nothing is due.

        A key older than `rotation_s` makes place for a new one; the previous key stays readable for the same
        time again, so `rotation_s` must be at least as long as a descriptor that names the key lives. A clock
        set back makes keys live longer, up to the same span again; a key from further in the future is
        replaced.
        """
        age_s = unix_s - self.current.created_s
        if not -rotation_s <= age_s < rotation_s:
            # A node that was off for long must not go on opening what was sealed for the old key then.
            recent = -rotation_s <= age_s < 2 * rotation_s
            return OnionKeys(_key(rng(KEY_BYTES), int(unix_s)), self.current if recent else None)
        if self.previous is not None and unix_s - self.previous.created_s >= 2 * rotation_s:
            return OnionKeys(self.current)
        return self

    def readable(self) -> tuple[OnionKey, ...]:
        """Return the keys to try, current first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    def encode(self) -> bytes:
        """Return the form for the disk: JSON with the secrets in base64. Keep it private."""
        return msgspec.json.encode(
            _File(1, _stored(self.current), None if self.previous is None else _stored(self.previous))
        )


def _stored(key: OnionKey) -> _Stored:
    return _Stored(key.private.private_bytes_raw(), key.created_s)


def decode_onion_keys(data: bytes) -> OnionKeys:
    """Read what `OnionKeys.encode` wrote. Raises DecodeError for anything else; the message holds no part of
    the data.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError("onion keys: not the expected JSON") from error
    stored = [file.current] if file.previous is None else [file.current, file.previous]
    if file.version != 1 or any(len(key.secret) != KEY_BYTES or key.created_s < 0 for key in stored):
        raise DecodeError("onion keys: version, key length or time")
    keys = [_key(key.secret, key.created_s) for key in stored]
    return OnionKeys(keys[0], keys[1] if len(keys) > 1 else None)
