"""Engines of both kinds on real links of the loopback, with a pair of sockets for each TUN."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

import trio
from engine_net import CLIENT, DNS, ROOTS
from udp_relay import UdpRelay, udp_relay

from exit.denied import DenyList
from exit.io.tun import Tun
from exit.policy import PolicyTable, parse_policy
from overlay.engine.gate import ExitGate, GateCounters
from overlay.engine.interface import FlowFault, InnerAddresses, Price
from overlay.engine.io.choice import make_engine, open_links
from overlay.engine.io.tun_loop import run_tun
from overlay.engine.meters import Meter
from overlay.identity import Identity
from overlay.links.limits import LinkLimits

HAS_NATIVE = importlib.util.find_spec("hopfare_dataplane") is not None
PLAIN = ["python", "native"] if HAS_NATIVE else ["python"]
KINDS = [*PLAIN, "threads"] if HAS_NATIVE else PLAIN
"""Engines; "threads" is the native one with several."""
TUN_MTU = 1400
THREADS = 3


class ChainNode:
    """One engine on real links, with a record of what it told the node above."""

    def __init__(
        self,
        name: str,
        kind: str,
        memory_limit_bytes: int = 64 << 20,
        threads: int = THREADS,
        *,
        has_offload: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.identity = Identity(name.encode().ljust(32, b"_"))
        self.links: list = []
        self.lost: list[tuple[object, FlowFault]] = []
        self.closed: list[tuple[int, str]] = []
        self.echoes: list[bytes] = []
        self.low: list = []
        self.controls: list[bytes] = []
        self.gate_counters = GateCounters()
        self.table = PolicyTable(
            parse_policy("accept *:*"), DenyList(), dns_addresses=[DNS.v4, DNS.v6 or b""]
        )
        self.engine = make_engine(
            "native" if kind == "threads" else kind,
            self,
            memory_limit_bytes=memory_limit_bytes,
            threads=threads if kind == "threads" else 1,
            gate=lambda addresses: ExitGate(self.table, addresses, DNS, self.gate_counters),
        )
        if kind != "python":
            self.engine.set_policy(self.table, DNS)
        ours, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self.tun):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.tun.setblocking(False)
        self.tun_file = Tun.from_fd(ours.detach(), has_offload, TUN_MTU)
        self.endpoint: object = None

    def on_link_up(self, link) -> None:
        self.links.append(link)

    def on_link_closed(self, link, code, reason) -> None:
        self.closed.append((code, reason))

    def on_control(self, link, message) -> None:
        self.controls.append(message)

    def on_flow_lost(self, flow, fault) -> None:
        self.lost.append((flow, fault))

    def on_echo_reply(self, flow, token) -> None:
        self.echoes.append(token)

    def on_meter_low(self, meter) -> None:
        self.low.append(meter)

    def settle(self, limit_s: float = 60) -> None:
        """Return when a native engine's threads have carried out all that they were told, or will before they
        read another packet: circuits are entered here without the messages that would come in the same order.
        """
        if self.kind == "python":
            return
        crate = self.engine.crate
        for _ in range(2):  # the first of these turns may have begun before
            before, ends = crate.thread_figures(), time.monotonic() + limit_s
            self.engine.expire()
            while any(now[0] == then[0] for now, then in zip(crate.thread_figures(), before, strict=True)):
                assert time.monotonic() < ends, "a thread of the engine stands still"
                time.sleep(0.0002)

    def read_tun(self) -> list[bytes]:
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self.tun.recv(70000))
        return packets


class Chain:
    """A client, relays and an exit in one process, each with an engine of its own kind."""

    def __init__(self, nodes: Sequence[ChainNode]) -> None:
        self.nodes = list(nodes)
        self.hops = len(nodes) - 1
        self.links: list[tuple[object, object]] = []
        self.meters = [Meter() for _ in nodes]
        self.onward = [Meter() for _ in nodes]
        self.relay: UdpRelay | None = None
        self.client = None
        self.relays: list = []
        self.exit = None

    def add_circuit(
        self,
        circuit_id: int = 1,
        roots: Sequence[bytes] = ROOTS,
        addresses: InnerAddresses = CLIENT,
        suite: int = 2,
        *,
        settles: bool = True,
    ):
        """Enter a circuit at every node, from the exit to the client; with ``settles`` all know it then."""
        hops, nodes = self.hops, self.nodes
        self.exit = nodes[-1].engine.exit(
            roots[hops - 1], suite, self.links[-1][1], circuit_id, Price(self.meters[-1], 1), addresses
        )
        self.relays = [
            nodes[i].engine.relay(
                roots[i - 1],
                suite,
                self.links[i - 1][1],
                circuit_id,
                Price(self.meters[i], 1),
                self.links[i][0],
                circuit_id,
                Price(self.onward[i], 1),
            )
            for i in range(hops - 1, 0, -1)
        ][::-1]
        self.client = nodes[0].engine.client(
            roots[:hops], suite, self.links[0][0], circuit_id, Price(self.meters[0], 1), addresses
        )
        for node in self.nodes if settles else ():
            node.settle()
        return self.client

    async def until(self, done: Callable[[], bool], limit_s: float = 60) -> None:
        with trio.fail_after(limit_s):
            while not done():
                await trio.sleep(0.002)


@contextlib.asynccontextmanager
async def open_chain(
    kinds: Sequence[str], *, relayed: bool = False, limits: LinkLimits | None = None, **options
) -> AsyncIterator[Chain]:
    """Nodes of these kinds in a row, linked; the first is the customer. `relayed`: a UDP relay is between it
    and the next.
    """
    chain = Chain([ChainNode(f"n{i}", kind, **options) for i, kind in enumerate(kinds)])
    async with contextlib.AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for i, node in enumerate(chain.nodes):
            stack.callback(node.tun.close)
            stack.callback(node.tun_file.close)
            is_client = i == 0
            node.endpoint = await stack.enter_async_context(
                open_links(
                    [("127.0.0.1", 0)],
                    None if is_client else node.identity,
                    node.engine,
                    role="customer" if is_client else "relay",
                    limits=limits,
                )
            )
            if i in (0, len(kinds) - 1):
                node.engine.attach_tun(node.tun_file, by_source=is_client)

                async def pump(node=node, is_client=is_client):
                    await run_tun(node.engine, node.tun_file, node.endpoint.run_batch, may_rest=is_client)

                nursery.start_soon(pump)
        for near, far in zip(chain.nodes, chain.nodes[1:], strict=False):
            address = far.endpoint.addresses[0]
            if relayed and near is chain.nodes[0]:
                chain.relay = await stack.enter_async_context(udp_relay(address))
                address = chain.relay.address
            link = await near.endpoint.dial(address, far.identity.node_id)
            await chain.until(lambda far=far: any(not found.is_dialler for found in far.links))
            chain.links.append((link, next(found for found in far.links if not found.is_dialler)))
        try:
            yield chain
        finally:
            nursery.cancel_scope.cancel()


def mixtures(hops: int) -> list[tuple[str, ...]]:
    """All of one kind, and each kind at each place among the other."""
    rows = [(kind,) * (hops + 1) for kind in KINDS]
    if len(PLAIN) > 1:
        for odd in PLAIN:
            base = PLAIN[1 - PLAIN.index(odd)]
            rows += [tuple(odd if i == at else base for i in range(hops + 1)) for at in range(hops + 1)]
    return rows
