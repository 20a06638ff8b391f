"""A download that is paid hop by hop, counted three times: by a capture, by the meters, and by the chain."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from pathlib import Path

from overlay.demo.box import wait_until
from overlay.demo.fleet import PORT, Node
from overlay.demo.lab import CLIENT
from overlay.demo.world import World
from payments.pricing import PACKET_BYTES
from payments.tab import TOLERANCE_SHARE

SNAP_BYTES = 64
QUIC_OVERHEAD_BYTES = 36
"""Of a full 1-RTT packet: flags, connection id, packet number, a STREAM frame's header, and the tag."""
LEAST_BYTES = 300
"""Shorter QUIC packets carry acknowledgements and control messages, and none of a packet's bytes."""
_PCAP_HEADER, _RECORD, _ETHERNET, _UDP = 24, 16, 14, 8


@dataclass(frozen=True, slots=True)
class HopCount:
    """One link of the path, in packets of 1384 bytes."""

    payer: str
    payee: str
    price_wei: int
    captured: float
    """By the sizes of what crossed the wire, after QUIC's own bytes."""
    charged: int
    """By the payee's meter."""
    paid: float
    """By the tickets given, of which some are prepaid."""
    claimed: float
    """By what the chain has paid out for them."""
    window: float
    """What may be prepaid."""

    @property
    def difference(self) -> float:
        """How far the meter is from the capture, as a share."""
        return self.charged / self.captured - 1

    @property
    def tolerance(self) -> float:
        """What the two sides of a link tolerate as loss, as a share."""
        return 1 / TOLERANCE_SHARE


class PaidDownload:
    """On a world of one path: r1, r2, ... in this order."""

    def __init__(self, world: World, client: Node) -> None:
        self.world = world
        self.client = client
        self.path = world.relays

    def run(self, size: int, timeout_s: float) -> list[HopCount]:
        """Download `size` bytes, have everybody claim, and count."""
        hosts = [CLIENT, *(node.host for node in self.path[:-1])]
        for host in (*hosts, self.path[-1].host):
            self.world.links.segment(host, on=True)
        before = [self._tab(node) for node in self.path]
        captures = {host: self.world.links.capture(host, most_bytes=SNAP_BYTES) for host in hosts}
        begun = time.monotonic()
        url = f"http://www.demo.test/big/{size}"
        done = self.world.curl("-o", "/dev/null", "-w", "%{size_download}", url, timeout_s=timeout_s)
        took_s = time.monotonic() - begun
        assert done.text == str(size), done.stderr
        print(f"{size / 1e6:.0f} MB in {took_s:.1f} s, {size / 1e6 / took_s:.1f} MB/s")
        wait_until(self._is_still, 60, "the end of what is on its way")
        for capture in captures.values():
            capture.stop()
            assert capture.missed == 0
        after = [self._tab(node) for node in self.path]
        for node in self.path:
            node.call("wallet-redeem")
        counts = []
        payers: list[Node] = [self.client, *self.path[:-1]]
        for index, (payer, node) in enumerate(zip(payers, self.path, strict=True)):
            purse = node.call("wallet")["paying_us"]
            payers_name = self.world.money.addresses[payer.name] if self.world.money else ""
            claimed = next(row["claimed_wei"] for row in purse if row["payer"] == payers_name)
            charged = after[index]["packets"] - before[index]["packets"]
            spent = after[index]["spent_wei"] - before[index]["spent_wei"]
            price = spent // charged
            lab = self.world.lab
            relay = lab.hosts[node.host]
            counts.append(
                HopCount(
                    payer.name,
                    node.name,
                    price,
                    units(captures[payer.host].path, {relay.ipv4, relay.ipv6}),
                    charged,
                    (after[index]["worth_wei"] - before[index]["spent_wei"]) / price,
                    (claimed - before[index]["spent_wei"]) / price,
                    self._window(payer, node) / price,
                )
            )
        return counts

    def _tab(self, node: Node) -> dict[str, int]:
        rows = [row for row in node.call("tabs")["tabs"] if row["side"] == "earning" and row["open"]]
        assert len(rows) == 1, rows
        return {key: int(rows[0][key]) for key in ("packets", "spent_wei", "worth_wei", "claimed_wei")}

    def _window(self, payer: Node, payee: Node) -> int:
        rows = [row for row in payer.call("tabs")["tabs"] if row["side"] == "paying"]
        return next(int(row["window_wei"]) for row in rows if row["peer"] == payee.id)

    def _is_still(self) -> bool:
        seen = [self._tab(node)["packets"] for node in self.path]
        time.sleep(1.0)
        return [self._tab(node)["packets"] for node in self.path] == seen


def units(file: Path, addresses: set[str]) -> float:
    """Packets of 1384 bytes that crossed a wire from and to a relay, by the lengths of its UDP packets."""
    from ipaddress import ip_address

    wanted = {ip_address(address).packed for address in addresses}
    data = file.read_bytes()
    offset, carried = _PCAP_HEADER, 0
    while offset + _RECORD <= len(data):
        length = struct.unpack_from("<I", data, offset + 8)[0]
        at = offset + _RECORD + _ETHERNET
        offset += _RECORD + length
        version = data[at] >> 4
        if version == 4:
            source, destination, start = (
                data[at + 12 : at + 16],
                data[at + 16 : at + 20],
                at + (data[at] & 15) * 4,
            )
        elif version == 6:
            source, destination, start = data[at + 8 : at + 24], data[at + 24 : at + 40], at + 40
        else:
            continue
        if start + _UDP > offset:
            continue
        from_port, to_port, size = struct.unpack_from(">HHH", data, start)
        towards = destination in wanted and to_port == PORT
        back = source in wanted and from_port == PORT
        if (towards or back) and size - _UDP >= LEAST_BYTES:
            carried += size - _UDP - QUIC_OVERHEAD_BYTES
    return carried / PACKET_BYTES


def show(counts: list[HopCount]) -> str:
    """A table for people."""
    lines = [
        f"{'link':<12}{'captured':>12}{'charged':>12}{'differ':>9}{'paid':>12}{'claimed':>12}{'window':>10}"
    ]
    lines += [
        f"{c.payer + '-' + c.payee:<12}{c.captured:>12.0f}{c.charged:>12}{c.difference:>9.2%}"
        f"{c.paid:>12.0f}{c.claimed:>12.0f}{c.window:>10.0f}"
        for c in counts
    ]
    lines.append(f"loss tolerance: {counts[0].tolerance:.1%} of what is counted, and one window")
    return "\n".join(lines)
