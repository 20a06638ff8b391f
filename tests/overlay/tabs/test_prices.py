"""The prices of a side of a link, and that all packages round to one grid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.building.messages import round_up_to_grid
from circuits.params import UNIT
from overlay.tabs.prices import Prices
from payments.pricing import PACKET_BYTES, round_to_grid


@given(st.integers(0, 2**96))
def test_one_grid(amount: int) -> None:
    assert round_to_grid(amount) == round_up_to_grid(amount)


def test_a_packet_is_a_unit() -> None:
    assert PACKET_BYTES == UNIT


def test_tickets_change_their_worth_seldom() -> None:
    prices = Prices()
    assert prices.ticket_wei() == 0
    prices.add(0)
    assert prices.ticket_wei() == 0, "free circuits need no tickets"
    prices.add(1000)
    assert prices.ticket_wei() == 1000
    prices.add(1500)
    assert prices.ticket_wei() == 1500
    prices.remove(1500)
    assert prices.ticket_wei() == 1500, "a little too much is as good: all is counted in wei"
    prices.add(300)
    prices.remove(1000)
    assert prices.ticket_wei() == 300, "five times too much is not"
    prices.remove(300)
    assert prices.dearest_wei == prices.ticket_wei() == 0
    with pytest.raises(KeyError):
        prices.remove(300)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
def test_a_ticket_is_worth_the_dearest_packet_and_at_most_four(added: list[int]) -> None:
    prices = Prices()
    for price in added:
        prices.add(price)
        assert max(added[: added.index(price) + 1]) <= 4 * prices.ticket_wei()
        assert prices.dearest_wei <= prices.ticket_wei() <= 4 * prices.dearest_wei
