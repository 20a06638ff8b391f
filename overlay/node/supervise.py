"""Keeps tasks running that a node can do without for a moment: an error of ours in one must not cost the
node its circuits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RESTART_S = 5.0
LONGEST_RESTART_S = 300.0
"""Doubled up to this while the task fails at once, so that a bug does not fill the log."""


async def keep_running(task: Callable[[], Awaitable[None]], log: Any, event: str) -> None:
    """Run a task until it returns, begun again after each exception, which `log` is told as the error
    `event` with its traceback.
    """
    wait_s = RESTART_S
    while True:
        begun = trio.current_time()
        try:
            await task()
        except Exception as error:
            log.error(event, exc_info=error)
            if trio.current_time() - begun > LONGEST_RESTART_S:
                wait_s = RESTART_S
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_RESTART_S)
        else:
            return
