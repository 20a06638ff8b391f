"""Ctrl-C under full load, and an engine that fails: the node ends at once and leaves the machine clean."""

import importlib.util
import signal
import sys
import time

import pytest
from hostile_lab import arguments_of, page_works, start_as, wait_until
from labkit import CLIENT, PROXY, SystemLab
from machines import assert_same, machine, processes_of

from overlay.demo.fleet import Node

pytestmark = pytest.mark.system
BIG = "http://www.demo.test/big/20000000000"
STOPS_WITHIN_S = 20.0
"""A second or two on an idle machine."""
FAILING = """
import threading
from overlay.engine.io import choice
make = choice.make_engine
def make_failing(*arguments, **options):
    engine = make(*arguments, **options)
    threading.Timer(2.0, engine.crate.fail).start()
    return engine
choice.make_engine = make_failing
from overlay.cli.main import main
main()
"""
HAS_NATIVE = importlib.util.find_spec("hopfare_dataplane") is not None


def interrupt(lab: SystemLab, node: Node, before: dict[str, str]) -> None:
    """Press Ctrl-C: the node ends with all that it had started, and its machine is as before."""
    assert node.process is not None
    session = node.process.inner_pid
    begun = time.monotonic()
    node.process.send_signal(signal.SIGINT)
    code = node.process.wait(60)
    assert time.monotonic() - begun < STOPS_WITHIN_S
    assert code in (0, 130), node.log_text()[-3000:]
    assert "Traceback" not in node.log_text()
    wait_until(lambda: not processes_of(lab, session), 20, "the end of everything it had started")
    assert_same(lab, node.host, before)


def carried(lab: SystemLab) -> int:
    return sum(node.status()["packets"]["in"] for node in lab.exits)


@pytest.mark.parametrize("who", ["exit", "client"])
def test_ctrl_c_under_full_load_ends_a_node_and_undoes_everything(lab: SystemLab, who: str) -> None:
    victims = lab.exits if who == "exit" else []
    lab.stop_client()
    for node in victims:
        node.stop()
    hosts = [node.host for node in victims] or [CLIENT]
    before = {host: machine(lab, host) for host in hosts}
    for node in victims:
        node.start()
    for node in victims:
        node.wait_ready()
    client = lab.client()
    page_works(lab)
    curl = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "--proxy",
        f"socks5h://{PROXY}",
        "--parallel",
        "--parallel-immediate",
    ]
    downloads = lab.lab.spawn(CLIENT, [*curl, *[BIG] * 12], log="downloads")
    try:
        before_load = carried(lab)
        wait_until(lambda: carried(lab) > before_load + 20_000, 60, "the load")
        for node in victims or [client]:
            interrupt(lab, node, before[node.host])
    finally:
        downloads.kill()
        for node in victims:
            node.start()
        for node in victims:
            node.wait_ready()
        lab.stop_client()
    lab.client()
    page_works(lab)


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
@pytest.mark.parametrize("role", ["exit", "client"])
def test_a_data_thread_that_panics_ends_the_node_with_a_sentence(lab: SystemLab, role: str) -> None:
    lab.client()
    node = lab.exits[0] if role == "exit" else lab.client_node()
    node.stop()
    before = machine(lab, node.host)
    try:
        env = {"HOPFARE_NODE__ENGINE": "native"}
        start_as(lab, node, [sys.executable, "-c", FAILING, *arguments_of(node)], env=env, wait=False)
        assert node.process is not None
        said = len(node.log_text())
        assert node.process.wait(60) not in (None, 0)
        last = node.log_text()[said:]
        assert "the native engine has failed (asked to fail)" in last, last[-3000:]
        assert 'engine = "python"' in last
        assert_same(lab, node.host, before)
    finally:
        node.kill()
        if node in lab.relays:
            node.start()
            node.wait_ready()
        lab.stop_client()
