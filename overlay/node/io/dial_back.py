"""Dialling back: whether a relay answers at an address, tried as a stranger would; and this machine's own
addresses.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from exit.io.netlink import Netlink
from overlay.gossip.reachability import Outcome
from overlay.links.constants import CloseCode
from overlay.links.io.endpoint import DialError, open_endpoint

if TYPE_CHECKING:
    from overlay.descriptor import Address
    from overlay.links.backends.base import BackendName
    from overlay.links.link import Link

TIMEOUT_S = 4.0
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFADDRMSG = struct.Struct("=BBBBI")
_RTATTR = struct.Struct("=HH")


_OUTCOMES: dict[int, Outcome] = {
    CloseCode.WRONG_IDENTITY: Outcome.OTHER_IDENTITY,
    CloseCode.PATH_TOO_SMALL: Outcome.PATH_TOO_SMALL,
    # It proved its key before it said so.
    CloseCode.REFUSED: Outcome.REACHED,
    CloseCode.SHUTDOWN: Outcome.REACHED,
}


class _Nothing:
    """A handler of links that are closed as soon as they are up."""

    def on_link_up(self, link: Link) -> None: ...
    def on_control(self, link: Link, message: bytes) -> None: ...
    def on_datagrams(self, link: Link, frames: list[bytes]) -> None: ...
    def on_stream(self, link: Link, stream_id: int, chunks: list[bytes], fin: bool) -> None: ...
    def on_stream_reset(self, link: Link, stream_id: int, code: int) -> None: ...
    def on_writable(self, link: Link) -> None: ...
    def on_link_closed(self, link: Link, code: int, reason: str) -> None: ...
    def on_batch_end(self) -> None: ...


async def dial_back(address: Address, identity: bytes, backend: BackendName) -> Outcome:
    """Try from a socket of its own whether `identity` answers at `address`; takes at most TIMEOUT_S.

    The link is one of a customer's kind and is closed at once.
    """
    own = "::" if ":" in address.ip else "0.0.0.0"
    with trio.move_on_after(TIMEOUT_S):
        try:
            async with open_endpoint(
                (own, 0), None, _Nothing(), backend=backend, role="customer"
            ) as endpoint:
                # Caught in here: the endpoint's nursery would wrap it.
                try:
                    link = await endpoint.dial((address.ip, address.port), identity)
                except DialError as error:
                    return _OUTCOMES.get(error.code, Outcome.NO_ANSWER)
                link.close()
                return Outcome.REACHED
        except OSError:
            return Outcome.NO_FAMILY
    return Outcome.NO_ANSWER


def own_families() -> frozenset[int]:
    """Return the IP versions in which this machine has an address, link-local ones aside."""
    return frozenset(6 if ":" in ip else 4 for ip in local_addresses())


def local_addresses() -> frozenset[str]:
    """Return the addresses of this machine's interfaces, link-local ones left out; empty if the kernel does
    not say.
    """
    found: set[str] = set()
    with suppress(OSError):
        netlink = Netlink()
        try:
            messages = netlink.dump(_RTM_GETADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        finally:
            netlink.close()
        for message in messages:
            ip = _address_of(message)
            if ip is not None and not ip.is_link_local:
                found.add(str(ip))
    return frozenset(found)


def _address_of(message: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    at = _IFADDRMSG.size
    found: dict[int, bytes] = {}
    while at + _RTATTR.size <= len(message):
        length, kind = _RTATTR.unpack_from(message, at)
        if length < _RTATTR.size:
            break
        found[kind] = message[at + _RTATTR.size : at + length]
        at += (length + 3) & ~3
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or len(packed) not in (4, 16):
        return None
    return ipaddress.ip_address(packed)
