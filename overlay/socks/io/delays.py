"""Things to do a fixed time from now, in the order in which they were asked for: one task for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from overlay.socks.io.faults import report_fault


class DelayLine:
    """Calls what it was given after `delay_s`; what is due within `slack_s` more shares a wake-up."""

    __slots__ = ("_delay_s", "_event", "_has_some", "_slack_s", "_waiting")

    def __init__(self, delay_s: float, slack_s: float, event: str) -> None:
        """Begin empty. An exception of an action is logged as `event`, and that is all."""
        self._delay_s = delay_s
        self._slack_s = slack_s
        self._event = event
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._has_some = trio.Event()

    def add(self, action: Callable[[], None]) -> None:
        """Call `action` after the delay."""
        self._waiting.append((trio.current_time() + self._delay_s, action))
        self._has_some.set()

    async def run(self, before: Callable[[float], None]) -> None:
        """Call what is due until cancelled, and `before` with the time at each wake-up."""
        waiting = self._waiting
        while True:
            await self._has_some.wait()
            while waiting:
                await trio.sleep_until(waiting[0][0])
                now = trio.current_time()
                before(now)
                while waiting and waiting[0][0] <= now + self._slack_s:
                    try:
                        waiting.popleft()[1]()
                    except Exception as error:
                        report_fault(self._event, error)
            self._has_some = trio.Event()
