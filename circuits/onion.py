"""Onion packets: what every hop does to a batch of them. The names to use; circuits.layers has the code.

One object per hop, direction and lane. They are small until the first packet: make all of a circuit's when it
is built, then forget the roots, so that the ratchet means something. The seams, all in order and with `now`
in monotonic seconds:

    RelayForward(root, suite, lane).open_many(packets, now) -> list[Opened | None]     every hop; also the
    exit's RelayBackward(root, suite, lane).wrap_many(packets, now) -> list[bytes]            every hop but
    the last ExitBackward(root, suite, lane, rng).seal_many(bodies, now) -> list[bytes] ClientForward(roots,
    suite, lane, rng).seal_many(bodies, now) -> list[bytes] ClientBackward(roots, suite,
    lane).open_many(packets, now) -> list[bytes | None]

All count `failures` and `dropped`, say when they are `broken`, and erase or change keys at `expire(now)`,
which an idle circuit may be given once in a while. Packets come without circuit id; bodies are full ones
(circuits.inner).
"""

from circuits.layers.client import ClientBackward, ClientForward
from circuits.layers.lane import LANE_DATAGRAM, LANE_STREAM, Command, Opened
from circuits.layers.relay import ExitBackward, RelayBackward, RelayForward

__all__ = [
    "LANE_DATAGRAM",
    "LANE_STREAM",
    "ClientBackward",
    "ClientForward",
    "Command",
    "ExitBackward",
    "Opened",
    "RelayBackward",
    "RelayForward",
]
