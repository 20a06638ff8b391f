"""What system tests ask of a running world: which circuit carried it, what a program said, commands typed."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labkit import CLIENT, Completed, SystemLab

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


def circuit_that_carries(lab: SystemLab, action: Callable[[], object], *, least: int) -> dict[str, Any]:
    """Row of the one circuit whose packets grew by `least` or more; only one's must have."""
    before = counts_down(lab)
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
