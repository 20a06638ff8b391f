"""A customer's limits that change while the client runs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from overlay.config.model import PaymentsConfig
from overlay.node.customer_money import PRICE_SPAN_S, CustomerMoney

COIN = 10**18
NOW = 1_800_000_000.0
PACKETS = 10**9 // 1384  # a gigabyte


class Host:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def end_for_budget(self, sentence: str) -> None:
        self.ended.append(sentence)


def customer(**limits: int | None) -> tuple[CustomerMoney, Host]:
    ledger = SimpleNamespace(get_note=lambda _: None, put_note=lambda *_: None)
    money: Any = SimpleNamespace(ledger=ledger, desk=SimpleNamespace(links={}), allow=lambda _: None)
    host = Host()
    return CustomerMoney(settings(**limits), money, host), host


def settings(**limits: int | None) -> PaymentsConfig:
    return replace(PaymentsConfig(), **limits)  # type: ignore[arg-type]


def test_a_lower_price_stops_nothing_that_was_chosen_by_the_old_one() -> None:
    purse, host = customer(budget_per_gb_wei=COIN)
    purse.budget.spend(NOW, COIN // 2, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN // 10), NOW)
    purse.look(NOW + 1)
    assert host.ended == []
    # An hour later what is paid must be within it.
    later = NOW + PRICE_SPAN_S + 1
    purse.look(later)
    assert purse.budget.limits.per_gb_wei == COIN // 10
    assert host.ended == []
    purse.budget.spend(later, COIN // 2, PACKETS)
    purse.look(later + 1)
    assert len(host.ended) == 1
    assert "per GB, over the limit of 0.1" in host.ended[0]


def test_a_first_price_limit_and_a_higher_one() -> None:
    purse, host = customer()
    purse.budget.spend(NOW, COIN, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN // 10), NOW)
    purse.look(NOW + 1)
    assert host.ended == []
    purse.look(NOW + PRICE_SPAN_S + 5)
    assert purse.budget.limits.per_gb_wei == COIN // 10
    purse.use_limits(settings(budget_per_gb_wei=2 * COIN), NOW + PRICE_SPAN_S + 6)
    assert purse.budget.limits.per_gb_wei == 2 * COIN


def test_other_limits_hold_at_once() -> None:
    purse, host = customer(budget_per_gb_wei=COIN)
    purse.budget.spend(NOW, COIN // 2, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN, budget_per_hour_wei=COIN // 4), NOW)
    purse.look(NOW + 1)
    assert len(host.ended) == 1
    assert "per hour is spent" in host.ended[0]
