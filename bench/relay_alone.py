"""What one native relay costs per packet: the CPU time of its data thread, in a chain inside this process.

    .venv/bin/python bench/relay_alone.py [--hops 3] [--seconds 3]

Client, relays and exit are native engines on real links of the loopback; each has a thread of its own, whose
CPU time the kernel counts. Packets come from and go to pairs of sockets in place of TUNs. "packets per second
and core" is what the relay's thread would carry if it had a core for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import trio  # noqa: E402
from engine_chain import Chain, open_chain  # noqa: E402
from engine_net import CLIENT, tcp4, udp4  # noqa: E402

OUT = bytes([93, 184, 216, 34])
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def data_threads() -> list[int]:
    """The engines' threads, in the order in which they were started."""
    tasks = Path("/proc/self/task")
    return sorted(
        int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == "hopfare-data"
    )


def more_threads() -> list[int]:
    """Threads beyond an engine's first."""
    tasks = Path("/proc/self/task")
    names = {int(task.name): (task / "comm").read_text().strip() for task in tasks.iterdir()}
    return sorted(task for task, name in names.items() if name.startswith("hopfare-data") and name[12:])


def cpu_s(thread: int) -> float:
    """CPU seconds of one thread of ours, as exactly as the scheduler counts them."""
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9


async def run(lane: str, size: int, hops: int, seconds: float) -> dict[str, float]:
    """Carry packets of `size` bytes for a while and say what the first relay paid for each unit."""
    async with open_chain(("native",) * (hops + 1)) as chain:
        chain.add_circuit()
        make = udp4 if lane == "datagram" else tcp4
        packet = make(CLIENT.v4, OUT, 80, bytes(size))
        stop = threading.Event()
        sender, receiver = chain.nodes[0].tun, chain.nodes[-1].tun
        got = [0]

        def send() -> None:
            while not stop.is_set():
                try:
                    sender.send(packet)
                except BlockingIOError:
                    time.sleep(0.0005)

        def take() -> None:
            while not stop.is_set():
                try:
                    while True:
                        got[0] += len(receiver.recv(70000))
                except BlockingIOError:
                    time.sleep(0.0005)

        workers = [threading.Thread(target=work) for work in (send, take)]
        for worker in workers:
            worker.start()
        try:
            await trio.sleep(1.0)
            return await _watch(chain, got, seconds)
        finally:
            stop.set()
            for worker in workers:
                worker.join()


async def _watch(chain: Chain, got: list[int], seconds: float) -> dict[str, float]:
    threads = data_threads()
    meters = chain.meters
    before = [cpu_s(thread) for thread in threads]
    units, carried, begun = meters[1].packets, got[0], time.monotonic()
    await trio.sleep(seconds)
    wall = time.monotonic() - begun
    used = [cpu_s(thread) - start for thread, start in zip(threads, before, strict=True)]
    units, carried = meters[1].packets - units, got[0] - carried
    return {
        "packets_per_s": round(units / wall),
        "inner_MB_per_s": round(carried / wall / 1e6, 1),
        "relay_us_per_packet": round(used[1] / units * 1e6, 2),
        "relay_packets_per_s_and_core": round(units / used[1]),
        "client_us_per_packet": round(used[0] / units * 1e6, 2),
        "exit_us_per_packet": round(used[-1] / units * 1e6, 2),
    }


def main() -> None:
    """Print one JSON line for each lane and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hops", type=int, default=3, choices=(2, 3, 4))
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    for lane, size in (("datagram", 1200), ("datagram", 60), ("stream", 1300)):
        result = trio.run(run, lane, size, arguments.hops, arguments.seconds)
        print(json.dumps({"lane": lane, "payload": size, **result}), flush=True)


if __name__ == "__main__":
    main()
