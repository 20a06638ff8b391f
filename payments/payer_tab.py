"""The paying side's account on one link: attaches a purse, keeps a window prepaid, checks counts.

Owns how much is prepaid (slow start, section 4, rule 2) and what is owed (rule 5). Does not own the budget or
the engine's counters: the driver says how much may be spent (`allow`) and what was counted (`on_meter`).

    WAITING --Terms, as expected--> ATTACHING --State, ours--> OPEN --cut off--> CLOSED

What is owed is the payee's own latest count, as far as ours supports it, plus what we counted since. Tickets
fill a window above that, which never exceeds `limit_wei`; and what was given never exceeds the payee's own
latest count by more than `limit_wei`: the most that a payee which takes the money and runs can keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from payments import formats
from payments.books import Domain, SignedBook, Ticket
from payments.digest import attach_digest, domain_separator
from payments.errors import DecodeError
from payments.keys import PurseKey
from payments.payer import Payer, Resumed
from payments.refusals import Refusal
from payments.state import EMPTY, PurseState
from payments.tab import (
    SLOW_START_PACKETS,
    TOLERANCE_SHARE,
    WRITE_OFF_SHARE,
    Asked,
    CloseCircuits,
    CloseReason,
    Concern,
    Counts,
    CutOff,
    Dispute,
    GaveUp,
    Output,
    Ready,
    Send,
    Store,
    TopUp,
    Warn,
    tolerated_wei,
)
from payments.validator import PurseView

MAX_TICKET_PACKETS = 64
"""A hash costs as much as a third of carrying a packet in a fast engine: so fast links get coarser tickets,
and what is at stake, the window, stays the same."""
_GIVE_UP_AFTER_S = 0.5
"""After a circuit was ended for its junk: by then what was under way is here, and the payee's count of it."""
_MAX_EXCUSES = 4
_FIRST_RETRY_S = 1.0
"""Wait before a book that was refused for its deposit is shown again; doubles each time."""


class _Phase(Enum):
    WAITING = 1
    ATTACHING = 2
    OPEN = 3
    CLOSED = 4


@dataclass(frozen=True, slots=True)
class PayerLimits:
    """A payer's settings. `limit_wei` is the most that may be prepaid on this link, so the most to lose."""

    limit_wei: int
    book_length: int = 1024
    tickets_per_message: int = 1024
    counts_interval_s: float = 2.0
    purse_timeout_s: float = 120.0


class PayerTab:
    """Machine for one link towards one payee. Feed it messages, meter readings, chain events and time."""

    def __init__(
        self,
        key: PurseKey,
        domain: Domain,
        payee: bytes,
        node: bytes,
        limits: PayerLimits,
        state: PurseState = EMPTY,
        purse: PurseView | None = None,
    ) -> None:
        """Wait for the payee's terms. `payee` (20 bytes) is the address in its descriptor, `node` (32) its
        identity, `state` the ledger's memory of the purse."""
        self._key = key
        self._domain = domain
        self._payee = payee
        self._node = node
        self._limits = limits
        self._machine = Payer(
            key, domain, payee, state, purse, limits.book_length, limits.tickets_per_message
        )
        self._phase = _Phase.WAITING
        self._counts = Counts()
        self._spent_before_wei = state.spent_wei
        self._owed_wei = self._confirmed_wei = state.spent_wei
        self._price_wei = 0
        self._window_wei = 0
        self._need_wei = limits.limit_wei
        self._allowed_wei: int | None = None
        self._grown_backward = 0
        self._unproved_wei = 0
        self._sequence = 0
        self._stored_wei = state.worth_wei
        self._counts_at: float | None = None
        self._purse_until: float | None = None
        self._retry_at: float | None = None
        self._retry_s = _FIRST_RETRY_S
        self._blocked_worth_wei = 0
        self._give_up_at: float | None = None
        self._given_up_wei = 0
        self._excuses = 0
        self._start_credit_wei = 0
        self._minimum_value_wei = 1

    @property
    def is_open(self) -> bool:
        """Whether the purse is attached and tickets can be given."""
        return self._phase is _Phase.OPEN

    @property
    def worth_wei(self) -> int:
        """What the purse has paid in all."""
        return self._machine.worth_wei

    @property
    def spent_wei(self) -> int:
        """What our own counts say packets cost, in all."""
        return self._spent_before_wei + self._counts.spent_wei

    @property
    def owed_wei(self) -> int:
        """What we hold to be due so far, in all."""
        return self._owed_wei

    @property
    def prepaid_wei(self) -> int:
        """What the payee would keep if it vanished now: what was paid above its own latest count."""
        return max(0, self._machine.worth_wei - self._confirmed_wei)

    @property
    def window_wei(self) -> int:
        """How much may be prepaid at present."""
        return self._window_wei

    @property
    def ticket_wei(self) -> int:
        """What a new ticket is worth: a packet of the dearest circuit while the window is small, then 4, 16
        or 64 of them, so that a window is always some 64 to 256 tickets.
        """
        packets = 1
        if self._price_wei and self._limits.tickets_per_message > 1:
            while (
                packets < MAX_TICKET_PACKETS
                and self._window_wei >= 4 * packets * SLOW_START_PACKETS * self._price_wei
            ):
                packets *= 4
        # Not in the price: a payee that names a large least ticket would have the first window prepaid whole.
        return max(packets * self._price_wei, self._minimum_value_wei) if self._price_wei else 0

    @property
    def state(self) -> PurseState:
        """What the ledger should hold now."""
        return self._machine.with_spent(self.spent_wei)

    def on_message(self, data: bytes, now: float) -> list[Output]:
        """A payment message for the payer's side came from the peer."""
        if self._phase is _Phase.CLOSED:
            return []
        try:
            message = formats.decode_message(data, self._payee)
        except DecodeError as error:
            return self._cut(CloseReason.FORGERY, str(error))
        match message:
            case formats.Report():
                return self._on_report(message, now)
            case formats.Terms():
                return self._on_terms(message)
            case formats.State():
                return self._on_state(message, now)
            case formats.Refused():
                return self._on_refused(message, now)
            case SignedBook() | Ticket() | formats.Attach() | formats.Counts():
                return self._cut(CloseReason.FORGERY, "a message for the other side")

    def set_price(self, packet_wei: int, now: float) -> list[Output]:
        """The dearest circuit on this link costs `packet_wei` a packet: the worth of new tickets.

        0 means that no circuit is left; nothing is prepaid for none.
        """
        self._price_wei = packet_wei
        self._window_wei = max(
            self._window_wei, min(SLOW_START_PACKETS * self._price_wei, self._limits.limit_wei)
        )
        return self._pay(now)

    def set_need(self, need_wei: int, now: float) -> list[Output]:
        """The link's rate and round trip ask for `need_wei` prepaid (two round trips' worth is right)."""
        self._need_wei = need_wei
        return self._pay(now)

    def allow(self, total_wei: int | None, now: float) -> list[Output]:
        """Budget and exposure let the purse's worth reach `total_wei` (None: no limit) and no more."""
        self._allowed_wei = total_wei
        return self._pay(now)

    def on_purse(self, purse: PurseView, now: float) -> list[Output]:
        """The chain's view of our purse changed."""
        self._machine.purse = PurseView(
            purse.deposited_wei,
            purse.claimed_wei,
            purse.unlocking,
            max(purse.start_credit_wei, self._start_credit_wei),
        )
        outputs: list[Output] = []
        if self._retry_at is not None:
            self._retry_at = None
            outputs += [Send(m) for m in self._machine.send_again()]
        self._purse_until = None
        self._retry_s = _FIRST_RETRY_S
        return [*outputs, *self._pay(now)]

    def on_meter(self, counts: Counts, now: float) -> list[Output]:
        """The engine's counts since the tab began: only packets that we accept as due belong in them.

        Backward packets that are junk (do not open, or belong to no flow) are not due, so a payee that floods
        us gets no more than what is prepaid.
        """
        grown = counts.spent_wei - self._counts.spent_wei
        self._counts = counts
        self._owed_wei += grown
        self._grow(grown)
        if self._counts_at is None and grown and self._phase is _Phase.OPEN:
            self._counts_at = now + self._limits.counts_interval_s
        return self._pay(now)

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` is due, or None."""
        times = [self._counts_at, self._purse_until, self._retry_at, self._give_up_at]
        return min((t for t in times if t is not None), default=None)

    def handle_timeout(self, now: float) -> list[Output]:
        """Do what has become due; early or double calls do nothing."""
        outputs: list[Output] = []
        if self._phase is not _Phase.OPEN:
            return outputs
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up_at = None
            outputs += self._give_up(now)
        if self._counts_at is not None and now >= self._counts_at:
            self._counts_at = None
            counts = formats.Counts(self._counts.forward, self._counts.backward, self.spent_wei)
            outputs += [Send(formats.encode_counts(counts)), self._store()]
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            outputs += [Send(m) for m in self._machine.send_again()]
        if self._purse_until is not None and now >= self._purse_until:
            self._purse_until = None
            outputs.append(
                CloseCircuits(CloseReason.PURSE_EMPTY, "the purse's deposit is used up and was not filled")
            )
        return outputs

    def close(self) -> list[Output]:
        """The link is gone: keep what there is."""
        was_open = self._phase is _Phase.OPEN
        self._phase = _Phase.CLOSED
        return [self._store()] if was_open else []

    def _on_terms(self, terms: formats.Terms) -> list[Output]:
        if self._phase is not _Phase.WAITING:
            return self._cut(CloseReason.FORGERY, "terms twice")
        if terms.domain != self._domain:
            return self._cut(CloseReason.OTHER_CHAIN, "the peer's purses are on another chain or contract")
        if terms.payee != self._payee:
            return self._cut(CloseReason.OTHER_PAYEE, "the peer asks to pay another address than its own")
        self._phase = _Phase.ATTACHING
        self._start_credit_wei = terms.start_credit_wei
        self._minimum_value_wei = max(1, terms.minimum_value_wei)
        view = self._machine.purse
        self._machine.purse = PurseView(
            view.deposited_wei, view.claimed_wei, view.unlocking, terms.start_credit_wei
        )
        separator = domain_separator(self._domain)
        signature = self._key.sign(attach_digest(separator, self._payee, self._node, terms.challenge))
        return [Send(formats.encode_attach(formats.Attach(self._key.address, signature)))]

    def _on_state(self, shown: formats.State, now: float) -> list[Output]:
        if self._phase is not _Phase.ATTACHING:
            return self._cut(CloseReason.FORGERY, "a state that was not asked for")
        remembered = self._machine.worth_wei
        memory = self._machine.state.book
        verdict, messages = self._machine.resume(shown.book, shown.index, shown.word)
        if verdict is Resumed.FALSE:
            return self._cut(CloseReason.FORGERY, "the payee shows a book or ticket that is not ours")
        outputs: list[Output] = []
        own = self._spent_before_wei
        if verdict is not Resumed.BEHIND:
            if shown.spent_wei > own + tolerated_wei(own, self._limits.limit_wei):
                return [
                    Dispute(Counts(0, 0, own), Counts(0, 0, shown.spent_wei)),
                    *self._cut(CloseReason.DISPUTE, "the payee counts more than it carried"),
                ]
        elif remembered and self._machine.worth_wei - remembered > self._limits.limit_wei:
            # More than one window was given since our last record: no crash of ours explains that.
            outputs.append(Warn(Concern.PURSE_ELSEWHERE))
        # Our count goes on from the payee's, so that both mean the same from here. A payee that remembers no
        # book takes the base of the one that we send again as charged.
        spent = shown.spent_wei
        if shown.book is None and memory is not None:
            spent = memory.book.base_wei
        self._spent_before_wei = min(spent, self._machine.worth_wei) - self._counts.spent_wei
        self._owed_wei = self._confirmed_wei = self.spent_wei
        self._phase = _Phase.OPEN
        outputs += [Send(m) for m in messages]
        outputs += [Ready(), *self._pay(now)]
        return outputs

    def _on_report(self, report: formats.Report, now: float) -> list[Output]:
        if self._phase is not _Phase.OPEN:
            return self._cut(CloseReason.FORGERY, "a report before the attachment")
        own = self.spent_wei
        slack = tolerated_wei(own, max(self._window_wei, SLOW_START_PACKETS * self._price_wei))
        if report.spent_wei > own + slack or report.worth_wei > self._machine.worth_wei:
            ours = Counts(self._counts.forward, self._counts.backward, own)
            theirs = Counts(report.forward, report.backward, report.spent_wei)
            return [
                Dispute(ours, theirs),
                *self._cut(CloseReason.DISPUTE, "the payee counts more than loss explains"),
            ]
        # Lost forward packets were never charged, lost backward ones were: the payee's count is the bill. Its
        # growth since the report left is covered by ours from here on; what was under way is in the next one.
        # What exceeds ours by more than lost packets explain is not paid, even before it is disputed.
        self._owed_wei = min(report.spent_wei, own + own // TOLERANCE_SHARE)
        self._confirmed_wei = min(report.spent_wei, self._machine.worth_wei)
        if self._purse_until is not None and report.worth_wei > self._blocked_worth_wei:
            self._purse_until = self._retry_at = None
        outputs: list[Output] = []
        if report.urgency == formats.URGENCY_EMPTY:
            outputs.append(Asked())
        outputs += self._pay(now, asked=report.urgency != formats.URGENCY_NONE)
        self._mind_junk(now)
        return outputs

    def on_junk(self, now: float) -> None:
        """A circuit on this link was ended because of packets that nobody can use. What it used up of the
        window may be given up, once for each such circuit.
        """
        self._excuses = min(self._excuses + 1, _MAX_EXCUSES)
        self._mind_junk(now)

    def _mind_junk(self, now: float) -> None:
        if not self._is_eaten_up:
            self._give_up_at = None
        elif self._give_up_at is None and self._excuses:
            self._give_up_at = now + _GIVE_UP_AFTER_S

    @property
    def _is_eaten_up(self) -> bool:
        """Whether more than half of the window went into packets that the payee counts and we do not owe."""
        held_back = self._allowed_wei is not None and self._allowed_wei <= self._machine.worth_wei
        is_blocked = self._retry_at is not None or self._purse_until is not None or held_back
        return not is_blocked and self._confirmed_wei - self._owed_wei > self._window_wei // 2

    def _give_up(self, now: float) -> list[Output]:
        """What was prepaid went into junk, which we do not owe: let it go, or hardly anything is carried.

        The window begins anew. A payee that made the junk itself gains no more than by taking a window and
        coming back, and is known by the circuits that break.
        """
        lost = self._confirmed_wei - self._owed_wei
        window = min(SLOW_START_PACKETS * self._price_wei, self._risk_wei - lost)
        if not self._is_eaten_up or window < self.ticket_wei:
            return []
        self._given_up_wei += lost
        self._excuses -= 1
        self._spent_before_wei += lost
        self._owed_wei += lost
        self._window_wei = window
        self._unproved_wei = 0
        return [GaveUp(lost), *self._pay(now, asked=True)]

    @property
    def _risk_wei(self) -> int:
        """What may still be lost on this link: the limit, and a twentieth of all that was carried, less what
        is lost already."""
        spare = (self.spent_wei - self._given_up_wei) // WRITE_OFF_SHARE - self._given_up_wei
        return self._limits.limit_wei + min(0, spare)

    def _on_refused(self, refused: formats.Refused, now: float) -> list[Output]:
        match refused.refusal:
            case Refusal.DEPOSIT:
                book = self._machine.state.book
                if book is None or book.book.number != refused.number or self._retry_at is not None:
                    return []
                if refused.index:
                    return self._cut(CloseReason.PURSE_EMPTY, "the purse no longer covers its tickets")
                # The payee sees less of the deposit than we do: it waits for more confirmations, or the chain
                # took a step back. Give nothing more, and show the book again later.
                self._retry_at = now + self._retry_s
                self._retry_s *= 2
                return self._want_purse(book.book.full_worth_wei, book.book.base_wei, now)
            case Refusal.BUSY:
                return self._cut(CloseReason.PURSE_BUSY, "the payee says that the purse is in use elsewhere")
            case Refusal.UNLOCKING:
                return self._cut(CloseReason.PURSE_EMPTY, "the purse is being unlocked")
            case Refusal.UNAVAILABLE:
                return self._cut(CloseReason.REFUSED, "the payee cannot look our purse up at the moment")
            case _:
                return self._cut(
                    CloseReason.REFUSED, f"the payee refuses our tickets ({refused.refusal.name.lower()})"
                )

    def _grow(self, grown_wei: int) -> None:
        """Let the window grow by what was paid for, once something has come back for it."""
        self._unproved_wei += grown_wei
        if self._counts.backward > self._grown_backward:
            self._grown_backward = self._counts.backward
            ceiling = min(self._risk_wei, max(self._need_wei, SLOW_START_PACKETS * self._price_wei))
            self._window_wei = max(self._window_wei, min(self._window_wei + self._unproved_wei, ceiling))
            self._unproved_wei = 0

    def _pay(self, now: float, asked: bool = False) -> list[Output]:
        """Fill the window up, in steps of a quarter of it so that messages stay few."""
        if self._phase is not _Phase.OPEN or not self._price_wei or self._retry_at is not None:
            return []
        worth = self._machine.worth_wei
        target = min(self._owed_wei + self._window_wei, self._confirmed_wei + self._limits.limit_wei)
        if self._allowed_wei is not None:
            target = min(target, self._allowed_wei)
        value = self.ticket_wei
        step = value if asked or self._limits.tickets_per_message == 1 else self._window_wei // 4
        if target - worth < max(step, value):
            return []
        messages = self._machine.issue(target, value)
        outputs: list[Output] = [Send(m) for m in messages]
        if self._machine.exhausted:
            outputs += self._want_purse(target, self._machine.worth_wei, now)
        if messages and self._machine.worth_wei - self._stored_wei >= self._window_wei // 2:
            outputs.append(self._store())
        return outputs

    def _want_purse(self, deposit_wei: int, blocked_wei: int, now: float) -> list[Output]:
        """Ask once for a larger deposit; a report of a worth above `blocked_wei` shows that it is there."""
        if self._purse_until is not None:
            return []
        self._blocked_worth_wei = blocked_wei
        self._purse_until = now + self._limits.purse_timeout_s
        return [TopUp(self._payee, deposit_wei)]

    def _store(self) -> Store:
        self._sequence += 1
        self._stored_wei = self._machine.worth_wei
        return Store(self._sequence, self._machine.with_spent(self.spent_wei))

    def _cut(self, reason: CloseReason, detail: str) -> list[Output]:
        outputs: list[Output] = [self._store()] if self._phase is _Phase.OPEN else []
        self._phase = _Phase.CLOSED
        return [*outputs, CutOff(reason, detail)]
