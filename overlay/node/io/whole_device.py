"""Whole-device mode of a customer's node: joins `exit.io.device` with links and the chain's endpoints.

What the client itself sends must go by the tunnel that it carries: links to relays, and connections to the
chain's endpoints, without which no relay can be paid and so no tunnel be built. Both carry the process's
mark, and reach what is admitted only. The endpoints' names are looked up before the machine is locked, and
kept for a start with the lock in place.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from exit.device import MARK
from exit.io.device import Device, left_locked, open_device
from overlay.errors import ConfigError
from overlay.io.files import write_atomic
from overlay.links.io.udp import mark_sockets, put_mark
from overlay.logs import get_logger

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    from overlay.config.model import Config
    from overlay.links.io.endpoint import Endpoint

FOLDER = "device"
ENDPOINTS_FILE = "endpoints.json"
LOOKUP_TIMEOUT_S = 10.0
MAX_FILE_BYTES = 65536

log = get_logger("device")


@asynccontextmanager
async def open_whole_device(config: Config) -> AsyncIterator[Device | None]:
    """Lock this machine while the block runs, if the configuration asks for it; else None.

    Raises ConfigError when a killed client has left the machine locked and this one would not take it over,
    PrivilegeError and EnvError as `open_device`.
    """
    folder = config.state_dir / FOLDER
    if not config.client.whole_device:
        if left_locked(folder):
            raise ConfigError(
                "a client that was killed has left this machine locked, so that nothing leaks: start with "
                "`hopfare client --whole-device`, or open the machine with `hopfare stop`"
            )
        yield None
        return
    urls = config.payments.rpc if config.payments.is_on else ()
    names = await _look_up(urls, folder / ENDPOINTS_FILE)
    async with open_device(folder, config.client.direct) as device:
        if names:
            write_atomic(folder / ENDPOINTS_FILE, json.dumps(names).encode(), mode=0o600)
        trio.socket.set_custom_hostname_resolver(_Names(names))
        trio.socket.set_custom_socket_factory(_MarkedSockets())
        mark_sockets(MARK)
        try:
            await device.admit_chain(list_peers(urls, names))
            yield device
        finally:
            mark_sockets(0)
            trio.socket.set_custom_hostname_resolver(None)
            trio.socket.set_custom_socket_factory(None)


def admit_dials(device: Device, endpoint: Endpoint) -> None:
    """Admit each relay before it is dialled."""

    async def admit(address: tuple[str, int]) -> None:
        await device.admit(address, lambda: [link.peer_address for link in endpoint.links])

    endpoint.before_dial = admit


def list_peers(urls: Sequence[str], names: dict[str, list[str]]) -> list[tuple[str, int]]:
    """Return addresses and ports of the chain's endpoints, as far as known; loopback needs no leave."""
    peers = []
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        peers += [(address, port) for address in names.get(host, [host]) if _is_outside(address)]
    return peers


def _is_outside(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


async def _look_up(urls: Sequence[str], stored: FilePath) -> dict[str, list[str]]:
    """Return the addresses of the endpoints' names; those stored where nobody answers."""
    names: dict[str, list[str]] = {}
    for url in urls:
        host = urlsplit(url).hostname or ""
        if not host or host == "localhost" or _is_address(host):
            continue
        found: list[Any] = []
        with suppress(OSError), trio.move_on_after(LOOKUP_TIMEOUT_S):
            found = await trio.to_thread.run_sync(
                socket.getaddrinfo,
                host,
                None,
                0,
                socket.SOCK_STREAM,
                abandon_on_cancel=True,
            )
        names[host] = sorted({entry[4][0] for entry in found}) or _read_stored(stored).get(host, [])
        if not names[host]:
            log.error(
                "chain_endpoint_unknown",
                host=host,
                hint="stop the client, so that names can be looked up, or write its address in payments.rpc",
            )
    return {host: addresses for host, addresses in names.items() if addresses}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_stored(path: FilePath) -> dict[str, list[str]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(host): [str(address) for address in addresses if _is_address(str(address))]
        for host, addresses in found.items()
        if isinstance(addresses, list)
    }


class _Names(trio.abc.HostnameResolver):
    """Answers for the chain's endpoints with what was looked up before; other names as ever."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - trio's name
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        known = self._names.get(host.decode("ascii", "replace"), []) if host is not None else []
        hosts: list[Any] = [*known] or [host]
        found: list[Any] = []
        for one in hosts:
            found += await trio.to_thread.run_sync(
                socket.getaddrinfo, one, port, family, type, proto, flags, abandon_on_cancel=True
            )
        return found

    async def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)


class _MarkedSockets(trio.abc.SocketFactory):
    """Makes this process's TCP connections carry its mark."""

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> Any:
        made = socket.socket(family, kind, proto)
        if family in (socket.AF_INET, socket.AF_INET6):
            put_mark(made)
        return trio.socket.from_stdlib_socket(made)
