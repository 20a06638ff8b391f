"""Purses of a running node over a chain that answers, lags, lies still or is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from overlay.node import purses as purses_module
from overlay.node.io.vault import Vault
from overlay.node.purses import Purses
from overlay.tabs.desk import Act
from overlay.tabs.types import Fund, LoadOwn, Look
from payments.abi import OnChainPurse
from payments.books import Domain
from payments.errors import NoFundsError, RpcUnavailableError
from payments.io.ledger import Ledger, PurseKeyed
from payments.tab import Load
from payments.validator import PurseView

DOMAIN = Domain(31337, b"\xc0" * 20)
OWN, PAYEE, PAYER = b"\x01" * 20, b"\x02" * 20, b"\x03" * 20
LINK: Any = "link"
NODE = b"\x0e" * 32


class FakeChain:
    """Purses by (payer, payee); `away` makes every question fail."""

    domain = DOMAIN

    def __init__(self) -> None:
        self.held: dict[tuple[bytes, bytes], OnChainPurse] = {}
        self.away = False
        self.asked = 0

    async def purses(
        self, pairs: list[tuple[bytes, bytes]], confirmations: int = 0, least_block: int = 0
    ) -> list[OnChainPurse]:
        return [await self.purse(*pair, confirmations) for pair in pairs]

    async def purse(self, payer: bytes, payee: bytes, confirmations: int = 0) -> OnChainPurse:
        self.asked += 1
        if self.away:
            raise RpcUnavailableError("no endpoint answers")
        return self.held.get((payer, payee), OnChainPurse(0, 0, 0))


class FakeWallet:
    """Puts money into purses of a FakeChain."""

    def __init__(self, chain: FakeChain, ledger: Ledger) -> None:
        self.chain = chain
        self.ledger = ledger
        self.is_broke = False
        self.deposits: list[int] = []
        self.gates: dict[bytes, trio.Event] = {}
        """Deposits that are mined only when these are set."""

    async def finish_deposits(self, payee: bytes) -> int:
        return 0

    async def unfinished_deposits(self) -> list[Any]:
        return []

    async def deposit(self, payee: bytes, wei: int, *, is_new: bool) -> dict[str, Any]:
        if self.is_broke:
            raise NoFundsError("The account has 0: send it coins.")
        old = self.chain.held.get((OWN, payee), OnChainPurse(0, 0, 0))
        assert is_new is (old.deposited_wei <= old.claimed_wei)
        self.deposits.append(wei)
        self.ledger.remember(PurseKeyed(DOMAIN, OWN, payee))
        if payee in self.gates:
            await self.gates[payee].wait()
        self.chain.held[(OWN, payee)] = OnChainPurse(old.deposited_wei + wei, old.claimed_wei, 0)
        return {}


@dataclass
class FakeDesk:
    """Remembers what it is told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    links: dict[Any, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        def tell(*what: Any) -> list[Any]:
            self.told.append((name, *what[:-1]))
            return []

        return tell


class World:
    """Purses with everything around them."""

    def __init__(self, ledger: Ledger, peer: bytes | None = None) -> None:
        self.chain = FakeChain()
        self.descriptor_payee = PAYER
        self.wallet = FakeWallet(self.chain, ledger)
        settings: Any = SimpleNamespace(
            max_startup_credit_wei=1500,
            startup_credit_wei=1000,
            confirmations=3,
            claim_interval_s=3600.0,
            purse_deposit_wei=100,
            max_in_purses_wei=250,
        )
        self.vault = Vault(ledger, lambda tokens: None, lambda *what: None)
        self.changes = 0
        self.purses = Purses(
            settings,
            self.chain,  # type: ignore[arg-type]
            self.vault,
            self.wallet,  # type: ignore[arg-type]
            own=OWN,
            payee=PAYEE,
            payee_of=lambda node_id: self.descriptor_payee if node_id == NODE else b"",
            do=lambda acts: None,
            note=lambda *what, **values: None,
            on_change=self._changed,
        )
        self.desk = FakeDesk()
        self.purses.desk = self.desk  # type: ignore[assignment]
        earning = SimpleNamespace(start_credit_wei=1000 if peer is not None else 0)
        self.desk.links[LINK] = SimpleNamespace(peer=peer, earning=earning, paying=None)

    def _changed(self) -> None:
        self.changes += 1

    async def tell(self, act: Any) -> tuple[Any, ...]:
        """Begin an act, and give what the desk is told of it."""
        before = len(self.desk.told)
        self.purses.begin(Act(LINK, "earning", act))
        with trio.fail_after(20):
            while len(self.desk.told) == before:
                await trio.sleep(0.005)
        return self.desk.told[-1]


@asynccontextmanager
async def running(path: Path, peer: bytes | None = None) -> AsyncIterator[World]:
    with Ledger(path / "ledger") as ledger:
        world = World(ledger, peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.vault.run)
            nursery.start_soon(world.purses.run)
            try:
                yield world
            finally:
                nursery.cancel_scope.cancel()


def test_a_customers_purse_counts_when_it_is_confirmed_and_not_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            name, link, payer, _, view = await world.tell(Load(PAYER))
            assert (name, link, payer, view) == ("on_loaded", LINK, PAYER, PurseView())
            world.chain.held[(PAYER, PAYEE)] = OnChainPurse(700, 50, 9)
            assert await world.tell(Look(PAYER)) == ("on_purse", PAYER), "the view is the last argument"

    trio.run(main)


def test_start_up_credit_is_for_the_account_that_a_descriptor_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, NODE) as world:
            *_, view = await world.tell(Load(PAYER))
            assert view.start_credit_wei == 1000
            *_, view = await world.tell(Load(b"\x09" * 20))
            assert view.start_credit_wei == 0, "a fresh key is nobody's"
            world.purses.forget_start(PAYER, worth_wei=400)
            assert world.purses.starts.total_wei == 1000, "used: it stays lent"
            world.chain.held[(PAYER, PAYEE)] = OnChainPurse(5000, 0, 0)
            world.purses.on_purse(PAYER, OnChainPurse(5000, 0, 0))
            assert world.purses.starts.total_wei == 0, "confirmed"

    trio.run(main)


def test_while_the_chain_is_away_known_purses_are_served_and_others_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.chain.held[(PAYER, PAYEE)] = OnChainPurse(700, 0, 0)
            await world.tell(Load(PAYER))
            world.chain.away = True
            *_, view = await world.tell(Load(PAYER))
            assert view.deposited_wei == 700
            assert (await world.tell(Load(b"\x09" * 20)))[:2] == ("on_load_failed", LINK)
            name, _, sentence = await world.tell(LoadOwn(PAYEE))
            assert name == "on_own_failed"
            assert "no endpoint answers" in sentence
            assert world.changes

    trio.run(main)


def test_a_purse_is_filled_once_within_the_limit_of_all_purses(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            assert (await world.tell(Fund(PAYEE, 100)))[0] == "on_own_purse"
            assert world.wallet.deposits == [100]
            await world.tell(Fund(PAYEE, 100))
            assert world.wallet.deposits == [100], "it is there"
            await world.tell(Fund(PAYEE, 120))
            assert world.wallet.deposits == [100, 100], "never less than a deposit"
            # One purse that holds 200; another deposit would be 300.
            name, _, sentence = await world.tell(Fund(b"\x07" * 20, 100))
            assert name == "on_own_failed"
            assert "max_in_purses" in sentence
            assert "max_in_purses" in world.purses.problem

    trio.run(main)


def test_an_empty_account_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.wallet.is_broke = True
            name, _, sentence = await world.tell(Fund(PAYEE, 100))
            assert name == "on_own_failed"
            assert "send it coins" in sentence
            assert "send it coins" in world.purses.problem
            world.wallet.is_broke = False
            await world.tell(Fund(PAYEE, 100))
            assert world.purses.problem == ""

    trio.run(main)


def test_looks_are_few_however_often_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(purses_module, "LOOK_AGAIN_S", 1000.0)
        async with running(tmp_path) as world:
            await world.tell(Look(PAYER))
            asked = world.chain.asked
            for _ in range(50):
                world.purses.begin(Act(LINK, "earning", Look(PAYER)))
            await trio.testing.wait_all_tasks_blocked()
            assert world.chain.asked == asked

    trio.run(main)


def test_keys_of_empty_purses_are_not_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.chain.held[(PAYER, PAYEE)] = OnChainPurse(700, 0, 0)
            await world.tell(Load(PAYER))
            for i in range(5):
                await world.tell(Load(bytes([i]) * 20))
            assert list(world.purses._views) == [PAYER]

    trio.run(main)


def test_a_new_account_in_a_descriptor_brings_no_new_start_up_credit(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, NODE) as world:
            await world.tell(Load(PAYER))
            world.purses.forget_start(PAYER, worth_wei=1000)
            world.descriptor_payee = b"\x09" * 20
            *_, view = await world.tell(Load(world.descriptor_payee))
            assert view.start_credit_wei == 0
            world.purses.on_purse(PAYER, OnChainPurse(5000, 0, 0))
            *_, view = await world.tell(Load(world.descriptor_payee))
            assert view.start_credit_wei == 1000, "the old one was confirmed"

    trio.run(main)


def test_strangers_bind_half_of_what_may_be_in_purses(tmp_path: Path) -> None:
    """Builds without money behind them, each with another next hop, must leave room for honest ones."""

    async def main() -> None:
        async with running(tmp_path) as world:
            hops = [bytes([number]) * 20 for number in (0x71, 0x72, 0x73)]
            tab = SimpleNamespace(is_open=False, payer=None, worth_wei=0)
            world.desk.links["stranger"] = SimpleNamespace(peer=None, earning=SimpleNamespace(tab=tab))
            for hop in hops:
                world.purses.backing.ask(hop, "stranger")
            assert (await world.tell(Fund(hops[0], 100)))[0] == "on_own_purse"
            name, _, sentence = await world.tell(Fund(hops[1], 100))
            assert name == "on_own_failed"
            assert "shown no money" in sentence
            assert world.wallet.deposits == [100]
            # A customer whose purse is confirmed asks for the same hop.
            world.chain.held[(PAYER, PAYEE)] = OnChainPurse(50, 0, 0)
            await world.tell(Load(PAYER))
            tab.is_open, tab.payer, tab.worth_wei = True, PAYER, 40
            assert (await world.tell(Fund(hops[1], 100)))[0] == "on_own_purse"
            assert world.wallet.deposits == [100, 100]

    trio.run(main)


def test_a_deposit_that_is_not_mined_holds_up_no_other_and_counts_as_held(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            stuck, other, third = b"\x71" * 20, b"\x72" * 20, b"\x73" * 20
            world.wallet.gates[stuck] = trio.Event()
            world.purses.begin(Act(LINK, "paying", Fund(stuck, 100)))
            with trio.fail_after(20):
                while not world.wallet.deposits:
                    await trio.sleep(0.005)
            name, payee, _ = await world.tell(Fund(other, 100))
            assert (name, payee) == ("on_own_purse", other)
            name, _, sentence = await world.tell(Fund(third, 100))
            assert name == "on_own_failed"
            assert "would hold 300 wei" in sentence, "what is under way is held as well"
            # A second wish for the same purse waits for the first, and finds it done.
            world.purses.begin(Act(LINK, "paying", Fund(stuck, 100)))
            await trio.testing.wait_all_tasks_blocked()
            world.wallet.gates[stuck].set()
            with trio.fail_after(20):
                while [told[1] for told in world.desk.told].count(stuck) < 2:
                    await trio.sleep(0.005)
            assert world.wallet.deposits == [100, 100]
            assert not world.purses._filling
            assert not world.purses._targets

    trio.run(main)
