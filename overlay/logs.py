"""Logs: key-value events on standard error, and a bound on what a peer can make us write.

Owns the format, the level and the rate limit. Only drivers (`io/`, `overlay.node`, the CLI) log. What is
logged never holds a key, a payload, a name that a customer asks for, or a customer next to a destination;
the events are listed in docs/operations/logs.md.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_VALUE_LENGTH = 300
"""Characters of one logged value: nothing that a peer names can fill the log."""


def configure_logging(level: str, *, stream: TextIO | None = None, timestamps: bool = True) -> None:
    """Send events of `level` (debug, info, warning, error) and above to `stream`, by default standard error.

    One event is one line: time, level, event, key=value pairs; control characters are escaped.
    """
    processors: list[Any] = [structlog.processors.add_log_level]
    if timestamps:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    processors += [
        structlog.processors.format_exc_info,
        _bound_values,
        structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
        ),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(component: str) -> FilteringBoundLogger:
    """Return the logger of a component ("link", "exit", "socks"), named in each of its events."""
    return cast(FilteringBoundLogger, structlog.get_logger(component=component))


class RateLimit:
    """Lets a few events of each kind through in each interval and counts the rest.

    For whatever a peer can cause at will. Bounded in the number of kinds: the one used longest ago is
    forgotten.
    """

    __slots__ = ("_burst", "_interval_s", "_kinds", "_max_kinds")

    def __init__(self, *, burst: int = 5, interval_s: float = 60.0, max_kinds: int = 256) -> None:
        """Allow `burst` events of one kind in `interval_s` seconds; remember at most `max_kinds` kinds."""
        self._burst = burst
        self._interval_s = interval_s
        self._max_kinds = max_kinds
        self._kinds: OrderedDict[str, list[float]] = OrderedDict()

    def allow(self, kind: str, now_s: float) -> int | None:
        """Return None if an event of `kind` is to be dropped now, else how many were dropped since the last
        one.
        """
        state = self._kinds.get(kind)
        if state is None or not 0 <= now_s - state[0] < self._interval_s:
            dropped = 0 if state is None else int(state[2])
            self._kinds[kind] = [now_s, 1.0, 0.0]  # start of the interval, passed, dropped
            self._kinds.move_to_end(kind)
            if len(self._kinds) > self._max_kinds:
                self._kinds.popitem(last=False)
            return dropped
        self._kinds.move_to_end(kind)
        if state[1] < self._burst:
            state[1] += 1
            return 0
        state[2] += 1
        return None


def _bound_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, bytes):
            value = value.hex()
        text = value if isinstance(value, str) else None
        if text is not None:
            cleaned = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
            limit = MAX_VALUE_LENGTH if key != "exception" else 20 * MAX_VALUE_LENGTH
            event[key] = cleaned if len(cleaned) <= limit else cleaned[: limit - 3] + "..."
    return event
