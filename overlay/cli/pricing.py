"""`hopfare pricing`: what this relay asks for, per gigabyte and per packet."""

from __future__ import annotations

import time
from contextlib import suppress
from statistics import median
from typing import Any

import click

from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.money import money, show_json
from overlay.cli.options import Common, common_options, json_option
from overlay.config.io.edit import edit_settings
from overlay.config.io.load import default_file
from overlay.config.model import Config
from overlay.config.values import price_wei_per_packet
from overlay.errors import ConfigError, LocalControlError, NotRunningError, OverlayError
from overlay.node.io.local import call_local
from payments.pricing import PACKET_BYTES, format_coin, round_to_grid, wei_per_gb


@click.command(
    cls=LazyGroup,
    default="show",
    table={
        "show": (
            "overlay.cli.pricing:show",
            "The price, and what others ask (what `pricing` alone does).",
        ),
        "set": ("overlay.cli.pricing:set_price", "Change it, in the configuration file."),
    },
    examples=(
        ("hopfare pricing", "Show the price, per gigabyte and per packet."),
        ('hopfare pricing set "0.05 per GB"', "In the chain's coin."),
        ('hopfare pricing set "69200000000 wei per packet"', "The same, exactly as it is charged."),
    ),
)
def pricing() -> None:
    """What this relay asks for each packet, either way, on top of what it must pay onward."""


@click.command(
    cls=ManualCommand,
    examples=(("hopfare pricing show --json", "For a program; amounts in wei are decimal texts."),),
    notes=(
        ("Packet", f"{PACKET_BYTES} bytes on the link, full or not. A gigabyte is 10^9 bytes of packets."),
        (
            "Customers pay",
            "The prices of all relays of their path; each sum is rounded up to a common grid, so that an "
            "amount says little about the rest of the path. The difference is the relay's gain.",
        ),
    ),
)
@common_options
@json_option
def show(common: Common, as_json: bool) -> None:
    """Show this relay's price per gigabyte and per packet, and what the relays of the directory ask."""
    config = common.load()
    answer = _describe(config)
    if as_json:
        click.echo(show_json(answer))
        return
    for line in _lines(answer):
        click.echo(line)


@click.command(
    "set",
    cls=ManualCommand,
    examples=(
        ('hopfare pricing set "0.05 per GB"', "A twentieth of a coin for a gigabyte."),
        ("hopfare pricing set 0", "For nothing."),
    ),
    notes=(
        (
            "When",
            "Circuits that are there keep their price. Customers learn the new one from the relay's next "
            "descriptor; until then a higher price turns their circuits away.",
        ),
        ("File", "Only relay.price changes; comments and everything else stay as they are."),
    ),
)
@common_options
@json_option
@click.argument("price")
def set_price(common: Common, as_json: bool, price: str) -> None:
    """Set this relay's price to PRICE: an amount per GB in the chain's coin, or wei per packet."""
    try:
        wanted = price_wei_per_packet(price)
    except ValueError as error:
        raise ConfigError(f"PRICE = {price!r}: {error}") from None
    file = (common.file or default_file()).absolute()
    edit_settings(file, {("relay", "price"): "0" if wanted == 0 else price.strip()})
    config = common.load()
    if config.relay.price_wei_per_packet != wanted:
        raise ConfigError(
            f"{file} has the new price, but the environment or --set says another one, which wins: remove "
            "HOPFARE_RELAY__PRICE"
        )
    running = _tell_node(config, wanted)
    if as_json:
        click.echo(show_json(_describe(config) | {"file": str(file), "running": running}))
        return
    for line in _lines(_describe(config))[:2]:
        click.echo(line)
    click.echo(f"Written to {file}. {running}")


def _tell_node(config: Config, wanted: int) -> str:
    """Have a running relay take the price for new circuits; what to tell the operator."""
    try:
        call_local(config.state_dir, "reprice", {"wei_per_packet": wanted})
    except NotRunningError:
        return "It holds from the next start."
    except LocalControlError as error:
        if "a client has no" in str(error):
            return "A client runs with it, which is paid by nobody; a relay or an exit would ask it."
        return f"It holds from the next start ({error})."
    return "The running relay asks it for new circuits from now on."


def _describe(config: Config) -> dict[str, Any]:
    price = config.relay.price_wei_per_packet
    answer: dict[str, Any] = {
        "coin": config.payments.coin,
        "charged": config.payments.is_on,
        "price_wei": price,
        "per_gb_wei": wei_per_gb(price),
        "per_gb": format_coin(wei_per_gb(price)),
        "on_grid_wei": round_to_grid(price),
    }
    with suppress(OverlayError):
        answer["market"] = _market(config)
    return answer


def _market(config: Config) -> dict[str, Any]:
    """Return what the directory's relays ask per packet: how many, least, median, most."""
    from overlay.node.io.files import load_directory

    directory, _ = load_directory(config, time.time())
    asked = sorted(entry.price_wei_per_packet for entry in directory.relays(time.time()))
    if not asked:
        return {"relays": 0}
    return {
        "relays": len(asked),
        "least_wei": asked[0],
        "median_wei": int(median(asked)),
        "most_wei": asked[-1],
    }


def _lines(answer: dict[str, Any]) -> list[str]:
    coin = answer["coin"]

    def both(wei: int) -> str:
        return f"{money(wei_per_gb(wei), coin)} per GB   ({wei} wei per packet of {PACKET_BYTES} bytes)"

    lines = [f"price          {both(answer['price_wei'])}"]
    lines.append(
        f"paid by others {both(answer['on_grid_wei'])}, as the last relay of a path"
        if answer["charged"]
        else "Nothing is charged: payments are off (payments.chain_id)."
    )
    market = answer.get("market", {})
    if market.get("relays"):
        lines.append(f"of {market['relays']} relays in the directory")
        lines += [f"  {name:<12} {both(market[f'{name}_wei'])}" for name in ("least", "median", "most")]
    return lines
