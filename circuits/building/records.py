"""Sizes of BUILD and BUILT, the stream layers over them, and the digests of an answer.

Specification: docs/protocol/build.md, section "Records". A message is RECORDS records of RECORD_BYTES each,
on every link and in both directions, whatever the path's length.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from circuits.handshake import ANSWER_OVERHEAD_BYTES, FIRST_OVERHEAD_BYTES

RECORDS = 4  # N_MAX: most relays in a path
RECORD_BYTES = 1488  # 1232 + 256 for the first message, 1168 + 320 for the answer
MESSAGE_BYTES = RECORDS * RECORD_BYTES  # 5952: BUILD and BUILT
CLIENT_MESSAGE_BYTES = RECORD_BYTES - FIRST_OVERHEAD_BYTES  # 256
SERVER_MESSAGE_BYTES = RECORD_BYTES - ANSWER_OVERHEAD_BYTES  # 320
DIGEST_BYTES = 16
DIGESTS_BYTES = (RECORDS - 1) * DIGEST_BYTES  # 48

_NONCE_0 = bytes(16)  # block counter 0 and nonce 0: every key makes exactly one stream


def apply_stream(key: bytes, text: bytes) -> bytes:
    """XOR `text` (at most MESSAGE_BYTES) with the ChaCha20 stream of a 32-byte key, from block 0. Its own
    inverse.
    """
    return Cipher(ChaCha20(key, _NONCE_0), mode=None).encryptor().update(text)


def digests(others: bytes) -> bytes:
    """Return the 48 bytes of digests of the three records behind an answer: of the first, the first two, all
    three.

    Each is SHA-256 cut to 16 bytes. The client checks the one over as many records as reach it from that hop.
    """
    running = hashlib.sha256()
    result = b""
    for index in range(RECORDS - 1):
        running.update(others[index * RECORD_BYTES : (index + 1) * RECORD_BYTES])
        result += running.copy().digest()[:DIGEST_BYTES]
    return result


def digest_matches(own_digests: bytes, others: bytes, count: int) -> bool:
    """Tell whether the digest over the first `count` (0 to 3) records agrees with those that arrived."""
    if count == 0:
        return True
    expected = own_digests[(count - 1) * DIGEST_BYTES : count * DIGEST_BYTES]
    return hashlib.sha256(others[: count * RECORD_BYTES]).digest()[:DIGEST_BYTES] == expected
