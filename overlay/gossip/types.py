"""What gossip's parts share: its outputs, its peers, its figures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from overlay.gossip.messages import DialBack, DialedBack
from overlay.links.bucket import Bucket


class Random(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high]."""

    def randint(self, a: int, b: int) -> int:
        """Return a whole number from `a` to `b`, both included."""


@dataclass(frozen=True, slots=True)
class Send:
    """One encoded message for a peer."""

    peer: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """End the link to a peer that floods this node."""

    peer: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The directory is another one than before."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer says at which address it sees this node."""

    peer: int
    ip: str


@dataclass(frozen=True, slots=True)
class Handed:
    """A message about reachability, for the driver."""

    peer: int
    message: DialBack | DialedBack


Output = Send | Close | Changed | Seen | Handed


class Kind(Enum):
    """What a peer is to this node; see the module's text."""

    PARTNER = auto()
    CUSTOMER = auto()
    SOURCE = auto()


@dataclass(eq=False, slots=True)
class Peer:
    """What this node knows of one link's other end."""

    kind: Kind
    identity: bytes | None
    ip: str
    is_chosen: bool
    """Whether this node dialled it, or meant to."""
    serve: Bucket
    messages: Bucket
    useless: Bucket
    last_root: bytes = b""
    """From its last Digest."""
    rests_until: float = 0.0
    fruitless: int = 0
    faults: int = 0
    distrusted_until: float = 0.0
    greeted: bool = False
    heard: bool = False
    """Whether it has sent a Digest."""


@dataclass(slots=True)
class GossipCounters:
    """What has happened; for status and metrics."""

    taken: int = 0
    refused: int = 0
    faults: int = 0
    sessions: int = 0
    fruitless_sessions: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    flooding_links_closed: int = 0
