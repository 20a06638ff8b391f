"""`bench/relay`: one native relay alone, between a native client and a native exit in this process.

Each engine has a thread of its own whose CPU time the kernel counts, so "packets per second and core" is what
the relay's thread would carry with a core for itself, also where the others take theirs. Parts: memory (of
idle circuits; first, while the process is small), packets (both lanes), circuits (growth with 1, 100 and
10,000 of them), links (growth with idle neighbours), latency (of an echo beside load), threads (of the relay:
what a circuit costs whose links are on different ones).

    bench/relay --parts packets,memory --json results.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "bench")]

import targets  # noqa: E402
import trio  # noqa: E402
from engine_chain import HAS_NATIVE, Chain, open_chain  # noqa: E402
from engine_net import CLIENT, tcp4, udp4  # noqa: E402
from relay_alone import cpu_s, data_threads, more_threads  # noqa: E402

from exit.io.tun import Tun  # noqa: E402
from overlay.engine.interface import InnerAddresses, Price  # noqa: E402
from overlay.engine.io.choice import make_engine, open_links  # noqa: E402

PARTS = ("memory", "packets", "circuits", "links", "latency", "threads")
OUT = bytes([93, 184, 216, 34])
KINDS = ("native",) * 3
WARM_UP_S = 0.5
BURST_BYTES = 48_000
SUITE = 2


def burst(lane: str, source: bytes, size: int) -> bytes:
    """What a TUN with offloads gives in one go: a vnet header and 48 kB of packets of `size` bytes."""
    count = BURST_BYTES // size
    if lane == "datagram":
        packet, headers, kind, offset = udp4(source, OUT, 80, bytes(size * count)), 28, 5, 6
    else:
        packet, headers, kind, offset = tcp4(source, OUT, 80, bytes(size * count)), 40, 1, 16
    return struct.pack("<BBHHHH", 1, kind, headers, size, 20, offset) + packet


def offload(chain: Chain) -> None:
    """Give client and exit TUNs with offloads: one system call for many packets."""
    for node, is_client in ((chain.nodes[0], True), (chain.nodes[-1], False)):
        tun = Tun.from_fd(os.dup(node.tun_file.fileno()), True, 1400)
        node.engine.attach_tun(tun, by_source=is_client)
        tun.close()


class Load:
    """Threads that feed the client's TUN and empty the exit's. Context manager."""

    def __init__(self, chain: Chain, packets: Sequence[bytes], per_s: float | None = None) -> None:
        """Send `packets` in turn, as fast as they are taken or at `per_s`."""
        self._stop = threading.Event()
        self._sender, self._receiver = chain.nodes[0].tun, chain.nodes[-1].tun
        self._packets = packets
        self._per_s = per_s
        self._threads = [threading.Thread(target=work) for work in (self._send, self._take)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        sent, begun = 0, time.monotonic()
        while not self._stop.is_set():
            if self._per_s is not None and sent > (time.monotonic() - begun) * self._per_s:
                time.sleep(0.0005)
                continue
            try:
                self._sender.send(self._packets[sent % len(self._packets)])
                sent += 1
            except BlockingIOError:
                time.sleep(0.0005)

    def _take(self) -> None:
        while not self._stop.is_set():
            try:
                while True:
                    self._receiver.recv(70_000)
            except BlockingIOError:
                time.sleep(0.0005)


async def watch(chain: Chain, seconds: float) -> dict[str, float]:
    """What the relay's thread paid for each packet that it carried."""
    relay = [data_threads()[1], *more_threads()]
    await trio.sleep(WARM_UP_S)
    used, carried, begun = sum(map(cpu_s, relay)), _carried(chain), time.monotonic()
    await trio.sleep(seconds)
    used, carried = sum(map(cpu_s, relay)) - used, _carried(chain) - carried
    wall = time.monotonic() - begun
    if not carried:
        raise RuntimeError("the relay carried nothing")
    return {
        "packets_per_s": round(carried / wall),
        "us_per_packet": round(used / carried * 1e6, 2),
        "packets_per_s_and_core": round(carried / used),
        "core_use": round(used / wall, 3),
    }


def _carried(chain: Chain) -> int:
    return int(chain.meters[1].packets)


async def packets(seconds: float) -> list[dict[str, Any]]:
    """Both lanes, large and small packets."""
    rows = []
    for lane, size in (("datagram", 1200), ("datagram", 60), ("stream", 1340)):
        async with open_chain(KINDS) as chain:
            chain.add_circuit()
            offload(chain)
            with Load(chain, [burst(lane, CLIENT.v4, size)]):
                rows.append({"lane": lane, "payload": size, **await watch(chain, seconds)})
    return rows


async def threads(seconds: float, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One circuit through a relay with ever more threads: with two, its links are on different ones."""
    rows = []
    for lane, size in (("datagram", 1200), ("stream", 1340)):
        for count in counts:
            async with open_chain(("native", "threads", "native"), threads=count) as chain:
                chain.add_circuit()
                offload(chain)
                with Load(chain, [burst(lane, CLIENT.v4, size)]):
                    rows.append({"lane": lane, "threads": count, **await watch(chain, seconds)})
    return rows


async def circuits(seconds: float, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The datagram lane with ever more circuits, each used in turn: the worst case for caches."""
    rows = []
    for count in counts:
        async with open_chain(KINDS) as chain:
            load = []
            offload(chain)
            begun = time.monotonic()
            for number in range(1, count + 1):
                addresses = _addresses(number)
                chain.add_circuit(number, [os.urandom(32), os.urandom(32)], addresses, settles=False)
                load.append(burst("datagram", addresses.v4, 1200))
            enter_us = (time.monotonic() - begun) / count * 1e6
            for node in chain.nodes:
                node.settle()
            with Load(chain, load):
                await trio.sleep(
                    min(5.0, count / 3000)
                )  # each circuit's ciphers are made at its first packet
                row = await watch(chain, seconds)
            rows.append({"circuits": count, **row, "us_to_enter_at_three": round(enter_us, 1)})
    return rows


async def links(seconds: float, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One busy circuit in a relay with ever more idle neighbours (at most 60 of one address)."""
    rows = []
    for count in counts:
        async with open_chain(KINDS) as chain, trio.open_nursery() as nursery:
            relay = chain.nodes[1]
            events = _Silent()
            engine = make_engine("native", events, memory_limit_bytes=64 << 20)
            async with open_links([("127.0.0.1", 0)], None, engine, role="customer") as endpoint:
                for _ in range(count):
                    await endpoint.dial(relay.endpoint.addresses[0], relay.identity.node_id)
                chain.add_circuit()
                offload(chain)
                with Load(chain, [burst("datagram", CLIENT.v4, 1200)]):
                    rows.append({"idle_links": count, **await watch(chain, seconds)})
            nursery.cancel_scope.cancel()
    return rows


async def memory(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Resident memory of relay entries that have carried nothing, the Python objects of each included."""
    rows = []
    async with open_chain(KINDS) as chain:
        relay, (incoming, outgoing) = chain.nodes[1], (chain.links[0][1], chain.links[1][0])
        kept: list[object] = []

        def add(count: int) -> None:
            for _ in range(count):
                number = len(kept) + 1
                flow = relay.engine.relay(
                    os.urandom(32), SUITE, incoming, number, Price(chain.meters[1], 1),
                    outgoing, number, Price(chain.onward[1], 1),
                )  # fmt: skip
                kept.append(flow)

        add(50)
        await trio.sleep(1.0)
        start = await _settled()
        for count in counts:
            begun = time.monotonic()
            add(count - (len(kept) - 50))
            added_s = time.monotonic() - begun
            grown = await _settled() - start
            rows.append(
                {
                    "circuits": count,
                    "bytes_each": round(grown / count),
                    "us_to_enter": round(added_s / count * 1e6, 1),
                }
            )
    return rows


async def _settled() -> int:
    """Resident bytes once they have stopped growing: the engine's thread takes its entries from a queue."""
    before = 0
    for _ in range(20):
        gc.collect()
        now = resident_bytes()
        if now == before:
            break
        before = now
        await trio.sleep(0.3)
    return before


async def latency(seconds: float) -> list[dict[str, Any]]:
    """An echo from the client to the exit and back: idle, and beside 50 and 80 % of the most."""
    packet = burst("datagram", CLIENT.v4, 1200)
    rows = []
    async with open_chain(KINDS) as chain:
        beside = chain.add_circuit(2, [os.urandom(32), os.urandom(32)], _addresses(2))
        chain.add_circuit(1)
        offload(chain)
        with Load(chain, [packet]):
            most = await watch(chain, seconds)
        for share in (0.0, 0.5, 0.8):
            per_s = most["packets_per_s"] * share / (BURST_BYTES // 1200)
            if share:
                with Load(chain, [packet], per_s):
                    figures = await watch(chain, 0.5)
                    times = await _echoes(chain, beside, seconds)
            else:
                figures = {"packets_per_s": 0, "core_use": 0.0}
                times = await _echoes(chain, beside, seconds)
            rows.append(
                {
                    "load": share,
                    "packets_per_s": figures["packets_per_s"],
                    "relay_core_use": figures["core_use"],
                    "echoes": len(times),
                    "ms_p50": round(statistics.median(times), 2),
                    "ms_p95": round(sorted(times)[int(0.95 * (len(times) - 1))], 2),
                }
            )
    return rows


async def _echoes(chain: Chain, flow: Any, seconds: float) -> list[float]:
    """Round trips in milliseconds, one after the other."""
    client, times = chain.nodes[0], []
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        token = os.urandom(8)
        client.echoes.clear()
        begun = time.perf_counter()
        client.engine.echo(flow, token)
        with trio.move_on_after(1.0):
            while token not in client.echoes:
                await trio.sleep(0)
            times.append((time.perf_counter() - begun) * 1e3)
            await trio.sleep(0.01)
    if not times:
        raise RuntimeError("no echo came back")
    return times


class _Silent:
    """A node that is not interested."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _addresses(number: int) -> InnerAddresses:
    return InnerAddresses(bytes([100, 64 + (number >> 14), number >> 7 & 127, 2 + (number & 127)]), None)


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _noted(report: dict[str, Any], part: str):  # type: ignore[no-untyped-def]
    """Have the rest go on when a part fails."""
    try:
        yield
    except* (OSError, RuntimeError, ValueError, trio.TooSlowError) as group:
        report.setdefault("failures", {})[part] = str(group.exceptions[0])


def main() -> int:
    """Measure and print; 2 if a part could not be measured."""
    parser = argparse.ArgumentParser(
        prog="bench/relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure (default 2)")
    parser.add_argument("--circuits", default="1,100,10000", help="counts for growth (default 1,100,10000)")
    parser.add_argument("--idle", default="100,1000,10000", help="idle circuits (default 100,1000,10000)")
    parser.add_argument("--links", default="0,10,60", help="idle links beside (default 0,10,60)")
    parser.add_argument("--threads", default="1,2", help="threads of the relay (default 1,2)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not HAS_NATIVE:
        print("bench/relay needs the native engine: run scripts/build-native")
        return 2
    parts: dict[str, Callable[[], Any]] = {
        "packets": lambda: packets(arguments.seconds),
        "circuits": lambda: circuits(arguments.seconds, _counts(arguments.circuits)),
        "links": lambda: links(arguments.seconds, _counts(arguments.links)),
        "memory": lambda: memory(_counts(arguments.idle)),
        "latency": lambda: latency(arguments.seconds),
        "threads": lambda: threads(arguments.seconds, _counts(arguments.threads)),
    }
    report: dict[str, Any] = {"load_average": os.getloadavg()[0], "cores": os.cpu_count()}
    for part in arguments.parts.split(","):
        with _noted(report, part):
            rows = report[part] = trio.run(parts[part])
            head = list(rows[0])
            lines = [[f"{row[key]:g}" if key != "lane" else row[key] for key in head] for row in rows]
            print(f"\n{part}\n{targets.render(head, lines)}", flush=True)
    for part, reason in report.get("failures", {}).items():
        print(f"\n{part} could not be measured: {reason}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1))
    return 2 if "failures" in report else 0


def _counts(given: str) -> list[int]:
    return [int(count) for count in given.split(",")]


if __name__ == "__main__":
    sys.exit(main())
