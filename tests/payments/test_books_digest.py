"""Digests packed by hand equal eth-account's; signatures; addresses."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from payments import digest
from payments.books import Book, Domain, SignedBook
from payments.hashing import keccak256
from payments.keys import CURVE_ORDER, PurseKey, checksum_address, parse_address, recover

addresses = st.binary(min_size=20, max_size=20)
words = st.binary(min_size=32, max_size=32)
domains = st.builds(Domain, st.integers(1, 2**63 - 37), addresses)
books = st.builds(
    Book,
    addresses,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**96 - 1),
    st.integers(0, 2**16 - 1),
    words,
)


def domain_data(domain: Domain) -> dict[str, object]:
    return {
        "name": digest.DOMAIN_NAME,
        "version": digest.DOMAIN_VERSION,
        "chainId": domain.chain_id,
        "verifyingContract": "0x" + domain.contract.hex(),
    }


def reference(domain: Domain, kind: str, text: str, values: dict[str, object]) -> bytes:
    fields = text[text.index("(") + 1 : -1].split(",")
    types = {kind: [{"type": f.split()[0], "name": f.split()[1]} for f in fields]}
    message = encode_typed_data(domain_data(domain), types, values)
    return keccak256(b"\x19" + message.version + message.header + message.body)


@settings(max_examples=60, deadline=None)
@given(domains, books)
def test_book_digest_equals_eth_account(domain: Domain, book: Book) -> None:
    values = {
        "payee": "0x" + book.payee.hex(),
        "number": book.number,
        "base": book.base_wei,
        "value": book.value_wei,
        "length": book.length,
        "tip": book.tip,
    }
    expected = reference(domain, "Book", digest.BOOK_TYPE, values)
    assert digest.book_digest(digest.domain_separator(domain), book) == expected


@settings(max_examples=30, deadline=None)
@given(domains, addresses, words, words)
def test_attach_and_payee_digests_equal_eth_account(
    domain: Domain, payee: bytes, node: bytes, challenge: bytes
) -> None:
    separator = digest.domain_separator(domain)
    values: dict[str, object] = {"payee": "0x" + payee.hex(), "node": node, "challenge": challenge}
    assert digest.attach_digest(separator, payee, node, challenge) == reference(
        domain, "Attach", digest.ATTACH_TYPE, values
    )
    assert digest.payee_digest(separator, node) == reference(
        domain, "Payee", digest.PAYEE_TYPE, {"node": node}
    )


@settings(max_examples=30, deadline=None)
@given(words.filter(lambda w: 0 < int.from_bytes(w, "big") < CURVE_ORDER), words)
def test_address_and_signature_equal_eth_account(secret: bytes, message: bytes) -> None:
    key = PurseKey(secret)
    account = Account.from_key(secret)
    assert checksum_address(key.address) == account.address
    assert parse_address(account.address) == key.address
    signature = key.sign(message)
    assert signature == bytes(account.unsafe_sign_hash(message).signature)
    assert recover(message, signature) == key.address


def test_a_high_s_signature_is_refused() -> None:
    key = PurseKey(b"\x07" * 32)
    signature = key.sign(b"\x01" * 32)
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))
    assert recover(b"\x01" * 32, twin) is None


@given(st.binary(min_size=0, max_size=70))
def test_recover_never_raises(signature: bytes) -> None:
    recover(b"\x01" * 32, signature)
    recover(b"\x01" * 32, signature.ljust(64, b"\xff")[:64] + b"\x1b")


def test_recover_refuses_the_point_at_infinity_and_zero() -> None:
    for r, s in ((0, 0), (0, 1), (1, 0), (CURVE_ORDER, 1), (5, 1)):
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b"
        found = recover(b"\x01" * 32, signature)
        assert found is None or len(found) == 20


def test_a_key_hides_itself() -> None:
    key = PurseKey(b"\x09" * 32)
    assert "09" * 4 not in repr(key)
    assert key == PurseKey(b"\x09" * 32) != PurseKey(b"\x08" * 32)
    with pytest.raises(TypeError):
        key.__reduce__()
    for bad in (bytes(32), b"\xff" * 32, b"\x01" * 31):
        with pytest.raises(ValueError, match="secret"):
            PurseKey(bad)


def test_a_mistyped_address_is_refused() -> None:
    good = checksum_address(b"\xab" * 20)
    assert parse_address(good.lower()) == b"\xab" * 20
    with pytest.raises(ValueError, match="checksum"):
        parse_address(good.swapcase().replace("0X", "0x"))
    for bad in ("", "0x", "0x12", "ab" * 20, "0x" + "zz" * 20):
        with pytest.raises(ValueError, match=r"address|fromhex"):
            parse_address(bad)


def test_values_out_of_range_are_our_misuse() -> None:
    with pytest.raises(ValueError, match="chain id"):
        Domain(0, bytes(20))
    with pytest.raises(ValueError, match="contract"):
        Domain(1, bytes(19))
    with pytest.raises(ValueError, match="number"):
        Book(bytes(20), 2**64, 0, 0, 0, bytes(32))
    with pytest.raises(ValueError, match="65"):
        SignedBook(Book(bytes(20), 1, 0, 0, 0, bytes(32)), bytes(64))
