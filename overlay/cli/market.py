"""`hopfare market`: who offers what at which price, and what this node has seen of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options, json_option, require
from overlay.cli.render import render_table
from overlay.config.model import Config
from overlay.config.values import amount_wei
from overlay.descriptor import SignedDescriptor, decode_unchecked
from overlay.errors import ConfigError, DecodeError, FileError, LocalControlError, NotRunningError
from overlay.market import SORTS, Row, Wanted, choose_rows, list_rows, shorten_rows
from overlay.node.io.local import call_local


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare market", "Everybody, the cheapest first."),
        ("hopfare market --role exit --country DE --country NL --sort quality", "Exits in two countries."),
        ("hopfare market --role exit --port 22 --max-price 0.05", "Exits for SSH, at most 0.05 per GB."),
        ("hopfare market --json | jq '.rows[].name'", "For programs; names are whole, figures all there."),
    ),
    notes=(
        ("Quality", "From 0 to 1, by this node's own measuring; new: nothing is known yet."),
        (
            "Measured, says",
            "What relays were seen to carry, and what they say they can. Only the former counts.",
        ),
        ("Country", "The operator's own word. Nobody checks it."),
        ("Source", "The running client, or the directory on disk if none runs."),
    ),
)
@common_options
@json_option
@click.option("--role", type=click.Choice(("relay", "exit")), help="Only these; an exit is a relay as well.")
@click.option("--country", "countries", metavar="CC", multiple=True, help="Only in this country; repeatable.")
@click.option("--max-price", metavar="COINS", help="Only those that ask at most so much per GB.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only exits that let this port out.")
@click.option("--min-quality", type=click.FloatRange(0, 1), help="Only those measured to be as good.")
@click.option("--operator", metavar="NAME", default="", help="Only this operator's (account or family).")
@click.option("--sort", type=click.Choice(SORTS), default="price", show_default=True, help="The order.")
@click.option("--limit", type=click.IntRange(1), help="Show at most so many.")
def market(
    common: Common,
    as_json: bool,
    role: str | None,
    countries: tuple[str, ...],
    max_price: str | None,
    port: int | None,
    min_quality: float | None,
    operator: str,
    sort: str,
    limit: int | None,
) -> None:
    """List the relays on offer: price, quality, stake, policy."""
    wanted = Wanted(
        role or "",
        frozenset(country.upper() for country in countries),
        _price(max_price),
        port,
        min_quality,
        operator,
    )
    config = common.load()
    answer = _ask(config)
    rows: list[Row] = choose_rows(answer["rows"], wanted, sort, limit)
    if as_json:
        click.echo(json.dumps({**answer, "rows": rows}, indent=2))
        return
    if not rows:
        click.echo(
            f"none of {len(answer['rows'])} relays fits" if answer["rows"] else "the directory is empty"
        )
        return
    click.echo("\n".join(render_table(shorten_rows(rows, str(answer["coin"])))))
    click.echo(f"\n{len(rows)} of {len(answer['rows'])} relays, from {answer['source']}")


def _price(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return amount_wei(text)
    except ValueError as error:
        raise ConfigError(f"--max-price {text}: {error}") from None


def _ask(config: Config) -> dict[str, Any]:
    try:
        return {**call_local(config.state_dir, "market"), "source": "the running client"}
    except NotRunningError:
        pass
    except LocalControlError as error:
        if "has no market" not in str(error):  # a relay runs here, which has none
            raise
    from overlay.node.market import QUALITY_FILE, load_quality

    require(config, "network")
    now_s = time.time()
    book = load_quality(config.state_dir / QUALITY_FILE, now_s)
    rows = list_rows(_read_directory(config, now_s), book, now_s)
    return {"rows": rows, "coin": config.payments.coin, "source": "the directory on disk"}


def _read_directory(config: Config, now_s: float) -> Iterable[SignedDescriptor]:
    """The directory as the last run of the client left it, or the seed list's."""
    from overlay.node.io.directory_file import DIRECTORY_FILE, load_directory_file
    from overlay.node.io.files import load_directory

    if not config.gossips:
        return load_directory(config, now_s)[0]
    found = []
    for encoded in load_directory_file(config.state_dir / DIRECTORY_FILE):
        with suppress(DecodeError):  # of a newer format, after an older program was put back
            found.append(decode_unchecked(encoded))
    if not found:
        raise FileError("no directory is on disk yet: start the client once, and ask again")
    return found
