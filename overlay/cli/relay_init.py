"""`hopfare relay init`: the few questions that a relay's operator must answer, and what stands in the way."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.money import AMOUNT, ask_wallet, money
from overlay.cli.options import Common, common_options, json_option
from overlay.cli.render import format_bytes, render_table
from overlay.config import values
from overlay.config.check import check_relay
from overlay.config.default import render_config
from overlay.config.io.edit import edit_settings
from overlay.config.io.load import default_file
from overlay.config.model import Config
from overlay.descriptor import Address, is_usable_address
from overlay.errors import ConfigError, OverlayError
from overlay.estimate import estimate_months
from overlay.identity import Identity
from overlay.io.files import make_private_directory, write_atomic
from overlay.node.io.dial_back import local_addresses
from overlay.node.io.files import IDENTITY_FILE, load_onion_keys

DEFAULT_PORT = 4433


@click.command(
    "init",
    cls=ManualCommand,
    examples=(
        ("hopfare relay init", "Answer the questions; Enter takes what is proposed."),
        (
            'hopfare relay init --yes --address 203.0.113.7:4433 --price "0.05 per GB"',
            "Without questions.",
        ),
        ("hopfare relay init --check", "Ask nothing, change nothing, look again what stands in the way."),
    ),
    notes=(
        (
            "Again",
            "It may be run again: what is there is proposed as the answer, and the identity is kept.",
        ),
        (
            "Reachability",
            "Whether the world reaches the address only others can tell: they do when the relay runs, and "
            "`hopfare status` says what they found.",
        ),
    ),
)
@common_options
@json_option
@click.option("--yes", is_flag=True, help="Take what is proposed instead of asking.")
@click.option("--check", "only_check", is_flag=True, help="Only check; ask nothing and change nothing.")
@click.option("--exit/--no-exit", "as_exit", default=None, help="Whether it is to be an exit.")
@click.option("--address", metavar="IP:PORT", help="Where others reach it (relay.advertise).")
@click.option("--capacity", metavar="RATE", help='What you offer each way, such as "100 Mbit/s".')
@click.option("--monthly-cap", metavar="SIZE", help='Most in a month, such as "2 TB"; "0 B" for no limit.')
@click.option("--price", metavar="PRICE", help='What you ask, such as "0.05 per GB".')
@click.option("--country", metavar="CODE", help="Where the machine is, two letters.")
@click.option("--family", metavar="NAME", help="A name for all relays that you run.")
@click.option("--stake", "stake_wei", type=AMOUNT, help="Join the registry with this stake, in coins.")
def relay_init(
    common: Common,
    as_json: bool,
    yes: bool,
    only_check: bool,
    as_exit: bool | None,
    stake_wei: int | None,
    **given: str | None,
) -> None:
    """Set a relay up: ask what must be known, check what it needs, and say what it may earn."""
    file = (common.file or default_file()).absolute()
    if not only_check:
        _prepare(file)
        config = Common(file, common.overrides).load()
        _make_keys(config)
        edit_settings(file, _ask(config, given, ask=not yes))
        if as_exit is None:
            as_exit = not yes and click.confirm("Let traffic out to the internet (an exit)?", default=False)
    config = Common(file if file.exists() else None, common.overrides).load()
    findings = check_machine(config, as_exit=bool(as_exit))
    if stake_wei is not None and not only_check:
        findings.append(_join(config, stake_wei))
    report = {
        "name": _name(config),
        "configuration": str(file),
        "findings": [{"what": what, "fine": fine, "text": text} for what, fine, text in findings],
        "estimate": _estimates(config),
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo("\n".join(_describe(report, as_exit=bool(as_exit))))
    if not all(fine for _, fine, _ in findings):
        raise click.exceptions.Exit(1)


def _prepare(file: Path) -> None:
    if not file.exists():
        make_private_directory(file.parent)
        write_atomic(file, render_config().encode(), mode=0o644, replace=False)


def _make_keys(config: Config) -> None:
    make_private_directory(config.state_dir)
    if not (config.state_dir / IDENTITY_FILE).exists():
        Identity.generate().save(config.state_dir / IDENTITY_FILE)
    load_onion_keys(config, time.time(), os.urandom)


def _name(config: Config) -> str:
    with suppress(OverlayError):
        return Identity.load(config.state_dir / IDENTITY_FILE).name
    return ""


# -- questions


def _ask(config: Config, given: dict[str, str | None], *, ask: bool) -> dict[tuple[str, str], Any]:
    """Return the settings of [relay] that the answers make; each is checked as it is given."""
    relay = config.relay
    answers: dict[tuple[str, str], Any] = {}

    def question(key: str, option: str, text: str, proposed: str, parse: Callable[[object], object]) -> str:
        answer = given.get(option)
        if answer is None and not ask:
            answer = proposed
        while True:
            if answer is None:
                answer = _prompt(text, proposed, option)
            try:
                parse(answer)
            except ValueError as error:
                if not ask or given.get(option) is not None:
                    raise ConfigError(f"--{option.replace('_', '-')} {answer}: {error}") from None
                click.echo(f"  it {error}", err=True)
                answer = None
                continue
            if answer != proposed or key not in ("country", "family") or answer:
                answers["relay", key] = answer
            return answer

    proposed = str(relay.advertise[0]) if relay.advertise else _propose_address()
    if not (proposed or ask or given.get("address")):
        raise ConfigError(
            "this machine has no public address of its own: say where others reach it with --address IP:PORT"
        )
    address = question(
        "advertise", "address", "Address and UDP port at which others reach it", proposed, _usable
    )
    answers["relay", "advertise"] = [address]
    rate = f"{relay.capacity_bytes_per_s * 8 // 10**6} Mbit/s" if relay.capacity_bytes_per_s else "100 Mbit/s"
    question("capacity", "capacity", "Capacity that you offer each way", rate, values.rate_bytes_per_s)
    question(
        "monthly_cap",
        "monthly_cap",
        'Most to carry in a month, both ways together ("0 B": no limit)',
        f"{relay.monthly_cap_bytes} B",
        values.size_bytes("0 B", "1000 TiB"),
    )
    if config.payments.is_on:
        price = (
            f"{relay.price_wei_per_packet} wei per packet" if relay.price_wei_per_packet else "0.05 per GB"
        )
        question("price", "price", "Price", price, values.price_wei_per_packet)
    question("country", "country", "Country of the machine, two letters", relay.country, values.country)
    question("family", "family", "A name for all relays that you run", relay.family, _any_text)
    listen = values.address(address)
    if not any(one.port == listen.port for one in relay.listen):
        answers["relay", "listen"] = [f"0.0.0.0:{listen.port}", f"[::]:{listen.port}"]
    return answers


def _prompt(text: str, proposed: str, option: str) -> str:
    try:
        return str(click.prompt(text, default=proposed, show_default=bool(proposed))).strip()
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise
        option = option.replace("_", "-")
        raise ConfigError(
            f"nobody answers here: give --{option}, or --yes to take what is proposed"
        ) from None


def _usable(value: object) -> Address:
    parsed = values.address(value)
    if not is_usable_address(parsed.ip):
        raise ValueError("must be an address that others can dial, not a wildcard")
    return parsed


def _any_text(value: object) -> object:
    return value


def _propose_address() -> str:
    """Return this machine's public address if it has one itself, else nothing."""
    for ip in sorted(local_addresses(), key=lambda ip: (":" in ip, ip)):
        if ipaddress.ip_address(ip).is_global:
            return str(Address(ip, DEFAULT_PORT))
    return ""


# -- checks

Finding = tuple[str, bool, str]
"""What was looked at, whether it is fine, and a sentence."""


def check_machine(config: Config, *, as_exit: bool) -> list[Finding]:
    """Look at everything that a relay (or exit) needs here; changes nothing."""
    found: list[Finding] = [("settings", False, problem) for problem in check_relay(config)]
    if not found:
        found.append(("settings", True, "they fit together"))
    found += [_check_port(address) for address in config.relay.listen]
    found += [_check_address(address) for address in config.relay.advertise]
    if as_exit:
        from exit.io.privileges import missing_privileges

        missing = [("privileges", False, str(one)) for one in missing_privileges()]
        found += missing or [("privileges", True, "all that an exit needs")]
    else:
        found.append(("privileges", True, "a relay needs none"))
    found += _check_clock()
    if config.payments.is_on:
        found += _check_money(config)
    return found


def _check_port(address: Address) -> Finding:
    family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address.ip, address.port))
    except OSError as error:
        return "port", False, f"{address} cannot be listened on: {error.strerror} (does a relay run already?)"
    return "port", True, f"{address} is free; open UDP port {address.port} in the firewall"


def _check_address(address: Address) -> Finding:
    if address.ip in local_addresses():
        return "address", True, f"{address} is this machine's own"
    return (
        "address",
        True,
        f"{address} is not this machine's own: if a router translates addresses, forward UDP port "
        f"{address.port} to this machine, or set relay.port_mapping = true",
    )


def _check_clock() -> list[Finding]:
    try:
        status = Path("/run/systemd/timesync/synchronized").exists()
    except OSError:
        status = False
    return [("clock", True, "kept by the network")] if status else []


def _check_money(config: Config) -> list[Finding]:
    if not config.key_file.exists():
        return [("account", False, "there is none: make one with `hopfare wallet new`")]
    found: list[Finding] = []
    try:
        answer = ask_wallet(config, "wallet")
    except (OverlayError, OSError) as error:
        return [("chain", False, str(error))]
    found.append(("chain", True, f"{answer['chain_id']} answers"))
    balance, coin = int(answer["balance_wei"]), config.payments.coin
    found.append(
        ("funds", True, f"{money(balance, coin)} in {answer['address']}")
        if balance
        else ("funds", False, f"{answer['address']} has none to pay for gas: see `hopfare wallet fund`")
    )
    if config.payments.registry:
        try:
            entry = ask_wallet(config, "wallet-stake")
        except (OverlayError, OSError) as error:
            found.append(("registry", False, str(error)))
        else:
            found.append(
                ("registry", True, f"listed with {money(int(entry['stake_wei']), coin)}")
                if entry["listed"]
                else ("registry", False, "not listed, so nobody finds it: `hopfare stake join AMOUNT`")
            )
    return found


def _join(config: Config, stake_wei: int) -> Finding:
    from overlay.node.io.account import with_payee
    from overlay.node.io.files import load_identity
    from overlay.node.io.stake import join_params

    config = with_payee(config)
    address = config.relay.advertise[0]
    try:
        params = join_params(load_identity(config), config.payments, config.relay.payee, address, stake_wei)
        entry = ask_wallet(config, "wallet-stake-join", params)
    except (OverlayError, OSError) as error:
        return "registry", False, str(error)
    return "registry", True, f"joined with {money(int(entry['stake_wei']), config.payments.coin)}"


# -- showing


def _estimates(config: Config) -> list[dict[str, Any]]:
    relay = config.relay
    months = estimate_months(relay.capacity_bytes_per_s, relay.monthly_cap_bytes, relay.price_wei_per_packet)
    return [
        {
            "use_percent": month.use_percent,
            "carried_bytes": month.carried_bytes,
            "earned_wei": str(month.earned_wei),
            "earned": money(month.earned_wei, config.payments.coin),
            "capped": month.is_capped,
        }
        for month in months
    ]


def _describe(report: dict[str, Any], *, as_exit: bool) -> list[str]:
    lines = [f"this relay     {report['name'] or '(no identity yet)'}"]
    lines.append(f"configuration  {report['configuration']}")
    lines.append("")
    for finding in report["findings"]:
        lines.append(f"{'ok ' if finding['fine'] else 'NO '} {finding['what']:<11} {finding['text']}")
    rows = [
        {
            "use": f"{row['use_percent']} %",
            "carried": format_bytes(row["carried_bytes"]) + (" (the cap)" if row["capped"] else ""),
            "earned": row["earned"],
        }
        for row in report["estimate"]
    ]
    lines += ["", "A month, by the share of your capacity that customers use (nobody can promise any):"]
    lines += ["  " + line for line in render_table(rows)]
    lines.append("")
    if all(finding["fine"] for finding in report["findings"]):
        lines.append(
            f"Next: hopfare {'exit' if as_exit else 'relay'}     (as a service: docs/operations/install.md)"
        )
    else:
        lines.append("Put right what is marked NO, then look again: hopfare relay init --check")
    return lines
