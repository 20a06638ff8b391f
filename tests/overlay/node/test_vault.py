"""The ledger's writer: order, coalescing, a disk that refuses, another process on the same purse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from overlay.node.io.vault import Vault
from payments.books import Domain
from payments.errors import LedgerError
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed
from payments.state import PurseState

PURSE = PurseKeyed(Domain(31337, b"\xc0" * 20), b"\x01" * 20, b"\x02" * 20)
OTHER = PurseKeyed(Domain(31337, b"\xc0" * 20), b"\x03" * 20, b"\x02" * 20)


def spent(wei: int) -> PurseState:
    return PurseState(None, 0, bytes(32), wei)


class Watch:
    """A vault over a real ledger, and what it told."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger(path)
        self.written: list[Hashable] = []
        self.busy: list[tuple[str, PurseKeyed]] = []
        self.vault = Vault(self.ledger, self.written.extend, lambda *what: self.busy.append(what))

    async def until_written(self, count: int) -> None:
        with trio.fail_after(20):
            while len(self.written) < count:
                await trio.sleep(0.01)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Watch]:
    watch = Watch(path / "ledger")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.vault.run)
        try:
            yield watch
        finally:
            nursery.cancel_scope.cancel()
    watch.vault.close()
    watch.ledger.close()


def test_states_are_on_disk_before_their_tokens_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as watch:
            assert await watch.vault.load("payee", PURSE) == spent(0)
            for number in range(1, 50):
                watch.vault.put("payee", PURSE, spent(number), number)
            await watch.until_written(49)
            assert watch.written == list(range(1, 50)), "all of them, in order"
            assert await watch.vault.load("payee", PURSE) == spent(49), "and only the newest was kept"

    trio.run(main)


def test_a_load_comes_after_what_waits_to_be_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as watch:
            await watch.vault.load("payee", PURSE)
            watch.vault.put("payee", PURSE, spent(7))
            assert await watch.vault.load("payee", PURSE) == spent(7)

    trio.run(main)


def test_a_full_disk_is_said_once_and_nothing_is_lost_when_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr("overlay.node.io.vault.RETRY_S", 0.01)
        async with running(tmp_path) as watch:
            await watch.vault.load("payee", PURSE)
            honest = watch.ledger.store_many

            tries = 0

            def full(*_: object) -> None:
                nonlocal tries
                tries += 1
                raise LedgerError("The ledger cannot be written: disk full.")

            monkeypatch.setattr(watch.ledger, "store_many", full)
            watch.vault.put("payee", PURSE, spent(1), "a")
            watch.vault.add_earnings(DayEarnings(1, b"\x01" * 20, 5, 5, 5, 0, 0))
            with trio.fail_after(20):
                while not watch.vault.problem:
                    await trio.sleep(0.01)
            assert "disk full" in watch.vault.problem
            watch.vault.put("payee", PURSE, spent(2), "b")
            before = tries
            with trio.fail_after(20):
                while tries < before + 3:
                    await trio.sleep(0.01)
            assert watch.written == []
            monkeypatch.setattr(watch.ledger, "store_many", honest)
            await watch.until_written(2)
            assert watch.written == ["a", "b"]
            assert watch.vault.problem == ""
            assert await watch.vault.load("payee", PURSE) == spent(2)
            [row] = watch.ledger.earnings()
            assert row.packets == 5, "once"

    trio.run(main)


def test_a_purse_that_another_process_changed_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as watch:
            await watch.vault.load("payee", PURSE)
            await watch.vault.load("payee", OTHER)
            watch.vault.put("payee", PURSE, spent(1), 1)
            await watch.until_written(1)
            # A copy of this ledger, put back in place: its generations are older than what we remember.
            watch.ledger._db.execute("UPDATE purses SET generation = generation + 1")
            watch.vault.put("payee", PURSE, spent(2), 2)
            watch.vault.put("payee", OTHER, spent(3), 3)
            await watch.until_written(2)
            assert watch.written == [1, 3]
            assert watch.busy == [("payee", PURSE)]

    trio.run(main)


def test_what_waits_at_the_end_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as watch:
            await watch.vault.load("payer", PURSE)
            watch.vault.put("payer", PURSE, spent(9))
        with Ledger(tmp_path / "ledger") as ledger:
            assert ledger.load("payer", PURSE) == spent(9)

    trio.run(main)
