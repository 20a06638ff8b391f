"""A development chain with our contracts, run in a thread for tests of commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from payments.io.chain.client import Chain
from payments.io.chain.deploy import Deployment, deploy
from payments.io.chain.devchain import DevChain, open_devchain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.keys import PurseKey

ETHER = 10**18
START_TIMEOUT_S = 60.0
NOTICE_S = 3600


class ChainWorld:
    """Context manager. `do` runs a coroutine function on the chain's own event loop and waits for it."""

    def __init__(self, folder: Path, kind: str = "any") -> None:
        self._folder = folder
        self._kind = kind
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._scope: trio.CancelScope
        self.dev: DevChain
        self.chain: Chain
        self.bank: Sender
        self.deployment: Deployment
        self.ledger: Ledger

    def __enter__(self) -> ChainWorld:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S), "the chain did not start"
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join(START_TIMEOUT_S)

    def do(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def fund(self, address: bytes, wei: int = 10 * ETHER) -> None:
        async def send() -> None:
            await self.bank.wait(await self.bank.send(address, b"", kind="fund", value_wei=wei))

        self.do(send)

    def sender(self, key: PurseKey) -> Sender:
        return Sender(self.chain, key, self.ledger, time.time)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with (
                open_devchain(kind=self._kind, block_time_s=None) as dev,
                Rpc([dev.url], dev.chain_id) as rpc,
            ):
                with Ledger(self._folder / "bank.db") as ledger:
                    self.dev, self.ledger = dev, ledger
                    empty = Chain(rpc, Deployment(dev.chain_id, b"\1" * 20, b"\1" * 20, 0, 0, 0, 0).domain)
                    self.bank = Sender(empty, dev.bank, ledger, time.time)
                    self.deployment = await deploy(self.bank, empty, NOTICE_S, ETHER, 7200)
                    self.chain = Chain(rpc, self.deployment.domain, self.deployment.registry)
                    self._ready.set()
                    await trio.sleep_forever()
