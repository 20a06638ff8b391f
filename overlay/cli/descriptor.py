"""`hopfare descriptor export` and `hopfare descriptor show`."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.options import Common, common_options, json_option
from overlay.config.check import check_relay
from overlay.config.model import Config
from overlay.descriptor import (
    MAX_DESCRIPTOR_BYTES,
    Descriptor,
    Role,
    SignedDescriptor,
    decode_descriptor,
    find_staleness,
)
from overlay.errors import ConfigError, DecodeError, FileError
from overlay.identity import format_node_id
from overlay.io.files import read_bounded, write_atomic


@click.command(
    cls=LazyGroup,
    table={
        "export": ("overlay.cli.descriptor:export", "Write this node's descriptor, signed, to a file."),
        "show": ("overlay.cli.descriptor:show", "Check descriptors and show what they say."),
    },
)
def descriptor() -> None:
    """Descriptors: what a node says of itself, signed with its identity."""


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare descriptor export -o r1.descriptor", "For a relay."),
        ("hopfare descriptor export --exit -o e1.descriptor", "For an exit, with its policy's summary."),
    ),
    notes=(("Again", "Export anew when addresses, price or policy change, and before it expires."),),
)
@common_options
@click.option("--exit", "as_exit", is_flag=True, help="Say that this node is an exit.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Default: NAME.descriptor",
)
def export(common: Common, as_exit: bool, output: Path | None) -> None:
    """Write this node's descriptor to a file, for whoever signs the network's seed list."""
    config = common.load()
    signed = make_own_descriptor(config, as_exit=as_exit)
    output = output or Path(f"{signed.descriptor.name[:12]}.descriptor")
    write_atomic(output, signed.encoded, mode=0o644)
    click.echo(f"{output}: {'exit' if as_exit else 'relay'} {signed.descriptor.name}")


@click.command(
    cls=ManualCommand, files=(), examples=(("hopfare descriptor show *.descriptor", "Check and show."),)
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def show(files: tuple[Path, ...], as_json: bool) -> None:
    """Check the signatures of descriptor FILES and show what they say. Status 1 if one cannot be read."""
    found: list[SignedDescriptor] = []
    failed = False
    for file in files:
        try:
            found.append(read_descriptor(file))
        except FileError as error:
            failed = True
            click.echo(f"hopfare: {error}", err=True)
    if as_json:
        click.echo(json.dumps([to_json(entry.descriptor) for entry in found], indent=2))
    else:
        click.echo("\n\n".join("\n".join(describe(entry.descriptor, time.time())) for entry in found))
    if failed:
        sys.stdout.flush()
        sys.exit(1)


def make_own_descriptor(config: Config, *, as_exit: bool) -> SignedDescriptor:
    """Return the signed descriptor of the node of this configuration, as of now; makes onion keys if
    there are none.

    Raises ConfigError for settings that cannot stand in one, FileError for keys that are missing or
    unreadable.
    """
    from overlay.describe import describe_node
    from overlay.node.io.files import load_identity, load_onion_keys
    from overlay.node.suites import offered_suites

    if problems := check_relay(config, with_network=False):
        raise ConfigError("\n".join(problems))
    keys = load_onion_keys(config, time.time(), os.urandom)
    return describe_node(
        config,
        load_identity(config),
        onion_key=keys.current.public,
        previous_onion_key=keys.previous.public if keys.previous else b"",
        as_exit=as_exit,
        has_ipv6=as_exit and _has_ipv6(config),
        suites=offered_suites(),
        now_s=time.time(),
    )


def read_descriptor(file: Path) -> SignedDescriptor:
    """Read a descriptor file and check its signature. Raises FileError, which names the file."""
    try:
        return decode_descriptor(read_bounded(file, "descriptor", MAX_DESCRIPTOR_BYTES))
    except DecodeError as error:
        raise FileError(f"{file}: {error}") from None


def to_json(entry: Descriptor) -> dict[str, Any]:
    """Return a descriptor's content in JSON's types."""
    return {
        "name": entry.name,
        "roles": role_words(entry),
        "sequence": entry.sequence,
        "published_s": entry.published_s,
        "expires_s": entry.expires_s,
        "addresses": [str(address) for address in entry.addresses],
        "onion_key": entry.onion_key.hex(),
        "price_wei_per_packet": entry.price_wei_per_packet,
        "payee": "0x" + entry.payee.hex() if entry.payee else "",
        "exit_policy_summary": entry.exit_policy_summary,
        "has_ipv6": entry.has_ipv6,
        "country": entry.country,
        "family": entry.family,
        "family_members": [format_node_id(member) for member in entry.members],
        "payee_proven": bool(entry.payee_proof),
        "capacity_bytes_per_s": entry.capacity_bytes_per_s,
        "monthly_cap_bytes": entry.monthly_cap_bytes,
        "draining": entry.is_draining,
        "onion_key_made_s": entry.onion_key_made_s,
        "onion_key_period_s": entry.onion_key_period_s,
        "link_versions": list(entry.link_versions),
        "software_version": entry.software_version,
        "suites": list(entry.suites),
    }


def describe(entry: Descriptor, now_s: float) -> list[str]:
    """Return the lines that show a descriptor to a person."""
    stale = find_staleness(entry, now_s)
    note = f" ({stale.value})" if stale else ""
    rows = [
        ("roles", ", ".join(role_words(entry))),
        ("addresses", ", ".join(str(address) for address in entry.addresses)),
        ("valid", f"{format_time(entry.published_s)} to {format_time(entry.expires_s)}{note}"),
    ]
    if entry.is_exit:
        rows.append(
            ("policy", entry.exit_policy_summary + (", IPv4 and IPv6" if entry.has_ipv6 else ", IPv4"))
        )
    for name, value in (
        ("country", entry.country),
        ("family", entry.family),
        ("members", ", ".join(format_node_id(member)[:12] for member in entry.members)),
        ("draining", "nothing new is to be built through it" if entry.is_draining else ""),
        ("price", f"{entry.price_wei_per_packet} wei per packet" if entry.price_wei_per_packet else ""),
        ("software", entry.software_version),
    ):
        if value:
            rows.append((name, value))
    return [entry.name, *(f"  {name:<9}  {value}" for name, value in rows)]


def role_words(entry: Descriptor) -> list[str]:
    """Return the roles as words."""
    return [str(role.name).lower() for role in Role if role in entry.roles]


def format_time(unix_s: float) -> str:
    """Return a time as 2026-11-22 16:35 UTC."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"


def _has_ipv6(config: Config) -> bool:
    if config.exit.ipv6 != "auto":
        return config.exit.ipv6 == "on"
    import trio

    from exit.io.network import examine

    return bool(trio.run(examine).uplinks_v6)
