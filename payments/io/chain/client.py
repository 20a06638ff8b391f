"""Reading the chain and our contracts: blocks, balances, fees, purses, the registry.

Amounts that money depends on are read at a block with enough confirmations and, where there are several
endpoints, from two of them; the less favourable answer counts, so that one lying endpoint cannot make a purse
look fuller than it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from payments import abi
from payments.abi import Listing, OnChainPurse
from payments.books import Domain
from payments.errors import ChainError, DecodeError
from payments.fees import Fees, choose_fees
from payments.io.chain.rpc import Call, Rpc, decode_data, decode_object, decode_quantity


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
        return (await self.purses([(payer, payee)], confirmations))[0]

    async def purses(
        self, pairs: Sequence[tuple[bytes, bytes]], confirmations: int = 0, least_block: int = 0
    ) -> list[OnChainPurse]:
        """Return many purses (payer and payee each), as `purse` does, in few requests.

        Raises ChainError also if the endpoints have not got to `least_block` yet.
        """
        if not pairs:
            return []
        newest = await self.block()
        if newest.number < least_block:
            raise ChainError(f"the chain's endpoint is at block {newest.number}, before {least_block}")
        found: list[list[OnChainPurse]] = []
        at = hex(max(0, newest.number - confirmations))

        async def read_then() -> None:
            found.extend(await self.rpc.call_many_each(2, self._purse_calls(pairs, at), decode=_decode_purse))

        async def read_now() -> None:
            calls = self._purse_calls(pairs, "latest")
            found.append(await self.rpc.call_many(calls, decode=_decode_purse))

        if confirmations:
            await run_together(read_then, read_now)
        else:
            await read_then()
        return [_least(views) for views in zip(*found, strict=True)]

    def _purse_calls(self, pairs: Sequence[tuple[bytes, bytes]], at: str) -> list[Call]:
        to = _hex(self.domain.contract)
        return [
            ("eth_call", ({"to": to, "data": "0x" + abi.encode_purse(*pair).hex()}, at)) for pair in pairs
        ]

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


async def run_together(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run independent reads at the same time; the first error ends the others and is raised as it is."""
    errors: list[ChainError] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except ChainError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    if errors:
        raise errors[0]


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


def _least(views: Sequence[OnChainPurse]) -> OnChainPurse:
    """The least favourable of several views of one purse."""
    return OnChainPurse(
        min(p.deposited_wei for p in views),
        max(p.claimed_wei for p in views),
        min((p.unlock_at_s for p in views if p.unlock_at_s), default=0),
    )


def _decode_purse(value: object) -> OnChainPurse:
    return abi.decode_purse(decode_data(value))


def _decode_page(value: object) -> list[Listing]:
    return abi.decode_page(decode_data(value))


def _decode_word(value: object) -> int:
    return abi.decode_word(decode_data(value))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
