"""`hopfare seedlist key`, `sign` and `show`: the root list of a network without a registry."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from overlay.cli.descriptor import describe, format_time, read_descriptor, to_json
from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.options import json_option
from overlay.config.values import duration_s, node
from overlay.descriptor import find_staleness
from overlay.errors import ConfigError, DecodeError, FileError
from overlay.identity import Identity, NodeId
from overlay.io.files import read_bounded, write_atomic
from overlay.seedlist import (
    MAX_SEED_LIST_BYTES,
    SeedList,
    decode_seed_list,
    find_list_staleness,
    sign_seed_list,
)

_FILE = click.Path(dir_okay=False, path_type=Path)
_parse_lifetime = duration_s("1h", "100d")


@click.command(
    cls=LazyGroup,
    table={
        "key": ("overlay.cli.seedlist:key", "Make the key that signs a network's list."),
        "sign": ("overlay.cli.seedlist:sign", "Sign a list of the relays' descriptors."),
        "show": ("overlay.cli.seedlist:show", "Check a list and show what is in it."),
    },
    examples=(
        ("hopfare seedlist key my-net.key", "Once: the key; publish the name that it prints."),
        (
            "hopfare seedlist sign --key my-net.key --network my-net -o my-net.seeds *.descriptor",
            "Make the list.",
        ),
        ("hopfare seedlist show my-net.seeds --key-name NAME", "Check it as everybody else will."),
    ),
)
def seedlist() -> None:
    """Seed lists: who belongs to a network, signed by whoever runs it."""


@click.command(cls=ManualCommand, files=())
@click.argument("file", type=_FILE)
def key(file: Path) -> None:
    """Make a new key for signing lists in FILE, and print its name for everybody's configuration."""
    identity = Identity.generate()
    identity.save(file)
    click.echo(f"{file}: private; whoever has it decides who belongs to the network")
    click.echo(f'seed_list_key = "{identity.name}"')


@click.command(cls=ManualCommand, files=())
@click.option("--key", "key_file", metavar="FILE", type=_FILE, required=True, help="The signing key.")
@click.option(
    "--network", metavar="NAME", required=True, help="The network's name: small letters, digits, dashes."
)
@click.option(
    "--lifetime", metavar="TIME", default="30d", show_default=True, help="How long the list is good for."
)
@click.option("-o", "--output", metavar="FILE", type=_FILE, required=True, help="Where to write the list.")
@click.argument("descriptors", nargs=-1, required=True, type=_FILE)
def sign(key_file: Path, network: str, lifetime: str, output: Path, descriptors: tuple[Path, ...]) -> None:
    """Sign a list of the nodes whose DESCRIPTORS are given (see `hopfare descriptor export`)."""
    try:
        lifetime_s = _parse_lifetime(lifetime)
    except ValueError as error:
        raise ConfigError(f"--lifetime {lifetime}: {error}") from None
    identity = Identity.load(key_file)
    now_s = int(time.time())
    entries = [read_descriptor(file) for file in descriptors]
    for file, entry in zip(descriptors, entries, strict=True):
        if stale := find_staleness(entry.descriptor, now_s):
            raise FileError(f"{file}: the descriptor is {stale.value}; ask for a new one")
        if entry.descriptor.expires_s < now_s + lifetime_s:
            until = format_time(entry.descriptor.expires_s)
            click.echo(f"hopfare: warning: {file} expires before the list does, {until}", err=True)
    try:
        encoded = sign_seed_list(
            identity, network, entries, sequence=now_s, published_s=now_s, expires_s=now_s + int(lifetime_s)
        )
    except ValueError as error:
        raise FileError(f"no list can be made: {error}") from None
    write_atomic(output, encoded, mode=0o644)
    exits = sum(entry.descriptor.is_exit for entry in entries)
    until = format_time(now_s + lifetime_s)
    click.echo(f"{output}: {network}, {len(entries)} nodes, {exits} of them exits, until {until}")


@click.command(cls=ManualCommand, files=())
@click.argument("file", type=_FILE)
@click.option("--key-name", metavar="NAME", required=True, help="Name of the key that must have signed it.")
@json_option
def show(file: Path, key_name: str, as_json: bool) -> None:
    """Check the seed list FILE and show its nodes."""
    try:
        signer = node(key_name)
    except ValueError as error:
        raise ConfigError(f"--key-name {key_name}: {error}") from None
    seed_list = read_seed_list(file, signer)
    stale = find_list_staleness(seed_list, time.time())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "network": seed_list.network,
                    "sequence": seed_list.sequence,
                    "published_s": seed_list.published_s,
                    "expires_s": seed_list.expires_s,
                    "stale": stale.value if stale else None,
                    "refused": list(seed_list.refused),
                    "nodes": [to_json(entry.descriptor) for entry in seed_list.descriptors],
                },
                indent=2,
            )
        )
        return
    click.echo(
        f"{seed_list.network}: {len(seed_list.descriptors)} nodes, {format_time(seed_list.published_s)} to "
        f"{format_time(seed_list.expires_s)}{f' ({stale.value})' if stale else ''}"
    )
    for reason in seed_list.refused:
        click.echo(f"left out: {reason}")
    for entry in seed_list.descriptors:
        click.echo("\n" + "\n".join(describe(entry.descriptor, time.time())))


def read_seed_list(file: Path, signer: NodeId) -> SeedList:
    """Read a seed list and check its signature. Raises FileError, which names the file."""
    try:
        return decode_seed_list(read_bounded(file, "seed list", MAX_SEED_LIST_BYTES), signer)
    except DecodeError as error:
        raise FileError(f"{file}: {error}") from None
