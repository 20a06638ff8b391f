"""A purse is filled once wherever the process is killed: real wallet, sender and ledger, a small chain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio

from overlay.config.model import PaymentsConfig
from overlay.node import purses as purses_module
from overlay.node.io.vault import Vault
from overlay.node.io.wallet import Wallet
from overlay.node.purses import Purses
from payments.books import Domain
from payments.io.chain import sender as sender_module
from payments.io.chain.artifacts import load_artifact
from payments.io.chain.client import Chain
from payments.io.chain.devchain import BANK_SECRET
from payments.io.chain.devserver import DevNode, RpcError
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import PurseKey, checksum_address

CHAIN_ID = 31337
KEY = PurseKey(BANK_SECRET)
PAYEE = b"\x02" * 20
LINK: Any = "link"
NOTHING: Any = None


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Counts what a process does to the world outside, and ends it at one of these steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.at = 0

    def step(self) -> None:
        self.steps += 1
        if 0 < self.at <= self.steps:
            raise Killed


class Chainlet:
    """A node whose blocks come when receipts are asked for a few times; a mempool that can forget."""

    def __init__(self, killer: Killer) -> None:
        self.node = DevNode(CHAIN_ID)
        self.killer = killer
        self.pool: dict[str, str] = {}
        self.asked = 0
        self.sent: list[str] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content)
        self.killer.step()
        calls = content if isinstance(content, list) else [content]
        answers = [self._answer(call) for call in calls]
        self.killer.step()
        return httpx.Response(200, json=answers if isinstance(content, list) else answers[0])

    def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            answer["result"] = self._result(call["method"], call["params"])
        except RpcError as error:
            answer["error"] = {"code": error.code, "message": str(error)}
        return answer

    def _result(self, method: str, params: list[Any]) -> object:
        if method == "eth_sendRawTransaction":
            [raw] = params
            if raw in self.pool:
                raise RpcError(-32000, "already known")
            if raw not in self.sent:
                self.sent.append(raw)
            self.pool[raw] = raw
            self.asked = 0
            return "0x" + bytes(32).hex()
        if method == "eth_getTransactionReceipt":
            self.asked += 1
            if self.asked >= 3:
                self.mine()
        return self.node.answer(method, params)

    def mine(self) -> None:
        for raw in list(self.pool):
            del self.pool[raw]
            try:
                self.node.answer("eth_sendRawTransaction", [raw])
            except RpcError as error:
                assert "nonce too low" in str(error) or "already known" in str(error)

    def deploy(self) -> bytes:
        """Put the purses contract on the chain; its address."""
        artifact = load_artifact("purses")
        evm = self.node._evm
        code = artifact.bytecode + (86_400).to_bytes(32, "big")
        return bytes.fromhex(evm.deploy(checksum_address(KEY.address), code)[2:])


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
    client = httpx.AsyncClient(transport=httpx.MockTransport(chainlet.handle))
    with slow_ledger(killer, path) as ledger:
        async with Rpc(["http://chain.test"], CHAIN_ID, client=client) as rpc:
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
