"""What there is to see of this node's account: money on the chain, purses, earnings. Changes nothing.

Amounts are whole wei. Needs the ledger and the chain, not the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from payments import abi
from payments.books import Domain
from payments.io.chain.client import Chain, run_together
from payments.io.ledger import Ledger
from payments.keys import checksum_address
from payments.pricing import format_coin

if TYPE_CHECKING:
    from overlay.config.model import PaymentsConfig

MAX_PURSES = 500
MAX_ROWS = 10_000
"""Purses, and days times neighbours, in one answer; the control socket's answers are bounded."""


class WalletView:
    """One account, its ledger and its chain."""

    def __init__(
        self, payments: PaymentsConfig, chain: Chain, ledger: Ledger, *, address: bytes, payee: bytes
    ) -> None:
        """Show the account `address`; `payee` is who is paid for this node (20 bytes each)."""
        self._payments = payments
        self._chain = chain
        self._ledger = ledger
        self._address = address
        self._payee = payee

    async def show(self) -> dict[str, Any]:
        """Return the account, its money, and the purses that it pays from and is paid from."""
        domain = self._chain.domain
        mine = (await trio.to_thread.run_sync(self._ledger.purses, "payer", domain))[:MAX_PURSES]
        purses: list[abi.OnChainPurse] = []
        account: dict[str, int] = {}

        async def read_purses() -> None:
            purses.extend(await self._chain.purses([(keyed.payer, keyed.payee) for keyed, _, _ in mine]))

        async def read_account() -> None:
            account["balance_wei"] = await self._chain.balance(self._address)
            account["cash_out_wei"] = await self._chain.earned(self._payee)
            account["notice_s"] = await self._chain.notice_s()

        newest = await self._chain.block()
        await run_together(read_purses, read_account)
        found: list[dict[str, Any]] = []
        for (keyed, state, _), purse in zip(mine, purses, strict=True):
            if not purse.deposited_wei and state.book is None:
                continue  # an opening that never came to be, or is not there yet
            found.append(
                {
                    "payee": checksum_address(keyed.payee),
                    "deposited_wei": purse.deposited_wei,
                    "paid_wei": state.worth_wei,
                    "claimed_wei": purse.claimed_wei,
                    "left_wei": max(0, purse.deposited_wei - max(state.worth_wei, purse.claimed_wei)),
                    "unlock_at_s": purse.unlock_at_s,
                    "state": _state_word(purse, newest.time_s),
                }
            )
        return {
            "address": checksum_address(self._address),
            "payee": checksum_address(self._payee),
            "chain_id": domain.chain_id,
            "coin": self._payments.coin,
            "balance_wei": account["balance_wei"],
            "gas_wei": await trio.to_thread.run_sync(count_gas, self._ledger, domain.chain_id, self._address),
            "cash_out_wei": account["cash_out_wei"],
            "notice_s": account["notice_s"],
            "block": newest.number,
            "purses": found,
            "paying_us": await self._paying_us(),
        }

    async def earnings(self, first_day: int) -> dict[str, Any]:
        """Return what came in since `first_day` (days since 1970, UTC), and what is not claimed yet."""
        return await trio.to_thread.run_sync(
            read_earnings, self._ledger, self._chain.domain, self._payee, self._payments.coin, first_day
        )

    async def _paying_us(self) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(list_payers, self._ledger, self._chain.domain, self._payee)

    def _show(self, wei: int) -> str:
        return f"{format_coin(wei)} {self._payments.coin}"


def list_payers(ledger: Ledger, domain: Domain, payee: bytes) -> list[dict[str, Any]]:
    """Return the purses that pay us, those that owe the most first: from the ledger alone."""
    rows = [
        {
            "payer": checksum_address(keyed.payer),
            "worth_wei": state.worth_wei,
            "claimed_wei": claimed,
            "unclaimed_wei": max(0, state.worth_wei - claimed),
        }
        for keyed, state, claimed in ledger.purses("payee", domain)
        if keyed.payee == payee
    ]
    rows.sort(key=lambda row: -int(str(row["unclaimed_wei"])))
    return rows[:MAX_PURSES]


def read_earnings(ledger: Ledger, domain: Domain, payee: bytes, coin: str, first_day: int) -> dict[str, Any]:
    """Return the earnings since `first_day` by day and neighbour, and what is unclaimed now."""
    days = [
        {
            "day": row.day,
            "neighbour": checksum_address(row.neighbour) if len(row.neighbour) == 20 else row.neighbour.hex(),
            "packets": row.packets,
            "tickets": row.tickets,
            "earned_wei": row.earned_wei,
            "claimed_wei": row.claimed_wei,
            "gas_wei": row.gas_wei,
        }
        for row in ledger.earnings(first_day)
    ]
    purses = list_payers(ledger, domain, payee)
    return {
        "coin": coin,
        "payee": checksum_address(payee),
        "days": days[-MAX_ROWS:],
        "purses": purses,
        "unclaimed_wei": sum(int(row["unclaimed_wei"]) for row in purses),
    }


def count_gas(ledger: Ledger, chain_id: int, address: bytes) -> int:
    """Return the gas that all transactions of an account have cost, in wei."""
    return sum(each.gas_wei for each in ledger.transactions(chain_id, address))


def _state_word(purse: abi.OnChainPurse, now_s: int) -> str:
    if purse.unlock_at_s:
        return "withdrawable" if now_s >= purse.unlock_at_s else "unlocking"
    return "open" if purse.deposited_wei > purse.claimed_wei else "empty"
