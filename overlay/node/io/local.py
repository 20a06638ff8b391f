"""The local control socket: how `hopfare status` and its like talk to the running process of a state folder.

Owns the folder's lock (one process each), the Unix socket ``control`` in it (mode 0600, peer's user
checked) and the form of requests. Does not own what the methods do: the node's handler does.

One connection carries one request and one reply, each a line of JSON: ``{"method": "status", "params":
{}}`` and ``{"result": {...}}`` or ``{"error": "a sentence"}``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from overlay.errors import AlreadyRunningError, FileError, LocalControlError, NotRunningError, OverlayError
from overlay.io.files import PRIVATE_MODE, make_private_directory
from overlay.logs import RateLimit, get_logger
from payments.errors import PaymentsError

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers a method with its parameters; raises LookupError for a method it has not, OverlayError or
PaymentsError to refuse.
"""

SOCKET_NAME = "control"
LOCK_NAME = "lock"
MAX_REQUEST_BYTES = 64 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
"""A status with many thousand links and circuits fits."""
MAX_CONNECTIONS = 16
"""At a time; more are hung up on."""
REQUEST_TIMEOUT_S = 5.0
"""For a request to arrive whole."""
REPLY_TIMEOUT_S = 2.0
"""For a reply to be taken; no stop of the process waits longer for a caller."""

_PATH_LIMIT = 100
"""Bytes of a socket's path, a little under Linux's 107."""

log = get_logger("local")


@contextlib.contextmanager
def lock_state(state_dir: Path) -> Iterator[None]:
    """Hold `state_dir` (made if it is missing) for this process alone; the kernel frees it when the
    process ends.

    Raises AlreadyRunningError if another process holds it, FileError if it cannot be made or written.
    """
    make_private_directory(state_dir)
    path = state_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_MODE)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            # A record lock, which a forked helper that outlives us does not keep.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise AlreadyRunningError(
                f"another hopfare{f' (process {holder})' if holder.isdigit() else ''} is running with the "
                f"state folder {state_dir}: stop it with `hopfare stop`, or give this one its own state_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def wait_until_free(state_dir: Path, *, timeout_s: float) -> bool:
    """Wait until no process holds `state_dir`; tell whether that came within `timeout_s` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            with (state_dir / LOCK_NAME).open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
        time.sleep(0.02)  # the kernel has no timed lock


async def serve_local(
    state_dir: Path,
    handler: Handler,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled; the caller holds `lock_state`, so a socket that is there is a dead
    one's.

    Nothing that a caller sends, and no bug of `handler`, ends it. Raises FileError if the socket cannot
    be made.
    """
    path = state_dir / SOCKET_NAME
    limit = RateLimit()
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        await _bind(listener, path)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                busy = 0

                async def answer(connection: trio.socket.SocketType) -> None:
                    nonlocal busy
                    busy += 1
                    try:
                        with connection:
                            await _answer(connection, handler)
                    finally:
                        busy -= 1

                while True:
                    try:
                        connection, _ = await listener.accept()
                    except OSError as error:  # no descriptors left, or the caller is gone already
                        if (suppressed := limit.allow("accept", trio.current_time())) is not None:
                            log.warning("control socket", problem=error.strerror, suppressed=suppressed)
                        await trio.sleep(0.1)
                        continue
                    if busy >= MAX_CONNECTIONS or not _is_allowed(connection):
                        connection.close()
                    else:
                        nursery.start_soon(answer, connection)
        finally:
            path.unlink(missing_ok=True)


def call_local(
    state_dir: Path,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 10.0,
) -> dict[str, Any]:
    """Ask the process that runs with `state_dir`, and return its answer.

    Raises NotRunningError if none does, and LocalControlError if it may not be asked, refuses, or does
    not answer in `timeout_s` seconds.
    """
    path = state_dir / SOCKET_NAME
    request = json.dumps({"method": method, "params": dict(params or {})}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _short(path) as address:
            connection.settimeout(timeout_s)
            connection.connect(address)
            connection.sendall(request)
            with connection.makefile("rb") as replies:
                line = replies.readline(MAX_REPLY_BYTES)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NotRunningError(
            f"no hopfare is running with the state folder {state_dir}; "
            "if one runs with another configuration, name it with --config"
        ) from None
    except PermissionError:
        raise LocalControlError(f"{path} belongs to another user: ask as that user, or as root") from None
    except TimeoutError:
        raise LocalControlError(f"hopfare does not answer on {path} within {timeout_s:g} seconds") from None
    except OSError as error:
        raise LocalControlError(f"cannot talk to hopfare on {path}: {error.strerror}") from error
    return _decode_reply(line, path)


def find_server_pid(state_dir: Path) -> int:
    """Return the process that serves `state_dir`, by the number that this process knows it by.

    Raises NotRunningError if none does.
    """
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            _short(state_dir / SOCKET_NAME) as path,
        ):
            connection.connect(path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError as error:
        raise NotRunningError(f"no hopfare is running with the state folder {state_dir}") from error
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _decode_reply(line: bytes, path: Path) -> dict[str, Any]:
    if not line:
        raise LocalControlError(f"hopfare hung up on {path}: it is stopping, or serves another user")
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or not ("error" in reply or isinstance(reply.get("result"), dict)):
        raise LocalControlError(f"what answers on {path} is not hopfare")
    if "error" in reply:
        raise LocalControlError(str(reply["error"]))
    result: dict[str, Any] = reply["result"]
    return result


async def _bind(listener: trio.socket.SocketType, path: Path) -> None:
    """Bind and listen under another name, then move it over whatever a crashed process left at `path`."""
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileError(f"{path} is in the way: hopfare's control socket belongs there")
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with _short(fresh) as address:
            await listener.bind(address)
        fresh.chmod(PRIVATE_MODE)
        listener.listen(MAX_CONNECTIONS)
        fresh.replace(path)
    except OSError as error:
        raise FileError(f"cannot make the control socket {path}: {error.strerror}") from error


async def _answer(connection: trio.socket.SocketType, handler: Handler) -> None:
    with contextlib.suppress(OSError):
        received = b""
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            received = await _receive(connection)
        request = _parse_request(received)
        if request is None:
            reply: dict[str, Any] = {"error": "the request is no JSON object with a method and parameters"}
        else:
            reply = await _handle(handler, *request)
        encoded = json.dumps(reply).encode() + b"\n"
        if len(encoded) > MAX_REPLY_BYTES:
            encoded = b'{"error": "the answer is too long"}\n'
        # The answer to "stop" goes out although all else is being cancelled.
        with trio.move_on_after(REPLY_TIMEOUT_S, shield=True):
            while encoded:
                encoded = encoded[await connection.send(encoded) :]


async def _receive(connection: trio.socket.SocketType) -> bytes:
    received = b""
    while b"\n" not in received and len(received) <= MAX_REQUEST_BYTES:
        part = await connection.recv(MAX_REQUEST_BYTES)
        if not part:
            break
        received += part
    return received


def _parse_request(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        request = json.loads(line) if len(line) <= MAX_REQUEST_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    method, params = request.get("method"), request.get("params", {})
    return (method, params) if isinstance(method, str) and isinstance(params, dict) else None


async def _handle(handler: Handler, method: str, params: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": await handler(method, params)}
    except (LookupError, OverlayError, PaymentsError) as error:
        return {"error": str(error.args[0]) if error.args else f"no method {method[:40]}"}
    except Exception:
        log.exception("control method failed", method=method[:40])
        return {"error": f"{method[:40]} failed inside hopfare; its log says why"}


def _is_allowed(connection: trio.socket.SocketType) -> bool:
    """Whether the caller is this process's own user, or root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give `path` in a form that fits a socket address, which holds 107 bytes."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
