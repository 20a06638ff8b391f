"""Gossip machines joined in memory: a clock that jumps to the next event, links with a delay."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable

from overlay.descriptor import Address, Descriptor, SignedDescriptor, sign_descriptor
from overlay.gossip.limits import GossipLimits
from overlay.gossip.machine import Gossip
from overlay.gossip.roots import Member, RootList
from overlay.gossip.types import Changed, Close, Handed, Output, Seen, Send
from overlay.identity import Identity

UNIX_S = 1_800_000_000.0
LIFETIME_S = 86_400


def identity_of(number: int) -> Identity:
    return Identity(b"gossip" + number.to_bytes(26, "big"))


def address_of(number: int) -> Address:
    """Each in a /16 of its own, as far as there are any."""
    return Address(f"{10 + number // 250 % 200}.{number % 250 + 1}.{number // 50_000}.1", 4433)


def describe(number: int, *, sequence: int = 1, **changes) -> SignedDescriptor:
    identity = identity_of(number)
    fields = {
        "identity": identity.node_id,
        "sequence": sequence,
        "published_s": int(UNIX_S),
        "expires_s": int(UNIX_S) + LIFETIME_S,
        "addresses": (address_of(number),),
        "onion_key": bytes(32),
        "previous_onion_key": b"p" * 32,
        "exit_policy_summary": "accept 20-23,43,53,79-81,88,110,143,194,220,389,443,464,531,543-544,993-995",
        "role_bits": 3,
        "country": "SE",
        "software_version": "0.1.0",
    }
    return sign_descriptor(identity, Descriptor(**{**fields, **changes}))


def member(number: int, **changes) -> Member:
    fields = {
        "identity": identity_of(number).node_id,
        "payee": b"",
        "stake_wei": 0,
        "addresses": (address_of(number),),
    }
    return Member(**{**fields, **changes})


def roots_of(numbers: Iterable[int]) -> RootList:
    return RootList([member(number) for number in numbers], "a test")


class Node:
    """One machine and its links, by peer number."""

    def __init__(self, net: Net, number: int, roots: RootList, *, is_customer: bool, skew_s: float) -> None:
        self.net = net
        self.number = number
        self.identity = None if is_customer else identity_of(number)
        self.skew_s = skew_s
        self.alive = True
        self.links: dict[int, Wire] = {}
        self.seen: list[str] = []
        self.handed: list[Handed] = []
        self.changes = 0
        self.closed: list[tuple[int, str]] = []
        self.gossip = Gossip(
            roots,
            random.Random(number),
            net.now,
            own=b"" if self.identity is None else self.identity.node_id,
            is_customer=is_customer,
            limits=net.limits,
        )
        self.timer_at = float("inf")

    @property
    def unix_s(self) -> float:
        return UNIX_S + self.net.now + self.skew_s

    @property
    def store(self):
        return self.gossip.store

    def publish(self, entry: SignedDescriptor) -> None:
        self.do(self.gossip.publish(entry.encoded, self.net.now, self.unix_s))

    def load(self, entries: Iterable[SignedDescriptor]) -> None:
        self.do(self.gossip.load([entry.encoded for entry in entries], self.net.now, self.unix_s))

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(peer, message):
                    wire = self.links.get(peer)
                    if wire is not None:
                        self.net.carry(wire, self, message)
                case Close(peer, _code, reason):
                    self.closed.append((peer, reason))
                    wire = self.links.get(peer)
                    if wire is not None:
                        self.net.cut(wire)
                case Changed():
                    self.changes += 1
                case Seen(_peer, ip):
                    self.seen.append(ip)
                case Handed():
                    self.handed.append(output)
        self.net.schedule(self)


class Wire:
    """One link."""

    def __init__(self, near: Node, near_key: int, far: Node, far_key: int) -> None:
        self.ends = {near: near_key, far: far_key}
        self.near, self.far = near, far
        self.up = True
        self.bytes = 0

    def other(self, node: Node) -> Node:
        return self.far if node is self.near else self.near


class Net:
    """All nodes, one clock."""

    def __init__(self, *, delay_s: float = 0.02, seed: int = 1, limits: GossipLimits | None = None) -> None:
        self.now = 0.0
        self.delay_s = delay_s
        self.limits = limits or GossipLimits()
        self.random = random.Random(seed)
        self.nodes: list[Node] = []
        self.messages = 0
        self.bytes = 0
        self.filter: Callable[[Node, Node, bytes], bytes | None] | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._keys = itertools.count(1)

    def node(self, number: int, roots: RootList, *, is_customer: bool = False, skew_s: float = 0.0) -> Node:
        node = Node(self, number, roots, is_customer=is_customer, skew_s=skew_s)
        self.nodes.append(node)
        self.schedule(node)
        return node

    def join(self, near: Node, far: Node, *, is_chosen: bool = True) -> Wire:
        """A link that `near` dialled (and has chosen)."""
        wire = Wire(near, next(self._keys), far, next(self._keys))
        for node, chosen in ((near, is_chosen), (far, False)):
            key = wire.ends[node]
            other = wire.other(node)
            node.links[key] = wire
            identity = None if other.identity is None else other.identity.node_id
            ip = address_of(other.number).ip
            node.do(node.gossip.handle_link_up(key, identity, ip, is_chosen=chosen, now=self.now))
        return wire

    def cut(self, wire: Wire) -> None:
        if not wire.up:
            return
        wire.up = False
        for node, key in wire.ends.items():
            node.links.pop(key, None)
            if node.alive:
                node.do(node.gossip.handle_link_closed(key, self.now))

    def kill(self, node: Node) -> None:
        node.alive = False
        for wire in list(node.links.values()):
            self.cut(wire)

    def mesh(self, nodes: list[Node], degree: int) -> None:
        """Each dials `degree` others at random."""
        for node in nodes:
            for other in self.random.sample([one for one in nodes if one is not node], degree):
                self.join(node, other)

    def carry(self, wire: Wire, sender: Node, message: bytes) -> None:
        self.messages += 1
        self.bytes += len(message)
        wire.bytes += len(message)
        receiver = wire.other(sender)
        if self.filter is not None:
            passed = self.filter(sender, receiver, message)
            if passed is None:
                return
            message = passed
        self.at(self.now + self.delay_s, lambda: self._deliver(wire, receiver, message))

    def inject(self, wire: Wire, sender: Node, message: bytes) -> None:
        """Bytes that the sender's machine would not send."""
        self.carry(wire, sender, message)

    def _deliver(self, wire: Wire, receiver: Node, message: bytes) -> None:
        if wire.up and receiver.alive:
            key = wire.ends[receiver]
            receiver.do(receiver.gossip.handle_message(key, message, self.now, receiver.unix_s))

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def schedule(self, node: Node) -> None:
        due = node.gossip.next_timeout()
        if due < node.timer_at:
            node.timer_at = due
            self.at(due, lambda: self._fire(node, due))

    def _fire(self, node: Node, due: float) -> None:
        if not node.alive or node.timer_at != due:
            return
        node.timer_at = float("inf")
        node.do(node.gossip.handle_timeout(self.now, node.unix_s))

    def run(self, until_s: float, *, stop: Callable[[], bool] | None = None) -> float:
        """Let time pass to `until_s`, or until `stop` holds; return the time."""
        while self._events and self._events[0][0] <= until_s:
            if stop is not None and stop():
                return self.now
            when, _, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what()
        if stop is None or not stop():
            self.now = max(self.now, until_s)
        return self.now
