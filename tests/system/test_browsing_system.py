"""Ordinary programs through the proxy and the namespace: pages, names, uploads, UDP, git, 1 to 4 hops."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from labkit import CLIENT, PROXY, SystemLab

from overlay.demo import names

pytestmark = pytest.mark.system

# Seconds on an idle machine for each; the full gigabyte of the acceptance run is asked for by the variable.
BIG_BYTES = int(os.environ.get("HOPFARE_TEST_BYTES", "60_000_000"))


def exit_addresses(lab: SystemLab) -> set[str]:
    return {address for node in lab.exits for address in _addresses(lab, node.host)}


def _addresses(lab: SystemLab, host: str) -> tuple[str, str]:
    found = lab.lab.hosts[host]
    return found.ipv4, found.ipv6


@pytest.mark.parametrize(
    "url",
    [
        "http://www.demo.test/ip",
        "http://v4only.demo.test/ip",
        "http://v6only.demo.test/ip",
        f"http://{names.WWW_V4}/ip",
        f"http://[{names.WWW_V6}]/ip",
        "https://www.demo.test/ip",
        "http://www.demo.test:8080/ip",
    ],
)
def test_a_page_comes_from_an_exit(lab: SystemLab, url: str) -> None:
    lab.client()
    page = lab.client_curl(url).check().text
    assert page in exit_addresses(lab)


def test_a_name_is_looked_up_by_the_exit_only(lab: SystemLab) -> None:
    lab.client()
    before = len(lab.queries())
    lab.client_curl("http://other.demo.test/ip").check()
    asked = [query for query in lab.queries()[before:] if query["name"] == "other.demo.test."]
    assert asked
    assert {query["from"] for query in asked} <= exit_addresses(lab)


UDP_ECHO = """
import socket, struct, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
control = socket.create_connection(("127.0.0.1", 1080), 30)
control.sendall(b"\\x05\\x01\\x00")
assert control.recv(2) == b"\\x05\\x00"
control.sendall(b"\\x05\\x03\\x00\\x01" + bytes(6))
reply = control.recv(64)
assert reply[1] == 0, reply
relay = (socket.inet_ntoa(reply[4:8]), struct.unpack(">H", reply[8:10])[0])
if relay[0] == "0.0.0.0":
    relay = ("127.0.0.1", relay[1])
name = host.encode()
head = b"\\0\\0\\0\\x03" + bytes([len(name)]) + name + struct.pack(">H", port)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
good = 0
for number in range(count):
    message = b"echo %d " % number + b"x" * (number * 60 % 1200)
    for _ in range(3):
        udp.sendto(head + message, relay)
        try:
            if udp.recv(65535).endswith(message):
                good += 1
                break
        except TimeoutError:
            pass
print(good)
"""


def test_udp_through_the_proxy(lab: SystemLab) -> None:
    lab.client()
    done = lab.run_in(CLIENT, [sys.executable, "-c", UDP_ECHO, "echo.demo.test", "7", "40"])
    assert done.check().text == "40"


def in_namespace(lab: SystemLab, *argv: str) -> str:
    node = lab.client()
    code = "from overlay.cli.main import main; main()"
    command = [sys.executable, "-c", code, "exec", "--config", str(node.config_path), "--", *argv]
    from overlay.demo.lab import python_environment

    return lab.run_in(CLIENT, command, env=python_environment(), timeout_s=90).check().text


@pytest.mark.skipif(shutil.which("dig") is None, reason="needs dig")
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig_asks_the_exit(lab: SystemLab, transport: str) -> None:
    answer = in_namespace(lab, "dig", "+short", "+tries=3", transport, "www.demo.test", "A")
    assert answer == names.WWW_V4
    answer = in_namespace(lab, "dig", "+short", "+tries=3", transport, "v6only.demo.test", "AAAA")
    assert answer == names.WWW_V6


def test_a_whole_program_goes_through(lab: SystemLab) -> None:
    page = in_namespace(lab, "curl", "-sS", "--max-time", "30", "http://www.demo.test/ip")
    assert page in exit_addresses(lab)
    page = in_namespace(lab, "curl", "-sS", "--max-time", "30", "http://v6only.demo.test/ip")
    assert page in exit_addresses(lab)


def test_http_connect_on_the_same_port(lab: SystemLab) -> None:
    lab.client()
    command = ["curl", "-sS", "--max-time", "30", "-p", "-x", f"http://{PROXY}", "http://www.demo.test/ip"]
    assert lab.run_in(CLIENT, command).check().text in exit_addresses(lab)


def test_a_user_name_chooses_a_circuit_of_its_own(lab: SystemLab) -> None:
    lab.client()
    lab.client_curl("http://www.demo.test/ip", user="ann:x").check()
    before = {circuit["id"]: circuit["packets_down"] for circuit in lab.circuits() if circuit["isolated"]}
    lab.client_curl("http://www.demo.test/small", user="ann:x").check()
    grown = {
        circuit["id"] for circuit in lab.circuits() if circuit["packets_down"] > before.get(circuit["id"], 0)
    }
    assert grown & set(before)
    lab.client_curl("http://www.demo.test/ip", user="bob:x").check()
    assert len([circuit for circuit in lab.circuits() if circuit["isolated"]]) >= 2


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://nothing.demo.test/", 97),
        ("http://www.demo.test:81/", 97),
        ("http://loopback.evil.test/", 97),
        ("http://private.evil.test/", 97),
        ("http://metadata.evil.test/", 97),
        ("http://mapped.evil.test/", 97),
        ("http://inner.evil.test/", 97),
        ("http://127.0.0.1/", 97),
        ("http://10.1.0.1:4433/", 97),
        ("http://[::ffff:10.1.0.1]/", 97),
    ],
)
def test_what_cannot_be_reached_is_refused(lab: SystemLab, url: str, code: int) -> None:
    lab.client()
    done = lab.client_curl(url, timeout_s=60)
    assert done.returncode == code, done.stderr


def test_a_redirect_to_a_denied_address_goes_nowhere(lab: SystemLab) -> None:
    lab.client()
    done = lab.client_curl("-L", "http://www.demo.test/redirect?to=http://169.254.169.254/", timeout_s=60)
    assert done.returncode == 97


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_in_chromium(lab: SystemLab, tmp_path: Path) -> None:
    lab.client()
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += [f"--proxy-server=socks5://{PROXY}", "--dump-dom", "http://www.demo.test/"]
    page = lab.run_in(CLIENT, command, timeout_s=120).check().text
    assert "You came here through three relays" in page
    assert any(address in page for address in exit_addresses(lab))
