"""How much may be at risk in all: prepaid windows of a payer, start-up credits of a payee.

One `Exposure` per process and kind of risk; every tab or purse holds its share under a key of its own.
"""

from __future__ import annotations

from collections.abc import Hashable


class Exposure:
    """A limit in wei, shared by many holders. Invariant: the shares never add up to more than the limit."""

    def __init__(self, limit_wei: int, share_limit_wei: int | None = None) -> None:
        """Allow `limit_wei` in all and `share_limit_wei` (default: all of it) to one holder."""
        self.limit_wei = limit_wei
        self.share_limit_wei = limit_wei if share_limit_wei is None else share_limit_wei
        self._shares: dict[Hashable, int] = {}
        self._total_wei = 0

    @property
    def total_wei(self) -> int:
        """What all holders have together."""
        return self._total_wei

    def share_wei(self, holder: Hashable) -> int:
        """Return what `holder` has."""
        return self._shares.get(holder, 0)

    def request(self, holder: Hashable, wanted_wei: int) -> int:
        """Set the holder's share as near to `wanted_wei` as the limits allow; return the share it now has."""
        others = self._total_wei - self.share_wei(holder)
        share = max(0, min(wanted_wei, self.share_limit_wei, self.limit_wei - others))
        if share:
            self._shares[holder] = share
        else:
            self._shares.pop(holder, None)
        self._total_wei = others + share
        return share

    def release(self, holder: Hashable) -> None:
        """Take the holder's share back: its link closed, its opening confirmed."""
        self.request(holder, 0)
