"""A development chain in this process: pyrevm behind a small JSON-RPC server.

It stands in for anvil where that cannot be had. What it is not: a real node. It keeps the newest state only
(a read at an older block answers with the newest), has no reorganisations, and its gas is a little low
because pyrevm keeps storage warm between calls; measure gas on anvil. Every transaction gets a block of its
own, and an empty block is made for each second without one.

Run as `python -m payments.io.chain.devserver PORT CHAIN_ID [ADDRESS]`, by default on the loopback address.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyrevm
from hexbytes import HexBytes

from payments.hashing import keccak256
from payments.io.chain.devchain import BANK_SECRET, BANK_WEI
from payments.io.ethereum import eth_account, transaction_fields
from payments.keys import PurseKey, checksum_address

BASE_FEE_WEI = 10**9
BLOCK_GAS = 30_000_000
_MAX_BODY_BYTES = 2_000_000
_MAX_TOGETHER = 1000
_TIP_WEI = 10**9
_KEPT_BLOCKS = 100_000


class RpcError(Exception):
    """An answer with an error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        """Answer with `code`, `message` and the revert's bytes as hexadecimal text, if any."""
        super().__init__(message)
        self.code = code
        self.data = data


class DevNode:
    """The chain: state, blocks, receipts. One call at a time."""

    def __init__(self, chain_id: int, clock: Callable[[], float] = time.time) -> None:
        """Begin a chain with one funded account."""
        self._chain_id = chain_id
        self._clock = clock
        self._skew_s = 0.0
        self._evm = pyrevm.EVM(env=pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=chain_id)))
        self._evm.set_balance(checksum_address(PurseKey(BANK_SECRET).address), BANK_WEI)
        self._nonces: dict[str, int] = {}
        self._receipts: dict[str, dict[str, object]] = {}
        self._blocks: list[dict[str, object]] = []
        self._mutex = threading.Lock()
        self._last_block_at = 0.0
        self._logs: list[dict[str, object]] = []
        self._mine([])

    def answer(self, method: str, params: list[Any]) -> object:
        """Return the result of a call, or raise RpcError."""
        function = getattr(self, f"_do_{method}", None)
        if function is None:
            raise RpcError(-32601, f"the method {method} does not exist")
        with self._mutex:
            passed = self._now() - self._last_block_at
            for _ in range(min(int(passed), 100)):
                self._mine([])
            try:
                return function(*params)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                raise RpcError(-32602, f"invalid params: {error}") from None

    def _now(self) -> float:
        return self._clock() + self._skew_s

    def _mine(self, hashes: list[str]) -> dict[str, object]:
        number = len(self._blocks)
        self._last_block_at = self._now()
        stamp = int(self._last_block_at)
        if self._blocks:
            stamp = max(stamp, int(str(self._blocks[-1]["timestamp"]), 16))
        block: dict[str, object] = {
            "number": hex(number),
            "timestamp": hex(stamp),
            "hash": "0x" + keccak256(b"block" + number.to_bytes(8, "big") + stamp.to_bytes(8, "big")).hex(),
            "baseFeePerGas": hex(BASE_FEE_WEI),
            "gasLimit": hex(BLOCK_GAS),
            "transactions": hashes,
        }
        if number >= _KEPT_BLOCKS:
            self._blocks[number - _KEPT_BLOCKS] = {}
        self._blocks.append(block)
        return block

    def _run(self, sender: str, to: str | None, data: bytes, value: int, gas: int) -> tuple[str, bytes]:
        """Execute; return a new contract's address (or "") and the output. Raises RuntimeError on revert."""
        newest = self._blocks[-1]
        stamp = max(int(self._now()), int(str(newest["timestamp"]), 16))
        self._evm.set_block_env(
            pyrevm.BlockEnv(number=len(self._blocks), timestamp=stamp, basefee=0, gas_limit=BLOCK_GAS)
        )
        self._evm.set_tx_env(pyrevm.TxEnv(chain_id=self._chain_id))
        if to is None:
            return str(self._evm.deploy(sender, data, value=value, gas=gas)), b""
        return "", bytes(self._evm.message_call(sender, to, calldata=data, value=value, gas=gas))

    def _gas_used(self) -> int:
        return 0 if self._evm.result is None else int(self._evm.result.gas_used)

    def _try(self, call: dict[str, str]) -> tuple[bytes, int]:
        sender = checksum_address(bytes.fromhex(call.get("from", "0x" + "00" * 20)[2:]))
        to = call.get("to")
        data = bytes.fromhex(call.get("data", call.get("input", "0x"))[2:])
        value = int(call.get("value", "0x0"), 16)
        if value and value > self._evm.get_balance(sender):
            raise RpcError(-32000, "insufficient funds for transfer")
        mark = self._evm.snapshot()
        try:
            receiver = checksum_address(bytes.fromhex(to[2:])) if to else None
            output = self._run(sender, receiver, data, value, BLOCK_GAS)
            return output[1], self._gas_used()
        except RuntimeError as error:
            raise self._reverted(error) from None
        finally:
            self._evm.revert(mark)

    @staticmethod
    def _reverted(error: RuntimeError) -> RpcError:
        text = str(error)
        start = text.find("output: 0x")
        data = text[start + 8 :].split(" ")[0].rstrip("}") if start >= 0 else None
        return RpcError(3, "execution reverted", data)

    def _do_eth_chainId(self) -> str:  # noqa: N802 - the names of JSON-RPC
        return hex(self._chain_id)

    def _do_eth_blockNumber(self) -> str:  # noqa: N802
        return hex(len(self._blocks) - 1)

    def _do_eth_getBlockByNumber(self, tag: str, full: bool = False) -> object:  # noqa: N802
        if tag in ("latest", "pending", "safe", "finalized"):
            return self._blocks[-1]
        number = int(tag, 16)
        return self._blocks[number] or None if 0 <= number < len(self._blocks) else None

    def _do_eth_getBalance(self, address: str, tag: str = "latest") -> str:  # noqa: N802
        return hex(self._evm.get_balance(checksum_address(bytes.fromhex(address[2:]))))

    def _do_eth_getCode(self, address: str, tag: str = "latest") -> str:  # noqa: N802
        code = self._evm.get_code(checksum_address(bytes.fromhex(address[2:])))
        return "0x" + bytes(code or b"").rstrip(b"\0").hex()

    def _do_eth_getTransactionCount(self, address: str, tag: str = "latest") -> str:  # noqa: N802
        return hex(self._nonces.get(address.lower(), 0))

    def _do_eth_feeHistory(self, count: str, tag: str, shares: list[float]) -> object:  # noqa: N802
        number = int(count, 16)
        return {
            "oldestBlock": hex(max(0, len(self._blocks) - number)),
            "baseFeePerGas": [hex(BASE_FEE_WEI)] * (number + 1),
            "reward": [[hex(_TIP_WEI)] * len(shares)] * number,
        }

    def _do_eth_call(self, call: dict[str, str], tag: str = "latest") -> str:
        return "0x" + self._try(call)[0].hex()

    def _do_eth_getLogs(self, query: dict[str, str]) -> object:  # noqa: N802
        first = int(query["fromBlock"], 16)
        last = len(self._blocks) if query["toBlock"] == "latest" else int(query["toBlock"], 16)
        return [
            log
            for log in self._logs
            if log["address"] == query["address"].lower()
            and first <= int(str(log["blockNumber"]), 16) <= last
        ]

    def _do_eth_estimateGas(self, call: dict[str, str], tag: str = "latest") -> str:  # noqa: N802
        used = self._try(call)[1]
        refund = 0 if self._evm.result is None else int(self._evm.result.gas_refunded)
        # Refunds come after the gas is needed, and warm storage makes pyrevm's figures low.
        return hex((used + refund) * 3 // 2 + 10_000)

    def _do_eth_sendRawTransaction(self, raw: str) -> str:  # noqa: N802
        data = bytes.fromhex(raw[2:])
        if data[:1] != b"\x02":
            raise RpcError(-32000, "only EIP-1559 transactions are taken")
        found = "0x" + keccak256(data).hex()
        if found in self._receipts:
            raise RpcError(-32000, "already known")
        fields: dict[str, Any] = transaction_fields(data)
        sender = eth_account().Account.recover_transaction(HexBytes(data))
        self._check(fields, sender)
        gas, value = int(fields["gas"]), int(fields["value"])
        price = min(int(fields["maxFeePerGas"]), BASE_FEE_WEI + int(fields["maxPriorityFeePerGas"]))
        to = checksum_address(bytes(fields["to"])) if len(bytes(fields["to"])) else None
        contract, ok = "", True
        try:
            contract, _ = self._run(sender, to, bytes(fields["data"]), value, gas)
        except RuntimeError:
            ok = False
        used = self._gas_used()
        self._evm.set_balance(sender, max(0, self._evm.get_balance(sender) - used * price))
        self._nonces[sender.lower()] = int(fields["nonce"]) + 1
        block = self._mine([found])
        if ok and self._evm.result is not None:
            self._logs += [
                {
                    "address": str(log.address).lower(),
                    "topics": [str(topic) for topic in log.topics],
                    "blockNumber": block["number"],
                    "transactionHash": found,
                }
                for log in self._evm.result.logs
            ]
        self._receipts[found] = {
            "transactionHash": found,
            "blockNumber": block["number"],
            "blockHash": block["hash"],
            "status": "0x1" if ok else "0x0",
            "gasUsed": hex(used),
            "effectiveGasPrice": hex(price),
            "contractAddress": contract.lower() if contract else None,
        }
        return found

    def _check(self, fields: dict[str, Any], sender: str) -> None:
        expected = self._nonces.get(sender.lower(), 0)
        if int(fields["chainId"]) != self._chain_id:
            raise RpcError(-32000, "invalid chain id for signer")
        if int(fields["nonce"]) < expected:
            raise RpcError(-32000, "nonce too low")
        if int(fields["nonce"]) > expected:
            raise RpcError(-32000, "nonce too high: this chain keeps no queue")
        if int(fields["maxFeePerGas"]) < BASE_FEE_WEI:
            raise RpcError(-32000, "max fee per gas less than block base fee")
        if int(fields["gas"]) > BLOCK_GAS:
            raise RpcError(-32000, "exceeds block gas limit")
        need = int(fields["gas"]) * int(fields["maxFeePerGas"]) + int(fields["value"])
        if need > self._evm.get_balance(sender):
            raise RpcError(-32003, "insufficient funds for gas * price + value")

    def _do_eth_getTransactionReceipt(self, found: str) -> object:  # noqa: N802
        return self._receipts.get(found.lower())

    def _do_evm_increaseTime(self, seconds: str | int) -> str:  # noqa: N802
        self._skew_s += int(seconds, 16) if isinstance(seconds, str) else int(seconds)
        self._last_block_at = self._now()
        return hex(int(self._skew_s))

    def _do_evm_mine(self) -> str:
        self._mine([])
        return "0x0"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    node: DevNode

    def do_POST(self) -> None:
        """Answer one request."""
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= _MAX_BODY_BYTES:
            self.send_error(413)
            return
        try:
            request = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError):
            request = None
        answer: object
        if isinstance(request, list) and 0 < len(request) <= _MAX_TOGETHER:
            answer = [self._answer(each) for each in request]
        else:
            answer = self._answer(request)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, request: Any) -> dict[str, object]:
        request_id: object = None
        answer: dict[str, object] = {"jsonrpc": "2.0"}
        try:
            request_id = request.get("id")
            answer["result"] = self.node.answer(str(request["method"]), list(request.get("params", [])))
        except RpcError as error:
            answer["error"] = {"code": error.code, "message": str(error)}
            if error.data is not None:
                answer["error"] = {"code": error.code, "message": str(error), "data": error.data}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            answer["error"] = {"code": -32600, "message": "invalid request"}
        answer["id"] = request_id
        return answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing for each request."""


def main() -> None:
    """Serve until killed."""
    port, chain_id = int(sys.argv[1]), int(sys.argv[2])
    host = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
    _Handler.node = DevNode(chain_id)
    ThreadingHTTPServer((host, port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
