"""The firewall's text: what depends on what. That the kernel takes it and obeys is tested on a real one."""

from __future__ import annotations

import re

import pytest

from exit.denied import DENIED_RANGES_V4, DenyList
from exit.nft import Firewall, render, render_exact, render_removal
from exit.policy import DEFAULT_POLICY, parse_policy


def firewall(
    policy: str = DEFAULT_POLICY, name: str = "exit", tun: str = "tun0", **options: object
) -> Firewall:
    deny = options.pop("deny", DenyList(addresses=["9.9.9.9", "2606::9"]))
    return Firewall(name, tun, 1400, parse_policy(policy), deny, **options)  # type: ignore[arg-type]


def chain(text: str, name: str) -> list[str]:
    match = re.search(rf"  chain {name} {{\n(.*?)\n  }}", text, re.DOTALL)
    assert match is not None
    return [line.strip() for line in match[1].splitlines()]


def test_rules_become_lines_in_their_order() -> None:
    text = render(
        firewall(
            "reject 1.2.3.4:*\naccept 1.2.0.0/16:80-90\nreject6 *:22\naccept [2606:4700::]/32:443\n"
            "accept 1.0.0.4/255.0.0.255:1\nreject *4:1-65535\naccept *:*"
        )
    )
    assert chain(text, "ports") == [
        "th dport 25 counter drop",
        "th dport 445 counter drop",
        "ip daddr 1.2.3.4/32 counter drop",
        "ip daddr 1.2.0.0/16 th dport 80-90 accept",
        "meta nfproto ipv6 th dport 22 counter drop",
        "ip6 daddr 2606:4700::/32 th dport 443 accept",
        "ip daddr & 255.0.0.255 == 1.0.0.4 th dport 1 accept",
        "meta nfproto ipv4 counter drop",
        "accept",
        "counter drop",
    ]
    # echo: any open port opens an address, only a refusal of all closes it
    assert chain(text, "echo") == [
        "ip daddr 1.2.3.4/32 counter drop",
        "ip daddr 1.2.0.0/16 accept",
        "ip6 daddr 2606:4700::/32 accept",
        "ip daddr & 255.0.0.255 == 1.0.0.4 accept",
        "meta nfproto ipv4 counter drop",
        "accept",
        "counter drop",
    ]


def test_the_deny_list_is_there_without_what_was_lifted() -> None:
    text = render(firewall(deny=DenyList(allow=["10.0.0.0/8"], addresses=["9.9.9.9"])))
    denied = re.search(r"set denied4 {.*elements = {(.*?)}", text)
    assert denied is not None
    assert "10.0.0.0/8" not in denied[1]
    for network in DENIED_RANGES_V4[2:4]:
        assert network in denied[1]
    assert "set exact4 { type ipv4_addr; elements = { 9.9.9.9 }; }" in text
    assert "set exact6 { type ipv6_addr; }" in text


def test_the_mss_follows_the_mtu_and_ipv6_can_be_closed() -> None:
    assert chain(render(firewall()), "clamp")[0].endswith("maxseg size set 1360")
    assert chain(render(firewall()), "clamp")[1].endswith("maxseg size set 1340")
    closed = "meta nfproto ipv6 counter drop"
    assert closed in chain(render(firewall(has_ipv6=False)), "outward")
    assert closed not in chain(render(firewall()), "outward")


def test_nothing_new_leaves_before_it_was_judged() -> None:
    lines = chain(render(firewall()), "outward")
    established = lines.index("ct state established,related accept")
    assert lines.index("ct state invalid counter drop") < established
    assert all("accept" not in line for line in lines if line != lines[established])
    assert lines[-1] == "goto ports"


def test_updates_and_removal() -> None:
    text = render_exact(firewall(), DenyList(addresses=["8.8.8.8"]))
    assert text.splitlines() == [
        "flush set inet hopfare_exit exact4",
        "add element inet hopfare_exit exact4 { 8.8.8.8 }",
        "flush set inet hopfare_exit exact6",
    ]
    assert render_removal("t") == "table inet t\ndelete table inet t\n"
    assert render(firewall()).startswith(render_removal("hopfare_exit"))


@pytest.mark.parametrize(
    ("name", "table"), [("exit", "hopfare_exit"), ("hopfare0", "hopfare0"), ("hopfare-7.a", "hopfare-7.a")]
)
def test_names(name: str, table: str) -> None:
    assert firewall(name=name).table == table


@pytest.mark.parametrize("name", ["", "a b", "x;", 'x"', "{", "x" * 16, "a\nb"])
def test_names_that_would_be_more_than_names(name: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        firewall(name=name)
    with pytest.raises(ValueError, match="must be"):
        firewall(tun=name)
    with pytest.raises(ValueError, match="MTU"):
        Firewall("a", "b", 500, parse_policy(DEFAULT_POLICY), DenyList())


def test_a_kernel_without_random_numbers_gets_everything_else() -> None:
    whole, less = (chain(render(firewall(new_ids=new)), "normalise") for new in (True, False))
    assert [line for line in whole if line not in less] == ["ip id set numgen random mod 4294967295"]
    assert [line for line in whole if line in less] == less
