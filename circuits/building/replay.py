"""Memory of the first messages a relay has opened, so that none is answered twice.

A build names its hour (docs/protocol/build.md, section "Replay"), and a relay opens only those of its own
hour, the one before and the one after. So a message need be remembered for three hours, not for an onion
key's whole life, and a flood of builds can fill the memory for that long only. Held in memory alone: after a
restart each build of the last hours could be replayed once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from circuits.handshake import Rng

HOURS_EITHER_SIDE = 1
MAX_BUCKETS = 4  # hours remembered at once; one more than the window, for a clock that is set back
CAPACITY = 1 << 20  # entries in all: 8 MiB, 97 builds a second for three hours
_ENTRY_BYTES = 8  # 2**-44 of all new builds collide with one of 2**20 and are refused wrongly
_SHARDS = 1024  # at the capacity a shard has about 8 KB, searched in about a microsecond


@dataclass(slots=True)
class _Bucket:
    shards: dict[int, bytearray] = field(default_factory=dict)
    entries: int = 0


class ReplayMemory:
    """Set of X25519 keys seen, by hour, of bounded size."""

    __slots__ = ("_buckets", "_capacity", "_key")

    def __init__(self, rng: Rng, capacity: int = CAPACITY) -> None:
        """Draw 16 bytes for the key of the entries' hash, so that nobody can aim at one shard."""
        self._key = rng(16)
        self._capacity = capacity
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return sum(bucket.entries for bucket in self._buckets.values())

    def contains(self, x: bytes) -> bool:
        """Tell whether a first message with the X25519 key `x` (32 bytes) was remembered."""
        shard, entry = self._locate(x)
        return any(_find(bucket.shards.get(shard), entry) for bucket in self._buckets.values())

    def remember(self, x: bytes, hour: int, now_hour: int) -> bool:
        """Remember `x` for a message of `hour`; False, and nothing kept, if the memory is full."""
        if len(self) >= self._capacity:
            self._drop_hours_before(now_hour - HOURS_EITHER_SIDE)
            if len(self) >= self._capacity:
                return False
        bucket = self._buckets.get(hour)
        if bucket is None:
            while len(self._buckets) >= MAX_BUCKETS:
                del self._buckets[max(self._buckets, key=lambda h: abs(h - now_hour))]
            bucket = self._buckets[hour] = _Bucket()
        shard, entry = self._locate(x)
        bucket.shards.setdefault(shard, bytearray()).extend(entry)
        bucket.entries += 1
        return True

    def _drop_hours_before(self, hour: int) -> None:
        for old in [h for h in self._buckets if h < hour]:
            del self._buckets[old]

    def _locate(self, x: bytes) -> tuple[int, bytes]:
        digest = hashlib.blake2b(x, digest_size=_ENTRY_BYTES + 2, key=self._key).digest()
        return int.from_bytes(digest[:2], "big") % _SHARDS, digest[2:]


def _find(shard: bytearray | None, entry: bytes) -> bool:
    """Search a shard for an entry at a multiple of its size."""
    if shard is None:
        return False
    position = shard.find(entry)
    while position >= 0 and position % _ENTRY_BYTES:
        position = shard.find(entry, position + 1)
    return position >= 0
