"""`hopfare set` and `hopfare newnym`: change what a running client does."""

from __future__ import annotations

import json
from typing import Any

import click

from overlay.choices import CHOICES, apply_choice, find_name
from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options, json_option
from overlay.errors import ConfigError, NotRunningError
from overlay.node.choices import keep_choice
from overlay.node.io.local import call_local


@click.command(
    "set",
    cls=ManualCommand,
    examples=(
        ("hopfare set", "What can be changed, and what it is now."),
        ("hopfare set hops 4", "Four relays on a path, until the client stops."),
        ("hopfare set exit-country DE --keep", "Leave in Germany, also after the next start."),
        ("hopfare set max-price 0.05", "No path that costs more than 0.05 per GB, all its relays together."),
        ("hopfare set exclude NAME,NAME", "Never use these relays."),
        ('hopfare set exit-country ""', "Any country."),
        ("hopfare set hops --reset", "What the configuration says, and nothing kept."),
    ),
    notes=(
        ("Kept or not", "A change lasts until the client stops. With --keep it is written to the state folder"
         " and counts at every start, over the configuration file and under command-line options."),
        ("Connections", "New ones obey at once; those that are there finish on their circuits."),
        ("Guards", "Each choice of guards and middles has guards of its own, kept for months."),
    ),
)  # fmt: skip
@common_options
@json_option
@click.argument("key", required=False)
@click.argument("value", required=False)
@click.option("--keep", is_flag=True, help="Keep it for the next starts as well.")
@click.option("--reset", is_flag=True, help="Go back to what the configuration says, and keep nothing.")
def set_command(
    common: Common, as_json: bool, key: str | None, value: str | None, keep: bool, reset: bool
) -> None:
    """Change hops, countries, price, pins and bans of the running client."""
    config = common.load()
    if key is None:
        _list(call_local(config.state_dir, "choices"), as_json=as_json)
        return
    if (value is None) != reset:
        raise ConfigError(
            f"{key}: a value is missing, such as `hopfare set {key} VALUE`, or --reset"
            if value is None
            else "either a value or --reset, not both"
        )
    name = find_name(key)
    try:
        answer = call_local(config.state_dir, "choose", {"key": name, "value": value, "keep": keep})
    except NotRunningError as error:
        if not keep and not reset:
            raise NotRunningError(f"{error}; with --keep the change counts from the next start on") from None
        if value is not None:
            apply_choice(config, name, value)
        keep_choice(config.state_dir, name, value)
        answer = {"name": name, "value": value, "kept": value is not None, "no_path": None}
        _show(answer, value, "counts from the next start on", as_json=as_json)
        return
    if value is None:
        until = "as the configuration says; nothing is kept"
    elif answer["kept"]:
        until = "from now on, and kept for the next starts"
    else:
        until = "until the client stops (--keep keeps it)"
    _show(answer, value, until, as_json=as_json)


@click.command(
    cls=ManualCommand,
    examples=(("hopfare newnym", "New connections leave through other circuits, as a rule other exits."),),
)
@common_options
@json_option
def newnym(common: Common, as_json: bool) -> None:
    """Let new connections use new circuits; old ones finish where they are. Guards stay."""
    answer = call_local(common.load().state_dir, "newnym")
    click.echo(json.dumps(answer) if as_json else "New connections use new circuits.")


def _show(answer: dict[str, Any], value: str | None, until: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    shown = value if value is not None else _text(answer["value"])
    click.echo(
        f"{answer['name']} = {shown or ('none' if answer['name'].startswith('exclude') else 'any')}, {until}"
    )
    found = answer.get("no_path")
    if found:
        click.echo(f"but: {found['sentence']}", err=True)


def _list(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    kept = set(answer["kept"])
    width = max(len(name) for name in CHOICES)
    for name, value in answer["choices"].items():
        note = "  (kept)" if name in kept else ""
        click.echo(f"{name:<{width}}  {_text(value) or '-'}{note}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)
