"""Joining the lab to a machine's internet: on a make-believe machine in a namespace, so nothing gets out."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.demo.box import Box, Process, wait_until
from overlay.demo.folder import LabFolder
from overlay.demo.lab import python_environment

pytestmark = pytest.mark.system

MACHINE, OUTSIDE = "machine", "outside"
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("0.0.0.0", 80), Handler).serve_forever()
"""
OWNER = """
import json, sys, time
from pathlib import Path
from overlay.demo import uplink
from overlay.demo.lab import Lab
with Lab(1, parent=Path(sys.argv[1])) as lab:
    print(uplink.join_as_root(lab, None), flush=True)
    for address in ("198.51.100.80", "10.99.0.1", "198.51.100.2"):
        most = "20" if address == "198.51.100.80" else "1"
        done = lab.run("r1", ["curl", "-sS", "--max-time", most, f"http://{address}/"])
        print(json.dumps([address, done.returncode, done.text]), flush=True)
    if sys.argv[2] == "stay":
        time.sleep(1000)
    uplink.leave_as_root(lab)
"""


class Machine:
    """A namespace with a default route into another one, in which a web server stands for the internet."""

    def __init__(self, box: Box, folder: Path) -> None:
        self.box = box
        self.folder = folder
        box.network(MACHINE)
        peer = box.network(OUTSIDE)
        self.run("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan0", "netns", peer)
        for address in ("198.51.100.2/24", "10.99.0.1/24"):
            self.run("ip", "addr", "add", address, "dev", "wan0")
        for device in ("lo", "wan0"):
            self.run("ip", "link", "set", device, "up")
            self.run("ip", "link", "set", device, "up", network=OUTSIDE)
        for address in ("198.51.100.1/24", "198.51.100.80/24"):
            self.run("ip", "addr", "add", address, "dev", "wan0", network=OUTSIDE)
        self.run("ip", "route", "add", "default", "via", "198.51.100.1")
        self.server = box.spawn([sys.executable, "-c", SERVER], network=OUTSIDE)
        self.here = box.spawn([sys.executable, "-m", "http.server", "80"], network=MACHINE, cwd=folder)
        for address in ("198.51.100.80", "10.99.0.1"):
            wait_until(lambda url=f"http://{address}/": self.serves(url), 30, f"the server at {address}")

    def run(self, *argv: str, network: str = MACHINE) -> str:
        return self.box.run(argv, network=network).check().text

    def serves(self, url: str) -> bool:
        return self.box.run(["curl", "-s", "--max-time", "5", url], network=MACHINE).returncode == 0

    def start(self, then: str) -> tuple[Process, Path]:
        output = self.folder / f"output-{then}"
        with output.open("wb") as file:
            argv = [sys.executable, "-c", OWNER, str(self.folder), then]
            fds = {1: file.fileno(), 2: file.fileno()}
            return self.box.spawn(argv, network=MACHINE, env=python_environment(), fds=fds), output

    def state(self) -> tuple[str, str, str]:
        forwarding = self.run("cat", "/proc/sys/net/ipv4/conf/wan0/forwarding")
        return self.run("nft", "list", "ruleset"), forwarding, self.run("ip", "-br", "link")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with LabFolder(parent=tmp_path) as folder, Box(folder.path) as box:
        yield Machine(box, tmp_path)


def answers(output: Path) -> dict[str, tuple[int, str]]:
    lines = output.read_text().splitlines()
    assert lines[0].startswith("joined to the internet through wan0"), lines
    return {address: (code, text) for address, code, text in map(json.loads, lines[1:])}


def test_relays_reach_the_internet_and_nothing_near(machine: Machine) -> None:
    before = machine.state()
    process, output = machine.start("end")
    assert process.wait(60) == 0, output.read_text()
    got = answers(output)
    assert got["198.51.100.80"] == (0, "198.51.100.2")
    assert got["10.99.0.1"][0] != 0, "a private address of the machine"
    assert got["198.51.100.2"][0] != 0, "the machine itself"
    assert machine.state() == before


def test_what_a_killed_lab_has_changed_is_undone_by_the_next(machine: Machine) -> None:
    before = machine.state()
    process, output = machine.start("stay")
    wait_until(lambda: len(output.read_text().splitlines()) == 4, 60, "the answers")
    assert "hopfare_lab_" in machine.state()[0]
    process.kill()
    # The kernel takes the device away with the namespace, in its own time; the rest waits for the next lab.
    wait_until(lambda: machine.state()[2] == before[2], 20, "the end of the device")
    assert "hopfare_lab_" in machine.state()[0]
    process, output = machine.start("end")
    assert process.wait(60) == 0, output.read_text()
    assert machine.state() == before
