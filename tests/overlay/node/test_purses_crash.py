"""A purse is filled once wherever the process is killed: real wallet, sender and ledger, a small chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from chainlet import BANK, CHAIN_ID, Chainlet, Killed, Killer

from overlay.config.model import PaymentsConfig
from overlay.node import purses as purses_module
from overlay.node.io.vault import Vault
from overlay.node.io.wallet import Wallet
from overlay.node.purses import Purses
from payments.books import Domain
from payments.io.chain import sender as sender_module
from payments.io.chain.client import Chain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger

KEY = BANK
PAYEE = b"\x02" * 20
LINK: Any = "link"
NOTHING: Any = None


def slow_ledger(killer: Killer, path: Path) -> Ledger:
    """A ledger in which each write is a step before it is on disk, and one after."""
    ledger = Ledger(path)
    write = ledger._write

    @contextmanager
    def counted() -> Iterator[Any]:
        killer.step()
        with write() as db:
            yield db
        killer.step()

    ledger._write = counted  # type: ignore[method-assign]
    return ledger


async def fill(killer: Killer, chainlet: Chainlet, contract: bytes, path: Path, wanted_wei: int) -> None:
    """One life of a process: it comes up, finishes what was sent before, and has the purse filled."""
    settings = replace(
        PaymentsConfig(),
        chain_id=CHAIN_ID,
        purses=contract,
        confirmations=1,
        purse_deposit_wei=wanted_wei,
        max_in_purses_wei=3 * wanted_wei // 2,
    )
    domain = Domain(CHAIN_ID, contract)
    with slow_ledger(killer, path) as ledger:
        async with Rpc(["http://chain.test"], CHAIN_ID, client=chainlet.client()) as rpc:
            chain = Chain(rpc, domain)
            sender = Sender(chain, KEY, ledger, time.time)
            wallet = Wallet(settings, KEY, chain, sender, ledger, NOTHING, payee=KEY.address)
            done = trio.Event()

            def failed(link: Any, sentence: str, now: float) -> None:
                raise AssertionError(sentence)

            def told(payee: bytes, view: Any, now: float) -> list[Any]:
                done.set()
                return []

            desk = SimpleNamespace(links={LINK: None}, on_own_failed=failed, on_own_purse=told)
            purses = Purses(
                settings,
                chain,
                Vault(ledger, lambda tokens: None, lambda *what: None),
                wallet,
                own=KEY.address,
                payee=KEY.address,
                payee_of=lambda node_id: b"",
                do=lambda acts: None,
                note=lambda *what, **values: None,
                on_change=lambda: None,
            )
            purses.desk = desk  # type: ignore[assignment]

            async def resume() -> None:
                for old in await sender.resume():
                    await sender.wait(old)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(resume)
                await purses._fund(LINK, PAYEE, wanted_wei)
                assert done.is_set()
                # A second wish at once, as a link that comes back has it.
                await purses._fund(LINK, PAYEE, wanted_wei)
            assert not await wallet.unfinished_deposits()


def live(killer: Killer, *arguments: Any) -> bool:
    """Whether a life was not ended by the killer."""
    try:
        trio.run(fill, killer, *arguments)
    except BaseException as error:
        if _is_killed(error):
            return False
        raise
    return True


def _is_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_killed(each) for each in error.exceptions)
    return isinstance(error, Killed)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_purse_is_filled_once_wherever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    monkeypatch.setattr(sender_module, "_POLL_S", 0.002)
    monkeypatch.setattr(purses_module, "CONFIRM_POLL_S", 0.002)
    wanted_wei = 10**18
    killed_at = 0
    while True:
        killed_at += 1
        killer = Killer()
        chainlet = Chainlet(killer)
        contract = chainlet.deploy()
        path = tmp_path / f"ledger-{killed_at}"
        killer.at = killed_at
        survived = live(killer, chainlet, contract, path, wanted_wei)
        if forgets:
            chainlet.pool.clear()
        killer.at = 0
        assert live(killer, chainlet, contract, path, wanted_wei)
        data = bytes.fromhex(chainlet.node.answer("eth_call", [_purse_call(contract)])[2:])  # type: ignore[index]
        assert int.from_bytes(data[:32], "big") == wanted_wei, f"killed at step {killed_at}"
        assert len(chainlet.sent) == 1, f"killed at step {killed_at}"
        if survived:
            break
    assert killed_at > 20


def _purse_call(contract: bytes) -> dict[str, str]:
    from payments.abi import encode_purse

    return {"to": "0x" + contract.hex(), "data": "0x" + encode_purse(KEY.address, PAYEE).hex()}
