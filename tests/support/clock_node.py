"""hopfare with a clock that a test sets: the seconds in the file TEST_CLOCK_FILE are added to the time."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
OFFSET = Path(os.environ.pop("TEST_CLOCK_FILE"))
real_time = time.time


def shifted() -> float:
    try:
        return real_time() + float(OFFSET.read_text() or 0)
    except (OSError, ValueError):
        return real_time()


time.time = shifted

if __name__ == "__main__":
    from overlay.cli.main import main

    main()
