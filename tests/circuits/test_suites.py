import onion_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.suites import (
    AEAD_NONCE_SHIFT,
    SUITE_AES,
    SUITE_CHACHA,
    SUITES,
    choose_suite,
    get_suite,
    preferred_suite,
)

KEY = bytes(range(32))


@pytest.mark.parametrize("number", SUITES)
@given(counter=st.integers(0, (1 << 56) - 1), length=st.integers(1, 300))
def test_streams_are_those_of_the_reference(number, counter, length):
    suite = get_suite(number)
    stream = suite.new_stream(KEY)
    for _ in range(2):  # a reset leaves nothing of the use before
        stream.reset_nonce((counter << suite.stream_shift).to_bytes(16, "little"))
        assert stream.update(bytes(length)) == reference.keystream(number, KEY, counter, length)


@pytest.mark.parametrize("number", SUITES)
@given(counter=st.integers(0, (1 << 56) - 1), plain=st.binary(max_size=100), extra=st.binary(max_size=100))
def test_bodies_are_those_of_the_reference(number, counter, plain, extra):
    sealed = (
        get_suite(number)
        .new_aead(KEY)
        .encrypt((counter << AEAD_NONCE_SHIFT).to_bytes(12, "little"), plain, extra)
    )
    assert (sealed[:-16], sealed[-16:]) == reference.seal(number, KEY, counter, extra, plain)


def test_unknown_suites_are_our_mistake():
    for number in (0, 3, -1):
        with pytest.raises(ValueError, match="cipher suite"):
            get_suite(number)


@pytest.mark.parametrize(
    ("flags", "suite"),
    [
        ("fpu aes pclmulqdq avx2", SUITE_AES),
        ("fp asimd aes pmull sha1", SUITE_AES),
        ("fpu aes avx", SUITE_CHACHA),
        ("fpu pclmulqdq", SUITE_CHACHA),
        ("", SUITE_CHACHA),
    ],
)
def test_the_processor_decides(flags, suite):
    assert preferred_suite(flags.split()) == suite


def test_every_hop_has_a_say():
    assert choose_suite(SUITE_AES, [{1, 2}, {1, 2}]) == SUITE_AES
    assert choose_suite(SUITE_AES, [{1, 2}, {1}]) == SUITE_CHACHA
    assert choose_suite(SUITE_CHACHA, [{2}, {1, 2}]) == SUITE_AES
    assert choose_suite(SUITE_AES, [{1}, {2}]) is None
    assert choose_suite(SUITE_AES, [{7, 9}]) is None
    assert choose_suite(9, [{9}]) is None
    assert choose_suite(SUITE_AES, []) == SUITE_AES
