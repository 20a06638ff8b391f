"""Signed bytes: a body and its signature, carried together exactly as they were signed.

A receiver checks the signature over the bytes it was given and passes on those same bytes, so no two programs
need to agree on how a value is written ("canonical form"). On the wire an envelope is the msgpack array
``[body: bin, signature: bin 64]``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from overlay.errors import DecodeError
from overlay.identity import SIGNATURE_BYTES, Identity

OVERHEAD_BYTES = 1 + 5 + 2 + SIGNATURE_BYTES
"""Most that an envelope adds to its body: array head, the body's head (up to 32 bit), signature."""


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A body and the signature over it; whose, and in which context, its reader knows."""

    body: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


_decoder = msgspec.msgpack.Decoder(Envelope)


def sign_envelope(identity: Identity, context: bytes, body: bytes) -> bytes:
    """Return the wire form of `body` with `identity`'s signature in `context`."""
    return msgspec.msgpack.encode(Envelope(body, identity.sign(context, body)))


def decode_envelope(data: bytes, limit_bytes: int, what: str) -> Envelope:
    """Split `data`; the signature is not checked yet.

    Raises DecodeError, calling the thing `what`, if it is longer than `limit_bytes` or not an envelope.
    """
    if len(data) > limit_bytes:
        raise DecodeError(f"{what} has {len(data)} bytes, more than the {limit_bytes} allowed")
    try:
        return _decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{what} is not a body with its signature: {error}") from None
