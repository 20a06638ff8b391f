"""Run a node until it is told to stop: Ctrl-C, SIGTERM, or the terminal going away."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(node: Callable[[], Awaitable[None]]) -> None:
    """Run `node` under trio; a first signal cancels it, so that it can tidy up, a second one ends the
    process.

    Raises what `node` raises.
    """
    trio.run(_run, node)


async def _run(node: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, nursery.cancel_scope)
        await node()
        nursery.cancel_scope.cancel()


async def _watch_signals(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        task_status.started()
        async for _ in signals:
            break
    # After the receiver, which puts back the handlers that it found.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    scope.cancel()
