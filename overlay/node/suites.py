"""Which onion cipher suites this machine offers, best first."""

from __future__ import annotations

from pathlib import Path

from circuits.suites import preferred_suite


def offered_suites() -> tuple[int, ...]:
    """Both suites, the one that suits this processor first."""
    first = int(preferred_suite(_cpu_flags()))
    return (first, 3 - first)


def _cpu_flags() -> frozenset[str]:
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
