"""Reads the TUN for an engine, one trio wake-up per batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from exit.io.tun import Tun
    from overlay.engine.python import PythonEngine

BATCH_PACKETS = 64
BATCH_BYTES = 512 * 1024


async def run_tun(engine: PythonEngine, tun: Tun, flush: Callable[[], None]) -> None:
    """Hand what the TUN gives to ``engine`` and have the links flushed, until cancelled.

    A device that disappears (ENODEV, EBADF) ends the loop with OSError: without its TUN a node cannot go on.
    """
    fd = tun.fileno()
    while True:
        await trio.lowlevel.wait_readable(fd)
        while True:
            raws = tun.read_batch(BATCH_PACKETS, BATCH_BYTES)
            if not raws:
                break
            engine.on_tun_packets(raws)
            flush()
            await trio.lowlevel.checkpoint()
