"""One neighbour that pays us: its tab, the prices of its circuits, and what happens when no money comes.

Owns the decision that packets wait for money, also while no purse is attached. The account itself is
`payments.payee_tab`'s. docs/protocol/payments.md, "Tabs on links".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlay.tabs.prices import Prices
from overlay.tabs.types import Look, Reading, TabOutput
from payments import formats
from payments.books import Domain
from payments.payee_tab import PayeeLimits, PayeeTab
from payments.refusals import Refusal
from payments.state import PurseState
from payments.tab import CloseCircuits, CloseReason, Counts, Credit, Send
from payments.validator import PurseView

WINDOW_PACKETS = 16_384
"""What we may have carried beyond what is on our disk, in packets of the dearest circuit (23 MB): all that a
crash can cost. A write to disk for every half of it is a few a second on a fast link."""
LARGEST_TRAIN_PACKETS = 48
"""A neighbour whose credit covers the largest train of its dearest circuit is not kept waiting by money."""
FIRST_LOOK_S = 1.0
LONGEST_LOOK_S = 60.0
"""Between looks at the chain for a purse that is attached and holds too little: its opening is on the way, or
never comes."""
_REFUSED_FOR_DEPOSIT = bytes((formats.KIND_REFUSED, Refusal.DEPOSIT))


@dataclass(frozen=True, slots=True)
class EarningTerms:
    """What is the same for all neighbours: where purses are, who we are, and what we ask."""

    domain: Domain
    payee: bytes
    node: bytes
    price_wei: int
    ask_timeout_s: float = 10.0


class Earning:
    """Machine for one link. All times are seconds of one steady clock."""

    def __init__(self, terms: EarningTerms, challenge: bytes, start_credit_wei: int) -> None:
        """Wait for a purse. `challenge`: 32 fresh random bytes; `start_credit_wei`: what this neighbour may
        use before its purse is confirmed.
        """
        self._terms = terms
        self.start_credit_wei = start_credit_wei
        self._window_wei = WINDOW_PACKETS * max(1, terms.price_wei)
        self.tab = PayeeTab(
            terms.domain,
            terms.payee,
            terms.node,
            PayeeLimits(
                window_wei=self._window_wei,
                minimum_value_wei=max(1, terms.price_wei),
                start_credit_wei=start_credit_wei,
                ask_timeout_s=terms.ask_timeout_s,
            ),
            challenge,
        )
        self.prices = Prices()
        self.reading = Reading()
        self.is_waiting = False
        """Whether packets wait for money."""
        self._unattached_until: float | None = None
        self._view = PurseView()
        self._look_at: float | None = None
        self._look_s = FIRST_LOOK_S

    def start(self, now: float) -> list[TabOutput]:
        """The link is up: show our terms."""
        return [*self.tab.start(now)]

    def on_message(self, data: bytes, reading: Reading, now: float) -> list[TabOutput]:
        """A payment message for the earning side, with what the engine has counted by now."""
        return self._check(self.tab.on_message(data, now), reading, now)

    def on_loaded(self, state: PurseState, view: PurseView, reading: Reading, now: float) -> list[TabOutput]:
        """Ledger and chain answered a `Load`."""
        self._unattached_until = None
        self._view = view
        if view.deposited_wei <= state.worth_wei:
            self._look_at = now + self._look_s
        return self._check(self.tab.on_loaded(state, view, now), reading, now)

    def on_busy(self) -> list[TabOutput]:
        """The purse is attached to another link, or held by another process."""
        return [*self.tab.on_busy()]

    def on_unavailable(self) -> list[TabOutput]:
        """The purse cannot be looked up."""
        return [*self.tab.on_unavailable()]

    def on_stored(self, sequence: int, reading: Reading, now: float) -> list[TabOutput]:
        """The ledger has written a `Store`."""
        return self._check(self.tab.on_stored(sequence, now), reading, now)

    def on_purse(self, view: PurseView) -> None:
        """The chain's view of the attached purse changed."""
        if view.deposited_wei > self._view.deposited_wei:
            self._look_at = None
            self._look_s = FIRST_LOOK_S
        self._view = view
        self.tab.on_purse(view)

    def add_circuit(self, packet_wei: int, now: float) -> list[TabOutput]:
        """A circuit comes in from the neighbour."""
        self.prices.add(packet_wei)
        self._window_wei = max(self._window_wei, WINDOW_PACKETS * packet_wei)
        return [*self.tab.set_window(self._window_wei, now)]

    def remove_circuit(self, packet_wei: int) -> None:
        """It is gone."""
        self.prices.remove(packet_wei)
        if not self.prices.dearest_wei:
            self.is_waiting = False
            self._unattached_until = None

    def low_mark_wei(self) -> int:
        """Credit under which a notice of the meter is wanted."""
        return LARGEST_TRAIN_PACKETS * self.prices.dearest_wei

    def on_reading(self, reading: Reading, now: float) -> list[TabOutput]:
        """The engine's counts: after a notice of the meter, and now and then."""
        return self._check([], reading, now)

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` is due, or None."""
        known = (self.tab.next_timeout(), self._unattached_until, self._look_at)
        times = [t for t in known if t is not None]
        return min(times, default=None)

    def handle_timeout(self, reading: Reading, now: float) -> list[TabOutput]:
        """Do what has become due; early or double calls do nothing."""
        outputs = self._check(self.tab.handle_timeout(now), reading, now)
        if self._unattached_until is not None and now >= self._unattached_until:
            self._unattached_until = None
            self.is_waiting = False
            outputs.append(
                CloseCircuits(
                    CloseReason.UNPAID, f"no purse was shown within {self._terms.ask_timeout_s:g} s of need"
                )
            )
        if self._look_at is not None and now >= self._look_at and self.tab.payer is not None:
            self._look_s = min(2 * self._look_s, LONGEST_LOOK_S)
            self._look_at = now + self._look_s
            outputs.append(Look(self.tab.payer))
        return outputs

    def close(self) -> list[TabOutput]:
        """The link is gone."""
        return [*self.tab.close()]

    def _check(self, outputs: Sequence[TabOutput], reading: Reading, now: float) -> list[TabOutput]:
        """Add what follows from the counts, and a look at the chain when a purse seemed too small."""
        found: list[TabOutput] = list(outputs)
        # A train that waits is not refused again: it goes on waiting until there is credit.
        if reading.refused_packets > self.reading.refused_packets:
            self.is_waiting = True
        self.reading = reading
        given = sum(output.wei for output in found if isinstance(output, Credit))
        credit = (reading.credit_wei or 0) + given
        if given or credit >= self.low_mark_wei() or not self.prices.dearest_wei:
            self.is_waiting = False
        if self.tab.is_open:
            counts = Counts(reading.forward, reading.backward, reading.charged_wei)
            found += self.tab.on_meter(counts, now, self.is_waiting)
        elif self.is_waiting and self._unattached_until is None:
            self._unattached_until = now + self._terms.ask_timeout_s
        payer = self.tab.payer
        if payer is not None and any(
            isinstance(o, Send) and o.message.startswith(_REFUSED_FOR_DEPOSIT) for o in found
        ):
            found.append(Look(payer))
            if self._look_at is None:
                self._look_at = now + self._look_s
        return found
