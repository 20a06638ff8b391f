import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import DecodeError
from overlay.ports import (
    ALL_PORTS,
    NO_PORTS,
    PORT_MAX,
    SUMMARY_MAX_LENGTH,
    PortSummary,
    decode_summary,
    shorten,
    summarise,
)

port = st.integers(1, PORT_MAX)
ranges = st.lists(st.tuples(port, port).map(lambda pair: (min(pair), max(pair))), max_size=20)


@given(ranges, port)
def test_a_summary_holds_the_ports_of_its_ranges_through_text_and_back(given_ranges, asked):
    summary = summarise(given_ranges)
    expected = any(first <= asked <= last for first, last in given_ranges)
    assert summary.allows(asked) is expected
    assert decode_summary(str(summary)) == summary


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("accept 80,443", PortSummary(((80, 80), (443, 443)))),
        ("accept 80,6000-6010", PortSummary(((80, 80), (6000, 6010)))),
        ("reject 25", PortSummary(((1, 24), (26, PORT_MAX)))),
        ("reject 1-65535", NO_PORTS),
        ("accept 1-65535", ALL_PORTS),
    ],
)
def test_texts(text, summary):
    assert decode_summary(text) == summary
    assert str(summary) == text


@pytest.mark.parametrize(
    "text",
    ["", "accept", "accept ", "accept 0", "accept 65536", "accept 5-4", "accept 5-5", "accept 1,2",
     "accept 9,3", "accept 1-5,3", "accept 080", "Accept 80", "accept 80 ", "accept 80,", "accept *",
     "accept ٣", "accept 1-2-3", "accept " + ",".join(str(p) for p in range(1, 500, 2))],
)  # fmt: skip
def test_texts_that_are_refused(text):
    with pytest.raises(DecodeError):
        decode_summary(text)


@given(st.text(max_size=60) | st.from_regex(r"\A(accept|reject) [0-9,\-]{0,30}\Z"))
def test_any_text_is_read_or_refused(text):
    try:
        summary = decode_summary(text)
    except DecodeError:
        return
    assert decode_summary(str(summary)) == summary


@given(st.sets(port, max_size=400))
def test_a_long_summary_is_shortened_to_part_of_itself(ports):
    summary = summarise((one, one) for one in ports)
    short = shorten(summary)
    assert len(str(short)) <= SUMMARY_MAX_LENGTH
    assert decode_summary(str(short)) == short
    assert all(summary.allows(first) and summary.allows(last) for first, last in short.ranges)
    if len(str(summary)) <= SUMMARY_MAX_LENGTH:
        assert short == summary


@pytest.mark.parametrize("bad", [(0, 5), (5, 4), (1, PORT_MAX + 1)])
def test_our_own_mistakes_raise(bad):
    with pytest.raises(ValueError, match="no range"):
        summarise([bad])
