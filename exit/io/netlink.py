"""A few rtnetlink and sock_diag requests, by hand. Owns the byte layouts and one socket per protocol.

Addresses, routes and rules of the customer's namespace change with every circuit; a request over netlink
takes some ten microseconds where starting `ip` takes milliseconds, and the helper that uses this must start
within a tenth of a second, so it imports nothing but the light part of the standard library.

Sources: Linux include/uapi/linux/{netlink,rtnetlink,if_addr,fib_rules,sock_diag,inet_diag}.h,
net/ipv4/proc.c.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

TABLE_MAIN = 254

_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_NEWRULE = 24, 25, 32
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 6, 7
_FRA_DST, _FRA_SRC, _FRA_PRIORITY = 1, 2, 6
_FR_ACT_TO_TBL = 1
_RTN_UNICAST, _RTN_LOCAL, _RTN_UNREACHABLE = 1, 2, 7
_RTPROT_STATIC = 4
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST, _SCOPE_ANY = 0, 253, 254, 255
_TABLE_LOCAL = 255
# TIME_WAIT (bit 6) cannot be aborted with a reset worth sending; LISTEN and the rest can.
_TCP_STATES_ALIVE = 0xFFF & ~(1 << 6)

_HEADER = struct.Struct("=IHHII")
_RECEIVE_ROOM_BYTES = 65536
_SOCKSTAT_ROOM_BYTES = 4096


class Netlink:
    """One netlink socket. Each call waits for the kernel's answer; its refusal is an OSError."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Open a socket in the network namespace of the calling thread."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        """Send one request and wait for its acknowledgement."""
        for _ in self._ask(kind, flags | _NLM_F_ACK, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Send one dump request; return the payloads of all answers."""
        return list(self._ask(kind, _NLM_F_DUMP, payload))

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        size = _HEADER.size + len(payload)
        self._socket.send(_HEADER.pack(size, kind, flags | _NLM_F_REQUEST, self._sequence, 0) + payload)
        while True:
            data = self._socket.recv(_RECEIVE_ROOM_BYTES)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, offset)
                body = data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if answer == _NLMSG_DONE:
                    return
                yield body


def set_link_up(netlink: Netlink, index: int) -> None:
    """Bring the interface with this index up."""
    netlink.request(_RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP))


def add_address(netlink: Netlink, index: int, address: str, length: int | None = None) -> None:
    """Add an address with a prefix of `length` bits; without, a host address (/32 or /128). IPv6 goes without
    duplicate address detection. One that exists is kept.
    """
    netlink.request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, _address(index, address, length))


def remove_address(netlink: Netlink, index: int, address: str) -> None:
    """Remove a host address. Raises OSError EADDRNOTAVAIL when it is not there."""
    netlink.request(_RTM_DELADDR, 0, _address(index, address))


def _address(index: int, address: str, length: int | None = None) -> bytes:
    family, raw = pack_address(address)
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    length = len(raw) * 8 if length is None else length
    return (
        struct.pack("=BBBBI", family, length, flags, _SCOPE_UNIVERSE, index)
        + _attribute(_IFA_LOCAL, raw)
        + _attribute(_IFA_ADDRESS, raw)
    )


def add_local(netlink: Netlink, index: int, address: str, *, metric: int) -> None:
    """Make the kernel accept and send packets of `address` without putting it on an interface, so that no
    socket uses it unless bound to it. One that exists is kept.
    """
    netlink.request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, _local(index, address, metric))


def remove_local(netlink: Netlink, index: int, address: str, *, metric: int) -> None:
    """Undo `add_local`. Raises OSError ESRCH when it is not there."""
    netlink.request(_RTM_DELROUTE, 0, _local(index, address, metric))


def _local(index: int, address: str, metric: int) -> bytes:
    family, raw = pack_address(address)
    scope = _SCOPE_HOST if family == socket.AF_INET else _SCOPE_UNIVERSE
    return _route(
        family, _TABLE_LOCAL, _RTN_LOCAL, metric, scope, index, len(raw) * 8, _attribute(_RTA_DST, raw)
    )


def replace_default(
    netlink: Netlink, family: int, index: int, *, table: int = TABLE_MAIN, metric: int, source: str | None
) -> None:
    """Put the default route of `table` with this metric on the interface, with a preferred source or none."""
    scope = _SCOPE_LINK if family == socket.AF_INET else _SCOPE_UNIVERSE
    extra = b"" if source is None else _attribute(_RTA_PREFSRC, pack_address(source)[1])
    payload = _route(family, table, _RTN_UNICAST, metric, scope, index, 0, extra)
    netlink.request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, payload)


def remove_default(netlink: Netlink, family: int, index: int, *, metric: int) -> None:
    """Remove the main table's default route with this metric. Raises OSError ESRCH when it is not there."""
    netlink.request(
        _RTM_DELROUTE, 0, _route(family, TABLE_MAIN, _RTN_UNICAST, metric, _SCOPE_ANY, index, 0, b"")
    )


def add_unreachable_default(netlink: Netlink, family: int, *, metric: int) -> None:
    """Add a main-table route that refuses everything no route with a smaller metric takes."""
    payload = _route(family, TABLE_MAIN, _RTN_UNREACHABLE, metric, _SCOPE_UNIVERSE, None, 0, b"")
    netlink.request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, payload)


def _route(
    family: int, table: int, kind: int, metric: int, scope: int, index: int | None, length: int, extra: bytes
) -> bytes:
    header = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, _RTPROT_STATIC, scope, kind, 0)
    header += _attribute(_RTA_PRIORITY, struct.pack("=I", metric))
    if index is not None:
        header += _attribute(_RTA_OIF, struct.pack("=I", index))
    return header + extra


def add_source_rule(netlink: Netlink, prefix: str, length: int, *, table: int, priority: int) -> None:
    """Make packets from `prefix`/`length` use `table`."""
    family, raw = pack_address(prefix)
    header = struct.pack("=BBBBBBBBI", family, 0, length, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    attributes = _attribute(_FRA_SRC, raw) + _attribute(_FRA_PRIORITY, struct.pack("=I", priority))
    netlink.request(_RTM_NEWRULE, _NLM_F_CREATE | _NLM_F_EXCL, header + attributes)


def add_target_rule(netlink: Netlink, address: str, *, table: int, priority: int) -> None:
    """Make packets to `address` use `table`."""
    family, raw = pack_address(address)
    header = struct.pack("=BBBBBBBBI", family, 8 * len(raw), 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    attributes = _attribute(_FRA_DST, raw) + _attribute(_FRA_PRIORITY, struct.pack("=I", priority))
    netlink.request(_RTM_NEWRULE, _NLM_F_CREATE | _NLM_F_EXCL, header + attributes)


def abort_tcp_from(source: str) -> int:
    """Abort the TCP sockets of this namespace whose local address is `source`; return how many.

    Their owners read ECONNABORTED at once. Does nothing where the kernel lacks CONFIG_INET_DIAG_DESTROY.
    """
    family, raw = pack_address(source)
    # To look for sockets the kernel goes through the whole machine's table, which takes 0.4 ms.
    if not _may_have_tcp(family):
        return 0
    netlink = Netlink(_NETLINK_SOCK_DIAG)
    aborted = 0
    try:
        head = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _TCP_STATES_ALIVE)
        for answer in netlink.dump(_SOCK_DIAG_BY_FAMILY, head + bytes(48)):
            identity = answer[4:52]  # inet_diag_sockid: ports, source, destination, interface, cookie
            if identity[4 : 4 + len(raw)] != raw:
                continue
            try:
                netlink.request(_SOCK_DESTROY, 0, head + identity)
            except FileNotFoundError:
                continue  # it closed in the meantime
            aborted += 1
    except OSError:
        pass  # a kernel without it: the sockets run into their own time-outs
    finally:
        netlink.close()
    return aborted


def _may_have_tcp(family: int) -> bool:
    """Whether this namespace has TCP sockets of a family that listen, connect or are connected; true where
    the kernel does not tell.
    """
    name, label = ("sockstat6", b"TCP6:") if family == socket.AF_INET6 else ("sockstat", b"TCP:")
    try:
        file = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        text = os.read(file, _SOCKSTAT_ROOM_BYTES)
    except OSError:
        return True
    finally:
        os.close(file)
    for line in text.splitlines():
        words = line.split()
        if words[:2] == [label, b"inuse"]:
            return words[2:3] != [b"0"]
    return True


def pack_address(address: str) -> tuple[int, bytes]:
    """Return family and network bytes of an IP address's text. Raises OSError when it is none."""
    if ":" in address:
        return socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address)
    return socket.AF_INET, socket.inet_pton(socket.AF_INET, address)


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)
