"""A client of NAT-PMP (RFC 6886): a router's public IPv4 address, and one UDP port forwarded to this machine.

Small and strict: one question at a time over one connected UDP socket, so that only the router's own
address and port are heard, and answers of exactly their length. Its successor PCP (RFC 6887) is not
spoken: a router that knows nothing else says so, by the result "unsupported version".

Does not own when to ask and what to do with the answer: `overlay.node.io.port_mapping`.
"""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from overlay.errors import DecodeError

PORT = 5351
VERSION = 0
OP_ADDRESS, OP_MAP_UDP = 0, 1
ANSWER = 128
FIRST_WAIT_S = 0.25
TRIES = 5
"""Each waits twice as long as the one before (RFC 6886, 3.1, which has nine): 7.75 s for a silent router."""
ADDRESS_BYTES, MAPPING_BYTES, SHORTEST_BYTES = 12, 16, 4
ROUTES = Path("/proc/net/route")
MAX_ROUTES_BYTES = 1 << 20

_RESULTS = {
    1: "it does not speak this version",
    2: "it does not allow it (not authorised; is port mapping switched on in it?)",
    3: "it has no network itself at the moment",
    4: "it has no ports left",
    5: "it does not know the request",
}


class NatPmpError(Exception):
    """The router does not do it, or none answers; the message says why, as a clause."""


def decode_answer(data: bytes, op: int) -> bytes:
    """Return what an answer to `op` holds after its result code and time: 4 or 8 bytes.

    Raises DecodeError for what is no answer to it, NatPmpError for one that refuses.
    """
    if len(data) < SHORTEST_BYTES:
        raise DecodeError("NAT-PMP: too short")
    version, opcode, result = struct.unpack("!BBH", data[:SHORTEST_BYTES])
    if result == 1 and opcode >= ANSWER:
        raise NatPmpError(_RESULTS[1])  # of any version: that is what it says
    if version != VERSION or opcode != ANSWER + op:
        raise DecodeError("NAT-PMP: not an answer to what was asked")
    if result:
        raise NatPmpError(_RESULTS.get(result, f"it refuses with code {result}"))
    if len(data) != (ADDRESS_BYTES if op == OP_ADDRESS else MAPPING_BYTES):
        raise DecodeError("NAT-PMP: length")
    return data[8:]


def decode_gateway(routes: str) -> str | None:
    """Return the default router's IPv4 address of a Linux routing table (/proc/net/route), or None."""
    best: tuple[int, str] | None = None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        try:
            router = IPv4Address(int(fields[2], 16).to_bytes(4, "little"))
            metric, flags = int(fields[6]), int(fields[3], 16)
        except (ValueError, OverflowError):
            continue
        if flags & 3 == 3 and (best is None or metric < best[0]):  # up, and by a router
            best = metric, str(router)
    return None if best is None else best[1]


def find_gateway() -> str:
    """Return the default router's IPv4 address. Raises NatPmpError where there is none."""
    try:
        with ROUTES.open() as file:
            found = decode_gateway(file.read(MAX_ROUTES_BYTES))
    except OSError:
        found = None
    if found is None:
        raise NatPmpError("this machine has no default route over a router (IPv4)")
    return found


class NatPmpRouter:
    """One router. Calls block, for 8 s at most, and raise NatPmpError."""

    def __init__(self, address: str, port: int = PORT) -> None:
        """Nothing is sent yet. `address` is numeric IPv4."""
        self._to = (address, port)

    def external_address(self) -> str:
        """Ask for the router's public address."""
        body = self._ask(bytes((VERSION, OP_ADDRESS)), OP_ADDRESS)
        return str(IPv4Address(body))

    def map_udp(self, internal_port: int, external_port: int, lifetime_s: int) -> tuple[int, int]:
        """Have a UDP port forwarded to this machine; returns the outer port, which may be another, and for
        how many seconds. A lifetime of 0 takes it back (the outer port is 0 then).
        """
        request = struct.pack("!BBHHHI", VERSION, OP_MAP_UDP, 0, internal_port, external_port, lifetime_s)
        inner, outer, granted_s = struct.unpack("!HHI", self._ask(request, OP_MAP_UDP))
        if inner != internal_port or (lifetime_s and not (outer and granted_s)):
            raise NatPmpError("it answers for another port")
        return outer, granted_s

    def _ask(self, request: bytes, op: int) -> bytes:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect(self._to)
                wait_s = FIRST_WAIT_S
                for _ in range(TRIES):
                    asking.send(request)
                    answer = self._hear(asking, op, time.monotonic() + wait_s)
                    if answer is not None:
                        return answer
                    wait_s *= 2
        except ConnectionRefusedError:
            raise NatPmpError(f"the router {self._to[0]} does not speak it") from None
        except OSError as error:
            raise NatPmpError(f"the router {self._to[0]} cannot be asked ({error})") from None
        raise NatPmpError(f"the router {self._to[0]} does not answer")

    def _hear(self, asking: socket.socket, op: int, until_s: float) -> bytes | None:
        while (left_s := until_s - time.monotonic()) > 0:
            asking.settimeout(left_s)
            try:
                return decode_answer(asking.recv(64), op)
            except TimeoutError:
                return None
            except DecodeError:
                continue  # an announcement, or an answer to another question: the wait goes on
        return None
