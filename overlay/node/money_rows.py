"""What `hopfare status` and the local method "tabs" show of a node's money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overlay.identity import format_node_id
from payments.keys import checksum_address

if TYPE_CHECKING:
    from overlay.links.link import Link
    from overlay.node.money import Money


def name_of(link: Link) -> str:
    """A neighbour's name; a customer has none."""
    return "customer" if link.peer is None else format_node_id(link.peer)


def list_tabs(money: Money) -> list[dict[str, Any]]:
    """One row for each side of each link that money flows on."""
    rows: list[dict[str, Any]] = []
    for link, tabs in money.desk.links.items():
        earned, owed = money.meters(link)
        earning, paying = tabs.earning, tabs.paying
        if earning is not None and (earning.tab.payer or earning.prices.dearest_wei):
            tab, payer = earning.tab, earning.tab.payer
            view = money.purses.view_of(payer)
            rows.append(
                {
                    "side": "earning",
                    "peer": name_of(link),
                    "payer": checksum_address(payer) if payer else "",
                    "open": tab.is_open,
                    "waiting": earning.is_waiting,
                    "worth_wei": tab.worth_wei,
                    "spent_wei": tab.spent_wei,
                    "claimed_wei": view.claimed_wei,
                    "unclaimed_wei": max(0, tab.worth_wei - view.claimed_wei),
                    "deposited_wei": view.deposited_wei,
                    "tickets": tab.tickets,
                    "packets": earned.packets,
                    "refused_packets": earned.refused_packets,
                }
            )
        if paying is not None and paying.is_wanted:
            own = paying.tab
            rows.append(
                {
                    "side": "paying",
                    "peer": name_of(link),
                    "payee": checksum_address(paying.payee),
                    "open": paying.is_open,
                    "trouble": paying.explain() or "",
                    "worth_wei": paying.worth_wei,
                    "spent_wei": 0 if own is None else own.spent_wei,
                    "owed_wei": 0 if own is None else own.owed_wei,
                    "window_wei": 0 if own is None else own.window_wei,
                    "deposited_wei": paying.view.deposited_wei,
                    "claimed_wei": paying.view.claimed_wei,
                    "packets": owed.packets,
                }
            )
    return rows
