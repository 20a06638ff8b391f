"""Throughput and CPU per packet of links: two processes on loopback through the real endpoint.

Usage: python bench/links.py [--backend qh3|aioquic] [--mode stream|datagram] [--seconds 4]; prints JSON.
Every figure is of the window between two snapshots, after a second of warming up.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection

import trio

from overlay.identity import Identity
from overlay.links.constants import LINK_FRAME
from overlay.links.io.endpoint import Endpoint, open_endpoint
from overlay.links.link import Link

CHUNK = 65536
BACKLOG = 512 * 1024
WARM_S = 1.0


class Counts:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.bytes = 0
        self.frames = 0
        self.closed = trio.Event()
        self.began = trio.Event()
        self.on_room = None

    def on_link_up(self, link: Link) -> None:
        pass

    def on_control(self, link: Link, message: bytes) -> None:
        pass

    def on_datagrams(self, link: Link, frames: list[bytes]) -> None:
        self.frames += len(frames)
        self.bytes += sum(map(len, frames))
        self.began.set()

    def on_stream(self, link: Link, stream_id: int, chunks: list[bytes], fin: bool) -> None:
        self.bytes += sum(map(len, chunks))
        self.began.set()

    def on_stream_reset(self, link: Link, stream_id: int, code: int) -> None:
        pass

    def on_writable(self, link: Link) -> None:
        if self.on_room:
            self.on_room()

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        self.closed.set()

    def on_batch_end(self) -> None:
        pass


def snapshot(endpoint: Endpoint, link: Link | None, counts: Counts) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    connection = link._connection if link else None
    return {
        "time": time.monotonic(),
        "cpu": usage.ru_utime + usage.ru_stime,
        "bytes": counts.bytes,
        "frames": counts.frames,
        "packets_out": connection.packets_sent if connection else 0,
        "lost": connection.packets_lost() if connection else 0,
        "batches": endpoint.counters.batches,
        "receives": endpoint.counters.receives,
        "wakeups": endpoint.counters.wakeups,
    }


def difference(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {key: second[key] - first[key] for key in first}


async def receiver(backend: str, seconds: float, pipe: Connection) -> None:
    counts = Counts()
    async with open_endpoint(("127.0.0.1", 0), Identity(b"b" * 32), counts, backend=backend) as endpoint:
        pipe.send(endpoint.addresses[0])
        with trio.fail_after(seconds + 20):
            await counts.began.wait()
            await trio.sleep(WARM_S)
            first = snapshot(endpoint, None, counts)
            await trio.sleep(seconds)
            pipe.send(difference(first, snapshot(endpoint, None, counts)))
            await counts.closed.wait()


async def sender(backend: str, mode: str, seconds: float, address: tuple[str, int], pipe: Connection) -> dict:
    counts = Counts()
    identity, acceptor = Identity(b"a" * 32), Identity(b"b" * 32)
    async with open_endpoint(("127.0.0.1", 0), identity, counts, backend=backend) as endpoint:
        link = await endpoint.dial(address, acceptor.node_id)
        chunk, frame = os.urandom(CHUNK), os.urandom(LINK_FRAME)
        stream_id = link.open_stream()

        def feed() -> None:
            if mode == "stream":
                while link.stream_backlog() < BACKLOG:
                    link.send_stream(stream_id, chunk)
            else:
                while (room := link.datagram_room()) > 0:
                    link.send_datagrams([frame] * room)

        counts.on_room = feed
        feed()
        endpoint.flush()
        await trio.sleep(WARM_S)
        first = snapshot(endpoint, link, counts)
        await trio.sleep(seconds)
        result = difference(first, snapshot(endpoint, link, counts))
        result["loss"] = round(link.loss, 4)
        result["gso_sends"] = endpoint._sockets[0].udp.gso_sends
        received = await trio.to_thread.run_sync(pipe.recv)
        return {"sender": result, "receiver": received}


def pin(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})


def serve(backend: str, seconds: float, pipe: Connection) -> None:
    pin(1)
    trio.run(receiver, backend, seconds, pipe)


def run(backend: str, mode: str, seconds: float) -> dict:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(backend, seconds, theirs))
    process.start()
    try:
        address = ours.recv()
        pin(0)
        both = trio.run(sender, backend, mode, seconds, address, ours)
    finally:
        process.join(10)
        process.kill()
    sent, received = both["sender"], both["receiver"]
    packets_in = max(1.0, sent["packets_out"] * received["time"] / sent["time"])
    return {
        "backend": backend,
        "mode": mode,
        "mbit_per_s": round(received["bytes"] * 8 / received["time"] / 1e6, 1),
        "packets_per_s": round(sent["packets_out"] / sent["time"]),
        "send_us_per_packet": round(sent["cpu"] / max(1, sent["packets_out"]) * 1e6, 2),
        "receive_us_per_packet": round(received["cpu"] / packets_in * 1e6, 2),
        "cpu_send": round(sent["cpu"] / sent["time"], 2),
        "cpu_receive": round(received["cpu"] / received["time"], 2),
        "lost": sent["lost"],
        "sender_batches_per_s": round(sent["batches"] / sent["time"]),
        "receiver_batches_per_s": round(received["batches"] / received["time"]),
        "packets_per_receive": round(packets_in / max(1, received["receives"]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", action="append", choices=["qh3", "aioquic"])
    parser.add_argument("--mode", action="append", choices=["stream", "datagram"])
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    for backend in arguments.backend or ["qh3", "aioquic"]:
        for mode in arguments.mode or ["stream", "datagram"]:
            print(json.dumps(run(backend, mode, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
