"""Which questions the exit answers itself or refuses, before any resolver hears of them. Pure.

Names that mean something only on a local network would tell customers about the operator's, and so would
reverse lookups of denied ranges. Questions that serve amplification or transfers are refused. Sources: RFC
6761 (special names), 6762 (.local), 7686 (.onion), 8375 (home.arpa), 8482 (ANY).
"""

from __future__ import annotations

from enum import Enum

from exit.denied import DenyList
from exit.dns.query import ExtendedError, Query, Rcode

TYPE_A, TYPE_AAAA, TYPE_SVCB, TYPE_HTTPS = 1, 28, 64, 65
_CLASS_IN = 1
#: Types 128 to 255 are no data but instructions to the server (RFC 6895): ANY, AXFR, TKEY and the like; 41 is
#: OPT.
_META_TYPES = range(128, 256)
_TYPE_OPT = 41

#: `internal` holds the metadata services of cloud hosts.
LOCAL_SUFFIXES = ("localhost", "local", "internal", "home.arpa", "invalid", "onion")


class Ruling(Enum):
    """What becomes of a question: `rcode`, and the extended error that goes with it. EMPTY is a true "no such
    data".
    """

    REFUSED = (Rcode.REFUSED, ExtendedError.BLOCKED)
    NOT_SUPPORTED = (Rcode.REFUSED, ExtendedError.NOT_SUPPORTED)
    NOT_IMPLEMENTED = (Rcode.NOTIMP, ExtendedError.NOT_SUPPORTED)
    NO_SUCH_NAME = (Rcode.NXDOMAIN, ExtendedError.BLOCKED)
    EMPTY = (Rcode.NOERROR, None)

    @property
    def rcode(self) -> Rcode:
        """Return the response code."""
        rcode: Rcode = self.value[0]
        return rcode

    @property
    def error(self) -> ExtendedError | None:
        """Return the extended error, if one fits."""
        error: ExtendedError | None = self.value[1]
        return error


class Rules:
    """The rules of one exit. `has_ipv6` False leaves every question for AAAA records without data."""

    __slots__ = ("_local", "has_ipv6")

    def __init__(self, *, has_ipv6: bool, local_suffixes: tuple[str, ...] = LOCAL_SUFFIXES) -> None:
        """Treat names under `local_suffixes` as not existing."""
        self.has_ipv6 = has_ipv6
        self._local = tuple(name_to_wire(suffix) for suffix in local_suffixes)

    def judge(self, query: Query, deny: DenyList) -> Ruling | None:
        """Return what becomes of the question, or None if it is to be resolved."""
        if query.opcode:
            return Ruling.NOT_IMPLEMENTED
        qtype = query.qtype
        if query.qclass != _CLASS_IN or qtype in _META_TYPES or qtype in (0, _TYPE_OPT):
            return Ruling.NOT_SUPPORTED
        name = query.name
        for suffix in self._local:
            if name.endswith(suffix) and has_suffix(name, suffix):
                return Ruling.NO_SUCH_NAME
        if name.endswith(_ARPA) and _is_denied_reverse(name, deny):
            return Ruling.REFUSED
        if qtype == TYPE_AAAA and not self.has_ipv6:
            return Ruling.EMPTY
        return None


def name_to_wire(text: str) -> bytes:
    """Return a plain ASCII name in wire form, lower case; for constants and configuration."""
    labels = [label.encode("ascii").lower() for label in text.strip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def labels_of(name: bytes) -> list[bytes]:
    """Return the labels of a well-formed name in wire form, without the root."""
    labels = []
    at = 0
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return labels


def has_suffix(name: bytes, suffix: bytes) -> bool:
    """Tell whether the name, in wire form, is `suffix` or under it, label by label."""
    at = 0
    while len(name) - at > len(suffix):
        at += 1 + name[at]
    return name[at:] == suffix


_ARPA = name_to_wire("arpa")
_IN_ADDR = [b"in-addr", b"arpa"]
_IP6 = [b"ip6", b"arpa"]


def _is_denied_reverse(name: bytes, deny: DenyList) -> bool:
    """Tell whether the name stands for an address, or a block starting with one, in a denied range."""
    labels = labels_of(name)
    zone, parts = labels[-2:], labels[-3::-1]
    if zone == _IN_ADDR:
        if not all(part.isdigit() and len(part) <= 3 for part in parts[:4]):
            return False
        numbers = [int(part) for part in parts[:4]]
        if not numbers or max(numbers) > 255:
            return False
        return deny.in_ranges(4, int.from_bytes(bytes(numbers).ljust(4, b"\0"), "big"))
    if zone == _IP6:
        nibbles = parts[:32]
        if not nibbles or not all(len(nibble) == 1 and nibble in _HEX for nibble in nibbles):
            return False
        return deny.in_ranges(6, int(b"".join(nibbles).ljust(32, b"0"), 16))
    return False


_HEX = tuple(b"%x" % value for value in range(16))
