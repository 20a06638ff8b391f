"""Answers kept in wire form. Owns their ages and the cache's bounds. Pure: the caller gives `now` in seconds.

A reply is the kept bytes with the customer's id and spelling of the name and with TTLs less their age: some
microseconds, where making it anew would take hundreds. Full, the cache drops what was used longest ago.
"""

from __future__ import annotations

import struct

import msgspec

from exit.dns.query import ExtendedError, Query, encode_reply

MAX_ENTRIES = 20_000
MAX_BYTES = 16 << 20
#: What an entry costs beside its bytes, roughly: objects, key, places.
_ENTRY_OVERHEAD_BYTES = 500
_PLACE_BYTES = 120
_pack_u32 = struct.Struct(">I").pack_into


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer: `body` holds (answer, authority) `counts` records; `places` are its TTLs, (offset, s)."""

    rcode: int
    body: bytes
    counts: tuple[int, int]
    places: tuple[tuple[int, int], ...]
    stored_s: float
    ttl_s: int
    error: ExtendedError | None

    def is_fresh(self, now: float) -> bool:
        """Tell whether the answer still holds; a clock that jumped back ends it."""
        return 0 <= now - self.stored_s < self.ttl_s

    def reply(self, query: Query, now: float, limit_bytes: int) -> bytes:
        """Return this answer as the reply to `query`, of at most `limit_bytes`, TTLs as they are `now`."""
        age = int(now - self.stored_s)
        body: bytes | bytearray = self.body
        if age > 0 and self.places:
            body = bytearray(body)
            for at, ttl_s in self.places:
                _pack_u32(body, at, max(0, ttl_s - age))
        return encode_reply(query, self.rcode, body, self.counts, limit_bytes=limit_bytes, error=self.error)

    @property
    def cost_bytes(self) -> int:
        """Return about how much memory the entry takes."""
        return _ENTRY_OVERHEAD_BYTES + len(self.body) + _PLACE_BYTES * len(self.places)


Key = tuple[bytes, int, int]


class Cache:
    """Entries by `Query.key`. At most `max_entries` and about `max_bytes`."""

    __slots__ = ("_bytes", "_entries", "_max_bytes", "_max_entries", "hits", "misses")

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        """Start empty; a size of 0 keeps nothing."""
        self._entries: dict[Key, Entry] = {}
        self._bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """Return the number of entries, fresh or not."""
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Return about how much memory the entries take."""
        return self._bytes

    def get(self, key: Key, now: float) -> Entry | None:
        """Return the fresh answer for the key, or None."""
        entry = self._entries.pop(key, None)
        if entry is None:
            self.misses += 1
            return None
        if not entry.is_fresh(now):
            self._bytes -= entry.cost_bytes + len(key[0])
            self.misses += 1
            return None
        self._entries[key] = entry
        self.hits += 1
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an answer, unless it may not be kept (TTL 0) or is larger than the whole cache."""
        self._forget(key)
        cost = entry.cost_bytes + len(key[0])
        if entry.ttl_s <= 0 or cost > self._max_bytes:
            return
        self._entries[key] = entry
        self._bytes += cost
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.cost_bytes + len(key[0])
