"""The demo's live view on a terminal: relays and circuits, redrawn every second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlay.demo import view, view_money
from overlay.demo.view import Place

Observation = tuple[Mapping[str, view.Status], view.Status | None, Mapping[str, float], list[dict[str, Any]]]
REFRESH_S = 1.0


def show_live(observe: Callable[[], Observation], places: Sequence[Place]) -> NoReturn:
    """Show until an exception (Ctrl-C is one) ends it; the last picture stays on the screen."""
    with Live(auto_refresh=False) as live:
        while True:
            live.update(picture(observe(), places), refresh=True)
            time.sleep(REFRESH_S)


def picture(observation: Observation, places: Sequence[Place]) -> Group:
    """One frame."""
    statuses, client, rates, circuits = observation
    relays = Table("relay", "role", "address", "country", "state", "links", "circuits", "carries", box=None)
    for row in view.relay_rows(places, statuses, rates):
        relays.add_row(*(Text(cell) for cell in row))
    names = {place.node_id: place.name for place in places}
    table = Table("circuit", "path", "state", "age", "connections", "round trip", "down", box=None)
    for row in view.circuit_rows(circuits, names):
        table.add_row(*(Text(cell) for cell in row))
    parts: list[RenderableType] = [Text(), relays, Text(), table]
    money = Table("coins", "tickets", "earned", "paid onward", "kept", "claimed", box=None)
    for row in view_money.money_rows(places, statuses, client):
        money.add_row(*(Text(cell) for cell in row))
    if money.row_count:
        parts += [Text(), money]
    return Group(*parts, Text(view.summary_line(statuses, client, rates)))
