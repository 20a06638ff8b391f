"""Discovery's figures: how fast directories become alike, and what they cost.

Usage: python bench/gossip.py [--quick] [--json FILE]. "links" are real QUIC links between nodes in this
process, on the loopback device, and times are the clock's; "simulated" are the same machines joined in memory
with 20 ms of delay, times are the simulation's, and CPU is what it took here.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import discovery_net  # noqa: E402
import gossip_net  # noqa: E402

from overlay.descriptor import Address  # noqa: E402
from overlay.gossip.limits import GossipLimits  # noqa: E402
from overlay.gossip.messages import is_gossip  # noqa: E402
from overlay.links.io.udp import UdpSocket  # noqa: E402
from overlay.links.limits import RELAY_FULL_PING_EVERY, LinkLimits  # noqa: E402
from overlay.logs import configure_logging  # noqa: E402
from overlay.payee import prove_payee  # noqa: E402
from payments.keys import PurseKey  # noqa: E402


@dataclass
class Row:
    """One figure, and what it has to reach."""

    what: str
    value: float
    unit: str
    target: float | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """ "met", "missed", or nothing without a target."""
        return "" if self.target is None else ("met" if self.value < self.target else "MISSED")


def fresh(number: int, now_s: int) -> object:
    """A descriptor as of now: real links go by the real clock."""
    return gossip_net.describe(number, published_s=now_s, expires_s=now_s + 86400)


def extra_members(count: int, first: int = 10_000) -> list[object]:
    # Without addresses: nobody is to look for them.
    return [gossip_net.member(number, addresses=()) for number in range(first, first + count)]


async def burst_over_links(nodes_count: int, count: int) -> list[Row]:
    """New descriptors at all nodes at once, over QUIC."""
    with tempfile.TemporaryDirectory() as folder:
        async with discovery_net.open_nodes(
            Path(folder), nodes_count, publishes=False, extra=extra_members(count)
        ) as (nodes, _):
            await discovery_net.until(lambda: all(len(node.discovery.partners()) >= 3 for node in nodes), 60)
            entries = [fresh(10_000 + number, int(time.time())) for number in range(count)]
            cpu, began = time.process_time(), time.monotonic()
            for number, entry in enumerate(entries):
                inject(nodes[number % nodes_count], entry)
            await discovery_net.until(lambda: all(len(node.store) == count for node in nodes), 60)
            took, used = time.monotonic() - began, time.process_time() - cpu
            what = f"links: {nodes_count} nodes x {count} new descriptors at once reach all"
            rows = [Row(what, took, "s", 5.0, f"{used:.2f} s of CPU in all")]
            late_source = discovery_net.StaticSource(nodes[0].discovery.source.roots)
            identity = gossip_net.identity_of(10_000)
            (Path(folder) / "late").mkdir(mode=0o700)
            async with discovery_net.open_node(
                Path(folder) / "late", late_source, identity=identity, start=False
            ) as late:
                late.discovery.neighbours.wanted = 1
                began = time.monotonic()
                late.discovery.start()
                await discovery_net.until(lambda: len(late.store) >= count - 1, 30)
                rows.append(
                    Row(f"links: a late joiner with one link has {count}", time.monotonic() - began, "s", 5.0)
                )
            return rows


def inject(node: object, entry: object) -> None:
    """Take in and announce a descriptor as if its node had just told this one."""
    now = trio.current_time()
    gossip = node.discovery.gossip
    node.discovery._do(gossip.load([entry.encoded], now, time.time()))
    gossip.announce(entry.encoded, now)
    node.discovery._wake.set()


async def idle_over_links(nodes_count: int, seconds: float) -> list[Row]:
    """Bytes on the wire and CPU of nodes that have nothing to say, keep-alives included."""
    sent = [0]
    original = UdpSocket.send

    def counted(self: UdpSocket, packets: list, control: object = ()) -> int:
        sent[0] += sum(len(packet[0]) + 28 for packet in packets)
        return original(self, packets, control)

    UdpSocket.send = counted  # type: ignore[method-assign,assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            limits = LinkLimits(full_ping_every=RELAY_FULL_PING_EVERY)
            async with discovery_net.open_nodes(Path(folder), nodes_count, limits=limits) as (nodes, _):
                await discovery_net.until(lambda: all(len(node.store) == nodes_count for node in nodes), 60)
                await trio.sleep(10.0)
                cpu, began, before = time.process_time(), time.monotonic(), sent[0]
                await trio.sleep(seconds)
                passed = time.monotonic() - began
                rate = (sent[0] - before) / passed / nodes_count
                share = (time.process_time() - cpu) / passed / nodes_count * 100
                links = statistics.mean(len(node.endpoint.links) for node in nodes)
    finally:
        UdpSocket.send = original  # type: ignore[method-assign]
    return [
        Row(f"links: idle, {nodes_count} nodes with {links:.0f} links each", rate, "B/s sent a node", 1000.0),
        Row("links: idle", share, "% of a core a node", 0.2),
    ]


def deaths(nodes_count: int, count: int) -> list[Row]:
    """A burst, and three in ten nodes die while it spreads."""
    net = gossip_net.Net(seed=1)
    roots = gossip_net.roots_of(range(nodes_count + count))
    nodes = [net.node(number, roots) for number in range(nodes_count)]
    net.mesh(nodes, 5)
    net.run(1.0)
    cpu = time.process_time()
    for number in range(count):
        publish(net, nodes[number % nodes_count], gossip_net.describe(nodes_count + number))
    net.run(net.now + 0.1)
    for node in net.random.sample(nodes, nodes_count * 3 // 10):
        net.kill(node)
    alive = [node for node in nodes if node.alive]
    began = net.now

    def alike() -> bool:
        return len({node.store.root for node in alive}) == 1 and not any(
            node.gossip._news.wanted_count for node in alive
        )

    net.run(began + 600, stop=every(net, 0.1, alike))
    what = f"simulated: {nodes_count} nodes, {count} descriptors, 30 % killed: survivors complete"
    used = time.process_time() - cpu
    note = f"{len(alive[0].store)} descriptors that any survivor had; {used:.1f} s of CPU in all"
    return [Row(what, net.now - began, "s", 10.0, note)]


def publish(net: gossip_net.Net, node: gossip_net.Node, entry: object) -> None:
    node.load([entry])
    node.gossip.announce(entry.encoded, net.now)
    net.schedule(node)


def every(net: gossip_net.Net, step_s: float, condition: Callable[[], bool]) -> Callable[[], bool]:
    """Ask the condition once in `step_s` of simulated time: it looks at all nodes."""
    next_at = [net.now]

    def asked() -> bool:
        if net.now < next_at[0]:
            return False
        next_at[0] = net.now + step_s
        return condition()

    return asked


def full_sync(count: int) -> list[Row]:
    """One node gets everything from another: CPU and memory of the one that gets it."""
    key = PurseKey(b"k" * 32)
    entries = [
        gossip_net.describe(
            number,
            addresses=(gossip_net.address_of(number), Address(f"2001:{number + 1:x}::1", 4433)),
            payee=key.address,
            payee_proof=prove_payee(key, gossip_net.identity_of(number).node_id),
            members=(b"m" * 32, b"n" * 32),
        )
        for number in range(count)
    ]
    size = sum(len(entry.encoded) for entry in entries) / count
    # All of one payee, for the sake of the proofs: a registry has one payee for each.
    net = gossip_net.Net(limits=GossipLimits(max_per_operator=count))
    roots = gossip_net.roots_of(range(count + 2))
    giver, getter = net.node(count, roots), net.node(count + 1, roots)
    giver.load(entries)
    spent = {giver: 0.0, getter: 0.0}
    deliver = net._deliver

    def timed(wire: object, receiver: gossip_net.Node, message: bytes) -> None:
        begun = time.process_time()
        deliver(wire, receiver, message)
        spent[receiver] += time.process_time() - begun

    net._deliver = timed  # type: ignore[method-assign]
    before = resident_bytes()
    net.join(getter, giver)
    net.run(60.0, stop=lambda: len(getter.store) >= count)
    grown = resident_bytes() - before
    del entries
    assert len(getter.store) == count
    return [
        Row(f"{count} descriptors of {size:.0f} bytes, full sync", spent[getter], "s of CPU", 3.0),
        Row("... its source", spent[giver], "s of CPU", None),
        Row("... simulated with 20 ms of delay", net.now, "s", None),
        Row("... more memory", grown / 1e6, "MB", 60.0),
    ]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def rounds(nodes_count: int, loss: float) -> list[Row]:
    """One descriptor among many nodes with lossy links: how far announcements carry it, and how many rounds
    of reconciliation do the rest.
    """
    net = gossip_net.Net(seed=7)
    roots = gossip_net.roots_of(range(nodes_count + 1))
    shared = random.Random(3)
    nodes = []
    for number in range(nodes_count):
        node = net.node(number, roots)
        node.gossip._rng = shared
        nodes.append(node)
    for node in nodes:
        for other in net.random.sample(nodes, 5):
            if other is not node:
                net.join(node, other)
    net.run(2.0)
    dice = random.Random(5)

    def lossy(sender: object, receiver: object, message: bytes) -> bytes | None:
        if is_gossip(message) and dice.random() < loss:
            return None
        return message

    net.filter = lossy
    entry = gossip_net.describe(nodes_count)
    began = net.now
    publish(net, nodes[0], entry)
    net.run(began + 8.0)
    have = sum(len(node.store) for node in nodes)
    pushed = have / nodes_count
    done = 0
    limits = nodes[0].gossip.limits
    while have < nodes_count and done < 20:
        net.run(net.now + limits.round_s)
        done += 1
        have = sum(len(node.store) for node in nodes)
    note = f"announcements had reached {pushed:.2%}, {loss:.0%} of all messages are lost"
    return [Row(f"simulated: {nodes_count} nodes complete after", done, "rounds", 6.01, note)]


def hops(nodes_count: int) -> list[Row]:
    """How many links away the farthest node is: without losses announcements reach all in so many hops."""
    dice = random.Random(11)
    links: list[set[int]] = [set() for _ in range(nodes_count)]
    for number in range(nodes_count):
        for other in dice.sample(range(nodes_count), 5):
            if other != number:
                links[number].add(other)
                links[other].add(number)
    reached, edge, steps = {0}, {0}, 0
    while edge:
        edge = {other for number in edge for other in links[number]} - reached
        reached |= edge
        steps += bool(edge)
    return [Row(f"{nodes_count} nodes that pick 5 each: farthest", steps, "hops", None)]


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller networks")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    configure_logging("error")
    quick = arguments.quick
    rows: list[Row] = []
    for measure in (
        lambda: trio.run(burst_over_links, 20, 200),
        lambda: trio.run(idle_over_links, 10 if quick else 20, 20.0 if quick else 60.0),
        lambda: deaths(40 if quick else 100, 200 if quick else 500),
        lambda: full_sync(2000 if quick else 10_000),
        lambda: rounds(1000 if quick else 10_000, 0.1),
        lambda: hops(10_000),
    ):
        for row in measure():
            rows.append(row)
            target = "" if row.target is None else f"under {row.target:g}"
            print(f"{row.what:<74} {row.value:10.3f} {row.unit:<18} {target:<12} {row.verdict:<7} {row.note}")
            sys.stdout.flush()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
