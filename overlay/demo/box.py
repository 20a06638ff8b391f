"""A box: the caller's side of the keeper. Starts programs in the lab's namespaces and watches them.

Synchronous and safe to use from several threads; one lock guards the socket to the keeper. Closing the box,
or the death of this process, ends everything in it (see `keeper.py`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from overlay.demo.keeper import MAX_FDS, MAX_REQUEST_BYTES, receive
from overlay.errors import OverlayError

START_TIMEOUT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # where ip, nft and nginx are, and not on every user's PATH


class LabError(OverlayError):
    """The lab cannot do what was asked; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished program left: exit code (negative: the signal that ended it) and its output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, stripped."""
        return self.stdout.decode(errors="replace").strip()

    def check(self) -> Self:
        """Return self. Raises LabError with the end of the program's complaint if it failed."""
        if self.returncode != 0:
            complaint = (self.stderr or self.stdout).decode(errors="replace").strip()[-2000:]
            raise LabError(f"`{' '.join(self.argv)}` failed with {self.returncode}: {complaint}")
        return self


class Process:
    """A program running in the box, in a session of its own."""

    def __init__(self, box: Box, argv: Sequence[str], inner_pid: int, pid: int, exit_pipe: int) -> None:
        """Take over the exit pipe; made by `Box.spawn` only."""
        self.argv = tuple(argv)
        self.inner_pid = inner_pid  # as processes in the box see it
        self.pid = pid  # as this process sees it
        self.returncode: int | None = None
        self._box = box
        self._exit_pipe = exit_pipe
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; the exit code (negative: ended by that signal), None if still running."""
        with self._lock:
            if self.returncode is not None:
                return self.returncode
            poll = select.poll()
            poll.register(self._exit_pipe, select.POLLIN)
            if not poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000):
                return None
            data = os.read(self._exit_pipe, 4)
            os.close(self._exit_pipe)
            if len(data) == 4:
                self.returncode = os.waitstatus_to_exitcode(struct.unpack(">I", data)[0])
            else:
                self.returncode = -signal.SIGKILL  # the whole box went down
            return self.returncode

    def poll(self) -> int | None:
        """The exit code, None while running."""
        return self.wait(0)

    @property
    def running(self) -> bool:
        """True until it has ended."""
        return self.poll() is None

    def send_signal(self, number: int, *, group: bool = False) -> bool:
        """Send a signal to it or to its whole session's group; False if it has ended already."""
        return self._box.signal(self.inner_pid, number, group=group)

    def kill(self) -> None:
        """SIGKILL, to it alone: what it started has to notice by itself."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM, and SIGKILL to its group after `grace_s`; the exit code."""
        self.send_signal(signal.SIGTERM)
        code = self.wait(grace_s)
        if code is None:
            self.send_signal(signal.SIGKILL, group=True)
            code = self.wait()
        assert code is not None
        return code


class Box:
    """The namespaces of one lab. Use as a context manager."""

    def __init__(self, folder: Path, *, rootless: bool | None = None) -> None:
        """Keep handles under `folder`. `rootless` None: a user namespace only if we are not root."""
        self._folder = folder
        self._rootless = os.geteuid() != 0 if rootless is None else rootless
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self.own_proc = True

    def __enter__(self) -> Self:
        """Open it."""
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def open(self) -> None:
        """Start the keeper. Raises LabError if the machine does not allow such namespaces."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = dict(os.environ, PYTHONPATH=str(ROOT))
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-m", "overlay.demo.keeper"),
                    *(str(theirs.fileno()), str(self._folder), "rootless" if self._rootless else "root"),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C in a terminal reaches the whole foreground group; the caller decides what it means.
                start_new_session=True,
            )
        self._control = ours
        ours.settimeout(START_TIMEOUT_S)
        try:
            hello = json.loads(ours.recv(4096) or "{}")
        except TimeoutError:
            hello = {"error": "the keeper did not start in time"}
        except BaseException:
            self.close()
            raise
        ours.settimeout(None)
        if not hello.get("ready"):
            self.close()
            raise LabError(_refusal(hello))
        self.own_proc = hello["own_proc"]

    @property
    def keeper_pid(self) -> int:
        """The process that everything in the box descends from. Raises LabError if the box is closed."""
        if self._keeper is None:
            raise LabError("the lab is closed")
        return self._keeper.pid

    def close(self) -> None:
        """End every process in the box and remove its namespaces; waits until that is done."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._keeper is not None:
            try:
                self._keeper.wait(5)
            except subprocess.TimeoutExpired:
                self._keeper.kill()  # takes the inner keeper along, by its parent-death signal
                self._keeper.wait()
            self._keeper = None

    def network(self, name: str) -> str:
        """Make a network namespace; its path as processes in the box see it. Raises LabError."""
        path: str = self._ask({"op": "network", "name": name})[0]["path"]
        return path

    def spawn(
        self,
        argv: Sequence[str],
        *,
        network: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        resolv: Path | None = None,
        fds: Mapping[int, int] | None = None,
        listen: int = 0,
    ) -> Process:
        """Start a program in the box.

        `fds` maps descriptor numbers in the child to descriptors here (the caller keeps its own); 0, 1, 2
        not named are /dev/null. `listen` > 0 announces descriptors 3... by LISTEN_FDS. `resolv` takes the
        place of /etc/resolv.conf. Raises LabError if the box is gone.
        """
        environment = dict(os.environ if env is None else env)
        environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{SYSTEM_PATH}"
        with open(os.devnull, "r+b") as null:  # noqa: PTH123 - Path cannot open unbuffered r+b any shorter
            given = {0: null.fileno(), 1: null.fileno(), 2: null.fileno(), **(fds or {})}
            request = {
                "op": "spawn",
                "argv": list(argv),
                "env": environment,
                "cwd": None if cwd is None else str(cwd),
                "network": network,
                "resolv": None if resolv is None else str(resolv),
                "fds": list(given),
                "listen": listen,
            }
            reply, (exit_pipe, pidfd) = self._ask(request, list(given.values()))
        pid = _pid_of(pidfd)
        os.close(pidfd)
        return Process(self, argv, reply["pid"], pid, exit_pipe)

    def run(
        self,
        argv: Sequence[str],
        *,
        network: str | None = None,
        stdin: bytes = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        resolv: Path | None = None,
    ) -> Completed:
        """Run a program to its end. Raises LabError when it takes longer than `timeout_s` (it is killed)."""
        # Output goes to memory files, not pipes: a program can then never block on a reader.
        files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        try:
            for fd in files[1:]:
                # Several programs may write at once, and the kernel keeps no common place in memory files.
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            os.pwrite(files[0], stdin, 0)
            process = self.spawn(
                argv, network=network, env=env, cwd=cwd, resolv=resolv, fds=dict(enumerate(files))
            )
            code = process.wait(timeout_s)
            if code is None:
                process.send_signal(signal.SIGKILL, group=True)
                process.wait()
                said = _contents(files[2]).decode(errors="replace")[-500:]
                raise LabError(f"`{' '.join(argv)}` took longer than {timeout_s:g} s: {said}")
            return Completed(tuple(argv), code, _contents(files[1]), _contents(files[2]))
        finally:
            for fd in files:
                os.close(fd)

    def signal(self, inner_pid: int, number: int, *, group: bool = False) -> bool:
        """Send a signal to a process that `spawn` started; False if it has ended already."""
        request = {"op": "kill", "pid": inner_pid, "signal": int(number), "group": group}
        try:
            return bool(self._ask(request)[0]["sent"])
        except LabError:
            return False

    def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        data = json.dumps(request).encode()
        if len(data) > MAX_REQUEST_BYTES or len(fds) > MAX_FDS:
            raise LabError("a command for the lab is too long")
        with self._lock:
            if self._control is None:
                raise LabError("the lab is closed")
            try:
                socket.send_fds(self._control, [data], fds)
                reply, got = receive(self._control, 4096, 2)
            except OSError as error:
                raise LabError(f"the lab is gone: {error}") from error
        if not reply:
            raise LabError("the lab is gone")
        decoded: dict[str, Any] = json.loads(reply)
        if "error" in decoded:
            raise LabError(f"{request['op']}: {decoded['error']}")
        return decoded, got


def wait_until(check: Any, timeout_s: float, what: str, *, every_s: float = 0.02) -> Any:
    """Ask `check()` until it returns something true, and return that. Raises LabError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (result := check()):
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(every_s)
    return result


def _contents(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)


def _pid_of(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def _refusal(hello: dict[str, Any]) -> str:
    text = hello.get("error", "the keeper ended at once")
    if hello.get("errno") not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL):
        return f"the demo's namespaces cannot be made: {text}"
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    with suppress(OSError):
        if restricted.read_text().strip() == "1":
            return (
                "this machine lets only root make the namespaces that the demo runs in: run it as root, or "
                "allow them with `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
            )
    return (
        f"this machine does not let you make the namespaces that the demo runs in ({text}): run it as root, "
        "or allow them with `sudo sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1`"
    )
