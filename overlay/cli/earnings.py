"""`hopfare earnings` and `hopfare redeem`."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.money import NOTES_ACCOUNT, ask_wallet, money, show_json
from overlay.cli.options import Common, common_options, json_option
from overlay.cli.wallet import MAX_LINES
from payments.pricing import format_coin

_DAY_S = 86400
_BAR_CELLS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLUMNS = ("packets", "tickets", "earned_wei", "claimed_wei", "gas_wei")


@dataclass(slots=True)
class Line:
    """What one day or one neighbour brought in."""

    name: str
    packets: int = 0
    tickets: int = 0
    earned_wei: int = 0
    claimed_wei: int = 0
    gas_wei: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the ledger."""
        for column in _COLUMNS:
            setattr(self, column, getattr(self, column) + int(row[column]))


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare earnings", "The last thirty days, day by day, as a plot and a table."),
        ("hopfare earnings --by neighbour", "Who brought in how much."),
        (
            "hopfare earnings --since 2026-01-01 --csv > year.csv",
            "For a spreadsheet.",
        ),
    ),
    notes=(
        ("Earned", "What the tickets of that day are worth; it is yours once it is claimed."),
        ("Claimed", "What claims on the chain brought in; `hopfare wallet cash-out` sends it on."),
        ("Neighbour", "The account that pays."),
        ("Days", "Of UTC."),
    ),
)
@common_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values, amounts in coins.")
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 36500), help="How far back.")
@click.option("--since", metavar="DATE", type=click.DateTime(["%Y-%m-%d"]), help="From this day on.")
@click.option("--by", type=click.Choice(["day", "neighbour"]), default="day", show_default=True)
@click.option("--plot/--no-plot", default=True, show_default=True, help="Draw bars.")
def earnings(
    common: Common, as_json: bool, as_csv: bool, days: int, since: datetime | None, by: str, plot: bool
) -> None:
    """Show what this node earned: by day or by neighbour, what is not claimed yet, and gas spent."""
    if as_json and as_csv:
        raise click.UsageError("Choose --json or --csv: one or the other.")
    config = common.load()
    today = int(time.time() // _DAY_S)
    first = today - days + 1 if since is None else int(since.replace(tzinfo=UTC).timestamp() // _DAY_S)
    answer = ask_wallet(config, "wallet-earnings", {"first_day": first})
    if as_json:
        for row in answer["days"]:
            row["date"] = _date(row["day"])
        click.echo(show_json(answer))
    elif as_csv:
        click.echo(to_csv(answer), nl=False)
    else:
        for line in describe_earnings(answer, by, first, today, plot=plot):
            click.echo(line)


def to_csv(answer: dict[str, Any]) -> str:
    """Return the rows of each day and neighbour as comma-separated values, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("date", "neighbour", "packets", "tickets", "earned", "claimed", "gas", "coin"))
    for row in answer["days"]:
        amounts = (format_coin(row[column]) for column in ("earned_wei", "claimed_wei", "gas_wei"))
        writer.writerow(
            (
                _date(row["day"]),
                row["neighbour"],
                row["packets"],
                row["tickets"],
                *amounts,
                answer["coin"],
            )
        )
    return text.getvalue()


def describe_earnings(answer: dict[str, Any], by: str, first: int, today: int, *, plot: bool) -> list[str]:
    """Return the lines that show earnings to a person."""
    coin = answer["coin"]
    rows = answer["days"]
    lines: list[Line] = []
    if by == "day":
        begin = max(first, min((row["day"] for row in rows), default=today))
        by_name = {day: Line(_date(day)) for day in range(begin, today + 1)}
        for row in rows:
            by_name.setdefault(row["day"], Line(_date(row["day"]))).add(row)
        lines = list(by_name.values())
    else:
        by_account: dict[str, Line] = {}
        for row in rows:
            by_account.setdefault(row["neighbour"], Line(row["neighbour"])).add(row)
        lines = sorted(by_account.values(), key=lambda line: -line.earned_wei)
    total = Line("all")
    for row in rows:
        total.add(row)
    shown = table(lines, total, coin)
    if plot and any(line.earned_wei for line in lines):
        shown = [*plot_bars([(line.name, line.earned_wei) for line in lines], coin), "", *shown]
    owing = sum(1 for row in answer["purses"] if row["unclaimed_wei"])
    shown += [
        "",
        f"not claimed yet  {money(answer['unclaimed_wei'], coin)}"
        + (f", in {count_purses(owing)} (`hopfare redeem` claims it now)" if owing else ""),
    ]
    return shown


def table(lines: Sequence[Line], total: Line, coin: str) -> list[str]:
    """Return rows in aligned columns, with a total."""
    width = max([len(line.name) for line in lines] + [10])
    shown = [f"{'':<{width}}  {'packets':>12}  {'tickets':>12}  {'earned':>18}  {'claimed':>18}  {'gas':>18}"]
    for line in (*lines, total):
        amounts = (line.earned_wei, line.claimed_wei, line.gas_wei)
        cells = "  ".join(f"{money(wei, coin):>18}" for wei in amounts)
        shown.append(f"{line.name:<{width}}  {line.packets:>12}  {line.tickets:>12}  {cells}")
    return shown


def plot_bars(values: Sequence[tuple[str, int]], coin: str) -> list[str]:
    """Return a bar for each value, the greatest as long as fits."""
    width = max(len(name) for name, _ in values)
    most = max(max(wei for _, wei in values), 1)
    lines = []
    for name, wei in values:
        eighths = wei * _BAR_CELLS * 8 // most
        bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
        lines.append(f"{name:<{width}}  {bar:<{_BAR_CELLS}}  {money(wei, coin)}")
    return lines


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare redeem", "Claim now all that brings in more than its gas."),
        ("hopfare redeem --dry-run", "Only show what there is to claim."),
    ),
    notes=(
        (
            "Usually",
            "Not needed: a running relay claims by itself when it is worth payments.claim_multiple times its "
            "gas, and in any case before a purse can be emptied.",
        ),
        ("Before moving", "Claim before you move a relay to another machine or give up its ledger."),
        *NOTES_ACCOUNT,
    ),
)
@common_options
@json_option
@click.option("--dry-run", is_flag=True, help="Claim nothing.")
def redeem(common: Common, as_json: bool, dry_run: bool) -> None:
    """Claim on the chain what this node's tickets are worth, without waiting for a better moment."""
    answer = ask_wallet(common.load(), "wallet-redeem", {"dry_run": dry_run})
    if as_json:
        click.echo(show_json(answer))
        return
    coin = answer["coin"]
    waiting = [row for row in answer["purses"] if row["unclaimed_wei"]]
    if answer["claims"]:
        click.echo(
            f"Claimed {money(answer['claimed_wei'], coin)} from {count_purses(answer['claims'])} (gas: "
            f"{money(answer['gas_wei'], coin)}); `hopfare wallet cash-out` sends it on."
        )
    elif not waiting:
        click.echo("There is nothing to claim.")
    elif not dry_run:
        click.echo("Nothing was claimed: no purse owes more than the gas of claiming it.")
    for row in waiting[:MAX_LINES]:
        click.echo(f"  {row['payer']}  {money(row['unclaimed_wei'], coin)} not claimed")
    if len(waiting) > MAX_LINES:
        click.echo(f"  and {len(waiting) - MAX_LINES} that owe less (--json lists them)")


def count_purses(count: int) -> str:
    """Return "1 purse" or "2 purses"."""
    return f"{count} purse" if count == 1 else f"{count} purses"


def _date(day: int) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day):%Y-%m-%d}"
