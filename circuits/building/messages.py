"""What a build says to each relay, and what the relay answers: fields, limits, codecs, and the grid for
prices.

Specification: docs/protocol/build.md, sections "Client message" and "Server message". Both have one fixed
size and no optional parts; every byte without a meaning is zero and is checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from circuits.building.records import CLIENT_MESSAGE_BYTES, DIGESTS_BYTES, SERVER_MESSAGE_BYTES
from circuits.errors import DecodeError
from circuits.handshake import NODE_ID_BYTES

VERSION = 1
HOUR_S = 3600
PRICE_LIMIT = 1 << 96  # wei per packet, exclusive; the width of a book's ticket value
LIFETIME_LIMIT_S = 1 << 32
TEXT_BYTES = 160
DIGESTS_AT = 4  # their place in a server message
INNER_IPV4 = IPv4Network("100.64.0.0/10")
INNER_IPV6 = IPv6Network("fd68:6f70:6661::/48")

_ROLE_EXTEND = 1
_ROLE_EXIT = 2
_HEAD = struct.Struct("!BBBBII12s12s")  # 36 bytes
_EXTEND = struct.Struct("!32sB16sH")  # 51 bytes
_EXIT = struct.Struct("!B4s16s")  # 21 bytes
_WANTS_IPV6 = 1
_ANSWER = struct.Struct("!BBBB48s4s16s4s16s160s")  # 252 bytes
_HAS_ADDRESSES = 1
_HAS_IPV6 = 2
_GRID_STEPS_BITS = 3  # 8 steps in every doubling: at most 12.5 % above the exact amount

Address = tuple[str, int]


class Refusal(IntEnum):
    """Why a relay did not carry a circuit. The client alone reads it."""

    MALFORMED = 1
    VERSION = 2
    SUITE = 3
    CLOCK = 4
    BUSY = 5
    PRICE = 6
    LIFETIME = 7
    ROLE = 8
    NO_ADDRESS = 9
    NEXT_UNREACHABLE = 10
    NEXT_REFUSED = 11
    NEXT_SILENT = 12
    NEXT_FORBIDDEN = 13
    UNPAID = 14
    CLOSING = 15
    INTERNAL = 16
    NEXT_UNREADABLE = 17


class RejectCode(IntEnum):
    """Why a BUILD gets no sealed answer; also the code of the Destroy that goes back."""

    MALFORMED = 1
    BUSY = 2
    REPLAYED = 3
    UNREADABLE = 4


REFUSAL_SENTENCES: dict[Refusal, str] = {
    Refusal.MALFORMED: "it could not make sense of the request",
    Refusal.VERSION: "it does not speak this version of the build",
    Refusal.SUITE: "it does not offer this cipher suite",
    Refusal.CLOCK: "its clock and ours differ by more than an hour",
    Refusal.BUSY: "it has too much to do",
    Refusal.PRICE: "the price offered is lower than the one it asks",
    Refusal.LIFETIME: "it does not carry circuits for that long",
    Refusal.ROLE: "it is not an exit",
    Refusal.NO_ADDRESS: "it has no inner address left",
    Refusal.NEXT_UNREACHABLE: "it could not reach the next relay",
    Refusal.NEXT_REFUSED: "the next relay gave the circuit up without an answer",
    Refusal.NEXT_SILENT: "the next relay did not answer in time",
    Refusal.NEXT_FORBIDDEN: "it may not go on to that next relay",
    Refusal.UNPAID: "the payment for it or onward is missing",
    Refusal.CLOSING: "it is shutting down",
    Refusal.INTERNAL: "it had an error of its own",
    Refusal.NEXT_UNREADABLE: "the next relay could not read the request (is the directory out of date?)",
}


@dataclass(frozen=True, slots=True)
class NextHop:
    """Go on to this relay: its identity (32 bytes) and the address: an IPv4 or IPv6 literal, a UDP port."""

    node_id: bytes
    address: Address


@dataclass(frozen=True, slots=True)
class ExitHere:
    """You are the exit. The inner addresses proposed, or None for any; `wants_ipv6` asks for an IPv6 one as
    well.
    """

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    wants_ipv6: bool = True


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """What the client tells one relay.

    `hour`: the client's clock, in hours since 1970 (UTC). `lifetime_s`: longest time the circuit will be
    used. Prices in wei per packet, both below 2**96: what this relay is paid, and what it must pay onward (0
    at the exit).
    """

    suite: int
    hour: int
    lifetime_s: int
    price_in: int
    price_out: int
    what: NextHop | ExitHere


@dataclass(frozen=True, slots=True)
class ExitAddresses:
    """What an exit gives a circuit: its inner addresses and those of the exit's DNS; IPv6 ones None if it
    has none.
    """

    ipv4: IPv4Address
    ipv6: IPv6Address | None
    dns_ipv4: IPv4Address
    dns_ipv6: IPv6Address | None


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """A relay's answer: `refusal` None means accepted. `digests` are those of the records behind it (48
    bytes).
    """

    refusal: Refusal | None
    text: str
    digests: bytes
    exit: ExitAddresses | None


def round_up_to_grid(wei: int) -> int:
    """Round an amount of wei up to the grid all clients share, so that it says little about the path that
    causes it.

    The grid has 8 steps in every doubling (1, 2, ... 8, 9, ... 16, 18, 20, ... 32, 36, ...): the result is
    at most 12.5 % above `wei`; the relay gains. Raises ValueError below 0.
    """
    if wei < 0:
        raise ValueError("an amount of wei is not negative")
    shift = max(0, wei.bit_length() - 1 - _GRID_STEPS_BITS)
    step = 1 << shift
    return (wei + step - 1) >> shift << shift


def price_chain(asked: list[int]) -> list[tuple[int, int]]:
    """Turn the prices asked by a path's relays, first hop first, into (price_in, price_out) for each.

    Each relay is paid at least what it asks plus what it has to pay onward, rounded up to the grid; the exit
    pays nothing onward. Raises ValueError for a negative price.
    """
    result: list[tuple[int, int]] = []
    onward = 0
    for price in reversed(asked):
        if price < 0:
            raise ValueError("a price is not negative")
        price_in = round_up_to_grid(price + onward)
        result.append((price_in, onward))
        onward = price_in
    result.reverse()
    return result


def encode_client_message(message: ClientMessage) -> bytes:
    """Return the 256 bytes of a client message. Raises ValueError for a value out of its range."""
    if not (0 <= message.price_in < PRICE_LIMIT and 0 <= message.price_out < PRICE_LIMIT):
        raise ValueError("a price per packet must be below 2**96 wei")
    if not (
        0 < message.lifetime_s < LIFETIME_LIMIT_S and 0 <= message.hour < 1 << 32 and 0 <= message.suite < 256
    ):
        raise ValueError("lifetime, hour or suite out of range")
    what = message.what
    if isinstance(what, NextHop):
        role = _ROLE_EXTEND
        host, port = what.address
        if len(what.node_id) != NODE_ID_BYTES or not 0 < port < 1 << 16:
            raise ValueError("a next hop needs a 32-byte identity and a port from 1 to 65535")
        ip = ip_address(host)
        tail = _EXTEND.pack(what.node_id, ip.version, ip.packed.ljust(16, b"\0"), port)
    else:
        role = _ROLE_EXIT
        tail = _EXIT.pack(
            _WANTS_IPV6 if what.wants_ipv6 else 0,
            what.ipv4.packed if what.ipv4 is not None else bytes(4),
            what.ipv6.packed if what.ipv6 is not None else bytes(16),
        )
    head = _HEAD.pack(
        VERSION,
        message.suite,
        role,
        0,
        message.hour,
        message.lifetime_s,
        message.price_in.to_bytes(12, "big"),
        message.price_out.to_bytes(12, "big"),
    )
    return (head + tail).ljust(CLIENT_MESSAGE_BYTES, b"\0")


def decode_version(data: bytes) -> int:
    """Return the version byte of a client or server message. Raises DecodeError for no bytes."""
    if not data:
        raise DecodeError("an empty build message")
    return data[0]


def decode_client_message(data: bytes) -> ClientMessage:
    """Read the 256 bytes of a client message of version 1.

    Raises DecodeError for another length or version, an unknown role or address family, port 0, lifetime 0,
    and any byte that should be zero.
    """
    if len(data) != CLIENT_MESSAGE_BYTES:
        raise DecodeError(f"a client message has {CLIENT_MESSAGE_BYTES} bytes")
    version, suite, role, zero, hour, lifetime_s, price_in, price_out = _HEAD.unpack_from(data)
    if version != VERSION or zero or not lifetime_s:
        raise DecodeError("client message: version, zero byte or lifetime")
    what: NextHop | ExitHere
    if role == _ROLE_EXTEND:
        node_id, family, packed, port = _EXTEND.unpack_from(data, _HEAD.size)
        end = _HEAD.size + _EXTEND.size
        if not port:
            raise DecodeError("client message: port 0")
        what = NextHop(node_id, (_decode_host(family, packed), port))
    elif role == _ROLE_EXIT:
        flags, ipv4, ipv6 = _EXIT.unpack_from(data, _HEAD.size)
        end = _HEAD.size + _EXIT.size
        if flags & ~_WANTS_IPV6:
            raise DecodeError("client message: unknown flag")
        what = ExitHere(
            IPv4Address(ipv4) if any(ipv4) else None, IPv6Address(ipv6) if any(ipv6) else None, bool(flags)
        )
    else:
        raise DecodeError("client message: unknown role")
    if any(data[end:]):
        raise DecodeError("client message: padding is not zero")
    return ClientMessage(
        suite, hour, lifetime_s, int.from_bytes(price_in, "big"), int.from_bytes(price_out, "big"), what
    )


def _decode_host(family: int, packed: bytes) -> str:
    if family == 4 and not any(packed[4:]):
        return str(IPv4Address(packed[:4]))
    if family == 6:
        return str(IPv6Address(packed))
    raise DecodeError("client message: address family")


def encode_server_message(message: ServerMessage) -> bytes:
    """Return the 320 bytes of an answer; `text` is cut to 160 bytes of UTF-8. Raises ValueError if `digests`
    is not 48 long.
    """
    if len(message.digests) != DIGESTS_BYTES:
        raise ValueError("the digests have 48 bytes")
    text = message.text.encode()[:TEXT_BYTES].decode(errors="ignore").encode()
    flags = 0
    ipv4, ipv6, dns_ipv4, dns_ipv6 = bytes(4), bytes(16), bytes(4), bytes(16)
    if message.exit is not None:
        flags |= _HAS_ADDRESSES
        ipv4, dns_ipv4 = message.exit.ipv4.packed, message.exit.dns_ipv4.packed
        if message.exit.ipv6 is not None and message.exit.dns_ipv6 is not None:
            flags |= _HAS_IPV6
            ipv6, dns_ipv6 = message.exit.ipv6.packed, message.exit.dns_ipv6.packed
    body = _ANSWER.pack(
        VERSION, message.refusal or 0, flags, len(text), message.digests, ipv4, ipv6, dns_ipv4, dns_ipv6, text
    )
    return body.ljust(SERVER_MESSAGE_BYTES, b"\0")


def decode_server_message(data: bytes) -> ServerMessage:
    """Read the 320 bytes of an answer of version 1.

    Characters of the text that a terminal might act on are replaced by "?". Raises DecodeError for another
    length or version, an unknown reason or flag, text that is not UTF-8, a byte that should be zero, and
    addresses outside 100.64.0.0/10 and fd68:6f70:6661::/48.
    """
    if len(data) != SERVER_MESSAGE_BYTES:
        raise DecodeError(f"a server message has {SERVER_MESSAGE_BYTES} bytes")
    version, status, flags, text_bytes, own_digests, ipv4, ipv6, dns_ipv4, dns_ipv6, text = (
        _ANSWER.unpack_from(data)
    )
    if (
        version != VERSION
        or flags & ~(_HAS_ADDRESSES | _HAS_IPV6)
        or flags == _HAS_IPV6
        or text_bytes > TEXT_BYTES
    ):
        raise DecodeError("server message: version, flags or text length")
    if any(text[text_bytes:]) or any(data[_ANSWER.size :]):
        raise DecodeError("server message: padding is not zero")
    try:
        refusal = Refusal(status) if status else None
        shown = "".join(c if c.isprintable() else "?" for c in text[:text_bytes].decode())
    except ValueError as error:
        raise DecodeError("server message: unknown reason or bad text") from error
    unused = (b"" if flags & _HAS_ADDRESSES else ipv4 + dns_ipv4) + (
        b"" if flags & _HAS_IPV6 else ipv6 + dns_ipv6
    )
    if any(unused):
        raise DecodeError("server message: address without its flag")
    exit_addresses = None
    if flags & _HAS_ADDRESSES:
        exit_addresses = ExitAddresses(
            _inner_ipv4(ipv4),
            _inner_ipv6(ipv6) if flags & _HAS_IPV6 else None,
            _inner_ipv4(dns_ipv4),
            _inner_ipv6(dns_ipv6) if flags & _HAS_IPV6 else None,
        )
    return ServerMessage(refusal, shown, own_digests, exit_addresses)


def _inner_ipv4(packed: bytes) -> IPv4Address:
    address = IPv4Address(packed)
    if address not in INNER_IPV4:
        raise DecodeError("server message: IPv4 address outside 100.64.0.0/10")
    return address


def _inner_ipv6(packed: bytes) -> IPv6Address:
    address = IPv6Address(packed)
    if address not in INNER_IPV6:
        raise DecodeError("server message: IPv6 address outside fd68:6f70:6661::/48")
    return address
