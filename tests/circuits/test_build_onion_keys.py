import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.building.onion_keys import ROTATION_S, OnionKeys, decode_onion_keys
from circuits.errors import DecodeError

START_S = 1_800_000_000


def rng(seed=1):
    return random.Random(seed).randbytes


def test_rotates_daily_and_keeps_the_one_before_for_a_day():
    keys = OnionKeys.generate(START_S, rng())
    assert keys.rotated(START_S + ROTATION_S - 1, rng(2)) is keys
    second = keys.rotated(START_S + ROTATION_S, rng(2))
    assert second.previous == keys.current
    assert second.current.public != keys.current.public
    assert second.readable() == (second.current, keys.current)
    third = second.rotated(START_S + 2 * ROTATION_S, rng(3))
    assert third.readable() == (third.current, second.current)


def test_node_that_was_off_for_long_reads_nothing_old():
    keys = OnionKeys.generate(START_S, rng())
    later = keys.rotated(START_S + 2 * ROTATION_S, rng(2))
    assert later.previous is None
    assert later.current.public != keys.current.public


def test_clock_set_back_a_little_keeps_the_key_and_far_replaces_it():
    keys = OnionKeys.generate(START_S, rng())
    assert keys.rotated(START_S - 3600, rng(2)) is keys
    replaced = keys.rotated(START_S - 10 * ROTATION_S, rng(2))
    assert replaced.previous is None
    assert replaced.current.created_s == START_S - 10 * ROTATION_S


def test_disk_round_trip():
    keys = OnionKeys.generate(START_S, rng()).rotated(START_S + ROTATION_S, rng(2))
    again = decode_onion_keys(keys.encode())
    assert [k.public for k in again.readable()] == [k.public for k in keys.readable()]
    assert [k.created_s for k in again.readable()] == [k.created_s for k in keys.readable()]
    assert again.encode() == keys.encode()


def test_secret_does_not_show():
    keys = OnionKeys.generate(START_S, rng())
    secret = keys.current.private.private_bytes_raw()
    assert repr(secret) not in repr(keys)
    assert secret.hex() not in repr(keys)


@settings(print_blob=True)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data):
    with pytest.raises(DecodeError):
        decode_onion_keys(data)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"current": {"secret": "AAAA", "created_s": 1}},
        {"current": {"secret": "A" * 43 + "=", "created_s": -1}},
        {"current": None},
        {"more": 1},
    ],
)
def test_wrong_fields_are_refused(change):
    stored = json.loads(OnionKeys.generate(START_S, rng()).encode())
    with pytest.raises(DecodeError):
        decode_onion_keys(json.dumps(stored | change).encode())
