"""What the commands about money share: asking whoever has the account, amounts, addresses, waiting.

The account is in use in one place. Where a node runs with the state folder, it is asked through its control
socket; else the command opens the account itself, which keeps a node from starting meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click
import trio

from overlay.config.check import check_payments
from overlay.config.model import Config
from overlay.config.values import amount_wei
from overlay.errors import ConfigError, DecodeError, NotRunningError
from overlay.logs import configure_logging
from overlay.node.io.account import AskPassphrase, read_passphrase
from overlay.node.io.local import call_local
from payments.keys import checksum_address, parse_address
from payments.pricing import format_coin

ANSWER_TIMEOUT_S = 700.0
"""A transaction is waited for up to ten minutes."""
NOTES_ACCOUNT = (
    (
        "Running nodes",
        "The command asks the node that runs with the same state folder; if none does, it opens the key.",
    ),
    (
        "Passphrase",
        "Read from payments.passphrase_file or the variable HOPFARE_PASSPHRASE; else the command asks.",
    ),
)


def require_payments(config: Config) -> None:
    """Raise ConfigError, with all problems, unless payments are on and their settings agree."""
    if not config.payments.is_on:
        raise ConfigError(
            "payments are off: set payments.chain_id, payments.rpc and payments.purses to those of your "
            "network"
        )
    problems = check_payments(config)
    if problems:
        raise ConfigError("\n".join(f"{config.file or 'the configuration'}: {text}" for text in problems))


def ask_wallet(config: Config, method: str, params: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Have a method of the account done by whoever has the account; its answer.

    Raises LocalControlError if the running node refuses; else as `overlay.node.io.wallet` does.
    """
    require_payments(config)
    params = dict(params or {})
    with waiting("asking the running node"):
        try:
            return call_local(config.state_dir, method, params, timeout_s=ANSWER_TIMEOUT_S)
        except NotRunningError:
            pass
    configure_logging("warning")
    if method == "wallet-earnings":
        return _read_earnings(config, params)
    if method == "wallet":
        with waiting("asking the chain"):
            return trio.run(_show, config)
    # Asked for now: later the display would be in the way.
    known = read_passphrase(config, passphrase_asker()) if config.key_file.exists() else ""
    with waiting("asking the chain, and waiting for it"):
        return trio.run(_do, config, method, params, lambda _: known)


async def _show(config: Config) -> dict[str, Any]:
    from overlay.node.io.wallet import open_view

    async with open_view(config) as view:
        return await view.show()


async def _do(config: Config, method: str, params: dict[str, Any], ask: AskPassphrase) -> dict[str, Any]:
    from overlay.node.io.wallet import open_wallet

    async with open_wallet(config, ask) as wallet:
        return await wallet.handle(method, params)


def _read_earnings(config: Config, params: dict[str, Any]) -> dict[str, Any]:
    from overlay.node.io.account import LEDGER_FILE
    from overlay.node.io.local import lock_state
    from overlay.node.io.wallet import domain_of
    from overlay.node.io.wallet_view import read_earnings
    from payments.io.ledger import Ledger

    if not config.relay.payee:
        raise ConfigError("there is no account to be paid to: make one with `hopfare wallet new`")
    path = config.state_dir / LEDGER_FILE
    with lock_state(config.state_dir), Ledger(path) as ledger:
        return read_earnings(
            ledger,
            domain_of(config.payments),
            config.relay.payee,
            config.payments.coin,
            int(params.get("first_day", 0)),
        )


def passphrase_asker() -> AskPassphrase | None:
    """Return what asks the person at the terminal, or None if there is none."""
    if not sys.stdin.isatty():
        return None

    def ask(question: str) -> str:
        return str(click.prompt(question, hide_input=True, err=True))

    return ask


class waiting:  # noqa: N801 - used as a statement, like contextlib's
    """Shows on a terminal that something takes a while; says nothing elsewhere."""

    def __init__(self, text: str) -> None:
        """Show `text`."""
        self._text = text
        self._status: Any = None

    def __enter__(self) -> None:
        """Begin."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._status = Status(self._text, console=Console(stderr=True, highlight=False, markup=False))
            self._status.start()

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._status is not None:
            self._status.stop()


class AmountType(click.ParamType[int]):
    """An amount of money on the command line; the command receives whole wei."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read "0.05" (coins) or "2000 gwei"."""
        if isinstance(value, int):
            return value
        try:
            return amount_wei(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


AMOUNT = AmountType()


def find_account(config: Config, text: str) -> str:
    """Return the account that `text` means: an address, or the payee of a node by its name.

    Raises ConfigError if it is neither, or if nobody is paid for that node.
    """
    if text.lower().startswith("0x"):
        try:
            return checksum_address(parse_address(text))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    from overlay.identity import parse_node_id
    from overlay.node.io.files import load_directory

    try:
        node_id = parse_node_id(text)
    except DecodeError:
        raise ConfigError(
            f"{text!r} is neither an account (0x and 40 digits) nor a node's name (52 characters)"
        ) from None
    directory, _ = load_directory(config, time.time())
    entry = directory.get(node_id)
    if entry is None:
        raise ConfigError(f"the directory has no node {text}")
    if not entry.descriptor.payee:
        raise ConfigError(f"the node {text} names no account to be paid to")
    return checksum_address(entry.descriptor.payee)


def show_json(answer: Mapping[str, Any]) -> str:
    """Return JSON in which amounts of wei are decimal texts: they exceed what many readers keep exactly."""

    def exact(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: exact(part, str(name)) for name, part in value.items()}
        if isinstance(value, list):
            return [exact(part) for part in value]
        is_wei = key.endswith("_wei") or key == "wei" or key.startswith("wei_")
        return str(value) if is_wei and isinstance(value, int) else value

    return json.dumps(exact(answer), indent=2)


def money(wei: int, coin: str) -> str:
    """Return an amount as people read it: cut to six digits after the point or after its leading zeros, so
    that it never shows more than there is; in wei or gwei if it is tiny.
    """
    if 0 < abs(wei) < 10**10:
        return f"{wei} wei" if abs(wei) < 10**7 else f"{wei / 1e9:.6g} gwei"
    whole, _, part = format_coin(wei).partition(".")
    if part and len(part) > 6:
        zeros = len(part) - len(part.lstrip("0")) if whole.lstrip("-") == "0" else 0
        part = part[: zeros + 6].rstrip("0")
    return f"{whole}.{part} {coin}" if part else f"{whole} {coin}"
