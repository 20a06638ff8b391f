"""Circuits that stand, as the customer's node lends them out, and the leases on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.building.messages import ExitAddresses
    from circuits.path import Path
    from overlay.engine.flows import ClientFlow
    from overlay.links.link import Link
    from overlay.node.client import ClientNode


@dataclass(eq=False, slots=True, weakref_slot=True)
class Circuit:
    """A circuit that stands: the engine's flow and what the exit gave."""

    circuit_id: int
    path: Path
    link: Link
    wire_id: int
    flow: ClientFlow
    addresses: ExitAddresses
    build_s: float
    watchers: dict[Lease, Callable[[], None]] = field(default_factory=dict)
    heard_packets: int = 0
    sent_packets: int = 0
    moved_s: float = 0.0
    is_closed: bool = False


class Lease:
    """A proxy connection's right to use a circuit (overlay.socks.circuits.Lease)."""

    __slots__ = ("_is_released", "_node", "circuit", "dns_v4", "source_v4", "source_v6")

    def __init__(self, node: ClientNode, circuit: Circuit) -> None:
        self._node = node
        self._is_released = False
        self.circuit = circuit
        self.source_v4 = str(circuit.addresses.ipv4)
        self.source_v6 = str(circuit.addresses.ipv6) if circuit.addresses.ipv6 is not None else None
        self.dns_v4 = str(circuit.addresses.dns_ipv4)

    def watch(self, on_closed: Callable[[], None]) -> None:
        """Have ``on_closed`` called once when the circuit is dead; at once if it is."""
        if self._is_released:
            return
        if self.circuit.is_closed:
            on_closed()
        else:
            self.circuit.watchers[self] = on_closed

    def note_refused(self, host: str, port: int) -> None:
        """The exit does not let a connection out."""
        self._node.market.note_refused(self.circuit, host, port)

    def note_opened(self, port: int) -> None:
        """The exit let a connection out."""
        self._node.market.note_opened(self.circuit, port)

    def release(self) -> None:
        """Give the lease back; twice is allowed."""
        if not self._is_released:
            self._is_released = True
            self.circuit.watchers.pop(self, None)
            self._node.release(self.circuit)
