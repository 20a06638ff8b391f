"""The link emulator: what it loses, keeps back and queues. Needs rustc, as building it does."""

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

_BENCH = Path(__file__).resolve().parents[2] / "bench"
_spec = importlib.util.spec_from_file_location("bench_emulate", _BENCH / "emulate.py")
assert _spec is not None and _spec.loader is not None
emulate = importlib.util.module_from_spec(_spec)
sys.modules["bench_emulate"] = emulate
_spec.loader.exec_module(emulate)

pytestmark = pytest.mark.skipif(emulate.rustc() is None, reason="no rustc")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulate.build(tmp_path_factory.mktemp("emulate"))


@pytest.fixture
def far():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30)
        yield sock


def link(program: Path, monkeypatch: pytest.MonkeyPatch, far: socket.socket, **options: float):
    monkeypatch.setattr(emulate, "build", lambda: program)
    return emulate.Emulator("127.0.0.1:0", f"127.0.0.1:{far.getsockname()[1]}", **options)


def address(emulator) -> tuple[str, int]:
    host, port = emulator.address.rsplit(":", 1)
    return host, int(port)


def test_its_own_tests_pass(tmp_path: Path) -> None:
    program = tmp_path / "tests"
    source = [emulate.rustc(), "--test", "--edition", "2024", "-o", str(program), str(_BENCH / "emulate.rs")]
    subprocess.run(source, check=True, timeout=120)
    subprocess.run([str(program)], check=True, timeout=60, capture_output=True)


def test_datagrams_go_there_and_back_to_their_sender(program, monkeypatch, far) -> None:
    with link(program, monkeypatch, far) as emulator, socket.socket(type=socket.SOCK_DGRAM) as near:
        near.settimeout(30)
        near.sendto(b"ping", address(emulator))
        data, sender = far.recvfrom(100)
        far.sendto(data + b"pong", sender)
        assert near.recv(100) == b"pingpong"
        assert emulator.stats()["there"]["passed"] == 1


def test_a_seed_loses_the_same_ones_and_all_are_accounted_for(program, monkeypatch, far) -> None:
    def run() -> list[bytes]:
        with (
            link(program, monkeypatch, far, seed=3, loss=0.5) as emulator,
            socket.socket(type=socket.SOCK_DGRAM) as near,
        ):
            for number in range(40):
                near.sendto(bytes([number]), address(emulator))
            deadline = time.monotonic() + 30
            stats = emulator.stats()["there"]
            while stats["lost"] + stats["passed"] < 40:
                assert time.monotonic() < deadline
                stats = emulator.stats()["there"]
            return [far.recv(10) for _ in range(stats["passed"])]

    first = run()
    assert 5 < len(first) < 36
    assert run() == first


def test_a_queue_that_is_full_drops(program, monkeypatch, far) -> None:
    # 1000 bytes a second, with room for what takes 2 s: three of 972 bytes, then none.
    slow = {"rate_mbit": 0.008, "queue_ms": 2000}
    with link(program, monkeypatch, far, **slow) as emulator, socket.socket(type=socket.SOCK_DGRAM) as near:
        for _ in range(20):
            near.sendto(bytes(972), address(emulator))
        assert len(far.recv(2000)) == 972
        assert emulator.stats()["there"]["queue_full"] > 0


def test_nonsense_is_told(program, monkeypatch, far) -> None:
    with link(program, monkeypatch, far) as emulator, pytest.raises(emulate.EmulatorError, match="speed"):
        emulator.change(speed=1)
