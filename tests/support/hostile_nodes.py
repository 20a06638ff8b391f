"""Relay and client nodes between fake links: what a node does with what a hostile neighbour says."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import trio

from circuits.building.messages import ExitAddresses, ExitHere
from circuits.building.onion_keys import OnionKeys
from circuits.building.relay import BecomeExit, Built, Extend, Refuse, RelayBuild
from circuits.guards import GuardStore
from overlay.config.model import ClientConfig, Config, NodeConfig
from overlay.descriptor import Address, Descriptor, sign_descriptor
from overlay.directory import Directory
from overlay.identity import Identity
from overlay.links.io.endpoint import DialError
from overlay.messages import Build, Message, decode_control, encode_control
from overlay.node.client import ClientNode
from overlay.node.relay import RelayNode

_CONFIG = replace(Config(), node=replace(NodeConfig(), engine="python"))
"""The native engine wants real links and a real TUN."""


@dataclass(eq=False)
class StubLink:
    """A link that remembers what is sent on it and ends when told to."""

    peer: bytes | None = None
    is_dialler: bool = False
    peer_address: tuple[str, int] = ("10.9.0.1", 4433)
    rtt_s: float = 0.01
    last_receive_s: float = 0.0
    is_up: bool = True
    end: object = None
    sent: list[Message] = field(default_factory=list)
    closed: tuple[int, str] | None = None

    def send_control(self, message: bytes) -> None:
        if self.end is None:
            self.sent.append(decode_control(message))

    def close(self, code: int = 0, reason: str = "") -> None:
        self.closed = self.closed or (code, reason)
        self.end = self.end or (code, reason)

    def unanswered_s(self, now: float) -> float:
        return 0.0

    def send_datagrams(self, frames: list[bytes]) -> int:
        return len(frames)

    def datagram_room(self) -> int:
        return 64

    def open_stream(self) -> int:
        return 2

    def send_stream(self, stream_id: int, data: bytes, fin: bool = False) -> None: ...
    def reset_stream(self, stream_id: int, code: int) -> None: ...
    def stop_stream(self, stream_id: int, code: int) -> None: ...
    def stream_backlog(self, stream_id: int | None = None) -> int:
        return 0


class StubEndpoint:
    """Dials by a table: a link, or the reason why there is none."""

    def __init__(self) -> None:
        self.answers: dict[bytes, StubLink | str] = {}
        self.dialled: list[bytes] = []
        self.handler: Any = None
        self.links: list[StubLink] = []

    async def dial(self, address: tuple[str, int], expected: bytes) -> StubLink:
        self.dialled.append(expected)
        await trio.lowlevel.checkpoint()
        answer = self.answers.get(expected, "no answer in time")
        if isinstance(answer, str):
            raise DialError(address, 7, answer)
        link = StubLink(expected, True, address)
        self.links.append(link)
        self.handler.on_link_up(link)
        return link

    def flush(self) -> None: ...


class StubTun:
    has_offload = False
    mtu = 1400

    def write(self, raw: bytes) -> bool:
        return True


class StubNamespace:
    def __init__(self) -> None:
        self.tun = StubTun()
        self.helper_pid = 1
        self.addresses: set[str] = set()
        self.closed = trio.Event()

    async def add_addresses(self, v4: str, v6: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.addresses.add(v4)

    async def remove_addresses(self, v4: str, v6: str | None = None) -> None:
        self.addresses.discard(v4)

    async def set_default_source(self, v4: str | None, v6: str | None = None) -> None: ...


class Peer:
    """A relay as others see it: identity, onion keys, and the relay's half of builds."""

    def __init__(self, number: int, *, is_exit: bool) -> None:
        self.identity = Identity(bytes([number]) * 32)
        self.keys = OnionKeys.generate(time.time(), os.urandom)
        self.build = RelayBuild(self.identity.node_id, self.keys, (1, 2), os.urandom)
        now = int(time.time())
        self.signed = sign_descriptor(
            self.identity,
            Descriptor(
                identity=self.identity.node_id,
                sequence=1,
                published_s=now,
                expires_s=now + 3600,
                addresses=(Address(f"10.{number}.0.1", 4433),),
                onion_key=self.keys.current.public,
                role_bits=3 if is_exit else 1,
                exit_policy_summary="accept 1-65535" if is_exit else "reject 1-65535",
                suites=(1, 2),
            ),
        )


def make_peers(relays: int = 4, exits: int = 2) -> list[Peer]:
    return [Peer(n + 1, is_exit=n >= relays) for n in range(relays + exits)]


def directory_of(peers: list[Peer]) -> Directory:
    return Directory([peer.signed for peer in peers])


def answer_build(
    peers: list[Peer], records: bytes, give: Callable[[ExitAddresses], ExitAddresses] = lambda given: given
) -> bytes:
    """What relays would answer to a Build, all of them played here; `give` is the exit's own mischief.

    The records of the Built. Raises AssertionError when they would refuse.
    """
    chain: list[tuple[Peer, Extend]] = []
    by_id = {peer.identity.node_id: peer for peer in peers}
    now = trio.current_time()
    peer = None
    for candidate in peers:
        outcome = candidate.build.handle_build(records, now, time.time())
        if isinstance(outcome, BecomeExit | Extend | Refuse):
            peer = candidate
            break
    while isinstance(outcome, Extend):
        assert peer is not None
        chain.append((peer, outcome))
        peer = by_id[outcome.next.node_id]
        outcome = peer.build.handle_build(outcome.records, now, time.time())
    assert isinstance(outcome, BecomeExit), outcome
    assert peer is not None
    wanted = outcome.wanted
    assert isinstance(wanted, ExitHere)
    given = ExitAddresses(
        wanted.ipv4 or IPv4Address("100.64.9.9"),
        wanted.ipv6,
        IPv4Address("100.64.0.1"),
        IPv6Address("fd68:6f70:6661::1") if wanted.ipv6 else None,
    )
    built = peer.build.accept_exit(outcome.pending, give(given))
    assert built is not None
    for relay, extend in reversed(chain):
        accepted = relay.build.handle_built(extend.pending, built.records)
        assert isinstance(accepted, Built)
        built = accepted
    return built.records


@asynccontextmanager
async def relay_node(peers: list[Peer]) -> AsyncIterator[RelayNode]:
    """The node of peers[0], not an exit."""
    async with trio.open_nursery() as nursery:
        me = peers[0]
        node = RelayNode(_CONFIG, me.identity, directory_of(peers), me.build, as_exit=False, nursery=nursery)
        endpoint = StubEndpoint()
        endpoint.handler = node.engine
        node.endpoint = endpoint  # type: ignore[assignment]
        yield node
        node.switch.close(trio.current_time())
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_node(
    peers: list[Peer], folder: Path, *, hops: int = 3
) -> AsyncIterator[tuple[ClientNode, StubEndpoint]]:
    """A client that keeps its pool; every relay can be dialled, none answers a build by itself."""
    async with trio.open_nursery() as nursery:
        config = replace(_CONFIG, client=replace(ClientConfig(), hops=hops), state_dir=folder)
        node = ClientNode(
            config,
            directory_of(peers),
            GuardStore(),
            folder / "guards.json",
            StubNamespace(),  # type: ignore[arg-type]
            nursery,
            lambda text: None,
            frozenset({4}),
        )
        endpoint = StubEndpoint()
        endpoint.handler = node.engine
        endpoint.answers = {peer.identity.node_id: StubLink() for peer in peers}
        node.endpoint = endpoint  # type: ignore[assignment]
        nursery.start_soon(node.keep_pool)
        nursery.start_soon(node.way_out.run)
        yield node, endpoint
        nursery.cancel_scope.cancel()


def builds_on(link: StubLink) -> list[Build]:
    return [message for message in link.sent if isinstance(message, Build)]


def deliver(node: Any, link: StubLink, message: Message) -> None:
    node.engine.on_control(link, encode_control(message))
    node.engine.on_batch_end()


async def until(check: Any, what: str, timeout_s: float = 5.0) -> Any:
    with trio.move_on_after(timeout_s):
        while not (found := check()):
            await trio.sleep(0.001)
        return found
    raise AssertionError(f"{what} did not happen")
