# pragma version 0.4.3
"""
@title Hash chains: what a ticket is
@license MIT
@author hopfare
@notice One ability: the walk from a ticket's word back to the tip of its book, w_{i-1} = keccak256(w_i).
@dev Stateless and pure. The walk is bounded by `MAX_LENGTH`, which bounds the gas of a claim.
"""

MAX_LENGTH: constant(uint256) = 1024


@pure
@internal
def _walk(word: bytes32, steps: uint256) -> bytes32:
    """
    @notice Returns the word `steps` places before `word`.
    @param word A word of a chain.
    @param steps Hashes to make, at most MAX_LENGTH.
    @return The earlier word.
    """
    found: bytes32 = word
    for _: uint256 in range(steps, bound=MAX_LENGTH):
        found = keccak256(found)
    return found
