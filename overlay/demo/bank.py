"""The demo's chain and its bank: `python -m overlay.demo.bank FOLDER ADDRESS`, in the lab's hub.

Starts a development chain on ADDRESS, deploys the contracts, and answers over a control socket in FOLDER
(see `overlay.node.io.local`): where the contracts are, who is given coins, and the balance sheet. The sheet
is made from blocks and receipts alone, so that it is a check on what the nodes say of themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from overlay.logs import configure_logging
from overlay.node.io.local import lock_state, serve_local
from payments.books import Domain
from payments.errors import ChainError
from payments.io.chain.client import Chain
from payments.io.chain.deploy import Deployment, deploy
from payments.io.chain.devchain import BANK_WEI, DevChain, advance_time, open_devchain
from payments.io.chain.rpc import Rpc, decode_data, decode_object, decode_quantity
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import checksum_address, parse_address

NOTICE_S = 3600
MIN_STAKE_WEI = 10**18
UNBONDING_S = 7200
_TRIES = 20
_TRY_AGAIN_S = 0.3


@dataclass(slots=True)
class Sheet:
    """Where all coins of the chain are, as of one block."""

    block: int = 0
    gas_wei: int = 0
    transactions: int = 0


class Bank:
    """The chain's first account, which has all its coins to begin with."""

    def __init__(self, dev: DevChain, chain: Chain, sender: Sender, deployment: Deployment) -> None:
        """Give coins away over `sender`, and watch `chain` from its first block on."""
        self._dev = dev
        self._chain = chain
        self._sender = sender
        self._deployment = deployment
        self._accounts: list[bytes] = [dev.bank.address]
        self._sheet = Sheet()
        self._lock = trio.Lock()

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control socket."""
        if method == "chain":
            return self.describe()
        if method == "fund":
            accounts = [parse_address(text) for text in params["accounts"]]
            await self.fund(accounts, int(params["wei"]))
            return {}
        if method == "sheet":
            return await self.balance()
        if method == "advance":
            await advance_time(self._chain.rpc, int(params["seconds"]))
            return {}
        raise LookupError(f"the bank has no {method}")

    def describe(self) -> dict[str, Any]:
        """Return what nodes need to know of the chain."""
        return {
            "kind": self._dev.kind,
            "url": self._dev.url,
            "chain_id": self._dev.chain_id,
            "purses": checksum_address(self._deployment.purses),
            "registry": checksum_address(self._deployment.registry),
            "block": self._deployment.block,
        }

    async def fund(self, accounts: Sequence[bytes], wei: int) -> None:
        """Give each account `wei`, and know it from now on."""
        sent = [await self._sender.send(each, b"", kind="fund", value_wei=wei) for each in accounts]
        for transaction in sent:
            await self._sender.wait(transaction)
        self._accounts += [each for each in accounts if each not in self._accounts]

    async def watch(self) -> None:
        """Read blocks as they come, so that a sheet has little to catch up with."""
        while True:
            # The next round asks again; a sheet that cannot be made says so itself.
            with contextlib.suppress(ChainError):
                await self._read_blocks()
            await trio.sleep(1.0)

    async def balance(self) -> dict[str, Any]:
        """Return the sheet of one block: what each account and contract has, and the gas of all blocks.

        Raises ChainError if the chain never stands still for the time of reading.
        """
        for _ in range(_TRIES):
            await self._read_blocks()
            before = self._sheet.transactions
            accounts = {checksum_address(each): await self._chain.balance(each) for each in self._accounts}
            contracts = {
                "purses": await self._chain.balance(self._deployment.purses),
                "registry": await self._chain.balance(self._deployment.registry),
            }
            await self._read_blocks()
            if self._sheet.transactions == before:
                gas_wei = self._sheet.gas_wei
                return {
                    "block": self._sheet.block,
                    "first_wei": BANK_WEI,
                    "accounts_wei": accounts,
                    "contracts_wei": contracts,
                    "gas_wei": gas_wei,
                    "total_wei": sum(accounts.values()) + sum(contracts.values()) + gas_wei,
                }
            await trio.sleep(_TRY_AGAIN_S)
        raise ChainError("The chain has transactions in every block: no balance can be drawn.")

    async def _read_blocks(self) -> None:
        async with self._lock:
            newest = (await self._chain.block()).number
            while self._sheet.block < newest:
                number = self._sheet.block + 1
                for found in await self._chain.rpc.call(
                    "eth_getBlockByNumber", hex(number), False, decode=_decode_transactions
                ):
                    fee_wei = await self._chain.rpc.call(
                        "eth_getTransactionReceipt", found, decode=_decode_fee
                    )
                    self._sheet.gas_wei += fee_wei
                    self._sheet.transactions += 1
                self._sheet.block = number


def _decode_transactions(value: object) -> list[str]:
    found = decode_object(value).get("transactions")
    if not isinstance(found, list):
        return []
    return ["0x" + decode_data(each).hex() for each in found]


def _decode_fee(value: object) -> int:
    fields = decode_object(value)
    return decode_quantity(fields.get("gasUsed")) * decode_quantity(fields.get("effectiveGasPrice"))


async def _serve(folder: Path, address: str) -> None:
    async with open_devchain(host=address) as dev, Rpc([dev.url], dev.chain_id) as rpc:
        with lock_state(folder), Ledger(folder / "bank.db") as ledger:
            nowhere = Domain(dev.chain_id, b"\1" * 20)
            deployment = await deploy(
                Sender(Chain(rpc, nowhere), dev.bank, ledger, time.time),
                Chain(rpc, nowhere),
                NOTICE_S,
                MIN_STAKE_WEI,
                UNBONDING_S,
            )
            chain = Chain(rpc, deployment.domain, deployment.registry)
            bank = Bank(dev, chain, Sender(chain, dev.bank, ledger, time.time), deployment)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bank.watch)
                await nursery.start(serve_local, folder, bank.handle)
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    await anext(aiter(signals))
                nursery.cancel_scope.cancel()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    options = parser.parse_args()
    configure_logging("warning")
    trio.run(_serve, options.folder, options.address)


if __name__ == "__main__":
    main()
