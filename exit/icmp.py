"""ICMP and ICMPv6 errors that the exit makes itself. Owns their bytes and their rate limit.

A refused packet is answered with "administratively prohibited" instead of a TCP reset: a Linux customer's
`connect` then fails with EHOSTUNREACH (IPv4) or EACCES (IPv6) at once, which the SOCKS5 server can tell apart
from a server that refused the connection, and reports as "not allowed by ruleset". Errors quote the start of
the packet they are about, go to its source, and are never made about ICMP errors, later fragments or packets
to many (RFC 792, 1812 4.3.2, 4443 2.4).
"""

from __future__ import annotations

import struct

from exit.packets import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Packet, checksum, transport_checksum
from exit.policy import ICMP, ICMPV6, Verdict

#: An ICMPv6 error fits the least MTU (RFC 4443 2.4 (c)); RFC 1812 wants an IPv4 error within 576 bytes.
MAX_ERROR_V6_BYTES = 1280
MAX_ERROR_V4_BYTES = 576

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_ICMP = struct.Struct(">BBHI")

# RFC 792 and 1812: destination unreachable
_UNREACHABLE_V4 = 3
NET_UNREACHABLE_V4, HOST_UNREACHABLE_V4, TOO_BIG_V4, PROHIBITED_V4 = 0, 1, 4, 13
# RFC 4443
_UNREACHABLE_V6, _TOO_BIG_V6 = 1, 2
NO_ROUTE_V6, PROHIBITED_V6, ADDRESS_UNREACHABLE_V6 = 0, 1, 3


class IcmpErrors:
    """Makes errors from the exit's inner addresses, at most `per_second` of them with a burst of the same
    size.
    """

    __slots__ = ("_burst", "_last_s", "_per_second", "_source4", "_source6", "_tokens", "suppressed")

    def __init__(self, source4: bytes, source6: bytes, *, per_second: float = 20.0) -> None:
        """Send from the packed addresses given. One object per circuit, so that one customer cannot starve
        another.
        """
        self._source4 = source4
        self._source6 = source6
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._tokens = self._burst
        self._last_s: float | None = None
        #: Errors not sent because of the rate limit.
        self.suppressed = 0

    def refused(self, raw: bytes, offset: int, packet: Packet, verdict: Verdict, now: float) -> bytes | None:
        """Return the answer to a packet that got `verdict`, or None when it gets none or the rate is used up.

        `raw`, `offset` and `packet` are as given to and by `parse`; `now` is in seconds.
        """
        if not may_answer(packet) or not self._take(now):
            return None
        if packet.version == 4:
            return prohibited_v4(self._source4, packet, raw, offset)
        code = NO_ROUTE_V6 if verdict is Verdict.NO_IPV6 else PROHIBITED_V6
        return error_v6(self._source6, packet, raw, offset, _UNREACHABLE_V6, code)

    def unreachable(self, raw: bytes, offset: int, packet: Packet, now: float) -> bytes | None:
        """Return "host unreachable" about a packet that there is no way for, under the same conditions."""
        if not may_answer(packet) or not self._take(now):
            return None
        if packet.version == 4:
            return error_v4(self._source4, packet, raw, offset, _UNREACHABLE_V4, HOST_UNREACHABLE_V4)
        return error_v6(self._source6, packet, raw, offset, _UNREACHABLE_V6, ADDRESS_UNREACHABLE_V6)

    def too_big(self, raw: bytes, offset: int, packet: Packet, mtu: int, now: float) -> bytes | None:
        """Return "packet too big, the next MTU is `mtu` bytes", under the same conditions.

        For IPv4 only when the packet forbids fragments (DF); otherwise None.
        """
        if (
            not may_answer(packet)
            or (packet.version == 4 and not raw[offset + 6] & 0x40)
            or not self._take(now)
        ):
            return None
        if packet.version == 4:
            return error_v4(self._source4, packet, raw, offset, _UNREACHABLE_V4, TOO_BIG_V4, mtu & 0xFFFF)
        return error_v6(self._source6, packet, raw, offset, _TOO_BIG_V6, 0, max(mtu, MAX_ERROR_V6_BYTES))

    def _take(self, now: float) -> bool:
        last_s = self._last_s
        if last_s is not None and now > last_s:
            self._tokens = min(self._burst, self._tokens + (now - last_s) * self._per_second)
        # A clock that jumped back starts a new measure; it never refills the bucket.
        self._last_s = now
        if self._tokens < 1.0:
            self.suppressed += 1
            return False
        self._tokens -= 1.0
        return True


def may_answer(packet: Packet) -> bool:
    """Tell whether an error may be made about the packet: it is no later fragment and not sent to many."""
    if packet.is_fragment and packet.destination_port < 0:
        return False
    first = packet.destination[0]
    return first != 0xFF if packet.version == 6 else first < 224


def prohibited_v4(source: bytes, packet: Packet, raw: bytes, offset: int) -> bytes:
    """Return ICMP 3/13, communication administratively prohibited, about the packet."""
    return error_v4(source, packet, raw, offset, _UNREACHABLE_V4, PROHIBITED_V4)


def error_v4(
    source: bytes, packet: Packet, raw: bytes, offset: int, kind: int, code: int, rest: int = 0
) -> bytes:
    """Return a whole IPv4 packet with an ICMP error from `source` (4 bytes) to the packet's source.

    `rest` is the 32-bit field after the checksum.
    """
    room = MAX_ERROR_V4_BYTES - IPV4_HEADER_BYTES - _ICMP.size
    quote = raw[offset : offset + room]
    body = _ICMP.pack(kind, code, checksum(_ICMP.pack(kind, code, 0, rest) + quote), rest) + quote
    # Precedence 6, internetwork control, as RFC 1812 4.3.2.5 wants
    fields = (0x45, 0xC0, IPV4_HEADER_BYTES + len(body), 0, 0, 64, ICMP)
    header = _IPV4.pack(*fields, 0, source, packet.source)
    return _IPV4.pack(*fields, checksum(header), source, packet.source) + body


def error_v6(
    source: bytes, packet: Packet, raw: bytes, offset: int, kind: int, code: int, rest: int = 0
) -> bytes:
    """Return a whole IPv6 packet with an ICMPv6 error from `source` (16 bytes) to the packet's source."""
    room = MAX_ERROR_V6_BYTES - IPV6_HEADER_BYTES - _ICMP.size
    quote = raw[offset : offset + room]
    empty = _ICMP.pack(kind, code, 0, rest) + quote
    value = transport_checksum(source, packet.source, ICMPV6, empty)
    header = _IPV6.pack(6 << 28, len(empty), ICMPV6, 64, source, packet.source)
    return header + _ICMP.pack(kind, code, value, rest) + quote
