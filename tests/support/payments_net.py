"""Two tabs, an ordered control stream with delay, an engine's meter and a link that loses packets."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from payments import formats
from payments.books import Domain
from payments.keys import PurseKey
from payments.payee_tab import PayeeLimits, PayeeTab
from payments.payer_tab import PayerLimits, PayerTab
from payments.state import EMPTY, PurseState
from payments.tab import (
    CloseCircuits,
    Counts,
    Credit,
    CutOff,
    Dispute,
    GaveUp,
    Load,
    Output,
    Send,
    Store,
    TopUp,
    Warn,
)
from payments.validator import PurseView

DOMAIN = Domain(31337, b"\xc0" * 20)
PAYEE = b"\x02" * 20
NODE = b"\x0e" * 32
KEY = PurseKey(b"\x11" * 32)
PRICE = 1000
VIEW = PurseView(deposited_wei=10**12)


class Net:
    """Steps of 10 ms; control and data take `delay_steps` each way."""

    def __init__(
        self,
        *,
        seed: int = 1,
        loss: float = 0.0,
        delay_steps: int = 3,
        limit_packets: int = 2000,
        payee_window_packets: int = 500,
        payer_state: PurseState = EMPTY,
        payee_state: PurseState = EMPTY,
        payer_view: PurseView = VIEW,
        payee_view: PurseView = VIEW,
        tickets_per_message: int = 1024,
        store_steps: int = 1,
        start_credit_wei: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay = delay_steps
        self.step = 0
        self.price = PRICE
        self.store_steps: int | None = store_steps
        self.payee_view = payee_view
        self.payee_ledger = payee_state
        self.payer_ledger = payer_state
        self.limit_wei = limit_packets * PRICE
        self.payer = PayerTab(
            KEY,
            DOMAIN,
            PAYEE,
            NODE,
            PayerLimits(self.limit_wei, tickets_per_message=tickets_per_message),
            payer_state,
            payer_view,
        )
        self.payee = PayeeTab(
            DOMAIN,
            PAYEE,
            NODE,
            PayeeLimits(payee_window_packets * PRICE, start_credit_wei=start_credit_wei),
            b"\x77" * 32,
        )
        self.to_payee: deque[tuple[int, bytes]] = deque()
        self.to_payer: deque[tuple[int, bytes]] = deque()
        self.stores: deque[tuple[int, Store]] = deque()
        self.packets_forward: deque[int] = deque()
        self.packets_backward: deque[tuple[int, bool]] = deque()
        self.credit = 0
        self.held_up = 0
        self.waiting = False
        self.paid_forward = self.paid_backward = 0
        self.payee_counts = Counts()
        self.payer_counts = Counts()
        self.disputes: list[Dispute] = []
        self.closed: list[CloseCircuits] = []
        self.cut: list[CutOff] = []
        self.top_ups: list[TopUp] = []
        self.warnings: list[Warn] = []
        self.gave_up: list[int] = []
        self.payer_answers = True
        self.answer_ratio = 1.0
        self.change_report: Callable[[formats.Report], formats.Report] = lambda report: report
        self.most_prepaid = 0

    @property
    def now(self) -> float:
        return self.step * 0.01

    def start(self) -> None:
        self.from_payee(self.payee.start(self.now))
        self.run(4 * self.delay + 4)
        self.from_payer(self.payer.set_price(self.price, self.now))

    def from_payee(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(message):
                    if message[0] == formats.KIND_REPORT:
                        report = formats.decode_message(message, PAYEE)
                        assert isinstance(report, formats.Report)
                        message = formats.encode_report(self.change_report(report))
                    self.to_payer.append((self.step + self.delay, message))
                case Credit(wei):
                    assert wei > 0
                    self.credit += wei
                    self.waiting = False
                case Load():
                    self.from_payee(self.payee.on_loaded(self.payee_ledger, self.payee_view, self.now))
                case Store():
                    if self.store_steps is not None:
                        self.stores.append((self.step + self.store_steps, output))
                case _:
                    self.note(output)

    def from_payer(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(message):
                    self.to_payee.append((self.step + self.delay, message))
                case Store(_, state):
                    self.payer_ledger = state
                case _:
                    self.note(output)
        self.most_prepaid = max(self.most_prepaid, self.payer.prepaid_wei)

    def note(self, output: Output) -> None:
        match output:
            case Dispute():
                self.disputes.append(output)
            case CloseCircuits():
                self.closed.append(output)
            case CutOff():
                self.cut.append(output)
            case TopUp():
                self.top_ups.append(output)
            case GaveUp(wei):
                self.gave_up.append(wei)
            case Warn():
                self.warnings.append(output)

    def forward(self, packets: int) -> None:
        """The payer sends packets; each counts as due when it leaves."""
        for _ in range(packets):
            if self.rng.random() >= self.loss:
                self.packets_forward.append(self.step + self.delay)
        c = self.payer_counts
        self.payer_counts = Counts(c.forward + packets, c.backward, c.spent_wei + packets * self.price)

    def backward(self, packets: int, junk: bool = False) -> int:
        """The payee carries packets back as far as there is credit; returns how many."""
        carried = 0
        for _ in range(packets):
            if not self.charge():
                break
            carried += 1
            self.paid_backward += 1
            c = self.payee_counts
            self.payee_counts = Counts(c.forward, c.backward + 1, c.spent_wei)
            if self.rng.random() >= self.loss:
                self.packets_backward.append((self.step + self.delay, junk))
        return carried

    def charge(self) -> bool:
        if self.credit < self.price:
            self.held_up += 1
            self.waiting = True
            return False
        self.credit -= self.price
        c = self.payee_counts
        self.payee_counts = Counts(c.forward, c.backward, c.spent_wei + self.price)
        return True

    def run(self, steps: int, forward: int = 0, backward: int = 0, junk: bool = False) -> None:
        for _ in range(steps):
            self.step += 1
            if forward:
                self.forward(forward)
            if backward:
                self.backward(backward, junk)
            while self.packets_forward and self.packets_forward[0] <= self.step:
                self.packets_forward.popleft()
                if self.charge():
                    self.paid_forward += 1
                    c = self.payee_counts
                    self.payee_counts = Counts(c.forward + 1, c.backward, c.spent_wei)
            while self.packets_backward and self.packets_backward[0][0] <= self.step:
                _, bad = self.packets_backward.popleft()
                if not bad:
                    c = self.payer_counts
                    self.payer_counts = Counts(c.forward, c.backward + 1, c.spent_wei + self.price)
            while self.stores and self.stores[0][0] <= self.step:
                _, store = self.stores.popleft()
                self.payee_ledger = store.state
                self.from_payee(self.payee.on_stored(store.sequence, self.now))
            while self.to_payee and self.to_payee[0][0] <= self.step:
                self.from_payee(self.payee.on_message(self.to_payee.popleft()[1], self.now))
            while self.to_payer and self.to_payer[0][0] <= self.step:
                message = self.to_payer.popleft()[1]
                outputs = self.payer.on_message(message, self.now)
                if self.payer_answers:
                    self.from_payer(outputs)
            self.from_payee(self.payee.on_meter(self.payee_counts, self.now, self.waiting))
            outputs = self.payer.on_meter(self.payer_counts, self.now)
            if self.payer_answers:
                self.from_payer(outputs)
            for machine, carry in ((self.payee, self.from_payee), (self.payer, self.from_payer)):
                due = machine.next_timeout()
                if due is not None and due <= self.now:
                    carry(machine.handle_timeout(self.now))
