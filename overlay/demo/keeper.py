"""The keeper: process 1 of the lab's own process namespace, which starts everything else in the lab.

`python -m overlay.demo.keeper FD FOLDER root|rootless` unshares process, mount and network namespaces
(rootless: also a user namespace), makes network namespaces on request and starts programs in them. It serves
one request at a time on the seqpacket socket FD: JSON, with descriptors beside it. When that socket closes,
as it does when the process that started the keeper dies in whatever way, the keeper ends, and the kernel then
ends every process of its process namespace and removes every network namespace, device and rule in them.
Nothing has to be tidied up afterwards. (A parent-death signal would not do there: it is tied to the thread
that forked.)

Requests and replies (every reply may be {"error": text} instead):

    {"op": "network", "name": N}                            -> {"path": P}     the namespace, bound at P
    {"op": "spawn", "argv": [...], "env": {...}, "cwd": D,
     "network": N or null, "resolv": PATH or null,
     "fds": [numbers in the child], "listen": n} + fds      -> {"pid": inner} + exit pipe, pidfd
    {"op": "kill", "pid": P, "signal": S, "group": bool}    -> {"sent": bool}

The exit pipe delivers four bytes, the wait status as a big-endian integer, when the process has ended.
Standard library only, one thread: it forks.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from overlay.demo import kernel

MAX_REQUEST_BYTES = 150_000  # one seqpacket message; the default socket buffer holds 212,992
MAX_FDS = 64
EXEC_FAILED_STATUS = 127  # as a shell reports a program it could not start
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Enter the namespaces and serve until the socket closes. Arguments as in the module's docstring."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    folder = Path(sys.argv[2])
    try:
        _enter(rootless=sys.argv[3] == "rootless")
    except OSError as error:
        control.send(json.dumps({"error": str(error), "errno": error.errno}).encode())
        sys.exit(1)
    first = os.fork()
    if first:
        control.close()
        _, status = os.waitpid(first, 0)
        os._exit(0 if status == 0 else 1)
    kernel.die_with_parent()
    kernel.set_process_name("hopfare-lab")
    own_proc = _mounts(folder)
    control.send(json.dumps({"ready": True, "own_proc": own_proc}).encode())
    _Keeper(control, folder).serve()


def _enter(*, rootless: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID
    if rootless:
        kernel.unshare(kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    kernel.unshare(flags)


def _mounts(folder: Path) -> bool:
    """Private mounts, a /proc of our own, a place for namespace handles; True if /proc could be had."""
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    own_proc = True
    try:
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    except OSError:
        own_proc = False  # containers that mask parts of /proc refuse a second one; all but `ps` still works
    handles = folder / "networks"
    handles.mkdir(exist_ok=True)
    kernel.mount("none", str(handles), "tmpfs", 0, "size=64k,mode=0700")
    return own_proc


class _Keeper:
    """The request loop."""

    def __init__(self, control: socket.socket, folder: Path) -> None:
        self._control = control
        self._folder = folder
        self._exit_pipes: dict[int, int] = {}
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for ignored in _PASSED_ON:
            signal.signal(ignored, signal.SIG_IGN)

    def serve(self) -> NoReturn:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    with suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    self._reap()
                elif not self._serve_one():
                    os._exit(0)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            pipe = self._exit_pipes.pop(pid, None)
            if pipe is not None:
                with suppress(OSError):  # nobody waits for it any more
                    os.write(pipe, struct.pack(">I", status))
                os.close(pipe)

    def _serve_one(self) -> bool:
        try:
            data, fds = receive(self._control, MAX_REQUEST_BYTES, MAX_FDS)
        except ConnectionError:
            return False
        if not data:
            return False
        send: list[int] = []
        try:
            request = json.loads(data)
            match request["op"]:
                case "network":
                    reply: dict[str, Any] = {"path": self._network(request["name"])}
                case "spawn":
                    reply, send = self._spawn(request, fds)
                case "kill":
                    reply = {"sent": self._kill(request)}
                case other:
                    reply = {"error": f"unknown request {other!r}"}
        except OSError as error:
            reply = {"error": str(error), "errno": error.errno}
        finally:
            for fd in fds:
                os.close(fd)
        socket.send_fds(self._control, [json.dumps(reply).encode()], send)
        for fd in send:
            os.close(fd)
        return True

    def _network(self, name: str) -> str:
        handle = self._folder / "networks" / name
        handle.touch()
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.close(hold_write)
                kernel.unshare(kernel.CLONE_NEWNET)
                os.write(ready_write, b"k")
                os.read(hold_read, 1)  # stay until the handle is bound
            finally:
                os._exit(0)
        try:
            os.close(ready_write)
            os.close(hold_read)
            if os.read(ready_read, 1) != b"k":
                raise OSError("the kernel refused another network namespace")
            kernel.mount(f"{_proc_of(pid)}/ns/net", str(handle), "", kernel.MS_BIND)
        finally:
            os.close(ready_read)
            os.close(hold_write)
        return str(handle)

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        exit_read, exit_write = os.pipe2(os.O_CLOEXEC)
        # Held back until the child has its own dispositions: it would ignore an early one, as we do.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        pid = os.fork()
        if pid == 0:
            self._become(request, fds)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        self._exit_pipes[pid] = exit_write
        return {"pid": pid}, [exit_read, os.pidfd_open(pid)]

    def _become(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (*_PASSED_ON, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
            # Out of the way first: a target number may be the number of another descriptor.
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in fds]
            for fd, target in zip(high, request["fds"], strict=True):
                os.dup2(fd, target, inheritable=True)
            if request["network"] is not None:
                kernel.enter_network(str(self._folder / "networks" / request["network"]))
            _own_view(request["resolv"])
            environment = dict(request["env"])
            if request["listen"]:
                environment["LISTEN_FDS"] = str(request["listen"])
                environment["LISTEN_PID"] = str(os.getpid())
            if request["cwd"] is not None:
                os.chdir(request["cwd"])
            os.execvpe(request["argv"][0], request["argv"], environment)
        except BaseException as error:
            with suppress(OSError):
                os.write(2, f"cannot start {request['argv'][0]}: {error}\n".encode())
        os._exit(EXEC_FAILED_STATUS)

    def _kill(self, request: dict[str, Any]) -> bool:
        pid: int = request["pid"]
        if pid not in self._exit_pipes:
            return False  # reaped: the number may belong to somebody else by now
        try:
            (os.killpg if request["group"] else os.kill)(pid, request["signal"])
        except ProcessLookupError:
            return False
        return True


def receive(control: socket.socket, size_bytes: int, max_fds: int) -> tuple[bytes, list[int]]:
    """One message of at most `size_bytes` and the descriptors beside it, closed on exec. Raises OSError."""
    # socket.recv_fds of Python 3.11 ignores its flags argument, and every child would inherit them.
    fds = array.array("i")
    room = socket.CMSG_LEN(max_fds * fds.itemsize)
    data, ancillary, _, _ = control.recvmsg(size_bytes, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _proc_of(pid: int) -> str:
    """The /proc folder of a child, also where /proc belongs to an outer process namespace."""
    if Path("/proc/self").resolve().name == str(os.getpid()):
        return f"/proc/{pid}"
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == str(pid):
                    return str(status.parent)
    raise OSError(f"no /proc entry for process {pid}")


def _own_view(resolv: str | None) -> None:
    """Give this process mounts of its own: /sys of its network namespace and its own resolv.conf."""
    kernel.unshare(kernel.CLONE_NEWNS)
    with suppress(OSError):  # without root the inherited mount is locked; the new one then covers it
        kernel.unmount("/sys")
    with suppress(OSError):  # refused in some containers; nothing of ours needs it
        kernel.mount("sysfs", "/sys", "sysfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    if resolv is not None and Path("/etc/resolv.conf").exists():
        kernel.mount(resolv, os.path.realpath("/etc/resolv.conf"), "", kernel.MS_BIND)


if __name__ == "__main__":
    main()
