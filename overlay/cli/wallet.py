"""`hopfare wallet`: the account, its key, its purses."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.money import (
    AMOUNT,
    NOTES_ACCOUNT,
    ask_wallet,
    find_account,
    money,
    require_payments,
    show_json,
)
from overlay.cli.options import Common, common_options, json_option
from overlay.config.model import Config
from overlay.errors import ConfigError
from payments.errors import KeyFileError
from payments.keys import checksum_address

MAX_LINES = 20
"""Purses that are listed for a person; those that owe most come first."""


@click.command(
    cls=LazyGroup,
    default="show",
    table={
        "show": ("overlay.cli.wallet:show", "The account, its money, its purses (what `wallet` alone does)."),
        "new": ("overlay.cli.wallet_key:new", "Make a key."),
        "import": ("overlay.cli.wallet_key:import_key", "Use a key that you have."),
        "fund": ("overlay.cli.wallet:fund", "How to send it coins, with a QR code."),
        "open": ("overlay.cli.wallet:open_purse", "Open a purse towards a relay."),
        "top-up": ("overlay.cli.wallet:top_up", "Add to a purse."),
        "unlock": ("overlay.cli.wallet:unlock", "Begin to take back what is left in a purse."),
        "withdraw": ("overlay.cli.wallet:withdraw", "Take it back, when the notice is over."),
        "release": ("overlay.cli.wallet:release", "Let a payer have the rest of its purse at once."),
        "cash-out": ("overlay.cli.wallet:cash_out", "Send claimed earnings to an account."),
    },
    examples=(
        ("hopfare wallet new", "Make a key; then send its account coins."),
        ("hopfare wallet", "Show address, balance and purses."),
        ("hopfare wallet fund 0.5", "A QR code for a phone's wallet that asks for half a coin."),
        ("hopfare wallet COMMAND --help", "More on each command."),
    ),
)
def wallet() -> None:
    """This node's account on the chain: its money, its key, and the purses that it pays others from.

    A purse is a deposit for one payee. The node opens and fills purses by itself, within the limits of
    [payments]; these commands are for looking and for doing it by hand.
    """


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare wallet", "The same: show it."),
        ("hopfare wallet show --json", "For a program; amounts in wei are decimal texts."),
    ),
)
@common_options
@json_option
def show(common: Common, as_json: bool) -> None:
    """Show the account: address, balance, what can be cashed out, and its purses. Needs no passphrase."""
    config = common.load()
    answer = ask_wallet(config, "wallet")
    if as_json:
        click.echo(show_json(answer))
        return
    for line in describe_wallet(answer):
        click.echo(line)


def describe_wallet(answer: dict[str, Any]) -> list[str]:
    """Return the lines that show an account to a person."""
    coin = answer["coin"]
    rows = [
        ("address", answer["address"]),
        ("chain", f"{answer['chain_id']}, block {answer['block']}"),
        ("balance", money(answer["balance_wei"], coin)),
        ("to cash out", money(answer["cash_out_wei"], coin)),
        ("gas spent", money(answer["gas_wei"], coin)),
    ]
    if answer["payee"] != answer["address"]:
        rows.insert(1, ("is paid to", answer["payee"]))
    lines = [f"{name:<12} {value}" for name, value in rows]
    if not answer["balance_wei"]:
        lines.append("It has no coins: `hopfare wallet fund` tells how to send it some.")
    if answer["purses"]:
        lines += ["", f"purses that it pays from (notice {format_span(answer['notice_s'])})"]
        lines.append(f"  {'payee':<42}  {'deposited':>16}  {'paid':>16}  {'left':>16}  state")
        for row in answer["purses"]:
            amounts = (money(row[f"{name}_wei"], coin) for name in ("deposited", "paid", "left"))
            cells = "  ".join(f"{amount:>16}" for amount in amounts)
            state = row["state"]
            if state == "unlocking":
                state += f" until {format_time(row['unlock_at_s'])}"
            lines.append(f"  {row['payee']}  {cells}  {state}")
    if answer["paying_us"]:
        lines += ["", "purses that pay it"]
        lines.append(f"  {'payer':<42}  {'earned':>16}  {'claimed':>16}  {'unclaimed':>16}")
        for row in answer["paying_us"][:MAX_LINES]:
            amounts = (money(row[f"{name}_wei"], coin) for name in ("worth", "claimed", "unclaimed"))
            lines.append(f"  {row['payer']}  " + "  ".join(f"{amount:>16}" for amount in amounts))
        if len(answer["paying_us"]) > MAX_LINES:
            lines.append(f"  and {len(answer['paying_us']) - MAX_LINES} that owe less (--json lists them)")
    return lines


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare wallet fund", "Address and QR code."),
        ("hopfare wallet fund 0.5", "A QR code that asks the phone's wallet for half a coin."),
    ),
    notes=(("QR code", "An `ethereum:` address as in EIP-681, which wallets on phones read."),),
)
@common_options
@json_option
@click.argument("amount", type=AMOUNT, required=False)
def fund(common: Common, as_json: bool, amount: int | None) -> None:
    """Show how to send this account coins: its address, and a QR code for a wallet on a phone."""
    import segno

    config = common.load()
    address = account_of(config)
    chain_id = config.payments.chain_id
    uri = f"ethereum:{address}" + (f"@{chain_id}" if chain_id else "")
    if amount is not None:
        uri += f"?value={amount}"
    if as_json:
        click.echo(show_json({"address": address, "chain_id": chain_id, "uri": uri, "wei": amount or 0}))
        return
    what = money(amount, config.payments.coin) if amount is not None else config.payments.coin
    where = f"on chain {chain_id}" if chain_id else "on the network's chain"
    click.echo(f"Send {what} {where} to")
    click.echo(f"  {address}")
    click.echo()
    segno.make(uri, error="m", micro=False).terminal(out=sys.stdout, compact=True, border=2)
    click.echo()
    click.echo("Only what you can afford to lose: whoever has this machine has the key.")


def account_of(config: Config) -> str:
    """Return the account's address, from its key file. Raises KeyFileError, or ConfigError if it has none."""
    from payments.io.keystore import read_address

    if not config.key_file.exists():
        raise KeyFileError(
            f"There is no key file {config.key_file}: make one with `hopfare wallet new`, or name yours with "
            "payments.key_file."
        )
    address = read_address(config.key_file)
    if address is None:
        raise ConfigError(f"{config.key_file} does not name its address")
    return checksum_address(address)


@click.command(
    "open",
    cls=ManualCommand,
    examples=(("hopfare wallet open 0xPAYEE 0.1", "A purse with a tenth of a coin for that account."),),
    notes=(
        ("PAYEE", "An account, or the name of a node, whose descriptor says who is paid for it."),
        ("Usually", "Not needed: the node opens purses by itself when it needs them."),
        *NOTES_ACCOUNT,
    ),
)
@common_options
@json_option
@click.argument("payee")
@click.argument("amount", type=AMOUNT)
def open_purse(common: Common, as_json: bool, payee: str, amount: int) -> None:
    """Open a purse towards PAYEE with AMOUNT. Only PAYEE can be paid from it; the rest can be taken back."""
    _deposit(common, "wallet-open", payee, amount, as_json=as_json)


@click.command(
    "top-up",
    cls=ManualCommand,
    examples=(("hopfare wallet top-up 0xPAYEE 0.1", "A tenth of a coin more."),),
    notes=NOTES_ACCOUNT,
)
@common_options
@json_option
@click.argument("payee")
@click.argument("amount", type=AMOUNT)
def top_up(common: Common, as_json: bool, payee: str, amount: int) -> None:
    """Add AMOUNT to the purse towards PAYEE. It cancels no notice."""
    _deposit(common, "wallet-top-up", payee, amount, as_json=as_json)


def _deposit(common: Common, method: str, payee: str, amount: int, *, as_json: bool) -> None:
    config = common.load()
    require_payments(config)
    answer = ask_wallet(config, method, {"payee": find_account(config, payee), "wei": amount})
    coin = config.payments.coin
    _tell(
        answer,
        f"The purse towards {answer['payee']} has {money(answer['deposited_wei'], coin)} in all "
        f"(gas: {money(answer['gas_wei'], coin)}).",
        as_json=as_json,
    )


@click.command(
    cls=ManualCommand,
    examples=(("hopfare wallet unlock 0xPAYEE", "Begin; then wait for the notice's end, and withdraw."),),
    notes=(
        (
            "Notice",
            "The time in which the payee can still claim what it has earned; the contract sets it. Meanwhile "
            "the payee gives no more service for this purse.",
        ),
        *NOTES_ACCOUNT,
    ),
)
@common_options
@json_option
@click.argument("payee")
def unlock(common: Common, as_json: bool, payee: str) -> None:
    """Give notice for the purse towards PAYEE: after it, what is left can be withdrawn."""
    config = common.load()
    require_payments(config)
    answer = ask_wallet(config, "wallet-unlock", {"payee": find_account(config, payee)})
    _tell(
        answer,
        f"The purse can be withdrawn from {format_time(answer['unlock_at_s'])} on: `hopfare wallet withdraw "
        f"{answer['payee']}`.",
        as_json=as_json,
    )


@click.command(
    cls=ManualCommand,
    examples=(("hopfare wallet withdraw 0xPAYEE", "Take back what is left."),),
    notes=NOTES_ACCOUNT,
)
@common_options
@json_option
@click.argument("payee")
def withdraw(common: Common, as_json: bool, payee: str) -> None:
    """Take back what is left in the purse towards PAYEE, when its notice is over or PAYEE has released it."""
    config = common.load()
    require_payments(config)
    answer = ask_wallet(config, "wallet-withdraw", {"payee": find_account(config, payee)})
    coin = config.payments.coin
    _tell(
        answer,
        f"{money(answer['withdrawn_wei'], coin)} came back (gas: {money(answer['gas_wei'], coin)}).",
        as_json=as_json,
    )


@click.command(
    cls=ManualCommand,
    examples=(("hopfare wallet release 0xPAYER", "As a favour: the payer need not wait for the notice."),),
    notes=(("Before", "What the purse owes this node is claimed first."), *NOTES_ACCOUNT),
)
@common_options
@json_option
@click.argument("payer")
def release(common: Common, as_json: bool, payer: str) -> None:
    """Let PAYER have the rest of its purse towards this node at once, without notice."""
    config = common.load()
    require_payments(config)
    answer = ask_wallet(config, "wallet-release", {"payer": find_account(config, payer)})
    _tell(answer, f"{answer['payer']} can withdraw the rest of its purse now.", as_json=as_json)


@click.command(
    "cash-out",
    cls=ManualCommand,
    examples=(
        ("hopfare wallet cash-out", "All that was claimed, to this node's own account."),
        ("hopfare wallet cash-out --to 0xACCOUNT 1.5", "One and a half coins to another account."),
    ),
    notes=(
        ("First", "Tickets become money by `hopfare redeem` (or by the node itself); this sends the money."),
        *NOTES_ACCOUNT,
    ),
)
@common_options
@json_option
@click.option("--to", metavar="ACCOUNT", help="Where it goes; by default to this node's own account.")
@click.argument("amount", type=AMOUNT, required=False)
def cash_out(common: Common, as_json: bool, to: str | None, amount: int | None) -> None:
    """Send AMOUNT (by default all) of what was claimed to an account."""
    config = common.load()
    require_payments(config)
    params: dict[str, object] = {}
    if to is not None:
        params["to"] = find_account(config, to)
    if amount is not None:
        params["wei"] = amount
    answer = ask_wallet(config, "wallet-cash-out", params)
    coin = config.payments.coin
    _tell(
        answer,
        f"{money(answer['wei'], coin)} went to {answer['to']} (gas: {money(answer['gas_wei'], coin)}).",
        as_json=as_json,
    )


def _tell(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(show_json(answer) if as_json else text)


def format_time(unix_s: float) -> str:
    """Return a time as 2026-11-22 16:35 UTC."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"


def format_span(seconds: int) -> str:
    """Return a time span in its largest fitting unit, such as "3 days"."""
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{seconds} seconds"


def write_target(config: Config) -> Path:
    """Return where a new key goes. Raises KeyFileError if one is there."""
    if config.key_file.exists():
        raise KeyFileError(
            f"{config.key_file} is already there: a key is never overwritten. Move it away (it may hold "
            "money), or name another file with payments.key_file."
        )
    return config.key_file
