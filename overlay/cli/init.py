"""`hopfare init`: identity, onion keys and a documented configuration file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options
from overlay.config.default import render_config
from overlay.config.io.load import default_file, read_surroundings
from overlay.config.parse import parse_config
from overlay.config.values import show
from overlay.identity import Identity
from overlay.io.files import make_private_directory, write_atomic
from overlay.node.io.files import IDENTITY_FILE, load_onion_keys


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare init", "Write everything with its defaults and say what to do next."),
        ("hopfare init --seed-list ~/net.seeds --seed-list-key NAME", "Join the network of this list."),
        ("hopfare init --print > my.toml", "Only print the documented configuration."),
    ),
    notes=(
        (
            "Nothing is overwritten",
            "An identity or a configuration file that is there already is kept as it is.",
        ),
    ),
)
@common_options
@click.option("--print", "only_print", is_flag=True, help="Print the configuration file and write nothing.")
@click.option(
    "--seed-list",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The network's list of relays.",
)
@click.option("--seed-list-key", metavar="NAME", help="Name of the key that signs the list, 52 characters.")
def init(common: Common, only_print: bool, seed_list: Path | None, seed_list_key: str | None) -> None:
    """Prepare this machine: an identity for relays, and a configuration file with every setting explained."""
    given = {}
    if seed_list is not None:
        given["network", "seed_list"] = show_path(seed_list.absolute())
    if seed_list_key is not None:
        given["network", "seed_list_key"] = show(seed_list_key)
    for override in common.overrides:
        given[override.section, override.key] = _to_toml(override.value)
    toml = render_config(given)
    file = (common.file or default_file()).absolute()
    # Refuse now what the next command would refuse.
    parse_config(toml, surroundings=read_surroundings(file.parent))
    if only_print:
        click.echo(toml, nl=False)
        return
    if file.exists():
        click.echo(f"configuration  {file} is there already and is kept")
    else:
        make_private_directory(file.parent)
        write_atomic(file, toml.encode(), mode=0o644, replace=False)
        click.echo(f"configuration  {file}")
    config = Common(file, common.overrides).load()
    make_private_directory(config.state_dir)
    identity_file = config.state_dir / IDENTITY_FILE
    if identity_file.exists():
        identity = Identity.load(identity_file)
        click.echo(f"identity       {identity_file} is there already and is kept")
    else:
        identity = Identity.generate()
        identity.save(identity_file)
        click.echo(f"identity       {identity_file} (private: who has it can pose as this node)")
    load_onion_keys(config, time.time(), os.urandom)
    click.echo(f"this node      {identity.name}")
    click.echo()
    if config.seed_list is None:
        click.echo(f"Next: get a network's seed list and its key, and name both in {file} ([network]).")
        click.echo("To try everything without a network: hopfare demo")
    else:
        click.echo("Next: hopfare client     (or, for a relay: hopfare relay --help)")


def show_path(path: Path) -> str:
    """Return a path as TOML text, whole."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _to_toml(value: str) -> str:
    """Return an option's value as TOML: itself if it is that already, else as text."""
    import tomllib

    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return show_path(Path(value)) if "/" in value else show(value)
    return value
