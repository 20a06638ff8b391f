"""The chain client against real development chains: anvil where it is installed, and the built-in one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from payments import abi
from payments.books import Book, Claim, SignedBook, Ticket
from payments.chains import build_chain
from payments.digest import book_digest, domain_separator
from payments.errors import (
    NoFundsError,
    RpcUnavailableError,
    TransactionFailedError,
    WrongChainError,
)
from payments.io.chain.client import Chain
from payments.io.chain.deploy import (
    Deployment,
    check_deployment,
    deploy,
    read_record,
    write_record,
)
from payments.io.chain.devchain import DevChain, advance_time, find_anvil, open_devchain
from payments.io.chain.rpc import Rpc, decode_data
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import PurseKey

NOTICE = 3600
ETHER = 10**18
SNAPSHOT = Path(__file__).parent / "gas_snapshot.json"
needs_anvil = pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed")
both_kinds = pytest.mark.parametrize("kind", [pytest.param("anvil", marks=needs_anvil), "pyrevm"])


@dataclass
class World:
    dev: DevChain
    rpc: Rpc
    chain: Chain
    ledger: Ledger
    bank: Sender
    deployment: Deployment

    async def account(self, number: int, wei: int = 10 * ETHER) -> Sender:
        key = PurseKey(number.to_bytes(32, "big"))
        await self.bank.wait(await self.bank.send(key.address, b"", kind="fund", value_wei=wei))
        return Sender(self.chain, key, self.ledger, time.time)

    async def do(self, sender: Sender, signature: str, *arguments: object, value_wei: int = 0) -> int:
        data = abi.encode_call(signature, *arguments)
        sent = await sender.send(self.deployment.purses, data, kind="test", value_wei=value_wei)
        return (await sender.wait(sent)).gas_used

    def claim(
        self, key: PurseKey, payee: bytes, index: int, number: int = 1, base: int = 0, length: int = 1024
    ) -> Claim:
        words = build_chain(number.to_bytes(32, "big"), length)
        book = Book(payee, number, base, 10**12 + 7, length, words[0])
        digest = book_digest(domain_separator(self.deployment.domain), book)
        return Claim(key.address, SignedBook(book, key.sign(digest)), Ticket(number, index, words[index]))


@asynccontextmanager
async def open_world(kind: str, folder: Path) -> AsyncIterator[World]:
    # An endpoint that nobody answers at comes first: every call of every test goes round it.
    async with (
        open_devchain(kind=kind, block_time_s=None) as dev,
        Rpc(["http://127.0.0.1:9", dev.url], dev.chain_id) as rpc,
    ):
        with Ledger(folder / "ledger.db") as ledger:
            empty = Chain(rpc, Deployment(dev.chain_id, b"\1" * 20, b"\1" * 20, 0, 0, 0, 0).domain)
            bank = Sender(empty, dev.bank, ledger, time.time)
            deployment = await deploy(bank, empty, NOTICE, ETHER, 7200)
            chain = Chain(rpc, deployment.domain, deployment.registry)
            await check_deployment(chain, deployment)
            yield World(dev, rpc, chain, ledger, bank, deployment)


@both_kinds
async def test_the_life_of_a_purse(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world(kind, tmp_path) as world:
            payer, payee = await world.account(1001), await world.account(1002)
            await world.do(payer, "open(address)", "0x" + payee.address.hex(), value_wei=ETHER)
            found = await world.chain.purse(payer.address, payee.address)
            assert (found.deposited_wei, found.claimed_wei, found.unlock_at_s) == (ETHER, 0, 0)
            claim = world.claim(PurseKey((1001).to_bytes(32, "big")), payee.address, 100)
            sent = await payee.send(world.deployment.purses, abi.encode_claims([claim]), kind="claim")
            receipt = await payee.wait(sent)
            assert receipt.ok
            assert await world.chain.earned(payee.address) == claim.worth_wei
            with pytest.raises(TransactionFailedError, match="purses: nothing due"):
                await payee.send(world.deployment.purses, abi.encode_claims([claim]), kind="claim")
            await world.do(payer, "unlock(address)", "0x" + payee.address.hex())
            with pytest.raises(TransactionFailedError, match="notice not over"):
                await world.do(payer, "withdraw(address)", "0x" + payee.address.hex())
            found = await world.chain.purse(payer.address, payee.address, confirmations=2)
            assert found.unlock_at_s > 0, "an unlock counts before it is confirmed"
            await advance_time(world.rpc, NOTICE + 5)
            await world.do(payer, "withdraw(address)", "0x" + payee.address.hex())
            earned = await world.chain.earned(payee.address)
            await world.do(payee, "cash_out(address,uint256)", "0x" + (b"\x0c" * 20).hex(), earned)
            assert await world.chain.balance(b"\x0c" * 20) == claim.worth_wei
            assert await world.chain.balance(world.deployment.purses) == 0
            assert await world.chain.notice_s() == NOTICE
            stored = world.ledger.transactions(world.dev.chain_id, payee.address)
            assert [t.state for t in stored] == ["mined", "mined"]
            assert all(t.gas_wei > 0 for t in stored)


@both_kinds
async def test_the_registry_and_the_record(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world(kind, tmp_path) as world:
            relay = await world.account(1003)
            entry = (b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, 2**80, 4433)
            data = abi.encode_call(f"join({abi.ENTRY_TYPE})", entry)
            sent = await relay.send(world.deployment.registry, data, kind="join", value_wei=ETHER)
            await relay.wait(sent)
            [listing] = await world.chain.listings()
            assert listing.payee == relay.address
            assert (listing.identity, listing.port, listing.stake_wei) == (b"\x01" * 32, 4433, ETHER)
            path = write_record(world.deployment, tmp_path / "deployments")
            assert read_record(path) == world.deployment
            wrong = Deployment(world.dev.chain_id, b"\5" * 20, b"\6" * 20, 0, 0, 0, 0)
            with pytest.raises(WrongChainError, match="no purses contract"):
                await check_deployment(world.chain, wrong)


@both_kinds
async def test_out_of_gas_money(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world(kind, tmp_path) as world:
            poor = await world.account(1004, wei=1000)
            with pytest.raises((NoFundsError, TransactionFailedError)):
                await poor.send(b"\x0c" * 20, b"", kind="test", value_wei=2000)
            with pytest.raises(NoFundsError, match="cannot pay"):
                await poor.send(b"\x0c" * 20, b"", kind="test", value_wei=1, gas_limit=21000)
            assert world.ledger.transactions(world.dev.chain_id, poor.address, "sent") == []


async def test_another_chain_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_devchain(kind="pyrevm") as dev, Rpc([dev.url], 1) as rpc:
            with pytest.raises(WrongChainError, match="serves another chain, 31337"):
                await rpc.call("eth_blockNumber", decode=str)


async def test_a_chain_that_is_down(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Rpc(["http://127.0.0.1:9"], 1, attempts=2) as rpc:
            with pytest.raises(RpcUnavailableError, match=r"127\.0\.0\.1:9"):
                await rpc.call("eth_blockNumber", decode=str)


@needs_anvil
async def test_a_reorganisation_drops_a_claim_and_it_is_sent_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world("anvil", tmp_path) as world:
            payer, payee = await world.account(1001), await world.account(1002)
            await world.do(payer, "open(address)", "0x" + payee.address.hex(), value_wei=ETHER)
            claim = world.claim(PurseKey((1001).to_bytes(32, "big")), payee.address, 10)
            sent = await payee.send(world.deployment.purses, abi.encode_claims([claim]), kind="claim")
            first = await payee.wait(sent)
            await world.rpc.call("anvil_reorg", 1, [], decode=lambda value: value)
            assert await world.chain.earned(payee.address) == 0
            async with trio.open_nursery() as nursery:

                async def mine() -> None:
                    while True:
                        await trio.sleep(0.3)
                        await world.rpc.call("evm_mine", decode=lambda value: value)

                nursery.start_soon(mine)
                again = await payee.wait(sent, confirmations=3)
                nursery.cancel_scope.cancel()
            assert again.hash == first.hash, "the same transaction, never a second one"
            assert await world.chain.earned(payee.address) == claim.worth_wei


@needs_anvil
async def test_a_process_that_died_after_sending_sends_the_same_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world("anvil", tmp_path) as world:
            payer = await world.account(1001)
            await world.rpc.call("evm_setAutomine", False, decode=lambda value: value)
            data = abi.encode_call("open(address)", "0x" + (b"\x0d" * 20).hex())
            sent = await payer.send(world.deployment.purses, data, kind="open", value_wei=5)
            await world.rpc.call("anvil_dropAllTransactions", decode=lambda value: value)
            reborn = Sender(world.chain, PurseKey((1001).to_bytes(32, "big")), world.ledger, time.time)
            [stored] = await reborn.resume()
            assert stored == sent
            await world.rpc.call("evm_setAutomine", True, decode=lambda value: value)
            await world.rpc.call("evm_mine", decode=lambda value: value)
            assert (await reborn.wait(stored)).ok
            found = await world.chain.purse(payer.address, b"\x0d" * 20)
            assert found.deposited_wei == 5


@needs_anvil
async def test_gas_against_the_snapshot_and_the_limits(tmp_path: Path) -> None:
    """Measured on a node, base and call data included. HOPFARE_GAS_UPDATE=1 writes the snapshot anew."""
    with trio.fail_after(120):
        async with open_world("anvil", tmp_path) as world:
            gas = await measure(world)
    print(json.dumps(gas, indent=1))
    if os.environ.get("HOPFARE_GAS_UPDATE"):
        SNAPSHOT.write_text(json.dumps(gas, indent=1) + "\n")
    expected = json.loads(SNAPSHOT.read_text())
    assert gas.keys() == expected.keys()
    for name, used in gas.items():
        # Call data with more or fewer zero bytes moves gas by a little.
        assert abs(used - expected[name]) <= 300, f"{name}: {used} gas, the snapshot says {expected[name]}"
    assert gas["claim, first money ever"] <= 65_000
    assert gas["claim, new book, no walk"] <= 65_000
    assert gas["further purse in a batch of 20"] <= 30_000
    assert gas["claim, walk of 1024"] <= 250_000


async def measure(world: World) -> dict[str, int]:
    gas: dict[str, int] = {}
    keys = [PurseKey((2000 + n).to_bytes(32, "big")) for n in range(22)]
    payee, relay = await world.account(1002), await world.account(1003)
    payer = await world.account(2000)
    to = "0x" + payee.address.hex()
    gas["open"] = await world.do(payer, "open(address)", to, value_wei=ETHER)
    gas["open again"] = await world.do(payer, "open(address)", to, value_wei=ETHER)
    for key in keys[1:]:
        await world.do(world.bank, "top_up(address,address)", "0x" + key.address.hex(), to, value_wei=ETHER)
    purses = world.deployment.purses

    async def claims(found: list[Claim]) -> int:
        sent = await relay.send(purses, abi.encode_claims(found), kind="claim")
        return (await relay.wait(sent)).gas_used

    first = keys[0]
    gas["claim, first money ever"] = await claims([world.claim(first, payee.address, 0, 1, 10**15)])
    gas["claim, new book, no walk"] = await claims([world.claim(first, payee.address, 0, 2, 2 * 10**15)])
    gas["claim, walk of 32"] = await claims([world.claim(first, payee.address, 32, 3, 3 * 10**15)])
    gas["claim, walk of 1024"] = await claims([world.claim(first, payee.address, 1024, 4, 4 * 10**15)])
    single = [world.claim(keys[1], payee.address, 0, 1, 10**15)]
    data = abi.encode_call(f"claim_many({abi.CLAIM_TYPE}[])", [abi.claim_arguments(c) for c in single])
    one = (await relay.wait(await relay.send(purses, data, kind="claim"))).gas_used
    twenty = await claims([world.claim(k, payee.address, 0, 1, 10**15) for k in keys[2:]])
    gas["batch of 1"] = one
    gas["batch of 20"] = twenty
    gas["further purse in a batch of 20"] = (twenty - one) // 19
    gas["unlock"] = await world.do(payer, "unlock(address)", to)
    gas["release"] = await world.do(payee, "release(address)", "0x" + payer.address.hex())
    gas["withdraw"] = await world.do(payer, "withdraw(address)", to)
    earned = await world.chain.earned(payee.address)
    gas["cash_out"] = await world.do(payee, "cash_out(address,uint256)", "0x" + payer.address.hex(), earned)
    entry = (b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, 2**80, 4433)
    data = abi.encode_call(f"join({abi.ENTRY_TYPE})", entry)
    sent = await relay.send(world.deployment.registry, data, kind="join", value_wei=ETHER)
    gas["join"] = (await relay.wait(sent)).gas_used
    sent = await relay.send(world.deployment.registry, abi.encode_call("leave()"), kind="leave")
    gas["leave"] = (await relay.wait(sent)).gas_used
    return gas


@both_kinds
async def test_the_contracts_digest_is_ours(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_world(kind, tmp_path) as world:
            for number in range(5):
                claim = world.claim(PurseKey(b"\x21" * 32), bytes([number]) * 20, 0, number, 2**127 + number)
                book = claim.signed.book
                fields = abi.claim_arguments(claim)[1]
                data = abi.encode_call("book_digest((address,uint64,uint128,uint96,uint16,bytes32))", fields)
                call = {"to": "0x" + world.deployment.purses.hex(), "data": "0x" + data.hex()}
                found = await world.rpc.call("eth_call", call, "latest", decode=decode_data)
                assert found == book_digest(domain_separator(world.deployment.domain), book)
