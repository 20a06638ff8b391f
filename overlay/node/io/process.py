"""Settings of the whole process that a node makes once it stands."""

from __future__ import annotations

import gc

GC_THRESHOLDS = (50_000, 20, 50)
"""Python's collector looks for cycles each 700 new objects, which a busy node has after a few packets;
there are few cycles to find (closed links, failed tasks), so it may look far less often.
"""


def settle() -> None:
    """Keep what start-up made out of the garbage collector's way, and have it run seldom.

    Calling twice is harmless.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
