"""Which relays failed lately and may be tried again when. In memory only, on a steady clock.

Shared by path choice (skips them), guards and the pool (report successes and failures).
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 5.0
LONGEST_S = 900.0
MAX_NODES = 1024  # the one that may be tried again first makes room


@dataclass(slots=True)
class _Entry:
    failures: int
    retry_at: float
    since: float


class BackOff:
    """Relays that failed: each further failure in a row doubles the wait, a success forgets it."""

    __slots__ = ("_entries", "_first_s", "_longest_s", "_rests")

    def __init__(self, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        """Wait `first_s` after a first failure, at most `longest_s` after many."""
        self._entries: dict[bytes, _Entry] = {}
        self._first_s = first_s
        self._longest_s = longest_s
        self._rests: dict[bytes, float] = {}

    def note_failure(self, node_id: bytes, now: float) -> None:
        """Count a failure, unless the relay is being waited for already: several circuits die of one
        cause.
        """
        entry = self._entries.get(node_id)
        if entry is None:
            if len(self._entries) >= MAX_NODES:
                del self._entries[min(self._entries, key=lambda key: self._entries[key].retry_at)]
            self._entries[node_id] = _Entry(1, now + self._first_s, now)
        elif entry.retry_at <= now:
            entry.failures += 1
            entry.retry_at = now + min(self._longest_s, self._first_s * 2 ** min(entry.failures - 1, 30))

    def note_success(self, node_id: bytes) -> None:
        """Forget the relay's failures."""
        self._entries.pop(node_id, None)

    def rest(self, node_id: bytes, until: float) -> None:
        """Have the relay used only where there is no other until then, whatever succeeds meanwhile."""
        if len(self._rests) >= MAX_NODES:
            del self._rests[min(self._rests, key=lambda key: self._rests[key])]
        self._rests[node_id] = until

    def end_rest(self, node_id: bytes) -> None:
        """Have the relay used as before. Harmless if it does not rest."""
        self._rests.pop(node_id, None)

    def is_resting(self, node_id: bytes, now: float) -> bool:
        """Tell whether others come before the relay now."""
        return self._rests.get(node_id, now) > now

    def is_waiting(self, node_id: bytes, now: float) -> bool:
        """Tell whether the relay should not be tried now."""
        entry = self._entries.get(node_id)
        return entry is not None and entry.retry_at > now

    def failures(self, node_id: bytes) -> int:
        """Return how many failures in a row were counted."""
        entry = self._entries.get(node_id)
        return 0 if entry is None else entry.failures

    def failing_since(self, node_id: bytes) -> float | None:
        """Return when the first failure of the present row was, or None."""
        entry = self._entries.get(node_id)
        return None if entry is None else entry.since

    def retry_at(self, node_id: bytes) -> float | None:
        """Return when the relay may be tried again, or None if nothing speaks against now."""
        entry = self._entries.get(node_id)
        return None if entry is None else entry.retry_at
