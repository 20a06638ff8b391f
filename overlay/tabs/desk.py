"""All tabs of one node: which link earns, which pays, whose purse is attached where, and who is barred.

Pure, over any kind of link: every input returns a list of acts, each a link, the side of it that is meant,
and what to do. Owns that one purse is attached to one link only. docs/protocol/payments.md, "Tabs on links".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from overlay.tabs.earning import Earning, EarningTerms
from overlay.tabs.paying import Paying, PayingTerms
from overlay.tabs.standing import Standing
from overlay.tabs.types import Reading, Side, TabOutput
from payments import formats
from payments.state import PurseState
from payments.tab import CloseReason, CutOff, Dispute, Load
from payments.validator import PurseView

L = TypeVar("L", bound=Hashable)

SILENT_S = 3.0
"""A purse that is shown on a new link moves there if the old link was silent for so long: its owner came back
after a crash. Otherwise two processes use one purse, and the second is refused."""
_CHEATING = frozenset((CloseReason.DISPUTE, CloseReason.FORGERY))


@dataclass(frozen=True, slots=True)
class Act(Generic[L]):
    """Carry `output` out for one side of `link`."""

    link: L
    side: Side
    output: TabOutput


@dataclass(slots=True)
class LinkTabs:
    """Both sides of one link."""

    peer: bytes | None
    earning: Earning | None
    paying: Paying | None


@dataclass(frozen=True, slots=True)
class _Circuit(Generic[L]):
    front: L | None
    price_in: int
    back: L | None
    price_out: int


Readings = Callable[[L, Side], Reading]
"""Tells what the engine has counted on one side of a link by now."""


class Desk(Generic[L]):
    """Machine for one node. Times are seconds of one steady clock."""

    def __init__(
        self,
        earning: EarningTerms | None,
        paying: PayingTerms | None,
        read: Callable[[L, Side], Reading],
        silence_s: Callable[[L], float],
    ) -> None:
        """`earning` is None for a customer; `paying` None for who has no key. `silence_s` tells for how long
        nothing was heard on a link.
        """
        self._earning = earning
        self._paying = paying
        self._read = read
        self._silence_s = silence_s
        self.links: dict[L, LinkTabs] = {}
        self.standing = Standing()
        self._circuits: dict[object, _Circuit[L]] = {}
        self._attached: dict[bytes, L] = {}

    # -- links

    def link_up(
        self,
        link: L,
        peer: bytes | None,
        payee: bytes,
        challenge: bytes,
        start_credit_wei: int,
        now: float,
    ) -> list[Act[L]]:
        """A link is up. `payee` is the neighbour's account by its descriptor (empty: none known); `challenge`
        32 fresh random bytes.
        """
        earning = None
        if self._earning is not None:
            earning = Earning(self._earning, challenge, start_credit_wei)
        paying = None
        if self._paying is not None and peer is not None:
            paying = Paying(self._paying, peer, payee)
        self.links[link] = LinkTabs(peer, earning, paying)
        return [] if earning is None else self._acts(link, "earning", earning.start(now), now)

    def learn_payee(self, link: L, payee: bytes) -> None:
        """A neighbour's descriptor names its account, after its link came up."""
        tabs = self.links.get(link)
        if tabs is not None and tabs.paying is not None:
            tabs.paying.learn_payee(payee)

    def link_closed(self, link: L, now: float) -> list[Act[L]]:
        """A link is gone, with all its circuits; what is to be kept is told."""
        tabs = self.links.get(link)
        if tabs is None:
            return []
        acts: list[Act[L]] = []
        if tabs.earning is not None:
            # The last counts first: they belong into what is kept.
            acts += self._acts(
                link, "earning", tabs.earning.on_reading(self._read(link, "earning"), now), now
            )
            acts += self._acts(link, "earning", tabs.earning.close(), now)
        if tabs.paying is not None:
            acts += self._acts(
                link, "paying", tabs.paying.on_reading(self._read(link, "paying"), 0.0, now), now
            )
            acts += self._acts(link, "paying", tabs.paying.close(), now)
        del self.links[link]
        for name in [name for name, holder in self._attached.items() if holder is link]:
            del self._attached[name]
        return acts

    def on_message(self, link: L, data: bytes, now: float) -> list[Act[L]]:
        """A payment message came on a link."""
        tabs = self.links.get(link)
        if tabs is None:
            return []
        if formats.is_for_payee(data):
            if tabs.earning is not None:
                reading = self._read(link, "earning")
                return self._acts(link, "earning", tabs.earning.on_message(data, reading, now), now)
        elif tabs.paying is not None:
            reading = self._read(link, "paying")
            return self._acts(link, "paying", tabs.paying.on_message(data, reading, now), now)
        elif data[:1] == bytes((formats.KIND_TERMS,)):
            return []  # From a customer's guard when we have no key; or from who never is paid. Harmless.
        cut = CutOff(CloseReason.FORGERY, "a payment message for a side that is not there")
        return self._acts(link, "earning", [cut], now)

    # -- circuits

    def circuit_up(
        self, circuit: object, front: L | None, price_in: int, back: L | None, price_out: int, now: float
    ) -> list[Act[L]]:
        """A circuit stands: from `front`, which pays us `price_in`, to `back`, which we pay `price_out`."""
        self._circuits[circuit] = _Circuit(front, price_in, back, price_out)
        acts: list[Act[L]] = []
        if front is not None and front in self.links:
            earning = self.links[front].earning
            if earning is not None:
                acts += self._acts(front, "earning", earning.add_circuit(price_in, now), now)
        if back is not None and price_out and back in self.links:
            paying = self.links[back].paying
            if paying is not None:
                acts += self.want(back, now)
                acts += self._acts(back, "paying", paying.add_circuit(price_out, now), now)
        return acts

    def circuit_down(self, circuit: object, now: float) -> list[Act[L]]:
        """A circuit is gone; one that is not known is no mistake."""
        gone = self._circuits.pop(circuit, None)
        if gone is None:
            return []
        if gone.front is not None and gone.front in self.links:
            earning = self.links[gone.front].earning
            if earning is not None:
                earning.remove_circuit(gone.price_in)
        if gone.back is not None and gone.price_out and gone.back in self.links:
            paying = self.links[gone.back].paying
            if paying is not None:
                return self._acts(gone.back, "paying", paying.remove_circuit(gone.price_out, now), now)
        return []

    def on_junk(self, link: L, now: float) -> None:
        """A circuit that goes out on a link was ended because of packets that nobody can use."""
        paying = self._paying_on(link)
        if paying is not None:
            paying.on_junk(now)

    def want(self, link: L, now: float) -> list[Act[L]]:
        """A paid circuit is about to go out on a link: have its purse ready, unless another link has it."""
        paying = self._paying_on(link)
        if paying is None:
            return []
        if paying.payee and self._attached.setdefault(_own_name(paying.payee), link) is not link:
            return []
        return self._acts(link, "paying", paying.want(now), now)

    def explain(self, link: L, now: float) -> str | None:
        """Why a further paid circuit cannot go out on a link, as a sentence; None if it can, or may."""
        tabs = self.links.get(link)
        if tabs is None:
            return None
        if self._paying is None:
            return "no account is set up to pay from"
        if tabs.peer is not None and self.standing.is_barred(tabs.peer, now):
            return "it and this node disagreed about money a moment ago"
        if tabs.paying is None:
            return "it is not known whom to pay"
        other = self._attached.get(_own_name(tabs.paying.payee))
        if tabs.paying.payee and other is not None and other is not link:
            return "its account is being paid over another link"
        return tabs.paying.explain()

    # -- what the driver answers

    def on_loaded(
        self, link: L, payer: bytes, state: PurseState, view: PurseView, now: float
    ) -> list[Act[L]]:
        """Ledger and chain answered a `Load`."""
        tabs = self.links.get(link)
        if tabs is None or tabs.earning is None or self._attached.get(payer) is not link:
            return []
        reading = self._read(link, "earning")
        return self._acts(link, "earning", tabs.earning.on_loaded(state, view, reading, now), now)

    def on_load_failed(self, link: L, payer: bytes, now: float) -> list[Act[L]]:
        """The purse that a neighbour showed cannot be used: ledger or chain are out of order."""
        tabs = self.links.get(link)
        if self._attached.get(payer) is link:
            del self._attached[payer]
        if tabs is None or tabs.earning is None:
            return []
        return self._acts(link, "earning", tabs.earning.on_unavailable(), now)

    def on_own_loaded(self, link: L, state: PurseState, view: PurseView, now: float) -> list[Act[L]]:
        """Ledger and chain answered `LoadOwn`."""
        paying = self._paying_on(link)
        if paying is None:
            return []
        outputs = paying.on_own_loaded(state, view, self._read(link, "paying"), now)
        return self._acts(link, "paying", outputs, now)

    def on_own_failed(self, link: L, sentence: str, now: float) -> None:
        """`LoadOwn` or `Fund` cannot be done, and why."""
        paying = self._paying_on(link)
        if paying is not None:
            paying.on_own_failed(sentence, now)
            if paying.tab is None:
                self._attached.pop(_own_name(paying.payee), None)

    def on_stored(self, link: L, sequence: int, now: float) -> list[Act[L]]:
        """The ledger has written an earning side's `Store`."""
        tabs = self.links.get(link)
        if tabs is None or tabs.earning is None:
            return []
        outputs = tabs.earning.on_stored(sequence, self._read(link, "earning"), now)
        return self._acts(link, "earning", outputs, now)

    def is_attached(self, payer: bytes) -> bool:
        """Whether a purse that pays us is attached to a link."""
        return payer in self._attached

    def payees_in_use(self) -> set[bytes]:
        """Whom we pay for circuits that stand, or are about to."""
        return {
            tabs.paying.payee
            for tabs in self.links.values()
            if tabs.paying is not None and tabs.paying.is_in_use
        }

    def payers(self) -> set[bytes]:
        """Whose purses are attached to links and pay us."""
        return {name for name in self._attached if len(name) == 20}

    def on_purse(self, payer: bytes, view: PurseView) -> None:
        """The chain's view of a purse that pays us changed."""
        link = self._attached.get(payer)
        tabs = None if link is None else self.links.get(link)
        if tabs is not None and tabs.earning is not None:
            tabs.earning.on_purse(view)

    def on_own_purse(self, payee: bytes, view: PurseView, now: float) -> list[Act[L]]:
        """The chain's view of our purse towards `payee` changed."""
        link = self._attached.get(_own_name(payee))
        paying = None if link is None else self._paying_on(link)
        if link is None or paying is None:
            return []
        return self._acts(link, "paying", paying.on_own_purse(view, now), now)

    def allow(self, left_wei: int | None, now: float) -> list[Act[L]]:
        """The budget leaves `left_wei` (None: no limit) for all purses together."""
        acts: list[Act[L]] = []
        for link, tabs in list(self.links.items()):
            if tabs.paying is not None and tabs.paying.tab is not None:
                total = None if left_wei is None else tabs.paying.worth_wei + left_wei
                acts += self._acts(link, "paying", tabs.paying.allow(total, now), now)
        return acts

    # -- time

    def is_due(self, link: L, now: float) -> bool:
        """Whether `on_readings` has something to do although nothing was counted."""
        tabs = self.links.get(link)
        if tabs is None:
            return False
        if tabs.paying is not None and tabs.paying.is_wanted:
            return True
        if tabs.earning is None:
            return False
        due = tabs.earning.next_timeout()
        return tabs.earning.is_waiting or (due is not None and due <= now)

    def on_readings(self, link: L, rtt_s: float, now: float) -> list[Act[L]]:
        """Look at what the engine has counted on a link; round trip in seconds."""
        tabs = self.links.get(link)
        if tabs is None:
            return []
        acts: list[Act[L]] = []
        if tabs.earning is not None:
            reading = self._read(link, "earning")
            due = tabs.earning.next_timeout()
            if reading != tabs.earning.reading or tabs.earning.is_waiting:
                acts += self._acts(link, "earning", tabs.earning.on_reading(reading, now), now)
            if due is not None and due <= now:
                acts += self._acts(link, "earning", tabs.earning.handle_timeout(reading, now), now)
        if tabs.paying is not None and tabs.paying.is_wanted:
            reading = self._read(link, "paying")
            acts += self._acts(link, "paying", tabs.paying.on_reading(reading, rtt_s, now), now)
            due = tabs.paying.next_timeout()
            if due is not None and due <= now:
                acts += self._acts(link, "paying", tabs.paying.handle_timeout(now), now)
        return acts

    # -- inside

    def _paying_on(self, link: L) -> Paying | None:
        tabs = self.links.get(link)
        return None if tabs is None else tabs.paying

    def _acts(self, link: L, side: Side, outputs: Sequence[TabOutput], now: float) -> list[Act[L]]:
        """Tag outputs with their link, after what they mean for the node as a whole."""
        acts: list[Act[L]] = []
        for output in outputs:
            if isinstance(output, Load):
                acts += self._attach(link, output, now)
                continue
            acts.append(Act(link, side, output))
            if isinstance(output, Dispute) and side == "earning":
                # The payer's own tab cuts itself off; on this side it is our decision.
                output = CutOff(CloseReason.DISPUTE, "the payer counts less than loss explains")
                acts.append(Act(link, side, output))
            if isinstance(output, CutOff) and output.reason in _CHEATING:
                for name in self._names_of(link, side):
                    self.standing.note(name, now)
        return acts

    def _attach(self, link: L, load: Load, now: float) -> list[Act[L]]:
        """One purse, one link: the first one keeps it while it is heard."""
        acts: list[Act[L]] = []
        tabs = self.links[link]
        assert tabs.earning is not None
        holder = self._attached.get(load.payer)
        if self.standing.is_barred(load.payer, now):
            return self._acts(link, "earning", tabs.earning.on_busy(), now)
        if holder is not None and holder is not link:
            if self._silence_s(holder) < SILENT_S:
                return self._acts(link, "earning", tabs.earning.on_busy(), now)
            old = self.links.get(holder)
            if old is not None and old.earning is not None:
                acts += self._acts(
                    holder, "earning", old.earning.on_reading(self._read(holder, "earning"), now), now
                )
                acts += self._acts(holder, "earning", old.earning.close(), now)
            cut = CutOff(CloseReason.PURSE_BUSY, "its purse is shown on another link now")
            acts.append(Act(holder, "earning", cut))
        self._attached[load.payer] = link
        acts.append(Act(link, "earning", load))
        return acts

    def _names_of(self, link: L, side: Side) -> list[bytes]:
        tabs = self.links.get(link)
        if tabs is None:
            return []
        names = [] if tabs.peer is None else [tabs.peer]
        if side == "earning" and tabs.earning is not None and tabs.earning.tab.payer is not None:
            names.append(tabs.earning.tab.payer)
        return names


def _own_name(payee: bytes) -> bytes:
    """The name of our purse towards `payee`, apart from those that pay us."""
    return b"to " + payee
