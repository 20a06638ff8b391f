"""What the proxy's machines tell their driver to do, in order. Owns these values only."""

from __future__ import annotations

from dataclasses import dataclass

from overlay.socks.circuits import Destination, Isolation


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to the destination, then give the machine the outcome."""

    destination: Destination
    isolation: Isolation


@dataclass(frozen=True, slots=True)
class Associate:
    """Open a UDP association, then give the machine the outcome with the relay's address.

    `client` is the address the client says it will send from; host "" (or all zeros) and port 0 mean any.
    """

    client: Destination | None
    isolation: Isolation


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up the name's address, or with `is_reverse` the address's name, then give the machine the
    outcome.
    """

    destination: Destination
    isolation: Isolation
    is_reverse: bool


@dataclass(frozen=True, slots=True)
class Established:
    """From here on the bytes are the connection's own; `early` are those the client has sent already."""

    early: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close once everything is sent; `reason` names the protocol's fault for counters, never its content."""

    reason: str


Event = Send | Connect | Associate | Resolve | Established | Close
