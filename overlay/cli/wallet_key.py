"""`hopfare wallet new` and `hopfare wallet import`: the account's key file."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.money import passphrase_asker, show_json
from overlay.cli.options import Common, common_options, json_option
from overlay.cli.wallet import write_target
from overlay.config.model import Config
from overlay.errors import ConfigError
from overlay.io.files import make_private_directory, read_bounded, write_atomic
from overlay.node.io.account import PASSPHRASE_VARIABLE, read_passphrase
from payments.errors import KeyFileError
from payments.keys import PurseKey, checksum_address

MAX_IMPORT_BYTES = 16_384
_PASSPHRASE_WORDS_BYTES = 16
_NOTES = (
    (
        "Passphrase",
        "Read from payments.passphrase_file or the variable HOPFARE_PASSPHRASE; else the command asks.",
    ),
    ("Format", "Ethereum keystore v3, mode 0600, which other wallets read too."),
    ("Backup", "Who loses the key file or its passphrase loses the money: keep copies, apart."),
)
_MAKE = click.option(
    "--make-passphrase",
    is_flag=True,
    help="Make a random passphrase and write it to payments.passphrase_file.",
)


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare wallet new", "Asks for a passphrase, twice."),
        (
            "hopfare wallet new --make-passphrase --set payments.passphrase_file=/etc/hopfare/passphrase",
            "For a relay that starts without anybody there.",
        ),
    ),
    notes=_NOTES,
)
@common_options
@json_option
@_MAKE
def new(common: Common, as_json: bool, make_passphrase: bool) -> None:
    """Make a new key in the file payments.key_file, encrypted with a passphrase."""
    config = common.load()
    write_target(config)
    _write(config, PurseKey.generate(os.urandom), make_passphrase=make_passphrase, as_json=as_json)


@click.command(
    "import",
    cls=ManualCommand,
    examples=(
        ("hopfare wallet import UTC--2026-11-22--0xab.json", "A key file of another wallet."),
        ("hopfare wallet import - < secret.hex", "A secret key in 64 hexadecimal digits."),
    ),
    notes=(
        *_NOTES,
        ("Sharing", "Use no account that another program sends from: they would take each other's numbers."),
    ),
)
@common_options
@json_option
@_MAKE
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
def import_key(common: Common, as_json: bool, make_passphrase: bool, file: Path) -> None:
    """Take the key in FILE (a key file, or a secret key in hexadecimal; - is standard input)."""
    config = common.load()
    write_target(config)
    if str(file) == "-":
        data = sys.stdin.buffer.read(MAX_IMPORT_BYTES + 1)
    else:
        data = read_bounded(file, "key", MAX_IMPORT_BYTES)
    _write(config, _decode(data, file), make_passphrase=make_passphrase, as_json=as_json)


def _decode(data: bytes, file: Path) -> PurseKey:
    text = data.decode("ascii", "replace").strip()
    if text.startswith("{"):
        from payments.io.keystore import decode_key_file

        ask = passphrase_asker()
        if ask is None:
            raise ConfigError(f"the passphrase of {file} is needed: run this at a terminal")
        return decode_key_file(text, ask(f"passphrase of {file}"), str(file))
    try:
        return PurseKey(bytes.fromhex(text.removeprefix("0x")))
    except ValueError:
        raise KeyFileError(
            f"{'Standard input' if str(file) == '-' else file} is neither a key file (keystore v3) nor a "
            "secret key in 64 hexadecimal digits."
        ) from None


def _write(config: Config, key: PurseKey, *, make_passphrase: bool, as_json: bool) -> None:
    from payments.io.keystore import write_key_file

    passphrase = _make_passphrase(config) if make_passphrase else _new_passphrase(config)
    make_private_directory(config.key_file.parent)
    write_key_file(config.key_file, key, passphrase)
    address = checksum_address(key.address)
    if as_json:
        click.echo(show_json({"address": address, "key_file": str(config.key_file)}))
        return
    click.echo(f"account   {address}")
    click.echo(f"key file  {config.key_file}")
    click.echo("Keep a copy of the file and of the passphrase, in different places: nobody can restore them.")
    click.echo("Next: hopfare wallet fund")


def _new_passphrase(config: Config) -> str:
    known = os.environ.get(PASSPHRASE_VARIABLE) or config.passphrase_file is not None
    if known or not sys.stdin.isatty():
        return read_passphrase(config)
    return str(
        click.prompt("passphrase for the new key file", hide_input=True, confirmation_prompt=True, err=True)
    )


def _make_passphrase(config: Config) -> str:
    path = config.passphrase_file
    if path is None:
        raise ConfigError("--make-passphrase needs a place for it: name a file with payments.passphrase_file")
    passphrase = secrets.token_urlsafe(_PASSPHRASE_WORDS_BYTES)
    make_private_directory(path.parent)
    write_atomic(path, f"{passphrase}\n".encode(), replace=False)
    return passphrase
