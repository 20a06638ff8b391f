"""A customer and a chain of relays under anything that may happen: nobody loses more than a window."""

from __future__ import annotations

from desk_net import DeskNet, DeskNode, End
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from overlay.tabs.earning import WINDOW_PACKETS
from payments.state import EMPTY
from payments.tab import CloseReason, Dispute

PRICES = [2200, 1100]
WINDOW_WEI = 2000 * PRICES[0]


class Tabs(RuleBasedStateMachine):
    """Customer - guard - exit. Links fall, processes die, disks stall, packets come in bursts."""

    @initialize()
    def begin(self) -> None:
        self.net = DeskNet(delay=1)
        self.customer = self.net.node(1, price=0, window_wei=WINDOW_WEI)
        self.guard = self.net.node(2, price=1000, window_wei=WINDOW_WEI)
        self.exit = self.net.node(3, price=1000, window_wei=WINDOW_WEI, start_credit_wei=10**5)
        self.ends: list[tuple[End, End] | None] = [None, None]
        self.circuits: list[object] = []
        self.carried_wei: dict[tuple[bytes, bytes], int] = {}
        self.crashes = 0
        self.connect()

    def nodes(self) -> list[DeskNode]:
        return [self.customer, self.guard, self.exit]

    @rule()
    def connect(self) -> None:
        for place in (0, 1):
            pair = self.ends[place]
            if pair is None or pair[0].closed or pair[1].closed:
                payer, payee = self.nodes()[place : place + 2]
                self.ends[place] = self.net.link(payer, payee, customer=place == 0)
        self.net.run(12)

    @rule(dearer=st.integers(1, 4))
    def build(self, dearer: int) -> None:
        ends = [pair for pair in self.ends if pair is not None]
        if len(self.net.circuits) < 4 and not any(end.closed for pair in ends for end in pair):
            self.net.circuit(ends, [price * dearer for price in PRICES])
            self.net.run(3)

    @rule(forward=st.integers(0, 12), backward=st.integers(0, 12), steps=st.integers(1, 40))
    def carry(self, forward: int, backward: int, steps: int) -> None:
        for _ in range(steps):
            for circuit in list(self.net.circuits):
                if circuit.up:
                    self.net.carry(circuit, forward, backward)
            self.net.run(1)

    @rule()
    def drop_a_circuit(self) -> None:
        if self.net.circuits:
            self.net.drop(self.net.circuits[0])

    @rule(place=st.integers(0, 1))
    def lose_a_link(self, place: int) -> None:
        pair = self.ends[place]
        if pair is not None and not pair[0].closed:
            self.net.close(pair[0])

    @rule(which=st.integers(0, 2), disk=st.booleans())
    def kill(self, which: int, disk: bool) -> None:
        """kill -9; for a payer its disk may be gone as well."""
        node = self.nodes()[which]
        self.crashes += 1
        self.net.kill(node)
        if disk and node is self.customer:
            node.ledger.clear()
        self.net.run(2)

    @rule(which=st.integers(1, 2), steps=st.sampled_from([None, 1, 30]))
    def stall_a_disk(self, which: int, steps: int | None) -> None:
        self.nodes()[which].store_steps = steps

    @rule()
    def wait(self) -> None:
        self.net.run(120)

    @invariant()
    def nobody_loses_more_than_a_window(self) -> None:
        for node in self.nodes():
            for end, tabs in node.desk.links.items():
                earning = tabs.earning
                if earning is not None and earning.tab.is_open:
                    meter = end.counts["earning"]
                    assert meter[3] >= 0
                    assert earning.tab.spent_wei <= earning.tab.worth_wei, "nothing is carried unpaid"
                    stored = node.ledger.get(("earning", earning.tab.payer or b""), EMPTY)
                    risk = (earning.tab.spent_wei - stored.worth_wei) if stored is not EMPTY else 0
                    assert risk <= WINDOW_PACKETS * 4 * PRICES[0], "a crash costs a window"
                if tabs.paying is not None and tabs.paying.tab is not None:
                    assert tabs.paying.tab.prepaid_wei <= WINDOW_WEI
                    assert (
                        tabs.paying.worth_wei
                        <= self.net.chain.view(node.key.address, tabs.paying.payee).deposited_wei + 10**5
                    )

    @invariant()
    def honest_sides_never_dispute(self) -> None:
        for node in self.nodes():
            assert not [entry for entry in node.log if isinstance(entry, Dispute)]
            assert CloseReason.FORGERY not in node.reasons()
            assert CloseReason.REFUSED not in node.reasons()

    def teardown(self) -> None:
        """Whatever happened: when all is well again, a new circuit carries."""
        for node in self.nodes():
            node.store_steps = 1
        for circuit in list(self.net.circuits):
            self.net.drop(circuit)
        for _ in range(6):
            self.net.run(450)
            self.connect()
        ends = [pair for pair in self.ends if pair is not None]
        circuit = self.net.circuit(ends, PRICES)
        self.net.run(40)
        assert self.net.run(100, circuit, 1, 1) > 100


TestTabs = Tabs.TestCase
TestTabs.settings = settings(max_examples=25, stateful_step_count=30)
