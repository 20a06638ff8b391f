"""A chain inside the test's process, behind an httpx client: quick, and it can be stopped at every step."""

from __future__ import annotations

import json
from typing import Any

import httpx

from payments.io.chain.artifacts import load_artifact
from payments.io.chain.devchain import BANK_SECRET
from payments.io.chain.devserver import DevNode, RpcError
from payments.keys import PurseKey, checksum_address

CHAIN_ID = 31337
BANK = PurseKey(BANK_SECRET)
"""An account with coins."""
NOTICE_S = 86_400


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

    def client(self) -> httpx.AsyncClient:
        """What an `Rpc` is made with."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self.handle))

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
        code = artifact.bytecode + NOTICE_S.to_bytes(32, "big")
        return bytes.fromhex(evm.deploy(checksum_address(BANK.address), code)[2:])
