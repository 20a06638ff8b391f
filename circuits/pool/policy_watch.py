"""Exits that refuse what their descriptors list.

One refusal means little: an exit may refuse single addresses, and a far firewall may answer in its place.
Several different destinations on one port, with no success between, mean that the exit does not serve the
port. In memory only, bounded, and only as long as needed, for it knows destinations.
"""

from __future__ import annotations

DESTINATIONS = 3  # different ones refused on one port before the exit is taken for a liar
MAX_WATCHED = 256  # (exit, port) pairs; the oldest makes room


class PolicyWatch:
    """Refusals by exit and port."""

    __slots__ = ("_refused",)

    def __init__(self) -> None:
        """Start with none."""
        self._refused: dict[tuple[bytes, int], set[int]] = {}

    def note_refused(self, exit_id: bytes, port: int, destination: str) -> bool:
        """An exit refused a destination on a port that it lists; True if it does not serve the port."""
        key = (exit_id, port)
        refused = self._refused.pop(key, None) or set()
        refused.add(hash(destination))  # salted by the interpreter, so it says nothing outside this process
        if len(refused) >= DESTINATIONS:
            return True
        if len(self._refused) >= MAX_WATCHED:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = refused
        return False

    def note_opened(self, exit_id: bytes, port: int) -> None:
        """An exit served a port."""
        if self._refused:
            self._refused.pop((exit_id, port), None)
