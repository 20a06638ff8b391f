"""A customer's limits that change while the client runs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from overlay.config.model import PaymentsConfig
from overlay.node.customer_money import PRICE_SPAN_S, CustomerMoney
from overlay.node.io.boot_clock import read_moment
from payments.budget_clock import Moment
from payments.errors import RpcUnavailableError

COIN = 10**18
DAY_S = 86_400.0
NOW = 1_800_000_000.0
PACKETS = 10**9 // 1384  # a gigabyte


class Host:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def end_for_budget(self, sentence: str) -> None:
        self.ended.append(sentence)


class Clocks:
    """A machine's clocks; `pass_by` lets time pass."""

    def __init__(self) -> None:
        self.boot_id = "first"
        self.boot_s = 1000.0
        self.unix_s = NOW

    def __call__(self) -> Moment:
        return Moment(self.boot_id, self.boot_s, self.unix_s)

    def pass_by(self, seconds: float) -> None:
        self.boot_s += seconds
        self.unix_s += seconds

    def reboot(self, off_s: float) -> None:
        self.boot_id += "'"
        self.boot_s = 30.0
        self.unix_s += off_s + 30.0


class Notes:
    """A ledger's notes."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def get_note(self, name: str) -> str | None:
        return self.notes.get(name)

    def put_note(self, name: str, value: str) -> None:
        self.notes[name] = value


def customer(
    clocks: Clocks | None = None, ledger: Notes | None = None, chain: object = None, **limits: int | None
) -> tuple[CustomerMoney, Host]:
    money: Any = SimpleNamespace(
        ledger=ledger or Notes(), desk=SimpleNamespace(links={}), allow=lambda _: None, chain=chain
    )
    host = Host()
    return CustomerMoney(settings(**limits), money, host, clocks or Clocks()), host


def settings(**limits: int | None) -> PaymentsConfig:
    return replace(PaymentsConfig(), **limits)  # type: ignore[arg-type]


def test_a_lower_price_stops_nothing_that_was_chosen_by_the_old_one() -> None:
    clocks = Clocks()
    purse, host = customer(clocks, budget_per_gb_wei=COIN)
    purse.budget.spend(purse.now(), COIN // 2, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN // 10))
    clocks.pass_by(1)
    purse.look()
    assert host.ended == []
    # An hour later what is paid must be within it.
    clocks.pass_by(PRICE_SPAN_S)
    purse.look()
    assert purse.budget.limits.per_gb_wei == COIN // 10
    assert host.ended == []
    purse.budget.spend(purse.now(), COIN // 2, PACKETS)
    purse.look()
    assert len(host.ended) == 1
    assert "per GB, over the limit of 0.1" in host.ended[0]


def test_a_first_price_limit_and_a_higher_one() -> None:
    clocks = Clocks()
    purse, host = customer(clocks)
    purse.budget.spend(purse.now(), COIN, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN // 10))
    purse.look()
    assert host.ended == []
    clocks.pass_by(PRICE_SPAN_S + 5)
    purse.look()
    assert purse.budget.limits.per_gb_wei == COIN // 10
    purse.use_limits(settings(budget_per_gb_wei=2 * COIN))
    assert purse.budget.limits.per_gb_wei == 2 * COIN


def test_other_limits_hold_at_once() -> None:
    purse, host = customer(budget_per_gb_wei=COIN)
    purse.budget.spend(purse.now(), COIN // 2, PACKETS)
    purse.use_limits(settings(budget_per_gb_wei=COIN, budget_per_hour_wei=COIN // 4))
    purse.look()
    assert len(host.ended) == 1
    assert "per hour is spent" in host.ended[0]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("wrong_s", [-DAY_S, DAY_S, 400 * DAY_S])
def test_a_wall_clock_set_wrong_and_back_neither_frees_nor_locks_a_budget(
    wrong_s: float, restart: bool
) -> None:
    clocks, notes = Clocks(), Notes()
    purse, _ = customer(clocks, notes, budget_per_hour_wei=100)

    def again() -> CustomerMoney:
        if not restart:
            return purse
        purse.save()
        return customer(clocks, notes, budget_per_hour_wei=100)[0]

    purse.budget.spend(purse.now(), 100, 1)
    clocks.unix_s += wrong_s
    purse = again()
    purse.look()
    assert "per hour is spent" in purse.stopped, "no second budget"
    clocks.unix_s -= wrong_s
    purse = again()
    purse.look()
    assert "61 minutes" in purse.stopped, "neither freed nor locked"
    clocks.pass_by(3660)
    purse = again()
    purse.look()
    assert purse.stopped == ""


def kept_by(clocks: Clocks) -> Notes:
    """The ledger of a customer that has just spent its day's budget."""
    notes = Notes()
    purse, _ = customer(clocks, notes, budget_per_day_wei=100)
    purse.budget.spend(purse.now(), 100, 1)
    purse.save()
    return notes


def after_boot(clocks: Clocks, notes: Notes, *answers: float | None) -> str:
    """What a customer's budget says once the chain has told its time."""
    left = list(answers)

    async def block() -> SimpleNamespace:
        answer = left.pop(0)
        if answer is None:
            raise RpcUnavailableError("no endpoint answers")
        return SimpleNamespace(time_s=int(answer))

    purse, _ = customer(clocks, notes, SimpleNamespace(block=block), budget_per_day_wei=100)

    async def main() -> None:
        with trio.move_on_after(100):
            await purse.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not left
    purse.look()
    return purse.stopped


def test_over_a_reboot_the_wall_clock_is_believed_as_far_as_the_chain_bears_it_out() -> None:
    clocks = Clocks()
    notes = kept_by(clocks)
    clocks.reboot(2 * DAY_S)
    assert after_boot(clocks, notes, None, NOW + 2 * DAY_S) == "", "off for two days"

    clocks = Clocks()
    notes = kept_by(clocks)
    clocks.reboot(60.0)
    true_s = clocks.unix_s
    clocks.unix_s += 30 * DAY_S
    assert "per day is spent" in after_boot(clocks, notes, true_s), "off for a minute, with a wrong clock"

    clocks = Clocks()
    notes = kept_by(clocks)
    clocks.reboot(60.0)
    clocks.unix_s -= 30 * DAY_S
    assert "per day is spent" in after_boot(clocks, notes)
    clocks.pass_by(DAY_S + 900)
    assert after_boot(clocks, notes) == "", "a clock far behind locks nobody out"


def test_a_note_of_before_the_budget_had_a_time_of_its_own_is_read() -> None:
    clocks, notes = Clocks(), Notes()
    number = int(NOW // 60)
    notes.put_note("budget", f'{{"spent": {{"3600": {{"{number}": [100, 1, 100]}}}}, "worth": {{}}}}')
    purse, _ = customer(clocks, notes, budget_per_hour_wei=100)
    assert "per hour is spent" in purse.stopped
    clocks.pass_by(3660)
    purse.look()
    assert purse.stopped == ""


def test_the_machines_own_clocks() -> None:
    first, second = read_moment(), read_moment()
    assert first.boot_id == second.boot_id
    assert 0 < first.boot_s <= second.boot_s
