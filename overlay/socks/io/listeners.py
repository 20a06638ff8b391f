"""The sockets the proxy listens on: opened here, or handed over by systemd or a parent."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, Sequence

from overlay.errors import OverlayError

BACKLOG = 1024
_FIRST_SYSTEMD_DESCRIPTOR = 3


class ListenError(OverlayError):
    """The proxy cannot listen there; the message is a sentence for the user."""


def open_listeners(
    addresses: Sequence[tuple[str, int]], descriptors: Sequence[int] = ()
) -> list[socket.socket]:
    """Return listening TCP sockets: one per (IP address, port) and one per descriptor handed over.

    The caller closes them. Raises ListenError for an address that is in use, not ours, or no address, and
    for a descriptor that is no listening TCP socket; then none stays open.
    """
    opened: list[socket.socket] = []
    try:
        for host, port in addresses:
            opened.append(_listen(host, port))
        for descriptor in descriptors:
            opened.append(_take_over(descriptor))
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    for sock in opened:
        sock.setblocking(False)
        # Connections inherit it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def systemd_descriptors(environment: Mapping[str, str], process_id: int) -> list[int]:
    """Return the descriptors that systemd's socket activation passed to this process (sd_listen_fds(3))."""
    if environment.get("LISTEN_PID") != str(process_id):
        return []
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    return list(range(_FIRST_SYSTEMD_DESCRIPTOR, _FIRST_SYSTEMD_DESCRIPTOR + max(0, min(count, 64))))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ListenError(
            f"the proxy cannot listen on {host} port {port}: {text}."
            " Is another hopfare or a Tor running? Choose another address or port."
        ) from error
    return sock


def _take_over(descriptor: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ListenError(f"descriptor {descriptor} is no socket")
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"descriptor {descriptor} cannot be used: {error.strerror}") from error
    is_stream = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ListenError(f"descriptor {descriptor} is no listening TCP socket")
    return sock
