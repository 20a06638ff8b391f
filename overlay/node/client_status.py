"""What a customer's node says of itself: `hopfare status`, and from it the metrics."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import trio

from overlay.identity import format_node_id

if TYPE_CHECKING:
    from overlay.node.client import ClientNode


def describe_client(node: ClientNode) -> dict[str, Any]:
    """What `hopfare status` shows, in values for JSON."""
    now = trio.current_time()
    ready = [row for row in node.pool.status(now) if row.state.value == "ready"]
    problems = []
    if not ready:
        problems.append(node.pool.explain(now) or node.last_failure or "no circuit has been built yet")
    if node.guards_problem:
        problems.append(node.guards_problem)
    missing = node.directory.explain_no_exit(time.time(), country=node.config.client.exit_country)
    if missing:
        problems.append(missing)
    for port in (80, 443):
        without = node.directory.explain_no_exit(time.time(), port=port)
        if without and not missing:
            problems.append(without)
    problems += node.market.problems()
    if node.discovery is not None:
        problems += node.discovery.problems()
    if node.purse is not None and node.purse.stopped:
        problems.insert(0, node.purse.stopped)
    if node.money is not None:
        problems += node.money.list_problems()
    elif node.is_asked_for_money and not all(
        entry.descriptor.price_wei_per_packet == 0 for entry in node.directory
    ):
        problems.insert(0, "relays of this network ask to be paid, and payments are off: set [payments]")
    builds = sorted(node.build_times_s)
    return {
        "role": "client",
        "ready": bool(ready),
        "problems": problems,
        "uptime_s": round(now - node.started_s, 1),
        "pid": os.getpid(),
        "hops": node.config.client.hops,
        "directory": len(node.directory),
        **({"discovery": node.discovery.status()} if node.discovery is not None else {}),
        "circuits_ready": len(ready),
        "circuits": len(node.circuits),
        **node.market.status(),
        "build_median_ms": round(1000 * builds[len(builds) // 2], 2) if builds else None,
        "guards": [
            {
                "name": format_node_id(node_id),
                "address": link.peer_address[0],
                "rtt_ms": round(link.rtt_s * 1000, 2),
            }
            for node_id, link in node.links
        ],
        **({"whole_device": node.device.status()} if node.device is not None else {}),
        "proxy": node.proxy.status() if node.proxy is not None else {},
        "dropped_without_circuit": node.engine.unknown_packets,
        "engine": node.engine.kind,
        "queued_bytes": node.engine.budget.used_bytes,
        **({"money": node.money.status()} if node.money is not None else {}),
    }
