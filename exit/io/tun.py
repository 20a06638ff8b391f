"""TUN devices, opened through python-pytun. Owns the file descriptor, its offload settings and its error
counters.

Does not own addresses, routes or the device's state (up, down): see `exit.io.network` and the customer's
namespace. What goes in and out is raw: one IP packet, with a 10-byte `virtio_net_hdr` (little endian) in
front when `has_offload`. The header's codec and the check of headers that come from peers are in
`exit.tun.vnet`.

Sources: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import Protocol

import pytun  # type: ignore[import-not-found]

from exit.errors import PrivilegeError, TunError

VNET_HEADER_BYTES = 10
#: Largest thing a read returns: a 64 KiB super-packet and its header. One buffer's worth, not a limit of
#: ours.
READ_ROOM_BYTES = 65535 + VNET_HEADER_BYTES
#: Default bounds of one `read_batch`.
BATCH_PACKETS = 64
BATCH_BYTES = 1 << 20
DEFAULT_MTU = 1400

_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETVNETLE = 0x400454DC
_OFFLOAD_TCP = 0x01 | 0x02 | 0x04 | 0x08  # CSUM, TSO4, TSO6, TSO_ECN
_OFFLOAD_USO = 0x20 | 0x40  # USO4, USO6: Linux 6.2 and later
_NAME_LIMIT_BYTES = 15  # IFNAMSIZ without its zero byte

# The device was deleted, or the descriptor is no TUN any more: nothing will work again.
_GONE = frozenset({errno.EBADF, errno.EBADFD, errno.ENODEV, errno.ENXIO})


class _Device(Protocol):
    """What we use of pytun's TunTapDevice."""

    name: str
    mtu: int

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Tun:
    """A non-blocking TUN device. `close()` ends it; the kernel then removes a device that `open` made."""

    __slots__ = (
        "_device",
        "_fd",
        "has_offload",
        "has_uso",
        "mtu",
        "name",
        "read_errors",
        "refused",
        "would_block",
    )

    def __init__(
        self, fd: int, device: _Device | None, *, name: str, mtu: int, has_offload: bool, has_uso: bool
    ) -> None:
        """Use `Tun.open` or `Tun.from_fd`."""
        os.set_blocking(fd, False)
        # A program that we start must not keep the device alive after us.
        os.set_inheritable(fd, False)
        self._fd = fd
        self._device = device
        self.name = name
        self.mtu = mtu
        self.has_offload = has_offload
        self.has_uso = has_uso
        #: Writes that the kernel refused (bad header, device down, no memory).
        self.refused = 0
        #: Writes that would have blocked.
        self.would_block = 0
        #: Reads that failed for another reason than an empty queue.
        self.read_errors = 0

    @classmethod
    def open(cls, name: str, offload: bool = True, *, uso: bool = False, mtu: int = DEFAULT_MTU) -> Tun:
        """Make the device `name` (at most 15 characters; a `%d` in it lets the kernel choose) in this network
        namespace.

        With `offload` the device hands out and takes TCP super-packets behind a vnet header, falling back to
        a plain device where the kernel has no such thing; `has_offload` tells which. With `uso` it does so
        for UDP as well, if it can (`has_uso`). The device is down and without addresses; its MTU is `mtu`
        bytes. Raises PrivilegeError without /dev/net/tun or CAP_NET_ADMIN, TunError for anything else.
        """
        if not 0 < len(name.encode()) <= _NAME_LIMIT_BYTES:
            raise TunError(f"the TUN name {name!r} must have 1 to {_NAME_LIMIT_BYTES} bytes")
        flags = pytun.IFF_TUN | pytun.IFF_NO_PI
        device: _Device | None = None
        has_uso = False
        if offload:
            device, has_uso = _open_offload(name, flags | pytun.IFF_VNET_HDR, uso)
        has_offload = device is not None
        if device is None:
            device = _make(name, flags)
        try:
            device.mtu = mtu
        except OSError as error:
            device.close()
            raise TunError(f"cannot set the MTU of {name} to {mtu}: {_text(error)}") from error
        return cls(
            device.fileno(), device, name=device.name, mtu=mtu, has_offload=has_offload, has_uso=has_uso
        )

    @classmethod
    def from_fd(cls, fd: int, has_offload: bool, mtu: int, *, name: str = "", has_uso: bool = False) -> Tun:
        """Take over the descriptor of a TUN that another process made and set up; `close()` will close it.

        `has_offload` must say whether the device was made with IFF_VNET_HDR and a 10-byte header.
        """
        return cls(fd, None, name=name, mtu=mtu, has_offload=has_offload, has_uso=has_uso)

    def fileno(self) -> int:
        """Return the descriptor, for waiting on; -1 after `close()`."""
        return self._fd

    def enable_uso(self) -> bool:
        """Have the device hand out and take UDP super-packets from now on, for a reader that cuts them; False
        where it cannot (no offloads, Linux before 6.2).
        """
        if self.has_offload and not self.has_uso:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _OFFLOAD_TCP | _OFFLOAD_USO)
                self.has_uso = True
        return self.has_uso

    def read_batch(self, max_packets: int = BATCH_PACKETS, max_bytes: int = BATCH_BYTES) -> list[bytes]:
        """Return what is waiting: up to `max_packets` packets, stopping once `max_bytes` are reached; maybe
        none.

        Each is one IP packet, behind its vnet header when `has_offload`. Raises TunError when the device is
        gone.
        """
        batch: list[bytes] = []
        append = batch.append
        read = os.read
        fd = self._fd
        room = READ_ROOM_BYTES if self.has_offload else max(self.mtu, 1500) + 64
        left = max_bytes
        try:
            for _ in range(max_packets):
                packet = read(fd, room)
                append(packet)
                left -= len(packet)
                if left <= 0:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _GONE:
                raise TunError(f"the TUN device {self.name or fd} is gone: {error.strerror}") from error
            self.read_errors += 1
        return batch

    def write(self, raw: bytes | bytearray | memoryview) -> bool:
        """Hand one packet (behind a vnet header when `has_offload`) to the kernel; False when it did not take
        it.

        A packet that the kernel refuses or has no room for is dropped and counted. Raises TunError when the
        device is gone.
        """
        try:
            os.write(self._fd, raw)
        except BlockingIOError:
            self.would_block += 1
            return False
        except OSError as error:
            if error.errno in _GONE:
                raise TunError(f"the TUN device {self.name or self._fd} is gone: {error.strerror}") from error
            self.refused += 1
            return False
        return True

    def close(self) -> None:
        """Close the descriptor. Harmless when called twice."""
        fd, self._fd = self._fd, -1
        device, self._device = self._device, None
        if device is not None:
            device.close()
        elif fd >= 0:
            os.close(fd)


def _open_offload(name: str, flags: int, uso: bool) -> tuple[_Device | None, bool]:
    """Return a device with vnet header and TCP offloads and whether it has USO, or None where the kernel
    cannot.
    """
    try:
        device = _make(name, flags)
    except PrivilegeError:
        raise
    except TunError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EINVAL:
            return None, False
        raise
    fd = device.fileno()
    try:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER_BYTES))
        fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("=i", 1))
        if uso:
            try:
                fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOAD_TCP | _OFFLOAD_USO)
                return device, True
            except OSError:
                pass  # an older kernel: TCP offloads alone
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOAD_TCP)
        return device, False
    except OSError:
        device.close()
        return None, False


def _make(name: str, flags: int) -> _Device:
    try:
        device: _Device = pytun.TunTapDevice(name=name, flags=flags)
    except OSError as error:
        code = error.errno
        if code == errno.ENOENT:
            raise PrivilegeError(
                "/dev/net/tun is missing: load the kernel module with `modprobe tun`"
                " (in a container, pass the device in with `--device /dev/net/tun`)"
            ) from error
        if code in (errno.EACCES, errno.EPERM):
            raise PrivilegeError(
                f"making the TUN device {name} is not permitted: it needs CAP_NET_ADMIN in its namespace"
                " and read and write access to /dev/net/tun"
                " (systemd: `AmbientCapabilities=CAP_NET_ADMIN` and `DeviceAllow=/dev/net/tun rw`)"
            ) from error
        if code == errno.EBUSY:
            raise TunError(f"the TUN device {name} is in use by another process") from error
        raise TunError(f"cannot make the TUN device {name}: {_text(error)}") from error
    return device


def _text(error: OSError) -> str:
    return error.strerror or str(error)
