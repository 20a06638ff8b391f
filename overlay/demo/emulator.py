"""The link emulator: `python -m overlay.demo.emulator JSON` carries one link's packets between two TUNs.

Started in the hub by `links.py`. One TUN is in the hub, the other in the host's namespace; routes lead the
host's traffic over them instead of over its veth, addresses stay as they are. TUN readers get packets one by
one (the kernel cuts super-packets), so loss and reordering are per packet as on a real wire. Prints `ready`
when both devices are there, and the counters as one JSON line when it gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import struct
import sys
import time
from typing import NoReturn

from overlay.demo import kernel
from overlay.demo.shaping import Conditions, Shaper

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MAX_PACKET_BYTES = 2048
_BATCH = 64
_MAX_WAITING = 20_000  # packets; beyond it a link is hopeless anyway


def open_tun(name: str) -> int:
    """A plain, non-blocking TUN of that name in this network namespace. Raises OSError."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def main() -> NoReturn:
    """Carry packets until SIGTERM."""
    plan = json.loads(sys.argv[1])
    seed = plan["seed"]
    hub_side = open_tun(plan["hub_device"])
    kernel.enter_network(plan["host_network"])
    host_side = open_tun(plan["host_device"])
    to_host = Shaper(Conditions(**plan["to_host"]), random.Random(f"{seed} to host"))
    from_host = Shaper(Conditions(**plan["from_host"]), random.Random(f"{seed} from host"))

    def end(*_: object) -> NoReturn:
        counters = {
            "to_host": [to_host.passed, to_host.dropped],
            "from_host": [from_host.passed, from_host.dropped],
        }
        print(json.dumps(counters), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    _carry({hub_side: (host_side, to_host), host_side: (hub_side, from_host)})


def _carry(ways: dict[int, tuple[int, Shaper]]) -> NoReturn:
    waiting: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select(list(ways), [], [], timeout_s)[0]:
            sink, shaper = ways[source]
            for _ in range(_BATCH):
                try:
                    packet = os.read(source, _MAX_PACKET_BYTES)
                except OSError:
                    break  # nothing more to read, or the device is down
                now_s = time.monotonic()
                for due_s in shaper.admit(now_s, len(packet)):
                    if len(waiting) < _MAX_WAITING:
                        heapq.heappush(waiting, (due_s, next(order), sink, packet))
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, _, sink, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # device down or its queue full: a lost packet
                os.write(sink, packet)


if __name__ == "__main__":
    main()
