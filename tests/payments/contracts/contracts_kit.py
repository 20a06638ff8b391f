"""Loading the contracts into titanoboa, and making claims as the off-chain side does."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import boa
from boa.contracts.vyper.vyper_contract import VyperContract, VyperDeployer

from payments.books import Book, Domain
from payments.chains import build_chain
from payments.digest import book_digest, domain_separator
from payments.keys import PurseKey

SOURCES = Path(__file__).resolve().parents[3] / "payments" / "contracts"
NOTICE = 3600
ETHER = 10**18
ZERO = "0x" + "00" * 20


@functools.cache
def deployer(name: str) -> VyperDeployer:
    boa.interpret.set_search_paths([str(SOURCES)])
    return boa.load_partial(str(SOURCES / f"{name}.vy"))


def load(name: str, *arguments: object) -> VyperContract:
    return deployer(name).deploy(*arguments)


def account(number: int) -> PurseKey:
    """Return a key with 1,000 ether."""
    key = PurseKey(number.to_bytes(32, "big"))
    boa.env.set_balance(text(key.address), 1000 * ETHER)
    return key


def text(address: bytes) -> str:
    return boa.util.abi.Address("0x" + address.hex())


def domain_of(contract: VyperContract) -> Domain:
    return Domain(boa.env.evm.patch.chain_id, bytes.fromhex(str(contract.address)[2:]))


@functools.lru_cache(maxsize=4096)
def chain_of(seed: bytes, length: int) -> list[bytes]:
    return build_chain(seed, length)


def make_book(payee: bytes, **fields: object) -> tuple[Book, list[bytes]]:
    length = int(fields.pop("length", 10))  # type: ignore[call-overload]
    words = chain_of(bytes(fields.pop("seed", b"\x33" * 32)), length)  # type: ignore[call-overload]
    book = Book(payee, 1, 0, ETHER // 100, length, words[0])
    return replace(book, **fields), words  # type: ignore[arg-type]


def make_claim(
    domain: Domain, key: PurseKey, book: Book, index: int, word: bytes, payer: bytes | None = None
) -> tuple[object, ...]:
    signature = key.sign(book_digest(domain_separator(domain), book))
    fields = (text(book.payee), book.number, book.base_wei, book.value_wei, book.length, book.tip)
    return (
        text(key.address if payer is None else payer),
        fields,
        index,
        word,
        signature[64],
        signature[:32],
        signature[32:64],
    )
