"""UDP through the SOCKS5 proxy: the highest rate at which hardly anything is lost, and what it costs."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import load

SIZE_BYTES = 1200
RATES = (2_000, 5_000, 10_000, 20_000, 40_000)
SECONDS = 1.5
MAX_LOSS = 0.01
STAMP = struct.Struct("!Qd")  # number, when it was sent (CLOCK_MONOTONIC, one for all processes)
_SETTLE_S = 0.5

# Prints after each end mark (number 2**64 - 1): how many came, their mean, 50 %, 99 % age in ms.
_SINK = f"""
import socket, struct, sys, time
stamp = struct.Struct({STAMP.format!r})
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
sock.bind((sys.argv[1], 0))
print(sock.getsockname()[1], flush=True)
ages, last = [], None
while True:
    data = sock.recv(2048)
    number, sent = stamp.unpack_from(data)
    if number != 2 ** 64 - 1:
        ages.append(time.monotonic() - sent)
    elif sent != last:
        last = sent
        ages.sort()
        at = lambda share: ages[int(share * (len(ages) - 1))] * 1e3 if ages else 0.0
        print(len(ages), at(0.5), at(0.99), flush=True)
        ages = []
"""


class Sink:
    """Counts datagrams in a process of its own, in the caller's network namespace. Context manager."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SINK, self._address], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> tuple[int, float, float]:
        """Datagrams since the last end mark, and the median and the 99th percentile of their age in ms."""
        assert self._process.stdout is not None
        count, median, worst = self._process.stdout.readline().split()
        return int(count), float(median), float(worst)


class Associated:
    """A UDP socket associated with a SOCKS5 proxy for one destination. Context manager."""

    def __init__(self, socks: tuple[str, int], destination: tuple[str, int]) -> None:
        self._header = b"\0\0\0\x01" + socket.inet_aton(destination[0]) + struct.pack("!H", destination[1])
        self._control = socket.create_connection(socks, 30)
        self._control.sendall(b"\x05\x01\x00")
        load.read_n(self._control, 2)
        self._control.sendall(b"\x05\x03\x00\x01" + bytes(6))
        answer = load.read_n(self._control, 10)
        if answer[1]:
            raise RuntimeError(f"the proxy refused UDP: {answer[1]}")
        bound = socket.inet_ntoa(answer[4:8]), struct.unpack("!H", answer[8:])[0]
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect((socks[0] if bound[0] == "0.0.0.0" else bound[0], bound[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._control.close()

    def send_one(self, number: int, size: int = SIZE_BYTES) -> int:
        """Send one datagram with its number and the time; 1."""
        self._sock.send(self._header + STAMP.pack(number, time.monotonic()) + bytes(size - STAMP.size))
        return 1

    def mark(self) -> None:
        """Tell the sink that this was all: several times, for one may be lost."""
        mark = STAMP.pack(2**64 - 1, time.monotonic())
        for _ in range(20):
            self._sock.send(self._header + mark)
            time.sleep(0.01)

    def stream(
        self, per_s: float, seconds: float, size: int = SIZE_BYTES, *, settle_s: float = _SETTLE_S
    ) -> int:
        """Send datagrams at an even pace, then end marks; how many were sent."""
        begun = time.monotonic()
        count, total = 0, int(per_s * seconds)
        while count < total:
            due = min(total, int((time.monotonic() - begun) * per_s) + 1)
            while count < due:
                count += self.send_one(count, size)
            time.sleep(0.001)
        time.sleep(settle_s)
        self.mark()
        return count


def measure(
    sink: Sink,
    address: str,
    socks: tuple[str, int],
    processes: Mapping[str, int],
    say: Callable[[str], None],
    rates: Sequence[int] = RATES,
) -> dict[str, Any]:
    """Climb the rates until more than MAX_LOSS is lost; the last good one, and every step."""
    steps: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    with Associated(socks, (address, sink.port)) as associated:
        for rate in rates:
            with load.Meter(dict(processes), {}) as meter:
                sent = associated.stream(rate, SECONDS)
            came, median_ms, worst_ms = sink.read()
            carried_gb = came * SIZE_BYTES / 1e9
            step = {
                "per_s": rate,
                "loss": round(1 - came / sent, 4),
                "ms_p50": round(median_ms, 2),
                "ms_p99": round(worst_ms, 2),
                "cpu_s_per_GB": round(meter.cpu_total / carried_gb, 2) if came else None,
                "cpu_s_per_GB_each": {
                    name: round(used / carried_gb, 2) for name, used in meter.cpu.items() if came
                },
            }
            steps.append(step)
            if step["loss"] > MAX_LOSS:
                break
            best = step
    rate = best.get("per_s", 0)
    say(
        f"  udp         {rate} datagrams of {SIZE_BYTES} bytes per second"
        + (f", {best['ms_p50']:.1f} ms, {best['cpu_s_per_GB']} CPU s/GB" if best else "")
    )
    return {"per_s": rate, "best": best, "steps": steps, "size_bytes": SIZE_BYTES}
