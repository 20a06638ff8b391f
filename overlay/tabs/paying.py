"""One neighbour that we pay: its terms, our tab with it, our circuits' prices, and how full the purse is.

Owns when a purse is attached (when the first paid circuit needs it), when it should be filled, and whether
a further circuit can be paid. The account itself is `payments.payer_tab`'s; sending transactions is the
driver's. docs/protocol/payments.md, "Tabs on links".

    IDLE --want--> LOADING --on_own_loaded--> (tab: terms, attach, open) --cut off--> over
"""

from __future__ import annotations

from dataclasses import dataclass

from overlay.tabs.prices import Prices
from overlay.tabs.types import Fund, LoadOwn, Reading, TabOutput
from payments import formats
from payments.books import Domain
from payments.errors import DecodeError
from payments.keys import PurseKey
from payments.payer_tab import PayerLimits, PayerTab
from payments.state import PurseState
from payments.tab import SLOW_START_PACKETS, CloseReason, Counts, CutOff, Output, TopUp
from payments.validator import PurseView

NEED_FLOOR_S = 0.3
"""A window covers two round trips and this: counts are read, tickets made and written to disk in between."""
LOAD_AGAIN_S = 5.0
"""After a purse of ours that ledger or chain could not tell of."""
FUND_AGAIN_S = 30.0
"""After a transaction that could not be sent, or was lost."""
NEED_KEPT_S = 10.0
"""How long a burst's rate keeps the window large."""
REFILL_SHARE = 4
"""A purse is filled when less than one part in this of a deposit is left: before it runs dry, as a
transaction takes a minute."""


@dataclass(frozen=True, slots=True)
class PayingTerms:
    """What is the same for all neighbours: where purses are, our key, and the operator's limits."""

    domain: Domain
    key: PurseKey
    max_window_wei: int
    deposit_wei: int


class Paying:
    """Machine for one link. All times are seconds of one steady clock."""

    def __init__(self, terms: PayingTerms, node: bytes, payee: bytes) -> None:
        """The neighbour `node` (32 bytes) wants its money at `payee` (20 bytes; empty: it takes none)."""
        self._terms = terms
        self.node = node
        self.payee = payee
        self.tab: PayerTab | None = None
        self.view = PurseView()
        self.prices = Prices()
        self.reading = Reading()
        self.trouble = ""
        """Why it cannot be paid, as a sentence; empty while nothing is wrong."""
        self._is_loading = False
        self._is_over = False
        self._shown_terms: bytes | None = None
        self._start_credit_wei = 0
        self._ticket_wei = 0
        self._rate_wei_per_s = 0.0
        self._rate_at: float | None = None
        self._asked_deposit_wei = 0
        self._is_needed = False
        self._fund_again_at = 0.0
        self._load_again_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether tickets can be given."""
        return self.tab is not None and self.tab.is_open

    @property
    def is_wanted(self) -> bool:
        """Whether the purse was ever needed on this link."""
        return self._is_loading or self.tab is not None

    @property
    def is_in_use(self) -> bool:
        """Whether paid circuits go out on this link, or the purse is just being made ready for one."""
        if self.prices.dearest_wei:
            return True
        return self.is_wanted and not self.is_open and not self._is_over

    def learn_payee(self, payee: bytes) -> None:
        """The neighbour's descriptor, come or changed since the link is up, names `payee`. What is paid
        already goes on as it is.
        """
        if payee and not self.is_wanted:
            self.payee, self.trouble = payee, ""

    def want(self, now: float) -> list[TabOutput]:
        """A paid circuit is about to go out to the neighbour: have the purse ready."""
        self._is_needed = True
        if self._is_over or self.is_wanted:
            return self._refill(now)
        if now < self._load_again_at:
            return []
        if not self.payee:
            self.trouble = "its descriptor names no account to pay to"
            return []
        self._is_loading = True
        return [LoadOwn(self.payee)]

    def explain(self) -> str | None:
        """Why a further circuit could not be paid at the moment, as a sentence; None if it can, or may."""
        if self.tab is None:
            return self.trouble or None
        if self.view.unlocking:
            return "what is in the purse for it is being taken back; it can be paid again after that"
        if not self.tab.is_open or self.left_wei > 0:
            return None
        return self.trouble or "the purse for it is being filled, which takes a few blocks of the chain"

    @property
    def is_filling(self) -> bool:
        """Whether the purse is being filled, and nothing else is in the way."""
        return not self.trouble and self._asked_deposit_wei > self.view.deposited_wei

    @property
    def ticket_wei(self) -> int:
        """What a ticket is worth at present; 0 while no circuit needs one."""
        return self._ticket_wei if self.tab is None else self.tab.ticket_wei

    @property
    def is_payable(self) -> bool:
        """Whether tickets can be given at once."""
        return self.is_open and self.left_wei > 0

    @property
    def left_wei(self) -> int:
        """What the purse, as far as the payee trusts it, still holds for new tickets."""
        worth = 0 if self.tab is None else self.tab.worth_wei
        return max(self.view.deposited_wei, self._start_credit_wei) - worth

    def on_message(self, data: bytes, reading: Reading, now: float) -> list[TabOutput]:
        """A payment message for the paying side, with what the engine has counted by now."""
        if self._is_over:
            return []
        if self.tab is None:
            # Terms come first and once; they wait until a circuit needs them.
            if self._shown_terms is not None or not data or data[0] != formats.KIND_TERMS:
                return self._over(CutOff(CloseReason.FORGERY, "a payment message that was not asked for"))
            self._shown_terms = data
            return []
        self._read_terms(data)
        outputs = self._meter(reading, now)
        was_open = self.tab.is_open
        outputs += self._mind(self.tab.on_message(data, now), now)
        if self.tab.is_open and not was_open:
            outputs += self._price(now)
        return outputs

    def on_own_loaded(
        self, state: PurseState, view: PurseView, reading: Reading, now: float
    ) -> list[TabOutput]:
        """Ledger and chain answered `LoadOwn`."""
        if not self._is_loading or self._is_over:
            return []
        self._is_loading = False
        self.trouble = ""
        self.view = view
        terms = self._terms
        limits = PayerLimits(limit_wei=terms.max_window_wei)
        self.tab = PayerTab(terms.key, terms.domain, self.payee, self.node, limits, state, view)
        outputs: list[TabOutput] = []
        if self._shown_terms is not None:
            shown, self._shown_terms = self._shown_terms, None
            outputs += self.on_message(shown, reading, now)
        return [*outputs, *self._refill(now)]

    def on_own_failed(self, sentence: str, now: float) -> None:
        """`LoadOwn` or `Fund` cannot be done: ledger or chain are out of order, or a limit is reached."""
        self._is_loading = False
        self._asked_deposit_wei = 0
        self._fund_again_at = now + FUND_AGAIN_S
        self._load_again_at = now + LOAD_AGAIN_S
        self.trouble = sentence

    def on_own_purse(self, view: PurseView, now: float) -> list[TabOutput]:
        """The chain's view of our purse changed."""
        if view.deposited_wei > self.view.deposited_wei:
            self.trouble = ""
        if view.deposited_wei >= self._asked_deposit_wei:
            self._asked_deposit_wei = 0  # Else a reorganisation that takes it back would never be made good.
        self.view = view
        if self.tab is None:
            return []
        return [*self._mind(self.tab.on_purse(view, now), now), *self._refill(now)]

    def add_circuit(self, packet_wei: int, now: float) -> list[TabOutput]:
        """A circuit goes out to the neighbour."""
        self.prices.add(packet_wei)
        return self._price(now)

    def remove_circuit(self, packet_wei: int, now: float) -> list[TabOutput]:
        """It is gone."""
        self.prices.remove(packet_wei)
        return self._price(now)

    def on_reading(self, reading: Reading, rtt_s: float, now: float) -> list[TabOutput]:
        """The engine's counts, now and then, with the link's round trip."""
        outputs = self._measure(reading, rtt_s, now)
        return [*outputs, *self._meter(reading, now), *self._refill(now)]

    def allow(self, total_wei: int | None, now: float) -> list[TabOutput]:
        """The budget lets the purse's worth reach `total_wei` (None: no limit)."""
        return [] if self.tab is None else self._mind(self.tab.allow(total_wei, now), now)

    def on_junk(self, now: float) -> None:
        """A circuit on this link was ended because of packets that nobody can use."""
        if self.tab is not None:
            self.tab.on_junk(now)

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` is due, or None."""
        return None if self.tab is None else self.tab.next_timeout()

    def handle_timeout(self, now: float) -> list[TabOutput]:
        """Do what has become due; early or double calls do nothing."""
        return [] if self.tab is None else self._mind(self.tab.handle_timeout(now), now)

    def close(self) -> list[TabOutput]:
        """The link is gone."""
        self._is_over = True
        return [] if self.tab is None else [*self.tab.close()]

    def _read_terms(self, data: bytes) -> None:
        if data[:1] == _TERMS_KIND and self.tab is not None:
            try:
                terms = formats.decode_message(data, self.payee)
            except DecodeError:
                return  # The tab says so.
            if isinstance(terms, formats.Terms):
                self._start_credit_wei = terms.start_credit_wei

    def _price(self, now: float) -> list[TabOutput]:
        """Tell the tab what a ticket should be worth."""
        if self.tab is None or not self.tab.is_open:
            return []
        ticket_wei = self.prices.ticket_wei()
        if ticket_wei == self._ticket_wei:
            return []
        self._ticket_wei = ticket_wei
        return self._mind(self.tab.set_price(ticket_wei, now), now)

    def _meter(self, reading: Reading, now: float) -> list[TabOutput]:
        if self.tab is None or reading == self.reading:
            return []
        self.reading = reading
        return self._mind(
            self.tab.on_meter(Counts(reading.forward, reading.backward, reading.charged_wei), now), now
        )

    def _measure(self, reading: Reading, rtt_s: float, now: float) -> list[TabOutput]:
        """Follow the link's rate, up at once and down slowly, and tell the tab the window that it needs."""
        if self._rate_at is None or now <= self._rate_at:
            self._rate_at = now
            return []
        passed = now - self._rate_at
        self._rate_at = now
        rate = max(0, reading.charged_wei - self.reading.charged_wei) / passed
        self._rate_wei_per_s = max(rate, self._rate_wei_per_s * max(0.0, 1 - passed / NEED_KEPT_S))
        if self.tab is None:
            return []
        # Twice the rate seen: a window that only just fits the present rate would never let it rise.
        need = int(2 * self._rate_wei_per_s * (2 * rtt_s + NEED_FLOOR_S))
        floor = 2 * SLOW_START_PACKETS * self.prices.dearest_wei
        return self._mind(self.tab.set_need(max(need, floor), now), now)

    def _refill(self, now: float) -> list[TabOutput]:
        """Ask for a deposit when little is left for tickets; once for each amount."""
        if self._is_over or self.tab is None or not self._is_needed:
            return []
        terms = self._terms
        left = self.view.deposited_wei - self.tab.worth_wei
        if left >= terms.deposit_wei // REFILL_SHARE or self.view.unlocking:
            return []
        return self._fund(self.tab.worth_wei + terms.deposit_wei, now)

    def _fund(self, deposit_wei: int, now: float) -> list[TabOutput]:
        if deposit_wei <= self.view.deposited_wei or self._asked_deposit_wei > self.view.deposited_wei:
            return []  # It is there, or a transaction is under way.
        if now < self._fund_again_at:
            return []
        self._asked_deposit_wei = deposit_wei
        return [Fund(self.payee, deposit_wei)]

    def _mind(self, outputs: list[Output], now: float) -> list[TabOutput]:
        """Turn what the tab wants of the purse into a wish of ours, and note the end."""
        found: list[TabOutput] = []
        for output in outputs:
            if isinstance(output, TopUp):
                # A payee that merely sees the deposit later than we do needs no larger one.
                if output.deposit_wei > self.view.deposited_wei:
                    wanted = max(output.deposit_wei, self.worth_wei + self._terms.deposit_wei)
                    found += self._fund(wanted, now)
            else:
                found.append(output)
                if isinstance(output, CutOff):
                    self._is_over = True
        return found

    @property
    def worth_wei(self) -> int:
        """What the purse has paid in all; 0 before it is known."""
        return 0 if self.tab is None else self.tab.worth_wei

    def _over(self, cut: CutOff) -> list[TabOutput]:
        self._is_over = True
        return [cut]


_TERMS_KIND = bytes((formats.KIND_TERMS,))
