"""The replay window: which of the last WINDOW counters were accepted (docs/protocol/onion.md, "Replay").

One ring of bits per epoch, about 1 KB once a packet came. A counter is marked only after its packet proved
authentic, so that a forgery can neither use a counter up nor move the window.
"""

from circuits.params import WINDOW

_RING_BYTES = WINDOW // 8 + 1
"""One byte more than the window's bits: the highest counter's byte may be partly ahead of it."""


class ReplayWindow:
    """Accepts each counter from `first` on once, and none that is WINDOW or more below the highest marked."""

    __slots__ = ("_ring", "highest")

    def __init__(self, first: int) -> None:
        """`first`, a multiple of 8: the lowest counter that will ever be asked for."""
        if first % 8:
            raise ValueError(f"a window starts at a multiple of 8, not at {first}")
        self.highest = first - 1
        """Highest counter marked; `first - 1` before any."""
        self._ring = bytearray()

    def is_fresh(self, counter: int) -> bool:
        """Whether `counter`, `first` or more, may still be accepted."""
        highest = self.highest
        if counter > highest:
            return True
        return (
            counter > highest - WINDOW and not self._ring[(counter >> 3) % _RING_BYTES] >> (counter & 7) & 1
        )

    def mark(self, counter: int) -> None:
        """Note a fresh counter as used and move the window up to it."""
        place = counter >> 3
        if counter > self.highest:
            passed = place - (self.highest >> 3)
            if passed:
                self._clear(place, passed)
            self.highest = counter
        self._ring[place % _RING_BYTES] |= 1 << (counter & 7)

    def _clear(self, place: int, passed: int) -> None:
        """Forget the `passed` bytes up to `place`: counters a whole ring below are leaving the window."""
        ring = self._ring
        if not ring or passed >= _RING_BYTES:
            ring[:] = bytes(_RING_BYTES)
            return
        for index in range(place - passed + 1, place + 1):
            ring[index % _RING_BYTES] = 0
