"""Metrics over HTTP: prometheus-client's server in a thread, which asks the node's loop at each scrape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio

from overlay.descriptor import Address
from overlay.errors import ConfigError
from payments.errors import LedgerError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@asynccontextmanager
async def serve_metrics(
    address: Address | None,
    status: Callable[[], Mapping[str, Any]],
    totals: Callable[[], Mapping[str, float]] | None = None,
) -> AsyncIterator[None]:
    """Answer scrapes on `address` while the block runs; nothing without an address.

    `status` is called in the node's loop, `totals` (of its money) in a thread, as it may wait for the disk.
    Raises ConfigError if the address cannot be listened on.
    """
    if address is None:
        yield
        return
    # Imported on demand: some megabytes that a node without metrics does not need.
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_make_collector(status, totals))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    try:
        server, thread = start_http_server(address.port, str(address.ip), registry)
    except OSError as error:
        raise ConfigError(
            f"node.metrics: cannot listen on {address} ({error.strerror}): choose another address or port"
        ) from error
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            # A scrape under way may still ask this loop, so it must go on meanwhile.
            await trio.to_thread.run_sync(server.shutdown)
            server.server_close()
            await trio.to_thread.run_sync(thread.join)


def _make_collector(
    status: Callable[[], Mapping[str, Any]], totals: Callable[[], Mapping[str, float]] | None
) -> Any:
    from prometheus_client.registry import Collector

    from overlay.metrics import collect_metrics

    token = trio.lowlevel.current_trio_token()

    class NodeCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            """Called in the server's thread; the status is read in the node's."""
            try:
                current = trio.from_thread.run_sync(status, trio_token=token)
            except (trio.RunFinishedError, trio.Cancelled):
                return  # the node is stopping
            if totals is not None:
                with suppress(LedgerError):  # a disk that cannot be read leaves its figures out
                    current = {**current, "payments": totals()}
            yield from collect_metrics(current)

    return NodeCollector()
