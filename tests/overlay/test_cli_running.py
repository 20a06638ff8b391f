import os
import pty
import select
import signal
import subprocess
import sys

import pytest

NODE = """
import sys, trio
from overlay.cli.running import run_until_stopped

async def node():
    print("ready", flush=True)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            {tidy}
        print("tidied", flush=True)

run_until_stopped(node)
print("ended", flush=True)
"""


def start(tidy="pass"):
    return subprocess.Popen([sys.executable, "-c", NODE.format(tidy=tidy)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_node_in_good_order(number):
    with start() as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "tidied\nended\n"
        assert process.wait(20) == 0


def test_a_second_signal_ends_it_at_once():
    with start("print('tidying', flush=True); await trio.sleep_forever()") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_a_nodes_own_end_and_error_pass_through():
    code = "from overlay.cli.running import run_until_stopped\nasync def node(): {}\nrun_until_stopped(node)"
    run = [sys.executable, "-c"]
    assert subprocess.run([*run, code.format("pass")], timeout=20, check=False).returncode == 0
    failed = subprocess.run(
        [*run, code.format("1/0")], timeout=20, check=False, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


PROGRESS = """
from overlay.cli.progress import Progress
with Progress("one") as progress:
    progress.step("one")
    progress.step("two")
    progress.finish("ready", "more")
    progress.step("three")
"""


def test_progress_is_plain_lines_where_there_is_no_terminal():
    done = subprocess.run(
        [sys.executable, "-c", PROGRESS], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "hopfare: one", "hopfare: two", "hopfare: ready", "hopfare: more",
    ]  # fmt: skip


def test_progress_leaves_only_the_result_on_a_terminal():
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", PROGRESS], stderr=theirs, env=environ) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 20)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            shown += part
        assert process.wait(20) == 0
    os.close(ours)
    assert b"hopfare: ready\r\nhopfare: more\r\n" in shown
    assert b"three" not in shown
    assert b"\x1b[?25h" in shown, "the cursor is shown again"
