"""Which purses lie idle, and when their money is taken back."""

from __future__ import annotations

import pytest

from payments.idle import DAY_S, IdlePurses, OwnPurse, Unlock, Withdraw

GWEI = 10**9
ETHER = 10**18
OLD, NEW, DUST = b"\x01" * 20, b"\x02" * 20, b"\x03" * 20


def purse(payee: bytes, left_wei: int = ETHER, unlock_at_s: int = 0) -> OwnPurse:
    return OwnPurse(payee, left_wei + 5, 3, unlock_at_s, 5)


def days(idle: IdlePurses, first: int, last: int, *used: bytes) -> None:
    """From one day to another, looked at four times a day."""
    for quarter in range(4 * first, 4 * last):
        idle.observe(quarter * DAY_S // 4, dict.fromkeys((OLD, NEW, DUST), 5), used)


def test_a_purse_is_unlocked_after_its_idle_days_and_emptied_after_the_notice() -> None:
    idle = IdlePurses()
    purses = [purse(NEW), purse(OLD), purse(DUST, 10 * 70_000 * GWEI)]
    days(idle, 0, 30, NEW)
    assert idle.choose(purses, {NEW}, 30, GWEI, 30 * DAY_S) == [], "29 days"
    days(idle, 30, 31, NEW)
    assert idle.choose(purses, {NEW}, 30, GWEI, 31 * DAY_S) == [Unlock(purse(OLD), 30)]
    assert idle.choose(purses, {NEW, OLD}, 30, GWEI, 31 * DAY_S) == [], "in use again"
    idle.unlocking(OLD)
    idle = IdlePurses(idle.keep())
    waiting = [purse(OLD, unlock_at_s=34 * DAY_S)]
    assert idle.choose(waiting, (), 30, GWEI, 34 * DAY_S - 1) == []
    assert idle.choose(waiting, (), 30, GWEI, 34 * DAY_S) == [Withdraw(waiting[0])]
    idle.withdrawn(OLD)
    assert idle.choose([purse(OLD)], (), 30, GWEI, 34 * DAY_S) == [], "filled again, it begins anew"


def test_a_notice_begun_by_hand_is_not_ours() -> None:
    idle = IdlePurses()
    days(idle, 0, 40)
    assert idle.choose([purse(OLD, unlock_at_s=5)], (), 30, GWEI, 40 * DAY_S) == []


def test_only_days_on_which_the_node_ran_and_the_purse_paid_nothing_count() -> None:
    idle = IdlePurses()
    days(idle, 0, 1)
    days(idle, 100, 101)
    assert idle.choose([purse(OLD)], (), 2, GWEI, 101 * DAY_S) == [], "off for a hundred days"
    days(idle, 101, 102)
    assert idle.choose([purse(OLD)], (), 2, GWEI, 102 * DAY_S) != []
    # It paid between two looks.
    idle.observe(102 * DAY_S, {OLD: 6}, ())
    assert idle.choose([purse(OLD)], (), 2, GWEI, 102 * DAY_S) == []
    idle.observe(50 * DAY_S, {OLD: 6}, ())
    idle.observe(103 * DAY_S, {OLD: 6}, ())
    idle.observe(103 * DAY_S, {OLD: 6}, ())
    assert idle.choose([purse(OLD)], (), 2, GWEI, 103 * DAY_S) == [], "one day, however often it is looked at"
    idle.observe(104 * DAY_S, {OLD: 6}, ())
    assert idle.choose([purse(OLD)], (), 2, GWEI, 104 * DAY_S) == [Unlock(purse(OLD), 2)]


@pytest.mark.parametrize("memory", [None, "", "[]", "{", '{"zz": 1}', '{"01": [1]}', "7"])
def test_a_damaged_memory_takes_nothing_back_early(memory: str | None) -> None:
    idle = IdlePurses(memory)
    days(idle, 0, 30)
    assert idle.choose([purse(OLD)], (), 30, GWEI, 30 * DAY_S) == []
