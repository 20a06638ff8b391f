"""Values of settings: how each kind is written and what is refused.

Owns the units. A parser takes a value as TOML gives it and returns the value the program uses; a value it
refuses raises ValueError with a clause that says what would be right, ready to follow "name = value: ".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar
from urllib.parse import urlsplit

from overlay.descriptor import MAX_PRICE_WEI_PER_PACKET, Address
from overlay.errors import DecodeError
from overlay.identity import NodeId, parse_node_id
from payments.pricing import WEI_PER_COIN, parse_coin, wei_per_packet

T = TypeVar("T")
Parser = Callable[[object], T]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DURATION_UNITS = {
    "ms": 0.001, "s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_BYTE_UNITS = {
    "b": 1, "byte": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_BIT_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_WEI_UNITS = {"wei": 1, "kwei": 10**3, "mwei": 10**6, "gwei": 10**9}
_PRICE = re.compile(r"(.+?)\s*(?:/|\bper\b)\s*(gb|gigabyte|packet)", re.IGNORECASE)
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")


def integer(least: int, most: int) -> Parser[int]:
    """Whole numbers from `least` to `most`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return parse


def threads(value: object) -> int:
    """A number of threads, or 0 for "auto"."""
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise ValueError('must be "auto" or a whole number from 1 to 64')
    return value


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false (without quotes)")
    return value


def choice(*words: str) -> Parser[str]:
    """One of `words`."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {_either(words)}")
        return str(value)

    return parse


def text(value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError('must be text in "quotes"')
    return value


def matching(pattern: str, description: str) -> Parser[str]:
    """Text that is empty or matches `pattern` as a whole."""
    compiled = re.compile(pattern)

    def parse(value: object) -> str:
        if not isinstance(value, str) or (value and compiled.fullmatch(value) is None):
            raise ValueError(f"must be {description}")
        return value

    return parse


def country(value: object) -> str:
    """Two letters, returned in upper case, or nothing."""
    if not isinstance(value, str) or re.fullmatch(r"|[A-Za-z]{2}", value) is None:
        raise ValueError('must be a country\'s two letters, such as "IS", or "" for none')
    return value.upper()


def duration_s(least: str, most: str) -> Parser[float]:
    """A time with its unit, in seconds, from `least` to `most`."""
    low, high = _to_seconds(least), _to_seconds(most)

    def parse(value: object) -> float:
        seconds = _to_seconds(value)
        if not low <= seconds <= high:
            raise ValueError(f'must be from "{least}" to "{most}"')
        return seconds

    return parse


def size_bytes(least: str, most: str) -> Parser[int]:
    """A size with its unit, in bytes, from `least` to `most`."""
    low, high = _to_bytes(least), _to_bytes(most)

    def parse(value: object) -> int:
        size = _to_bytes(value)
        if not low <= size <= high:
            raise ValueError(f'must be from "{least}" to "{most}"')
        return size

    return parse


def rate_bytes_per_s(value: object) -> int:
    """A data rate with its unit, in bytes per second; 0 for none."""
    hint = 'must be a rate with its unit, such as "100 Mbit/s" or "10 MB/s", or "0" for none'
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    if not isinstance(value, str):
        raise ValueError(hint)
    amount = value.strip()
    for ending in ("/s", "ps"):
        if amount.endswith(ending):
            amount = amount[: -len(ending)]
            break
    else:
        raise ValueError(hint)
    match = _PART.fullmatch(amount.rstrip())
    unit = match[2].lower() if match else ""
    if match is None or (unit not in _BYTE_UNITS and unit not in _BIT_UNITS):
        raise ValueError(hint)
    scale = _BYTE_UNITS[unit] if unit in _BYTE_UNITS else _BIT_UNITS[unit] / 8
    rate = int(float(match[1]) * scale)
    if not 0 < rate <= 2**50:
        raise ValueError(hint)
    return rate


def address(value: object) -> Address:
    """An IP address with a port."""
    hint = 'must be an IP address and a port, such as "192.0.2.7:4433" or "[2001:db8::7]:4433"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'{hint}; for this machine only: "127.0.0.1:{value}"')
    if not isinstance(value, str):
        raise ValueError(hint)
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
        number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    except ValueError:
        raise ValueError(hint) from None
    if not 1 <= number <= 65535 or bracketed != (ip.version == 6) or "%" in host:
        raise ValueError(hint)
    return Address(str(ip), number)


def network(value: object) -> Network:
    """An IP network in CIDR form."""
    try:
        if isinstance(value, str):
            return ipaddress.ip_network(value)
    except ValueError as error:
        if "has host bits set" in str(error):
            proper = ipaddress.ip_network(str(value), strict=False)
            raise ValueError(f'must be the network itself: "{proper}"') from None
    raise ValueError('must be a network such as "10.0.0.0/8" or "fd00::/8"')


def address_or_network(value: object) -> Network:
    """An IP network in CIDR form, or one address."""
    if isinstance(value, str) and "/" not in value:
        try:
            return ipaddress.ip_network(value)
        except ValueError:
            raise ValueError('must be an address or a network such as "192.168.1.0/24"') from None
    return network(value)


def resolver(value: object) -> Address:
    """An IP address of a DNS server, with a port or without (53)."""
    if isinstance(value, str):
        try:
            return Address(str(ipaddress.ip_address(value)), 53)
        except ValueError:
            pass
        try:
            return address(value)
        except ValueError:
            pass
    raise ValueError('must be a DNS server\'s IP address, such as "9.9.9.9" or "[2620:fe::fe]:53"')


def node(value: object) -> NodeId:
    """A node's name."""
    try:
        if isinstance(value, str):
            return parse_node_id(value)
    except DecodeError:
        pass
    raise ValueError("must be a node's name: 52 characters, as `hopfare descriptor` prints it")


@dataclass(frozen=True, slots=True)
class Contact:
    """A relay and where it is reached."""

    identity: NodeId
    address: Address


def contact(value: object) -> Contact:
    """A node's name and its address, with @ between."""
    name, separator, where = value.partition("@") if isinstance(value, str) else ("", "", "")
    if not separator:
        raise ValueError('must be a node\'s name, "@" and its address, such as "NAME@192.0.2.7:4433"')
    return Contact(node(name), address(where))


def optional(parse: Parser[T]) -> Parser[T | None]:
    """As `parse`, or the empty text for None."""
    return lambda value: None if value == "" else parse(value)


def payee(value: object) -> bytes:
    """An account of the chain, as 20 bytes; empty for none."""
    if isinstance(value, str):
        if not value:
            return b""
        if re.fullmatch(r"0x[0-9a-fA-F]{40}", value):
            return bytes.fromhex(value[2:])
    raise ValueError('must be an account: "0x" and 40 hexadecimal digits, or "" for none')


def operator(value: object) -> str:
    """Whoever runs relays: an account of the chain, returned as 40 small hexadecimal digits, or a family's
    name.
    """
    if isinstance(value, str):
        if re.fullmatch(r"0x[0-9a-fA-F]{40}", value):
            return value[2:].lower()
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}", value):
            return value
    raise ValueError('must be an account ("0x" and 40 hexadecimal digits) or a family\'s name')


def amount_wei(value: object) -> int:
    """An amount in the chain's coin, or with a unit in wei; returned in wei."""
    hint = 'must be an amount in the chain\'s coin, such as "0.05", or with a unit: "2000 gwei"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'{hint} (do you mean "{value}"?)')
    if not isinstance(value, str):
        raise ValueError(hint)
    number, _, unit = value.strip().partition(" ")
    try:
        if not unit:
            return parse_coin(number)
        wei = Fraction(number) * _WEI_UNITS[unit.strip().lower()]
    except (ValueError, KeyError, ZeroDivisionError):
        raise ValueError(hint) from None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) is None or wei > 10**12 * WEI_PER_COIN:
        raise ValueError(hint)
    if wei.denominator != 1:
        raise ValueError("must be whole wei")
    return int(wei)


_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def price_wei_per_packet(value: object) -> int:
    """A price per gigabyte in the chain's coin, or per packet in wei; returned in whole wei per packet,
    rounded up.
    """
    hint = 'must be a price such as "0.05 per GB" (in the chain\'s coin) or "69200 wei per packet"'
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        if _NUMBER.fullmatch(str(value).strip()):
            hint += f' (do you mean "{value} per GB"?)'
        raise ValueError(hint)
    try:
        wei = amount_wei(match[1])
    except ValueError:
        raise ValueError(hint) from None
    if match[2].lower() != "packet":
        wei = wei_per_packet(wei)
    if wei > MAX_PRICE_WEI_PER_PACKET:
        raise ValueError(f"must be at most {MAX_PRICE_WEI_PER_PACKET} wei per packet")
    return wei


def endpoint(value: object) -> str:
    """The URL of a chain's JSON-RPC endpoint."""
    hint = 'must be the URL of a JSON-RPC endpoint, such as "https://rpc.example.org/key"'
    if not isinstance(value, str):
        raise ValueError(hint)
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not value.isprintable() or " " in value:
        raise ValueError(hint)
    return value


def each(parse: Parser[T], *, at_most: int) -> Parser[tuple[T, ...]]:
    """A list of values, each as `parse` wants it, none twice; text is split at commas, so that it fits a
    variable.
    """

    def parse_all(value: object) -> tuple[T, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif not isinstance(value, list):
            value = [value]
        if len(value) > at_most:
            raise ValueError(f"must have at most {at_most} entries")
        parsed: list[T] = []
        for part in value:
            try:
                item = parse(part)
            except ValueError as error:
                raise ValueError(f"{show(part)} {error}") from None
            if item in parsed:
                raise ValueError(f"{show(part)} is given twice")
            parsed.append(item)
        return tuple(parsed)

    return parse_all


def show(value: object) -> str:
    """Return `value` as it would be written in TOML, cut to a readable length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "..."
        return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, list):
        return "[" + ", ".join(show(part) for part in value[:5]) + (", ...]" if len(value) > 5 else "]")
    return str(value)[:60]


def _to_seconds(value: object) -> float:
    hint = 'must be a time with its unit, such as "10s", "5m" or "1h 30m"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'{hint} (do you mean "{value}s"?)')
    return _sum(value, _DURATION_UNITS, hint)


def _to_bytes(value: object) -> int:
    hint = 'must be a size with its unit, such as "256 KiB" or "64 MiB"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'{hint} (do you mean "{value} bytes"?)')
    return int(_sum(value, _BYTE_UNITS, hint))


def _sum(value: object, units: dict[str, int] | dict[str, float], hint: str) -> float:
    if not isinstance(value, str):
        raise ValueError(hint)
    total = 0.0
    position = 0
    stripped = value.strip()
    while position < len(stripped) or not stripped:
        match = _PART.match(stripped, position)
        if match is None or match[2].lower() not in units:
            raise ValueError(hint)
        total += float(match[1]) * units[match[2].lower()]
        position = match.end()
    return total


def _either(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
