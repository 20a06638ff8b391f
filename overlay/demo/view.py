"""What the demo shows: the story of one page, what to type next, and the live view. Pure.

Everything here turns what nodes say of themselves (`hopfare status --json`) into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.params import UNIT
from overlay.demo.fetch import Fetched
from overlay.demo.lab import CLIENT_HOST, Host

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the demo, as it is shown."""

    name: str
    role: str
    host: Host
    node_id: str
    country: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a node has carried, in packets of one unit, at a moment."""

    at_s: float
    packets: int


def who(address: str, places: Sequence[Place]) -> str:
    """A peer address in words: "r3 (10.3.0.1)", "you (10.200.0.1)", or the address alone."""
    ip = address.rpartition(":")[0].strip("[]")
    if ip in (CLIENT_HOST.ipv4, CLIENT_HOST.ipv6):
        return f"you ({ip})"
    for place in places:
        if ip in (place.host.ipv4, place.host.ipv6):
            return f"{place.name} ({ip})"
    return ip


def position(index: int, hops: int) -> str:
    """What a relay is on a path: guard, middle or exit."""
    if index == hops - 1:
        return "exit"
    return "guard" if index == 0 else "middle"


def story(
    path: Sequence[Place], statuses: Mapping[str, Status], places: Sequence[Place], page: Fetched
) -> list[str]:
    """The path of one page, and what each hop knows of it: the addresses of its neighbours."""
    lines = ["path   you -> " + " -> ".join(_described(place) for place in path) + " -> www.demo.test", ""]
    lines.append("what each of them saw")
    neighbours = {place.name for place in path}
    for index, place in enumerate(path):
        seen = []
        for link in statuses.get(place.name, {}).get("links", []):
            peer = who(str(link.get("address", "")), places)
            name = peer.split(" ")[0]
            near = {path[index - 1].name if index else "you"}
            if index + 1 < len(path):
                near.add(path[index + 1].name)
            if name in near and (name == "you" or name in neighbours):
                seen.append(peer)
        lines.append(
            f"  {place.name:<4} {position(index, len(path)):<7} {' and '.join(sorted(set(seen))) or '-'}"
        )
        if index == len(path) - 1:
            lines[-1] += "; and, as every exit, where packets went (not from whom)"
    lines.append(f"  www.demo.test  {page.text}")
    return lines


def timings(page: Fetched, big: Fetched) -> list[str]:
    """Time to first byte and speed."""
    return [
        f"time to first byte   {page.first_byte_s * 1000:.1f} ms "
        f"(and {page.connected_s * 1000:.1f} ms for the connection, with the name looked up at the exit)",
        f"speed                {big.bytes_per_s / 1e6:.1f} MB/s "
        f"({big.size_bytes / 1e6:.0f} MB in {big.total_s:.2f} s, checksum right)",
    ]


def next_steps(
    socks: tuple[str, int], hopfare: str, config: str, *, real_internet: bool, relay_config: str = ""
) -> list[str]:
    """What to type next; `relay_config` is that of a relay which earns money, if there is one."""
    proxy = f"{socks[0]}:{socks[1]}"
    lines = [
        "in another terminal",
        f"  curl --socks5-hostname {proxy} http://www.demo.test/ip",
        f"  curl --socks5-hostname {proxy} http://v6only.demo.test/ip",
        f"  curl --socks5-hostname {proxy} -o /dev/null http://www.demo.test/big/1000000000",
    ]
    if real_internet:
        lines.append(f"  curl --socks5-hostname {proxy} https://example.org/")
    lines += [
        "in a browser",
        f"  chromium --proxy-server=socks5://{proxy} http://www.demo.test/",
        f"  Firefox: Settings, Network Settings, Manual proxy: SOCKS v5 host {socks[0]} port {socks[1]},",
        "           and tick Proxy DNS when using SOCKS v5",
        "a look inside",
        f"  export HOPFARE_CONFIG={config}",
        f"  {hopfare} status",
        f"  {hopfare} circuits --why",
        f"  {hopfare} market",
        f"  {hopfare} set exit-country CH",
        f"  {hopfare} exec -- curl http://www.demo.test/ip",
    ]
    if relay_config:
        lines += [
            f"  {hopfare} wallet",
            f"  {hopfare} earnings --config {relay_config}",
            f'  {hopfare} pricing set "0.2 per GB" --config {relay_config}',
        ]
    return lines


def packets_of(status: Status) -> int:
    """Packets that a relay has carried over its links, both ways."""
    return sum(
        int(link.get("packets_in_charged", 0)) + int(link.get("packets_out_charged", 0))
        for link in status.get("links", [])
    )


def rate_bytes_per_s(before: Traffic | None, now: Traffic) -> float:
    """Bytes per second between two moments; 0 without an earlier one, or after a restart."""
    if before is None or now.at_s <= before.at_s or now.packets < before.packets:
        return 0.0
    return (now.packets - before.packets) * UNIT / (now.at_s - before.at_s)


def relay_rows(
    places: Sequence[Place], statuses: Mapping[str, Status], rates: Mapping[str, float]
) -> list[tuple[str, ...]]:
    """The live view's table of relays: name, role, address, country, state, links, circuits, speed."""
    rows: list[tuple[str, ...]] = []
    for place in places:
        status = statuses.get(place.name)
        if status is None:
            rows.append((place.name, place.role, place.host.ipv4, place.country, "down", "-", "-", "-"))
            continue
        rows.append(
            (
                place.name,
                place.role,
                place.host.ipv4,
                place.country,
                "ready" if status.get("ready") else "not ready",
                str(len(status.get("links", []))),
                str(status.get("circuits", "-")),
                f"{rates.get(place.name, 0.0) / 1e6:.2f} MB/s",
            )
        )
    return rows


def circuit_rows(circuits: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The live view's table of circuits: number, path, state, age, connections, round trip, received."""
    rows: list[tuple[str, ...]] = []
    for circuit in circuits:
        rtt_ms = circuit.get("rtt_ms")
        rows.append(
            (
                str(circuit["id"]),
                " > ".join(names.get(node_id, node_id[:8]) for node_id in circuit["path"]),
                str(circuit["state"]),
                f"{circuit['age_s']:.0f} s",
                str(circuit["connections"]),
                "-" if rtt_ms is None else f"{rtt_ms:.1f} ms",
                f"{circuit['packets_down'] * UNIT / 1e6:.1f} MB",
            )
        )
    return rows


def summary_line(statuses: Mapping[str, Status], client: Status | None, rates: Mapping[str, float]) -> str:
    """One plain line for those without a terminal."""
    up = sum(bool(status.get("ready")) for status in statuses.values())
    if client is None:
        state = "the client does not answer"
    elif client.get("ready"):
        state = "the client is ready"
    else:
        state = f"the client is not ready: {'; '.join(map(str, client.get('problems', []))) or 'starting'}"
    return f"{up} relays up, {state}, busiest relay {max(rates.values(), default=0.0) / 1e6:.2f} MB/s"


def _described(place: Place) -> str:
    return f"{place.name} ({place.host.ipv4}, {place.country})"
