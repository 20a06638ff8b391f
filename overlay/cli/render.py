"""State as text for people: what a running node answers, in aligned lines and tables. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.candidates import show_price
from payments.pricing import format_coin

_NAME = re.compile(r"[a-z2-7]{52}")
_ACCOUNT = re.compile(r"0x[0-9a-fA-F]{40}")
_UNITS = {
    "_wei": lambda value: _coins(value) if isinstance(value, int) else f"{value:g}",
    "_s": lambda value: format_seconds(value),
    "_ms": lambda value: f"{value:g} ms",
    "_bytes": lambda value: format_bytes(value),
    "_bytes_per_s": lambda value: f"{format_bytes(value)}/s",
}


def render_status(status: Mapping[str, Any]) -> list[str]:
    """Return the lines of a node's status: whether it works, why not, then its figures, known or not."""
    role = str(status.get("role", "hopfare"))
    problems = [str(problem) for problem in status.get("problems", [])]
    works = bool(status.get("ready")) and not problems
    state = "works" if works else "works, with problems" if status.get("ready") else "does not work"
    lines = [f"{role} {state}"]
    lines += [f"  - {problem}" for problem in problems]
    if not works and not problems:
        lines.append("  - it is still starting")
    figures: list[tuple[str, str]] = []
    tables: list[tuple[str, Sequence[Mapping[str, Any]]]] = []
    for key, value in status.items():
        if key in ("role", "ready", "problems"):
            continue
        if key == "money" and isinstance(value, Mapping):
            figures.append(("money", _sum_up_money(value)))
            tables += _money_tables(value.get("tabs") or [])
        elif key == "discovery" and isinstance(value, Mapping):
            figures.append(("discovery", _sum_up_discovery(value)))
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            tables.append((key, value))
        elif isinstance(value, Mapping):
            figures.append((_title(key), ", ".join(f"{_title(k)} {_format(k, v)}" for k, v in value.items())))
        else:
            figures.append((_title(key), _format(key, value)))
    width = max((len(name) for name, _ in figures), default=0)
    lines += [f"  {name:<{width}}  {text}".rstrip() for name, text in figures]
    for key, rows in tables:
        lines += ["", f"{_title(key)} ({len(rows)})", *("  " + line for line in render_table(rows))]
    return lines


_TAB_COLUMNS = {
    "earning": ("peer", "payer", "open", "packets", "tickets", "worth_wei", "spent_wei", "unclaimed_wei"),
    "paying": ("peer", "payee", "open", "trouble", "packets", "worth_wei", "spent_wei", "deposited_wei"),
}
_TAB_TITLES = {"earning": "tabs of those who pay it", "paying": "tabs of those whom it pays"}


def _sum_up_money(money: Mapping[str, Any]) -> str:
    """Return one line on a node's money; amounts in coins."""
    parts = [f"account {money.get('account', '-')}"]
    if money.get("price_wei_per_packet"):
        parts.append(f"price {money['price_wei_per_packet']} wei per packet")
    for side, word in (("earning", "earned"), ("paying", "paid")):
        wei = sum(int(tab["worth_wei"]) for tab in money.get("tabs") or [] if tab.get("side") == side)
        parts.append(f"{word} {_coins(wei)} on these links")
    if money.get("disputes"):
        parts.append(f"{money['disputes']} disputes")
    return ", ".join(parts)


def _sum_up_discovery(discovery: Mapping[str, Any]) -> str:
    """Return one line on what a node knows of the network, and a relay of itself."""
    parts = [
        f"{discovery.get('descriptors', 0)} of {discovery.get('members', 0)} members known "
        f"({discovery.get('source', 'no root list')})",
        f"{discovery.get('neighbours', 0)} neighbours",
    ]
    if discovery.get("published"):
        tested = discovery.get("reachability") or {}
        addresses = [f"{one} ({tested.get(one, 'not tested')})" for one in discovery.get("addresses", [])]
        parts.append(f"published: {', '.join(addresses)}")
    elif "published" in discovery:
        parts.append("not published yet")
    return "; ".join(parts)


def _money_tables(tabs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Return a table for each side of the tabs; all figures are in the JSON."""
    found: list[tuple[str, Sequence[Mapping[str, Any]]]] = []
    for side, columns in _TAB_COLUMNS.items():
        rows = [{name: tab.get(name) for name in columns} for tab in tabs if tab.get("side") == side]
        if rows:
            found.append((_TAB_TITLES[side], rows))
    return found


def render_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table with a column for each key, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_title(column) for column in columns]]
    cells += [[_shorten(_format(column, row.get(column))) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def render_circuits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of a client's circuits: where they go and how they are; the rest is in the JSON."""
    shown = []
    for row in rows:
        countries = row.get("countries") or []
        hops = []
        for place, name in enumerate(row.get("path") or []):
            country = countries[place] if place < len(countries) and countries[place] != "??" else ""
            hops.append(f"{_shorten(str(name))} {country}".strip())
        notes = [word for word in ("isolated", "suspect") if row.get(word)]
        line = {
            "id": row.get("id"),
            "state": row.get("state"),
            "path": hops,
            **{key: row.get(key) for key in ("rtt_ms", "loss", "build_ms", "age_s", "connections")},
            "notes": notes,
        }
        shown.append(line)
    return render_table(shown)


def render_why(rows: Sequence[Mapping[str, Any]], no_path: Mapping[str, Any] | None) -> list[str]:
    """Return why each relay of each circuit was chosen, and what the last failed choice ran into, if any."""
    lines: list[str] = []
    for row in rows:
        price = show_price(int(row.get("price_wei_per_packet") or 0))
        lines += ["", f"circuit {row.get('id')}, {price}:"]
        path, reasons, rules = row.get("path") or [], row.get("why") or [], row.get("rules") or []
        for place, name in enumerate(path):
            reason = reasons[place] if place < len(reasons) else ""
            lines.append(f"  {place + 1}. {_shorten(str(name))}  {reason}")
            lines += _render_steps(rules[place] if place < len(rules) else [])
    if no_path:
        lines += ["", f"no path for the last wish: {_format('', no_path.get('sentence', ''))}"]
        lines += _render_steps(no_path.get("steps") or [])
    return lines


def _render_steps(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"       {step['left']:>6}  {_format('', step['rule'])}" for step in steps]


def format_seconds(value: float) -> str:
    """Return a time as people say it: 850 ms, 12 s, 3 min 20 s, 5 h 2 min, 3 d 4 h."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(value: float) -> str:
    """Return an amount of data in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _coins(wei: int) -> str:
    """Return an amount in coins, cut to nine digits after the point."""
    whole, _, part = format_coin(wei).partition(".")
    part = part[:9].rstrip("0")
    return f"{whole}.{part}" if part else whole


def _shorten(text: str) -> str:
    """Return a node's name or account as its first 12 characters, any other text as it is; JSON has whole
    ones.
    """
    return text[:12] if _NAME.fullmatch(text) or _ACCOUNT.fullmatch(text) else text


def _title(key: str) -> str:
    for ending in sorted(_UNITS, key=len, reverse=True):
        key = key.removesuffix(ending)
    return key.replace("_", " ").replace("-", " ")


def _format(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        for ending in sorted(_UNITS, key=len, reverse=True):
            if key.endswith(ending):
                return _UNITS[ending](value)
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_title(k)} {_format(k, v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        joint = " > " if key == "path" else ", "
        return joint.join(_format(key, part) for part in value) or "-"
    text = str(value)
    # What a peer could have chosen must not reach the terminal's own language.
    return "".join(c if c.isprintable() else "?" for c in text)
