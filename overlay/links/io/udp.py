"""A UDP socket for QUIC: large buffers, GSO and GRO where the kernel has them, never fragmented.

Reads and writes do not wait; the endpoint waits for readiness once per batch.
"""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from overlay.links.backends.base import Address

BUFFER_BYTES: Final = 8 * 1024 * 1024
"""Wanted in the kernel each way: 60 ms at 1 Gbit/s. Without CAP_NET_ADMIN net.core.rmem_max bounds it."""
MAX_SEGMENTS: Final = 64
"""UDP_MAX_SEGMENTS of Linux before 6.9."""
MAX_SUPER_BYTES: Final = 65000
"""A super-datagram must fit an IPv4 packet with its headers."""
_RECEIVE_BYTES: Final = 65535

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
"""Set "don't fragment" and ignore what ICMP claims about the path: a forged ICMP message must not cut a link.
"""
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
"""Room for the segment size and for the local address, 12 bytes of IPv4 or 20 of IPv6."""
Control = tuple[tuple[int, int, bytes], ...]
"""Ancillary data of a send."""
_ANY_INTERFACE: Final = bytes(4)
_SEGMENT: Final = struct.Struct("H")
_GRO: Final = struct.Struct("i")

_GSO_ERRORS: Final = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
"""What kernels and drivers answer to a super-datagram that they cannot cut."""
_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})
"""What this machine's own routing answers, at once. What others say by ICMP is not asked for."""


_mark = 0


def mark_sockets(mark: int) -> None:
    """Have all sockets that are made here from now on carry SO_MARK `mark`; 0 for none.

    In whole-device mode the mark is what lets them by the tunnel that they carry. It needs CAP_NET_ADMIN.
    """
    global _mark
    _mark = mark


def put_mark(sock: socket.socket) -> None:
    """Give a socket the mark of this process, if it has one. Raises OSError without CAP_NET_ADMIN."""
    if _mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _mark)


def has_route(address: tuple[str, int]) -> bool:
    """Tell whether this machine's own routing table has a way to a numeric address. Sends nothing."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            put_mark(probe)
            probe.connect(address)
    except OSError as error:
        return error.errno not in _NO_ROUTE
    return True


class TooLargeError(Exception):
    """The interface does not carry a datagram of this size."""

    def __init__(self, size_bytes: int) -> None:
        """Say which size."""
        super().__init__(f"a UDP payload of {size_bytes} bytes does not fit the interface")
        self.size_bytes = size_bytes


_ADDRESS_OF = itemgetter(1)


class UdpSocket:
    """One bound socket."""

    def __init__(self, host: str, port: int, *, joins: bool = False) -> None:
        """Bind; with `joins` to an address of a socket that shares it (`share`). Raises OSError when the
        address cannot be used.
        """
        self.is_ipv6 = ":" in host
        family = socket.AF_INET6 if self.is_ipv6 else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._configure()
            if joins:
                self.share()
            self.socket.bind((host, port))
        except BaseException:
            self.socket.close()
            raise
        self.address: Address = self.socket.getsockname()[:2]
        self._is_wildcard = host in ("0.0.0.0", "::")
        if self._is_wildcard:
            self._ask_for_local_addresses()
        self.gso_sends = 0
        self.send_failures = 0
        self.no_route = False
        """Whether this machine knew no way for the last datagram."""
        self.receive_failures = 0

    def _configure(self) -> None:
        sock = self.socket
        put_mark(sock)
        for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        if self.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        self.gso = True
        try:
            sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, 0)
        except OSError:
            self.gso = False

    def _ask_for_local_addresses(self) -> None:
        """On a machine with several addresses, an answer must leave from the one that was addressed."""
        if self.is_ipv6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def share(self) -> None:
        """Let others of this process's user bind the same address. Raises OSError where that cannot be."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def close(self) -> None:
        """Close the socket. Closing twice is allowed."""
        self.socket.close()

    def receive(self) -> tuple[bytes, int, Address, Control] | None:
        """Return what one system call has; None when nothing waits.

        It is a buffer of datagrams, the length of each (the last may be shorter), the sender, and what makes
        an answer leave from the address that this came to (empty unless the socket is bound to all).
        """
        try:
            data, ancillary, _, sender = self.socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # an ICMP error that the kernel reports here; there is nothing to be done about it
            self.receive_failures += 1
            return b"", 1, ("", 0), ()
        size = len(data)
        control: Control = ()
        for level, kind, value in ancillary:
            if level == _SOL_UDP:
                if kind == _UDP_GRO:
                    size = _GRO.unpack_from(value)[0]
            elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                control = ((level, kind, _ANY_INTERFACE + value[4:8] + bytes(4)),)
            elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                control = ((level, kind, value[:16] + _ANY_INTERFACE),)
        return data, size, sender[:2], control

    def send(self, packets: Sequence[tuple[bytes, Address]], control: Control = ()) -> int:
        """Send datagrams in order, as few system calls as GSO allows; return how many the kernel took.

        Fewer than all: the socket's buffer is full, wait until it is writable. What the kernel refuses for
        reasons of the network counts as taken. Raises TooLargeError for a datagram that the interface cannot
        carry.
        """
        sent, total = 0, len(packets)
        datagrams = [packet[0] for packet in packets]
        sizes = list(map(len, datagrams))
        one_address = len(set(map(_ADDRESS_OF, packets))) == 1
        self.no_route = False
        while sent < total:
            address, size = packets[sent][1], sizes[sent]
            end = sent + 1
            if self.gso and end < total:
                end = min(total, sent + min(MAX_SEGMENTS, max(1, MAX_SUPER_BYTES // max(1, size))))
                if sizes[sent:end].count(size) != end - sent:
                    end = _end_of_run(sizes, sent, end)
                if not one_address:
                    end = next((at for at in range(sent + 1, end) if packets[at][1] != address), end)
            data = datagrams[sent]
            try:
                if end == sent + 1:
                    self.socket.sendmsg((data,), control, 0, address)
                else:
                    parts = datagrams[sent:end]
                    segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(size))
                    self.socket.sendmsg(parts, (*control, segment), 0, address)
                    self.gso_sends += 1
            except BlockingIOError:
                return sent
            except OSError as error:
                if end == sent + 1:
                    self._note_failure(error, size)
                elif error.errno in _GSO_ERRORS:
                    return sent + self._send_without_gso(packets[sent:], control)
                else:
                    self.no_route = error.errno in _NO_ROUTE
                    self.send_failures += end - sent
            sent = end
        return total

    def _send_without_gso(self, packets: Sequence[tuple[bytes, Address]], control: Control) -> int:
        """A super-datagram failed: if single ones pass, GSO is at fault and stays off."""
        self.gso = False
        failures = self.send_failures
        try:
            sent = self.send(packets, control)
        except TooLargeError:
            self.gso = True
            raise
        if self.send_failures > failures:
            self.gso = True
        return sent

    def _note_failure(self, error: OSError, size_bytes: int) -> None:
        if error.errno == errno.EMSGSIZE:
            raise TooLargeError(size_bytes) from error
        self.no_route = error.errno in _NO_ROUTE
        self.send_failures += 1


def bind_group(host: str, port: int, count: int, factor: int) -> list[UdpSocket]:
    """Return `count` sockets of one address, to which the kernel gives packets of QUIC by their connection
    ids (docs/decisions/0017-engine-threads.md): the first is bound alone, so that an address that is taken is
    told.

    Where the kernel has no such program, it goes by senders' addresses. Raises OSError when the address
    cannot be used.
    """
    group = [UdpSocket(host, port)]
    try:
        if count > 1:
            group[0].share()
            port = group[0].address[1]
            group += [UdpSocket(host, port, joins=True) for _ in range(count - 1)]
            with contextlib.suppress(OSError):
                _steer(group[0].socket, count, factor)
    except BaseException:
        for sock in group:
            sock.close()
        raise
    return group


def _steer(sock: socket.socket, count: int, factor: int) -> None:
    """Set the program of a group: ``shard_of`` in dataplane/engine/src/steer.rs. The last statement's value
    is the socket's place; a packet that is too short ends the program with 0.
    """
    program = b"".join(
        struct.pack("=HBBI", code, true, false, value)
        for code, true, false, value in (
            (0x30, 0, 0, 0),  # A = first byte
            (0x45, 2, 0, 0x80),  # long header: two further on
            (0x20, 0, 0, 1),  # A = 4 bytes behind a short header
            (0x05, 0, 0, 1),
            (0x20, 0, 0, 6),  # A = 4 bytes behind a long header
            (0x24, 0, 0, factor),
            (0x74, 0, 0, 16),  # A >>= 16
            (0x94, 0, 0, count),  # A %= count
            (0x16, 0, 0, 0),  # return A
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_REUSEPORT_CBPF,
        struct.pack("@HP", len(program) // 8, ctypes.addressof(code)),
    )


def _end_of_run(sizes: Sequence[int], start: int, limit: int) -> int:
    """Where a super-datagram from `start` ends: after the first that is shorter, before a longer one."""
    size = sizes[start]
    for at in range(start + 1, limit):
        if sizes[at] != size:
            return at + 1 if sizes[at] < size else at
    return limit
