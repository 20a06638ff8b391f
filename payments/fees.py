"""What to pay for gas (EIP-1559), and whether gas is dear just now. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_TIP_WEI = 1
AVERAGE_HALF_LIFE_S = 6 * 3600.0
"""Of the moving average of gas prices: long enough to sit out a busy afternoon, short enough to learn."""


@dataclass(frozen=True, slots=True)
class Fees:
    """A transaction's fees: `max_wei` for a unit of gas in all, `tip_wei` of it for the block's maker."""

    max_wei: int
    tip_wei: int

    def bumped(self) -> Fees:
        """Return fees that replace a transaction with these: an eighth more, nodes ask for a tenth."""
        return Fees(self.max_wei + self.max_wei // 8 + 1, self.tip_wei + self.tip_wei // 8 + 1)


def choose_fees(base_fee_wei: int, tips_wei: list[int]) -> Fees:
    """Return fees for the next blocks: the middle of recent tips, and room for the base fee to double."""
    tips = sorted(tips_wei)
    tip = max(MIN_TIP_WEI, tips[len(tips) // 2] if tips else 0)
    return Fees(2 * base_fee_wei + tip, tip)


class GasAverage:
    """An average of gas prices that forgets by halves. Observations may come at any rate."""

    def __init__(self, average_wei: float | None = None, at_s: float = 0.0) -> None:
        """Go on from a remembered average, or start with none."""
        self.average_wei = average_wei
        self.at_s = at_s

    def observe(self, price_wei: int, now: float) -> None:
        """Note that gas costs `price_wei` a unit now. A clock that goes back counts as no time passed."""
        if self.average_wei is None:
            self.average_wei = float(price_wei)
        else:
            passed = max(0.0, now - self.at_s)
            keep = math.exp2(-passed / AVERAGE_HALF_LIFE_S)
            self.average_wei = keep * self.average_wei + (1 - keep) * price_wei
        self.at_s = max(self.at_s, now)

    def is_dear(self, price_wei: int, multiple: float = 1.5) -> bool:
        """Tell whether `price_wei` is more than `multiple` times the average; false while there is none."""
        return self.average_wei is not None and price_wei > multiple * self.average_wei
