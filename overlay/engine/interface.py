"""The engine interface: what every engine offers to the Python above it.

The node above an engine owns decisions (whom to dial, which circuit goes where, what a packet costs); the
engine owns packets. Control messages pass through as bytes that the engine never reads. Flows are the
engine's entries for circuits: a relay flow joins two links, an exit flow joins a link and the TUN, a
client flow joins the TUN and a link.

See "The engine" in docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from overlay.engine.meters import Meter


class FlowFault(IntEnum):
    """Why an engine gave up a flow; the number is what its node reports on the wire."""

    LINK_CLOSED = 1
    """One of the flow's links went down."""
    BAD_PACKETS = 2
    """Too many packets failed their authentication (16 datagrams, or one on the stream lane)."""
    BAD_FRAMING = 3
    """The peer's circuit stream could not be read."""
    FLOW_CONTROL = 4
    """The peer sent more units than it was granted."""
    STREAM_RESET = 5
    """The peer gave up the circuit's stream."""
    MEMORY = 6
    """The process reached its memory limit and this flow held the most."""
    EXHAUSTED = 7
    """A packet counter reached its end."""


class EngineLink(Protocol):
    """A QUIC connection to a neighbour as the node sees it."""

    @property
    def peer(self) -> bytes | None:
        """The neighbour's identity (32 bytes), or None for an anonymous customer."""

    @property
    def is_dialler(self) -> bool:
        """Whether this side dialled."""

    @property
    def rtt_s(self) -> float:
        """Smoothed round-trip time in seconds."""

    def send_control(self, message: bytes) -> None:
        """Queue one control message (ordered, reliable)."""

    def close(self, code: int = 0, reason: str = "") -> None:
        """Close the connection; the other side reads code and reason."""


LinkT_contra = TypeVar("LinkT_contra", contravariant=True)


class EngineEvents(Protocol[LinkT_contra]):
    """What an engine tells the node above it.

    Calls are synchronous, come from the engine's task and must not raise.
    """

    def on_link_up(self, link: LinkT_contra) -> None:
        """The link's handshake is done and its peer is known."""

    def on_link_closed(self, link: LinkT_contra, code: int, reason: str) -> None:
        """The link is gone; its flows have been dropped (with ``on_flow_lost``)."""

    def on_control(self, link: LinkT_contra, message: bytes) -> None:
        """One control message of the peer, as sent."""

    def on_flow_lost(self, flow: FlowHandle, fault: FlowFault) -> None:
        """The engine dropped a flow by itself."""

    def on_echo_reply(self, flow: FlowHandle, token: bytes) -> None:
        """A client flow's echo came back; ``token`` is the 8 bytes that were sent."""

    def on_meter_low(self, meter: Meter) -> None:
        """A meter fell under its mark, or is empty."""


@dataclass(slots=True)
class DirectionCounters:
    """What one direction of a flow has carried. A train of k units counts k packets."""

    packets: int = 0
    failures: int = 0
    dropped: int = 0


@dataclass(slots=True)
class FlowCounters:
    """Both directions of a flow: forward is away from the client."""

    forward: DirectionCounters = field(default_factory=DirectionCounters)
    backward: DirectionCounters = field(default_factory=DirectionCounters)


class FlowHandle(Protocol):
    """A circuit's entry in the engine."""

    @property
    def counters(self) -> FlowCounters:
        """Packets and failures so far."""

    @property
    def closed(self) -> bool:
        """Whether the flow was dropped."""


@dataclass(frozen=True, slots=True)
class Price:
    """What one packet costs on one side of a flow, and the meter that it is taken from."""

    meter: Meter
    wei_per_packet: int


@dataclass(frozen=True, slots=True)
class InnerAddresses:
    """A circuit's inner addresses: packed IPv4 (4 bytes) and IPv6 (16 bytes, or None where the exit has
    no IPv6).
    """

    v4: bytes
    v6: bytes | None


class Engine(Protocol[LinkT_contra]):
    """What the node asks of an engine. ``now`` never appears: an engine has a clock of its own."""

    def relay(
        self,
        root: bytes,
        suite: int,
        link_in: LinkT_contra,
        id_in: int,
        price_in: Price,
        link_out: LinkT_contra,
        id_out: int,
        price_out: Price,
    ) -> FlowHandle:
        """Join two links: peel one forward layer, add one backward layer, charge both meters."""

    def exit(
        self,
        root: bytes,
        suite: int,
        link: LinkT_contra,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
    ) -> FlowHandle:
        """Join a link and the TUN: the last layer."""

    def client(
        self,
        roots: Sequence[bytes],
        suite: int,
        link: LinkT_contra,
        circuit_id: int,
        price: Price,
        addresses: InnerAddresses,
    ) -> FlowHandle:
        """Join the TUN and a link: all layers. ``roots`` is ordered from the guard to the exit."""

    def echo(self, flow: FlowHandle, token: bytes) -> None:
        """Send an echo request (8 byte token) through a client flow's datagram lane."""

    def drop(self, flow: FlowHandle) -> None:
        """Forget a flow: its keys, queues and streams. No event follows. Dropping twice is allowed."""

    def add_credit(self, meter: Meter, flows: Sequence[Any], wei: int) -> None:
        """Credit a meter, and carry on what waited in ``flows`` for it."""

    def watch_meter(self, meter: Meter) -> None:
        """Have ``on_meter_low`` called, once each time this meter falls under its mark."""

    def unwatch_meter(self, meter: Meter) -> None:
        """Stop watching a meter."""
