"""`hopfare exec`: programs that know nothing of proxies, what they see, and what they cannot reach."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from labkit import CLIENT, SystemLab, wait_until
from watching import (
    VISITOR,
    addresses,
    circuit_that_carries,
    exec_argv,
    exit_addresses,
    in_namespace,
)

from overlay.demo import names
from overlay.demo.lab import python_environment
from overlay.demo.web import checksum

pytestmark = pytest.mark.system


def visit_directly(lab: SystemLab, *arguments: str) -> object:
    done = in_namespace(lab, sys.executable, str(VISITOR), "--direct", *arguments)
    return json.loads(done.check().text.splitlines()[-1])


@pytest.mark.skipif(shutil.which("dig") is None, reason="needs dig")
def test_dig_gets_every_kind_of_answer_from_the_exit(lab: SystemLab) -> None:
    lab.client()
    before = len(lab.queries())
    # No server named: the program's own resolv.conf leads to the exit's DNS.
    script = """
        dig +short +tries=3 www.demo.test A
        dig +short +tries=3 v6only.demo.test AAAA
        dig +short +tries=3 -x 203.0.113.10
        dig +short +tries=3 mail.demo.test MX
        dig +tries=3 nothing.demo.test A | grep -o 'status: [A-Z]*'
        dig +short +tries=3 big.demo.test TXT | wc -l
        dig +tries=3 +short @fd68:6f70:6661::1 other.demo.test A
    """
    lines = in_namespace(lab, "sh", "-c", script).check().text.split("\n")
    assert lines[:5] == [
        names.WWW_V4,
        names.WWW_V6,
        "www.demo.test.",
        "10 www.demo.test.",
        "status: NXDOMAIN",
    ]
    assert lines[5] == "20"  # too long for UDP: dig came again over TCP
    assert lines[6] == names.OTHER_V4
    asked = lab.queries()[before:]
    assert {query["from"] for query in asked} <= exit_addresses(lab)


def test_datagrams_of_a_program(lab: SystemLab) -> None:
    lab.client()
    for host in ("echo.demo.test", names.ECHO_V4, names.ECHO_V6):
        answer = visit_directly(lab, "udp", host, "7", "20")
        assert answer["good"] == 20, host


def test_half_closed_and_long_connections_of_a_program(lab: SystemLab) -> None:
    lab.client()
    answer = visit_directly(lab, "half-close", "echo.demo.test", "7", "1000000")
    assert answer == {"bytes": 1_000_000, "same": True}
    size = 20_000_000

    def download() -> None:
        script = 'curl -sS -f -m 60 "$0" | sha256sum'
        done = in_namespace(lab, "sh", "-c", script, f"http://www.demo.test/big/{size}").check()
        assert done.text.split()[0] == checksum(size)

    row = circuit_that_carries(lab, download, least=size // 1384)
    assert not row["isolated"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_clone_by_a_program(lab: SystemLab, tmp_path: Path) -> None:
    lab.client()
    for host in ("www.demo.test", "v6only.demo.test"):
        target = tmp_path / host
        url = f"http://{host}/git/demo.git"
        in_namespace(lab, "git", "clone", "-q", url, str(target)).check()
        assert (target / "README").exists()


def test_a_program_sees_only_the_tunnel(lab: SystemLab) -> None:
    lab.client()
    links = in_namespace(lab, "ip", "-br", "link").check().text.splitlines()
    assert {line.split()[0].split("@")[0] for line in links} == {"lo", "hopfare0"}
    devices = in_namespace(lab, "ls", "/sys/class/net").check().text.split()
    assert set(devices) == {"lo", "hopfare0"}
    text = in_namespace(lab, "cat", "/etc/resolv.conf").check().text
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")]
    assert servers == ["100.64.0.1", "fd68:6f70:6661::1"]
    # Neither the machine's own addresses nor its proxy, nor relays, are there to be reached.
    targets = ["127.0.0.1:1080", "10.200.0.254:53", "10.200.0.1:1080", "10.1.0.1:4433", "169.254.169.254:80"]
    found = visit_directly(
        lab, "knock", "--patience", "20", *targets, "203.0.113.10:80", "[2001:db8:1::10]:80"
    )
    assert [target for target, end in found.items() if end == "connected"] == [
        "203.0.113.10:80",
        "[2001:db8:1::10]:80",
    ]


def test_status_arguments_and_folder_are_the_programs_own(lab: SystemLab, tmp_path: Path) -> None:
    lab.client()
    assert in_namespace(lab, "sh", "-c", "exit 7").returncode == 7
    assert in_namespace(lab, "sh", "-c", "kill -9 $$").returncode == -9
    assert in_namespace(lab, "printf", "%s|", "--json", "a b", "").stdout == b"--json|a b||"
    argv = list(exec_argv(lab, "sh", "-c", "cat > here; id -u"))
    done = lab.lab.run(CLIENT, argv, stdin=b"from outside", cwd=tmp_path, env=python_environment())
    assert done.check().text == str(os.getuid())
    assert (tmp_path / "here").read_bytes() == b"from outside"
    done = in_namespace(lab, "no-such-program")
    assert done.returncode == 127
    assert done.stderr == b"hopfare: no-such-program: there is no such program\n"
    assert in_namespace(lab, "/etc/passwd").returncode == 126


def test_root_in_the_namespace_has_no_way_out(lab: SystemLab) -> None:
    lab.client()
    script = """
        ip link add up0 type dummy && echo added a device
        ip link set hopfare0 down && echo took the device down
        ip route replace default dev lo && echo changed the routes
        nsenter --net=/proc/1/ns/net true && echo entered another namespace
        unshare --net true && echo made a namespace
        mount -t tmpfs none /mnt && echo mounted
        umount /etc/resolv.conf && echo unmounted
        sysctl -qw net.ipv4.ip_forward=1 && echo set a switch
        true
    """
    done = in_namespace(lab, "sh", "-c", script).check()
    assert done.text == ""
    assert lab.client_curl("http://www.demo.test/ip").check().text in exit_addresses(lab)


def test_a_program_outlives_its_circuit(lab: SystemLab, tmp_path: Path) -> None:
    """New connections of a program go over the next circuit when its first one's exit dies."""
    lab.client()
    leave = in_namespace(lab, "curl", "-sS", "http://www.demo.test/ip").check().text
    (dying,) = [node for node in lab.exits if leave in addresses(lab, node.host)]
    script = f"""
        until [ -e {tmp_path}/go ]; do sleep 0.05; done
        until curl -sS -m 3 http://www.demo.test/ip; do sleep 0.1; done
    """
    program = lab.lab.spawn(
        CLIENT, list(exec_argv(lab, "sh", "-c", script)), log="outlives", env=python_environment()
    )
    wait_until(lambda: "sh -c" in lab.run_in(CLIENT, ["ps", "-eo", "args="]).text, 60, "the program")
    lab.kill(dying)
    (tmp_path / "go").touch()
    assert program.wait(90) == 0
    last = lab.lab.log_text("outlives").strip().splitlines()[-1]
    assert last in exit_addresses(lab) - addresses(lab, dying.host)
