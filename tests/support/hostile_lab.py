"""Nodes of a running world replaced by others: adversarial ones, limited ones, ones with another clock."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from labkit import CLIENT, PROXY, Completed, SystemLab, wait_until

from overlay.demo.fleet import Node
from overlay.demo.lab import python_environment

HOSTILE_RELAY = Path(__file__).with_name("hostile_relay.py")
URL = "http://www.demo.test/ip"
TRACEBACK = re.compile(r"Traceback|never retrieved|Task exception|level=error")


def start_as(
    lab: SystemLab,
    node: Node,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
) -> None:
    """Start `argv` in the place of a node that is not running."""
    node._started_at = len(node.log_text())
    node.process = lab.lab.spawn(node.host, argv, log=node.name, env=python_environment(env), cwd=node.folder)
    if wait:
        node.wait_ready()


def arguments_of(node: Node) -> list[str]:
    """What the console script is given for this node."""
    return [node.role, "--config", str(node.config_path)]


@contextmanager
def replaced(
    lab: SystemLab,
    node: Node,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
) -> Iterator[Node]:
    """The node run by another program for a while, and by the real one afterwards."""
    node.stop()
    try:
        start_as(lab, node, argv, env=env, wait=wait)
        yield node
    finally:
        node.kill()
        if node in lab.relays:
            node.start()
            node.wait_ready()


def hostile(lab: SystemLab, nodes: Sequence[Node]) -> None:
    """Run these relays by the adversarial program instead, until they are killed."""
    for node in nodes:
        if node.process is not None:
            node.process.send_signal(signal.SIGTERM)
    for node in nodes:
        node.stop()
        # Its mischief is done to the Python engine's links.
        env = {"HOPFARE_NODE__ENGINE": "python"}
        start_as(lab, node, [sys.executable, str(HOSTILE_RELAY), *arguments_of(node)], env=env, wait=False)
    for node in nodes:
        node.wait_ready()


def page(lab: SystemLab, url: str = URL, *, user: str | None = None, timeout_s: float = 10.0) -> Completed:
    return lab.client_curl(url, user=user, timeout_s=timeout_s)


def pages(lab: SystemLab, users: Sequence[str], timeout_s: float) -> list[int]:
    """Exit codes of curl for pages fetched at once, each by another user and so on another circuit."""
    curl = f"curl -s -o /dev/null --max-time {timeout_s} {URL}"
    commands = [f"({curl} --proxy socks5h://{user}:x@{PROXY}; echo $?) &" for user in users]
    done = lab.run_in(CLIENT, ["sh", "-c", " ".join([*commands, "wait"])], timeout_s=timeout_s + 60)
    return [int(code) for code in done.text.split()]


def page_works(lab: SystemLab, within_s: float = 60.0, url: str = URL) -> float:
    """Seconds until a page came."""
    begun = time.monotonic()
    wait_until(lambda: page(lab, url, timeout_s=5).returncode == 0, within_s, "a page")
    return time.monotonic() - begun


def rss_bytes(node: Node) -> int:
    assert node.process is not None
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{node.name} has ended")


def cpu_s(node: Node) -> float:
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def open_files(node: Node) -> int:
    assert node.process is not None
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


class Watch:
    """Honest nodes over a while: none ends, complains of itself, or grows."""

    def __init__(self, lab: SystemLab, nodes: Sequence[Node]) -> None:
        self.lab = lab
        self.nodes = list(nodes)
        self.pids = {node.name: node.process.pid for node in self.nodes if node.process is not None}
        self.logs = {node.name: len(node.log_text()) for node in self.nodes}
        self.rss = {node.name: rss_bytes(node) for node in self.nodes}

    def said(self, node: Node) -> str:
        return node.log_text()[self.logs[node.name] :]

    def check(self, growth_bytes: int = 48 << 20) -> None:
        for node in self.nodes:
            assert node.running, f"{node.name} ended: {self.said(node)[-2000:]}"
            assert node.process is not None
            assert node.process.pid == self.pids[node.name]
            found = TRACEBACK.search(self.said(node))
            assert found is None, f"{node.name}: {self.said(node)[found.start() :][:3000]}" if found else ""
            node.status()  # answers, within the caller's time limit
            grown = rss_bytes(node) - self.rss[node.name]
            assert grown < growth_bytes, f"{node.name} grew by {grown >> 20} MB"
            assert len(self.said(node)) < 200_000, f"{node.name} floods its log"


__all__ = ["CLIENT", "URL", "SystemLab", "Watch", "wait_until"]
