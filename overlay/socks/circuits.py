"""The seam between the proxy and whoever has circuits: what is asked for, what is lent, why it is refused.

The client's node implements `Circuits`. The proxy asks for one lease per connection (and per UDP
association or lookup), binds its sockets in the namespace to the lease's inner source addresses, sends
DNS to the lease's DNS addresses, and releases the lease when it is done. It never chooses a circuit
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

MAX_NAME_BYTES = 255
#: The longest name DNS can carry, in its text form.
MAX_DNS_NAME_CHARS = 253


class Transport(Enum):
    """What will be sent to the destination."""

    TCP = "tcp"
    UDP = "udp"
    DNS = "dns"
    """Only a lookup of the name or address; the port is 0."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a connection should go. `str()` is for the user's eyes only; never log it."""

    host: str
    """A DNS name in lower case without its last dot, or an IP address in canonical text; "" for any."""
    port: int
    """0 for any."""
    ip_version: int
    """4 or 6 for an address, 0 for a name or for any."""
    transport: Transport = Transport.TCP

    def __str__(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if self.ip_version == 6 else f"{self.host}:{self.port}"

    __repr__ = object.__repr__


#: What a UDP association asks for: its destinations are not known yet.
ANY_UDP = Destination("", 0, 0, Transport.UDP)


@dataclass(frozen=True, slots=True)
class Isolation:
    """Who must not share a circuit with whom: equal keys may share.

    Not the credentials, but a hash of them.
    """

    key: bytes = b""

    __repr__ = object.__repr__


NO_ISOLATION = Isolation()


def isolation_of(user: bytes, password: bytes) -> Isolation:
    """Return the isolation that a user name and password choose; both empty count as none given."""
    if not user and not password:
        return NO_ISOLATION
    digest = hashlib.blake2b(digest_size=16, person=b"hopfare isolate")
    digest.update(len(user).to_bytes(4, "big") + user + password)
    return Isolation(digest.digest())


class NoCircuitKind(Enum):
    """Why there is no circuit; decides what the program behind the proxy is told."""

    NOT_READY = "not ready"
    """None could be built in time, or hopfare is still starting or already stopping."""
    NOT_ALLOWED = "not allowed"
    """No exit we may use lets this destination through, or the user's own settings forbid it."""
    NO_IPV6 = "no ipv6"
    """The destination is an IPv6 address and no exit we may use has IPv6."""
    OFFLINE = "offline"
    """No guard can be reached."""
    OVERLOADED = "overloaded"
    """Too many circuits or connections already."""


class NoCircuit(Exception):  # noqa: N818 - a refusal by its proper name
    """No circuit for this destination. `str()` is a sentence for the user."""

    def __init__(self, kind: NoCircuitKind, reason: str) -> None:
        """Keep the kind and the sentence."""
        super().__init__(reason)
        self.kind = kind


class Lease(Protocol):
    """The right to use a circuit for one connection."""

    @property
    def circuit(self) -> object:
        """The same object for all leases of one circuit, hashable and weakly referable: names resolved on one
        circuit are remembered for that circuit alone.
        """

    @property
    def source_v4(self) -> str:
        """The circuit's inner IPv4 address, which the namespace accepts already."""

    @property
    def source_v6(self) -> str | None:
        """Its inner IPv6 address, or None when the exit has no IPv6."""

    @property
    def dns_v4(self) -> str:
        """The exit's DNS server on its inner IPv4 address, port 53."""

    def watch(self, on_closed: Callable[[], None]) -> None:
        """Have `on_closed` called, at most once and never after `release`, when the circuit is dead.

        It is called from the task that notices, must not raise and may call `release`. Called at once
        when the circuit is dead already. A second call replaces the first.
        """

    def note_refused(self, host: str, port: int) -> None:
        """Tell that "administratively prohibited" came for a connection to an address."""

    def note_opened(self, port: int) -> None:
        """Tell that a connection came about."""

    def release(self) -> None:
        """Give the lease back. Harmless when called twice."""


class Circuits(Protocol):
    """Who has circuits."""

    def lease_now(self, isolation: Isolation, destination: Destination) -> Lease | None:
        """Return a lease if a fitting circuit is ready, without waiting; None means: ask `lease`."""

    async def lease(self, isolation: Isolation, destination: Destination) -> Lease:
        """Return a lease, waiting for a circuit if need be, for a time of the implementer's choice.

        Raises NoCircuit. A cancellation leaves no lease behind.
        """


def parse_destination(host: str, port: int, transport: Transport = Transport.TCP) -> Destination | None:
    """Return the destination that a host's text names, or None when it is no name and no address.

    An IPv4-mapped IPv6 address counts as its IPv4 address; brackets around an IPv6 address are allowed.
    """
    text = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if text[:1].isdigit() or ":" in text:
        try:
            return address_destination(ip_address(text), port, transport)
        except ValueError:
            if ":" in text:
                return None
    text = host.lower().removesuffix(".")
    if not text or len(text) > MAX_DNS_NAME_CHARS or not text.isprintable() or " " in text or ".." in text:
        return None
    return Destination(text, port, 0, transport)


def address_destination(
    address: IPv4Address | IPv6Address, port: int, transport: Transport = Transport.TCP
) -> Destination:
    """Return the destination of an IP address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.scope_id is not None:
            address = IPv6Address(int(address))  # a zone means nothing at the exit
    return Destination(str(address), port, address.version, transport)
