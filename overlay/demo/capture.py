"""Captures: `python -m overlay.demo.capture DEVICE FILE [BYTES]` writes what passes a device (of each packet
at most BYTES) into a pcap file.

In place of tcpdump, which insists on changing its user and so does not run in a user namespace. Super-packets
appear whole, as the device carries them, unless the link is segmented (`links.Links.segment`). Prints `ready`
once every later packet is seen; on SIGTERM it writes what is still in the socket's buffer, prints one JSON
line {"packets": written, "missed": lost for want of room} and ends.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LINKTYPE_ETHERNET, LINKTYPE_RAW = 1, 101  # tcpdump.org/linktypes.html
_PCAP_MAGIC = 0xA1B2C3D4
_MAX_PACKET_BYTES = 262_144
_ETHERNET_HEADER_BYTES = 14
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/if_packet.h
_ARPHRD_ETHER = 1
_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One packet of a capture, from its IP header on."""

    time_s: float
    ip: bytes


def read_capture(path: Path) -> list[CapturedPacket]:
    """The IP packets of a file that `main` wrote; others, such as ARP, are left out. Raises ValueError."""
    data = path.read_bytes()
    magic, link_type = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 20)[0]
    if magic != _PCAP_MAGIC:
        raise ValueError(f"{path} is not a capture that this reads")
    skip = _ETHERNET_HEADER_BYTES if link_type == LINKTYPE_ETHERNET else 0
    packets, offset = [], 24
    while offset + 16 <= len(data):
        seconds, micros, length, _ = struct.unpack_from("<IIII", data, offset)
        offset += 16
        packet = data[offset + skip : offset + length]
        offset += length
        if packet and packet[0] >> 4 in (4, 6):
            packets.append(CapturedPacket(seconds + micros / 1e6, packet))
    return packets


def main() -> None:
    """Capture until SIGTERM."""
    device, path = sys.argv[1], Path(sys.argv[2])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else _MAX_PACKET_BYTES
    ending = False
    wake, wake_up = socket.socketpair()

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        wake_up.send(b"e")

    signal.signal(signal.SIGTERM, end)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap, path.open("wb") as file:
        try:
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # in a user namespace the machine's limit holds
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        tap.bind((device, _ETH_P_ALL))
        tap.setblocking(False)
        ethernet = tap.getsockname()[3] == _ARPHRD_ETHER
        link_type = LINKTYPE_ETHERNET if ethernet else LINKTYPE_RAW
        file.write(struct.pack("<IHHiIII", _PCAP_MAGIC, 2, 4, 0, 0, most, link_type))
        print("ready", flush=True)
        written = 0
        while True:
            last = ending  # what was sent before the signal is in the buffer by now
            try:
                while True:
                    packet = tap.recv(most)
                    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
                    file.write(struct.pack("<IIII", seconds, nanos // 1000, len(packet), len(packet)))
                    file.write(packet)
                    written += 1
            except BlockingIOError:
                pass
            if last:
                break
            file.flush()
            select.select([tap, wake], [], [])
        missed = struct.unpack("II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
    print(json.dumps({"packets": written, "missed": missed}), flush=True)


if __name__ == "__main__":
    main()
