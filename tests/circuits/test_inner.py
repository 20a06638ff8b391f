import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.errors import DecodeError
from circuits.inner import (
    Direction,
    Item,
    ItemType,
    body_capacity,
    decode_body,
    encode_body,
    item_size,
    pack_singles,
    pack_train,
    units_for,
)
from circuits.params import MAX_TRAIN_UNITS

TOKEN = bytes(range(8))
LARGEST = Item(ItemType.OFFLOAD, 0, bytes(10) + b"\x45" * 65_535)

lengths = st.one_of(st.integers(20, 1400), st.integers(20, 65_535))
items = st.one_of(
    st.builds(lambda size, fill: Item(ItemType.IP, 0, bytes((fill,)) * size), lengths, st.integers(0, 255)),
    st.builds(
        lambda size, fill: Item(ItemType.OFFLOAD, 0, bytes((fill,)) * (size + 10)),
        lengths,
        st.integers(0, 255),
    ),
    st.builds(lambda data: Item(ItemType.CONTROL, 0, data), st.binary(min_size=1, max_size=60)),
    st.builds(
        lambda kind: Item(kind, 0, TOKEN), st.sampled_from([ItemType.ECHO_REQUEST, ItemType.ECHO_REPLY])
    ),
)
directions = st.sampled_from(Direction)


def raw(kind, flags, length, data=b""):
    return struct.pack(">BBH", kind, flags, length) + data


def test_capacities():
    assert [body_capacity(Direction.FORWARD, units) for units in (1, 48)] == [1288, 1384 * 48 - 96]
    assert [body_capacity(Direction.BACKWARD, units) for units in (1, 48)] == [1336, 1384 * 48 - 48]


@given(directions, st.integers(0, 70_000))
def test_units_are_the_fewest(direction, size):
    units = units_for(direction, size)
    assert body_capacity(direction, units) >= size
    assert units == 1 or body_capacity(direction, units - 1) < size


def test_layout():
    body = encode_body([Item(ItemType.ECHO_REQUEST, 0, TOKEN), Item(ItemType.IP, 0, b"\x45" * 20)], 40)
    assert body == b"\x04\0\0\x08" + TOKEN + b"\x01\0\0\x14" + b"\x45" * 20 + bytes(4)


def test_an_offload_header_is_not_counted():
    body = encode_body([Item(ItemType.OFFLOAD, 0, b"h" * 10 + b"\x45" * 30)], 60)
    assert body == b"\x02\0\0\x1e" + b"h" * 10 + b"\x45" * 30 + bytes(16)
    assert decode_body(body) == [Item(ItemType.OFFLOAD, 0, b"h" * 10 + b"\x45" * 30)]


@given(st.lists(items, max_size=8), st.integers(0, 2000))
def test_bodies_round_trip(some, spare):
    capacity = sum(map(item_size, some)) + spare
    body = encode_body(some, capacity)
    assert len(body) == capacity
    decoded = decode_body(body)
    assert decoded == some
    assert all(isinstance(kind, ItemType) for kind, _, _ in decoded)


@pytest.mark.parametrize("size", range(6))
def test_nothing_but_padding_is_a_body(size):
    assert encode_body([], size) == bytes(size)
    assert decode_body(bytes(size)) == []


@pytest.mark.parametrize(
    "item",
    [
        Item(ItemType.PADDING, 0, b""),
        Item(ItemType.IP, 0, bytes(19)),
        Item(ItemType.IP, 0, bytes(65_536)),
        Item(ItemType.IP, 1, bytes(20)),
        Item(ItemType.OFFLOAD, 0, bytes(29)),
        Item(ItemType.CONTROL, 0, b""),
        Item(ItemType.ECHO_REPLY, 0, bytes(7)),
        Item(ItemType.ECHO_REQUEST, 0, bytes(9)),
    ],
)
def test_invalid_items_are_not_encoded(item):
    with pytest.raises(ValueError, match="not a valid"):
        encode_body([item], 70_000)


def test_a_body_holds_no_more_than_it_has():
    with pytest.raises(ValueError, match="need 24 bytes"):
        encode_body([Item(ItemType.IP, 0, bytes(20))], 23)


@pytest.mark.parametrize(
    "body",
    [
        raw(6, 0, 20, bytes(20)),
        raw(255, 0, 0),
        raw(1, 1, 20, bytes(20)),
        raw(1, 0, 19, bytes(19)),
        raw(1, 0, 21, bytes(20)),
        raw(1, 0, 65_535, bytes(20)),
        raw(2, 0, 20, bytes(29)),
        raw(3, 0, 0),
        raw(4, 0, 7, bytes(7)),
        raw(5, 0, 9, bytes(9)),
        raw(0, 0, 1, bytes(20)),
        raw(0, 1, 0, bytes(20)),
        raw(1, 0, 20, bytes(20)) + b"\0\0\x01",
        raw(1, 0, 20, bytes(20)) + bytes(50) + b"\x01",
        b"\x01",
        b"\0\0\x01\0",
    ],
)
def test_malformed_bodies_are_refused(body):
    with pytest.raises(DecodeError):
        decode_body(body)


@given(st.binary(max_size=200))
def test_garbage_is_read_the_one_way_it_can_be_written(body):
    try:
        decoded = decode_body(body)
    except DecodeError:
        return
    assert encode_body(decoded, len(body)) == body


@given(st.lists(items, min_size=1, max_size=6), st.data())
def test_one_changed_byte_never_raises_anything_else(some, data):
    body = bytearray(encode_body(some, sum(map(item_size, some)) + 10))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DecodeError):
        decode_body(bytes(body))


@given(st.lists(items.filter(lambda item: item_size(item) <= 1288), max_size=40), directions)
def test_singles_keep_order_and_share(some, direction):
    capacity = body_capacity(direction, 1)
    bodies = pack_singles(some, capacity)
    read = [decode_body(body) for body in bodies]
    assert [item for of in read for item in of] == some
    assert all(len(body) == capacity for body in bodies)
    for one, following in itertools.pairwise(read):
        assert sum(map(item_size, one)) + item_size(following[0]) > capacity


def test_what_fits_no_single_packet_is_our_mistake():
    with pytest.raises(ValueError, match="need"):
        pack_singles([Item(ItemType.IP, 0, bytes(1285))], 1288)


@given(st.lists(items, max_size=30), directions)
def test_trains_keep_order_and_are_as_short_as_they_can_be(some, direction):
    bodies = pack_train(some, direction)
    read = [decode_body(body) for body in bodies]
    assert [item for of in read for item in of] == some
    longest = body_capacity(direction, MAX_TRAIN_UNITS)
    for body, of in zip(bodies, read, strict=True):
        units = units_for(direction, sum(map(item_size, of)))
        assert 1 <= units <= MAX_TRAIN_UNITS
        assert len(body) == body_capacity(direction, units)
    for one, following in itertools.pairwise(read):
        assert sum(map(item_size, one)) + item_size(following[0]) > longest


@pytest.mark.parametrize("direction", Direction)
def test_the_largest_super_packet_fits(direction):
    assert [decode_body(body) for body in pack_train([LARGEST], direction)] == [[LARGEST]]


def test_no_train_takes_what_is_too_large():
    with pytest.raises(ValueError, match="not a valid"):
        pack_train([Item(ItemType.IP, 0, bytes(70_000))], Direction.FORWARD)
