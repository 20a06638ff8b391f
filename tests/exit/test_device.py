"""Whole-device mode's tables, rules and routes as text, and who is logged in."""

import ipaddress

import pytest

from exit import device
from exit.errors import EnvError
from exit.io.device import _key_of_rule, left_locked, list_ssh_peers
from exit.io.journal import Entry, Journal

LAN = (ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("fd00:1::/64"))
ADMITTED = device.Admitted((("198.51.100.7", 4433), ("2001:db8::7", 4433)), (("203.0.113.9", 443),))


def test_what_is_not_listed_is_dropped_last() -> None:
    lines = [line.strip() for line in device.render_lock(LAN, ADMITTED).splitlines()]
    start = lines.index("chain leave {")
    chain = lines[start + 1 : lines.index("}", start)]
    assert chain[0] == "type filter hook postrouting priority 200; policy drop;"
    assert chain[-1] == "counter drop"
    # Names go to no server of the local network, so before what is excepted.
    names = next(at for at, line in enumerate(chain) if "th dport { 53, 853 }" in line)
    assert names < chain.index("ip daddr @direct4 accept")


def test_a_table_is_replaced_at_once() -> None:
    text = device.render_lock((), device.Admitted())
    assert text.startswith(f"table inet {device.TABLE}\ndelete table inet {device.TABLE}\ntable inet")
    assert "elements" not in text


def test_only_what_is_admitted_is_reachable_for_the_client() -> None:
    text = device.render_admitted(ADMITTED)
    assert "add element inet hopfare_device relays4 { 198.51.100.7 . 4433 }" in text
    assert "add element inet hopfare_device relays6 { 2001:db8::7 . 4433 }" in text
    assert "add element inet hopfare_device chain4 { 203.0.113.9 . 443 }" in text
    assert text.count("flush set") == 4


def test_rules_leave_marked_packets_their_own_way() -> None:
    rules = device.list_rules(LAN, has_ipv6=True)
    assert "-4 priority 1180 to 192.168.1.0/24 table main" in rules
    assert "-6 priority 1180 to fd00:1::/64 table main" in rules
    assert rules[-1] == f"-6 priority 1189 not fwmark {device.MARK:#x} table 26735"
    assert not [rule for rule in device.list_rules(LAN, has_ipv6=False) if rule.startswith("-6")]
    assert len({_key_of_rule(rule) for rule in rules}) == len(rules)


def test_routes_refuse_when_the_device_is_gone() -> None:
    routes = device.list_routes(has_ipv6=True)
    for family in ("-4", "-6"):
        own = [route for route in routes if route.startswith(family)]
        assert [("unreachable" in route) for route in own] == [False, True]
    assert len(device.list_routes(has_ipv6=False)) == 2


def test_flows_keep_their_address_and_new_ones_get_the_next() -> None:
    assert device.render_source(4, "-", "100.64.1.2").splitlines() == [
        "add element inet hopfare_gateway source4 { 0 : 100.64.1.2 }",
        "add element inet hopfare_gateway alive4 { 100.64.1.2 }",
    ]
    change = device.render_source(6, "fd68:6f70:6661::2", "fd68:6f70:6661::3")
    assert "delete element inet hopfare_gateway source6 { 0 }" in change
    assert "alive6 { fd68:6f70:6661::2 }" not in change
    assert device.render_source(4, "100.64.1.2", "-") == "delete element inet hopfare_gateway source4 { 0 }\n"
    assert device.render_gone("100.64.1.2").splitlines()[-1] == (
        "delete element inet hopfare_gateway alive4 { 100.64.1.2 }"
    )


def test_a_name_that_is_none_gets_into_no_script() -> None:
    with pytest.raises(ValueError, match="must be 1 to 15"):
        device.render_gateway('tun" accept #')


def test_who_is_logged_in_over_ssh(tmp_path) -> None:
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(
        head
        + "   0: 0501A8C0:0016 0701A8C0:C350 01 x\n"  # 192.168.1.7, established
        + "   1: 0501A8C0:0016 0801A8C0:C350 06 x\n"  # time-wait
        + "   2: 0501A8C0:C350 0901A8C0:0016 01 x\n"  # this machine's own, to another's sshd
        + "   3: 0100007F:0016 0100007F:C350 01 x\n"
    )
    (tmp_path / "tcp6").write_text(
        head
        + "   0: 0000000000000000FFFF00000501A8C0:0016 0000000000000000FFFF00000A01A8C0:C350 01 x\n"
        + "   1: B80D0120000000000000000001000000:0016 B80D0120000000000000000007000000:C351 01 x\n"
    )
    assert list_ssh_peers(tmp_path) == {"192.168.1.7", "192.168.1.10", "2001:db8::7"}
    assert list_ssh_peers(tmp_path / "nothing") == set()


def test_a_journal_tells_whether_the_machine_was_left_locked(tmp_path) -> None:
    assert not left_locked(tmp_path)
    journal = Journal.open(tmp_path, "client")
    journal.add(Entry("table", device.TABLE))
    with pytest.raises(EnvError, match="another client is running"):
        left_locked(tmp_path)
    journal.close()
    assert left_locked(tmp_path)
