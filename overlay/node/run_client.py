"""Runs the customer's node: files, namespace, links, proxy and control socket around a `ClientNode`."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import trio

from circuits.errors import DecodeError as CircuitsDecodeError
from circuits.guards import MAX_STATE_BYTES, GuardStore, decode_guards
from exit.io.namespace import NamespaceError, open_namespace
from exit.io.privileges import CAP_NET_ADMIN, drop_capabilities
from overlay.directory import Directory
from overlay.engine.io.choice import open_links
from overlay.engine.io.tun_loop import run_tun
from overlay.errors import ConfigError
from overlay.io.files import read_private
from overlay.links.io.udp import put_mark
from overlay.logs import get_logger
from overlay.node.client import ClientNode
from overlay.node.client_discovery import ClientDiscovery
from overlay.node.customer_money import CustomerMoney
from overlay.node.io.files import load_directory
from overlay.node.io.local import lock_state, serve_local
from overlay.node.io.metrics import serve_metrics
from overlay.node.io.money_start import open_money
from overlay.node.io.process import settle
from overlay.node.io.whole_device import admit_dials, open_whole_device
from overlay.socks.io.listeners import open_listeners, systemd_descriptors
from overlay.socks.io.server import ProxyLimits, ProxyServer, serve_proxy

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    from overlay.config.model import Config
    from overlay.directory import IpAddress

MIN_DESCRIPTORS = 640
"""Open files: the namespace's sockets kept ready (224, and 160 by the native proxy), the node's own, and two
for each of a browser's hundred connections.
"""

log = get_logger("client")


async def run_client(
    config: Config,
    *,
    started: Callable[[], None] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    socks_descriptors: tuple[int, ...] = (),
) -> None:
    """Run the customer's node until cancelled. ``started`` is called when the first circuit is ready.

    ``socks_descriptors``: listening sockets to take over, instead of the configured addresses. Raises
    OverlayError, NamespaceError and ListenError, each one sentence for the user.
    """
    async with AsyncExitStack() as stack:
        _check_descriptors()
        stack.enter_context(lock_state(config.state_dir))
        directory = Directory() if config.gossips else load_directory(config, time.time())[0]
        guards_file = config.state_dir / "guards.json"
        guards = load_guards(guards_file)
        descriptors = [*socks_descriptors, *systemd_descriptors(os.environ, os.getpid())]
        listeners = open_listeners(
            [] if descriptors else [(address.ip, address.port) for address in config.client.socks],
            descriptors,
        )
        for listener in listeners:
            stack.callback(listener.close)
        if config.client.whole_device:
            progress("locking this machine")
        device = await stack.enter_async_context(open_whole_device(config))
        progress("making a network namespace")
        namespace = await stack.enter_async_context(open_namespace())
        if device is not None:
            await device.connect(namespace)
            for warning in device.warnings:
                log.warning("whole_device_incomplete", reason=warning)
        nursery = await stack.enter_async_context(trio.open_nursery())
        discovery: ClientDiscovery | None = None
        known = directory.known_addresses()
        if config.gossips:
            progress("reading who belongs to the network")
            discovery = ClientDiscovery(config, nursery)
            directory = await discovery.load()
            known = directory.known_addresses() | discovery.discovery.first_addresses()
        families = _own_families(known)
        node = ClientNode(
            config, directory, guards, guards_file, namespace, nursery, progress, frozenset(families)
        )
        if discovery is not None:
            discovery.node, node.discovery = node, discovery
        if config.payments.is_on:
            progress("opening the account")
            node.money = await stack.enter_async_context(open_money(config, node, node.engine, None))
            node.purse = CustomerMoney(config.payments, node.money, node)
            stack.callback(node.purse.save)
        addresses = [("0.0.0.0", 0)] if 4 in families else []
        if 6 in families:
            addresses.append(("::", 0))
        node.endpoint = await stack.enter_async_context(
            open_links(addresses, None, node.engine, backend=config.node.quic, role="customer")
        )

        async def pump() -> None:
            await run_tun(node.engine, namespace.tun, node.endpoint.run_batch, may_rest=True)

        async def end_with_namespace() -> None:
            # Without its helper no new connection can be made: better an end with a sentence than a proxy
            # that refuses all.
            await namespace.closed.wait()
            raise NamespaceError("the namespace helper ended: start the client again")

        # The namespace's helper has what it needs. From here on this process needs no privilege but, with a
        # lock on the machine, that of changing it.
        drop_capabilities(() if device is None else (CAP_NET_ADMIN,))
        await stack.enter_async_context(
            serve_metrics(
                config.node.metrics, node.status, node.money.totals if node.money is not None else None
            )
        )
        nursery.start_soon(end_with_namespace)
        nursery.start_soon(pump)
        nursery.start_soon(node.keep_pool)
        nursery.start_soon(node.way_out.run)
        nursery.start_soon(node.keep_directory)
        nursery.start_soon(node.market.run)
        if discovery is not None:
            discovery.start()
        if node.purse is not None:
            nursery.start_soon(node.purse.run)
        limits = ProxyLimits(max_connections=config.client.max_connections)

        async def serve(task_status: trio.TaskStatus[ProxyServer]) -> None:
            await serve_proxy(
                listeners,
                node.leases,
                namespace,
                limits=limits,
                kind=config.node.engine,
                by_destination="destination" in config.client.isolation,
                task_status=task_status,
            )

        if device is not None:
            node.device = device
            admit_dials(device, node.endpoint)
            node.way_out.want()
            nursery.start_soon(device.keep)
        node.proxy = await nursery.start(serve)
        await nursery.start(serve_local, config.state_dir, _Local(node, nursery.cancel_scope).handle)
        if device is not None:
            device.hold()
        try:
            await node.ready.wait()
            settle()
            if started is not None:
                started()
            await trio.sleep_forever()
        finally:
            node.market.save()
            if discovery is not None:
                discovery.discovery.save()
            node.act(node.pool.close())
            node.endpoint.flush()
            nursery.cancel_scope.cancel()


class _Local:
    """Answers the local control socket."""

    def __init__(self, node: ClientNode, scope: trio.CancelScope) -> None:
        self._node = node
        self._scope = scope

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        node = self._node
        if method == "status":
            return node.status()
        if method == "circuits":
            return {"circuits": node.list_circuits(), "no_path": node.market.describe_no_path()}
        if method == "market":
            return await node.market.rows()
        if method == "choices":
            return node.market.list_choices()
        if method == "choose":
            value = params.get("value")
            if not isinstance(params.get("key"), str) or not isinstance(value, str | None):
                raise LookupError("choose needs a key and a value")
            chosen = node.market.choose(params["key"], value, keep=bool(params.get("keep")))
            self._forget_grants()
            return chosen
        if method == "exec-info":
            return await node.way_out.info()
        if method == "newnym":
            node.act(node.pool.renew(trio.current_time()))
            self._forget_grants()
            return {}
        if method == "stop":
            self._scope.cancel()
            return {}
        if node.money is not None and method == "tabs":
            return node.money.status()
        if node.money is not None and method.startswith("wallet"):
            return await node.money.wallet.handle(method, params)
        raise LookupError(f"a client has no {method}")

    def _forget_grants(self) -> None:
        """New connections ask the pool again, which obeys other rules now."""
        if self._node.proxy is not None:
            self._node.proxy.revoke_grants()


def load_guards(path: FilePath) -> GuardStore:
    """The guards kept on disk, or none. Raises FileError; a damaged file is set aside and said so."""
    if not path.exists():
        return GuardStore()
    try:
        return decode_guards(read_private(path, "the guards", MAX_STATE_BYTES))
    except CircuitsDecodeError:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.error("the guards file is damaged: new guards are chosen, the old file is kept", file=str(aside))
        return GuardStore()


def _check_descriptors() -> None:

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        raise ConfigError(
            f"this process may have {hard} files open at most, and the client needs {MIN_DESCRIPTORS}: raise "
            f"the limit (`ulimit -Hn {2 * MIN_DESCRIPTORS}`, or LimitNOFILE= in a systemd unit)"
        )


def _own_families(addresses: Iterable[IpAddress]) -> set[int]:
    """IP versions in which this machine has a way to some relay at one of `addresses`."""
    families: set[int] = set()
    for address in addresses:
        if address.version in families:
            continue
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            put_mark(probe)
            probe.connect((str(address), 9))  # sends nothing: asks the routing table
            families.add(int(address.version))
    return families or {4}
