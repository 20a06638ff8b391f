"""What the demo shows of money: each hop's tickets and coins, and everybody's balance. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overlay.demo.money import COIN, Balance
from overlay.demo.view import Place, Status
from payments.pricing import GIGABYTE, PACKET_BYTES, format_coin

_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Account:
    """One node's money, as the node tells it: what its tabs say, and what it did on the chain."""

    packets: int = 0
    tickets: int = 0
    paid_wei: int = 0
    """What it was given in tickets."""
    onward_wei: int = 0
    """What it gave in tickets."""
    used_wei: int = 0
    """What was carried for the tickets it gave; the rest is prepaid."""
    sent_packets: int = 0
    """Packets that it paid others for."""
    claimed_wei: int = 0
    unclaimed_wei: int = 0
    gas_wei: int = 0


def read_account(status: Status, wallet: Mapping[str, Any]) -> Account:
    """Return a node's money from its status and its wallet; all zeros if it has none."""
    tabs = status.get("money", {}).get("tabs", [])
    earning = [tab for tab in tabs if tab["side"] == "earning"]
    paying = [tab for tab in tabs if tab["side"] == "paying"]
    payers = wallet.get("paying_us", [])
    return Account(
        sum(tab["packets"] for tab in earning),
        sum(tab["tickets"] for tab in earning),
        sum(tab["worth_wei"] for tab in earning),
        sum(tab["worth_wei"] for tab in paying),
        sum(tab["spent_wei"] for tab in paying),
        sum(tab["packets"] for tab in paying),
        sum(row["claimed_wei"] for row in payers),
        sum(row["unclaimed_wei"] for row in payers),
        wallet.get("gas_wei", 0),
    )


def money_table(
    places: Sequence[tuple[Place, str]], accounts: Mapping[str, Account], client: Account
) -> list[str]:
    """The lines that show each hop's packets, tickets, earnings, claims and gas, with its position."""
    head = ("packets", "tickets", "earned", "paid onward", "kept", "claimed", "gas")
    lines = [f"  {'':<12}" + "".join(f"{word:>14}" for word in head)]
    for place, position in places:
        found = accounts.get(place.name)
        if found is None:
            continue
        cells = (
            str(found.packets),
            str(found.tickets),
            coins(found.paid_wei),
            coins(found.onward_wei),
            coins(found.paid_wei - found.onward_wei),
            coins(found.claimed_wei),
            coins(found.gas_wei),
        )
        lines.append(f"  {place.name:<4} {position:<7}" + "".join(f"{cell:>14}" for cell in cells))
    cells = (str(client.sent_packets), "-", "-", coins(client.onward_wei), "-", "-", coins(client.gas_wei))
    lines.append(f"  {'you':<12}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def spending(client: Account) -> str:
    """What the customer spent, and what a gigabyte of packets cost."""
    if not client.sent_packets:
        return "you paid nothing yet"
    per_gb = client.used_wei * GIGABYTE // (client.sent_packets * PACKET_BYTES)
    return (
        f"you paid {coins(client.onward_wei)} {COIN} coins in tickets: {coins(client.used_wei)} for "
        f"{client.sent_packets} packets ({coins(per_gb)} per GB), the rest is prepaid"
    )


def money_rows(
    places: Sequence[Place], statuses: Mapping[str, Status], client: Status | None
) -> list[tuple[str, ...]]:
    """The live view's table of money: name, tickets, earned, paid onward, kept, claimed."""
    rows: list[tuple[str, ...]] = []
    for place in places:
        tabs = statuses.get(place.name, {}).get("money", {}).get("tabs", [])
        if not tabs:
            continue
        found = read_account(statuses[place.name], {})
        claimed = sum(tab["claimed_wei"] for tab in tabs if tab["side"] == "earning")
        rows.append(
            (
                place.name,
                str(found.tickets),
                coins(found.paid_wei),
                coins(found.onward_wei),
                coins(found.paid_wei - found.onward_wei),
                coins(claimed),
            )
        )
    paid = read_account(client or {}, {}).onward_wei
    if rows:
        rows.append(("you", "-", "-", coins(paid), "-", "-"))
    return rows


def balance_lines(balance: Balance, names: Mapping[str, str]) -> list[str]:
    """The lines that show where all coins are, and that there are as many as in the beginning.

    `names` are the nodes' by their accounts; the account without one is the bank.
    """
    nodes = {names[each]: wei for each, wei in balance.accounts_wei.items() if each in names}
    bank = sum(balance.accounts_wei.values()) - sum(nodes.values())
    rows = [("the bank", bank), *sorted(nodes.items())]
    rows += [("in purses", balance.purses_wei)]
    if balance.registry_wei:
        rows.append(("staked", balance.registry_wei))
    rows += [("gas, burnt", balance.gas_wei)]
    lines = [f"all coins of the chain, as of block {balance.block}"]
    lines += [f"  {name:<12}{format_coin(wei):>28}" for name, wei in rows]
    verdict = "equal, to the wei" if balance.is_even else "NOT EQUAL: money was made or lost"
    lines += [
        f"  {'sum':<12}{format_coin(balance.total_wei):>28}",
        f"  {'before':<12}{format_coin(balance.first_wei):>28}   {verdict}",
    ]
    return lines


def coins(wei: int) -> str:
    """Return an amount in coins, cut to nine digits after the point."""
    whole, _, part = format_coin(wei).partition(".")
    part = part[:_DIGITS].rstrip("0")
    return f"{whole}.{part}" if part else whole
