"""Exposure, budget and prices."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.budget import Budget, BudgetLimits
from payments.exposure import Exposure
from payments.pricing import (
    GIGABYTE,
    PACKET_BYTES,
    format_coin,
    parse_coin,
    round_to_grid,
    wei_per_gb,
    wei_per_packet,
)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-5, 200)), max_size=60))
def test_shares_never_add_up_to_more_than_the_limit(requests: list[tuple[int, int]]) -> None:
    exposure = Exposure(300, 120)
    for holder, wanted in requests:
        share = exposure.request(holder, wanted)
        assert 0 <= share <= max(0, min(wanted, 120))
        assert exposure.share_wei(holder) == share
        assert sum(exposure.share_wei(h) for h in range(6)) == exposure.total_wei <= 300
    for holder in range(6):
        exposure.release(holder)
    assert exposure.total_wei == 0


def test_a_budget_for_an_hour_and_a_day() -> None:
    budget = Budget(BudgetLimits(per_hour_wei=100, per_day_wei=150))
    assert budget.left_wei(0) == 100
    assert budget.explain(0) is None
    budget.spend(10, 100, 10)
    assert budget.left_wei(20) == 0
    text = budget.explain(20)
    assert text is not None
    assert "per hour" in text
    assert "61 minutes" in text
    assert budget.left_wei(3700) == 50, "the hour is over, the day is not"
    budget.spend(3700, 50, 5)
    text = budget.explain(7400)
    assert text is not None
    assert "per day" in text
    assert budget.left_wei(3700 + 86400 + 900) == 100
    assert Budget(BudgetLimits()).left_wei(0) is None


def test_a_budget_outlasts_a_restart() -> None:
    limits = BudgetLimits(per_day_wei=100)
    budget = Budget(limits)
    budget.spend(1000, 60, 1)
    assert Budget(limits, budget.memory()).left_wei(2000) == 40


def test_a_clock_wrong_by_a_day_never_gives_more_than_one_more_span() -> None:
    budget = Budget(BudgetLimits(per_hour_wei=100, per_day_wei=100))
    now = 1_700_000_000.0
    budget.spend(now, 100, 1)
    assert budget.left_wei(now - 86400) == 0, "a step back frees nothing"
    budget.spend(now - 86400, 5, 1)
    assert budget.left_wei(now) == 0
    assert budget.left_wei(now + 86400 + 900) == 100, "a step ahead frees one day's budget"
    budget.spend(now, 100, 1)
    assert budget.left_wei(now + 86400) == 0, "and coming back frees nothing more"


def test_a_price_limit_per_gigabyte() -> None:
    budget = Budget(BudgetLimits(per_gb_wei=wei_per_gb(10)))
    budget.spend(0, 9_000_000, 900)
    assert budget.left_wei(1) is None, "too few packets to judge"
    budget.spend(1, 9_000_000, 900)
    nothing = Budget(BudgetLimits(per_day_wei=0))
    assert "does not pay for a single packet" in (nothing.explain(0) or "")
    nearly = Budget(BudgetLimits(per_hour_wei=100))
    nearly.spend(0, 95, 1)
    assert nearly.explain(0) is None
    assert "is spent" in (nearly.explain(0, 6) or ""), "less than a ticket is left"
    prepaid = Budget(BudgetLimits(per_gb_wei=wei_per_gb(10)))
    prepaid.spend(0, 50_000, 2000, 20_000)
    assert prepaid.explain(0) is None, "what is prepaid makes nothing dear"
    assert budget.left_wei(2) == 0
    text = budget.explain(2)
    assert text is not None
    assert "per GB" in text


@given(st.integers(0, 10**24))
def test_price_per_packet_and_back_is_rounded_up_by_less_than_a_wei_a_packet(price: int) -> None:
    packet = wei_per_packet(price)
    assert packet * GIGABYTE >= price * PACKET_BYTES
    assert (packet - 1) * GIGABYTE < price * PACKET_BYTES
    assert wei_per_packet(wei_per_gb(packet)) in (packet, packet + 1)


@given(st.integers(0, 10**30))
def test_the_grid_is_an_eighth_apart_and_always_above(amount: int) -> None:
    rounded = round_to_grid(amount)
    assert amount <= rounded <= amount + amount // 8
    assert round_to_grid(rounded) == rounded


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_grid_keeps_order(a: int, b: int) -> None:
    assert (round_to_grid(a) <= round_to_grid(b)) or a > b


@given(st.integers(0, 10**30))
def test_amounts_as_text(wei: int) -> None:
    text = format_coin(wei)
    assert Decimal(text).scaleb(18, None) == wei or wei > 10**27
    if wei <= 10**30:
        assert parse_coin(text) == wei


@pytest.mark.parametrize("bad", ["", "x", "-1", "nan", "inf", "1e40", "0.0000000000000000001", "1,5"])
def test_amounts_that_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"is not an amount|smaller"):
        parse_coin(bad)
