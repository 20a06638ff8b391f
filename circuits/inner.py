"""What a body holds: items `type (1) | flags (1) | length (2) | data` and zero padding
(docs/protocol/onion.md, "Inner format").

Owns the framing only. IP packets, control messages and offload headers are opaque here; whoever hands an item
on checks it.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from circuits.errors import DecodeError
from circuits.params import BACKWARD_OVERHEAD_BYTES, FORWARD_OVERHEAD_BYTES, MAX_TRAIN_UNITS, UNIT

if TYPE_CHECKING:
    from collections.abc import Sequence

ITEM_HEADER_BYTES = 4
OFFLOAD_HEADER_BYTES = 10
"""A Linux virtio_net_hdr without the count of buffers, little-endian; not part of the item's length."""
ECHO_TOKEN_BYTES = 8
MIN_IP_BYTES = 20
MAX_IP_BYTES = 65_535

_HEADER = struct.Struct(">BBH")


class Direction(Enum):
    """Which way a body travels: its room depends on it."""

    FORWARD = "forward"
    BACKWARD = "backward"


class ItemType(IntEnum):
    """The wire's type byte."""

    PADDING = 0
    IP = 1
    OFFLOAD = 2
    CONTROL = 3
    ECHO_REQUEST = 4
    ECHO_REPLY = 5


class Item(NamedTuple):
    """One item. An OFFLOAD item's data is its 10-byte header and then the IP packet; flags are 0 in this
    version."""

    kind: ItemType
    flags: int
    data: bytes


_OVERHEAD_BYTES = {Direction.FORWARD: FORWARD_OVERHEAD_BYTES, Direction.BACKWARD: BACKWARD_OVERHEAD_BYTES}
_LENGTHS = {
    ItemType.IP: (MIN_IP_BYTES, MAX_IP_BYTES),
    ItemType.OFFLOAD: (MIN_IP_BYTES, MAX_IP_BYTES),
    ItemType.CONTROL: (1, 65_535),
    ItemType.ECHO_REQUEST: (ECHO_TOKEN_BYTES, ECHO_TOKEN_BYTES),
    ItemType.ECHO_REPLY: (ECHO_TOKEN_BYTES, ECHO_TOKEN_BYTES),
}
"""Shortest and longest length field of each type."""
_RULES = tuple(
    (kind, *_LENGTHS.get(kind, (1, 0)), OFFLOAD_HEADER_BYTES if kind is ItemType.OFFLOAD else 0)
    for kind in ItemType
)


def body_capacity(direction: Direction, units: int) -> int:
    """Bytes of a body of `units` units: 1384 * units - 96 forward, 1384 * units - 48 backward."""
    return UNIT * units - _OVERHEAD_BYTES[direction]


def units_for(direction: Direction, size_bytes: int) -> int:
    """The fewest units whose body holds `size_bytes`; more than MAX_TRAIN_UNITS when no train does."""
    return max(1, -(-(size_bytes + _OVERHEAD_BYTES[direction]) // UNIT))


def item_size(item: Item) -> int:
    """Bytes that an item takes in a body."""
    return ITEM_HEADER_BYTES + len(item[2])


def encode_body(items: Sequence[Item], capacity: int) -> bytes:
    """Encode items into one body of exactly `capacity` bytes, padded with zeros.

    Raises ValueError for an item that no receiver would take, and when the items do not fit.
    """
    parts = []
    room = capacity
    for kind, flags, data in items:
        _, shortest, longest, extra = _RULES[kind]
        length = len(data) - extra
        if flags or not shortest <= length <= longest:
            raise ValueError(f"not a valid {ItemType(kind).name} item: flags {flags}, {len(data)} bytes")
        parts.append(_HEADER.pack(kind, flags, length))
        parts.append(data)
        room -= ITEM_HEADER_BYTES + len(data)
    if room < 0:
        raise ValueError(f"{len(items)} items need {capacity - room} bytes of a body of {capacity}")
    parts.append(bytes(room))
    return b"".join(parts)


def pack_singles(items: Sequence[Item], capacity: int) -> list[bytes]:
    """Pack items, in order, into bodies of `capacity` bytes; each body takes all that still fits.

    Raises ValueError for an item larger than one body: it belongs into a train.
    """
    bodies = []
    start = size = 0
    for index, item in enumerate(items):
        needed = ITEM_HEADER_BYTES + len(item[2])
        if size + needed > capacity and index > start:
            bodies.append(encode_body(items[start:index], capacity))
            start, size = index, 0
        size += needed
    if start < len(items):
        bodies.append(encode_body(items[start:], capacity))
    return bodies


def pack_train(items: Sequence[Item], direction: Direction) -> list[bytes]:
    """Pack items, in order, into bodies of trains: each as full as MAX_TRAIN_UNITS allow, in the fewest
    units.

    An item never spans two bodies. The last body is as short as what is left. Raises ValueError for an
    invalid item.
    """
    bodies = []
    longest = body_capacity(direction, MAX_TRAIN_UNITS)
    start = size = 0
    for index, item in enumerate(items):
        needed = ITEM_HEADER_BYTES + len(item[2])
        if size + needed > longest and index > start:
            bodies.append(
                encode_body(items[start:index], body_capacity(direction, units_for(direction, size)))
            )
            start, size = index, 0
        size += needed
    if start < len(items):
        units = min(units_for(direction, size), MAX_TRAIN_UNITS)
        bodies.append(encode_body(items[start:], body_capacity(direction, units)))
    return bodies


def decode_body(body: bytes) -> list[Item]:
    """Read the items of one body of any length.

    Strict: an unknown type, a flag, a length that the type or the body does not allow, and padding that is
    not zero to the end of the body raise DecodeError; nothing of such a body is used.
    """
    items: list[Item] = []
    at, end = 0, len(body)
    while end - at >= ITEM_HEADER_BYTES:
        kind, flags, length = _HEADER.unpack_from(body, at)
        if kind == 0:
            break
        if kind >= len(_RULES) or flags:
            raise DecodeError(f"an item of type {kind} with flags {flags}")
        known, shortest, longest, extra = _RULES[kind]
        if not shortest <= length <= longest:
            raise DecodeError(f"an item of type {kind} with {length} bytes")
        start = at + ITEM_HEADER_BYTES
        at = start + extra + length
        if at > end:
            raise DecodeError("an item goes on past its body")
        items.append(Item(known, 0, body[start:at]))
    if at < end and not body.endswith(bytes(end - at)):
        raise DecodeError("padding that is not zero")
    return items
