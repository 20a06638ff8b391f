"""The customer's network namespace, seen from the client: one TUN, sockets, addresses.

Owns the helper process (`exit.io.namespace_helper`) and a pool of sockets made inside the namespace. What is
in the namespace has no other way out than the TUN, whose descriptor this process holds: when this process
dies, however it dies, the kernel kills the helper and takes the TUN and the namespace away.

    async with open_namespace(mtu=1400) as ns:
        ns.tun                                        # exit.io.tun.Tun, up, default routes lead into it
        await ns.add_addresses("100.64.3.7", "fd68:6f70:6661::307")
        await ns.set_default_source("100.64.3.7", "fd68:6f70:6661::307")
        sock = await ns.new_socket(AF_INET, SOCK_STREAM)  # or ns.take_socket(...), without awaiting
        ns.helper_pid                                 # what `hopfare exec` enters

See design.md, decision 2.
"""

from __future__ import annotations

import math
import os
import resource
import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import trio

from exit.errors import EnvError
from exit.io.namespace_explain import explain_failure
from exit.io.tun import Tun

DEFAULT_MTU = 1400
DEFAULT_TUN_NAME = "hopfare0"
START_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
#: Descriptors in one message; the kernel's own limit is 253.
BATCH_SOCKETS = 64
#: How many sockets of each kind are kept ready. A refill is asked for when half is gone, so at 1,500
#: connections a second the helper has 40 ms to answer.
DEFAULT_POOL: Mapping[tuple[int, int], int] = MappingProxyType(
    {
        (socket.AF_INET, socket.SOCK_STREAM): 128,
        (socket.AF_INET6, socket.SOCK_STREAM): 64,
        (socket.AF_INET, socket.SOCK_DGRAM): 16,
        (socket.AF_INET6, socket.SOCK_DGRAM): 16,
    }
)
_MAX_ADDRESSES_PER_COMMAND = 256
_MESSAGE_ROOM_BYTES = 4096
_ANCILLARY_ROOM_BYTES = socket.CMSG_SPACE(BATCH_SOCKETS * 4)
_STDERR_ROOM_BYTES = 4096
_DESCRIPTOR_LIMIT = 65536
_HELPER = Path(__file__).with_name("namespace_helper.py")


class NamespaceError(EnvError):
    """The namespace cannot be made, or its helper is gone; the message is one sentence for the user."""


class _Pool:
    __slots__ = ("asked", "batch", "ready", "target")

    def __init__(self, target: int) -> None:
        self.target = target
        self.batch = max(1, min(BATCH_SOCKETS, target // 2))
        self.ready: deque[int] = deque()
        self.asked = 0


class _Answer:
    """An answer on its way; `error` is set when the helper refused."""

    __slots__ = ("arrived", "error", "kind")

    def __init__(self, kind: tuple[int, int] | None) -> None:
        self.arrived = trio.Event()
        self.error: NamespaceError | None = None
        self.kind = kind


class Namespace:
    """A running helper. Made by `open_namespace`; used from one trio task tree."""

    __slots__ = (
        "_answers",
        "_control",
        "_failure",
        "_pools",
        "_stopped",
        "closed",
        "helper_pid",
        "is_user_namespace",
        "tun",
    )

    def __init__(
        self,
        control: socket.socket,
        tun: Tun,
        helper_pid: int,
        *,
        is_user_namespace: bool,
        pool: Mapping[tuple[int, int], int],
    ) -> None:
        """Use `open_namespace`."""
        self._control = control
        self._answers: deque[_Answer] = deque()
        self._pools = {kind: _Pool(target) for kind, target in pool.items()}
        self._failure: NamespaceError | None = None
        self._stopped = False
        self.tun = tun
        self.helper_pid = helper_pid
        self.is_user_namespace = is_user_namespace
        #: Set when the helper is gone: sockets taken before and the TUN go on, nothing else does.
        self.closed = trio.Event()
        for kind, pool_ in self._pools.items():
            self._refill(kind, pool_)

    # Addresses.

    async def add_addresses(self, v4: str, v6: str | None = None) -> None:
        """Make a circuit's inner addresses usable, at once, by sockets that bind to them.

        Sockets bound to nothing never use them. Adding one that is there changes nothing. Raises
        NamespaceError when the helper refuses or is gone; after a cancellation the address may or may not
        be there.
        """
        await self._command(_words("add", v4, v6))

    async def remove_addresses(self, v4: str, v6: str | None = None) -> None:
        """Take a circuit's addresses away and abort the TCP connections that use them.

        So no program waits for what cannot come. Removing one that is not there changes nothing. Errors as
        above.
        """
        await self._command(_words("remove", v4, v6))

    async def set_default_source(self, v4: str | None, v6: str | None = None) -> None:
        """Choose the addresses of sockets that are bound to none (programs of `hopfare exec`).

        They must have been added, and are the only ones such programs see. With None that family is refused
        at once (`unreachable`) for such sockets, so that programs fall back to the other; bound sockets are
        not affected. Errors as above.
        """
        await self._command(f"source {v4 or '-'} {v6 or '-'}")

    async def become_gateway(self, nft: str) -> None:
        """Carry the machine's packets as well, which come over the veth peer `exit.device.INNER_DEVICE`.

        It must have been put into the namespace. From now on they have the default source's address;
        `nft` is that program's path. Errors as above.
        """
        await self._command(f"gateway {nft}")

    # Sockets.

    def try_socket(self, family: int, kind: int) -> socket.socket | None:
        """Do what `take_socket` does, but return None when the pool is empty (a refill is then under way)."""
        pool = self._pools[family, kind]
        if pool.ready:
            return self._pop(family, kind, pool)
        self._refill((family, kind), pool)
        return None

    def take_ready(self, family: int, kind: int, at_most: int) -> list[int]:
        """Return descriptors of such sockets as the pool has, `at_most` so many, perhaps none; a refill is
        then under way. The caller owns them.
        """
        pool = self._pools[family, kind]
        taken = [pool.ready.popleft() for _ in range(min(at_most, len(pool.ready)))]
        self._refill((family, kind), pool)
        return taken

    def take_socket(self, family: int, kind: int) -> socket.socket:
        """Return a non-blocking, unbound socket of the namespace (AF_INET or AF_INET6; SOCK_STREAM or
        SOCK_DGRAM).

        TCP sockets have TCP_NODELAY, IP_BIND_ADDRESS_NO_PORT and IP_RECVERR set. Comes from the pool
        without a round trip; if the pool is empty, waits for the helper without yielding to trio (well
        under a millisecond as a rule, a second at most). The caller owns it. Raises NamespaceError when
        the helper is gone or refuses.
        """
        pool = self._pools[family, kind]
        if not pool.ready:
            self._refill((family, kind), pool)
            deadline = trio.current_time() + 1.0
            while not pool.ready:
                self._check()
                if not select.select([self._control], [], [], max(0.0, deadline - trio.current_time()))[0]:
                    raise NamespaceError("the namespace helper made no socket within a second")
                refused = self._receive((family, kind))
                if refused is not None:
                    raise refused
        return self._pop(family, kind, pool)

    async def new_socket(self, family: int, kind: int) -> socket.socket:
        """Do what `take_socket` does, but let other tasks run while the pool is empty.

        A checkpoint only then. A cancellation takes no socket.
        """
        pool = self._pools[family, kind]
        while not pool.ready:
            self._refill((family, kind), pool)
            self._check()
            waiting = next((answer for answer in self._answers if answer.kind == (family, kind)), None)
            if waiting is None:
                raise NamespaceError("the namespace helper made no socket")
            await waiting.arrived.wait()
            if waiting.error is not None and not pool.ready:
                raise waiting.error
        return self._pop(family, kind, pool)

    def _pop(self, family: int, kind: int, pool: _Pool) -> socket.socket:
        taken = socket.socket(family, kind, 0, fileno=pool.ready.popleft())
        taken.setblocking(False)
        if len(pool.ready) + pool.asked <= pool.target - pool.batch:
            self._refill((family, kind), pool)
        return taken

    def _refill(self, kind: tuple[int, int], pool: _Pool) -> None:
        while self._failure is None and pool.asked + len(pool.ready) <= pool.target - pool.batch:
            answer = _Answer(kind)
            if not self._send(f"sockets {int(kind[0])} {int(kind[1])} {pool.batch}", answer):
                return
            pool.asked += pool.batch

    # The helper's socket.

    async def _command(self, text: str) -> None:
        self._check()
        answer = _Answer(None)
        # The helper reads commands as they come; its queue is full only when it hangs.
        if not self._send(text, answer):
            self._check()
            raise NamespaceError("the namespace helper does not read its commands")
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await answer.arrived.wait()
        if not answer.arrived.is_set():
            raise NamespaceError(f"the namespace helper did not answer within {ANSWER_TIMEOUT_S:.0f} s")
        if answer.error is not None:
            raise answer.error

    def _send(self, text: str, answer: _Answer) -> bool:
        try:
            self._control.send(text.encode("ascii"))
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(f"the namespace helper ended ({error.strerror})")
            return False
        self._answers.append(answer)
        return True

    async def _run(self) -> None:
        """Take in the helper's answers until it ends or the namespace is closed."""
        while self._failure is None:
            self._receive(None)
            if self._failure is None:
                await trio.lowlevel.wait_readable(self._control)

    def _receive(self, asked: tuple[int, int] | None) -> NamespaceError | None:
        """Take in everything that is waiting; return a refusal of sockets of kind `asked`."""
        refused = None
        while self._failure is None:
            try:
                message, descriptors = _receive_message(self._control)
            except BlockingIOError:
                return refused
            except OSError as error:
                self._fail(f"the namespace helper ended ({error.strerror})")
                return self._failure
            if not message or not self._answers:
                _close_all(descriptors)
                self._fail("the namespace helper ended")
                return self._failure
            answer = self._answers.popleft()
            if answer.kind is not None:
                pool = self._pools[answer.kind]
                pool.asked -= pool.batch
                pool.ready.extend(descriptors)
            if message.startswith(b"failed "):
                _, stage, _, text = message.decode("ascii").split(" ", 3)
                answer.error = NamespaceError(f"the namespace helper cannot do `{stage}`: {text}")
                if answer.kind == asked and asked is not None:
                    refused = answer.error
            answer.arrived.set()
        return refused

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, reason: str) -> None:
        if self._failure is not None:
            return
        self._failure = NamespaceError("the namespace is closed" if self._stopped else reason)
        self.closed.set()
        while self._answers:
            answer = self._answers.popleft()
            answer.error = self._failure
            answer.arrived.set()

    def _stop(self) -> None:
        self._stopped = True
        self._fail("")
        self._control.close()
        for pool in self._pools.values():
            _close_all(pool.ready)
            pool.ready.clear()
        self.tun.close()


@asynccontextmanager
async def open_namespace(
    *,
    mtu: int = DEFAULT_MTU,
    tun_name: str = DEFAULT_TUN_NAME,
    offload: bool = True,
    uso: bool = False,
    pool: Mapping[tuple[int, int], int] = DEFAULT_POOL,
) -> AsyncIterator[Namespace]:
    """Make the customer's namespace and its TUN, and end both on leaving, with all pooled sockets.

    The TUN is up, has an MTU of `mtu` bytes, and has TCP offloads unless `offload` is false; `uso` asks for
    UDP offloads as well. Must be called in a thread that outlives it (the kernel kills the helper with that
    thread): trio's main thread. Lifts this process's soft limit of open descriptors towards the hard one,
    up to 65,536. Raises NamespaceError when the system does not allow it; the message says what is missing.
    Never waits longer than START_TIMEOUT_S.
    """
    _raise_descriptor_limit()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            helper = _spawn(theirs.fileno(), tun_name, mtu, offload=offload, uso=uso)
        try:
            ours.setblocking(False)
            tun, is_user_namespace = await _greet(ours, helper, mtu)
            namespace = Namespace(ours, tun, helper.pid, is_user_namespace=is_user_namespace, pool=pool)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(namespace._run)
                    yield namespace
                    nursery.cancel_scope.cancel()
            finally:
                namespace._stop()
        finally:
            ours.close()
            await _reap(helper)


def _spawn(control_fd: int, tun_name: str, mtu: int, *, offload: bool, uso: bool) -> subprocess.Popen[bytes]:
    import pytun  # type: ignore[import-not-found]

    folders = [str(Path(__file__).parents[2]), str(Path(pytun.__file__).parent)]
    command = [sys.executable, "-I", "-S", str(_HELPER), str(control_fd), str(os.getpid())]
    command += [tun_name, str(mtu), str(int(offload)), str(int(uso)), *folders]
    # Not through trio: its worker threads end, and PR_SET_PDEATHSIG means the thread that forked. A session
    # of its own, because a terminal's Ctrl-C must not end the helper before the client has cleaned up.
    return subprocess.Popen(
        command,
        pass_fds=[control_fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.defpath},
        start_new_session=True,
    )


async def _greet(control: socket.socket, helper: subprocess.Popen[bytes], mtu: int) -> tuple[Tun, bool]:
    message = b""
    descriptors: list[int] = []
    with trio.move_on_after(START_TIMEOUT_S) as patience:
        while True:
            try:
                message, descriptors = _receive_message(control)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(control)
            except OSError:
                break
    if patience.cancelled_caught:
        raise NamespaceError(f"the namespace helper was not ready within {START_TIMEOUT_S:.0f} s")
    words = message.decode("ascii", "replace").split(" ")
    if words[0] == "failed":
        raise NamespaceError(explain_failure(words[1], int(words[2]), " ".join(words[3:])))
    if words[0] != "ready" or len(descriptors) != 1:
        _close_all(descriptors)
        raise NamespaceError(f"the namespace helper ended before it was ready: {await _last_words(helper)}")
    tun = Tun.from_fd(descriptors[0], words[2] == "1", mtu, name=words[1], has_uso=words[3] == "1")
    return tun, words[4] == "1"


async def _last_words(helper: subprocess.Popen[bytes]) -> str:
    await _reap(helper)
    said = b""
    if helper.stderr is not None and select.select([helper.stderr], [], [], 0)[0]:
        said = os.read(helper.stderr.fileno(), _STDERR_ROOM_BYTES)
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {helper.returncode}"


async def _reap(helper: subprocess.Popen[bytes]) -> None:
    """Wait for the helper, whose socket is closed or which has failed; kill it if it stays."""
    with trio.CancelScope(shield=True):
        if helper.returncode is None:
            with suppress(ProcessLookupError):
                pid_fd = os.pidfd_open(helper.pid)
                try:
                    with trio.move_on_after(STOP_TIMEOUT_S):
                        await trio.lowlevel.wait_readable(pid_fd)
                finally:
                    trio.lowlevel.notify_closing(pid_fd)
                    os.close(pid_fd)
            if helper.poll() is None:
                helper.kill()
                helper.wait()
    if helper.stderr is not None and helper.stderr.closed is False and helper.returncode == 0:
        helper.stderr.close()


def _receive_message(control: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = control.recvmsg(
        _MESSAGE_ROOM_BYTES, _ANCILLARY_ROOM_BYTES, socket.MSG_CMSG_CLOEXEC
    )
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            descriptors.extend(memoryview(data)[:whole].cast("i"))
    return message, descriptors


def _words(command: str, v4: str, v6: str | None) -> str:
    return f"{command} {v4}" if v6 is None else f"{command} {v4} {v6}"


def _close_all(descriptors: deque[int] | list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = math.inf if hard == resource.RLIM_INFINITY else hard
    wanted = int(min(ceiling, _DESCRIPTOR_LIMIT))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
