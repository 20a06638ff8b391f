"""Messages of discovery on a link's control stream: tags 64 to 79, their limits and codec.

Owns the encoding. What a message makes a node do is `overlay.gossip.machine`'s, and for DialBack and
DialedBack `overlay.gossip.reachability`'s. Byte tables: docs/protocol/gossip.md.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from overlay.descriptor import MAX_ADDRESSES, MAX_DESCRIPTOR_BYTES, Address
from overlay.errors import DecodeError
from overlay.gossip.limits import (
    BUCKETS,
    MAX_ADDRESS_TEXT,
    MAX_HAVE,
    MAX_KNOWN_BYTES,
    MAX_WANT,
    ROOT_BYTES,
    SHORT_BYTES,
)
from overlay.messages import MAX_MESSAGE_BYTES, U32

FIRST_TAG: Final = 64
LAST_TAG: Final = 79

_Root = Annotated[bytes, msgspec.Meta(min_length=ROOT_BYTES, max_length=ROOT_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_TEXT)]
_U8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_Encoded = Annotated[bytes, msgspec.Meta(max_length=MAX_DESCRIPTOR_BYTES)]
_Descriptors = Annotated[tuple[_Encoded, ...], msgspec.Meta(max_length=1024)]


class Digest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=64):
    """The sender's whole directory in one hash, and the IP address at which it sees the receiver.

    `asks` wants a Digest in return.
    """

    root: _Root
    count: U32
    asks: bool
    seen: _Text


class GetBuckets(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=65):
    """Asks for the hashes of the 256 parts of the receiver's directory."""

    request: U32


class Buckets(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=66):
    """Answer to GetBuckets: 256 hashes of 8 bytes."""

    request: U32
    digests: Annotated[
        bytes, msgspec.Meta(min_length=BUCKETS * SHORT_BYTES, max_length=BUCKETS * SHORT_BYTES)
    ]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One part of the directory, and the short hashes of what the sender has of it."""

    bucket: _U8
    known: Annotated[bytes, msgspec.Meta(max_length=MAX_KNOWN_BYTES)]


class Pull(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=67):
    """Asks for what the receiver has of some parts, and the sender has not."""

    request: U32
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=BUCKETS)]


class Page(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=68):
    """Part of the answer to a Pull. The last one names the parts of which there is more."""

    request: U32
    descriptors: _Descriptors
    is_last: bool
    unfinished: Annotated[bytes, msgspec.Meta(max_length=BUCKETS)]


class Have(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=69):
    """Announces new descriptors by their short hashes, one after the other."""

    shorts: Annotated[bytes, msgspec.Meta(min_length=SHORT_BYTES, max_length=MAX_HAVE * SHORT_BYTES)]


class Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=70):
    """Asks for announced descriptors."""

    shorts: Annotated[bytes, msgspec.Meta(min_length=SHORT_BYTES, max_length=MAX_WANT * SHORT_BYTES)]


class Push(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=71):
    """Descriptors that were asked for by a Want."""

    descriptors: _Descriptors


class DialBack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=72):
    """Asks the receiver to try whether the sender answers at these addresses."""

    request: U32
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]


class Attempt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What became of one address: an `overlay.gossip.reachability.Outcome`."""

    address: Address
    outcome: _U8


class DialedBack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=73):
    """Answer to DialBack, with the IP address at which the sender sees the receiver."""

    request: U32
    attempts: Annotated[tuple[Attempt, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    seen: _Text


GossipMessage = Digest | GetBuckets | Buckets | Pull | Page | Have | Want | Push | DialBack | DialedBack

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[GossipMessage] = msgspec.msgpack.Decoder(GossipMessage, strict=True)


def is_gossip(raw: bytes) -> bool:
    """Tell from its first two bytes whether a control message is discovery's."""
    return len(raw) >= 2 and raw[0] & 0xF0 == 0x90 and FIRST_TAG <= raw[1] <= LAST_TAG


def encode_gossip(message: GossipMessage) -> bytes:
    """Return the message's bytes. Raises ValueError if it is longer than a control message may be."""
    raw = _encoder.encode(message)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(raw)} bytes cannot be sent")
    return raw


def decode_gossip(raw: bytes) -> GossipMessage:
    """Return the one message in `raw`, 1 to MAX_MESSAGE_BYTES bytes of a peer.

    Raises DecodeError for anything else: unknown tag, missing or additional fields, a value out of its range,
    hashes of which the last is cut short, bytes after the end.
    """
    if not 0 < len(raw) <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"a message of discovery has {len(raw)} bytes")
    try:
        message = _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise DecodeError(f"not a message of discovery: {error}") from None
    if isinstance(message, Have | Want):
        _check_whole(message.shorts)
    elif isinstance(message, Pull):
        for part in message.parts:
            _check_whole(part.known)
    return message


def split_shorts(shorts: bytes) -> list[bytes]:
    """Return the hashes that stand one after the other in `shorts`."""
    return [shorts[at : at + SHORT_BYTES] for at in range(0, len(shorts), SHORT_BYTES)]


def _check_whole(shorts: bytes) -> None:
    if len(shorts) % SHORT_BYTES:
        raise DecodeError("the last hash is cut short")
