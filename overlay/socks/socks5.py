"""SOCKS5 as a machine: greeting, user name and password, one request, one reply (RFC 1928, RFC 1929).

Bytes in, events out; no I/O, no clock. Commands: CONNECT, UDP ASSOCIATE and Tor's RESOLVE (0xF0) and
RESOLVE_PTR (0xF1); BIND is refused. Any user name and password are accepted: they choose an isolated circuit.

A client that speaks before its turn (greeting, request and first data in one packet) is understood.
Nothing is kept beyond one message (at most 513 bytes) but the data after the request, which the driver
bounds by reading no more until the request is answered.
"""

from __future__ import annotations

from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address, ip_address

from overlay.socks.circuits import (
    NO_ISOLATION,
    Destination,
    Transport,
    address_destination,
    isolation_of,
    parse_destination,
)
from overlay.socks.events import Associate, Close, Connect, Established, Event, Resolve, Send
from overlay.socks.outcome import Outcome, Reply

VERSION = 5
AUTH_VERSION = 1
NO_AUTHENTICATION, USER_PASSWORD, NO_ACCEPTABLE = 0x00, 0x02, 0xFF
CONNECT, BIND, UDP_ASSOCIATE, RESOLVE, RESOLVE_PTR = 0x01, 0x02, 0x03, 0xF0, 0xF1
IPV4, NAME, IPV6 = 0x01, 0x03, 0x04

_COMMANDS = frozenset({CONNECT, UDP_ASSOCIATE, RESOLVE, RESOLVE_PTR})
_ADDRESS_BYTES = {IPV4: 4, IPV6: 16}
# Greetings of nearly every client, answered without taking them apart.
_GREETING_NO_AUTHENTICATION = b"\x05\x01\x00"


class _State(Enum):
    GREETING = auto()
    CREDENTIALS = auto()
    REQUEST = auto()
    WAITING = auto()
    DONE = auto()


class Socks5Machine:
    """One client's handshake. After `Established` or `Close` it takes no more bytes."""

    __slots__ = ("_buffer", "_command", "_isolation", "_state")

    def __init__(self) -> None:
        """Start with the client's first byte still to come."""
        self._buffer = bytearray()
        self._state = _State.GREETING
        self._command = 0
        self._isolation = NO_ISOLATION

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes of the client, any number; return what to do."""
        if self._state is _State.DONE:
            return []
        self._buffer += data
        events: list[Event] = []
        while self._state not in (_State.WAITING, _State.DONE):
            if self._state is _State.GREETING:
                step = self._greeting()
            elif self._state is _State.CREDENTIALS:
                step = self._credentials()
            else:
                step = self._request()
            if step is None:
                break
            events += step
        return events

    def finish(self, outcome: Outcome) -> list[Event]:
        """Answer the request that `receive` returned."""
        if self._state is not _State.WAITING:
            return []
        self._state = _State.DONE
        events: list[Event] = [Send(encode_reply(outcome))]
        if outcome.reply is not Reply.SUCCEEDED:
            return [*events, Close(outcome.reply.name.lower())]
        if self._command in (RESOLVE, RESOLVE_PTR):
            return [*events, Close("resolved")]
        return [*events, Established(bytes(self._buffer))]

    def _greeting(self) -> list[Event] | None:
        buffer = self._buffer
        if buffer == _GREETING_NO_AUTHENTICATION:
            methods = bytes(1)
        else:
            if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
                return None
            methods = bytes(buffer[2 : 2 + buffer[1]])
        del buffer[: 2 + len(methods)]
        # A client that offers both has credentials to give, and they choose its circuit.
        if USER_PASSWORD in methods:
            self._state = _State.CREDENTIALS
            return [Send(bytes((VERSION, USER_PASSWORD)))]
        if NO_AUTHENTICATION in methods:
            self._state = _State.REQUEST
            return [Send(bytes((VERSION, NO_AUTHENTICATION)))]
        return self._refuse(bytes((VERSION, NO_ACCEPTABLE)), "no method in common")

    def _credentials(self) -> list[Event] | None:
        buffer = self._buffer
        if buffer and buffer[0] != AUTH_VERSION:
            return self._refuse(bytes((AUTH_VERSION, 1)), "bad credentials message")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        user_end = 2 + buffer[1]
        end = user_end + 1 + buffer[user_end]
        if len(buffer) < end:
            return None
        self._isolation = isolation_of(bytes(buffer[2:user_end]), bytes(buffer[user_end + 1 : end]))
        del buffer[:end]
        self._state = _State.REQUEST
        return [Send(bytes((AUTH_VERSION, 0)))]

    def _request(self) -> list[Event] | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            return self._refuse(encode_reply(Outcome(Reply.GENERAL_FAILURE)), "bad request version")
        if len(buffer) < 2:
            return None
        command = buffer[1]
        if command not in _COMMANDS:
            return self._refuse(encode_reply(Outcome(Reply.COMMAND_NOT_SUPPORTED)), "command not supported")
        if len(buffer) < 4:
            return None
        kind = buffer[3]
        if kind not in (IPV4, IPV6, NAME) or (command == RESOLVE_PTR and kind == NAME):
            return self._refuse_address("address type not supported")
        transport = Transport.TCP if command == CONNECT else Transport.DNS
        if command == UDP_ASSOCIATE:
            transport = Transport.UDP
        found = decode_address(buffer, 3, transport)
        if found is None:
            return None
        destination, end = found
        del buffer[:end]
        if destination is None:
            return self._refuse_address("not a name")
        if command == CONNECT and destination.port == 0:
            return self._refuse(encode_reply(Outcome(Reply.CONNECTION_REFUSED)), "port 0")
        self._command = command
        self._state = _State.WAITING
        if command == CONNECT:
            return [Connect(destination, self._isolation)]
        if command == UDP_ASSOCIATE:
            return [Associate(_announced(destination), self._isolation)]
        return [Resolve(destination, self._isolation, command == RESOLVE_PTR)]

    def _refuse_address(self, reason: str) -> list[Event]:
        return self._refuse(encode_reply(Outcome(Reply.ADDRESS_TYPE_NOT_SUPPORTED)), reason)

    def _refuse(self, answer: bytes, reason: str) -> list[Event]:
        self._state = _State.DONE
        return [Send(answer), Close(reason)]


def _announced(destination: Destination) -> Destination | None:
    """Return the address that a UDP client says it will send from, or None if it does not say."""
    if destination.ip_version and int(ip_address(destination.host)):
        return destination
    return Destination("", destination.port, 0, Transport.UDP) if destination.port else None


def decode_address(
    data: bytes | bytearray | memoryview, offset: int, transport: Transport
) -> tuple[Destination | None, int] | None:
    """Read type, address and port at `offset`; return the destination and the offset behind it.

    The destination is None when the name is none that can be resolved. The whole is None when bytes are
    missing or the type is unknown (check it before, where the two differ).
    """
    if len(data) < offset + 2:
        return None
    kind = data[offset]
    if kind == NAME:
        start, length = offset + 2, data[offset + 1]
    else:
        start, length = offset + 1, _ADDRESS_BYTES.get(kind, 0)
        if not length:
            return None
    end = start + length + 2
    if len(data) < end:
        return None
    raw = bytes(data[start : start + length])
    port = data[end - 2] << 8 | data[end - 1]
    if kind == IPV4:
        return Destination(f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}", port, 4, transport), end
    if kind == IPV6:
        return address_destination(IPv6Address(raw), port, transport), end
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None, end
    return parse_destination(name, port, transport), end


def encode_address(host: str, port: int) -> bytes:
    """Return type, address and port; "" is 0.0.0.0, anything that is no address a name of at most 255
    bytes.
    """
    port_bytes = port.to_bytes(2, "big")
    if not host:
        return bytes((IPV4, 0, 0, 0, 0)) + port_bytes
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        name = host.encode("utf-8")[:255]
        return bytes((NAME, len(name))) + name + port_bytes
    return bytes((IPV4 if address.version == 4 else IPV6,)) + address.packed + port_bytes


_SUCCEEDED = bytes((VERSION, Reply.SUCCEEDED, 0)) + encode_address("", 0)


def encode_reply(outcome: Outcome) -> bytes:
    """Return the reply's bytes."""
    if outcome.reply is Reply.SUCCEEDED and not outcome.host:
        return _SUCCEEDED
    return bytes((VERSION, outcome.reply, 0)) + encode_address(outcome.host, outcome.port)
