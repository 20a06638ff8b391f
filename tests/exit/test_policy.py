"""Exit policies: what the grammar means, how mistakes are told, and the deny list on top."""

from __future__ import annotations

import ipaddress

import pytest
import stem.exit_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from exit.denied import DENIED_RANGES_V4, DENIED_RANGES_V6, DenyList
from exit.errors import PolicyError
from exit.policy import (
    ANY_PORT,
    DEFAULT_POLICY,
    ICMP,
    ICMPV6,
    MAX_RULES,
    TCP,
    UDP,
    PolicyTable,
    Verdict,
    allows_port,
    parse_policy,
)

DNS = ("100.64.0.1", "fd68:6f70:6661::1")


def table(text: str, **options: object) -> PolicyTable:
    return PolicyTable(parse_policy(text), DenyList(), dns_addresses=DNS, **options)  # type: ignore[arg-type]


def ask(policy: PolicyTable, address: str, port: int, protocol: int = TCP) -> Verdict:
    parsed = ipaddress.ip_address(address)
    return policy.verdict(parsed.version, protocol, parsed.packed, port)


def test_the_first_matching_rule_decides() -> None:
    policy = table(
        """
        # a comment
        reject 1.2.3.0/24:*   # a network
        accept 1.2.3.4:80     # comes too late
        accept *:80, accept *:443
        accept6 [2606:4700::]/32:1000-2000
        reject *:*
        """
    )
    assert ask(policy, "1.2.3.4", 80) is Verdict.DENIED_PORT
    assert ask(policy, "1.2.4.4", 80) is Verdict.ACCEPT
    assert ask(policy, "1.2.4.4", 443, UDP) is Verdict.ACCEPT
    assert ask(policy, "1.2.4.4", 81) is Verdict.DENIED_PORT
    assert ask(policy, "2606:4700::1", 1500) is Verdict.ACCEPT
    assert ask(policy, "2606:4701::1", 1500) is Verdict.DENIED_PORT
    assert ask(policy, "1.2.4.4", 0) is Verdict.DENIED_PORT


def test_only_tcp_udp_and_echo() -> None:
    policy = table("accept *:*")
    assert ask(policy, "1.1.1.1", ANY_PORT, ICMP) is Verdict.ACCEPT
    assert ask(policy, "2606::1", ANY_PORT, ICMPV6) is Verdict.ACCEPT
    assert ask(policy, "1.1.1.1", ANY_PORT, ICMPV6) is Verdict.DENIED_PROTOCOL
    assert ask(policy, "2606::1", ANY_PORT, ICMP) is Verdict.DENIED_PROTOCOL
    for protocol in (0, 2, 41, 47, 50, 132, 255):
        assert ask(policy, "1.1.1.1", 80, protocol) is Verdict.DENIED_PROTOCOL


def test_echo_and_fragments_are_judged_by_address() -> None:
    policy = table("reject 1.2.3.0/24:1-65535\nreject 1.2.4.0/24:80\naccept *:443\nreject *:*")
    assert ask(policy, "1.2.3.4", ANY_PORT, ICMP) is Verdict.DENIED_PORT
    assert ask(policy, "1.2.4.4", ANY_PORT, ICMP) is Verdict.ACCEPT
    assert ask(policy, "1.2.4.4", ANY_PORT, UDP) is Verdict.ACCEPT
    assert ask(table("reject *:*"), "1.2.4.4", ANY_PORT, ICMP) is Verdict.DENIED_PORT


def test_the_exits_own_dns_is_open_and_nothing_else_of_it() -> None:
    policy = table("reject *:*", has_ipv6=False)
    for address in DNS:
        for protocol in (TCP, UDP):
            assert ask(policy, address, 53, protocol) is Verdict.ACCEPT
            assert ask(policy, address, 80, protocol) is Verdict.DENIED_ADDRESS
    assert ask(policy, DNS[0], ANY_PORT, ICMP) is Verdict.ACCEPT


@pytest.mark.parametrize("text", [*DENIED_RANGES_V4, *DENIED_RANGES_V6])
def test_no_rule_opens_a_denied_range(text: str) -> None:
    network = ipaddress.ip_network(text)
    pattern = f"[{network.network_address}]" if network.version == 6 else str(network.network_address)
    policy = table(f"accept {pattern}/{network.prefixlen}:*\naccept *:*")
    for address in (network[1] if network.num_addresses > 1 else network[0], network[-1]):
        assert ask(policy, str(address), 443) is Verdict.DENIED_ADDRESS
    if network.num_addresses > 1:
        notes = parse_policy(f"accept {pattern}/{network.prefixlen}:*\naccept *:*").notes
        assert "deny list" in notes[0]


def test_denied_ports_can_be_opened_only_by_name() -> None:
    assert ask(table("accept *:*"), "1.1.1.1", 25) is Verdict.DENIED_PORT
    assert ask(table("accept *:*"), "1.1.1.1", 445) is Verdict.DENIED_PORT
    policy = PolicyTable(parse_policy("accept *:*", open_ports=[25]), DenyList())
    assert ask(policy, "1.1.1.1", 25) is Verdict.ACCEPT
    assert ask(policy, "1.1.1.1", 445) is Verdict.DENIED_PORT


def test_an_exit_without_ipv6() -> None:
    policy = table("accept *:*", has_ipv6=False)
    assert ask(policy, "2606::1", 443) is Verdict.NO_IPV6
    assert ask(policy, "fe80::1", 443) is Verdict.DENIED_ADDRESS
    assert ask(policy, "1.1.1.1", 443) is Verdict.ACCEPT


def test_the_cache_is_bounded_and_forgets_with_the_deny_list() -> None:
    policy = table("accept *:*", cache_entries=10)
    for value in range(1000):
        ask(policy, f"1.2.{value >> 8}.{value & 255}", 80)
        assert ask(policy, "1.1.1.1", 80) is Verdict.ACCEPT
    assert len(policy._fresh) <= 10
    assert len(policy._stale) <= 10
    policy.replace_deny(DenyList(addresses=["1.1.1.1"]))
    assert ask(policy, "1.1.1.1", 80) is Verdict.DENIED_ADDRESS


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("accept *:80\naccept *:443\nreject *:*", "accept 80,443"),
        ("accept *:*", "reject 25,445"),
        ("reject *:*", "reject 1-65535"),
        ("accept *:1-1024\nreject *:*", "accept 1-24,26-444,446-1024"),
        ("reject 1.2.3.0/24:*\naccept *:22\nreject *:*", "accept 22"),
        (
            DEFAULT_POLICY,
            "reject 25,119,135-139,445,563,1214,4661-4666,6346-6429,6699,6881-6999",
        ),
    ],
)
def test_summaries(text: str, summary: str) -> None:
    policy = parse_policy(text)
    assert policy.summary == summary
    assert policy.lets_anything_out is (text != "reject *:*")
    micro = stem.exit_policy.MicroExitPolicy(summary)
    for port in (1, 22, 25, 80, 443, 445, 563, 1024, 1025, 65535):
        assert allows_port(summary, port) == micro.can_exit_to(port=port)
        assert allows_port(summary, port) == (ask(table(text), "9.9.9.9", port) is Verdict.ACCEPT)


@pytest.mark.parametrize(
    "summary",
    ["", "accept", "accept ", "80", "accept 0", "accept 80-", "accept x", "allow 80", "accept 1," * 999],
)
def test_malformed_summaries_allow_nothing(summary: str) -> None:
    assert not allows_port(summary, 80)


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ("accept *:80\nallow *:443\nreject *:*", 2, "starts with accept or reject"),
        ("accept *\nreject *:*", 1, "ADDRESS:PORTS"),
        ("\n\naccept 2001:db8::1:80\nreject *:*", 3, "ADDRESS:PORTS"),
        ("accept 1.2.3.4/40:80\nreject *:*", 1, "192.0.2.0/24"),
        ("accept *:99999\nreject *:*", 1, "1024-65535"),
        ("accept *:90-80\nreject *:*", 1, "1024-65535"),
        ("accept *:0\nreject *:*", 1, "from 1 to 65535"),
        ("accept6 1.2.3.4:80\nreject *:*", 1, "without the 6"),
        ("accept private:*\nreject *:*", 1, "allow_ranges"),
        ("accept *:80", 0, "end it with"),
        ("", 0, "end it with"),
        ("accept *4:*\nreject *6:*", 0, "end it with"),
        ("#" * 200_000, 0, "at most"),
        ("accept 1.1.1.1:80\n" * (MAX_RULES + 1), MAX_RULES - 1, "join"),
    ],
)
def test_mistakes_name_the_line_and_what_would_be_right(text: str, line: int, wanted: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    assert caught.value.line == line
    assert wanted in caught.value.hint
    assert (f"line {line}" in str(caught.value)) is bool(line)


def test_private_and_unreachable_rules() -> None:
    policy = parse_policy("reject private:*\naccept *:*\nreject *:80")
    assert policy.notes == ("exit policy, line 3: never reached, line 2 covers everything",)
    assert any(rule.network == 10 << 24 for rule in policy.rules)


ADDRESSES = st.sampled_from(["1.2.3.4", "1.2.3.200", "9.9.9.9", "2606:4700::1", "2a00::5"])
PATTERNS = st.sampled_from(
    ["*", "*4", "*6", "1.2.3.4", "1.2.3.0/24", "1.2.3.0/255.255.255.128", "[2606:4700::]/32", "[2a00::5]"]
)
PORTS = st.sampled_from(["*", "80", "443", "1-1023", "1024-65535"])
RULES = st.lists(
    st.tuples(st.sampled_from(["accept", "reject"]), PATTERNS, PORTS).map(lambda r: f"{r[0]} {r[1]}:{r[2]}")
)


@settings(max_examples=200)
@given(RULES, st.sampled_from(["accept *:*", "reject *:*"]), ADDRESSES, st.sampled_from([22, 80, 443, 8080]))
def test_verdicts_agree_with_stem(rules: list[str], last: str, address: str, port: int) -> None:
    text = [*rules, last]
    theirs = stem.exit_policy.ExitPolicy(*text).can_exit_to(address, port)
    assert (ask(table("\n".join(text)), address, port) is Verdict.ACCEPT) == theirs


@given(st.text(alphabet="acept rj6*:/[].-0123456789\n,#private", max_size=80) | st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_policy(text + "\nreject *:*")
    except PolicyError as error:
        assert error.hint
