"""The market as rows: who offers what at which price, and what this node has seen of it. Pure.

Owns the rows of `hopfare market`, their filters and their order. What relays say (country, capacity, family)
and what this node measured (quality, throughput, round trip) are different columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuits.quality import QualityBook
from overlay.descriptor import Role, SignedDescriptor, find_staleness
from overlay.identity import format_node_id
from overlay.ports import decode_summary
from payments.pricing import GIGABYTE, PACKET_BYTES, format_coin, wei_per_gb

Row = dict[str, Any]
SORTS = ("price", "quality", "stake", "capacity", "measured", "round-trip", "country", "name")
_DESCENDING = {"quality", "stake", "capacity", "measured"}


def list_rows(
    entries: Iterable[SignedDescriptor],
    book: QualityBook,
    unix_s: float,
    stakes: Mapping[bytes, int] | None = None,
) -> list[Row]:
    """Return a row for each node whose descriptor is good at `unix_s`.

    Figures that this node has not measured are None; money is in wei, with the text in coins beside it.
    """
    rows = []
    for entry in entries:
        descriptor = entry.descriptor
        if find_staleness(descriptor, unix_s) is not None:
            continue
        figures = book.figures(descriptor.identity, unix_s)
        known = book.knows(descriptor.identity)
        price = descriptor.price_wei_per_packet
        stake = (stakes or {}).get(descriptor.identity)
        rows.append(
            {
                "name": format_node_id(descriptor.identity),
                "role": "exit" if descriptor.is_exit else "relay",
                "country": descriptor.country,
                "price_wei_per_packet": price,
                "price_per_gb": format_coin(wei_per_gb(price)),
                "quality": round(figures.score, 3) if known else None,
                "builds": round(figures.builds, 1),
                "success": round(figures.success, 3) if figures.builds else None,
                "uptime": round(figures.uptime, 3) if figures.uptime is not None else None,
                "round_trip_ms": round(figures.round_trip_s * 1000, 1) if figures.round_trip_s else None,
                "loss": round(figures.loss, 4) if known else None,
                "measured_bytes_per_s": figures.rate_bytes_per_s or None,
                "disputes": round(figures.disputes, 1),
                "lies": round(figures.lies, 1),
                "capacity_bytes_per_s": descriptor.capacity_bytes_per_s or None,
                "stake_wei": stake,
                "stake": format_coin(stake) if stake is not None else None,
                "policy": descriptor.exit_policy_summary if descriptor.is_exit else "",
                "ipv6": descriptor.has_ipv6,
                "carries": Role.RELAY in descriptor.roles,
                "draining": descriptor.is_draining,
                "operator": f"0x{descriptor.payee.hex()}" if descriptor.payee else "",
                "family": descriptor.family,
                "addresses": [address.ip for address in descriptor.addresses],
                "version": descriptor.software_version,
                "expires_s": descriptor.expires_s,
            }
        )
    return rows


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows to show; empty and None say nothing. `most_wei_per_gb` is a price, `port` an exit's."""

    role: str = ""
    countries: frozenset[str] = frozenset()
    most_wei_per_gb: int | None = None
    port: int | None = None
    least_quality: float | None = None
    operator: str = ""

    def admits(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row is wanted."""
        price = row["price_wei_per_packet"]
        quality = row["quality"]
        return (
            (not self.role or row["role"] == self.role)
            and (not self.countries or row["country"] in self.countries)
            and (self.most_wei_per_gb is None or price * GIGABYTE <= self.most_wei_per_gb * PACKET_BYTES)
            and (self.port is None or _lets_out(row, self.port))
            and (self.least_quality is None or (quality is not None and quality >= self.least_quality))
            and (not self.operator or self.operator.lower() in (row["operator"], row["family"].lower()))
        )


def _lets_out(row: Mapping[str, Any], port: int) -> bool:
    return row["role"] == "exit" and decode_summary(row["policy"]).allows(port)


def choose_rows(
    rows: Iterable[Row], wanted: Wanted, sort: str = "price", limit: int | None = None
) -> list[Row]:
    """Return the wanted rows in order (one of SORTS), at most `limit`; what is not known comes last."""
    column = {
        "price": "price_wei_per_packet",
        "stake": "stake_wei",
        "capacity": "capacity_bytes_per_s",
        "measured": "measured_bytes_per_s",
        "round-trip": "round_trip_ms",
    }.get(sort, sort)
    sign = -1 if sort in _DESCENDING else 1

    def order(row: Row) -> tuple[bool, Any, str]:
        value = row[column]
        if isinstance(value, int | float):
            value = sign * value
        return value is None or value == "", value if value is not None else 0, row["name"]

    return sorted((row for row in rows if wanted.admits(row)), key=order)[:limit]


def shorten_rows(rows: Iterable[Row], coin: str) -> list[Row]:
    """Return what a terminal's table shows of rows, amounts to four digits."""
    return [
        {
            "name": row["name"],
            "role": row["role"] + (", leaving" if row["draining"] else ""),
            "country": row["country"] or "-",
            f"{coin}/GB": f"{float(row['price_per_gb']):.4g}",
            "quality": "new" if row["quality"] is None else f"{row['quality']:.2f}",
            "measured_bytes_per_s": row["measured_bytes_per_s"],
            "says_bytes_per_s": row["capacity_bytes_per_s"],
            "round trip_ms": row["round_trip_ms"],
            "stake": f"{float(row['stake']):.4g}" if row["stake"] is not None else None,
            "policy": row["policy"] or "-",
        }
        for row in rows
    ]
