import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.errors import AlreadyRunningError, FileError, LocalControlError, NotRunningError
from overlay.node.io.local import (
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    SOCKET_NAME,
    call_local,
    lock_state,
    serve_local,
)


async def handle(method, params):
    if method == "echo":
        return params
    if method == "refuse":
        raise LocalControlError("not today")
    if method == "bug":
        raise ZeroDivisionError("secret detail")
    if method == "huge":
        return {"text": "x" * 20_000_000}
    raise LookupError(f"a test has no {method}")


@pytest.fixture
async def state(tmp_path, nursery):
    folder = tmp_path / "state"
    with lock_state(folder):
        await nursery.start(serve_local, folder, handle)
        yield folder


async def call(folder, *args, **kwargs):
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(lambda: call_local(folder, *args, **kwargs))


async def send_raw(folder, data):
    with trio.fail_after(60):
        stream = await trio.open_unix_socket(str(folder / SOCKET_NAME))
        async with stream:
            await stream.send_all(data)
            await stream.send_eof()
            received = b""
            async for part in stream:
                received += part
            return received


async def test_a_method_is_answered(state):
    assert await call(state, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
    assert stat.S_IMODE((state / SOCKET_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("refuse", "not today"),
        ("what", "a test has no what"),
        ("bug", "its log says why"),
        ("huge", "too long"),
    ],
)
async def test_refusals_and_bugs_are_sentences_and_the_server_goes_on(state, method, sentence):
    with pytest.raises(LocalControlError, match=sentence) as caught:
        await call(state, method)
    assert "secret" not in str(caught.value)
    assert await call(state, "echo", {}) == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"{", b"[]\n", b"5\n", b'{"method": 5}\n', b'{"method": "echo", "params": []}\n', b"\xff\n",
     b"[" * 60_000 + b"\n", b"x" * (MAX_REQUEST_BYTES + 10)],
)  # fmt: skip
async def test_garbage_is_answered_with_an_error(state, data):
    assert "error" in json.loads(await send_raw(state, data))
    assert await call(state, "echo", {}) == {}


async def test_idle_callers_cannot_keep_others_out_for_long(state, autojump_clock):
    idle = [await trio.open_unix_socket(str(state / SOCKET_NAME)) for _ in range(MAX_CONNECTIONS + 4)]
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(6)
    reply = await send_raw(state, b'{"method": "echo", "params": {"x": 1}}\n')
    assert json.loads(reply) == {"result": {"x": 1}}
    for stream in idle:
        await stream.aclose()


async def test_a_long_path_works(tmp_path, nursery):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.parent.mkdir()
    with lock_state(folder):
        await nursery.start(serve_local, folder, handle)
        assert await call(folder, "echo", {"a": 1}) == {"a": 1}


def test_nobody_there_is_told(tmp_path):
    with pytest.raises(NotRunningError, match="no hopfare is running"):
        call_local(tmp_path, "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(NotRunningError):
        call_local(tmp_path, "status")


def test_somebody_who_does_not_answer_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen()
        with pytest.raises(LocalControlError, match=r"within 0\.05 seconds"):
            call_local(tmp_path, "status", timeout_s=0.05)


async def test_what_a_crashed_process_left_is_replaced_but_nothing_else(tmp_path, nursery):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    await nursery.start(serve_local, tmp_path, handle)
    assert await call(tmp_path, "echo", {}) == {}
    other = tmp_path / "other"
    other.mkdir()
    (other / SOCKET_NAME).write_text("mine")
    with pytest.raises(FileError, match="in the way"):
        await serve_local(other, handle)
    assert (other / SOCKET_NAME).read_text() == "mine"


async def test_the_socket_goes_with_the_server(tmp_path):
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_local, tmp_path, handle)
        nursery.cancel_scope.cancel()
    assert not (tmp_path / SOCKET_NAME).exists()


HOLDER = """
import sys, pathlib
from overlay.node.io.local import lock_state
with lock_state(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_state_folder_until_it_ends_however_it_ends(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunningError, match=f"process {holder.pid}"), lock_state(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock_state(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError), lock_state(tmp_path / "file" / "state"):
        pass
    with pytest.raises(FileError, match="in the way"), lock_state(tmp_path / "file"):
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_answer_is_read_or_refused(tmp_path, line):
    from overlay.node.io.local import _decode_reply

    try:
        assert isinstance(_decode_reply(line, tmp_path), dict)
    except LocalControlError as error:
        assert str(error)
