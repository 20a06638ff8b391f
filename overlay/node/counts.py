"""What the engine has counted on each side of a link, and what a node's money keeps of the link."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overlay.tabs.types import Reading, Side

if TYPE_CHECKING:
    from overlay.engine.interface import FlowHandle
    from overlay.engine.meters import Meter
    from overlay.tabs.desk import LinkTabs


@dataclass(slots=True)
class Count:
    """Packets of one side of a link: those of circuits that stand, and of those that are gone."""

    meter: Meter
    flows: dict[FlowHandle, None] = field(default_factory=dict)
    gone_forward: int = 0
    gone_backward: int = 0

    def read(self) -> Reading:
        """What was counted by now."""
        forward, backward = self.gone_forward, self.gone_backward
        for flow in self.flows:
            counters = flow.counters
            forward += counters.forward.packets
            backward += counters.backward.packets
        meter = self.meter
        return Reading(forward, backward, meter.charged_wei, meter.credit_wei, meter.refused_packets)

    def leave(self, flow: FlowHandle) -> None:
        """A circuit is gone; what it carried stays counted."""
        if flow in self.flows:
            del self.flows[flow]
            self.gone_forward += flow.counters.forward.packets
            self.gone_backward += flow.counters.backward.packets


@dataclass(slots=True)
class LinkMoney:
    """What the driver keeps of one link."""

    counts: dict[Side, Count]
    payer: bytes = b""
    tabs: LinkTabs | None = None
    earned_noted: tuple[int, int, int] = (0, 0, 0)
    """Packets, tickets and wei that are in the day's earnings already."""
    seen: tuple[int, ...] = ()
