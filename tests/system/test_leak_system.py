"""Nothing of a customer's machine goes anywhere but to its guard: at work, after kill -9, without relays."""

import shutil
import sys
from pathlib import Path

import pytest
from labkit import CLIENT, PROXY, SystemLab, wait_until
from leaks_watch import ELSEWHERE, GUARD, guarded, only_to_the_guard
from watching import (
    IP_PAGE,
    VISITOR,
    addresses,
    exec_argv,
    exit_addresses,
    in_namespace,
    total_down,
    visit,
)
from wire import strangers

from overlay.demo import names
from overlay.demo.box import Process
from overlay.demo.fleet import PORT, Node
from overlay.demo.lab import python_environment

pytestmark = pytest.mark.system

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def hammer(lab: SystemLab, folder: Path) -> Process:
    """A program inside that tries to get out all the time, in every way, until the file `stop` is there."""
    argv = [sys.executable, str(VISITOR), "hammer", str(folder / "stop"), *ELSEWHERE]
    lab.lab.log_path("hammer").unlink(missing_ok=True)
    return lab.lab.spawn(CLIENT, list(exec_argv(lab, *argv)), log="hammer", env=python_environment())


def rounds(lab: SystemLab) -> int:
    return lab.lab.log_text("hammer").count("round")


def wait_rounds(lab: SystemLab, more: int = 10) -> None:
    wanted = rounds(lab) + more
    wait_until(lambda: rounds(lab) >= wanted, 60, "the program's next attempts")


def ended(lab: SystemLab, text: str) -> bool:
    listing = lab.run_in(CLIENT, ["ps", "-eo", "stat=,args="]).text
    return not any(text in line for line in listing.splitlines() if not line.startswith("Z"))


def test_the_watch_would_see_a_leak(lab: SystemLab) -> None:
    with lab.capture_all(CLIENT, segmented=False) as captures:
        lab.run_in(CLIENT, ["curl", "-sS", "--noproxy", "*", "-m", "1", f"http://{names.WWW_V4}/"])
    found = strangers(captures[CLIENT].packets(), addresses(lab, CLIENT), addresses(lab, GUARD), PORT)
    assert any(f"> {names.WWW_V4}" in text for text in found)


def test_whatever_programs_do_goes_to_the_guard(lab: SystemLab, tmp_path: Path) -> None:
    lab.stop_client()
    with only_to_the_guard(lab, least=100):
        lab.client(guarded(lab))
        program = hammer(lab, tmp_path)
        for url in (IP_PAGE, "http://v6only.demo.test/ip", f"http://[{names.WWW_V6}]/ip"):
            assert lab.client_curl(url).check().text in exit_addresses(lab)
        assert lab.client_curl("http://nothing.demo.test/", timeout_s=60).returncode == 97
        assert lab.client_curl("http://10.2.0.1:4433/", timeout_s=60).returncode == 97
        assert visit(lab, "resolve", "www.demo.test")["reply"] == 0
        assert visit(lab, "resolve", names.WWW_V6, "--reverse")["reply"] == 0
        assert visit(lab, "udp", names.ECHO_V6, "7", "10")["good"] == 10
        assert in_namespace(lab, "curl", "-sS", "-m", "60", IP_PAGE).returncode == 0
        in_namespace(
            lab, "sh", "-c", "dig +tries=1 +time=1 @203.0.113.53 www.demo.test; ping -c1 -W1 10.1.0.1"
        )
        wait_rounds(lab)
        (tmp_path / "stop").touch()
        assert program.wait(60) == 0
    lab.stop_client()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("inside", [False, True], ids=["through the proxy", "in the namespace"])
def test_a_browser_leaks_nothing(lab: SystemLab, tmp_path: Path, inside: bool) -> None:
    lab.client(guarded(lab))
    assert BROWSER is not None
    command = [BROWSER, *BROWSER_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    with only_to_the_guard(lab):
        if inside:
            done = in_namespace(lab, *command, "--dump-dom", "http://www.demo.test/", timeout_s=120)
        else:
            command += [f"--proxy-server=socks5://{PROXY}", "--dump-dom", "http://www.demo.test/"]
            done = lab.run_in(CLIENT, command, timeout_s=120)
    page = done.check().text
    assert "You came here through three relays" in page
    assert any(f'<b id="address">{address}</b>' in page for address in exit_addresses(lab))


def test_nothing_leaks_from_a_client_killed_while_it_starts(lab: SystemLab) -> None:
    lab.stop_client()
    stages = {
        "at once": lambda node: True,
        "helper": lambda node: not ended(lab, "namespace_helper"),
        "socket": lambda node: (node.state_dir / "control.sock").exists() or _answers(node),
        "building": lambda node: _answers(node) and (node.status()["guards"] or node.status()["ready"]),
        "ready": lambda node: _answers(node) and node.status()["ready"],
    }
    with only_to_the_guard(lab):
        for stage, reached in stages.items():
            node = lab.world.fleet.client(guarded(lab), wait=False)
            wait_until(lambda r=reached, n=node: r(n), 60, f"the stage '{stage}'", every_s=0.005)
            node.kill()
            assert lab.client_curl(IP_PAGE, timeout_s=5).returncode in (7, 97), stage
            wait_until(lambda: ended(lab, "namespace_helper"), 60, "the end of the helper")
    lab.stop_client()


def _answers(node: Node) -> bool:
    from overlay.errors import LocalControlError

    try:
        return bool(node.status())
    except LocalControlError:
        return False


@pytest.mark.parametrize("state", ["idle", "in mid-download"])
def test_nothing_leaks_from_a_killed_client_and_its_programs(
    lab: SystemLab, tmp_path: Path, state: str
) -> None:
    node = lab.client(guarded(lab))
    big = "http://www.demo.test/big/20000000000"
    with only_to_the_guard(lab, least=1):
        programs = [hammer(lab, tmp_path)]
        wait_rounds(lab, 3)
        if state == "in mid-download":
            curl = ["curl", "-sSv", "-o", "/dev/null", "-m", "100", big]
            for log in ("inside", "outside"):
                lab.lab.log_path(log).unlink(missing_ok=True)
            environment = python_environment()
            argv = list(exec_argv(lab, *curl))
            programs.append(lab.lab.spawn(CLIENT, argv, log="inside", env=environment))
            argv = [*curl, "-x", f"socks5h://{PROXY}"]
            programs.append(lab.lab.spawn(CLIENT, argv, log="outside"))
            for log in ("inside", "outside"):
                wait_until(lambda name=log: "200 OK" in lab.lab.log_text(name), 60, f"the answer {log}")
            begun = total_down(lab)
            wait_until(lambda: total_down(lab) > begun + 5000, 60, "the downloads")
        node.kill()
        assert lab.client_curl(IP_PAGE, timeout_s=5).returncode in (7, 97)
        # The program inside is still there, and still tries.
        wait_rounds(lab)
        if state == "in mid-download":
            assert programs[2].wait(60) in (18, 56), lab.lab.log_text("outside")
            if programs[1].running:
                programs[1].kill()
            assert programs[1].returncode != 0
        done = in_namespace(lab, "true")
        assert done.returncode == 125
        (tmp_path / "stop").touch()
        assert programs[0].wait(60) == 0
    lab.stop_client()


def test_without_relays_it_fails_closed_and_says_so(lab: SystemLab, tmp_path: Path) -> None:
    node = lab.client(guarded(lab))
    assert lab.client_curl(IP_PAGE).check().text in exit_addresses(lab)
    program = hammer(lab, tmp_path)
    wait_rounds(lab, 3)
    curl = ["curl", "-sS", "-m", "90", IP_PAGE]
    for log in ("socks", "http", "inside"):
        lab.lab.log_path(log).unlink(missing_ok=True)
    with only_to_the_guard(lab):
        for relay in lab.relays:
            relay.kill()
        wait_until(lambda: not node.status()["ready"], 60, "the client's notice")
        # All at once: each waits for a circuit as long as the client thinks worth it.
        tries = {
            "socks": lab.lab.spawn(CLIENT, [*curl, "-x", f"socks5h://{PROXY}"], log="socks"),
            "http": lab.lab.spawn(CLIENT, [*curl, "-p", "-x", f"http://{PROXY}"], log="http"),
            "inside": lab.lab.spawn(
                CLIENT,
                list(exec_argv(lab, *curl[:2], "-m", "2", IP_PAGE)),
                log="inside",
                env=python_environment(),
            ),
        }
        wait_until(
            lambda: any("guard" in problem for problem in node.status()["problems"]), 60, "word of the guard"
        )
        codes = {name: process.wait(120) for name, process in tries.items()}
        wait_rounds(lab)
        (tmp_path / "stop").touch()
        assert program.wait(60) == 0
    assert codes["socks"] == 97
    assert "SOCKS5" in lab.lab.log_text("socks")
    assert codes["http"] == 56
    assert "response 50" in lab.lab.log_text("http")
    assert codes["inside"] in (6, 7, 28)
    assert "no circuit yet: until there is one, nothing gets out" in lab.lab.log_text("inside")
    lab.stop_client()
