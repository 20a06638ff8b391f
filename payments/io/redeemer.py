"""The redemption task: watches the purses that pay us, and claims when `payments.redeemer` says so.

Owns the round of reading, deciding, sending and waiting; every decision is the pure module's. Purses and
claims come from the ledger, so a restart goes on where it was. What goes wrong on the chain (no endpoint,
no gas money, a revert) ends a round, is logged, and is tried again in the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog
import trio

from payments.abi import OnChainPurse, encode_claims
from payments.errors import ChainError, LedgerError, NoFundsError
from payments.fees import Fees, GasAverage
from payments.io.chain.client import Chain
from payments.io.chain.sender import Sender
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed
from payments.keys import checksum_address
from payments.redeemer import (
    MAX_READS,
    Batch,
    Claimable,
    RedeemLimits,
    choose_reads,
    decide,
    split_evenly,
)

_AVERAGE_NOTE = "gas average"
_DAY_S = 86400

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round did: purses looked at, claims sent and confirmed, what they brought and cost."""

    purses: int = 0
    claims: int = 0
    claimed_wei: int = 0
    gas_wei: int = 0


class Redeemer:
    """Claims for one payee. `sender`'s account pays the gas; it need not be the payee."""

    def __init__(
        self,
        chain: Chain,
        sender: Sender,
        ledger: Ledger,
        payee: bytes,
        limits: RedeemLimits,
        clock: Callable[[], float],
        *,
        confirmations: int = 3,
        interval_s: float = 60.0,
        on_purse: Callable[[bytes, OnChainPurse], None] | None = None,
        watched: Callable[[], Collection[bytes]] = tuple,
    ) -> None:
        """Claim for `payee` (20 bytes). `on_purse(payer, purse)` hears what the chain says of the purses
        looked at; those of the payers that `watched` names are, even if they owe nothing.
        """
        self._chain = chain
        self._sender = sender
        self._ledger = ledger
        self._payee = payee
        self._limits = limits
        self._clock = clock
        self._confirmations = confirmations
        self._interval_s = interval_s
        self._on_purse = on_purse
        self._watched = watched
        self._rounds = 0
        self._read_at: dict[bytes, int] = {}
        self._claimed: dict[bytes, int] = {}
        """What was claimed from each purse, by payer, when this round began."""
        self._average: GasAverage | None = None
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Redeem until cancelled; a claim under way is found again by the next run."""
        failing = False
        resumed = False
        while True:
            try:
                if not resumed:
                    await self._finish_old()
                    resumed = True
                await self.round()
                failing = False
            except NoFundsError:
                if not failing:
                    log.error("redeem_no_gas_money", account=checksum_address(self._sender.address))
                failing = True
            except (ChainError, LedgerError) as error:
                # A full disk passes too; what is to be claimed is on it already.
                if not failing:
                    log.warning("redeem_failed", reason=str(error))
                failing = True
            await trio.sleep(self._interval_s)

    async def round(self, force: bool = False) -> RoundResult:
        """Look once, claim what is to be claimed (`force`: all that brings more than its gas), wait for it.

        Raises ChainError as the chain and the sender do. Harmless to repeat at any time; of two calls at
        once the second begins when the first is done.
        """
        async with self._lock:
            return await self._round(force)

    async def _round(self, force: bool) -> RoundResult:
        newest = await self._chain.block()
        price = newest.base_fee_wei + (await self._chain.fees()).tip_wei
        purses = await self._read_purses(price, None if force else MAX_READS)
        average = await self._observe(price)
        limits = self._limits
        if force:
            limits = RedeemLimits(1, float("inf"), limits.deadline_margin_s, limits.max_batch)
        is_dear = not force and average.is_dear(price, limits.dear_multiple)
        batches = decide(purses, price, is_dear, float(newest.time_s), limits)
        done = RoundResult(purses=len(purses))
        for batch in batches:
            done = await self._claim(batch, await self._chain.fees(), done)
        return done

    async def _read_purses(self, gas_price_wei: int, most: int | None) -> list[Claimable]:
        """Look at the purses that matter, a hundred in one request."""
        stored = await trio.to_thread.run_sync(self._ledger.claims, self._chain.domain, self._payee)
        chosen = choose_reads(stored, gas_price_wei, self._watched(), self._read_at, most)
        self._rounds += 1
        known = {claim.payer for claim, _ in stored}
        self._claimed = {claim.payer: claimed_wei for claim, claimed_wei in stored}
        self._read_at = {payer: at for payer, at in self._read_at.items() if payer in known}
        pairs = [(stored[place][0].payer, self._payee) for place in chosen]
        # Confirmed money counts for what a batch is worth; claims made by anyone count at once.
        purses = await self._chain.purses(pairs, self._confirmations)
        found: list[Claimable] = []
        changed: list[tuple[PurseKeyed, int]] = []
        for place, purse in zip(chosen, purses, strict=True):
            claim, known_claimed = stored[place]
            self._read_at[claim.payer] = self._rounds
            if self._on_purse is not None:
                self._on_purse(claim.payer, purse)
            if purse.claimed_wei != known_claimed:
                keyed = PurseKeyed(self._chain.domain, claim.payer, self._payee)
                changed.append((keyed, purse.claimed_wei))
                self._claimed[claim.payer] = purse.claimed_wei
            found.append(Claimable(claim, purse.deposited_wei, purse.claimed_wei, purse.unlock_at_s))
        if changed:
            await trio.to_thread.run_sync(self._ledger.note_claimed, changed)
        return found

    async def _observe(self, price_wei: int) -> GasAverage:
        if self._average is None:
            note = await trio.to_thread.run_sync(self._ledger.get_note, _AVERAGE_NOTE)
            self._average = GasAverage()
            if note is not None:
                average, at_s = json.loads(note)
                self._average = GasAverage(average, at_s)
        known = self._average.average_wei is not None
        before = GasAverage(self._average.average_wei, self._average.at_s)
        self._average.observe(price_wei, self._clock())
        text = json.dumps([self._average.average_wei, self._average.at_s])
        await trio.to_thread.run_sync(self._ledger.put_note, _AVERAGE_NOTE, text)
        return before if known else self._average

    async def _claim(self, batch: Batch, fees: Fees, done: RoundResult) -> RoundResult:
        await self._sender.prepare()
        before = await self._chain.earned(self._payee)
        sent = await self._sender.send(
            self._chain.domain.contract,
            encode_claims(batch.claims),
            kind="claim",
            gas_limit=batch.gas_limit,
            fees=fees,
        )
        log.info("claim_sent", purses=len(batch.claims), urgent=batch.urgent, due_wei=batch.due_wei)
        receipt = await self._sender.wait(sent, self._confirmations)
        gained = max(0, await self._chain.earned(self._payee) - before)
        pairs = [(claim.payer, self._payee) for claim in batch.claims]
        purses = await self._chain.purses(pairs)
        claimed = [
            (PurseKeyed(self._chain.domain, *pair), purse.claimed_wei)
            for pair, purse in zip(pairs, purses, strict=True)
        ]
        await trio.to_thread.run_sync(self._ledger.note_claimed, claimed)
        day = int(self._clock() // _DAY_S)
        gas_wei = split_evenly(receipt.fee_wei, len(batch.claims))
        rows = [
            DayEarnings(day, keyed.payer, 0, 0, 0, max(0, wei - self._claimed.get(keyed.payer, 0)), gas)
            for (keyed, wei), gas in zip(claimed, gas_wei, strict=True)
        ]
        self._claimed |= {keyed.payer: wei for keyed, wei in claimed}
        await trio.to_thread.run_sync(self._ledger.store_many, (), rows)
        log.info("claim_confirmed", purses=len(batch.claims), claimed_wei=gained, gas_wei=receipt.fee_wei)
        return RoundResult(
            done.purses,
            done.claims + len(batch.claims),
            done.claimed_wei + gained,
            done.gas_wei + receipt.fee_wei,
        )

    async def _finish_old(self) -> None:
        """Wait for what an earlier process sent, so that nothing is claimed twice and gas paid for it."""
        for transaction in await self._sender.resume():
            try:
                await self._sender.wait(transaction, 1)
            except (ChainError, LedgerError) as error:
                log.warning("old_transaction_failed", kind=transaction.kind, reason=str(error))
