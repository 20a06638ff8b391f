"""Congestion controllers of the native engine on bad links: goodput of trains, and echoes beside them.

    .venv/bin/python bench/controllers.py [--seconds 6] [--controllers cubic,bbr,newreno] [--plot FILE.svg]

Two native engines, one link, and between them an emulator in a process of its own: a rate with a queue of
bounded length, a delay, and random loss, in both directions. Prints one line for each link and controller;
`--plot` draws bars.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import random
import select
import socket
import sys
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import trio  # noqa: E402
from engine_chain import Chain, ChainNode  # noqa: E402
from engine_net import CLIENT, tcp4  # noqa: E402

from overlay.engine.io.native_links import open_native_links  # noqa: E402

OUT = bytes([93, 184, 216, 34])
ECHO_EVERY_S = 0.05


@dataclass(frozen=True)
class BadLink:
    """An emulated link. `queue_ms` is how long its buffer is at its rate."""

    name: str
    rate_mb_s: float
    rtt_ms: float
    loss: float
    queue_ms: float


PATHS = [
    BadLink("10 MB/s, 20 ms", 10, 20, 0.0, 40),
    BadLink("10 MB/s, 60 ms, 0.1 % loss", 10, 60, 0.001, 60),
    BadLink("10 MB/s, 60 ms, 1 % loss", 10, 60, 0.01, 60),
    BadLink("10 MB/s, 150 ms, 0.1 % loss", 10, 150, 0.001, 150),
    BadLink("1 MB/s, 40 ms, long queue", 1, 40, 0.0, 400),
]


def emulate(path: BadLink, server: tuple[str, int], pipe: Any) -> None:
    """Carry datagrams between one client and `server` until the parent ends us."""
    front, back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (front, back):
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    pipe.send(front.getsockname())
    rng = random.Random(7)
    client: Any = None
    free = [0.0, 0.0]
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, way, data = heapq.heappop(waiting)
            if way == 0:
                back.sendto(data, server)
            elif client is not None:
                front.sendto(data, client)
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
        ready, _, _ = select.select([front, back], [], [], left)
        for sock in ready:
            way = 0 if sock is front else 1
            for _ in range(64):
                try:
                    data, sender = sock.recvfrom(2048)
                except BlockingIOError:
                    break
                if way == 0:
                    client = sender
                now = time.monotonic()
                begin = max(now, free[way])
                if rng.random() < path.loss or begin - now > path.queue_ms / 1000:
                    continue
                free[way] = begin + len(data) / (path.rate_mb_s * 1e6)
                count += 1
                heapq.heappush(waiting, (free[way] + path.rtt_ms / 2000, count, way, data))


async def run(path: BadLink, controller: str, seconds: float) -> dict[str, Any]:
    """Fill the link with trains, echo beside them."""
    client, leave = ChainNode("client", "native"), ChainNode("leave", "native")
    chain = Chain([client, leave])
    async with AsyncExitStack() as stack:
        for node in (client, leave):
            stack.callback(node.tun.close)
            stack.callback(node.tun_file.close)
            is_client = node is client
            node.endpoint = await stack.enter_async_context(
                open_native_links(
                    [("127.0.0.1", 0)],
                    None if is_client else node.identity,
                    node.engine,  # type: ignore[arg-type]
                    role="customer" if is_client else "relay",
                    controller=controller,
                )
            )
            node.engine.attach_tun(node.tun_file, by_source=is_client)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(
            target=emulate, args=(path, leave.endpoint.addresses[0], theirs), daemon=True
        )
        process.start()
        stack.callback(process.kill)
        link = await client.endpoint.dial(ours.recv(), leave.identity.node_id)
        await chain.until(lambda: bool(leave.links))
        chain.links.append((link, leave.links[0]))
        chain.add_circuit()
        packet = tcp4(CLIENT.v4, OUT, 80, bytes(1300))
        stop = threading.Event()
        got = [0]

        def send() -> None:
            while not stop.is_set():
                try:
                    client.tun.send(packet)
                except BlockingIOError:
                    time.sleep(0.001)

        def take() -> None:
            while not stop.is_set():
                try:
                    while True:
                        got[0] += len(leave.tun.recv(70000))
                except BlockingIOError:
                    time.sleep(0.001)

        workers = [threading.Thread(target=work) for work in (send, take)]
        for worker in workers:
            worker.start()
        try:
            await trio.sleep(2.0)  # slow start
            before, begun = got[0], time.monotonic()
            delays = []
            while time.monotonic() - begun < seconds:
                sent, token = time.monotonic(), os.urandom(8)
                client.engine.echo(chain.client, token)
                with trio.move_on_after(2.0):
                    while token not in client.echoes:
                        await trio.sleep(0.002)
                delays.append((time.monotonic() - sent) * 1000)
                await trio.sleep(ECHO_EVERY_S)
            carried, wall = got[0] - before, time.monotonic() - begun
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    delays.sort()
    return {
        "link": path.name,
        "controller": controller,
        "MB_per_s": round(carried / wall / 1e6, 2),
        "share_of_rate": round(carried / wall / 1e6 / path.rate_mb_s, 2),
        "echo_ms_median": round(delays[len(delays) // 2], 1),
        "echo_ms_worst": round(delays[-1], 1),
    }


def plot(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Bars of goodput as an SVG, one group for each link."""
    colours = dict(zip(names, ("#2266aa", "#dd8833", "#66aa66"), strict=False))
    links = list(dict.fromkeys(row["link"] for row in rows))
    height, parts = 40 + 62 * len(links), []
    for index, link in enumerate(links):
        top = 30 + 62 * index
        parts.append(f'<text x="8" y="{top}" font-size="12">{link}</text>')
        for place, row in enumerate(row for row in rows if row["link"] == link):
            y, width = top + 6 + 14 * place, row["share_of_rate"] * 420
            parts.append(
                f'<rect x="8" y="{y}" width="{width:.0f}" height="12" fill="{colours[row["controller"]]}"/>'
            )
            label = f"{row['controller']} {row['MB_per_s']} MB/s, echo {row['echo_ms_median']:.0f} ms"
            parts.append(f'<text x="{width + 14:.0f}" y="{y + 10}" font-size="10">{label}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" font-family="sans-serif">\n'
        f"{body}\n</svg>\n"
    )


def main() -> None:
    """Measure all links with all controllers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--controllers", default="cubic,bbr,newreno")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = arguments.controllers.split(",")
    rows = []
    for path in PATHS:
        for name in names:
            row = trio.run(run, path, name, arguments.seconds)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.plot is not None:
        arguments.plot.write_text(plot(rows, names))


if __name__ == "__main__":
    main()
