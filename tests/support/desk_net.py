"""Desks of several nodes joined in memory: links with delay, meters, ledgers, a chain, circuits that carry.

A node's `Desk` is the real one; what its driver does is done here at once (or late, or not at all) by plain
dictionaries. Times are steps of 10 ms.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

from overlay.tabs.desk import Act, Desk
from overlay.tabs.earning import EarningTerms
from overlay.tabs.paying import PayingTerms
from overlay.tabs.types import Fund, LoadOwn, Look, Reading, Side
from payments.books import Domain
from payments.keys import PurseKey
from payments.state import EMPTY, PurseState
from payments.tab import CloseCircuits, Credit, CutOff, Dispute, Load, Ready, Send, Store, Warn
from payments.validator import PurseView

DOMAIN = Domain(31337, b"\xc0" * 20)
STEP_S = 0.01
DEPOSIT_WEI = 10**9
_numbers = itertools.count(1)


@dataclass(eq=False)
class End:
    """One node's end of a link."""

    owner: DeskNode
    peer: bytes | None
    payee: bytes
    other: End | None = None
    closed: bool = False
    inbox: deque[tuple[int, bytes]] = field(default_factory=deque)
    counts: dict[Side, list[int]] = field(
        default_factory=lambda: {"earning": [0, 0, 0, 0, 0], "paying": [0, 0, 0, 0, 0]}
    )
    """By side: forward, backward, charged wei, credit wei, refused packets."""
    heard_step: int = 0
    number: int = field(default_factory=lambda: next(_numbers))

    def reading(self, side: Side) -> Reading:
        forward, backward, charged, credit, refused = self.counts[side]
        return Reading(forward, backward, charged, credit if side == "earning" else None, refused)


@dataclass(eq=False)
class Circuit:
    """From node to node: `ends` are (payer's end, payee's end) of each link, `prices` per link."""

    ends: list[tuple[End, End]]
    prices: list[int]
    up: bool = True


class Chain:
    """Purses by (payer, payee): deposited, claimed, unlocking."""

    def __init__(self) -> None:
        self.purses: dict[tuple[bytes, bytes], PurseView] = {}

    def view(self, payer: bytes, payee: bytes) -> PurseView:
        return self.purses.get((payer, payee), PurseView())

    def deposit(self, payer: bytes, payee: bytes, wei: int) -> None:
        old = self.view(payer, payee)
        self.purses[(payer, payee)] = PurseView(max(old.deposited_wei, wei), old.claimed_wei)


class DeskNode:
    """One node: its desk, and a driver that carries out acts at once."""

    def __init__(
        self,
        net: DeskNet,
        name: int,
        *,
        price: int,
        window_wei: int = 10**7,
        start_credit_wei: int = 0,
        key: PurseKey | None = None,
    ) -> None:
        self.net = net
        self.node_id = bytes([name]) * 32
        self.key = key or PurseKey(bytes([name]) * 32)
        self.payee = self.key.address
        self.price = price
        self.start_credit_wei = start_credit_wei
        self.ledger: dict[tuple[str, bytes], PurseState] = {}
        self.store_steps: int | None = 1
        self.stores: deque[tuple[int, End, int, tuple[str, bytes], PurseState]] = deque()
        self.funds = True
        self.log: list[object] = []
        self.ends: list[End] = []
        self.window_wei = window_wei
        self.make_desk()

    def make_desk(self) -> None:
        """A fresh process: memory is gone, the ledger is not."""
        self.desk: Desk[End] = Desk(
            EarningTerms(DOMAIN, self.payee, self.node_id, self.price) if self.price else None,
            PayingTerms(DOMAIN, self.key, self.window_wei, DEPOSIT_WEI),
            lambda end, side: end.reading(side),
            lambda end: (self.net.step - end.heard_step) * STEP_S,
        )

    @property
    def now(self) -> float:
        return self.net.step * STEP_S

    def do(self, acts: list[Act[End]]) -> None:
        for act in acts:
            self.act(act)

    def act(self, act: Act[End]) -> None:
        end = act.link
        match act.output:
            case Send(message):
                if end.other is not None and not end.closed:
                    end.other.inbox.append((self.net.step + self.net.delay, message))
            case Credit(wei):
                assert wei > 0
                end.counts["earning"][3] += wei
            case Load(payer):
                state = self.ledger.get(("earning", payer), EMPTY)
                view = self.net.chain.view(payer, self.payee)
                tabs = self.desk.links[end]
                start = tabs.earning.start_credit_wei if tabs.earning is not None else 0
                view = PurseView(view.deposited_wei, view.claimed_wei, view.unlocking, start)
                self.do(self.desk.on_loaded(end, payer, state, view, self.now))
            case LoadOwn(payee):
                state = self.ledger.get(("paying", payee), EMPTY)
                view = self.net.chain.view(self.key.address, payee)
                self.do(self.desk.on_own_loaded(end, state, view, self.now))
            case Fund(payee, wei):
                self.log.append(act.output)
                if self.funds:
                    self.net.chain.deposit(self.key.address, payee, wei)
                    view = self.net.chain.view(self.key.address, payee)
                    self.do(self.desk.on_own_purse(payee, view, self.now))
            case Look(payer):
                self.desk.on_purse(payer, self.net.chain.view(payer, self.payee))
            case Store(sequence, state):
                tabs = self.desk.links.get(end)
                if act.side == "paying":
                    self.ledger[("paying", end.payee)] = state
                elif self.store_steps is not None:
                    payer = self.payers[end]
                    entry = (self.net.step + self.store_steps, end, sequence, ("earning", payer), state)
                    self.stores.append(entry)
            case CloseCircuits() | CutOff():
                self.log.append(act.output)
                self.net.end_circuits(end, act.side)
                if isinstance(act.output, CutOff):
                    self.net.close(end)
            case Dispute() | Warn() | Ready():
                self.log.append(act.output)

    @property
    def payers(self) -> dict[End, bytes]:
        return {
            end: tabs.earning.tab.payer
            for end, tabs in self.desk.links.items()
            if tabs.earning is not None and tabs.earning.tab.payer is not None
        } | self.net.old_payers

    def tick(self) -> None:
        while self.stores and self.stores[0][0] <= self.net.step:
            _, end, sequence, key, state = self.stores.popleft()
            self.ledger[key] = state
            self.do(self.desk.on_stored(end, sequence, self.now))
        for end in list(self.ends):
            while end.inbox and end.inbox[0][0] <= self.net.step and not end.closed:
                data = end.inbox.popleft()[1]
                end.heard_step = self.net.step
                self.do(self.desk.on_message(end, self.net.tamper(end, data), self.now))
        for end in list(self.ends):
            self.do(self.desk.on_readings(end, 2 * self.net.delay * STEP_S, self.now))

    def reasons(self, kind: type = CutOff) -> list[object]:
        return [entry.reason for entry in self.log if isinstance(entry, kind)]  # type: ignore[attr-defined]


class DeskNet:
    """All nodes, links and circuits."""

    def __init__(self, delay: int = 2) -> None:
        self.step = 0
        self.delay = delay
        self.chain = Chain()
        self.nodes: list[DeskNode] = []
        self.circuits: list[Circuit] = []
        self.old_payers: dict[End, bytes] = {}
        self.tamper = lambda end, data: data
        self.inflate: dict[End, float] = {}

    def node(self, name: int, **options: object) -> DeskNode:
        node = DeskNode(self, name, **options)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def link(self, payer: DeskNode, payee: DeskNode, *, customer: bool = False) -> tuple[End, End]:
        near = End(payer, payee.node_id, payee.payee)
        far = End(payee, None if customer else payer.node_id, b"" if customer else payer.payee)
        near.other, far.other = far, near
        near.heard_step = far.heard_step = self.step
        for end, start in ((near, payer.start_credit_wei), (far, payee.start_credit_wei)):
            end.owner.ends.append(end)
            start = start if end.peer is not None else 0
            challenge = bytes([end.number & 255, end.number >> 8 & 255]) * 16
            end.owner.do(
                end.owner.desk.link_up(end, end.peer, end.payee, challenge, start, self.step * STEP_S)
            )
        return near, far

    def close(self, end: End) -> None:
        for side in (end, end.other):
            if side is None or side.closed:
                continue
            side.closed = True
            for circuit in [c for c in self.circuits if any(side in pair for pair in c.ends)]:
                self.drop(circuit)
            payer = side.owner.payers.get(side)
            if payer is not None:
                self.old_payers[side] = payer
            side.owner.do(side.owner.desk.link_closed(side, self.step * STEP_S))
            if side in side.owner.ends:
                side.owner.ends.remove(side)

    def kill(self, node: DeskNode) -> None:
        """The process is gone without a word: what was not written is lost."""
        for end in list(node.ends):
            node.desk.links.pop(end, None)
            node.ends.remove(end)
            end.closed = True
            for circuit in [c for c in self.circuits if any(end in pair for pair in c.ends)]:
                self.drop(circuit)
            if end.other is not None and not end.other.closed:
                other = end.other
                other.closed = True
                payer = other.owner.payers.get(other)
                if payer is not None:
                    self.old_payers[other] = payer
                other.owner.do(other.owner.desk.link_closed(other, self.step * STEP_S))
                if other in other.owner.ends:
                    other.owner.ends.remove(other)
        node.stores.clear()
        node.make_desk()

    def circuit(self, ends: list[tuple[End, End]], prices: list[int]) -> Circuit:
        circuit = Circuit(ends, prices)
        self.circuits.append(circuit)
        now = self.step * STEP_S
        nodes = [ends[0][0].owner, *(far.owner for _, far in ends)]
        for place, node in enumerate(nodes):
            front = ends[place - 1][1] if place else None
            back = ends[place][0] if place < len(ends) else None
            price_in = prices[place - 1] if place else 0
            price_out = prices[place] if place < len(ends) else 0
            node.do(node.desk.circuit_up(circuit, front, price_in, back, price_out, now))
        return circuit

    def drop(self, circuit: Circuit) -> None:
        if circuit not in self.circuits:
            return
        self.circuits.remove(circuit)
        circuit.up = False
        nodes = [circuit.ends[0][0].owner, *(far.owner for _, far in circuit.ends)]
        for node in nodes:
            node.do(node.desk.circuit_down(circuit, self.step * STEP_S))

    def end_circuits(self, end: End, side: Side) -> None:
        at = 0 if side == "paying" else 1
        for circuit in [c for c in self.circuits if any(pair[at] is end for pair in c.ends)]:
            self.drop(circuit)

    def carry(self, circuit: Circuit, forward: int = 0, backward: int = 0) -> int:
        """Packets through all links, one by one; how many got through."""
        through = 0
        for direction in [0] * forward + [1] * backward:
            pairs = list(zip(circuit.ends, circuit.prices, strict=True))
            for (near, far), price in pairs if direction == 0 else reversed(pairs):
                if near.closed or far.closed or not circuit.up:
                    break
                meter = far.counts["earning"]
                cost = int(price * self.inflate.get(far, 1.0))
                if meter[3] < cost:
                    if direction == 0:
                        near.counts["paying"][direction] += 1
                        near.counts["paying"][2] += price
                    meter[4] += 1
                    break
                meter[3] -= cost
                meter[2] += cost
                meter[direction] += 1
                near.counts["paying"][direction] += 1
                near.counts["paying"][2] += price
            else:
                through += 1
        return through

    def run(self, steps: int, circuit: Circuit | None = None, forward: int = 0, backward: int = 0) -> int:
        """Let time pass, with traffic in each step; how many packets got through."""
        through = 0
        for _ in range(steps):
            self.step += 1
            if circuit is not None and circuit.up:
                through += self.carry(circuit, forward, backward)
            for node in self.nodes:
                node.tick()
        return through
