import contextlib
import itertools
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.building.messages import (
    PRICE_LIMIT,
    REFUSAL_SENTENCES,
    ClientMessage,
    ExitAddresses,
    ExitHere,
    NextHop,
    Refusal,
    ServerMessage,
    decode_client_message,
    decode_server_message,
    encode_client_message,
    encode_server_message,
    price_chain,
    round_up_to_grid,
)
from circuits.building.records import CLIENT_MESSAGE_BYTES, DIGESTS_BYTES, SERVER_MESSAGE_BYTES
from circuits.errors import DecodeError

inner_ipv4 = st.integers(0x64400000, 0x647FFFFF).map(IPv4Address)
inner_ipv6 = st.integers(0, 2**80 - 1).map(lambda low: IPv6Address((0xFD686F706661 << 80) | low))
next_hops = st.builds(
    NextHop,
    st.binary(min_size=32, max_size=32),
    st.tuples(st.ip_addresses().map(str), st.integers(1, 65535)),
)
exits = st.builds(ExitHere, st.none() | inner_ipv4, st.none() | inner_ipv6, st.booleans())
prices = st.integers(0, PRICE_LIMIT - 1)
client_messages = st.builds(
    ClientMessage,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    prices,
    prices,
    next_hops | exits,
)
exit_addresses = st.builds(ExitAddresses, inner_ipv4, inner_ipv6, inner_ipv4, inner_ipv6) | st.builds(
    ExitAddresses, inner_ipv4, st.none(), inner_ipv4, st.none()
)
short_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=160)
server_messages = st.builds(
    ServerMessage,
    st.none() | st.sampled_from(Refusal),
    short_text,
    st.binary(min_size=DIGESTS_BYTES, max_size=DIGESTS_BYTES),
    st.none() | exit_addresses,
)


@settings(print_blob=True)
@given(client_messages)
def test_client_message_round_trip(message):
    data = encode_client_message(message)
    assert len(data) == CLIENT_MESSAGE_BYTES == 256
    assert decode_client_message(data) == message


@settings(print_blob=True)
@given(server_messages)
def test_server_message_round_trip(message):
    data = encode_server_message(message)
    assert len(data) == SERVER_MESSAGE_BYTES == 320
    assert decode_server_message(data) == message


@settings(print_blob=True)
@given(client_messages, st.integers(0, 255), st.integers(1, 255))
def test_changed_client_message_decodes_to_something_that_encodes_to_it_or_is_refused(message, at, change):
    data = bytearray(encode_client_message(message))
    data[at] ^= change
    try:
        decoded = decode_client_message(bytes(data))
    except DecodeError:
        return
    assert encode_client_message(decoded) == bytes(data)


@settings(print_blob=True)
@given(server_messages, st.integers(0, 319), st.integers(1, 255))
def test_changed_server_message_decodes_or_is_refused(message, at, change):
    data = bytearray(encode_server_message(message))
    data[at] ^= change
    try:
        decoded = decode_server_message(bytes(data))
    except DecodeError:
        return
    assert decoded.text.isprintable()


@settings(print_blob=True)
@given(
    st.binary(max_size=400) | st.binary(min_size=256, max_size=256) | st.binary(min_size=320, max_size=320)
)
def test_garbage_only_raises_decode_error(data):
    for decode in (decode_client_message, decode_server_message):
        with contextlib.suppress(DecodeError):
            decode(data)


def test_text_is_cut_at_a_character_and_cleaned():
    def through(text):
        message = ServerMessage(Refusal.BUSY, text, bytes(48), None)
        return decode_server_message(encode_server_message(message)).text

    assert through("é" * 100) == "é" * 80
    assert through("a\x1b[31mred\n\u202e") == "a?[31mred??"


def test_addresses_outside_the_inner_ranges_are_refused():
    good = (IPv4Address("100.64.0.9"), IPv6Address("fd68:6f70:6661::9"))
    dns = (IPv4Address("100.64.0.1"), IPv6Address("fd68:6f70:6661::1"))
    for bad in (
        ExitAddresses(IPv4Address("8.8.8.8"), good[1], *dns),
        ExitAddresses(good[0], IPv6Address("2001:4860::1"), *dns),
        ExitAddresses(*good, IPv4Address("192.168.1.1"), dns[1]),
        ExitAddresses(*good, dns[0], IPv6Address("::1")),
    ):
        with pytest.raises(DecodeError):
            decode_server_message(encode_server_message(ServerMessage(None, "", bytes(48), bad)))


def test_our_own_values_out_of_range_raise():
    good = ClientMessage(1, 1, 1, 0, 0, NextHop(bytes(32), ("10.0.0.1", 1)))
    bad = [
        ClientMessage(256, 1, 1, 0, 0, good.what),
        ClientMessage(1, 1, 0, 0, 0, good.what),
        ClientMessage(1, 1, 1, PRICE_LIMIT, 0, good.what),
        ClientMessage(1, 1, 1, 0, -1, good.what),
        ClientMessage(1, 1, 1, 0, 0, NextHop(bytes(31), ("10.0.0.1", 1))),
        ClientMessage(1, 1, 1, 0, 0, NextHop(bytes(32), ("10.0.0.1", 0))),
        ClientMessage(1, 1, 1, 0, 0, NextHop(bytes(32), ("relay.example", 1))),
    ]
    encode_client_message(good)
    for message in bad:
        with pytest.raises(ValueError):
            encode_client_message(message)


def test_every_refusal_has_a_sentence():
    assert set(REFUSAL_SENTENCES) == set(Refusal)


@settings(print_blob=True)
@given(st.integers(0, 2**97), st.integers(0, 2**97))
def test_grid(wei, other):
    rounded = round_up_to_grid(wei)
    assert wei <= rounded <= wei + wei // 8
    assert round_up_to_grid(rounded) == rounded
    if wei <= other:
        assert rounded <= round_up_to_grid(other)


def test_grid_is_coarse():
    assert [round_up_to_grid(n) for n in (0, 1, 15, 16, 17, 18, 19, 1000, 1025)] == [
        0, 1, 15, 16, 18, 18, 20, 1024, 1152,
    ]  # fmt: skip
    assert len({round_up_to_grid(n) for n in range(1 << 16, 1 << 17)}) == 9
    with pytest.raises(ValueError):
        round_up_to_grid(-1)


@settings(print_blob=True)
@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_every_relay_is_left_what_it_asks(asked):
    chain = price_chain(asked)
    assert chain[-1][1] == 0
    for price, (price_in, price_out) in zip(asked, chain, strict=True):
        assert price_in - price_out >= price
    for (_, out), (following, _) in itertools.pairwise(chain):
        assert out == following == round_up_to_grid(following)


def test_negative_price_raises():
    with pytest.raises(ValueError):
        price_chain([1, -1])
