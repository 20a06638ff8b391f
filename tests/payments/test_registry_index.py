import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.abi import Listing
from payments.errors import DecodeError
from payments.registry_index import MAX_CHECKPOINTS, Checkpoint, RegistryIndex, agree, decode_index

REGISTRY = b"R" * 20


def listing(number, *, stake=10**18, port=4433):
    payee = bytes([number]) * 20
    return Listing(
        payee, bytes([number]) * 32, bytes([number]) * 64, bytes(15) + bytes([number]), port, stake
    )


def block(number):
    return number.to_bytes(32, "big")


def filled():
    index = RegistryIndex(7, REGISTRY)
    assert index.apply(10, block(10), {one.payee: one for one in map(listing, (1, 2, 3))})
    assert index.apply(20, block(20), {listing(2).payee: None, listing(4).payee: listing(4)})
    return index


def test_changes_add_up_and_say_whether_there_were_any():
    index = filled()
    assert {payee[0] for payee in index.listings} == {1, 3, 4}
    assert not index.apply(30, block(30), {listing(1).payee: listing(1), listing(9).payee: None})
    assert index.apply(31, block(31), {listing(1).payee: listing(1, stake=5)})
    assert index.tip == Checkpoint(31, block(31), (listing(1).payee,))


def test_going_back_names_what_is_in_doubt():
    index = filled()
    assert index.rewind(index.checkpoints[0]) == {listing(2).payee, listing(4).payee}
    assert index.tip.number == 10
    assert index.rewind(None) == {listing(number).payee for number in (1, 2, 3)}
    assert index.tip is None


def test_old_checkpoints_are_merged_and_lose_nobody():
    index = RegistryIndex(7, REGISTRY)
    for number in range(200):
        payee = number.to_bytes(20, "big")
        index.apply(number, block(number), {payee: None})
    assert len(index.checkpoints) == MAX_CHECKPOINTS
    assert len(index.rewind(None)) == 200


def test_the_disk_keeps_it_all():
    index = filled()
    index.apply(40, block(40), {listing(5).payee: listing(5, stake=2**200)})
    again = decode_index(index.encode(), 7, REGISTRY)
    assert again.listings == index.listings
    assert again.checkpoints == index.checkpoints
    for other in ((8, REGISTRY), (7, b"S" * 20)):
        with pytest.raises(DecodeError, match="another registry"):
            decode_index(index.encode(), *other)


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_a_damaged_file_is_refused_without_harm(data, seed):
    with pytest.raises(DecodeError):
        decode_index(data, 7, REGISTRY)
    damaged = bytearray(filled().encode())
    damaged[random.Random(seed).randrange(len(damaged))] ^= 1 + seed % 255
    with contextlib.suppress(DecodeError):
        decode_index(bytes(damaged), 7, REGISTRY)


def test_one_liar_of_two_endpoints_neither_adds_nor_removes():
    known = {listing(1).payee: listing(1)}
    honest = {listing(1).payee: listing(1), listing(2).payee: listing(2, stake=10)}
    adds = {**honest, listing(6).payee: listing(6), listing(2).payee: listing(2, stake=10**30)}
    merged, disputed = agree([honest, adds], known)
    assert merged == {
        listing(1).payee: listing(1),
        listing(2).payee: listing(2, stake=10),
        listing(6).payee: None,
    }
    assert disputed == 1
    hides = {listing(2).payee: listing(2, stake=10)}
    merged, disputed = agree([honest, hides], known)
    assert merged[listing(1).payee] == listing(1)
    assert disputed == 1
    moves = {**honest, listing(1).payee: listing(1, port=9)}
    assert agree([moves, honest], known)[0][listing(1).payee] == listing(1)
    assert agree([{listing(1).payee: None}, {listing(1).payee: None}], known) == ({listing(1).payee: None}, 0)
    assert agree([honest], known)[1] == 0
