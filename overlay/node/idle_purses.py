"""Takes back the money in purses that this node no longer uses: unlocks them, and withdraws after the notice.

When is `payments.idle`'s; transactions are the wallet's. What goes wrong is logged and tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from overlay.errors import OverlayError
from overlay.logs import get_logger
from payments.errors import PaymentsError
from payments.idle import IdlePurses, OwnPurse, Unlock, Withdraw
from payments.keys import checksum_address

if TYPE_CHECKING:
    from overlay.node.io.wallet import Wallet
    from payments.io.chain.client import Chain
    from payments.io.ledger import Ledger

LOOK_S = 900.0
MAX_AT_ONCE = 8
"""Purses that one look unlocks or empties: each is a transaction or two."""
_NOTE = "idle purses"

log = get_logger("money")


class IdleKeeper:
    """Of one node. `run` in a nursery."""

    def __init__(
        self,
        chain: Chain,
        ledger: Ledger,
        wallet: Wallet,
        *,
        own: bytes,
        after_days: int,
        used: Callable[[], set[bytes]],
    ) -> None:
        """`used` names the payees whose purses are in use or being filled; `after_days` 0 does nothing."""
        self._chain = chain
        self._ledger = ledger
        self._wallet = wallet
        self._own = own
        self._after_days = after_days
        self._used = used
        self._idle: IdlePurses | None = None

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        if not self._after_days:
            return
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.look()
            except (PaymentsError, OverlayError) as error:
                log.warning("idle purses not taken back", reason=str(error))

    async def look(self) -> None:
        """Count idle days, and do what is due. Raises PaymentsError and OverlayError."""
        if self._idle is None:
            self._idle = IdlePurses(await trio.to_thread.run_sync(self._ledger.get_note, _NOTE))
        domain = self._chain.domain
        known = await trio.to_thread.run_sync(self._ledger.purses, "payer", domain)
        states = {keyed.payee: state for keyed, state, _ in known if keyed.payer == self._own}
        newest = await self._chain.block()
        used = self._used()
        worth = {payee: state.worth_wei for payee, state in states.items()}
        self._idle.observe(newest.time_s, worth, used)
        payees = [payee for payee in states if payee not in used]
        found = await self._chain.purses([(self._own, payee) for payee in payees])
        purses = [
            OwnPurse(payee, p.deposited_wei, p.claimed_wei, p.unlock_at_s, worth[payee])
            for payee, p in zip(payees, found, strict=True)
        ]
        fees = await self._chain.fees()
        price_wei = newest.base_fee_wei + fees.tip_wei
        due = self._idle.choose(purses, used, self._after_days, price_wei, newest.time_s)
        await self._keep()
        for act in due[:MAX_AT_ONCE]:
            if act.purse.payee not in self._used():
                await self._do(act)

    async def _do(self, act: Unlock | Withdraw) -> None:
        assert self._idle is not None
        payee = act.purse.payee
        name = checksum_address(payee)
        if isinstance(act, Unlock):
            self._idle.unlocking(payee)
            await self._keep()
            done = await self._wallet.unlock(payee)
            log.info(
                "idle purse unlocked",
                payee=name,
                left_wei=act.purse.left_wei,
                idle_days=act.days,
                unlock_at_s=done["unlock_at_s"],
            )
        else:
            done = await self._wallet.withdraw(payee)
            self._idle.withdrawn(payee)
            await self._keep()
            log.info("idle purse withdrawn", payee=name, wei=done["withdrawn_wei"])

    async def _keep(self) -> None:
        assert self._idle is not None
        await trio.to_thread.run_sync(self._ledger.put_note, _NOTE, self._idle.keep())
