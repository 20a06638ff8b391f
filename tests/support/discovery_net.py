"""Discovery over real QUIC links on the loopback device: nodes that have links, and no circuits."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from overlay.config.model import Config, RelayConfig
from overlay.descriptor import Address, Descriptor, SignedDescriptor, sign_descriptor
from overlay.directory import Directory
from overlay.gossip.messages import is_gossip
from overlay.gossip.roots import Member, RootList
from overlay.identity import Identity
from overlay.links.io.endpoint import Endpoint, open_endpoint
from overlay.links.link import Link
from overlay.node.discovery import Discovery
from overlay.node.publishing import Publisher


class StaticSource:
    """A root list that a test changes."""

    def __init__(self, roots: RootList) -> None:
        self.roots = roots
        self.problem = ""
        self._changed = trio.Event()

    async def load(self) -> RootList:
        return self.roots

    async def run(self, changed) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            changed(self.roots)

    def change(self, roots: RootList) -> None:
        self.roots = roots
        self._changed.set()


class MiniNode:
    """The host of one Discovery, and the handler of its links."""

    def __init__(
        self,
        config: Config,
        source: StaticSource,
        nursery: trio.Nursery,
        *,
        identity: Identity | None,
        publishes: bool = False,
    ) -> None:
        self.identity = identity
        self.config = config
        self.endpoint: Endpoint
        self.directory = Directory()
        self.roots = RootList()
        self.links: dict[bytes, Link] = {}
        self.applied = 0
        own = b"" if identity is None else identity.node_id
        self.discovery = Discovery(config, self, source, nursery, own=own)
        self.lifetime_s = 86400
        self.publisher = (
            Publisher(config, self.discovery, self.describe, nursery, identity=own) if publishes else None
        )

    @property
    def store(self):
        return self.discovery.gossip.store

    def describe(
        self, addresses: tuple[Address, ...], *, sequence: int, lifetime_s: float
    ) -> SignedDescriptor:
        assert self.identity is not None
        now_s = int(time.time())
        return sign_descriptor(
            self.identity,
            Descriptor(
                identity=self.identity.node_id,
                sequence=sequence,
                published_s=now_s,
                expires_s=now_s + int(lifetime_s),
                addresses=addresses,
                onion_key=bytes(32),
            ),
        )

    # the host
    def find_link(self, node_id: bytes) -> Link | None:
        return self.links.get(node_id)

    def use_directory(self, directory: Directory, roots: RootList) -> None:
        self.directory, self.roots = directory, roots
        self.applied += 1

    def may_close(self, link: Link) -> bool:
        return True

    # the handler
    def on_link_up(self, link: Link) -> None:
        if link.peer is not None:
            self.links[link.peer] = link
        self.discovery.on_link_up(link)

    def on_link_closed(self, link: Link, code: int, reason: str) -> None:
        if link.peer is not None and self.links.get(link.peer) is link:
            del self.links[link.peer]
        self.discovery.on_link_closed(link)

    def on_control(self, link: Link, message: bytes) -> None:
        if is_gossip(message):
            self.discovery.on_control(link, message)

    def on_datagrams(self, link: Link, frames: list[bytes]) -> None: ...
    def on_stream(self, link: Link, stream_id: int, chunks: list[bytes], fin: bool) -> None: ...
    def on_stream_reset(self, link: Link, stream_id: int, code: int) -> None: ...
    def on_writable(self, link: Link) -> None: ...
    def on_batch_end(self) -> None: ...


def identities(count: int) -> list[Identity]:
    return [Identity(b"discovery" + number.to_bytes(23, "big")) for number in range(count)]


@asynccontextmanager
async def open_node(
    folder: Path,
    source: StaticSource,
    *,
    identity: Identity | None = None,
    publishes: bool = False,
    host: str = "127.0.0.1",
    advertise: Sequence[Address] = (),
    start: bool = True,
    relay: dict | None = None,
    port: int = 0,
    limits=None,
) -> AsyncIterator[MiniNode]:
    """One node; its state is in `folder`. It advertises where it listens, unless told otherwise."""
    async with trio.open_nursery() as nursery:
        config = replace(Config(), state_dir=folder)
        node = MiniNode(config, source, nursery, identity=identity, publishes=publishes)
        role = "customer" if identity is None else "relay"
        async with open_endpoint((host, port), identity, node, role=role, limits=limits) as endpoint:
            node.endpoint = endpoint
            bound = Address(*endpoint.addresses[0])
            node.config = replace(
                config,
                relay=RelayConfig(listen=(bound,), advertise=tuple(advertise), **(relay or {})),
            )
            if node.publisher is not None:
                node.publisher._config = node.config
            await node.discovery.load()
            if start:
                node.discovery.start()
                if node.publisher is not None:
                    nursery.start_soon(node.publisher.run)
            yield node
            node.discovery.save()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_nodes(
    folder: Path, count: int, *, publishes: bool = True, extra: Sequence[Member] = (), limits=None
) -> AsyncIterator[tuple[list[MiniNode], StaticSource]]:
    """A network: every node is on the root list, with the address that it listens on."""
    async with AsyncExitStack() as stack:
        source = StaticSource(RootList())
        nodes = []
        for number, identity in enumerate(identities(count)):
            state = folder / f"n{number}"
            state.mkdir(mode=0o700)
            nodes.append(
                await stack.enter_async_context(
                    open_node(
                        state, source, identity=identity, publishes=publishes, start=False, limits=limits
                    )
                )
            )
        source.roots = RootList([*map(member_of, nodes), *extra], "a test")
        for node in nodes:
            await node.discovery.load()
            node.discovery.start()
            if node.publisher is not None:
                node.discovery._nursery.start_soon(node.publisher.run)
        yield nodes, source


def member_of(node: MiniNode) -> Member:
    assert node.identity is not None
    return Member(node.identity.node_id, b"", 0, (Address(*node.endpoint.addresses[0]),))


async def until(condition, seconds: float = 30.0) -> None:
    """Wait for a condition; a failed assertion after `seconds`."""
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.01)
    assert condition(), "it did not happen in time"
