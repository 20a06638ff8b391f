"""What the machine's clocks say, for what must be kept whatever is done to the wall clock."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from payments.budget_clock import Moment

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read_moment() -> Moment:
    """Return the boot clock, which goes on in suspend and is never set, and the wall clock."""
    return Moment(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


@cache
def _boot_id() -> str:
    """Which boot of the machine this is; where that is not told, each process is a boot of its own."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"process {time.time_ns()}"
