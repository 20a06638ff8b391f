"""The control codec: round trips, limits, and bytes of a hostile peer."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay import messages
from overlay.errors import DecodeError
from overlay.messages import (
    MAX_MESSAGE_BYTES,
    Build,
    Built,
    Destroy,
    Goodbye,
    Hello,
    Identify,
    Ping,
    Pong,
    Welcome,
    decode_control,
    encode_control,
    is_link_message,
)
from payments import formats

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
padding = st.binary(max_size=4096)
link_messages = st.one_of(
    st.builds(Hello, st.booleans(), padding),
    st.builds(Welcome, st.binary(min_size=32, max_size=32), padding),
    st.builds(Identify, st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64)),
    st.builds(Ping, u32, padding),
    st.builds(Pong, u32, padding),
)
engine_messages = st.one_of(
    st.builds(Build, u32, st.binary(max_size=15 * 1024)),
    st.builds(Built, u32, st.binary(max_size=15 * 1024)),
    st.builds(Destroy, u32, u16),
    st.builds(Goodbye, u16, st.text(max_size=200)),
)


@given(link_messages)
def test_link_messages_round_trip(message):
    raw = encode_control(message)
    assert decode_control(raw) == message
    assert is_link_message(raw)


@given(engine_messages)
def test_engine_messages_round_trip(message):
    raw = encode_control(message)
    assert len(raw) <= MAX_MESSAGE_BYTES
    assert decode_control(raw) == message
    assert not is_link_message(raw)


@pytest.mark.parametrize(
    "message",
    [
        Build(-1, b""),
        Build(1 << 32, b""),
        Build(1, bytes(15 * 1024 + 1)),
        Destroy(1, 1 << 16),
        Goodbye(0, "x" * 201),
        Welcome(bytes(31), b""),
        Identify(bytes(32), bytes(63)),
        Ping(0, bytes(4097)),
    ],
)
def test_what_breaks_a_limit_cannot_be_sent(message):
    with pytest.raises(ValueError, match="cannot be sent"):
        encode_control(message)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x91\x01",
        b"\x92\x63\x01",  # unknown tag
        b"\x93\x12\x01",  # cut off
        b"\x94\x12\x01\x02\x03",  # a field too many
        b"\x93\x12\x01\x02\x00",  # bytes after the end
        b"\x93\x12\xa1x\x02",  # text for a number
        b"\x93\x12\x01\xff",  # negative
        b"\x93\x12\x01\xcb" + bytes(8),  # a float
        b"\x83\x00\x12\x01\x01\x02\x02",  # a map
        b"\xdd\xff\xff\xff\xff\x01",
        b"\x91" * 10000,
        bytes(MAX_MESSAGE_BYTES + 1),
    ],
)
def test_other_bytes_are_refused(raw):
    with pytest.raises(DecodeError):
        decode_control(raw)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_decode_error(raw):
    try:
        message = decode_control(raw)
    except DecodeError:
        return
    assert decode_control(encode_control(message)) == message


@given(st.one_of(link_messages, engine_messages), st.data())
def test_damaged_messages_give_a_message_or_a_decode_error(message, data):
    raw = bytearray(encode_control(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    try:
        decode_control(bytes(raw[:end]))
    except DecodeError as error:
        assert str(error)


def test_tags_are_those_of_the_specification():
    tags = {
        info.__struct_config__.tag: info.__name__
        for info in vars(messages).values()
        if isinstance(info, type) and issubclass(info, msgspec.Struct) and info is not msgspec.Struct
    }
    assert tags == {
        1: "Hello",
        2: "Welcome",
        3: "Identify",
        4: "Ping",
        5: "Pong",
        16: "Build",
        17: "Built",
        18: "Destroy",
        20: "Goodbye",
        24: "Payment",
    }
    assert encode_control(Destroy(7, 2)) == b"\x93\x12\x07\x02"


def test_a_payment_holds_just_what_the_payments_own_format_allows():
    assert messages.MAX_PAYMENT_BYTES == formats.MAX_MESSAGE_BYTES
    for size in (1, formats.MAX_MESSAGE_BYTES):
        assert decode_control(encode_control(messages.Payment(bytes(size)))) == messages.Payment(bytes(size))
    for size in (0, formats.MAX_MESSAGE_BYTES + 1):
        with pytest.raises(ValueError, match="Payment cannot be sent"):
            encode_control(messages.Payment(bytes(size)))


@given(st.binary(min_size=1, max_size=40))
def test_a_message_that_the_link_leaves_to_others_is_never_its_own(raw):
    if is_link_message(raw):
        return
    try:
        message = decode_control(raw)
    except DecodeError:
        return
    assert not isinstance(message, Hello | Welcome | Identify | Ping | Pong)
