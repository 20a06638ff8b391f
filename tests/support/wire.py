"""Captured packets: what stands in them, and whether one belongs to a customer and its guard."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from overlay.demo.capture import CapturedPacket

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_NEIGHBOURS = frozenset({133, 134, 135, 136, 143})  # RFC 4861 and multicast listeners (RFC 3810)
_PORT_UNREACHABLE = {ICMP: (3, 3), ICMPV6: (1, 4)}


@dataclass(frozen=True, slots=True)
class Seen:
    """One IP packet. Ports are 0 where there are none; `payload` is what follows the transport's header."""

    source: str
    destination: str
    protocol: int
    ports: tuple[int, int]
    payload: bytes

    @property
    def ends(self) -> frozenset[tuple[str, int]]:
        return frozenset({(self.source, self.ports[0]), (self.destination, self.ports[1])})


def decode(ip: bytes) -> Seen:
    if ip[0] >> 4 == 4:
        protocol, start, source, destination = ip[9], (ip[0] & 15) * 4, ip[12:16], ip[16:20]
    else:
        protocol, start, source, destination = ip[6], 40, ip[8:24], ip[24:40]
    ports, payload = (0, 0), ip[start:]
    if protocol in (TCP, UDP):
        ports = struct.unpack_from(">HH", ip, start)
        payload = ip[start + (8 if protocol == UDP else (ip[start + 12] >> 4) * 4) :]
    return Seen(str(ip_address(source)), str(ip_address(destination)), protocol, ports, payload)


def is_neighbour_talk(seen: Seen) -> bool:
    """IPv6's own talk on a link, which goes no further than the next machine."""
    return seen.protocol == ICMPV6 and seen.payload[0] in _NEIGHBOURS


def is_port_unreachable(seen: Seen) -> bool:
    """The word that nobody listens on a UDP port now: whoever did has stopped."""
    return _PORT_UNREACHABLE.get(seen.protocol) == tuple(seen.payload[:2])


def is_between(seen: Seen, one: set[str], relay: set[str], port: int) -> bool:
    """UDP between one of these addresses and the relay's port; or the word that nobody listens there now."""
    if is_port_unreachable(seen):
        return {seen.source, seen.destination} <= one | relay
    if seen.protocol != UDP:
        return False
    outward = seen.source in one and seen.destination in relay and seen.ports[1] == port
    inward = seen.destination in one and seen.source in relay and seen.ports[0] == port
    return outward or inward


def strangers(packets: list[CapturedPacket], own: set[str], guard: set[str], port: int) -> list[str]:
    """Descriptions of packets that are neither between a customer and its guard nor neighbours' talk."""
    found = []
    for packet in packets:
        seen = decode(packet.ip)
        if not is_neighbour_talk(seen) and not is_between(seen, own, guard, port):
            head = seen.payload[:40].hex()
            found.append(f"{seen.source} > {seen.destination} {seen.protocol} {seen.ports} {head}")
    return found
