"""The replay window: which of the last WINDOW counters were accepted (docs/protocol/onion.md, "Replay").

One ring of bits per epoch, about 1 KB. A counter is marked only after its packet proved authentic, so that a
forgery can neither use a counter up nor move the window.
"""

from circuits.params import WINDOW

_RING_BYTES = WINDOW // 8 + 1
"""One byte more than the window's bits: the highest counter's byte may be partly ahead of it."""


class ReplayWindow:
    """Accepts each counter from `first` on once, and none that is WINDOW or more below the highest one
    marked."""

    __slots__ = ("_ring", "highest")

    def __init__(self, first: int) -> None:
        """`first`: the lowest counter that will ever be asked for."""
        self.highest = first - 1
        """Highest counter marked, `first - 1` before any."""
        self._ring = bytearray(_RING_BYTES)

    def is_fresh(self, counter: int) -> bool:
        """Whether `counter` may still be accepted. The caller sees to it that it is not below `first`."""
        highest = self.highest
        if counter > highest:
            return True
        return (
            counter > highest - WINDOW and not self._ring[(counter >> 3) % _RING_BYTES] >> (counter & 7) & 1
        )

    def mark(self, counter: int) -> None:
        """Note a fresh counter as used and move the window up to it."""
        ring = self._ring
        highest = self.highest
        place = counter >> 3
        if counter > highest:
            gap = place - (highest >> 3)
            if gap >= _RING_BYTES:
                ring[:] = bytes(_RING_BYTES)
            elif gap:
                for passed in range(place - gap + 1, place + 1):
                    ring[passed % _RING_BYTES] = 0
            self.highest = counter
        ring[place % _RING_BYTES] |= 1 << (counter & 7)
