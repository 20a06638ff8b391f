import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.logs import MAX_VALUE_LENGTH, RateLimit, configure_logging, get_logger


@pytest.fixture
def lines():
    stream = io.StringIO()
    configure_logging("info", stream=stream, timestamps=False)
    yield lambda: stream.getvalue().splitlines()
    configure_logging("info")


def test_an_event_is_one_line_of_pairs(lines):
    log = get_logger("link")
    log.debug("not shown")
    log.info("link up", peer="abc", rtt_ms=3.5)
    log.warning("it says", text="one\ntwo \x1b[31m", ok=True, raw=b"\x01\x02")
    assert lines() == [
        'level=info event="link up" component=link peer=abc rtt_ms=3.5',
        'level=warning event="it says" component=link text="one\\ntwo \\\\x1b[31m" ok=true raw=0102',
    ]


def test_a_long_value_is_cut(lines):
    get_logger("link").info("x", value="y" * 10_000)
    assert len(lines()[0]) < MAX_VALUE_LENGTH + 60


def test_an_exception_stays_on_its_line(lines):
    try:
        raise ValueError("boom")
    except ValueError:
        get_logger("node").exception("a bug")
    assert len(lines()) == 1
    assert "boom" in lines()[0]


def test_a_rate_limit_tells_what_it_dropped():
    limit = RateLimit(burst=2, interval_s=10)
    assert [limit.allow("a", t) for t in (0, 1, 2, 3, 10)] == [0, 0, None, None, 2]
    assert limit.allow("b", 3) == 0
    assert limit.allow("a", 5) == 0  # the clock went back: a new interval, not silence for ever


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0, 1000)), max_size=100))
def test_kinds_are_bounded(events):
    limit = RateLimit(max_kinds=4)
    for kind, now_s in events:
        limit.allow(kind, now_s)
    assert len(limit._kinds) <= 4
