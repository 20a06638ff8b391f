"""Whole-device mode: everything goes through the circuits, nothing else leaves, also without a client."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from labkit import CLIENT, Completed, SystemLab, wait_until
from leaks_watch import ELSEWHERE, guarded, only_to_the_guard
from machines import assert_same, machine
from watching import HOPFARE, IP_PAGE, VISITOR, exit_addresses, hopfare

from overlay.demo import names
from overlay.demo.box import Process
from overlay.demo.fleet import Node
from overlay.demo.lab import python_environment

pytestmark = pytest.mark.system

ONCE = ("+tries=1", "+time=1")
WWW = f"http://{names.WWW_V4}/ip"


def settings(lab: SystemLab, **client: Any) -> dict[str, Any]:
    return {"client": {**guarded(lab)["client"], "whole_device": True, **client}}


def plain_curl(lab: SystemLab, *arguments: str, timeout_s: int = 30) -> Completed:
    """curl as any program of the machine would run it: no proxy, no namespace."""
    return lab.run_in(CLIENT, ["curl", "-sS", "--noproxy", "*", "-m", str(timeout_s), *arguments])


def arrives(lab: SystemLab, url: str = WWW) -> bool:
    return plain_curl(lab, url, timeout_s=10).text in exit_addresses(lab)


def dig(lab: SystemLab, *arguments: str) -> str:
    return lab.run_in(CLIENT, ["dig", "+short", "+tries=3", "+time=5", *arguments]).text.strip()


def start(lab: SystemLab, **client: Any) -> Node:
    node = lab.client(settings(lab, **client))
    wait_until(lambda: arrives(lab), 60, "a page")
    return node


def hammer(lab: SystemLab, folder: Path) -> Process:
    """A program that knows nothing of hopfare and tries everything, until the file `stop` is there."""
    lab.lab.log_path("device-hammer").unlink(missing_ok=True)
    argv = [sys.executable, str(VISITOR), "hammer", str(folder / "stop"), *ELSEWHERE]
    return lab.lab.spawn(CLIENT, argv, log="device-hammer", env=python_environment())


def wait_rounds(lab: SystemLab, more: int = 3) -> None:
    def rounds() -> int:
        return lab.lab.log_text("device-hammer").count("round")

    wanted = rounds() + more
    wait_until(lambda: rounds() >= wanted, 60, "the program's next attempts")


@contextmanager
def opened_again(lab: SystemLab) -> Iterator[None]:
    """The machine is as it was at the end, whatever happens in between."""
    lab.stop_client()
    before = machine(lab, CLIENT)
    try:
        yield
        lab.stop_client()
        assert_same(lab, CLIENT, before)
    finally:
        lab.stop_client()
        hopfare(lab, "stop")


@pytest.mark.skipif(shutil.which("dig") is None, reason="needs dig")
def test_everything_goes_through_circuits_and_nothing_else_leaves(lab: SystemLab, tmp_path: Path) -> None:
    with opened_again(lab), only_to_the_guard(lab, least=100):
        node = start(lab)
        program = hammer(lab, tmp_path)
        assert arrives(lab, f"http://[{names.WWW_V6}]/ip")
        # Whatever server is asked, the exit answers.
        for server in ("198.51.100.53", names.DNS_V4, "10.200.0.254", "2001:db8:53::1"):
            assert dig(lab, f"@{server}", "www.demo.test", "A") == names.WWW_V4, server
        assert dig(lab, "+tcp", "@198.51.100.53", "www.demo.test", "A") == names.WWW_V4
        script = [sys.executable, str(VISITOR), "--direct", "udp", names.ECHO_V4, "7", "20"]
        done = lab.run_in(CLIENT, script).check()
        assert json.loads(done.text.splitlines()[-1])["good"] == 20
        size = 20_000_000
        big = plain_curl(
            lab,
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            f"http://{names.WWW_V4}/big/{size}",
            timeout_s=60,
        )
        assert big.check().text == str(size)
        # The proxy and `hopfare exec` go on beside it.
        assert lab.client_curl(IP_PAGE).check().text in exit_addresses(lab)
        assert hopfare(lab, "exec", "--", "curl", "-sS", IP_PAGE).check().text in exit_addresses(lab)
        assert plain_curl(lab, "http://10.2.0.1:4433/").returncode != 0
        # Bound to the machine's own link, it does not get out either.
        assert plain_curl(lab, "--interface", own_link(lab), WWW, timeout_s=3).returncode != 0
        assert lab.run_in(CLIENT, ["ping", "-c1", "-W5", names.WWW_V4]).returncode == 0
        assert node.status()["whole_device"]["locked"]
        wait_rounds(lab)
        (tmp_path / "stop").touch()
        assert program.wait(60) == 0


def own_link(lab: SystemLab) -> str:
    """The name of the machine's only link."""
    rows = json.loads(lab.run_in(CLIENT, ["ip", "-j", "-4", "route", "show", "default"]).check().text)
    return str(rows[0]["dev"])


def test_nothing_leaves_without_a_circuit(lab: SystemLab, tmp_path: Path) -> None:
    with opened_again(lab), only_to_the_guard(lab):
        node = start(lab)
        for relay in lab.relays:
            relay.kill()
        wait_until(lambda: not node.status()["ready"], 60, "the client's notice")
        program = hammer(lab, tmp_path)
        assert plain_curl(lab, WWW, timeout_s=2).returncode in (7, 28)
        assert dig(lab, *ONCE, "@198.51.100.53", "www.demo.test").startswith(";;")
        wait_rounds(lab)
        (tmp_path / "stop").touch()
        assert program.wait(60) == 0


def test_a_killed_client_leaves_the_machine_locked_and_the_next_one_takes_it_over(
    lab: SystemLab, tmp_path: Path
) -> None:
    with opened_again(lab):
        node = start(lab)
        with only_to_the_guard(lab, least=1):
            program = hammer(lab, tmp_path)
            wait_rounds(lab)
            node.kill()
            wait_rounds(lab)
            assert plain_curl(lab, WWW, timeout_s=2).returncode in (7, 28)
            assert dig(lab, *ONCE, "@203.0.113.53", "www.demo.test").startswith(";;")
            # One that would not lock says so, and does not open the machine.
            done = hopfare(lab, "client", "--set", "client.whole_device=false")
            assert done.returncode == 2
            assert "left this machine locked" in done.stderr.decode()
            node.start()
            node.wait_ready()
            wait_until(lambda: arrives(lab), 60, "a page")
            node.kill()
            wait_rounds(lab)
            (tmp_path / "stop").touch()
            assert program.wait(60) == 0
        done = hopfare(lab, "stop").check()
        assert "is open again" in done.text
        assert hopfare(lab, "stop").returncode == 3
        # Without the lock the machine's own way works again.
        found = lab.run_in(CLIENT, ["ping", "-c1", "-W5", "10.200.0.254"])
        assert found.returncode == 0


def test_an_error_leaves_the_lock_and_exceptions_are_reached_directly(lab: SystemLab) -> None:
    gateway = "10.200.0.254"
    with opened_again(lab):
        node = start(lab, direct=[f"{gateway}/32"])
        assert lab.run_in(CLIENT, ["ping", "-c1", "-W5", gateway]).returncode == 0
        # An operator's own service may lose our rules; they come back, and nothing gets out meanwhile.
        lab.run_in(CLIENT, ["ip", "rule", "del", "priority", "1189"]).check()
        assert plain_curl(lab, WWW, timeout_s=2).returncode != 0
        wait_until(lambda: arrives(lab), 60, "the rule again")
        lab.run_in(CLIENT, ["kill", "-9", str(node.call("exec-info")["helper_pid"])]).check()
        wait_until(lambda: not node.running, 30, "the client's end")
        assert "machine_stays_locked" in node.log_text()
        assert plain_curl(lab, WWW, timeout_s=2).returncode != 0
        assert lab.run_in(CLIENT, ["ping", "-c1", "-W1", names.WWW_V4]).returncode != 0
        # Others' exceptions do not outlive them.
        node = start(lab)
        assert lab.run_in(CLIENT, ["ping", "-c1", "-W1", gateway]).returncode != 0


BEHIND = """
    ip link add lan0 type veth peer name eth0 netns $0
    ip addr add 192.168.77.1/24 dev lan0; ip link set lan0 up
    sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1
    nsenter -t $0 -n sh -c "ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up; ip link set lo up
    ip route add default via 192.168.77.1"
"""


def test_machines_behind_it_go_through_the_tunnel_too_and_strict_source_checks_do_no_harm(
    lab: SystemLab,
) -> None:
    lab.stop_client()
    other = lab.lab.spawn(CLIENT, ["unshare", "-n", "sleep", "600"], log="behind")
    inside = ["nsenter", "-t", str(other.inner_pid), "-n"]
    try:
        own = lab.run_in(CLIENT, ["readlink", "/proc/self/ns/net"]).text
        wait_until(
            lambda: lab.run_in(CLIENT, ["readlink", f"/proc/{other.inner_pid}/ns/net"]).text != own,
            20,
            "the other machine",
        )
        lab.run_in(CLIENT, ["sh", "-ec", BEHIND, str(other.inner_pid)]).check()
        with only_to_the_guard(lab):
            start(lab, direct=["192.168.77.0/24"])
            page = lab.run_in(CLIENT, [*inside, "curl", "-sS", "-m", "20", WWW]).check()
            assert page.text in exit_addresses(lab)
            asked = lab.run_in(CLIENT, [*inside, "dig", "+short", "@198.51.100.53", "www.demo.test", "A"])
            assert asked.text.strip() == names.WWW_V4
            lab.client_node().kill()
            assert lab.run_in(CLIENT, [*inside, "curl", "-sS", "-m", "2", WWW]).returncode != 0
            assert lab.run_in(CLIENT, [*inside, "ping", "-c1", "-W5", "192.168.77.1"]).returncode == 0
    finally:
        other.kill()
        lab.stop_client()
        hopfare(lab, "stop")
        restore = "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=0; ip link del lan0"
        lab.run_in(CLIENT, ["sh", "-c", restore])


def test_what_is_missing_is_said(lab: SystemLab) -> None:
    lab.stop_client()
    before = machine(lab, CLIENT)
    node = lab.client_node()
    command = [*HOPFARE, "client", "--config", str(node.config_path), "--whole-device"]
    drop = ["capsh", "--drop=cap_net_admin", "--", "-c", 'exec "$0" "$@"']
    if shutil.which("capsh") is None:
        drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = lab.run_in(CLIENT, [*drop, *command], env=python_environment())
    assert done.returncode == 6, done.stderr.decode()
    assert "CAP_NET_ADMIN is missing" in done.stderr.decode()
    assert_same(lab, CLIENT, before)
