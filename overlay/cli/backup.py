"""`hopfare backup` and `hopfare restore`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options
from overlay.errors import ConfigError, FileError

_PASSPHRASE_FILE = click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private file whose first line is the passphrase; without it you are asked.",
)
MIN_PASSPHRASE_BYTES = 8


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare backup node.backup", "Identity, onion keys, purse keys, ledger, guards, configuration."),
        ("hopfare backup --passphrase-file KEY nightly.backup", "From cron, for example."),
    ),
    notes=(
        (
            "While it runs",
            "The node need not stop; the ledger is copied as of one moment. What is earned afterwards is in "
            "the next backup: claim often, back up often.",
        ),
    ),
)
@common_options
@_PASSPHRASE_FILE
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def backup(common: Common, passphrase_file: Path | None, output: Path) -> None:
    """Write all of this node that cannot be made again into the file OUTPUT, encrypted."""
    from overlay.backup import encode_backup
    from overlay.io.files import write_atomic
    from overlay.node.io.backup import collect_state

    config = common.load()
    files = collect_state(config.state_dir, config.file)
    passphrase = _passphrase(passphrase_file, confirm=True)
    write_atomic(output, encode_backup(files, passphrase, os.urandom), replace=False)
    click.echo(f"{output}: {len(files)} files of {config.state_dir}, encrypted")
    click.echo("Without the passphrase nobody can read it, and neither can you.")


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare restore node.backup", "Into an empty state folder, on this machine or a new one."),
        ("hopfare restore --list node.backup", "Only check it and name what is in it."),
    ),
    notes=(
        (
            "One node, one machine",
            "Stop the old machine for good first: two nodes with one identity take each other's links, and "
            "two with one purse can spend it twice, which their neighbours will not accept.",
        ),
    ),
)
@common_options
@_PASSPHRASE_FILE
@click.option("--list", "only_list", is_flag=True, help="Write nothing.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def restore(common: Common, passphrase_file: Path | None, only_list: bool, file: Path) -> None:
    """Bring a node back from the backup FILE. Nothing that is there already is overwritten."""
    from overlay.backup import MAX_BACKUP_BYTES, decode_backup
    from overlay.config.io.load import default_file
    from overlay.errors import DecodeError
    from overlay.io.files import read_bounded
    from overlay.node.io.backup import restore_configuration, restore_state

    data = read_bounded(file, "backup", MAX_BACKUP_BYTES)
    try:
        files = decode_backup(data, _passphrase(passphrase_file, confirm=False))
    except DecodeError as error:
        raise FileError(f"{file} is not restored: {error}") from None
    if only_list:
        for name, content in sorted(files.items()):
            click.echo(f"{len(content):>10}  {name}")
        return
    wanted = (common.file or default_file()).absolute()
    # First, since the configuration says where the state folder is.
    if restore_configuration(files, wanted):
        click.echo(f"restored  {wanted}")
    for path in restore_state(common.load().state_dir, files):
        click.echo(f"restored  {path}")


def _passphrase(file: Path | None, *, confirm: bool) -> bytes:
    """Read the passphrase from a private file or ask for it. Raises FileError for one that is too short,
    ConfigError where nobody can be asked.
    """
    from overlay.io.files import read_private

    if file is not None:
        passphrase = read_private(file, "passphrase file", 4096).splitlines()[:1] or [b""]
        given = passphrase[0]
    elif not sys.stdin.isatty():
        raise ConfigError("a passphrase is needed: give --passphrase-file, or run this at a terminal")
    else:
        text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
        given = text.encode()
    if len(given) < MIN_PASSPHRASE_BYTES:
        raise FileError(
            f"the passphrase is shorter than {MIN_PASSPHRASE_BYTES} characters: choose a longer one"
        )
    return given
