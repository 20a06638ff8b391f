"""A node's long-term identity: one Ed25519 key, whose public half is the node's name.

Owns the key, its text form, its file and the domain separation of what it signs. Does not own certificates
(overlay.links makes those from `Identity.seed`) or descriptors (overlay.descriptor).

Every signature is over ``b"hopfare " + context + b"\\0" + message``: a context is a short ASCII word of its
user ("descriptor", "seed list", "link"), so a signature made for one purpose never passes for another.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import NewType

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from nacl.utils import random as _os_random

from overlay.errors import DecodeError, FileError
from overlay.io import files

NodeId = NewType("NodeId", bytes)
"""A node's name: the 32 raw bytes of its Ed25519 public key."""

NODE_ID_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64
NODE_ID_TEXT_LENGTH = 52
"""Base32 characters of 32 bytes without padding."""

_FILE_HEADER = "hopfare identity 1"
_FILE_LIMIT_BYTES = 512


def format_node_id(node_id: bytes) -> str:
    """Return the text form of a node id: 52 characters of lower-case base32 without padding."""
    return _encode_base32(node_id)


def parse_node_id(text: str) -> NodeId:
    """Return the node id whose text form is `text` (either case). Raises DecodeError if it is not one."""
    return NodeId(_decode_base32(text, NODE_ID_BYTES, "a node's name"))


def verify(node_id: bytes, context: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` is `node_id`'s over `message` in `context`; false if any is malformed."""
    if len(node_id) != NODE_ID_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(bytes(node_id)).verify(_signed_bytes(context, message), bytes(signature))
    except (BadSignatureError, ValueError):
        return False
    return True


class Identity:
    """The secret key of a node. Its repr shows the public name only."""

    __slots__ = ("_key", "node_id")

    node_id: NodeId

    def __init__(self, seed: bytes) -> None:
        """Make the identity of a 32-byte secret `seed`. Raises ValueError for another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an identity's seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._key = SigningKey(seed)
        self.node_id = NodeId(bytes(self._key.verify_key))

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes] = _os_random) -> Identity:
        """Return a new identity from 32 bytes of `random_bytes` (by default the system's)."""
        return cls(random_bytes(SEED_BYTES))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes: only to hand the key to another library, never to be stored or shown."""
        return bytes(self._key)

    @property
    def name(self) -> str:
        """The text form of the node id."""
        return format_node_id(self.node_id)

    def sign(self, context: bytes, message: bytes) -> bytes:
        """Return the 64-byte signature of `message` in `context` (see the module's text)."""
        return self._key.sign(_signed_bytes(context, message)).signature

    def save(self, path: str | Path) -> None:
        """Write the identity to a new file of mode 0600, synced to disk.

        Raises FileError if the file exists (an identity is never overwritten) or cannot be written.
        """
        text = f"{_FILE_HEADER}\nnode {self.name}\nsecret {_encode_base32(self.seed)}\n"
        files.write_atomic(Path(path), text.encode(), replace=False)

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read an identity file.

        Raises FileError if it is missing, readable by anyone but its owner, or damaged.
        """
        location = Path(path)
        data = files.read_private(location, "identity file", _FILE_LIMIT_BYTES)
        damaged = FileError(
            f"the identity file {location} is damaged; restore it from a copy, "
            "or move it away and run: hopfare init"
        )
        try:
            header, node_line, secret_line = data.decode("ascii").splitlines()
            node_word, node_text = node_line.split(" ")
            secret_word, secret_text = secret_line.split(" ")
            identity = cls(_decode_base32(secret_text, SEED_BYTES, "a secret"))
        except (ValueError, DecodeError):
            raise damaged from None  # the cause may quote the secret
        if (header, node_word, secret_word) != (_FILE_HEADER, "node", "secret") or identity.name != node_text:
            raise damaged
        return identity

    def __eq__(self, other: object) -> bool:
        """Compare the secrets in constant time."""
        return isinstance(other, Identity) and hmac.compare_digest(self.seed, other.seed)

    def __hash__(self) -> int:
        """Hash the public name."""
        return hash(self.node_id)

    def __repr__(self) -> str:
        """Show the public name only."""
        return f"Identity({self.name})"

    def __reduce__(self) -> str:
        """Refuse to be pickled: a secret leaves the process only through `save`."""
        raise TypeError("an identity is not to be pickled")


def _signed_bytes(context: bytes, message: bytes) -> bytes:
    if b"\0" in context:
        raise ValueError("a signature's context has no zero byte")
    return b"hopfare " + context + b"\0" + message


def _encode_base32(data: bytes) -> str:
    return base64.b32encode(data).rstrip(b"=").lower().decode()


def _decode_base32(text: str, size_bytes: int, what: str) -> bytes:
    length = (size_bytes * 8 + 4) // 5
    if len(text) != length or not text.isascii():
        raise DecodeError(f"{what} has {length} characters of base32")
    try:
        data = base64.b32decode(text.upper() + "=" * (-length % 8))
    except binascii.Error:
        raise DecodeError(f"{what} is written in base32 (a to z and 2 to 7)") from None
    if _encode_base32(data) != text.lower():  # the last character has spare bits: one spelling per value
        raise DecodeError(f"{what} ends in a character that no correct one ends in")
    return data
