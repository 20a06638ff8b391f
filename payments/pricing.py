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

_GRID_STEPS_BITS = 3
"""Eight steps in every doubling; `circuits.building.messages` has the same grid for what builds offer, and a
test holds them equal."""


def wei_per_packet(wei_per_gb: int) -> int:
    """Return the whole wei per packet for a price per gigabyte; rounded up, the relay gains under one wei."""
    return -(-wei_per_gb * PACKET_BYTES // GIGABYTE)


def wei_per_gb(packet_wei: int) -> int:
    """Return the price per gigabyte of `packet_wei` wei per packet; rounded up."""
    return -(-packet_wei * GIGABYTE // PACKET_BYTES)


def round_to_grid(packet_wei: int) -> int:
    """Return the least amount on the common grid that is at least `packet_wei`; the hop that is paid gains.

    The grid has eight steps in every doubling (1 ... 16, 18, 20, ... 32, 36, ...), so the result is at most
    an eighth above; what a hop is paid tells little about the prices behind it.
    """
    shift = max(0, packet_wei.bit_length() - 1 - _GRID_STEPS_BITS)
    step = 1 << shift
    return (packet_wei + step - 1) >> shift << shift


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
