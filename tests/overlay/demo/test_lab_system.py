"""The lab on this kernel: what is reachable, what a link can be made to do, and that nothing is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.demo.box import LabError, wait_until
from overlay.demo.lab import CLIENT, HUB, INTERNET, Lab
from overlay.demo.links import Links
from overlay.demo.shaping import Conditions

pytestmark = pytest.mark.system


@pytest.fixture(params=["root", "rootless"], scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(3, rootless=request.param == "rootless", parent=tmp_path_factory.mktemp("labs")) as opened:
        yield opened


def answers(lab: Lab, host: str, address: str, count: int = 1, patience_s: int = 20) -> int:
    """How many of `count` echo requests were answered; the last one's answer may take `patience_s`."""
    command = ["ping", "-q", "-c", str(count), "-i", "0.005", "-W", str(patience_s), address]
    for line in lab.run(host, command).text.splitlines():
        if "received" in line:
            return int(line.split(",")[1].split()[0])
    return 0


def running_in(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_relays_reach_one_another_and_the_internet(lab: Lab) -> None:
    for address in ("10.2.0.1", "fd00:2::1", "203.0.113.10", "2001:db8:1::53"):
        assert answers(lab, "r1", address) == 1, address


def test_the_client_reaches_relays_only(lab: Lab) -> None:
    for address in ("10.1.0.1", "10.3.0.1", "fd00:3::1"):
        assert answers(lab, CLIENT, address) == 1, address
    for address in ("203.0.113.10", "2001:db8:1::10"):
        assert answers(lab, CLIENT, address, patience_s=1) == 0, address


def test_relays_are_in_different_networks(lab: Lab) -> None:
    assert len({host.ipv4.rsplit(".", 2)[0] for host in lab.relays}) == len(lab.relays)
    assert len({host.ipv6.split("::")[0] for host in lab.relays}) == len(lab.relays)


def test_the_machine_itself_is_not_in_the_lab(lab: Lab) -> None:
    inside = lab.run("r1", ["ip", "-br", "link"]).text
    assert {line.split()[0].split("@")[0] for line in inside.splitlines()} == {"lo", "eth0"}
    outside = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert not any(line.startswith(("r1", CLIENT, INTERNET)) for line in outside.splitlines())


def test_a_program_gets_its_namespace_s_resolver(lab: Lab) -> None:
    assert "203.0.113.53" in lab.run("r1", ["cat", "/etc/resolv.conf"]).text
    assert "nameserver" not in lab.run(CLIENT, ["cat", "/etc/resolv.conf"]).text


def test_results_of_programs(lab: Lab) -> None:
    done = lab.run("r1", ["sh", "-c", "cat; echo bad >&2; exit 3"], stdin=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"bad\n")
    with pytest.raises(LabError, match="bad"):
        done.check()
    assert lab.run("r1", ["no-such-program"]).returncode == 127
    with pytest.raises(LabError, match="longer than"):
        lab.run("r1", ["sleep", "60"], timeout_s=0.1)
    with pytest.raises(LabError, match="no host 'r99'"):
        lab.run("r99", ["true"])


def test_processes_are_watched_and_ended(lab: Lab) -> None:
    process = lab.spawn("r1", ["sh", "-c", "echo hello; exec sleep 1000"], log="sleeper")
    wait_until(lambda: "hello" in lab.log_text("sleeper"), 60, "the greeting")
    assert process.running
    assert running_in(process.pid)
    assert process.stop() == -signal.SIGTERM
    assert process.poll() == -signal.SIGTERM
    assert not process.send_signal(signal.SIGKILL)
    wait_until(lambda: not running_in(process.pid), 60, "the end of the process")


def test_no_descriptor_leaks_into_programs(lab: Lab) -> None:
    script = "for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n; done"
    assert lab.run("r1", ["sh", "-c", script]).text.split() == ["0", "1", "2"]


def test_random_loss_is_per_packet_and_can_be_taken_back(lab: Lab) -> None:
    links = Links(lab)
    links.lose("r2", 50)
    assert 5 < answers(lab, "r1", "10.2.0.1", 100, 1) < 50  # a quarter comes back; far beyond any chance
    assert links.lost("r2") > 20
    links.lose("r2", 0)
    assert answers(lab, "r1", "10.2.0.1", 20) == 20


def test_shaped_links_delay_and_lose_with_a_seed(lab: Lab) -> None:
    links = Links(lab)
    links.shape("r3", Conditions(delay_ms=30), seed=4)
    begun = time.monotonic()
    assert answers(lab, "r1", "10.3.0.1") == 1
    assert answers(lab, "r1", "fd00:3::1") == 1
    assert time.monotonic() - begun > 0.12
    links.shape("r3", Conditions(loss=1.0), Conditions(), seed=4)
    assert answers(lab, "r1", "10.3.0.1", patience_s=1) == 0
    counters = links.unshape("r3")
    assert counters["to_host"][1] >= 1
    assert answers(lab, "r1", "10.3.0.1", 5) == 5
    assert answers(lab, "r1", "fd00:3::1", 5) == 5


def test_a_cut_link_can_be_mended(lab: Lab) -> None:
    links = Links(lab)
    links.cut("r2")
    assert answers(lab, "r1", "10.2.0.1", patience_s=1) == 0
    links.mend("r2")
    assert answers(lab, "r1", "10.2.0.1") == 1
    assert answers(lab, "r1", "fd00:2::1") == 1


SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT, linux/udp.h
s.sendto(b"x" * 8000, ("10.2.0.1", 9))
"""


@pytest.mark.parametrize("segmented", [False, True])
def test_captures_show_super_packets_whole_or_cut(lab: Lab, segmented: bool) -> None:
    links = Links(lab)
    links.segment("r2", on=segmented)
    with links.capture("r2") as capture:
        lab.run("r1", [sys.executable, "-c", SEND]).check()
    sizes = [len(p.ip) for p in capture.packets() if p.ip[9] == 17]
    assert sizes == ([1028] * 8 if segmented else [8028])
    assert capture.missed == 0
    links.segment("r2", on=False)


def test_an_unknown_device_is_an_error(lab: Lab) -> None:
    with pytest.raises(LabError, match="No such device"):
        Links(lab).capture(HUB, device="nothing")


def test_an_exception_closes_the_lab(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(RuntimeError), Lab(1, parent=tmp_path) as lab:
        pid = lab.spawn("r1", ["sleep", "1000"], log="sleeper").pid
        raise RuntimeError
    assert not running_in(pid)
    assert list(tmp_path.iterdir()) == []


OWNER = """
import sys, time
from pathlib import Path
from overlay.demo.lab import Lab
with Lab(1, rootless={rootless}, parent=Path({parent!r})) as lab:
    # A daemon that has left its parent's session, as a program in the lab might.
    lab.spawn("r1", ["setsid", "sleep", "1000"], log="sleeper")
    lab.spawn("r1", ["sh", "-c", "sleep 1000 & sleep 1000"], log="shell")
    print(lab.box.keeper_pid, flush=True)
    time.sleep(1000)
"""


def descendants(pid: int) -> set[int]:
    found = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


@pytest.mark.parametrize("rootless", [False, True])
def test_nothing_is_left_after_kill_9(tmp_path: Path, rootless: bool) -> None:
    script = OWNER.format(parent=str(tmp_path), rootless=rootless)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    keeper = int(owner.stdout.readline())
    wait_until(lambda: len(descendants(keeper)) >= 5, 60, "the programs in the lab")
    everything = {keeper} | descendants(keeper)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not any(map(running_in, everything)), 60, "the end of every process")
    # All that is left is a folder, which the next lab removes.
    assert len(list(tmp_path.iterdir())) == 1
    with Lab(0, parent=tmp_path) as lab:
        assert list(tmp_path.iterdir()) == [lab.path]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_a_killed_keeper_takes_everything_along(tmp_path: Path, victim: str) -> None:
    with Lab(1, parent=tmp_path) as lab:
        process = lab.spawn("r1", ["sleep", "1000"], log="sleeper")
        keeper = lab.box.keeper_pid
        os.kill(keeper if victim == "outer" else min(descendants(keeper)), signal.SIGKILL)
        assert process.wait(60) is not None
        with pytest.raises(LabError, match="gone"):
            lab.run("r1", ["true"])
        wait_until(lambda: not running_in(process.pid), 60, "the end of the process")
