"""Prices: per gigabyte for people, whole wei per packet for machines, a coarse grid for what others may see.

One gigabyte is 10^9 bytes of onion packets of 1,384 bytes each (what a relay carries and charges for),
whatever their content.
"""

from __future__ import annotations

from decimal import Context, Decimal, InvalidOperation

PACKET_BYTES = 1384
"""One unit of the onion format; tests of the overlay hold it equal to the data path's."""
GIGABYTE = 10**9
WEI_PER_COIN = 10**18

_CONTEXT = Context(prec=60)

_STEPS = (10, 12, 15, 18, 22, 27, 33, 39, 47, 56, 68, 82)
"""The E12 series: twelve values a decade, each about a fifth above the last, so that an amount on the grid
tells little about how it is made up and costs at most 25 % more (10 % on average)."""


def wei_per_packet(wei_per_gb: int) -> int:
    """Return the whole wei per packet for a price per gigabyte; rounded up, the relay gains under one wei."""
    return -(-wei_per_gb * PACKET_BYTES // GIGABYTE)


def wei_per_gb(packet_wei: int) -> int:
    """Return the price per gigabyte of `packet_wei` wei per packet; rounded up."""
    return -(-packet_wei * GIGABYTE // PACKET_BYTES)


def round_to_grid(packet_wei: int) -> int:
    """Return the least amount on the common grid that is at least `packet_wei`; the hop that is paid gains.

    0 stays 0, and below 10 wei every whole number is on the grid.
    """
    if packet_wei < 10:
        return packet_wei
    scale = 1
    while packet_wei > _STEPS[-1] * scale:
        if packet_wei <= 100 * scale:
            return 100 * scale
        scale *= 10
    for step in _STEPS:
        if step * scale >= packet_wei:
            return step * scale
    raise AssertionError("the grid has a value for every amount")


def onward_prices(asked_wei: list[int]) -> list[int]:
    """Return what each hop is paid per packet, given what each hop asks for itself (guard first).

    Hop i is paid its own price and what it must pay onward, the sum rounded up to the grid; the last entry is
    the exit's own price on the grid.
    """
    paid: list[int] = []
    onward = 0
    for own in reversed(asked_wei):
        onward = round_to_grid(own + onward)
        paid.append(onward)
    paid.reverse()
    return paid


def parse_coin(text: str) -> int:
    """Return the wei of an amount in the chain's coin, such as "0.25".

    Raises ValueError if it is not a number, is negative or has parts smaller than a wei.
    """
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount") from None
    if not amount.is_finite() or amount < 0 or amount > 10**12:
        raise ValueError(f"{text!r} is not an amount between 0 and 10^12 coins")
    wei = amount.scaleb(18, _CONTEXT)
    if wei != wei.to_integral_value():
        raise ValueError(f"{text!r} has parts smaller than one wei (18 digits after the point)")
    return int(wei)


def format_coin(wei: int) -> str:
    """Return an amount of wei in the chain's coin, exactly, without superfluous zeros."""
    whole, part = divmod(abs(wei), WEI_PER_COIN)
    text = f"{whole}.{part:018d}".rstrip("0").rstrip(".")
    return f"-{text}" if wei < 0 else text
