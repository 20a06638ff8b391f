# pragma version 0.4.3
"""
@title Books: what a payer signs
@license MIT
@author hopfare
@notice One ability: the EIP-712 digest of a book under the domain of the contract that uses this module.
@dev Stateless. The chain id is read at call time, so a signature is worth nothing on a fork with another id.
"""

struct Book:
    payee: address
    number: uint64
    base: uint128
    value: uint96
    length: uint16
    tip: bytes32


NAME: constant(String[14]) = "hopfare purses"
VERSION: constant(String[1]) = "1"
DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
BOOK_TYPE_HASH: constant(bytes32) = keccak256(
    "Book(address payee,uint64 number,uint128 base,uint96 value,uint16 length,bytes32 tip)"
)


@view
@internal
def _domain_separator() -> bytes32:
    """
    @notice Returns the EIP-712 domain separator of this contract on this chain, now.
    @return The 32-byte separator.
    """
    return keccak256(
        abi_encode(
            DOMAIN_TYPE_HASH, keccak256(NAME), keccak256(VERSION), chain.id, self
        )
    )


@view
@internal
def _digest(separator: bytes32, book: Book) -> bytes32:
    """
    @notice Returns what the payer signs.
    @param separator The result of `_domain_separator`, taken once for a whole batch.
    @param book The book.
    @return The 32-byte EIP-712 digest.
    """
    content: bytes32 = keccak256(
        abi_encode(
            BOOK_TYPE_HASH,
            book.payee,
            book.number,
            book.base,
            book.value,
            book.length,
            book.tip,
        )
    )
    return keccak256(concat(0x1901, separator, content))
