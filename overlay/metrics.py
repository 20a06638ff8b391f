"""A node's metrics for Prometheus: totals of what `hopfare status` knows, and nothing that names anybody.

Owns the names, kinds and texts of the metrics. Pure: a status in, metric families out. No metric has a label
that tells one neighbour, customer, circuit or destination from another (docs/operations/metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from overlay.version import VERSION

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: `path` leads to its number in a status, or to a table of numbers if `label` is set."""

    name: str
    """Without the `_total` that counters get."""
    kind: Kind
    path: tuple[str, ...]
    text: str
    label: str = ""


SERIES = (
    Series("hopfare_ready", "gauge", ("ready",), "1 if the node works, else 0."),
    Series("hopfare_uptime_seconds", "gauge", ("uptime_s",), "Time since the start."),
    Series("hopfare_directory_relays", "gauge", ("directory",), "Relays in this node's directory."),
    Series("hopfare_circuits", "gauge", ("circuits",), "Circuits that stand."),
    Series("hopfare_circuits_ready", "gauge", ("circuits_ready",), "Circuits of a client ready for use."),
    Series("hopfare_queued_bytes", "gauge", ("queued_bytes",), "Bytes of packets that wait in this process."),
    Series("hopfare_builds", "counter", ("builds",), "Circuit builds by what became of them.", "outcome"),
    Series(
        "hopfare_packets",
        "counter",
        ("packets",),
        "Packets carried, by the side they were charged on.",
        "side",
    ),
    Series("hopfare_exit_addresses", "gauge", ("exit", "addresses_leased"), "Inner addresses in use."),
    Series(
        "hopfare_exit_refused_packets", "counter", ("exit", "refused"), "Packets that the policy refused."
    ),
    Series(
        "hopfare_exit_spoofed_packets", "counter", ("exit", "spoofed"), "Packets with a source not their own."
    ),
    Series(
        "hopfare_exit_malformed_packets", "counter", ("exit", "malformed"), "Packets that were no IP packets."
    ),
    Series("hopfare_proxy_connections", "gauge", ("proxy", "connections"), "Connections through the proxy."),
    Series(
        "hopfare_proxy_accepted", "counter", ("proxy", "accepted"), "Connections that the proxy has accepted."
    ),
    Series(
        "hopfare_proxy_established",
        "counter",
        ("proxy", "established"),
        "Connections that reached their end.",
    ),
    Series("hopfare_proxy_sent_bytes", "counter", ("proxy", "bytes_up"), "Bytes sent through the proxy."),
    Series("hopfare_proxy_received_bytes", "counter", ("proxy", "bytes_down"), "Bytes received through it."),
    Series("hopfare_usage_bytes", "gauge", ("usage", "bytes"), "Bytes carried in this calendar month (UTC)."),
    Series("hopfare_usage_cap_bytes", "gauge", ("usage", "cap_bytes"), "The monthly cap, if one is set."),
    Series("hopfare_draining", "gauge", ("draining",), "1 while the node takes no new circuits, else 0."),
    Series("hopfare_earned_wei", "counter", ("payments", "earned_wei"), "Worth of the tickets received."),
    Series(
        "hopfare_claimed_wei", "counter", ("payments", "claimed_wei"), "Worth of what was claimed on chain."
    ),
    Series("hopfare_spent_wei", "counter", ("payments", "spent_wei"), "Worth of the tickets given."),
    Series("hopfare_gas_wei", "counter", ("payments", "gas_wei"), "Paid for gas."),
)


def collect_metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of a node's status; what the node has not is left out."""
    info = GaugeMetricFamily("hopfare_info", "The software and the node's role.", labels=["version", "role"])
    info.add_metric([VERSION, str(status.get("role", ""))], 1)
    yield info
    links = status.get("links")
    if isinstance(links, list):
        family = GaugeMetricFamily("hopfare_links", "QUIC connections to neighbours.", labels=["kind"])
        customers = sum(link["peer"] == "customer" for link in links)
        family.add_metric(["customer"], customers)
        family.add_metric(["relay"], len(links) - customers)
        yield family
    problems = GaugeMetricFamily("hopfare_problems", "Problems that status names.")
    problems.add_metric([], len(status.get("problems", ())))
    yield problems
    for series in SERIES:
        found: Any = status
        for part in series.path:
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None or isinstance(found, Mapping) is not bool(series.label):
            continue
        make: type[Any] = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
        totals = make(series.name, series.text, labels=[series.label] if series.label else None)
        for value, number in found.items() if series.label else [("", found)]:
            totals.add_metric([value] if series.label else [], float(number))
        yield totals
