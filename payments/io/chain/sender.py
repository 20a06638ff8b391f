"""Sending transactions of one account: nonces, fees, replacement, confirmations, reorganisations.

Every transaction is in the ledger before it is sent, so that a process that dies at any step sends the same
one again and never a second. One transaction at a time is made (a lock); several may be under way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import trio

from payments import abi
from payments.errors import (
    ChainError,
    DecodeError,
    NoFundsError,
    RpcRefusedError,
    RpcUnavailableError,
    TransactionFailedError,
)
from payments.fees import Fees
from payments.hashing import keccak256
from payments.io.chain.client import Chain
from payments.io.chain.rpc import decode_data, decode_object, decode_optional, decode_quantity
from payments.io.ethereum import eth_account, transaction_fields
from payments.io.ledger import Ledger, StoredTransaction
from payments.keys import PurseKey, checksum_address

T = TypeVar("T")

_POLL_S = 1.0
_BUMP_AFTER_S = 60.0
"""A transaction that is not mined by then is replaced by one with higher fees."""
_MAX_BUMPS = 8
_GAS_ROOM = 5
"""A fifth more gas than estimated: what the estimate saw may have changed by then."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction."""

    hash: bytes
    block: int
    block_hash: bytes
    ok: bool
    gas_used: int
    fee_wei: int
    contract: bytes | None


class Sender:
    """Transactions from the account of `key`. Call `resume` once before the first `send`."""

    def __init__(self, chain: Chain, key: PurseKey, ledger: Ledger, clock: Callable[[], float]) -> None:
        """Send over `chain`; `clock` gives seconds since 1970, for the ledger only."""
        self._chain = chain
        self._rpc = chain.rpc
        self._key = key
        self._ledger = ledger
        self._clock = clock
        self._lock = trio.Lock()
        self._waits: dict[int, trio.Lock] = {}

    @property
    def address(self) -> bytes:
        """The account (20 bytes)."""
        return self._key.address

    async def prepare(self) -> None:
        """Load what transactions are made with, beside everything else: the first time takes most of a
        second of processor.
        """
        await self._in_thread(eth_account)

    async def resume(self) -> list[StoredTransaction]:
        """Send again what the ledger holds as sent, and return it; for `wait`."""
        stored = await self._in_thread(self._ledger.transactions, self._rpc.chain_id, self.address, "sent")
        for transaction in stored:
            with suppress(TransactionFailedError):  # `wait` offers more, or finds out what became of it.
                await self._send_raw(transaction)
        return stored

    async def send(
        self,
        to: bytes | None,
        data: bytes,
        *,
        kind: str,
        value_wei: int = 0,
        gas_limit: int | None = None,
        fees: Fees | None = None,
    ) -> StoredTransaction:
        """Sign, keep and send a transaction (`to` None: a deployment); return it without waiting.

        Raises TransactionFailedError if it would revert (with the contract's reason), NoFundsError if the
        account cannot pay, ChainError if no endpoint takes it. A cancelled call may have sent it: it is
        then in the ledger.
        """
        await self.prepare()
        async with self._lock:
            if gas_limit is None:
                gas_limit = await self._estimate(to, data, value_wei)
            if fees is None:
                fees = await self._chain.fees()
            nonce = await self._nonce()
            transaction = self._sign(to, data, kind, value_wei, gas_limit, fees, nonce)
            await self._in_thread(self._ledger.put_transaction, transaction)
            try:
                await self._send_raw(transaction)
            except (NoFundsError, TransactionFailedError):
                await self._in_thread(self._ledger.put_transaction, replace(transaction, state="failed"))
                raise
            return transaction

    async def wait(
        self,
        transaction: StoredTransaction,
        confirmations: int = 1,
        timeout_s: float = 600.0,
        on_replaced: Callable[[StoredTransaction], None] | None = None,
    ) -> Receipt:
        """Wait until the transaction has `confirmations` blocks (1: it is in one), and note it in the ledger.

        A transaction that a reorganisation took out is sent again; one that is not mined in a minute is
        replaced by the same with higher fees. Raises TransactionFailedError if it reverted or another one
        took its nonce, ChainError after `timeout_s`. A cancelled wait changes nothing: it can be waited for
        again.
        """
        lock = self._waits.setdefault(transaction.nonce, trio.Lock())
        try:
            # Two that wait for one transaction would both replace it, and each lose sight of the other's.
            async with lock:
                return await self._wait(transaction, confirmations, timeout_s, on_replaced)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._waits.pop(transaction.nonce, None)

    async def _wait(
        self,
        transaction: StoredTransaction,
        confirmations: int,
        timeout_s: float,
        on_replaced: Callable[[StoredTransaction], None] | None,
    ) -> Receipt:
        begun = sent = trio.current_time()
        versions = [transaction]
        newest_version = await self._in_thread(
            self._ledger.transaction, self._rpc.chain_id, self.address, transaction.nonce
        )
        if newest_version is not None and newest_version.hash != transaction.hash:
            versions.append(newest_version)
        while trio.current_time() - begun < timeout_s:
            receipt = await self._find(versions)
            if receipt is not None:
                newest = (await self._chain.block()).number
                if newest - receipt.block + 1 >= confirmations:
                    return await self._finish(versions, receipt)
            else:
                if await self._is_overtaken(versions):
                    lost = replace(versions[-1], state="replaced")
                    await self._in_thread(self._ledger.put_transaction, lost)
                    raise TransactionFailedError("Another transaction of this account took its nonce.")
                if trio.current_time() - sent >= _BUMP_AFTER_S and len(versions) <= _MAX_BUMPS:
                    sent = trio.current_time()
                    versions.append(await self._bump(versions[-1]))
                    if on_replaced is not None:
                        on_replaced(versions[-1])
                else:
                    with suppress(TransactionFailedError):  # It offers too little by now, as a rule.
                        await self._send_raw(versions[-1])
            await trio.sleep(_POLL_S)
        raise ChainError(
            f"The transaction 0x{versions[-1].hash.hex()} is not confirmed after {timeout_s:g} s."
        )

    async def _find(self, versions: list[StoredTransaction]) -> Receipt | None:
        for version in reversed(versions):
            receipt = await self._rpc.call(
                "eth_getTransactionReceipt", "0x" + version.hash.hex(), decode=decode_receipt
            )
            if receipt is not None:
                return receipt
        return None

    async def _finish(self, versions: list[StoredTransaction], receipt: Receipt) -> Receipt:
        version = next((v for v in versions if v.hash == receipt.hash), versions[-1])
        state = "mined" if receipt.ok else "failed"
        done = replace(version, state=state, block=receipt.block, gas_wei=receipt.fee_wei, at_s=self._clock())
        await self._in_thread(self._ledger.put_transaction, done)
        if not receipt.ok:
            raise TransactionFailedError(f"The transaction 0x{receipt.hash.hex()} reverted in its block.")
        return receipt

    async def _is_overtaken(self, versions: list[StoredTransaction]) -> bool:
        """Whether the account's nonce has passed ours while none of ours is in a block (asked twice)."""
        if await self._count("latest") <= versions[0].nonce:
            return False
        return await self._find(versions) is None and await self._count("latest") > versions[0].nonce

    async def _bump(self, old: StoredTransaction) -> StoredTransaction:
        fields: dict[str, Any] = transaction_fields(old.raw)
        fees = Fees(int(fields["maxFeePerGas"]), int(fields["maxPriorityFeePerGas"])).bumped()
        now = await self._chain.fees()
        fees = Fees(max(fees.max_wei, now.max_wei), max(fees.tip_wei, now.tip_wei))
        to = bytes(fields["to"]) or None
        new = self._sign(
            to, bytes(fields["data"]), old.kind, int(fields["value"]), int(fields["gas"]), fees, old.nonce
        )
        await self._in_thread(self._ledger.put_transaction, new)
        try:
            await self._send_raw(new)
        except (NoFundsError, TransactionFailedError):
            await self._in_thread(self._ledger.put_transaction, old)
            return old
        return new

    async def _estimate(self, to: bytes | None, data: bytes, value_wei: int) -> int:
        call: dict[str, str] = {"from": "0x" + self.address.hex(), "data": "0x" + data.hex()}
        if to is not None:
            call["to"] = "0x" + to.hex()
        if value_wei:
            call["value"] = hex(value_wei)
        try:
            gas = await self._rpc.call("eth_estimateGas", call, decode=decode_quantity)
        except RpcRefusedError as error:
            raise _explain(error) from None
        return gas + gas // _GAS_ROOM

    async def _nonce(self) -> int:
        stored = await self._in_thread(self._ledger.transactions, self._rpc.chain_id, self.address, "sent")
        return max([await self._count("latest"), *(t.nonce + 1 for t in stored)])

    async def _count(self, tag: str) -> int:
        return await self._rpc.call(
            "eth_getTransactionCount", "0x" + self.address.hex(), tag, decode=decode_quantity
        )

    def _sign(
        self, to: bytes | None, data: bytes, kind: str, value_wei: int, gas: int, fees: Fees, nonce: int
    ) -> StoredTransaction:
        fields: dict[str, object] = {
            "type": 2,
            "chainId": self._rpc.chain_id,
            "nonce": nonce,
            "maxFeePerGas": fees.max_wei,
            "maxPriorityFeePerGas": fees.tip_wei,
            "gas": gas,
            "value": value_wei,
            "data": data,
            "to": b"" if to is None else checksum_address(to),
        }
        raw = bytes(eth_account().Account.sign_transaction(fields, self._key.secret).raw_transaction)
        return StoredTransaction(
            self._rpc.chain_id,
            self.address,
            nonce,
            kind,
            keccak256(raw),
            raw,
            "sent",
            None,
            0,
            self._clock(),
        )

    async def _send_raw(self, transaction: StoredTransaction) -> None:
        """Hand a signed transaction to an endpoint; that it is known already is as good."""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + transaction.raw.hex(), decode=decode_data)
        except RpcRefusedError as error:
            text = str(error).lower()
            if any(known in text for known in _KNOWN_ALREADY):
                return
            raise _explain(error) from None
        except RpcUnavailableError:
            # It may have arrived; `wait` sends it again until it is seen.
            return

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(function, *arguments)


_KNOWN_ALREADY = (
    "already known",
    "already imported",
    "known transaction",
    "nonce too low",
    "replacement transaction underpriced",
    "already in mempool",
)


def decode_receipt(value: object) -> Receipt | None:
    """Return a receipt, or None for null. Raises DecodeError if a field is missing or of another form."""
    fields = decode_optional(value)
    if fields is None or fields.get("blockNumber") is None:
        return None
    contract = fields.get("contractAddress")
    gas_used = decode_quantity(fields.get("gasUsed"))
    receipt = Receipt(
        decode_data(fields.get("transactionHash")),
        decode_quantity(fields.get("blockNumber")),
        decode_data(fields.get("blockHash")),
        decode_quantity(fields.get("status")) == 1,
        gas_used,
        gas_used * decode_quantity(fields.get("effectiveGasPrice", "0x0")),
        None if contract is None else decode_data(contract),
    )
    if len(receipt.hash) != 32 or len(receipt.block_hash) != 32:
        raise DecodeError("a hash has 32 bytes")
    return receipt


def _explain(error: RpcRefusedError) -> ChainError:
    text = str(error)
    if "insufficient funds" in text.lower() or "insufficient balance" in text.lower():
        return NoFundsError("The account cannot pay for this transaction and its gas: send it coins.")
    data = error.data
    if isinstance(data, dict):
        data = decode_object(data).get("data")
    if isinstance(data, str) and data.startswith("0x"):
        try:
            return TransactionFailedError(f"The contract refuses it: {abi.decode_revert(decode_data(data))}.")
        except DecodeError:
            pass
    return TransactionFailedError(f"The chain refuses it: {text}")
