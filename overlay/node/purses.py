"""Purses of a running node, in ledger and chain: looked up, looked at again, filled, watched.

Owns the tasks that take time, how many of them there are at once, and start-up credit. Tells the desk what it
found and has its acts carried out by `overlay.node.money`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from overlay.errors import OverlayError
from overlay.logs import get_logger
from overlay.tabs.backing import Backing
from overlay.tabs.types import Fund, LoadOwn, Look
from payments.errors import ChainError, LedgerError, PaymentsError
from payments.exposure import Exposure
from payments.io.ledger import PurseKeyed
from payments.keys import checksum_address
from payments.tab import Load
from payments.validator import PurseView

if TYPE_CHECKING:
    from overlay.config.model import PaymentsConfig
    from overlay.links.link import Link
    from overlay.node.io.vault import Vault
    from overlay.node.io.wallet import Wallet
    from overlay.tabs.desk import Act, Desk
    from payments.abi import OnChainPurse
    from payments.io.chain.client import Chain

LOAD_TIMEOUT_S = 9.0
"""For ledger and chain to tell of a purse; a payer waits ten seconds for service."""
MAX_LOADS = 8
"""Of purses with money in them, and as many of others: new keys cost nothing, so they only delay
each other."""
LOOK_AGAIN_S = 0.5
VIEW_KEPT_S = 3600.0
"""A purse seen so lately is served although no endpoint of the chain answers."""
MAX_VIEWS = 65_536
CONFIRM_TIMEOUT_S = 900.0
CONFIRM_POLL_S = 1.0
UNBACKED_SHARE = 2
"""Of all that may be in purses, a half may be opened for neighbours that have shown no money."""

log = get_logger("money")


class Purses:
    """Of one node. `run` in a nursery; `begin` from the node's own task."""

    def __init__(
        self,
        settings: PaymentsConfig,
        chain: Chain,
        vault: Vault,
        wallet: Wallet,
        *,
        own: bytes,
        payee: bytes,
        payee_of: Callable[[bytes], bytes],
        do: Callable[[list[Act[Link]]], None],
        note: Callable[..., None],
        on_change: Callable[[], None],
    ) -> None:
        """`own` is our account, `payee` who is paid for us; `payee_of` gives a relay's account, `do` carries
        acts out, `note` logs what a peer can cause, `on_change` hears when somebody can or cannot be paid.
        """
        self.desk: Desk[Link]
        self.problem = ""
        self.backing: Backing[Link] = Backing(
            settings.max_in_purses_wei // UNBACKED_SHARE, self._left_for_us_wei
        )
        self.starts = Exposure(settings.max_startup_credit_wei, settings.startup_credit_wei)
        self._settings = settings
        self._chain = chain
        self._domain = chain.domain
        self._vault = vault
        self._wallet = wallet
        self._own = own
        self._payee = payee
        self._payee_of = payee_of
        self._do_now = do
        self._note = note
        self._on_change = on_change
        self._lent: dict[bytes, bytes] = {}
        self._views: dict[bytes, tuple[float, PurseView]] = {}
        self._looked: dict[bytes, float] = {}
        self._loads = trio.CapacityLimiter(MAX_LOADS)
        self._known_loads = trio.CapacityLimiter(MAX_LOADS)
        self._deciding = trio.Lock()
        self._filling: dict[bytes, trio.Lock] = {}
        self._targets: dict[bytes, int] = {}
        """What is to be deposited in all in purses that are being filled: it counts as held already."""
        self._nursery: trio.Nursery | None = None
        self._late: list[Act[Link]] = []

    async def run(self) -> None:
        """Do what was begun, and watch our purses, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            late, self._late = self._late, []
            for act in late:
                self.begin(act)
            await self._keep_purses()

    def begin(self, act: Act[Link]) -> None:
        """Begin what an act asks of ledger or chain."""
        if self._nursery is None:
            self._late.append(act)
            return
        match act.output:
            case Load(payer):
                self._nursery.start_soon(self._load, act.link, payer)
            case LoadOwn(payee):
                self._nursery.start_soon(self._load_own, act.link, payee)
            case Look(payer):
                self._nursery.start_soon(self._look, act.link, payer)
            case Fund(payee, deposit_wei):
                self._nursery.start_soon(self._fund, act.link, payee, deposit_wei)

    def view_of(self, payer: bytes | None) -> PurseView:
        """What was last seen of a purse that pays us."""
        seen = None if payer is None else self._views.get(payer)
        return PurseView() if seen is None else seen[1]

    def forget_start(self, payer: bytes, worth_wei: int) -> None:
        """A link whose purse had start-up credit is gone: if none was used it is free again. What was used
        stays lent until the purse's opening is confirmed.
        """
        if worth_wei <= self.view_of(payer).deposited_wei:
            self.starts.release(payer)

    async def _keep_purses(self) -> None:
        """See what became of our purses on the chain, now and then."""
        while True:
            await trio.sleep(self._settings.claim_interval_s)
            payees = {
                tabs.paying.payee
                for tabs in self.desk.links.values()
                if tabs.paying is not None and tabs.paying.is_wanted
            }
            pairs = [(self._own, payee) for payee in payees]
            try:
                purses = await self._chain.purses(pairs, self._settings.confirmations)
            except ChainError:
                continue
            for (_, payee), purse in zip(pairs, purses, strict=True):
                self._do_now(self.desk.on_own_purse(payee, _view_of(purse), trio.current_time()))
            if pairs:
                self._on_change()

    async def _load(self, link: Link, payer: bytes) -> None:
        """A neighbour has shown a purse: what do ledger and chain say of it?"""
        purse = PurseKeyed(self._domain, payer, self._payee)
        try:
            with trio.fail_after(LOAD_TIMEOUT_S):
                async with self._known_loads if payer in self._views else self._loads:
                    state = await self._vault.load("payee", purse)
                    view = await self._view(payer)
        except (LedgerError, ChainError, trio.TooSlowError) as error:
            self._note(log.warning, "purse not looked up", link, reason=str(error) or "too slow")
            self._do_now(self.desk.on_load_failed(link, payer, trio.current_time()))
            return
        tabs = self.desk.links.get(link)
        if tabs is None or tabs.earning is None:
            return
        if (
            tabs.peer is not None
            and self._payee_of(tabs.peer) == payer
            and tabs.earning.start_credit_wei > view.deposited_wei
        ):
            # Only for the account that its descriptor names, and once: new keys cost nothing.
            share = self._lend(tabs.peer, payer, tabs.earning.start_credit_wei)
            view = PurseView(view.deposited_wei, view.claimed_wei, view.unlocking, share)
        self._do_now(self.desk.on_loaded(link, payer, state, view, trio.current_time()))

    def _lend(self, peer: bytes, payer: bytes, wanted_wei: int) -> int:
        """Start-up credit for a purse: one account of an identity, or each new descriptor would get it."""
        holder = self._lent.get(peer, payer)
        if holder != payer and self.starts.share_wei(holder):
            return 0
        share = self.starts.request(payer, wanted_wei)
        self._lent[peer] = payer
        self._lent = {peer: payer for peer, payer in self._lent.items() if self.starts.share_wei(payer)}
        return share

    async def _view(self, payer: bytes) -> PurseView:
        """A purse that pays us, as the chain confirms it; lately seen ones also while the chain is away."""
        try:
            purse = await self._chain.purse(payer, self._payee, self._settings.confirmations)
        except ChainError:
            seen = self._views.get(payer)
            if seen is None or trio.current_time() - seen[0] > VIEW_KEPT_S:
                raise
            old = seen[1]
            return PurseView(old.deposited_wei, old.claimed_wei, old.unlocking, self.starts.share_wei(payer))
        return self._see(payer, purse)

    def _see(self, payer: bytes, purse: OnChainPurse) -> PurseView:
        view = _view_of(purse)
        share = self.starts.share_wei(payer)
        if not view.deposited_wei and not share:
            # Whoever shows keys of empty purses must not push out those with money in them.
            self._views.pop(payer, None)
            return view
        if payer not in self._views and len(self._views) >= MAX_VIEWS:
            del self._views[next(iter(self._views))]
        self._views[payer] = (trio.current_time(), view)
        if share and view.deposited_wei >= share:
            self.starts.release(payer)
            share = 0
        return PurseView(view.deposited_wei, view.claimed_wei, view.unlocking, share)

    def used(self) -> set[bytes]:
        """Payees whose purses paid circuits go over now, or that are being filled."""
        return self.desk.payees_in_use() | set(self._filling)

    def watched(self) -> set[bytes]:
        """Payers whose purses the redeemer should look at whatever they owe: those attached to a link, and
        those that were lent start-up credit.
        """
        return self.desk.payers() | set(self._lent.values())

    def on_purse(self, payer: bytes, purse: OnChainPurse) -> None:
        """The redeemer has seen a purse that pays us."""
        self.desk.on_purse(payer, self._see(payer, purse))

    async def _look(self, link: Link, payer: bytes) -> None:
        """A purse seemed too small: perhaps there is more in it by now."""
        now = trio.current_time()
        if now - self._looked.get(payer, -LOOK_AGAIN_S) < LOOK_AGAIN_S:
            return
        if len(self._looked) >= MAX_VIEWS:
            self._looked.clear()
        self._looked[payer] = now
        try:
            async with self._loads:
                view = await self._view(payer)
        except ChainError:
            return
        if link in self.desk.links:
            self.desk.on_purse(payer, view)

    async def _load_own(self, link: Link, payee: bytes) -> None:
        try:
            with trio.fail_after(LOAD_TIMEOUT_S):
                state = await self._vault.load("payer", self._own_purse(payee))
                view = await self._own_view(payee)
        except (LedgerError, ChainError, trio.TooSlowError) as error:
            reason = str(error) or "the chain does not answer"
            self._note(log.warning, "own purse not looked up", link, reason=reason)
            self.desk.on_own_failed(link, f"our purse cannot be looked up: {reason}", trio.current_time())
        else:
            self._do_now(self.desk.on_own_loaded(link, state, view, trio.current_time()))
        self._on_change()

    async def _own_view(self, payee: bytes) -> PurseView:
        purse = await self._chain.purse(self._own, payee, self._settings.confirmations)
        return _view_of(purse)

    def _own_purse(self, payee: bytes) -> PurseKeyed:
        return PurseKeyed(self._domain, self._own, payee)

    async def _fund(self, link: Link, payee: bytes, deposit_wei: int) -> None:
        """Open or fill our purse towards `payee`, within the operator's limits, and wait until it counts."""
        name = checksum_address(payee)
        try:
            added_wei = await self._fill(payee, deposit_wei)
            if added_wei:
                log.info("purse filled", payee=name, added_wei=added_wei)
            with trio.fail_after(CONFIRM_TIMEOUT_S):
                while link in self.desk.links:
                    view = await self._own_view(payee)
                    if view.deposited_wei >= deposit_wei:
                        self.problem = ""
                        self._do_now(self.desk.on_own_purse(payee, view, trio.current_time()))
                        self._on_change()
                        return
                    await trio.sleep(CONFIRM_POLL_S)
        except (PaymentsError, OverlayError, trio.TooSlowError) as error:
            reason = str(error) or "it is not confirmed in time"
            self.problem = f"money: the purse towards {name} is not filled: {reason}"
            self._note(log.error, "purse not filled", link, payee=name, reason=reason)
            self.desk.on_own_failed(link, f"the purse for it cannot be filled: {reason}", trio.current_time())
            self._on_change()

    async def _fill(self, payee: bytes, deposit_wei: int) -> int:
        """Have a transaction mined that makes the deposit `deposit_wei`, if it is less; return what it adds.

        Purses are filled side by side, each by one at a time; only what is decided about all of them is done
        one after the other.
        """
        lock = self._filling.setdefault(payee, trio.Lock())
        try:
            async with lock:
                # An earlier attempt may have sent one, also before a crash: it must not be sent twice.
                at_block = await self._wallet.finish_deposits(payee)
                async with self._deciding:
                    missing, is_new = await self._decide(payee, deposit_wei, at_block)
                if missing:
                    try:
                        await self._wallet.deposit(payee, missing, is_new=is_new)
                    finally:
                        self._targets.pop(payee, None)
                return missing
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._filling.pop(payee, None)

    async def _decide(self, payee: bytes, deposit_wei: int, at_block: int) -> tuple[int, bool]:
        """How much to deposit, and whether the purse is new. Raises PaymentsError if a limit forbids it."""
        [now] = await self._chain.purses([(self._own, payee)], least_block=at_block)
        missing = deposit_wei - now.deposited_wei
        is_new = now.deposited_wei <= now.claimed_wei
        if missing <= 0:
            return 0, is_new
        missing = max(missing, self._settings.purse_deposit_wei)
        await self._check_limit(missing)
        if is_new and not self.backing.may_open(payee, missing):
            raise PaymentsError(
                "who asks for it has shown no money, and purses for such neighbours hold as much as they may "
                "(half of payments.max_in_purses)"
            )
        self._targets[payee] = now.deposited_wei + missing
        return missing, is_new

    def _left_for_us_wei(self, front: Link) -> int:
        """What a neighbour's purse holds that it has not given us tickets for; confirmed money only."""
        tabs = self.desk.links.get(front)
        if tabs is None or tabs.earning is None or not tabs.earning.tab.is_open:
            return 0
        tab = tabs.earning.tab
        return max(0, self.view_of(tab.payer).deposited_wei - tab.worth_wei)

    async def _check_limit(self, more_wei: int) -> None:
        """Raise PaymentsError if our purses would hold more than the operator allows."""
        known = await trio.to_thread.run_sync(self._vault.ledger.purses, "payer", self._domain)
        under_way: dict[bytes, int] = {}
        for deposit in await self._wallet.unfinished_deposits():
            under_way[deposit.payee] = under_way.get(deposit.payee, 0) + deposit.wei
        payees = list({purse.payee for purse, _, _ in known} | set(self._targets) | set(under_way))
        purses = await self._chain.purses([(self._own, payee) for payee in payees])
        held = 0
        for payee, purse in zip(payees, purses, strict=True):
            target = self._targets.get(payee)
            deposited = purse.deposited_wei
            deposited = deposited + under_way.get(payee, 0) if target is None else max(deposited, target)
            held += deposited - purse.claimed_wei
        if held + more_wei > self._settings.max_in_purses_wei:
            raise PaymentsError(
                f"all purses would hold {held + more_wei} wei, more than payments.max_in_purses allows"
            )


def _view_of(purse: OnChainPurse) -> PurseView:
    return PurseView(purse.deposited_wei, purse.claimed_wei, bool(purse.unlock_at_s))
