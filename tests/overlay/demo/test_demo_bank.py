"""The demo's bank: it gives coins away, and its balance of all coins is right whatever is done with them."""

import time
from pathlib import Path

import pytest
import trio

from overlay.demo.bank import Bank
from payments import abi
from payments.books import Domain
from payments.io.chain.client import Chain
from payments.io.chain.deploy import deploy
from payments.io.chain.devchain import find_anvil, open_devchain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import PurseKey, checksum_address

COIN = 10**18
PAYER = PurseKey(b"\x01" * 32)
PAYEE = PurseKey(b"\x02" * 32)
needs_anvil = pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed")


@pytest.mark.parametrize("kind", [pytest.param("anvil", marks=needs_anvil), "pyrevm"])
async def test_no_coin_is_made_or_lost(tmp_path: Path, kind: str) -> None:
    with trio.fail_after(60):
        async with open_devchain(kind=kind, block_time_s=None) as dev, Rpc([dev.url], dev.chain_id) as rpc:
            with Ledger(tmp_path / "ledger.db") as ledger:
                nowhere = Chain(rpc, Domain(dev.chain_id, b"\1" * 20))
                made = await deploy(Sender(nowhere, dev.bank, ledger, time.time), nowhere, 60, COIN, 60)
                chain = Chain(rpc, made.domain, made.registry)
                bank = Bank(dev, chain, Sender(chain, dev.bank, ledger, time.time), made)
                shown = await bank.handle("chain", {})
                assert shown["purses"] == checksum_address(made.purses)
                accounts = [checksum_address(key.address) for key in (PAYER, PAYEE)]
                await bank.handle("fund", {"accounts": accounts, "wei": 3 * COIN})
                payer = Sender(chain, PAYER, ledger, time.time)
                data = abi.encode_call("open(address)", accounts[1])
                sent = await payer.send(made.purses, data, kind="open", value_wei=COIN)
                await payer.wait(sent)
                sheet = await bank.handle("sheet", {})
                assert sheet["total_wei"] == sheet["first_wei"] == 10_000 * COIN
                assert sheet["contracts_wei"] == {"purses": COIN, "registry": 0}
                assert sheet["accounts_wei"][accounts[1]] == 3 * COIN
                assert 2 * COIN - sheet["accounts_wei"][accounts[0]] > 0, "gas was paid"
                assert sheet["gas_wei"] > 0
                with pytest.raises(LookupError):
                    await bank.handle("rob", {})
