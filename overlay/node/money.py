"""Money in a running node: the desk's acts carried out on links, engine, ledger and chain.

Owns the meters, what each link's circuits have counted, and the tasks that read counts, write the ledger and
redeem; ledger and chain of single purses are `overlay.node.purses`'. Decides nothing about money:
`overlay.tabs` does. A node without [payments] has none of this, and carries for nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import trio

from overlay.engine.interface import FlowHandle, Price
from overlay.engine.meters import Meter
from overlay.logs import RateLimit, get_logger
from overlay.messages import Payment, encode_control
from overlay.node.counts import Count, LinkMoney
from overlay.node.idle_purses import IdleKeeper
from overlay.node.io.vault import Vault
from overlay.node.money_rows import list_tabs, name_of
from overlay.node.purses import Purses
from overlay.payee import prove_payee
from overlay.tabs.desk import Act, Desk
from overlay.tabs.earning import EarningTerms
from overlay.tabs.paying import PayingTerms
from overlay.tabs.types import Fund, LoadOwn, Look, Reading, Side
from payments.errors import ChainError, LedgerError
from payments.io.ledger import DayEarnings, PurseKeyed
from payments.keys import checksum_address
from payments.tab import (
    Asked,
    CloseCircuits,
    CloseReason,
    Credit,
    CutOff,
    Dispute,
    GaveUp,
    Load,
    Ready,
    Send,
    Store,
    Warn,
)

if TYPE_CHECKING:
    from overlay.config.model import PaymentsConfig
    from overlay.engine.interface import Engine
    from overlay.links.link import Link
    from overlay.node.io.wallet import Wallet
    from payments.io.chain.client import Chain
    from payments.io.chain.sender import Sender
    from payments.io.ledger import Ledger
    from payments.io.redeemer import Redeemer
    from payments.keys import PurseKey

CLOSE_BASE = 64
"""A link closed over money carries this plus the `CloseReason`."""
BUSY_S = 0.05
"""How often counts are read while packets flow: a window covers a third of a second, and a meter that runs
low says so at once."""
ACTIVE_S = 1.0
IDLE_S = 0.25
FEW_LINKS = 256
MANY_S = 1.0
"""Between looks at all links where there are many; those that carry, and those short of credit, are looked at
anyway."""
EASY_ONWARD_TIMES = 64
"""What goes onward may cost so many times a relay's own price. A customer and a next hop in league could else
have this relay prepay 64 packets of any price."""
FREE_ONWARD_SHARE = 1024
"""A relay that asks nothing itself goes by its window: its first 64 packets are a sixteenth of it at most."""
_DAY_S = 86_400

log = get_logger("money")


class MoneyHost(Protocol):
    """What money asks of its node. Calls do not block and do not raise."""

    def end_paid_circuits(self, link: Link, side: Side, reason: CloseReason, detail: str) -> None:
        """End every circuit with a price on this side of a link."""

    def payee_of(self, node_id: bytes) -> bytes:
        """The account of a relay by its descriptor; empty if it is not known or takes no money."""

    def on_payable(self) -> None:
        """Something about who can be paid has changed."""

    def flush(self) -> None:
        """Send what waits on all links."""


class Money:
    """One node's money. `run` in a nursery; everything else is called from the node's own task."""

    def __init__(
        self,
        settings: PaymentsConfig,
        host: MoneyHost,
        engine: Engine[Link],
        *,
        node_id: bytes | None,
        price_wei: int,
        payee: bytes,
        key: PurseKey,
        chain: Chain,
        ledger: Ledger,
        redeemer: Redeemer | None,
        sender: Sender,
        wallet: Wallet,
    ) -> None:
        """`node_id` is None for a customer, who is paid by nobody."""
        self._settings = settings
        self._host = host
        self._engine = engine
        self._key = key
        self._payee = payee
        self._price_wei = price_wei
        self._is_relay = node_id is not None
        self.chain = chain
        self._domain = chain.domain
        self._redeemer = redeemer
        self._sender = sender
        self.wallet = wallet
        self.vault = Vault(ledger, self._on_written, self._on_purse_busy)
        self.ledger = ledger
        self.problems: dict[str, str] = {}
        self.counters: Counter[str] = Counter()
        self._limit = RateLimit()
        self._links: dict[Link, LinkMoney] = {}
        self._flows: dict[FlowHandle, list[Count]] = {}
        self._by_meter: dict[int, Link] = {}
        self._active: dict[Link, float] = {}
        self.purses = Purses(
            settings,
            chain,
            self.vault,
            wallet,
            own=key.address,
            payee=payee,
            payee_of=host.payee_of,
            do=self._do_now,
            note=self._note,
            on_change=host.on_payable,
        )
        earning = None
        if node_id is not None:
            earning = EarningTerms(self._domain, payee, node_id, price_wei)
        paying = PayingTerms(self._domain, key, settings.max_window_wei, settings.purse_deposit_wei)
        self._idle = IdleKeeper(
            chain,
            ledger,
            wallet,
            own=key.address,
            after_days=settings.unlock_idle_days,
            used=self.purses.used,
        )
        self.desk: Desk[Link] = Desk(earning, paying, self._read, self._silence_s)
        self.purses.desk = self.desk

    @property
    def payee(self) -> bytes:
        """The account that this node is paid to."""
        return self._payee

    def prove_payee(self, identity: bytes) -> bytes:
        """Return the payee's word that `identity` earns for it; empty if the payee is another account than
        this node's own.
        """
        return prove_payee(self._key, identity) if self._payee == self._key.address else b""

    # -- what the node tells

    def link_up(self, link: Link, now: float) -> None:
        """A neighbour is there."""
        earning = Meter(credit_wei=0)
        self._links[link] = LinkMoney({"earning": Count(earning), "paying": Count(Meter())})
        self._by_meter[id(earning)] = link
        self._engine.watch_meter(earning)
        peer = link.peer
        payee = b"" if peer is None else self._host.payee_of(peer)
        # A relay of the directory is known; whoever else comes must have its purse confirmed first.
        start_wei = self._settings.startup_credit_wei if payee else 0
        acts = self.desk.link_up(link, peer, payee, os.urandom(32), start_wei, now)
        self._links[link].tabs = self.desk.links[link]
        self._do(acts)

    def on_directory(self) -> None:
        """Descriptors have come or changed: neighbours may have an account now."""
        for link in self._links:
            if link.peer is not None:
                self.desk.learn_payee(link, self._host.payee_of(link.peer))

    def link_closed(self, link: Link, now: float) -> None:
        """A neighbour is gone; its circuits were reported before."""
        if link not in self._links:
            return
        tabs = self._links[link].tabs
        tab = None if tabs is None or tabs.earning is None else tabs.earning.tab
        was_loaded = tab is not None and tab.was_loaded
        self._do(self.desk.link_closed(link, now))
        gone = self._links.pop(link)
        self.purses.backing.forget(link)
        meter = gone.counts["earning"].meter
        self._by_meter.pop(id(meter), None)
        self._engine.unwatch_meter(meter)
        if tab is not None and was_loaded and not self.desk.is_attached(gone.payer):
            self.purses.forget_start(gone.payer, tab.worth_wei)

    def on_payment(self, link: Link, data: bytes, now: float) -> None:
        """A payment message came."""
        self._do(self.desk.on_message(link, data, now))

    def on_meter_low(self, meter: Meter, now: float) -> None:
        """The engine says that a neighbour's credit is low."""
        link = self._by_meter.get(id(meter))
        if link is not None:
            self._active[link] = now
            self._do(self.desk.on_readings(link, link.rtt_s, now))

    def price(self, link: Link, side: Side, wei_per_packet: int) -> Price:
        """What packets of a circuit are charged to on one side of a link."""
        return Price(self.meters(link)[side == "paying"], wei_per_packet)

    def meters(self, link: Link) -> tuple[Meter, Meter]:
        """What the neighbour has left and was charged, and what we owe it."""
        money = self._links.get(link)
        if money is None:
            return Meter(), Meter()
        return money.counts["earning"].meter, money.counts["paying"].meter

    def circuit_up(
        self,
        flow: FlowHandle,
        front: Link | None,
        price_in: int,
        back: Link | None,
        price_out: int,
        now: float,
    ) -> None:
        """A circuit stands."""
        sides: tuple[tuple[Link | None, Side, int], ...] = (
            (front, "earning", price_in),
            (back, "paying", price_out),
        )
        for link, side, price in sides:
            if link is not None and price and link in self._links:
                self._links[link].counts[side].flows[flow] = None
                self._flows.setdefault(flow, []).append(self._links[link].counts[side])
        self._do(self.desk.circuit_up(flow, front, price_in, back, price_out, now))
        tabs = None if front is None else self.desk.links.get(front)
        if front is not None and tabs is not None and tabs.earning is not None:
            self._links[front].counts["earning"].meter.low_wei = tabs.earning.low_mark_wei()

    def circuit_down(self, flow: FlowHandle, now: float) -> None:
        """A circuit is gone."""
        for count in self._flows.pop(flow, ()):
            count.leave(flow)
        self._do(self.desk.circuit_down(flow, now))

    def note_junk(self, link: Link, now: float) -> None:
        """A circuit that goes out on a link was ended because of packets that nobody can use."""
        self.desk.on_junk(link, now)

    def explain_unpayable(
        self, link: Link, price_out: int, now: float, front: Link | None = None
    ) -> str | None:
        """Why a circuit that costs `price_out` cannot go out on a link, as a sentence; None if it can.
        `front`: the neighbour that asks for it, if it is not this node's own.
        """
        if price_out == 0:
            return None
        easy_wei = EASY_ONWARD_TIMES * self._price_wei or self._settings.max_window_wei // FREE_ONWARD_SHARE
        if self._is_relay and price_out > easy_wei:
            return "it costs more onward than this relay advances"
        tabs = self.desk.links.get(link)
        if front is not None and tabs is not None and tabs.paying is not None and tabs.paying.payee:
            self.purses.backing.ask(tabs.paying.payee, front)
        self._do(self.desk.want(link, now))
        return self.desk.explain(link, now)

    def paid_link(self, node_id: bytes) -> Link | None:
        """The link on which our purse towards a relay is attached, if there is one: circuits belong there."""
        for link, tabs in self.desk.links.items():
            if tabs.peer == node_id and tabs.paying is not None and tabs.paying.is_wanted:
                return link
        return None

    def explain(self, link: Link) -> str | None:
        """Why circuits on a link cannot be paid just now, as a sentence."""
        return self.desk.explain(link, trio.current_time())

    def set_price(self, wei_per_packet: int) -> None:
        """The operator asks another price."""
        self._price_wei = wei_per_packet

    def allow(self, left_wei: int | None) -> None:
        """Give no more than `left_wei` from now on (None: no limit)."""
        self._do_now(self.desk.allow(left_wei, trio.current_time()))

    def is_filling(self, link: Link) -> bool:
        """Whether the purse for a link is being filled, so that waiting makes sense."""
        tabs = self.desk.links.get(link)
        return tabs is not None and tabs.paying is not None and tabs.paying.is_filling

    def is_payable(self, link: Link) -> bool:
        """Whether tickets can be given on a link at once."""
        tabs = self.desk.links.get(link)
        return tabs is not None and tabs.paying is not None and tabs.paying.is_payable

    # -- tasks

    async def run(self) -> None:
        """Carry out what takes time, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.vault.run)
            nursery.start_soon(self._keep_counts)
            nursery.start_soon(self.purses.run)
            nursery.start_soon(self._idle.run)
            nursery.start_soon(self._redeem)

    def close(self) -> None:
        """The node stops: keep what was given and taken."""
        now = trio.current_time()
        for link in list(self._links):
            self.link_closed(link, now)
        self.vault.close()

    async def _redeem(self) -> None:
        """Claim while running; a customer has nothing to claim, but may have left a transaction under way."""
        if self._redeemer is not None:
            await self._redeemer.run()
            return
        with suppress(ChainError, LedgerError):
            for old in await self._sender.resume():
                with suppress(ChainError):
                    await self._sender.wait(old)

    async def _keep_counts(self) -> None:
        """Look at links that carry often, at all others now and then: there may be thousands of them."""
        all_at = 0.0
        while True:
            now = trio.current_time()
            if now >= all_at:
                all_at = now + (IDLE_S if len(self._links) <= FEW_LINKS else MANY_S)
                self._look_at_counts(list(self._links), now)
            else:
                self._look_at_counts(list(self._active), now)
            await trio.sleep(BUSY_S if self._active else IDLE_S)

    def _look_at_counts(self, links: list[Link], now: float) -> None:
        """Give the desk what was counted where something moved or is due."""
        for link in links:
            money = self._links.get(link)
            if money is None:
                self._active.pop(link, None)
                continue
            earning, paying = money.counts["earning"].meter, money.counts["paying"].meter
            seen = (earning.charged_wei, earning.refused_packets, paying.charged_wei)
            moved = seen != money.seen
            money.seen = seen
            if moved:
                self._active[link] = now
            elif now - self._active.get(link, now) > ACTIVE_S:
                del self._active[link]
            if moved or self.desk.is_due(link, now):
                self._do_now(self.desk.on_readings(link, link.rtt_s, now))

    # -- acts

    def _do_now(self, acts: list[Act[Link]]) -> None:
        """Carry acts out from a task, outside of the links' batches."""
        if acts:
            self._do(acts)
            self._host.flush()

    def _do(self, acts: list[Act[Link]]) -> None:
        for act in acts:
            link, side = act.link, act.side
            match act.output:
                case Send(message):
                    link.send_control(encode_control(Payment(message)))
                case Credit(wei):
                    self._credit(link, wei)
                case Store():
                    self._store(link, side, act.output)
                case Load(payer):
                    money = self._links.get(link)
                    if money is not None:
                        money.payer = payer
                        self.purses.begin(act)
                case LoadOwn() | Look() | Fund():
                    self.purses.begin(act)
                case CloseCircuits(reason, detail):
                    self.counters[f"closed {reason.name.lower()}"] += 1
                    self._note(log.info, "circuits ended over money", link, reason=detail)
                    self._host.end_paid_circuits(link, side, reason, detail)
                case CutOff(reason, detail):
                    self.counters[f"cut off {reason.name.lower()}"] += 1
                    self._note(log.warning, "link cut over money", link, reason=detail)
                    self._host.end_paid_circuits(link, side, reason, detail)
                    link.close(CLOSE_BASE + reason, detail[:200])
                case Dispute(ours, theirs):
                    self.counters["disputes"] += 1
                    self._note(
                        log.warning,
                        "counts disputed",
                        link,
                        ours_wei=ours.spent_wei,
                        theirs_wei=theirs.spent_wei,
                    )
                case Warn(concern):
                    self.problems["purse"] = f"money: {concern.value}"
                    self._note(log.warning, "purse used elsewhere", link, reason=concern.value)
                case GaveUp(wei):
                    self.counters["given up"] += 1
                    self._note(log.warning, "prepaid for packets of no use", link, wei=wei)
                case Ready():
                    self._ready(link, side)
                case Asked():
                    self.counters["asked"] += 1

    def _credit(self, link: Link, wei: int) -> None:
        count = self._links[link].counts["earning"]
        self._engine.add_credit(count.meter, list(count.flows), wei)

    def _ready(self, link: Link, side: Side) -> None:
        tabs = self.desk.links.get(link)
        money = self._links.get(link)
        if tabs is None or money is None:
            return
        if side == "earning" and tabs.earning is not None:
            money.earned_noted = (0, 0, tabs.earning.tab.worth_wei)
        log.info("purse attached", peer=name_of(link), side=side)
        self._host.on_payable()

    def _store(self, link: Link, side: Side, store: Store) -> None:
        money = self._links.get(link)
        if money is None:
            return
        tabs = money.tabs  # The desk has forgotten a link when the last states of it come.
        if side == "paying":
            if tabs is not None and tabs.paying is not None:
                purse = PurseKeyed(self._domain, self._key.address, tabs.paying.payee)
                self.vault.put("payer", purse, store.state)
            return
        purse = PurseKeyed(self._domain, money.payer, self._payee)
        if tabs is not None and tabs.earning is not None:
            tab = tabs.earning.tab
            packets = money.counts["earning"].meter.packets
            old = money.earned_noted
            money.earned_noted = (packets, tab.tickets, tab.worth_wei)
            day = int(time.time() // _DAY_S)
            self.vault.add_earnings(
                DayEarnings(
                    day, money.payer, packets - old[0], tab.tickets - old[1], tab.worth_wei - old[2], 0, 0
                )
            )
        self.vault.put("payee", purse, store.state, (link, store.sequence))

    def _on_written(self, tokens: list[Hashable]) -> None:
        now = trio.current_time()
        newest: dict[Link, int] = {}
        for token in tokens:
            assert isinstance(token, tuple)
            newest[token[0]] = max(newest.get(token[0], 0), token[1])
        for link, sequence in newest.items():
            if link in self._links:
                self._do_now(self.desk.on_stored(link, sequence, now))

    def _on_purse_busy(self, side: str, purse: PurseKeyed) -> None:
        """Someone else wrote this purse: nothing more is given or taken on it here."""
        # Who pays us is a customer as a rule, and is named in no log.
        which = "a purse that pays us" if side == "payee" else f"the purse to {checksum_address(purse.payee)}"
        self.problems["purse"] = f"money: another process used {which}; stop it"
        log.error("purse changed by another process", side=side)
        for link, money in list(self._links.items()):
            tabs = self.desk.links.get(link)
            ours = tabs is not None and tabs.paying is not None and tabs.paying.payee == purse.payee
            if money.payer == purse.payer if side == "payee" else ours:
                link.close(CLOSE_BASE + CloseReason.PURSE_BUSY, "the purse is in use by another process")

    # -- showing

    def status(self) -> dict[str, Any]:
        """What `hopfare status` shows of money."""
        return {
            "account": checksum_address(self._key.address),
            "payee": checksum_address(self._payee),
            "price_wei_per_packet": self._price_wei,
            "tabs": list_tabs(self),
            "disputes": self.counters["disputes"],
            "counters": dict(self.counters),
            "startup_credit_wei": self.purses.starts.total_wei,
        }

    def totals(self) -> dict[str, float]:
        """What was earned, claimed, spent and paid for gas in all, nearly. Reads the disk: for a thread.

        Raises LedgerError.
        """
        return self.ledger.totals(self._domain)

    def list_problems(self) -> list[str]:
        """Sentences on what is wrong with money, for the operator."""
        found = list(self.problems.values())
        if self.purses.problem:
            found.append(self.purses.problem)
        if self.vault.problem:
            found.append(self.vault.problem)
        return found

    # -- inside

    def _read(self, link: Link, side: Side) -> Reading:
        return self._links[link].counts[side].read()

    def _silence_s(self, link: Link) -> float:
        return trio.current_time() - link.last_receive_s

    def _note(self, write: Any, event: str, link: Link, **values: object) -> None:
        """Log what a peer can cause, at a bounded rate."""
        suppressed = self._limit.allow(event, trio.current_time())
        if suppressed is not None:
            write(event, peer=name_of(link), **values, **({"suppressed": suppressed} if suppressed else {}))
