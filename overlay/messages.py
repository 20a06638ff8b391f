"""Control messages between neighbours: their types, limits and codec.

Owns the encoding of everything that travels on a link's control stream. It does not frame messages on the
stream (`overlay.links.framing`), nor does it know what a message makes a node do. Byte tables:
docs/protocol/links.md.

A message is one MessagePack array whose first element is its tag. Tags below 16 belong to the link itself and
are consumed by `overlay.links`; all others are handed up as bytes and decoded by whoever owns circuits.
"""

from typing import Annotated, Final

import msgspec

from overlay.errors import DecodeError

MAX_MESSAGE_BYTES: Final = 16 * 1024
"""Longest encoded message. A build of four hops is under 8 KiB."""

MAX_RECORDS_BYTES: Final = 15 * 1024
MAX_REASON_CHARACTERS: Final = 200
MAX_PADDING_BYTES: Final = 4096
MAX_PAYMENT_BYTES: Final = 192
"""That of `payments.formats`, which messages of this package do not import; a test holds them equal."""
FIRST_ENGINE_TAG: Final = 16

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
Padding = Annotated[bytes, msgspec.Meta(max_length=MAX_PADDING_BYTES)]
Records = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORDS_BYTES)]
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]
PaymentData = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_PAYMENT_BYTES)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """First message of the dialler. `identifies` says whether an Identify follows the Welcome."""

    identifies: bool
    padding: Padding


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """The acceptor's answer: a nonce never used before, for the dialler to sign."""

    nonce: Bytes32
    padding: Padding


class Identify(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """A dialling relay's identity and its signature over the acceptor's identity and nonce."""

    node_id: Bytes32
    signature: Bytes64


class Ping(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Keep-alive of the dialler, padded to a full packet so that it also probes the path's size."""

    number: U32
    padding: Padding


class Pong(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Answer to the Ping with the same number, padded alike."""

    number: U32
    padding: Padding


class Build(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=16):
    """Asks the receiver to take part in a circuit under this id on this link."""

    circuit_id: U32
    records: Records


class Built(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=17):
    """Answer to Build, on its way back to the client."""

    circuit_id: U32
    records: Records


class Destroy(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=18):
    """The sender has forgotten this circuit."""

    circuit_id: U32
    code: U16


class Goodbye(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=20):
    """The sender is about to go: build nothing new through it."""

    code: U16
    reason: Reason


class Payment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=24):
    """One payment message, which `payments.formats` reads. docs/protocol/payments.md, section 5."""

    data: PaymentData


LinkMessage = Hello | Welcome | Identify | Ping | Pong
EngineMessage = Build | Built | Destroy | Goodbye | Payment
Message = LinkMessage | EngineMessage

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message, strict=True)


def encode_control(message: Message) -> bytes:
    """Encode one message, at most MAX_MESSAGE_BYTES long.

    Raises ValueError when a field is outside its limits: that is a fault of ours, found before the peer finds
    it.
    """
    raw = _ENCODER.encode(message)
    try:
        decode_control(raw)
    except DecodeError as error:
        raise ValueError(f"{type(message).__name__} cannot be sent: {error}") from error
    return raw


def decode_control(raw: bytes) -> Message:
    """Decode exactly one message from 1 to MAX_MESSAGE_BYTES bytes of a peer.

    Raises DecodeError for anything else: unknown tag, missing or additional fields, a value out of its range,
    bytes after the end.
    """
    if not 0 < len(raw) <= MAX_MESSAGE_BYTES:
        raise DecodeError(f"a control message has {len(raw)} bytes; allowed are 1 to {MAX_MESSAGE_BYTES}")
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        # The library quotes no values in its messages, only types and field positions.
        raise DecodeError(f"not a control message: {error}") from None


def is_link_message(raw: bytes) -> bool:
    """Tell whether a message is for the link itself, from its first two bytes, without decoding it.

    True also for what cannot be told, so that it is decoded, and refused, by the link.
    """
    if len(raw) < 2 or raw[0] & 0xF0 != 0x90:
        return True
    return raw[1] < FIRST_ENGINE_TAG or raw[1] > 0x7F
