"""What system tests ask of a running world: which circuit carried it, what a program said, commands typed."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labkit import CLIENT, Completed, SystemLab, wait_until

from overlay.demo.box import Process
from overlay.demo.fleet import Node
from overlay.demo.lab import python_environment

VISITOR = Path(__file__).with_name("visitor.py")
HOPFARE = (sys.executable, "-c", "from overlay.cli.main import main; main()")
IP_PAGE = "http://www.demo.test/ip"


def addresses(lab: SystemLab, host: str) -> set[str]:
    found = lab.lab.hosts[host]
    return {found.ipv4, found.ipv6}


def exit_addresses(lab: SystemLab) -> set[str]:
    return {address for node in lab.exits for address in addresses(lab, node.host)}


def counts_down(lab: SystemLab) -> dict[int, int]:
    return {row["id"]: row["packets_down"] for row in lab.circuits()}


def total_down(lab: SystemLab) -> int:
    """Packets that came down all circuits of now."""
    return sum(counts_down(lab).values())


def wait_still(lab: SystemLab, few: int = 10) -> dict[int, int]:
    """Wait until what earlier connections left on the way has come; the counts of then."""
    counts: dict[int, int] = {}

    def still() -> bool:
        nonlocal counts
        before, counts = counts, counts_down(lab)
        return bool(before) and all(count - before.get(circuit, 0) < few for circuit, count in counts.items())

    wait_until(still, 60, "an end of what was on its way", every_s=0.05)
    return counts


def grown_most(lab: SystemLab, before: dict[int, int], least: int = 1) -> dict[str, Any] | None:
    """Row of the circuit that has brought most since `before`, None if none has brought `least` packets."""
    rows = [(row["packets_down"] - before.get(row["id"], 0), row) for row in lab.circuits()]
    most, row = max(rows, key=lambda each: each[0], default=(0, {}))
    return row if most >= least else None


def circuit_under_way(lab: SystemLab, before: dict[int, int], least: int, what: str) -> dict[str, Any]:
    """Row of the circuit that a transfer uses, which has begun after `before`: known by what it brings."""
    row: dict[str, Any] = wait_until(lambda: grown_most(lab, before, least), 60, what)
    return row


def circuit_that_carries(lab: SystemLab, action: Callable[[], object], *, least: int) -> dict[str, Any]:
    """Row of the one circuit whose packets grew by `least` or more; only one's must have."""
    before = wait_still(lab)
    action()
    grown = [row for row in lab.circuits() if row["packets_down"] - before.get(row["id"], 0) >= least]
    assert len(grown) == 1, grown
    return grown[0]


MARK_BYTES = 100_000


def circuit_in_use(lab: SystemLab, user: str | None = None) -> dict[str, Any]:
    """Row of the circuit that a new connection takes."""
    page = f"http://www.demo.test/big/{MARK_BYTES}"

    def fetch() -> None:
        assert len(lab.client_curl(page, user=user).check().stdout) == MARK_BYTES

    return circuit_that_carries(lab, fetch, least=MARK_BYTES // 1384)


def path_of(lab: SystemLab, row: dict[str, Any]) -> list[Node]:
    return [lab.relay(name) for name in lab.world.path_of(row["path"])]


def visit(lab: SystemLab, *arguments: str, timeout_s: float = 150.0) -> Any:
    """Run `visitor.py` beside the client; its answer."""
    done = lab.run_in(CLIENT, [sys.executable, str(VISITOR), *arguments], timeout_s=timeout_s)
    return json.loads(done.check().text.splitlines()[-1])


def begin_visit(lab: SystemLab, log: str, *arguments: str) -> Process:
    """Start `visitor.py` beside the client; its output is the log's."""
    lab.lab.log_path(log).unlink(missing_ok=True)
    return lab.lab.spawn(CLIENT, [sys.executable, str(VISITOR), *arguments], log=log)


def hopfare(lab: SystemLab, *arguments: str, node: Node | None = None, timeout_s: float = 90.0) -> Completed:
    """Type a `hopfare` command where the client runs, with its configuration."""
    command = list(arguments)
    place = (node or lab.client_node()).config_path
    end = command.index("--") if "--" in command else len(command)
    command[end:end] = ["--config", str(place)]
    return lab.run_in(CLIENT, [*HOPFARE, *command], env=python_environment(), timeout_s=timeout_s)


def exec_argv(lab: SystemLab, *argv: str) -> Sequence[str]:
    return [*HOPFARE, "exec", "--config", str(lab.client_node().config_path), "--", *argv]


def in_namespace(lab: SystemLab, *argv: str, timeout_s: float = 90.0) -> Completed:
    """`hopfare exec -- ARGV` to its end."""
    return lab.run_in(CLIENT, list(exec_argv(lab, *argv)), env=python_environment(), timeout_s=timeout_s)
