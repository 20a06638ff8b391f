"""The TUN's side of an engine: raw reads to inner items, inner items to raw writes, with or without offloads.

With offloads a raw TUN packet is a 10-byte virtio_net_hdr and the packet (Linux,
Documentation/networking/tuntap.rst); without, it is the packet alone, and super-packets of peers are cut
and checksums completed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from circuits.inner import Item, ItemType
from exit.packets import parse
from exit.tun.segment import to_packets
from exit.tun.vnet import is_plain, validate_offload

if TYPE_CHECKING:
    from collections.abc import Callable

VNET_HEADER_BYTES = 10
_NO_OFFLOAD = bytes(VNET_HEADER_BYTES)


class RawTun(Protocol):
    """What is needed of a TUN device (exit.io.tun.Tun)."""

    @property
    def has_offload(self) -> bool:
        """Whether raw packets start with a virtio_net_hdr."""

    @property
    def mtu(self) -> int:
        """Largest packet in bytes that the device takes without offloads."""

    def write(self, raw: bytes) -> bool:
        """Hand one raw packet to the kernel; False when it was not taken."""


class TunSide:
    """Converts between inner items and one TUN device. ``refused`` counts what neither side would take."""

    __slots__ = ("_has_offload", "_mtu", "_write", "refused")

    def __init__(self, tun: RawTun) -> None:
        self._has_offload = tun.has_offload
        self._mtu = tun.mtu
        self._write: Callable[[bytes], bool] = tun.write
        self.refused = 0

    @property
    def packet_offset(self) -> int:
        """Where the IP header starts in a raw read."""
        return VNET_HEADER_BYTES if self._has_offload else 0

    def item(self, raw: bytes) -> Item:
        """The inner item for one raw read of at least one byte of packet."""
        if not self._has_offload:
            return Item(ItemType.IP, 0, raw)
        if is_plain(raw):
            return Item(ItemType.IP, 0, raw[VNET_HEADER_BYTES:])
        return Item(ItemType.OFFLOAD, 0, raw)

    def check(self, item: Item) -> bool:
        """Whether an OFFLOAD item's header agrees with its packet; False is counted."""
        packet = parse(item.data, VNET_HEADER_BYTES)
        if packet is None or validate_offload(item.data, packet) is not None:
            self.refused += 1
            return False
        return True

    def write(self, item: Item) -> bool:
        """Write an IP item, or an OFFLOAD item that was checked; False, and counted, when the kernel
        refuses it.
        """
        kind, _, data = item
        if kind == ItemType.OFFLOAD:
            if self._has_offload:
                taken = self._write(data)
            else:
                taken = True
                for packet in to_packets(data):
                    taken = self._write(packet) and taken
        elif self._has_offload:
            taken = self._write(_NO_OFFLOAD + data)
        else:
            taken = self._write(data)
        if not taken:
            self.refused += 1
        return taken
