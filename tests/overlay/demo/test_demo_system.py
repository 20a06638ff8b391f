"""The demo as a person starts it: what it says, and that it leaves nothing behind however it ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.demo.box import wait_until
from overlay.demo.fetch import fetch
from overlay.demo.folder import PREFIX

pytestmark = pytest.mark.system

HOPFARE = [sys.executable, "-c", "from overlay.cli.main import main; main()"]
START_TIMEOUT_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


class Demo:
    """A running `hopfare demo`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.output = folder / "output"
        environment = dict(os.environ, TMPDIR=str(folder), HOPFARE_DEMO_INTERNET="off")
        command = [*HOPFARE, "demo", "--socks", f"127.0.0.1:{self.port}", "--relays", "4", *arguments]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        def seen() -> bool:
            assert self.process.poll() is None or text in self.said(), self.said()
            return text in self.said()

        wait_until(seen, START_TIMEOUT_S, f"`{text}` in what the demo says")

    def end(self, number: int) -> int:
        # To the whole group, as a terminal's Ctrl-C goes.
        os.killpg(self.process.pid, number)
        return self.process.wait(60)

    def leftovers(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name.startswith(PREFIX)]

    def processes(self) -> list[int]:
        """Processes whose arguments name this demo's folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short: control sockets are in it.
    with tempfile.TemporaryDirectory(prefix="hf-") as path:
        yield Path(path)


def test_once_shows_the_path_and_what_each_hop_saw(folder: Path) -> None:
    before = rules(), devices()
    demo = Demo(folder, "--once")
    assert demo.process.wait(START_TIMEOUT_S) == 0, demo.said()
    said, _, settled = demo.said().partition("settling")
    path = re.search(r"path   you -> (r\d) \(.*?\) -> (r\d) \(.*?\) -> (r\d) \(", said)
    assert path is not None, said
    guard, middle, leave = path.groups()
    saw = {
        line.split()[0]: line for line in said.splitlines() if re.match(r"  r\d +(guard|middle|exit)", line)
    }
    assert "you" in saw[guard] and middle in saw[guard] and leave not in saw[guard]
    assert "you" not in saw[middle] and guard in saw[middle] and leave in saw[middle]
    assert "you" not in saw[leave] and middle in saw[leave] and guard not in saw[leave]
    assert re.search(r"time to first byte +[\d.]+ ms", said)
    assert re.search(r"speed +[\d.]+ MB/s", said)
    rows = [line.split() for line in settled.splitlines() if re.match(r"  r\d +\w+ +\d+ +\d+", line)]
    busy = [row for row in rows if int(row[2]) > 30_000]  # 50 MB through three of them
    assert len(busy) >= 3, settled
    for _, _, _, tickets, earned, _, kept, claimed, gas in busy:
        assert int(tickets) > 100, settled
        assert 0 < float(kept) <= float(earned), settled
        assert 0 < float(claimed) <= float(earned) and float(gas) > 0, settled
    assert re.search(r"before +10000 +equal, to the wei", settled)
    assert demo.leftovers() == []
    assert (rules(), devices()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_told_to_end(folder: Path, number: int) -> None:
    before = rules(), devices()
    demo = Demo(folder, "--no-money")
    demo.wait_for("Ctrl-C ends the demo")
    page = fetch(("127.0.0.1", demo.port), "www.demo.test", "/ip")
    assert page.status == 200
    assert f"--socks5-hostname 127.0.0.1:{demo.port}" in demo.said()
    demo.wait_for("4 relays up, the client is ready")
    assert demo.end(number) == 0, demo.said()
    assert "Traceback" not in demo.said()
    assert (demo.leftovers(), demo.processes()) == ([], [])
    assert (rules(), devices()) == before


@pytest.mark.parametrize("moment", ["making namespaces", "starting the client"])
def test_an_interrupted_start_leaves_nothing(folder: Path, moment: str) -> None:
    demo = Demo(folder, "--no-money")
    demo.wait_for(moment)
    assert demo.end(signal.SIGINT) == 130, demo.said()
    assert (demo.leftovers(), demo.processes()) == ([], [])
    assert "interrupted" in demo.said()


def test_kill_9_leaves_a_folder_that_the_next_start_removes(folder: Path) -> None:
    demo = Demo(folder)
    demo.wait_for("starting the client")
    demo.end(signal.SIGKILL)
    wait_until(lambda: demo.processes() == [], 60, "the end of all processes")
    left = demo.leftovers()
    assert len(left) == 1
    again = Demo(folder, "--once", "--no-money")
    assert again.process.wait(START_TIMEOUT_S) == 0, again.said()
    assert again.leftovers() == []


def test_a_taken_port_is_said_and_another_one_offered(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [*HOPFARE, "demo", "--socks", address], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert address in done.stderr
    assert re.search(r"--socks 127\.0\.0\.1:\d+", done.stderr)


WITHOUT_ROOT = """
set -e
# A TUN device as most distributions have it, in a mount namespace of the test's own.
mknod {folder}/tun c 10 200
chmod {mode} {folder}/tun
mount --bind {folder}/tun /dev/net/tun
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs {command}
"""


def run_without_root(folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    python = "/usr/bin/python3"
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = "from overlay.cli.main import main; main()"
    command = f"{python} -c '{code}' demo --once --relays 4 --socks 127.0.0.1:{free_port()}"
    root = Path(__file__).resolve().parents[3]
    folder.chmod(0o777)
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", WITHOUT_ROOT.format(folder=folder, mode=mode, command=command)],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{root}:{site}",
            "TMPDIR": str(folder),
            "HOME": str(folder),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )


def _system_python_fits() -> bool:
    probe = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    not Path("/usr/bin/python3").exists() or not _system_python_fits(),
    reason="needs a system Python of our version, which other users may run",
)
class TestWithoutRoot:
    def test_it_works_all_the_same(self, folder: Path) -> None:
        done = run_without_root(folder, "0666")
        assert done.returncode == 0, done.stderr
        assert "without root, in a user namespace" in done.stdout
        assert "checksum right" in done.stdout

    def test_without_a_tun_device_it_says_what_to_do(self, folder: Path) -> None:
        done = run_without_root(folder, "0600")
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("hopfare demo: you may not open /dev/net/tun")
        assert "sudo chmod 0666 /dev/net/tun" in done.stderr
