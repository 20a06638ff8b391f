"""The prices of the circuits on one side of a link, and the worth that new tickets are given."""

from __future__ import annotations

from collections import Counter


class Prices:
    """A multiset of wei per packet. Circuits of different prices share a link: all is counted in wei."""

    __slots__ = ("_counts", "_shown")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._shown = 0

    def add(self, packet_wei: int) -> None:
        """A circuit of this price is there; free ones do not count."""
        if packet_wei > 0:
            self._counts[packet_wei] += 1

    def remove(self, packet_wei: int) -> None:
        """A circuit of this price is gone. Raises KeyError if there was none: our misuse."""
        if packet_wei > 0:
            if self._counts[packet_wei] <= 0:
                raise KeyError(packet_wei)
            self._counts[packet_wei] -= 1
            if not self._counts[packet_wei]:
                del self._counts[packet_wei]

    @property
    def dearest_wei(self) -> int:
        """The price of the dearest circuit; 0 when there is none."""
        return max(self._counts, default=0)

    def ticket_wei(self) -> int:
        """What a ticket should be worth: the dearest circuit's price, but not less than before unless that
        was four times as much.

        A new worth means a new book, which costs a signature and a write to disk at both ends; circuits come
        and go all the time.
        """
        dearest = self.dearest_wei
        if dearest == 0:
            return 0
        if not dearest <= self._shown <= 4 * dearest:
            self._shown = dearest
        return self._shown
