"""Hash chains: direction, walking, and a known answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payments.chains import build_chain, walk
from payments.hashing import keccak256


def test_known_answers() -> None:
    # keccak-256 of nothing and of 32 zero bytes: the yellow paper's empty-code hash, and Solidity's
    # keccak256(abi.encode(0)).
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(bytes(32)).hex() == "290decd9548b62a8d60345a988386fc84ba6bc95484008f6362f93160ef3e563"
    assert build_chain(bytes(32), 1) == [keccak256(bytes(32)), bytes(32)]


@given(st.binary(min_size=32, max_size=32), st.integers(0, 40), st.data())
def test_every_word_leads_to_every_earlier_one(seed: bytes, length: int, data: st.DataObject) -> None:
    words = build_chain(seed, length)
    assert len(words) == length + 1
    assert words[-1] == seed
    later = data.draw(st.integers(0, length))
    earlier = data.draw(st.integers(0, later))
    assert walk(words[later], later - earlier) == words[earlier]
