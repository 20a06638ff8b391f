"""A chain with a registry, in memory, behind endpoints that may lie: for `payments.io.chain.registry`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import httpx
from eth_abi.abi import encode

from payments.abi import ENTRY_TYPE, Listing, selector
from payments.hashing import keccak256

REGISTRY = b"R" * 20
CHAIN_ID = 7


def listing(number: int, *, stake: int = 10**18, port: int = 4433) -> Listing:
    payee = number.to_bytes(20, "big")
    ip = bytes(10) + b"\xff\xff" + bytes([10, number // 250, number % 250, 1])
    return Listing(payee, bytes([number % 255 + 1]) * 32, bytes([1]) * 64, ip, port, stake)


@dataclass
class Endpoint:
    """How one endpoint answers. `edit` may change an answer, given method, parameters and the true one."""

    down: bool = False
    behind: int = 0
    edit: object = None
    calls: list[str] = field(default_factory=list)


class FakeChain:
    """Blocks of changes; a reorganisation replaces the newest ones."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, dict[bytes, Listing | None]]] = []
        self.endpoints: dict[str, Endpoint] = {"a": Endpoint(), "b": Endpoint()}
        self.max_span = 10_000
        self.salt = 0
        for _ in range(5):
            self.mine()

    def mine(self, *joined: Listing, left: tuple[Listing, ...] = ()) -> None:
        changes = {one.payee: one for one in joined} | {one.payee: None for one in left}
        number = len(self.blocks)
        stamp = keccak256(number.to_bytes(8, "big") + self.salt.to_bytes(8, "big") + repr(changes).encode())
        self.blocks.append((stamp, changes))

    def mine_empty(self, count: int) -> None:
        for _ in range(count):
            self.mine()

    def reorganise(self, depth: int) -> None:
        self.salt += 1
        del self.blocks[-depth:]

    def state(self, at: int) -> dict[bytes, Listing]:
        found: dict[bytes, Listing] = {}
        for _, changes in self.blocks[: at + 1]:
            for payee, one in changes.items():
                found.pop(payee, None)
                if one is not None:
                    found[payee] = one
        return found

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._handle))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        endpoint = self.endpoints[request.url.host]
        method, params = asked["method"], asked["params"]
        endpoint.calls.append(method)
        if endpoint.down:
            raise httpx.ConnectError("down")
        try:
            result = self._answer(endpoint, method, params)
        except ValueError as error:
            return httpx.Response(
                200, json={"id": asked["id"], "error": {"code": -32000, "message": str(error)}}
            )
        if endpoint.edit is not None:
            result = endpoint.edit(method, params, result)
        return httpx.Response(200, json={"id": asked["id"], "result": result})

    def _answer(self, endpoint: Endpoint, method: str, params: list):
        head = len(self.blocks) - 1 - endpoint.behind
        if method == "eth_chainId":
            return hex(CHAIN_ID)
        if method == "eth_getBlockByNumber":
            number = head if params[0] == "latest" else int(params[0], 16)
            if number > head:
                return None
            return {"number": hex(number), "hash": "0x" + self.blocks[number][0].hex(), "timestamp": "0x1"}
        if method == "eth_getLogs":
            first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
            if last - first >= self.max_span:
                raise ValueError("query returns more than it should")
            return [
                {
                    "address": "0x" + REGISTRY.hex(),
                    "topics": ["0x" + "00" * 32, "0x" + "00" * 12 + payee.hex()],
                    "blockNumber": hex(number),
                }
                for number in range(first, min(last, head) + 1)
                for payee in self.blocks[number][1]
            ]
        assert method == "eth_call"
        return "0x" + self._call(bytes.fromhex(params[0]["data"][2:]), int(params[1], 16)).hex()

    def _call(self, data: bytes, at: int) -> bytes:
        state = self.state(at)
        listed = list(state.values())
        if data[:4] == selector("count()"):
            return len(listed).to_bytes(32, "big")
        if data[:4] == selector("page(uint256,uint256)"):
            first, limit = int.from_bytes(data[4:36], "big"), int.from_bytes(data[36:68], "big")
            return encode_page(listed[first : first + min(limit, 100)])
        one = state.get(data[16:36])
        if data[:4] == selector("entry_of(address)"):
            return bytes(160) if one is None else encode_entry(one)
        assert data[:4] == selector("stake_of(address)")
        return (0 if one is None else one.stake_wei).to_bytes(32, "big") + bytes(32)


def encode_entry(one: Listing) -> bytes:
    return one.identity + one.endorsement + bytes(16) + one.ip + one.port.to_bytes(32, "big")


def encode_page(page: list[Listing]) -> bytes:
    rows = [
        (
            "0x" + one.payee.hex(),
            (
                one.identity,
                one.endorsement[:32],
                one.endorsement[32:],
                int.from_bytes(one.ip, "big"),
                one.port,
            ),
            one.stake_wei,
        )
        for one in page
    ]
    return encode([f"(address,{ENTRY_TYPE},uint256)[]"], [rows])
