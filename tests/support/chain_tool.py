"""A development chain's bank, as a program: run in the namespace that the chain is in.

python chain_tool.py URL setup NOTICE_S WEI ADDRESS...      deploy, give WEI to each; prints the contracts
python chain_tool.py URL purses CONTRACT PAYER:PAYEE...     what the chain says of purses and earnings
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from payments.books import Domain
from payments.io.chain.client import Chain
from payments.io.chain.deploy import deploy
from payments.io.chain.devchain import BANK_SECRET, CHAIN_ID
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import PurseKey


async def setup(url: str, notice_s: int, wei: int, accounts: list[bytes]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger") as ledger:
        async with Rpc([url], CHAIN_ID) as rpc:
            chain = Chain(rpc, Domain(CHAIN_ID, bytes(20)))
            sender = Sender(chain, PurseKey(BANK_SECRET), ledger, time.time)
            made = await deploy(sender, chain, notice_s, 10**18, 7 * 86400)
            for account in accounts:
                sent = await sender.send(account, b"", kind="fund", value_wei=wei)
                await sender.wait(sent)
            return {"purses": "0x" + made.purses.hex(), "registry": "0x" + made.registry.hex()}


async def look(url: str, contract: bytes, pairs: list[tuple[bytes, bytes]]) -> list[dict[str, int]]:
    async with Rpc([url], CHAIN_ID) as rpc:
        chain = Chain(rpc, Domain(CHAIN_ID, contract))
        found = []
        for payer, payee in pairs:
            purse = await chain.purse(payer, payee)
            found.append(
                {
                    "deposited_wei": purse.deposited_wei,
                    "claimed_wei": purse.claimed_wei,
                    "earned_wei": await chain.earned(payee),
                }
            )
        return found


def main() -> None:
    url, command, *rest = sys.argv[1:]
    if command == "setup":
        accounts = [bytes.fromhex(text.removeprefix("0x")) for text in rest[2:]]
        print(json.dumps(trio.run(setup, url, int(rest[0]), int(rest[1]), accounts)))
    else:
        pairs = [tuple(bytes.fromhex(side[2:]) for side in pair.split(":")) for pair in rest[1:]]
        print(json.dumps(trio.run(look, url, bytes.fromhex(rest[0][2:]), pairs)))


if __name__ == "__main__":
    main()
