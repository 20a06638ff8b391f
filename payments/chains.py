"""Hash chains (PayWord): w_{i-1} = keccak256(w_i).

Words are made from the far end: the seed is w_length, the tip w_0. Whoever knows w_i can check it against any
earlier word and cannot find a later one.
"""

from __future__ import annotations

from payments.hashing import new_hash


def build_chain(seed: bytes, length: int) -> list[bytes]:
    """Return the length + 1 words w_0 .. w_length of the chain that ends in `seed` (32 bytes each)."""
    new = new_hash
    word = seed
    words = [word]
    add = words.append
    for _ in range(length):
        word = new(word).digest()
        add(word)
    words.reverse()
    return words


def walk(word: bytes, steps: int) -> bytes:
    """Return the word `steps` places before `word` (towards the tip), at one hash a step."""
    new = new_hash
    for _ in range(steps):
        word = new(word).digest()
    return word
