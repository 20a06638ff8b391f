"""An emulated link between one UDP endpoint and those that send to it: `bench/emulate.rs`, built and driven.

bench/emulate --listen 127.0.0.1:5000 --to 127.0.0.1:4433 --delay-ms 25 --loss 0.001 --rate-mbit 100
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_suffix(".rs")
FIELDS = ("passed", "bytes", "lost", "queue_full", "late_us")


class EmulatorError(RuntimeError):
    """The emulator cannot be built or has ended."""


def rustc() -> str | None:
    """The compiler, None where there is none."""
    path = f"{os.environ.get('PATH', os.defpath)}:{os.environ.get('CARGO_HOME', Path.home() / '.cargo')}/bin"
    return shutil.which("rustc", path=path)


def build(folder: Path | None = None) -> Path:
    """The program, built if it is not there yet. Raises EmulatorError without a compiler."""
    folder = folder or Path(tempfile.gettempdir()) / f"hopfare-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmulatorError(f"{folder} belongs to somebody else: remove it")
    program = folder / f"emulate-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        compiler = rustc()
        if compiler is None:
            raise EmulatorError("the link emulator needs rustc (https://rustup.rs)")
        half = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, "-O", "--edition", "2024", "-o", str(half), str(SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EmulatorError(f"the link emulator does not build: {done.stderr[-1000:]}")
        half.replace(program)
    return program


class Emulator:
    """A running link. Context manager; starts in the caller's network namespace."""

    def __init__(self, listen: str, to: str, *, seed: int = 1, **link: float) -> None:
        """`listen` and `to` are HOST:PORT; `link` as for ``change``."""
        self._argv = ["--listen", listen, "--to", to, "--seed", str(seed), *_words(link, "--")]
        self._process: subprocess.Popen[str] | None = None
        self.address = listen
        self.pid = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [str(build()), *self._argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        ready = self._read()
        if not ready.startswith("ready "):
            raise EmulatorError(f"the link emulator did not start: {ready or 'see above'}")
        self.address = ready.split()[1]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def change(self, **link: float) -> None:
        """Change the link: `delay_ms` each way, `loss` as a share, `rate_mbit` (0: any), `queue_ms`."""
        answer = self._ask(" ".join(_words(link, "")))
        if answer != "changed":
            raise EmulatorError(answer)

    def stats(self) -> dict[str, dict[str, int]]:
        """What became of the datagrams each way, and how late (in microseconds) one left at worst."""
        numbers = [int(word) for word in self._ask("stats").split()]
        return {
            way: dict(zip(FIELDS, numbers[at : at + len(FIELDS)], strict=True))
            for way, at in (("there", 0), ("back", len(FIELDS)))
        }

    def _ask(self, line: str) -> str:
        if self._process is None or self._process.stdin is None:
            raise EmulatorError("the link emulator does not run")
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _words(link: dict[str, float], before: str) -> list[str]:
    words: list[str] = []
    for name, value in link.items():
        words += (f"{before}{name.replace('_', '-')}", f"{value:g}")
    return words


if __name__ == "__main__":
    try:
        os.execv(build(), ["emulate", *sys.argv[1:]])
    except EmulatorError as problem:
        sys.exit(f"emulate: {problem}")
