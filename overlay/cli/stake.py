"""`hopfare stake`: this relay's entry in the registry, and the stake behind it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.money import AMOUNT, NOTES_ACCOUNT, ask_wallet, money, require_payments, show_json
from overlay.cli.options import Common, common_options, json_option
from overlay.config.model import Config
from overlay.config.values import address as parse_address_value
from overlay.descriptor import Address
from overlay.errors import ConfigError
from overlay.identity import format_node_id


@click.command(
    cls=LazyGroup,
    default="show",
    table={
        "show": ("overlay.cli.stake:show", "The entry and its stake (what `stake` alone does)."),
        "join": ("overlay.cli.stake:join", "Put this relay on the list, or change its entry."),
        "add": ("overlay.cli.stake:add", "Add to the stake."),
        "leave": ("overlay.cli.stake:leave", "Take this relay off the list."),
        "take": ("overlay.cli.stake:take", "Take the stake back, when the unbonding time is over."),
    },
    examples=(
        ("hopfare stake join 1", "Join with one coin."),
        ("hopfare stake", "What is listed, and what is bound."),
        ("hopfare stake leave", "Then, when the time is over: hopfare stake take"),
    ),
)
def stake() -> None:
    """This relay's place on the network's list, the registry on the chain.

    Whoever wants to be found puts up a stake. It is not spent, and nobody can take it; it comes back some
    time after the relay has left.
    """


@click.command(cls=ManualCommand, examples=(("hopfare stake show --json", "For a program."),))
@common_options
@json_option
def show(common: Common, as_json: bool) -> None:
    """Show this account's entry in the registry and its stake."""
    _tell(ask_wallet(_load(common), "wallet-stake"), as_json)


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare stake join 1", "At the address of relay.advertise or relay.listen."),
        ("hopfare stake join 1 --address 203.0.113.7:4433", "At another one."),
    ),
    notes=NOTES_ACCOUNT,
)
@common_options
@json_option
@click.option("--address", "given", metavar="IP:PORT", help="Where others find this relay at first.")
@click.argument("amount", type=AMOUNT)
def join(common: Common, as_json: bool, given: str | None, amount: int) -> None:
    """List this relay with AMOUNT as its stake; one that is listed has its entry changed instead."""
    from overlay.node.io.account import with_payee
    from overlay.node.io.files import load_identity
    from overlay.node.io.stake import join_params

    config = with_payee(_load(common))
    params = join_params(
        load_identity(config), config.payments, config.relay.payee, _address_of(config, given), amount
    )
    _tell(ask_wallet(config, "wallet-stake-join", params), as_json)


@click.command(cls=ManualCommand, examples=(("hopfare stake add 0.5", "Half a coin more."),))
@common_options
@json_option
@click.argument("amount", type=AMOUNT)
def add(common: Common, as_json: bool, amount: int) -> None:
    """Add AMOUNT to the stake."""
    _tell(ask_wallet(_load(common), "wallet-stake-add", {"wei": amount}), as_json)


@click.command(cls=ManualCommand, examples=(("hopfare stake leave", ""),))
@common_options
@json_option
def leave(common: Common, as_json: bool) -> None:
    """Take this relay off the list at once; its stake is free after the unbonding time."""
    _tell(ask_wallet(_load(common), "wallet-stake-leave"), as_json)


@click.command(cls=ManualCommand, examples=(("hopfare stake take", ""),))
@common_options
@json_option
def take(common: Common, as_json: bool) -> None:
    """Take the stake back into the account."""
    _tell(ask_wallet(_load(common), "wallet-stake-take"), as_json)


def describe_stake(answer: dict[str, Any]) -> list[str]:
    """Return the lines that show an entry to a person."""
    coin = answer["coin"]
    lines = [f"account     {answer['account']}"]
    if answer["listed"]:
        lines.append(f"listed      {format_node_id(bytes.fromhex(answer['identity']))}")
        lines.append(f"address     {answer['address']} port {answer['port']}")
    else:
        lines.append("listed      no")
    lines.append(f"stake       {money(answer['stake_wei'], coin)}")
    if answer["free_at_s"]:
        free = datetime.fromtimestamp(answer["free_at_s"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        lines.append(f"free from   {free}: then `hopfare stake take`")
    if not answer["listed"] and not answer["stake_wei"]:
        lines.append(f"The least stake is {money(answer['least_wei'], coin)}: `hopfare stake join AMOUNT`")
    return lines


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(show_json(answer))
        return
    for line in describe_stake(answer):
        click.echo(line)


def _load(common: Common) -> Config:
    config = common.load()
    require_payments(config)
    return config


def _address_of(config: Config, given: str | None) -> Address:
    from overlay.config.check import advertised_addresses

    if given is not None:
        try:
            return parse_address_value(given)
        except ValueError as error:
            raise ConfigError(f"--address {given}: {error}") from None
    addresses = advertised_addresses(config)
    if not addresses:
        raise ConfigError(
            "where others find this relay is not known: set relay.advertise, or give --address IP:PORT"
        )
    return next((one for one in addresses if ":" not in one.ip), addresses[0])
