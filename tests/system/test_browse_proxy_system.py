"""What the proxy does besides pages: isolation, lookups both ways, datagrams, HTTP CONNECT, git."""

import os
import shutil
from pathlib import Path

import pytest
from labkit import CLIENT, PROXY, SystemLab, wait_until
from watching import circuit_in_use, exit_addresses, visit

from overlay.demo import names

pytestmark = pytest.mark.system


def test_users_have_circuits_of_their_own_and_keep_them(lab: SystemLab) -> None:
    lab.client()
    rows = {}
    for user in ("ann:x", "bob:x", "ann:y", None):
        rows[user] = circuit_in_use(lab, user)
    # Name and password choose together; each circuit has inner addresses of its own at its exit.
    assert len({row["id"] for row in rows.values()}) == 4
    assert len({row["inner_ipv4"] for row in rows.values()}) == 4
    assert len({row["inner_ipv6"] for row in rows.values()}) == 4
    assert [row["isolated"] for row in rows.values()] == [True, True, True, False]
    for user, row in rows.items():
        assert circuit_in_use(lab, user)["id"] == row["id"], user


@pytest.mark.parametrize(
    ("name", "reply", "text"),
    [
        ("www.demo.test", 0, {names.WWW_V4, names.WWW_V6}),
        ("v4only.demo.test", 0, {names.WWW_V4}),
        ("v6only.demo.test", 0, {names.WWW_V6}),
        ("alias.demo.test", 0, {names.WWW_V4, names.WWW_V6}),
        (names.ECHO_V4, 0, {names.ECHO_V4}),
        ("nothing.demo.test", 4, {"0.0.0.0"}),
        ("loopback.evil.test", 2, {"0.0.0.0"}),
    ],
)
def test_resolve(lab: SystemLab, name: str, reply: int, text: set[str]) -> None:
    lab.client()
    before = len(lab.queries())
    answer = visit(lab, "resolve", name)
    assert answer["reply"] == reply
    assert answer["text"] in text
    # Asked by exits, and by nobody else.
    assert {query["from"] for query in lab.queries()[before:]} <= exit_addresses(lab)


@pytest.mark.parametrize(
    ("address", "reply", "text"),
    [
        (names.WWW_V4, 0, "www.demo.test"),
        (names.WWW_V6, 0, "www.demo.test"),
        (names.ECHO_V4, 0, "echo.demo.test"),
        ("203.0.113.99", 4, "0.0.0.0"),
    ],
)
def test_resolve_ptr(lab: SystemLab, address: str, reply: int, text: str) -> None:
    lab.client()
    assert visit(lab, "resolve", address, "--reverse") == {"reply": reply, "text": text}


@pytest.mark.parametrize("host", ["echo.demo.test", names.ECHO_V4, names.ECHO_V6])
def test_datagrams_through_an_association(lab: SystemLab, host: str) -> None:
    lab.client()
    answer = visit(lab, "udp", host, "7", "40")
    assert answer["good"] == 40
    (sender,) = answer["from"]
    assert sender in {names.ECHO_V4, names.ECHO_V6}
    assert host in (sender, "echo.demo.test")
    wait_until(lambda: lab.client_node().status()["proxy"]["associations"] == 0, 60, "its end")


@pytest.mark.parametrize(
    "url", ["https://www.demo.test/ip", f"http://{names.WWW_V4}/ip", f"http://[{names.WWW_V6}]/ip"]
)
def test_http_connect(lab: SystemLab, url: str) -> None:
    lab.client()
    ca = str(lab.world.internet_folder / "ca.pem")
    command = ["curl", "-sS", "-m", "30", "--cacert", ca, "-p", "-x", f"http://{PROXY}", url]
    assert lab.run_in(CLIENT, command).check().text in exit_addresses(lab)
    refused = [*command[:-1], "http://www.demo.test:81/"]
    done = lab.run_in(CLIENT, [*refused, "-w", "%{http_connect}"])
    assert done.returncode != 0
    assert done.text.startswith("502")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_over_https(lab: SystemLab, tmp_path: Path) -> None:
    lab.client()
    environment = dict(os.environ, GIT_SSL_CAINFO=str(lab.world.internet_folder / "ca.pem"))
    command = ["git", "-c", f"http.proxy=socks5h://{PROXY}", "clone", "-q"]
    command += ["https://www.demo.test/git/demo.git", str(tmp_path / "clone")]
    lab.run_in(CLIENT, command, env=environment).check()
    assert (tmp_path / "clone" / "noise").stat().st_size == 200_000
