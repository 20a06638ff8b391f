"""`hopfare status`, `hopfare circuits` and `hopfare stop`: questions to the running process."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import trio

from overlay.cli.errors import NOT_WORKING
from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options, json_option
from overlay.cli.render import render_circuits, render_status, render_why
from overlay.errors import NotRunningError
from overlay.node.io.local import call_local


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare status", "Does it work and, if not, why?"),
        ("hopfare status --json", "The same for a program or a monitor."),
        ("hopfare status && echo works", "Status 0: works; 3: not running; 4: runs but does not work."),
    ),
)
@common_options
@json_option
def status(common: Common, as_json: bool) -> None:
    """Show what the hopfare that runs with this state folder does, whether it works and, if not, why."""
    answer = call_local(common.load().state_dir, "status")
    _show(answer, "\n".join(render_status(answer)), as_json=as_json)
    if not answer.get("ready"):
        sys.stdout.flush()
        sys.exit(NOT_WORKING)


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare circuits", "What is there, over which relays, how fast."),
        ("hopfare circuits --why", "Why each relay was chosen, and from how many."),
        ("hopfare circuits --renew", "As hopfare newnym: new circuits for all new connections."),
    ),
)
@common_options
@json_option
@click.option(
    "--renew", is_flag=True, help="Let new connections use new circuits; old ones finish where they are."
)
@click.option("--why", is_flag=True, help="Say why each relay was chosen, or which rule leaves no path.")
def circuits(common: Common, as_json: bool, renew: bool, why: bool) -> None:
    """List the circuits of the running client."""
    state_dir = common.load().state_dir
    if renew:
        answer = call_local(state_dir, "newnym")
        _show(answer, "New connections use new circuits.", as_json=as_json)
        return
    answer = call_local(state_dir, "circuits")
    rows = answer.get("circuits", [])
    lines = render_circuits(rows) if rows else ["no circuits"]
    if why:
        lines += render_why(rows, answer.get("no_path"))
    _show(answer, "\n".join(lines), as_json=as_json)


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare stop", "Stop it and wait until it has tidied up."),
        ("sudo hopfare stop", "Open a machine that a killed client in whole-device mode has left locked."),
        ("hopfare stop --drain", "A relay: take no new circuits and stop when the last has ended."),
    ),
)
@common_options
@click.option("--drain", is_flag=True, help="Let customers move first; only for relays and exits.")
@click.option(
    "--limit", metavar="TIME", default="15m", show_default=True, help="Longest time to drain, such as 1h."
)
def stop(common: Common, drain: bool, limit: str) -> None:
    """Stop the hopfare that runs with this state folder."""
    from overlay.config.values import duration_s
    from overlay.node.io.local import wait_until_free

    state_dir = common.load().state_dir
    if drain:
        try:
            limit_s = duration_s("0s", "1d")(limit)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--limit") from None
        answer = call_local(state_dir, "drain", {"limit_s": limit_s})
        click.echo(f"draining: {answer.get('circuits', 0)} circuits are left; Ctrl-C leaves it to itself")
        if not wait_until_free(state_dir, timeout_s=limit_s + 15.0):
            click.echo("hopfare: it is stopping, but takes long over it", err=True)
            sys.exit(1)
        click.echo("stopped")
        return
    try:
        call_local(state_dir, "stop")
    except NotRunningError:
        from exit.io.device import lift_device
        from overlay.node.io.whole_device import FOLDER

        if not trio.run(lift_device, state_dir / FOLDER):
            raise
        click.echo("no client was running; this machine, which a killed one had left locked, is open again")
        return
    if not wait_until_free(state_dir, timeout_s=15.0):
        click.echo("hopfare: it is stopping, but takes long over it", err=True)
        sys.exit(1)
    click.echo("stopped")


def _show(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(answer, indent=2) if as_json else text)
