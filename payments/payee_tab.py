"""The earning side's account on one link: proves who pays, takes books and tickets, gives the meter credit.

Owns the attachment of a purse to the link, credit against durability (section 4, rule 4), asking for tickets
and cutting off who sends wrong ones. Does not charge packets: the engine's meter does, and reports through
`on_meter`. docs/protocol/payments.md, sections 4 and 5.

    WAITING --Attach, good--> LOADING --on_loaded--> OPEN --cut off--> CLOSED

Credit that is given = what the payer has paid, but neither the credit nor the use of it is ever more than one
window ahead of the ledger on disk: a crash costs at most one window.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from payments import formats
from payments.books import Domain, SignedBook, Ticket
from payments.digest import attach_digest, domain_separator
from payments.errors import DecodeError
from payments.keys import recover
from payments.payee import Payee
from payments.refusals import FAULT_LIMIT, UNUSED_BOOK_POINTS, Refusal, fault_points
from payments.state import EMPTY, PurseState
from payments.tab import (
    TOLERANCE_SHARE,
    WRITE_OFF_SHARE,
    Asked,
    CloseCircuits,
    CloseReason,
    Counts,
    Credit,
    CutOff,
    Dispute,
    Load,
    Output,
    Ready,
    Send,
    Store,
    tolerated_wei,
)
from payments.validator import PurseView


class _Phase(Enum):
    WAITING = 1
    LOADING = 2
    OPEN = 3
    CLOSED = 4


@dataclass(frozen=True, slots=True)
class PayeeLimits:
    """An operator's settings. `window_wei` is one prepaid window at our prices: the unit of what we risk."""

    window_wei: int
    minimum_value_wei: int = 1
    start_credit_wei: int = 0
    ask_timeout_s: float = 10.0
    store_interval_s: float = 1.0
    report_interval_s: float = 1.0


class PayeeTab:
    """Machine for one link. Feed it messages, meter readings, ledger and chain events, and time."""

    def __init__(
        self, domain: Domain, payee: bytes, node: bytes, limits: PayeeLimits, challenge: bytes
    ) -> None:
        """Begin to wait for a purse. `payee` (20 bytes) is our address, `node` (32) our identity.

        `challenge` is 32 fresh random bytes.
        """
        if len(payee) != 20 or len(node) != 32 or len(challenge) != 32:
            raise ValueError("payee has 20 bytes, node and challenge 32")
        self._domain = domain
        self._payee = payee
        self._node = node
        self._limits = limits
        self._window_wei = limits.window_wei
        self._challenge = challenge
        self._phase = _Phase.WAITING
        self._machine: Payee | None = None
        self._payer = b""
        self._counts = Counts()
        self._spent_before_wei = 0
        self._granted_wei = 0
        self._durable_wei = 0
        self._sequence = 0
        self._stored_sequence = 0
        self._durable_spent_wei = 0
        self._store_asked_spent_wei = 0
        self._pending: dict[int, tuple[int, int]] = {}
        self._store_at: float | None = None
        self._report_at: float | None = None
        self._reported_wei = 0
        self._spent_at_counts_wei = 0
        self._written_off_wei = 0
        self._ask_until: float | None = None
        self._closed_for_want = False
        self._faults = 0
        self._waived_number = 0
        self._tickets = 0

    @property
    def payer(self) -> bytes | None:
        """The attached purse's payer, once its signature was checked."""
        return self._payer or None

    @property
    def is_open(self) -> bool:
        """Whether books and tickets are taken."""
        return self._phase is _Phase.OPEN

    @property
    def was_loaded(self) -> bool:
        """Whether the attached purse's worth is known, also after the end."""
        return self._machine is not None

    @property
    def worth_wei(self) -> int:
        """What the purse has paid in all."""
        return 0 if self._machine is None else self._machine.worth_wei

    @property
    def spent_wei(self) -> int:
        """What was charged to the purse in all, less what was written off as lost on the way."""
        return self._spent_before_wei + self._counts.spent_wei - self._written_off_wei

    @property
    def written_off_wei(self) -> int:
        """What was charged on this link and given up again, for packets lost on the way to the payer."""
        return self._written_off_wei

    @property
    def tickets(self) -> int:
        """Tickets accepted on this link."""
        return self._tickets

    @property
    def state(self) -> PurseState:
        """What the ledger should hold now."""
        return EMPTY if self._machine is None else self._machine.with_spent(self.spent_wei)

    def start(self, now: float) -> list[Output]:
        """The link is up: say who we are and what we ask."""
        terms = formats.Terms(
            self._domain,
            self._payee,
            self._challenge,
            self._limits.start_credit_wei,
            self._limits.minimum_value_wei,
        )
        return [Send(formats.encode_terms(terms))]

    def on_message(self, data: bytes, now: float) -> list[Output]:
        """A payment message for the payee's side came from the peer."""
        if self._phase is _Phase.CLOSED:
            return []
        try:
            if data[:1] == _TICKET_KIND:
                number, index, word = formats.decode_ticket(data)
                return self._on_ticket(number, index, word, now)
            message = formats.decode_message(data, self._payee)
        except DecodeError as error:
            return self._refuse(Refusal.MALFORMED, 0, 0, str(error))
        match message:
            case SignedBook():
                return self._on_book(message, now)
            case formats.Attach():
                return self._on_attach(message)
            case formats.Counts():
                return self._on_counts(message)
            case Ticket() | formats.Terms() | formats.State() | formats.Report() | formats.Refused():
                return self._refuse(Refusal.MALFORMED, 0, 0, "a message for the other side")

    def on_loaded(self, state: PurseState, purse: PurseView, now: float) -> list[Output]:
        """The ledger's state and the chain's view of the purse that `Load` named."""
        if self._phase is not _Phase.LOADING:
            return []
        self._machine = Payee(
            self._domain, self._payee, self._payer, state, purse, self._limits.minimum_value_wei
        )
        self._spent_before_wei = state.spent_wei
        self._reported_wei = self._durable_spent_wei = self._store_asked_spent_wei = state.spent_wei
        self._granted_wei = min(state.worth_wei, state.spent_wei + self._window_wei)
        self._durable_wei = state.worth_wei
        self._phase = _Phase.OPEN
        shown = formats.State(state.book, state.index, state.word, state.spent_wei)
        outputs: list[Output] = [Send(formats.encode_state(shown)), Ready()]
        credit = self._granted_wei - state.spent_wei
        if credit > 0:
            outputs.append(Credit(credit))
        return outputs

    def on_busy(self) -> list[Output]:
        """The ledger says that another process, or another of our links, works with this purse."""
        return self._turn_away(Refusal.BUSY, CloseReason.PURSE_BUSY, "the purse is in use on another link")

    def on_unavailable(self) -> list[Output]:
        """Ledger or chain do not tell of this purse: serve it later."""
        return self._turn_away(
            Refusal.UNAVAILABLE, CloseReason.REFUSED, "the purse cannot be looked up at the moment"
        )

    def on_purse(self, purse: PurseView) -> None:
        """The chain's view of the purse changed."""
        if self._machine is not None:
            self._machine.purse = purse

    def set_window(self, window_wei: int, now: float) -> list[Output]:
        """Risk as much from now on: dearer circuits came, or left. At least 1 wei."""
        self._window_wei = max(1, window_wei)
        return self._grant(now) if self._phase is _Phase.OPEN else []

    def on_meter(self, counts: Counts, now: float, waiting: bool = False) -> list[Output]:
        """The engine's counts since the tab began; `waiting` if packets are held up for want of credit.

        Called when the meter falls under a mark or is empty, and now and then.
        """
        if self._phase is not _Phase.OPEN:
            return []
        self._counts = counts
        left = self._granted_wei - self.spent_wei
        outputs: list[Output] = []
        if self.spent_wei - self._store_asked_spent_wei >= self._window_wei // 2:
            outputs.append(self._store())
        if waiting and self._machine is not None and self._machine.worth_wei > self._granted_wei:
            # Paid already: it is our own disk that is waited for.
            return outputs if self._pending else [*outputs, self._store()]
        if waiting:
            if self._ask_until is None and not self._closed_for_want:
                self._ask_until = now + self._limits.ask_timeout_s
                outputs += [Asked(), self._report(formats.URGENCY_EMPTY, now)]
            return outputs
        self._ask_until = None
        self._closed_for_want = False
        since = self.spent_wei - self._reported_wei
        if since <= 0:
            return outputs
        if left < self._window_wei // 4 and since >= left // 2:
            outputs.append(self._report(formats.URGENCY_LOW, now))
        elif since >= self._window_wei // 4:
            outputs.append(self._report(formats.URGENCY_NONE, now))
        elif self._report_at is None:
            self._report_at = now + self._limits.report_interval_s
        return outputs

    def on_stored(self, sequence: int, now: float) -> list[Output]:
        """The ledger has `Store` number `sequence` (and so all before it) on disk."""
        for number in [n for n in self._pending if n <= sequence]:
            worth, spent = self._pending.pop(number)
            self._durable_wei = max(self._durable_wei, worth)
            self._durable_spent_wei = max(self._durable_spent_wei, spent)
        return self._grant(now)

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` is due, or None."""
        times = [t for t in (self._store_at, self._report_at, self._ask_until) if t is not None]
        return min(times, default=None)

    def handle_timeout(self, now: float) -> list[Output]:
        """Do what has become due; early or double calls do nothing."""
        outputs: list[Output] = []
        if self._phase is not _Phase.OPEN:
            return outputs
        if self._store_at is not None and now >= self._store_at:
            outputs.append(self._store())
        if self._report_at is not None and now >= self._report_at:
            outputs.append(self._report(formats.URGENCY_NONE, now))
        if self._ask_until is not None and now >= self._ask_until:
            self._ask_until = None
            self._closed_for_want = True
            outputs.append(
                CloseCircuits(
                    CloseReason.UNPAID, f"no tickets came within {self._limits.ask_timeout_s:g} s of asking"
                )
            )
        return outputs

    def close(self) -> list[Output]:
        """The link is gone: keep what there is."""
        if self._phase is not _Phase.OPEN:
            self._phase = _Phase.CLOSED
            return []
        self._phase = _Phase.CLOSED
        return self._keep()

    def _on_attach(self, attach: formats.Attach) -> list[Output]:
        if self._phase is not _Phase.WAITING:
            return self._refuse(Refusal.NOT_ATTACHED, 0, 0, "a second attachment")
        digest = attach_digest(domain_separator(self._domain), self._payee, self._node, self._challenge)
        if recover(digest, attach.signature) != attach.payer:
            return self._refuse(Refusal.ATTACH_SIGNATURE, 0, 0, "the attachment is not signed by its purse")
        self._payer = attach.payer
        self._phase = _Phase.LOADING
        return [Load(attach.payer)]

    def _on_book(self, signed: SignedBook, now: float) -> list[Output]:
        if self._machine is None or self._phase is not _Phase.OPEN:
            return self._refuse(Refusal.NOT_ATTACHED, signed.book.number, 0, "a book before the attachment")
        first = self._machine.state.book is None
        is_unused = not first and self._machine.index == 0
        gained = self._machine.accept_book(signed)
        if isinstance(gained, Refusal):
            if gained in (Refusal.DEPOSIT, Refusal.UNLOCKING):
                self._waived_number = signed.book.number
            return self._refuse(gained, signed.book.number, 0, "a book was refused")
        self._waived_number = 0
        if first:
            # What the base stands for was carried before our memory begins: neither credit nor debt.
            base = signed.book.base_wei
            self._spent_before_wei += base
            self._granted_wei += base
            self._durable_wei += base
            self._durable_spent_wei += base
            self._store_asked_spent_wei += base
            self._reported_wei += base
        if is_unused and not gained:
            # Each book costs a signature to check and a write to disk; one in whose place another comes
            # paid for neither. It happens to a payer that lost its memory, once.
            self._faults += UNUSED_BOOK_POINTS
            if self._faults >= FAULT_LIMIT:
                self._phase = _Phase.CLOSED
                return [self._store(), CutOff(CloseReason.FORGERY, "many books without a ticket")]
        else:
            self._faults = max(0, self._faults - 1)
        return [self._store(), *self._grant(now)]

    def _on_ticket(self, number: int, index: int, word: bytes, now: float) -> list[Output]:
        if self._machine is None or self._phase is not _Phase.OPEN:
            return self._refuse(Refusal.NOT_ATTACHED, number, index, "a ticket before the attachment")
        before = self._machine.index
        gained = self._machine.accept_ticket(number, index, word)
        if isinstance(gained, Refusal):
            if gained is Refusal.UNLOCKING:
                self._waived_number = number
            if gained is Refusal.FUTURE_BOOK and number == self._waived_number:
                return []  # Sent before the payer heard that we refuse its book for the chain's sake.
            return self._refuse(gained, number, index, "a ticket was refused")
        self._tickets += index - before
        return self._grant(now)

    def _on_counts(self, theirs: formats.Counts) -> list[Output]:
        """Compare the payer's count with ours when its previous count came, so that nothing is in flight.

        What we counted and it did not was lost on the way (or it lies): up to the tolerance it pays for that,
        some more is written off, and beyond that it is disputed.
        """
        counted = Counts(theirs.forward, theirs.backward, theirs.spent_wei)
        before, self._spent_at_counts_wei = self._spent_at_counts_wei, self.spent_wei
        # What was charged in the last quarter of the time between two counts (half a second) is on its way.
        arrived = self.spent_wei - max(0, self.spent_wei - before) // 4
        lost = arrived - theirs.spent_wei - theirs.spent_wei // TOLERANCE_SHARE
        if lost <= 0:
            return []
        charged = self._counts.spent_wei
        if self._phase is _Phase.OPEN and self._written_off_wei + lost <= charged // WRITE_OFF_SHARE:
            self._written_off_wei += lost
            self._spent_at_counts_wei -= lost
            return [Credit(lost)]
        if before > theirs.spent_wei + tolerated_wei(theirs.spent_wei, self._window_wei):
            return [Dispute(self._own_counts(), counted)]
        return []

    def _grant(self, now: float) -> list[Output]:
        """Turn paid worth into credit as far as durability allows, and see that the rest gets stored."""
        machine = self._machine
        assert machine is not None
        worth = machine.worth_wei
        outputs: list[Output] = []
        window = self._window_wei
        allowed = min(worth, self._durable_wei + window, self._durable_spent_wei + window)
        if allowed > self._granted_wei:
            outputs.append(Credit(allowed - self._granted_wei))
            self._granted_wei = allowed
            self._ask_until = None
            self._closed_for_want = False
        asked = max((w for w, _ in self._pending.values()), default=self._durable_wei)
        if worth - asked >= self._window_wei // 2:
            outputs.append(self._store())
        elif worth > asked and self._store_at is None:
            self._store_at = now + self._limits.store_interval_s
        return outputs

    def _keep(self) -> list[Output]:
        """Keep what there is at the end; nothing of a purse that never gave a book: new keys cost nothing."""
        machine = self._machine
        return [] if machine is None or machine.state.book is None else [self._store()]

    def _store(self) -> Store:
        machine = self._machine
        assert machine is not None
        self._store_at = None
        self._sequence += 1
        self._store_asked_spent_wei = self.spent_wei
        self._pending[self._sequence] = (machine.worth_wei, self.spent_wei)
        return Store(self._sequence, machine.with_spent(self.spent_wei), machine.claim())

    def _own_counts(self) -> Counts:
        return Counts(self._counts.forward, self._counts.backward, self.spent_wei)

    def _report(self, urgency: int, now: float) -> Send:
        self._report_at = None
        self._reported_wei = self.spent_wei
        return Send(
            formats.encode_report(
                formats.Report(
                    urgency, self._counts.forward, self._counts.backward, self.spent_wei, self.worth_wei
                )
            )
        )

    def _turn_away(self, refusal: Refusal, reason: CloseReason, detail: str) -> list[Output]:
        self._phase = _Phase.CLOSED
        refused = formats.Refused(refusal, 0, 0)
        return [Send(formats.encode_refused(refused)), CutOff(reason, detail)]

    def _refuse(self, refusal: Refusal, number: int, index: int, detail: str) -> list[Output]:
        self._faults += fault_points(refusal)
        outputs: list[Output] = [Send(formats.encode_refused(formats.Refused(refusal, number, index)))]
        if self._faults >= FAULT_LIMIT:
            if self._phase is _Phase.OPEN:
                outputs += self._keep()
            self._phase = _Phase.CLOSED
            outputs.append(CutOff(CloseReason.FORGERY, f"{detail} ({refusal.name.lower()})"))
        return outputs


_TICKET_KIND = bytes((formats.KIND_TICKET,))
