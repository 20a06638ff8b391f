"""`hopfare exec`: find the running client and hand over to `overlay.cli.exec`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from overlay.cli.errors import explain
from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options
from overlay.errors import OverlayError

ANSWER_TIMEOUT_S = 60.0
"""The client answers once it has a circuit for programs, or has given up waiting for one."""


@click.command(
    "exec",
    cls=ManualCommand,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    examples=(
        ("hopfare exec -- git clone URL", "A program that knows nothing of proxies."),
        ("hopfare exec -- bash", "A shell whose every program goes through the circuit."),
        ("hopfare exec -- dig example.org", "The exit's DNS answers."),
    ),
    notes=(
        ("Before", "A `hopfare client` with the same state folder must be running."),
        ("Inside", "The program has one way out, the circuits. Without a circuit it has none."),
        ("No sandbox", "It keeps the program's traffic in; files and desktop sockets are the machine's own."),
    ),
    exit_status=(
        ("125", "hopfare failed: no client is running, or the namespace cannot be entered."),
        ("126", "The program was found but cannot be run."),
        ("127", "There is no such program."),
        ("other", "The program's own status."),
    ),
)
@common_options
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(common: Common, program: tuple[str, ...]) -> None:
    """Run PROGRAM with all its traffic, names too, going through the running client's circuits."""
    from overlay.cli.exec import STATUS_FAILED, ExecError, run_exec
    from overlay.node.io.local import call_local, find_server_pid

    try:
        state_dir = common.load().state_dir
        info = call_local(state_dir, "exec-info", timeout_s=ANSWER_TIMEOUT_S)
        info["helper_pid"] = _as_seen_here(int(info["helper_pid"]), find_server_pid(state_dir))
        if not info.get("circuit", True):
            click.echo("hopfare: no circuit yet: until there is one, nothing gets out", err=True)
        names = info.get("dns")
        if names:
            run_exec(int(info["helper_pid"]), program, dns_addresses=[str(name) for name in names])
        run_exec(int(info["helper_pid"]), program)
    except ExecError as error:
        click.echo(f"hopfare: {error}", err=True)
        sys.exit(error.status)
    except OverlayError as error:
        message, _ = explain(error) or (str(error), STATUS_FAILED)
        click.echo(f"hopfare: {message}", err=True)
        sys.exit(STATUS_FAILED)


def _as_seen_here(pid: int, server_pid: int) -> int:
    """The number that this process knows the client's child `pid` by.

    They differ where the client runs in a process namespace of its own: in a container, or in the demo.
    """
    for listing in Path(f"/proc/{server_pid}/task").glob("*/children"):
        for child in listing.read_text().split():
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == str(pid):
                    return int(child)
    return pid
