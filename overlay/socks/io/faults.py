"""How the proxy reports a fault of its own: kind and place, never the exception's text or a traceback's
values, which could name a destination. At most a few of a kind per minute, since a client may be able to
cause it at will.
"""

from __future__ import annotations

import time
from pathlib import Path

from overlay.logs import RateLimit, get_logger

_log = get_logger("socks")
_rate = RateLimit()


def report_fault(event: str, error: BaseException) -> None:
    """Log one event with the error's type and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "unknown"
    if trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    dropped = _rate.allow(f"{event} {where}", time.monotonic())
    if dropped is not None:
        # The system's own words for an error number name nothing of a customer's.
        problem = {"problem": error.strerror} if isinstance(error, OSError) and error.strerror else {}
        _log.error(event, error=type(error).__name__, **problem, where=where, dropped=dropped)
