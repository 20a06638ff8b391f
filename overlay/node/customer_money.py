"""A customer's money: the guard's purse before circuits are built over it, and the budget.

The tabs are `overlay.node.money`'s, the limits `payments.budget`'s; this joins them to the client's pool and
says in a sentence why there is no service.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol

import trio

from overlay.logs import get_logger
from overlay.node.io.boot_clock import read_moment
from payments.budget import Budget, BudgetLimits
from payments.budget_clock import BudgetClock, KeptTime, Moment
from payments.errors import ChainError, LedgerError
from payments.tab import CloseReason

if TYPE_CHECKING:
    from overlay.config.model import PaymentsConfig
    from overlay.links.link import Link
    from overlay.node.money import Money

READY_TIMEOUT_S = 4.0
"""How long a build waits for the guard's purse; opening one takes longer, and then the build says so."""
LOOK_S = 0.25
PRICE_SPAN_S = 3660.0
"""What the price of a gigabyte is judged over, to the bucket."""
SAVE_S = 10.0
"""Between writes of what was spent; a crash forgets as much of when it was spent, not that it was."""
_NOTE = "budget"

log = get_logger("money")


@dataclass(slots=True)
class _Kept:
    """What the ledger keeps of a budget's use."""

    spent: dict[int, dict[int, tuple[int, int, int]]]
    worth: dict[str, int]
    """Of each purse by its payee, as counted in `spent`."""
    ticket_wei: int
    time: KeptTime | None = None


class CustomerHost(Protocol):
    """What the customer's money asks of its node."""

    def end_for_budget(self, sentence: str) -> None:
        """End every circuit: the customer wants no more spent."""


class CustomerMoney:
    """Of one client. `run` in a nursery."""

    def __init__(
        self,
        settings: PaymentsConfig,
        money: Money,
        host: CustomerHost,
        read_clocks: Callable[[], Moment] = read_moment,
    ) -> None:
        """Limits come from `settings`; what was spent before from the ledger. Raises LedgerError."""
        self._money = money
        self._host = host
        kept = _decode(money.ledger.get_note(_NOTE))
        self.budget = Budget(_limits(settings), kept.spent)
        self._kept = kept
        self._read_clocks = read_clocks
        self._clock = BudgetClock(kept.time, read_clocks())
        self._carried: dict[Link, tuple[int, int]] = {}
        self._changed = trio.Event()
        self._lower_price: tuple[float, BudgetLimits] | None = None
        self.stopped = self.budget.explain(self.now(), kept.ticket_wei) or ""
        """Why nothing is carried, as a sentence; empty while the budget allows it."""

    def now(self) -> float:
        """The budget's time, in seconds."""
        return self._clock.now(self._read_clocks())

    def use_limits(self, settings: PaymentsConfig) -> None:
        """Obey other limits from now on: the customer changed them while the client runs.

        A lower price holds for the choice of paths at once, but is held against what was paid only when the
        last hour's paths were chosen by it: else it would stop all traffic for an hour.
        """
        limits, old = _limits(settings), self.budget.limits.per_gb_wei
        self._lower_price = None
        if limits.per_gb_wei is not None and (old is None or old > limits.per_gb_wei):
            self._lower_price = self.now() + PRICE_SPAN_S, limits
            limits = replace(limits, per_gb_wei=old)
        self.budget.limits = limits

    def on_payable(self) -> None:
        """A purse became ready, or cannot be."""
        # It gives no ticket before it knows what the budget leaves.
        self.look()
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def make_payable(self, link: Link, price_wei: int) -> str | None:
        """Have the guard's purse ready for a circuit of that price; why it is not, as a sentence, or None."""
        if price_wei == 0:
            return None
        if self.stopped:
            return self.stopped
        sentence = None
        with trio.move_on_after(READY_TIMEOUT_S):
            while link.end is None:
                sentence = self._money.explain_unpayable(link, price_wei, trio.current_time())
                if sentence is not None and not self._money.is_filling(link):
                    return f"the guard cannot be paid: {sentence}"
                if self._money.is_payable(link):
                    return None
                changed = self._changed
                with trio.move_on_after(0.05):
                    await changed.wait()
        return f"the guard cannot be paid yet: {sentence or 'it has not taken our purse'}"

    async def run(self) -> None:
        """Keep the budget until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._prove_time)
            await self._keep()

    async def _prove_time(self) -> None:
        """After a reboot ask the chain how long the machine was off: the wall clock alone is not believed."""
        while self._clock.needs_proof:
            try:
                self._clock.prove(float((await self._money.chain.block()).time_s))
                self.look()
            except ChainError:
                await trio.sleep(SAVE_S)

    async def _keep(self) -> None:
        save_at = trio.current_time() + SAVE_S
        while True:
            await trio.sleep(LOOK_S)
            self.look()
            if trio.current_time() >= save_at:
                save_at = trio.current_time() + SAVE_S
                await trio.to_thread.run_sync(self.save)

    def look(self) -> None:
        """Note what was paid since the last look, and let no more be paid than the budget leaves."""
        now = self.now()
        if self._lower_price is not None and now >= self._lower_price[0]:
            self.budget.limits, self._lower_price = self._lower_price[1], None
        wei = packets = cost = ticket_wei = 0
        links = self._money.desk.links
        for link, tabs in links.items():
            if tabs.paying is None or not tabs.paying.is_open:
                continue
            payee, worth = tabs.paying.payee.hex(), tabs.paying.worth_wei
            ticket_wei = max(ticket_wei, tabs.paying.ticket_wei)
            wei += max(0, worth - self._kept.worth.get(payee, worth))
            self._kept.worth[payee] = worth
            meter = self._money.meters(link)[1]
            old = self._carried.get(link, (meter.packets, meter.charged_wei))
            packets += meter.packets - old[0]
            cost += meter.charged_wei - old[1]
            self._carried[link] = (meter.packets, meter.charged_wei)
        for gone in [link for link in self._carried if link not in links]:
            del self._carried[gone]
        if wei or packets:
            self.budget.spend(now, wei, packets, cost)
        left = self.budget.left_wei(now)
        self._money.allow(left)
        # Less than a ticket's worth would stall traffic without a word. It outlasts the circuits, which end
        # now: else they would come back, to end again.
        self._kept.ticket_wei = ticket_wei or self._kept.ticket_wei
        stopped = self.budget.explain(now, self._kept.ticket_wei) or ""
        if stopped and not self.stopped:
            log.warning("budget reached", reason=stopped)
            self.stopped = stopped
            self._host.end_for_budget(stopped)
            self.save()
        elif self.stopped and not stopped:
            log.info("budget free again")
        self.stopped = stopped

    def save(self) -> None:
        """Write down what was spent; a disk that refuses is told by the ledger's other writers."""
        try:
            self._kept.spent = self.budget.memory()
            self._kept.time = self._clock.keep(self._read_clocks())
            self._money.ledger.put_note(_NOTE, json.dumps(asdict(self._kept)))
        except LedgerError as error:
            log.warning("the budget's use is not kept", reason=str(error))


def _limits(settings: PaymentsConfig) -> BudgetLimits:
    return BudgetLimits(settings.budget_per_hour_wei, settings.budget_per_day_wei, settings.budget_per_gb_wei)


def end_code(reason: CloseReason) -> str:
    """What a relay's money code on a circuit's end says, for the user."""
    return _ENDS.get(reason, "it and its neighbour disagree about money")


_ENDS = {
    CloseReason.UNPAID: "it was not paid in time",
    CloseReason.DISPUTE: "it and its neighbour count differently what was carried",
    CloseReason.PURSE_EMPTY: "the purse that pays it, or that it pays from, is used up",
    CloseReason.PURSE_BUSY: "the purse that pays it is in use elsewhere",
}


def _decode(note: str | None) -> _Kept:
    """What `save` wrote. A damaged note counts as nothing spent: the ledger itself is checked elsewhere."""
    try:
        content = json.loads(note or "{}")
        spent = {
            int(span): {
                int(number): (int(wei), int(packets), int(cost))
                for number, (wei, packets, cost) in buckets.items()
            }
            for span, buckets in content.get("spent", {}).items()
        }
        worth = {str(payee): int(wei) for payee, wei in content.get("worth", {}).items()}
        return _Kept(spent, worth, int(content.get("ticket_wei", 1)), _decode_time(content.get("time")))
    except (ValueError, TypeError, AttributeError, KeyError):
        return _Kept({}, {}, 1)


def _decode_time(content: object) -> KeptTime | None:
    if not isinstance(content, dict):
        return None  # A note of before the budget had a time of its own: it used the wall clock's.
    moment = content["moment"]
    read = Moment(str(moment["boot_id"]), float(moment["boot_s"]), float(moment["unix_s"]))
    return KeptTime(float(content["budget_s"]), read)
