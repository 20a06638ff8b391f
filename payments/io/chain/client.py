"""Reading the chain and our contracts: blocks, balances, fees, purses, the registry.

Amounts that money depends on are read at a block with enough confirmations and, where there are several
endpoints, from two of them; the less favourable answer counts, so that one lying endpoint cannot make a purse
look fuller than it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from payments import abi
from payments.abi import Listing, OnChainPurse
from payments.books import Domain
from payments.errors import DecodeError
from payments.fees import Fees, choose_fees
from payments.io.chain.rpc import Rpc, decode_data, decode_object, decode_quantity


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, hash and time stamp (seconds since 1970)."""

    number: int
    hash: bytes
    time_s: int
    base_fee_wei: int


class Chain:
    """The contracts at one domain. Methods raise ChainError as `Rpc.call` says."""

    def __init__(self, rpc: Rpc, domain: Domain, registry: bytes | None = None) -> None:
        """Read through `rpc`; `registry` (20 bytes) may be missing on a network with a seed list."""
        self.rpc = rpc
        self.domain = domain
        self.registry = registry

    async def block(self, number: int | None = None) -> Block:
        """Return a block, the newest by default."""
        tag = "latest" if number is None else hex(number)
        return await self.rpc.call("eth_getBlockByNumber", tag, False, decode=decode_block)

    async def balance(self, address: bytes) -> int:
        """Return an account's wei."""
        return await self.rpc.call("eth_getBalance", _hex(address), "latest", decode=decode_quantity)

    async def fees(self) -> Fees:
        """Return the fees to offer now."""
        return await self.rpc.call("eth_feeHistory", "0x5", "latest", [50], decode=decode_fee_history)

    async def purse(self, payer: bytes, payee: bytes, confirmations: int = 0) -> OnChainPurse:
        """Return a purse as it was `confirmations` blocks ago, the less favourable of two endpoints' answers.

        An unlock or a withdrawal counts at once, also when it is not confirmed.
        """
        newest = await self.block()
        at = max(0, newest.number - confirmations)
        data = abi.encode_call("purse(address,address)", _hex(payer), _hex(payee))
        call = {"to": _hex(self.domain.contract), "data": "0x" + data.hex()}
        found = await self.rpc.call_each(2, "eth_call", call, hex(at), decode=_decode_purse)
        if confirmations:
            found.append(await self.rpc.call("eth_call", call, "latest", decode=_decode_purse))
        unlocks = [p.unlock_at_s for p in found if p.unlock_at_s]
        return OnChainPurse(
            min(p.deposited_wei for p in found),
            max(p.claimed_wei for p in found),
            min(unlocks, default=0),
        )

    async def earned(self, payee: bytes) -> int:
        """Return what a payee may cash out."""
        return await self._word(self.domain.contract, abi.encode_call("earned(address)", _hex(payee)))

    async def notice_s(self) -> int:
        """Return the purses' notice period."""
        return await self._word(self.domain.contract, abi.encode_call("NOTICE()"))

    async def listings(self, limit: int = 10_000) -> list[Listing]:
        """Return the registry's relays, read at one block, at most `limit`."""
        if self.registry is None:
            return []
        at = (await self.block()).number
        found: list[Listing] = []
        while len(found) < limit:
            data = abi.encode_call("page(uint256,uint256)", len(found), abi.MAX_PAGE)
            call = {"to": _hex(self.registry), "data": "0x" + data.hex()}
            page = await self.rpc.call("eth_call", call, hex(at), decode=_decode_page)
            found += page
            if len(page) < abi.MAX_PAGE:
                break
        return found[:limit]

    async def has_code(self, address: bytes, runtime: bytes) -> bool:
        """Tell whether the contract at `address` is the one whose compiled code is `runtime`."""
        code = await self.rpc.call("eth_getCode", _hex(address), "latest", decode=decode_data)
        # Immutables (the constructor's arguments) follow the compiled code.
        return len(runtime) > 0 and code.startswith(runtime) and len(code) <= len(runtime) + 128

    async def _word(self, contract: bytes, data: bytes) -> int:
        call = {"to": _hex(contract), "data": "0x" + data.hex()}
        return await self.rpc.call("eth_call", call, "latest", decode=_decode_word)


def decode_block(value: object) -> Block:
    """Return a block. Raises DecodeError if a field is missing or of another form."""
    fields = decode_object(value)
    block_hash = decode_data(fields.get("hash"))
    if len(block_hash) != 32:
        raise DecodeError("a block's hash has 32 bytes")
    return Block(
        decode_quantity(fields.get("number")),
        block_hash,
        decode_quantity(fields.get("timestamp")),
        decode_quantity(fields.get("baseFeePerGas", "0x0")),
    )


def decode_fee_history(value: object) -> Fees:
    """Return the fees that an eth_feeHistory answer suggests. Raises DecodeError if it has another form."""
    fields = decode_object(value)
    bases, rewards = fields.get("baseFeePerGas"), fields.get("reward") or []
    if not isinstance(bases, list) or not bases or not isinstance(rewards, list) or len(rewards) > 100:
        raise DecodeError("not a fee history")
    tips = [decode_quantity(row[0]) for row in rewards if isinstance(row, list) and row]
    return choose_fees(decode_quantity(bases[-1]), tips)


def _decode_purse(value: object) -> OnChainPurse:
    return abi.decode_purse(decode_data(value))


def _decode_page(value: object) -> list[Listing]:
    return abi.decode_page(decode_data(value))


def _decode_word(value: object) -> int:
    return abi.decode_word(decode_data(value))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
