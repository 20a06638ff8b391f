"""Reads the TUN for an engine, one trio wake-up per batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from overlay.engine.native import NativeEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from exit.io.tun import Tun
    from overlay.engine.python import PythonEngine

BATCH_PACKETS = 64
BATCH_BYTES = 512 * 1024


REST_S = 0.005
MAX_RESTS = 4


async def run_tun(
    engine: PythonEngine | NativeEngine,
    tun: Tun,
    run_batch: Callable[[Callable[[], None]], None],
    *,
    may_rest: bool,
) -> None:
    """Hand what the TUN gives to ``engine`` and have the links flushed
    (``run_batch`` of their endpoint), until cancelled. An engine that drives its TUN itself needs only to be
    kept company.

    ``may_rest`` (a customer's TUN): while circuits are full the TUN is left alone, up to 20 ms, so that
    the kernel behind it holds its TCP back instead of losing packets. Not longer: one stalled circuit
    must not stop the others.

    A device that disappears (ENODEV, EBADF) ends the loop with OSError: without its TUN a node cannot go on.
    """
    if isinstance(engine, NativeEngine):
        await trio.sleep_forever()
    fd = tun.fileno()
    while True:
        await trio.lowlevel.wait_readable(fd)
        while True:
            raws = tun.read_batch(BATCH_PACKETS, BATCH_BYTES)
            if not raws:
                break
            run_batch(partial(engine.on_tun_packets, raws))
            if may_rest and engine.entry_is_full():
                for _ in range(MAX_RESTS):
                    await trio.sleep(REST_S)
                    if not engine.entry_is_full():
                        break
            else:
                await trio.lowlevel.checkpoint()
