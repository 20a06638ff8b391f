from hypothesis import given
from hypothesis import strategies as st

from overlay.engine.meters import Meter


@given(st.integers(0, 10**24), st.lists(st.tuples(st.integers(0, 48), st.integers(0, 10**15)), max_size=50))
def test_a_meter_never_spends_more_than_its_credit(credit: int, charges: list[tuple[int, int]]) -> None:
    meter = Meter(credit_wei=credit)
    carried = 0
    for packets, price in charges:
        affordable = meter.affordable_packets(price)
        taken = meter.charge(packets, price)
        assert taken == (packets <= affordable)
        if taken:
            carried += packets
    assert meter.credit_wei is not None
    assert meter.credit_wei >= 0
    assert meter.credit_wei + meter.charged_wei == credit
    assert meter.packets == carried


def test_a_meter_without_a_limit_counts() -> None:
    meter = Meter()
    assert meter.charge(48, 10**18)
    assert meter.charged_wei == 48 * 10**18
    assert not meter.take_notice()


def test_the_notice_comes_once_until_credit_rises_above_the_mark() -> None:
    meter = Meter(credit_wei=100, low_wei=50)
    assert not meter.take_notice()
    assert meter.charge(6, 10)
    assert meter.take_notice()
    assert not meter.take_notice()
    meter.add_credit(5)
    assert not meter.take_notice()
    meter.add_credit(100)
    assert not meter.take_notice()
    assert meter.charge(10, 10)
    assert meter.take_notice()
