"""Which resolvers are asked, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exit.dns.upstream import MAX_RESOLVERS, Order, Upstream, parse_resolv_conf, parse_upstream

A, B = Upstream("9.9.9.9"), Upstream("2620:fe::fe", 5353)


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("9.9.9.9", A),
        (" 9.9.9.9:53 ", A),
        ("2620:fe::fe", Upstream("2620:fe::fe")),
        ("[2620:fe::fe]", Upstream("2620:fe::fe")),
        ("[2620:fe::fe]:5353", B),
        ("fe80::1%eth0", Upstream("fe80::1%eth0")),
        ("127.0.0.53", Upstream("127.0.0.53")),
    ],
)
def test_resolvers_are_read(text: str, upstream: Upstream) -> None:
    assert parse_upstream(text) == upstream
    assert upstream.version == (6 if ":" in upstream.host else 4)


@pytest.mark.parametrize(
    "text",
    ["", "dns.example", "9.9.9", "9.9.9.9:", "9.9.9.9:0", "9.9.9.9:70000", "[::1", "[::1]x", "[::1]:", "1:2"],
)
def test_mistakes_say_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="write for example"):
        parse_upstream(text)


@pytest.mark.parametrize("text", ["100.64.0.1", "fd68:6f70:6661::1"])
def test_the_exit_does_not_ask_itself(text: str) -> None:
    with pytest.raises(ValueError, match="the exit itself"):
        parse_upstream(text)


def test_resolv_conf() -> None:
    text = """
# comment
nameserver 9.9.9.9
nameserver 9.9.9.9
nameserver   fe80::1%eth0 trailing
nameserver nonsense
nameserver
search example.com
options edns0
"""
    assert parse_resolv_conf(text) == [A, Upstream("fe80::1%eth0")]
    many = "\n".join(f"nameserver 9.9.9.{number}" for number in range(100))
    assert len(parse_resolv_conf(many)) == MAX_RESOLVERS


@given(st.text(max_size=50))
def test_any_text_is_read(text: str) -> None:
    parse_resolv_conf("nameserver " + text)


def test_a_resolver_that_failed_is_asked_last_for_a_while() -> None:
    order = Order()
    order.replace([A, B])
    assert [upstream for upstream, _ in order.attempts(0.0)] == [A, B, A, B]
    order.failed(A, 10.0)
    assert [upstream for upstream, _ in order.attempts(11.0)] == [B, A, B, A]
    assert [upstream for upstream, _ in order.attempts(40.0)] == [A, B, A, B]
    order.failed(A, 50.0)
    assert order.attempts(5.0)[0][0] == A, "a clock that jumped back clears failures"
    order.answered(A)
    assert order.attempts(51.0)[0][0] == A
    order.failed(A, 60.0)
    order.replace([B])
    assert [upstream for upstream, _ in order.attempts(61.0)] == [B, B]
    order.failed(A, 62.0)
    assert not order._failed_s
