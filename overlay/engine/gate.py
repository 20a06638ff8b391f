"""The exit's rules on the way of a packet: source check, exit policy, and the answer to what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exit.icmp import IcmpErrors
from exit.packets import parse
from exit.policy import Verdict
from exit.tun.vnet import validate_offload

if TYPE_CHECKING:
    from exit.policy import PolicyTable
    from overlay.engine.interface import InnerAddresses


@dataclass(slots=True)
class GateCounters:
    """What all circuits of an exit were refused, by cause. Never where to."""

    malformed: int = 0
    spoofed: int = 0
    refused: int = 0


class ExitGate:
    """One circuit's gate: judges its packets, and answers the refused ones at a limited rate."""

    __slots__ = ("_counters", "_errors", "_table", "_v4", "_v6")

    def __init__(
        self, table: PolicyTable, addresses: InnerAddresses, dns: InnerAddresses, counters: GateCounters
    ) -> None:
        """``dns``: the exit's own inner addresses, which answers come from."""
        self._table = table
        self._v4, self._v6 = addresses.v4, addresses.v6
        self._errors = IcmpErrors(dns.v4, dns.v6 or bytes(16))
        self._counters = counters

    def inspect(self, data: bytes, offset: int, now: float) -> bytes | bool | None:
        """Judge the IP packet at ``offset`` of ``data``; what stands before it is its virtio_net_hdr.
        True lets it pass, None drops it in silence, bytes are the ICMP answer that the customer gets for
        it.
        """
        packet = parse(data, offset)
        if packet is None:
            self._counters.malformed += 1
            return None
        if offset and validate_offload(data, packet) is not None:
            self._counters.malformed += 1
            return None
        if packet.source != (self._v4 if packet.version == 4 else self._v6):
            self._counters.spoofed += 1
            return None
        verdict = self._table.verdict(
            packet.version, packet.protocol, packet.destination, packet.destination_port
        )
        if verdict is Verdict.ACCEPT:
            return True
        self._counters.refused += 1
        return self._errors.refused(data, offset, packet, verdict, now)
