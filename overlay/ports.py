"""Short port policies: what an exit's descriptor says of the ports it serves.

The text is that of Tor's microdescriptors: ``accept 80,443,6000-6010`` or ``reject 25,445``, ports rising
and without overlap, so that one set of ports has one text. It says nothing of addresses: an exit's full
policy, in `exit.policy`, decides about a packet; this decides which exits are worth trying.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from overlay.errors import DecodeError

PORT_MAX = 65535
SUMMARY_MAX_LENGTH = 700
"""Characters; with the other fields at their longest a descriptor stays under its 2 KiB."""

_SUMMARY = re.compile(
    r"(accept|reject) ((?:[1-9][0-9]{0,4}(?:-[1-9][0-9]{0,4})?)(?:,[1-9][0-9]{0,4}(?:-[1-9][0-9]{0,4})?)*)"
)


@dataclass(frozen=True, slots=True)
class PortSummary:
    """The ports an exit serves: inclusive ranges (perhaps none) that rise and neither overlap nor touch."""

    ranges: tuple[tuple[int, int], ...]

    def allows(self, port: int) -> bool:
        """Tell whether connections to `port` are served."""
        return any(first <= port <= last for first, last in self.ranges)

    def __str__(self) -> str:
        """Return the shorter of the accept and the reject form; both are never empty."""
        refused = _complement(self.ranges)
        if not self.ranges:
            return f"reject 1-{PORT_MAX}"
        if not refused:
            return f"accept 1-{PORT_MAX}"
        accept, reject = f"accept {_format(self.ranges)}", f"reject {_format(refused)}"
        return reject if len(reject) < len(accept) else accept


NO_PORTS = PortSummary(())
ALL_PORTS = PortSummary(((1, PORT_MAX),))


def summarise(ranges: Iterable[tuple[int, int]]) -> PortSummary:
    """Return the summary of inclusive `ranges` in any order.

    Raises ValueError for a range outside 1..65535 or upside down.
    """
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if not 1 <= first <= last <= PORT_MAX:
            raise ValueError(f"{first}-{last} is no range of ports")
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return PortSummary(tuple(merged))


def shorten(summary: PortSummary, limit: int = SUMMARY_MAX_LENGTH) -> PortSummary:
    """Return `summary`, or as many of its ranges from the lowest up as a text of `limit` characters holds.

    What is left out is served but not promised: an exit may be asked for less, never for more than it does.
    """
    ranges = summary.ranges
    while len(str(PortSummary(ranges))) > limit:
        ranges = ranges[: len(ranges) * 9 // 10]
    return PortSummary(ranges)


@lru_cache(maxsize=512)  # most exits have one of a few policies; a directory then keeps each only once
def decode_summary(text: str, *, limit: int = SUMMARY_MAX_LENGTH) -> PortSummary:
    """Read a short policy of at most `limit` characters. Raises DecodeError for any other form."""
    if len(text) > limit:
        raise DecodeError(f"a port summary is longer than {limit} characters")
    match = _SUMMARY.fullmatch(text)
    if match is None:
        raise DecodeError("a port summary is not of the form 'accept 80,443' or 'reject 1-24'")
    ranges = []
    previous = -1
    for part in match[2].split(","):
        first_text, _, last_text = part.partition("-")
        first, last = int(first_text), int(last_text or first_text)
        if not previous + 1 < first <= last <= PORT_MAX or (last_text and first == last):
            raise DecodeError("the ports of a port summary do not rise, overlap, or exceed 65535")
        ranges.append((first, last))
        previous = last
    accepted = tuple(ranges)
    return PortSummary(accepted if match[1] == "accept" else _complement(accepted))


def _complement(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    gaps = []
    start = 1
    for first, last in ranges:
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= PORT_MAX:
        gaps.append((start, PORT_MAX))
    return tuple(gaps)


def _format(ranges: tuple[tuple[int, int], ...]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
