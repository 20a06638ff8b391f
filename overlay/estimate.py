"""What a relay may earn in a month: its capacity, its cap and its price, at several shares of use. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from overlay.duty import WIRE_BYTES_PER_PACKET

MONTH_S = 30 * 86_400
USE_PERCENT = (1, 10, 50)
"""Shares of its capacity that customers may use; nobody can promise any of them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A month at one share of use."""

    use_percent: int
    carried_bytes: int
    """On the operator's line, both ways together."""
    earned_wei: int
    """For what this relay asks itself; what it pays onward comes on top of that and goes out again."""
    is_capped: bool
    """Whether the monthly cap, not use, decides."""


def estimate_months(
    capacity_bytes_per_s: int, cap_bytes: int, price_wei_per_packet: int
) -> tuple[Estimate, ...]:
    """Return a month at each of USE_PERCENT. ``capacity_bytes_per_s`` is each way; ``cap_bytes`` 0 for none.

    Every packet crosses a relay's line twice: in and out.
    """
    found = []
    for percent in USE_PERCENT:
        carried = 2 * capacity_bytes_per_s * MONTH_S * percent // 100
        is_capped = 0 < cap_bytes < carried
        carried = cap_bytes if is_capped else carried
        packets = carried // (2 * WIRE_BYTES_PER_PACKET)
        found.append(Estimate(percent, carried, packets * price_wei_per_packet, is_capped))
    return tuple(found)
