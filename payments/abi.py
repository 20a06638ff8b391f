"""Calls of the two contracts as bytes, and their answers back. eth-abi is imported on first use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from payments.books import Claim
from payments.errors import DecodeError
from payments.hashing import keccak256
from payments.keys import checksum_address

CLAIM_TYPE = "(address,(address,uint64,uint128,uint96,uint16,bytes32),uint16,bytes32,uint8,bytes32,bytes32)"
ENTRY_TYPE = "(bytes32,bytes32,bytes32,uint128,uint16)"
MAX_PAGE = 100


@dataclass(frozen=True, slots=True)
class OnChainPurse:
    """A purse as the contract keeps it; `unlock_at_s` is 0 while it is locked."""

    deposited_wei: int
    claimed_wei: int
    unlock_at_s: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A relay in the registry. Its endorsement (64 bytes) is not checked here: see registry entries."""

    payee: bytes
    identity: bytes
    endorsement: bytes
    ip: bytes
    """16 bytes: IPv6, or IPv4 in its mapped form."""
    port: int
    stake_wei: int


def selector(signature: str) -> bytes:
    """Return the 4-byte selector of a function such as "claim(uint256)"."""
    return keccak256(signature.encode())[:4]


_PURSE_SELECTOR = selector("purse(address,address)")


def encode_call(signature: str, *arguments: Any) -> bytes:
    """Return the call data of a function; its argument types are taken from `signature`.

    Addresses are 20 bytes. Raises ValueError (eth-abi's) if an argument does not fit its type: our misuse.
    """
    from eth_abi.abi import encode

    return selector(signature) + encode(_split(signature[signature.index("(") + 1 : -1]), arguments)


def encode_purse(payer: bytes, payee: bytes) -> bytes:
    """Return the call that reads a purse, by hand: many are read at a time. Addresses have 20 bytes."""
    if len(payer) != 20 or len(payee) != 20:
        raise ValueError("an address has 20 bytes")
    return _PURSE_SELECTOR + bytes(12) + payer + bytes(12) + payee


def encode_constructor(types: list[str], *arguments: Any) -> bytes:
    """Return what follows the bytecode in a deployment."""
    from eth_abi.abi import encode

    return bytes(encode(types, arguments))


def claim_arguments(claim: Claim) -> tuple[Any, ...]:
    """Return a claim as the contract's struct."""
    book, signature = claim.signed.book, claim.signed.signature
    return (
        checksum_address(claim.payer),
        (
            checksum_address(book.payee),
            book.number,
            book.base_wei,
            book.value_wei,
            book.length,
            book.tip,
        ),
        claim.ticket.index,
        claim.ticket.word,
        signature[64],
        signature[:32],
        signature[32:64],
    )


def encode_claims(claims: list[Claim] | tuple[Claim, ...]) -> bytes:
    """Return the call that claims: `claim` for one, `claim_many` for more (at most 64)."""
    if len(claims) == 1:
        return encode_call(f"claim({CLAIM_TYPE})", claim_arguments(claims[0]))
    return encode_call(f"claim_many({CLAIM_TYPE}[])", [claim_arguments(c) for c in claims])


def decode_purse(data: bytes) -> OnChainPurse:
    """Return the answer of `purse`. Raises DecodeError if it is not three words in their ranges."""
    if len(data) != 96:
        raise DecodeError(f"a purse has 96 bytes, not {len(data)}")
    deposited, claimed, unlock_at = (int.from_bytes(data[i : i + 32], "big") for i in (0, 32, 64))
    if deposited >= 1 << 104 or claimed > deposited or unlock_at >= 1 << 48:
        raise DecodeError("a purse's numbers are out of range")
    return OnChainPurse(deposited, claimed, unlock_at)


def decode_word(data: bytes) -> int:
    """Return the number in one 32-byte word. Raises DecodeError if it is not one word."""
    if len(data) != 32:
        raise DecodeError(f"one word has 32 bytes, not {len(data)}")
    return int.from_bytes(data, "big")


def decode_page(data: bytes) -> list[Listing]:
    """Return the answer of the registry's `page`. Raises DecodeError if it has another form."""
    from eth_abi.abi import decode

    if len(data) > 64 + MAX_PAGE * 7 * 32:
        raise DecodeError("a page of the registry is too long")
    try:
        (rows,) = decode([f"(address,{ENTRY_TYPE},uint256)[]"], data)
        return [
            Listing(
                bytes.fromhex(payee[2:]), identity, first + second, ip.to_bytes(16, "big"), port, int(stake)
            )
            for payee, (identity, first, second, ip, port), stake in rows
        ]
    except Exception as error:
        raise DecodeError(f"not a page of the registry: {error}") from None


def decode_revert(data: bytes) -> str:
    """Return the text of a revert such as "purses: nothing due"; a plain sentence if it has none."""
    if data[:4] == b"\x08\xc3\x79\xa0" and len(data) >= 68:
        length = int.from_bytes(data[36:68], "big")
        if length <= 256 and 68 + length <= len(data):
            return data[68 : 68 + length].decode("ascii", "replace")
    return "reverted without a reason"


def _split(types: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(types):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(types[start:place])
            start = place + 1
    if types[start:]:
        parts.append(types[start:])
    return parts
