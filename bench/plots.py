"""Plots as plain SVG, without a library: bars in groups, one panel for each link's rate and delay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

COLOURS = ("#3465a4", "#73a839", "#c17d11", "#a40000")
PANEL_WIDTH, PANEL_HEIGHT, GAP, MARGIN = 240, 130, 34, 56


def bars(
    left: float,
    top: float,
    title: str,
    groups: Sequence[tuple[str, Sequence[float | None]]],
    most: float,
) -> list[str]:
    """One panel: groups of bars with the value over each; `most` is the height of the panel."""
    bottom = top + PANEL_HEIGHT
    out = [
        _text(left, top - 8, title, anchor="start", bold=True),
        f'<path d="M{left:g} {bottom:g}h{PANEL_WIDTH}" stroke="#888"/>',
    ]
    group_width = PANEL_WIDTH / max(1, len(groups))
    for at, (name, values) in enumerate(groups):
        width = group_width * 0.8 / max(1, len(values))
        begin = left + group_width * (at + 0.1)
        out.append(_text(begin + group_width * 0.4, bottom + 13, name))
        for number, value in enumerate(values):
            if value is None:
                continue
            height = PANEL_HEIGHT * min(value, most) / most if most else 0.0
            x, y = begin + number * width, bottom - height
            fill = COLOURS[number % len(COLOURS)]
            size = f'width="{width * 0.9:.1f}" height="{height:.1f}"'
            out.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}"/>')
            out.append(
                _text(x + width * 0.45, y - 2, f"{value:.0f}" if value >= 10 else f"{value:.1f}", size=8)
            )
    return out


def congestion(results: Sequence[dict[str, Any]], controllers: Sequence[str]) -> str:
    """TCP's speed (one row for each rate) and the waiting time beside it, by delay and loss."""
    rates = sorted({result["rate_mbit"] for result in results})
    delays = sorted({result["delay_ms"] for result in results})
    losses = sorted({result["loss"] for result in results})
    found = {
        (result["rate_mbit"], result["delay_ms"], result["loss"], result["controller"]): result
        for result in results
    }
    out: list[str] = []
    rows = [
        (rate, key, what)
        for rate in rates
        for key, what in (("tcp_mbit", "TCP, Mbit/s"), ("probe_ms_p99", "wait beside it, p99 ms"))
    ]
    for row, (rate, key, what) in enumerate(rows):
        here = [result.get(key) or 0.0 for result in results if result["rate_mbit"] == rate]
        most = rate if key == "tcp_mbit" else max(here, default=1.0)
        for column, delay in enumerate(delays):
            groups = [
                (
                    f"{loss * 100:g} % loss",
                    [found.get((rate, delay, loss, name), {}).get(key) for name in controllers],
                )
                for loss in losses
            ]
            left = MARGIN + column * (PANEL_WIDTH + GAP)
            top = MARGIN + row * (PANEL_HEIGHT + GAP + 22)
            out += bars(left, top, f"{rate:g} Mbit/s, {delay:g} ms each way: {what}", groups, most)
    width = MARGIN * 2 + len(delays) * (PANEL_WIDTH + GAP)
    height = MARGIN + len(rows) * (PANEL_HEIGHT + GAP + 22)
    legend = []
    for number, name in enumerate(controllers):
        x = MARGIN + number * 110
        legend.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{COLOURS[number]}"/>')
        legend.append(_text(x + 18, 22, name, anchor="start", size=12))
    body = "\n".join([*legend, *out])
    size = f'width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", size: int = 10, bold: bool = False
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}"' + (' font-weight="bold"' if bold else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'
