"""Meters: a credit in wei per neighbour, charged before a packet is forwarded.

A meter without a limit (``credit_wei`` None) only counts: networks without payments, and the side that is
paid later.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Meter:
    """A neighbour's account in the engine.

    ``charged_wei`` and ``packets`` only grow. ``low_wei`` is the mark under which the node wants a notice.
    """

    credit_wei: int | None = None
    low_wei: int = 0
    charged_wei: int = 0
    packets: int = 0
    refused_packets: int = 0
    notified: bool = False

    def add_credit(self, wei: int) -> None:
        """Add ``wei`` (at least 0) to the credit of a limited meter; a meter without a limit stays so.

        Raises ValueError for a negative amount: money is only taken by ``charge``.
        """
        if wei < 0:
            raise ValueError("credit to add must not be negative")
        if self.credit_wei is not None:
            self.credit_wei += wei
            if self.credit_wei > self.low_wei:
                self.notified = False

    def charge(self, packets: int, wei_per_packet: int) -> bool:
        """Take the price of ``packets`` packets; False, and nothing taken, when the credit does not cover
        all of them.
        """
        cost = packets * wei_per_packet
        credit = self.credit_wei
        if credit is not None:
            if credit < cost:
                self.refused_packets += packets
                return False
            self.credit_wei = credit - cost
        self.charged_wei += cost
        self.packets += packets
        return True

    def affordable_packets(self, wei_per_packet: int) -> int:
        """How many packets the credit covers at most; a large number when it has no limit or the price is
        0.
        """
        if self.credit_wei is None or wei_per_packet == 0:
            return 1 << 62
        return self.credit_wei // wei_per_packet

    def take_notice(self) -> bool:
        """Whether the credit is at or under the mark and nobody has been told since it last rose above it."""
        if self.credit_wei is None or self.notified or self.credit_wei > self.low_wei:
            return False
        self.notified = True
        return True
