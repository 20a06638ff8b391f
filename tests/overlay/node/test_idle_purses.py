"""Money in purses that nobody uses comes back: wallet, ledger and contract are real."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from chainlet import BANK, CHAIN_ID, NOTICE_S, Chainlet, Killer

from overlay.config.model import PaymentsConfig
from overlay.node.idle_purses import IdleKeeper
from overlay.node.io.wallet import Wallet
from payments.books import Domain
from payments.idle import DAY_S
from payments.io.chain import sender as sender_module
from payments.io.chain.client import Chain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger

ETHER = 10**18
IDLE, BUSY = b"\x02" * 20, b"\x03" * 20
NOTHING: Any = None


async def test_an_idle_purse_is_unlocked_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_POLL_S", 0.001)
    chainlet = Chainlet(Killer())
    domain = Domain(CHAIN_ID, chainlet.deploy())
    settings = replace(PaymentsConfig(), chain_id=CHAIN_ID, purses=domain.contract)
    with trio.fail_after(60), Ledger(tmp_path / "ledger") as ledger:
        async with Rpc(["http://chain.test"], CHAIN_ID, client=chainlet.client()) as rpc:
            chain = Chain(rpc, domain)
            sender = Sender(chain, BANK, ledger, time.time)
            wallet = Wallet(settings, BANK, chain, sender, ledger, NOTHING, payee=BANK.address)
            for payee in (IDLE, BUSY):
                await wallet.deposit(payee, ETHER, is_new=True)

            def keeper() -> IdleKeeper:
                return IdleKeeper(chain, ledger, wallet, own=BANK.address, after_days=3, used=lambda: {BUSY})

            async def pass_by(seconds: int) -> None:
                await rpc.call("evm_increaseTime", seconds, decode=lambda value: value)
                await rpc.call("evm_mine", decode=lambda value: value)

            async def held() -> list[tuple[int, bool]]:
                purses = await chain.purses([(BANK.address, payee) for payee in (IDLE, BUSY)])
                return [(purse.deposited_wei, bool(purse.unlock_at_s)) for purse in purses]

            for _ in range(3):
                await keeper().look()
                await pass_by(DAY_S)
            assert await held() == [(ETHER, False), (ETHER, False)]
            await keeper().look()
            assert await held() == [(ETHER, True), (ETHER, False)]
            await keeper().look()
            assert await held() == [(ETHER, True), (ETHER, False)], "the notice is not over"
            await pass_by(NOTICE_S)
            await keeper().look()
            assert await held() == [(0, False), (ETHER, False)]
            # It is a new purse when it is needed again.
            await wallet.deposit(IDLE, ETHER, is_new=True)
            await keeper().look()
            assert await held() == [(ETHER, False), (ETHER, False)]


async def test_zero_days_mean_never() -> None:
    keeper = IdleKeeper(NOTHING, NOTHING, NOTHING, own=BANK.address, after_days=0, used=set)
    with trio.fail_after(5):
        await keeper.run()
