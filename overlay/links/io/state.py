"""What an endpoint remembers: of each link, of each socket, of dials under way and of links just closed."""

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Final

import trio

from overlay.links.backends.base import Address
from overlay.links.io.udp import Control, UdpSocket
from overlay.links.link import Link

LINGER_S: Final = 5.0
LINGER_ANSWERS: Final = 3
"""How often the packet that closed a link is repeated to a peer that goes on sending."""

Packets = list[tuple[bytes, Address]]


@dataclass(slots=True)
class EndpointCounters:
    """What the endpoint's tasks have done."""

    unknown_packets: int = 0
    """Packets of no link that were not even looked at as the beginning of one."""
    batches: int = 0
    receives: int = 0
    """System calls that brought something."""
    wakeups: int = 0
    bugs: int = 0
    """Errors of ours that a link paid for."""
    """Of the timer task."""


class Dial:
    """Someone waits for a link that this node dials."""

    __slots__ = ("answered", "done", "probes")

    def __init__(self) -> None:
        """Begin to wait."""
        self.done = trio.Event()
        self.probes: dict[bytes, int] = {}
        """Sizes of the probes that were sent, by the id that their answer is addressed to."""
        self.answered: set[int] = set()
        """Sizes of the probes that were answered."""


@dataclass(slots=True)
class Lingering:
    """The last packets of a closed link, for a peer that did not get them."""

    packets: Packets
    until: float
    answers: int = LINGER_ANSWERS

    def take(self, now: float) -> Packets:
        """Return the packets to repeat now."""
        if self.answers <= 0 or now >= self.until:
            return []
        self.answers -= 1
        return self.packets


@dataclass(eq=False, slots=True)
class Socket:
    """A socket, and what waits because its buffer is full."""

    udp: UdpSocket
    pending: deque[tuple[Packets, Control]] = field(default_factory=deque)
    waiting: dict[Link, None] = field(default_factory=dict)
    """Links that have something to send when it is writable again."""


@dataclass(eq=False, slots=True)
class Entry:
    """What the endpoint knows of a link."""

    sock: Socket
    prefix: bytes | None
    """Of an accepted link: what admission counts it by."""
    control: Control = ()
    """Of an accepted link: has answers leave from the address that was addressed."""
    cids: set[bytes] = field(default_factory=set)
    dial: Dial | None = None
    scheduled: float = inf
    """When the timer heap will look at the link."""
    up: bool = False
