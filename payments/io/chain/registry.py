"""Following the registry on the chain: from the first reading to every change, through reorganisations.

Where there are several endpoints two are asked, and what they do not agree on stays as it was
(`payments.registry_index.agree`). What a call returns is not trusted to have its form.
"""

from __future__ import annotations

from payments import abi
from payments.abi import Listing
from payments.errors import ChainError, DecodeError, RpcRefusedError
from payments.io.chain.client import Block, decode_block
from payments.io.chain.rpc import Rpc, decode_data, decode_object, decode_quantity
from payments.registry_index import RegistryIndex, agree

LOG_SPAN = 2000
"""Blocks asked for in one eth_getLogs: what providers that limit it allow."""
LEAST_LOG_SPAN = 16
MAX_LOGS = 20_000
PAGES_FROM = 64
"""So many changed entries are read faster by pages of the whole list."""
LAG_BLOCKS = 128
"""An endpoint so far behind does not count as a reorganisation."""
ENDPOINTS = 2
FULL_EVERY_BLOCKS = 50
"""Between two readings of the whole list because the count is not what it should be."""


class RegistryFollower:
    """Keeps a `RegistryIndex` up to the chain."""

    def __init__(
        self, rpc: Rpc, index: RegistryIndex, *, start_block: int = 0, confirmations: int = 3
    ) -> None:
        """Read through `rpc`, no event before `start_block`, and nothing with fewer `confirmations`."""
        self.index = index
        self.disputed = 0
        """Payees on which two endpoints did not agree when last asked."""
        self.reorganisations = 0
        self._rpc = rpc
        self._start = start_block
        self._confirmations = confirmations
        self._doubtful: set[bytes] = set()
        """Whose entries a reorganisation may have changed, until they are read."""
        self._next_full_block = 0
        self._span = LOG_SPAN

    async def poll(self) -> bool:
        """Read what is new; tell whether the relays or their terms are others than before.

        Raises ChainError if no endpoint answers, or the chain is reorganised while it is read; the index is
        then as before, but for checkpoints that are gone from the chain.
        """
        head = await self._block(None)
        if head is None:
            raise ChainError("the chain has no newest block")
        target_number = head.number - self._confirmations
        if target_number < self._start:
            return False
        rewound = await self._rewind(head)
        tip = self.index.tip
        if rewound is None:
            return False
        self._doubtful |= rewound
        touched = set(self._doubtful)
        if tip is not None and target_number <= tip.number and not touched:
            return False
        target = await self._must_block(target_number)
        if tip is None:
            changes = await self._read_all(target.number)
        else:
            first = tip.number + 1
            while first <= target.number:
                last = min(first + self._span - 1, target.number)
                touched |= await self._changed(first, last)
                first = last + 1  # the span may have shrunk meanwhile
            changes = await self._read(touched, target.number)
            # An endpoint that keeps events back shows by the count.
            counted = await self._count(target.number)
            if counted != self._count_with(changes) and target.number >= self._next_full_block:
                self._next_full_block = target.number + FULL_EVERY_BLOCKS
                changes = await self._read_all(target.number)
        if (await self._must_block(target.number)).hash != target.hash:
            raise ChainError("the chain was reorganised while the registry was read")
        self._doubtful.clear()
        return self.index.apply(target.number, target.hash, changes)

    async def _rewind(self, head: Block) -> set[bytes] | None:
        """Go back to a checkpoint on the chain; return whose entries are in doubt, or None to wait."""
        for place in range(len(self.index.checkpoints) - 1, -1, -1):
            checkpoint = self.index.checkpoints[place]
            if head.number < checkpoint.number <= head.number + LAG_BLOCKS:
                return None  # this endpoint has not got so far
            block = await self._block(checkpoint.number)
            if block is not None and block.hash == checkpoint.hash:
                if place < len(self.index.checkpoints) - 1:
                    self.reorganisations += 1
                return self.index.rewind(checkpoint)
        if self.index.checkpoints:
            self.reorganisations += 1
        return self.index.rewind(None)

    async def _read(self, payees: set[bytes], at: int) -> dict[bytes, Listing | None]:
        if len(payees) >= PAGES_FROM:
            everything = await self._read_all(at)
            return {**everything, **{payee: everything.get(payee) for payee in payees}}
        changes: dict[bytes, Listing | None] = {}
        self.disputed = 0
        for payee in sorted(payees):
            entry_call = self._call(abi.encode_call("entry_of(address)", "0x" + payee.hex()))
            stake_call = self._call(abi.encode_call("stake_of(address)", "0x" + payee.hex()))
            entries = await self._rpc.call_each(
                ENDPOINTS, "eth_call", entry_call, hex(at), decode=_decode_entry
            )
            stakes = await self._rpc.call_each(
                ENDPOINTS, "eth_call", stake_call, hex(at), decode=_decode_stake
            )
            tables: list[dict[bytes, Listing | None]] = [
                {payee: None if entry is None else Listing(payee, *entry, min(stakes))} for entry in entries
            ]
            agreed, disputed = agree(tables, self.index.listings)
            self.disputed += disputed
            changes.update(agreed)
        return changes

    async def _read_all(self, at: int) -> dict[bytes, Listing | None]:
        """Read the whole list by pages, and say of each known payee that is not on it that it is gone."""
        found: dict[bytes, Listing | None] = {}
        self.disputed = 0
        total = await self._count(at)
        place = 0
        while place < total:
            call = self._call(abi.encode_call("page(uint256,uint256)", place, abi.MAX_PAGE))
            pages = await self._rpc.call_each(ENDPOINTS, "eth_call", call, hex(at), decode=_decode_page)
            tables: list[dict[bytes, Listing | None]] = [{one.payee: one for one in page} for page in pages]
            agreed, disputed = agree(tables, self.index.listings)
            self.disputed += disputed
            found.update(agreed)
            if not any(pages):
                break
            place += abi.MAX_PAGE
        gone = {payee: None for payee in self.index.listings if payee not in found}
        if gone and self.disputed:
            return found  # keep who may be on a page that was disputed
        return {**found, **gone}

    async def _changed(self, first: int, last: int) -> set[bytes]:
        """Return the payees of the registry's events in these blocks, those that any endpoint tells of."""
        try:
            answers = await self._rpc.call_each(
                ENDPOINTS,
                "eth_getLogs",
                {"address": "0x" + self.index.registry.hex(), "fromBlock": hex(first), "toBlock": hex(last)},
                decode=self._decode_logs,
            )
        except RpcRefusedError:
            blocks = last - first + 1
            if blocks <= LEAST_LOG_SPAN:
                raise
            # The provider wants fewer blocks at a time.
            self._span = max(LEAST_LOG_SPAN, min(self._span, blocks // 2))
            middle = (first + last) // 2
            return await self._changed(first, middle) | await self._changed(middle + 1, last)
        return {payee for answer in answers for payee in answer}

    async def _count(self, at: int) -> int:
        call = self._call(abi.encode_call("count()"))
        return await self._rpc.call("eth_call", call, hex(at), decode=_decode_word)

    def _count_with(self, changes: dict[bytes, Listing | None]) -> int:
        listed = {payee for payee in self.index.listings if changes.get(payee, True) is not None}
        return len(listed | {payee for payee, listing in changes.items() if listing is not None})

    async def _block(self, number: int | None) -> Block | None:
        tag = "latest" if number is None else hex(number)
        return await self._rpc.call("eth_getBlockByNumber", tag, False, decode=_decode_optional_block)

    async def _must_block(self, number: int) -> Block:
        block = await self._block(number)
        if block is None or block.number != number:
            raise ChainError(f"the endpoint has no block {number}")
        return block

    def _call(self, data: bytes) -> dict[str, str]:
        return {"to": "0x" + self.index.registry.hex(), "data": "0x" + data.hex()}

    def _decode_logs(self, value: object) -> set[bytes]:
        if not isinstance(value, list) or len(value) > MAX_LOGS:
            raise DecodeError("not a list of events, or too many")
        payees = set()
        for one in value:
            fields = decode_object(one)
            topics = fields.get("topics")
            if decode_data(fields.get("address")) != self.index.registry:
                raise DecodeError("an event of another contract")
            if not isinstance(topics, list) or not 2 <= len(topics) <= 4:
                raise DecodeError("an event without a payee")
            word = decode_data(topics[1])
            if len(word) != 32 or any(word[:12]):
                raise DecodeError("an event's payee is no address")
            decode_quantity(fields.get("blockNumber"))
            payees.add(word[12:])
        return payees


def _decode_optional_block(value: object) -> Block | None:
    return None if value is None else decode_block(value)


def _decode_entry(value: object) -> tuple[bytes, bytes, bytes, int] | None:
    """Return identity, endorsement, address and port; None if the payee is not listed."""
    data = decode_data(value)
    if len(data) != 5 * 32:
        raise DecodeError(f"an entry has 160 bytes, not {len(data)}")
    identity, endorsement, ip, port = data[:32], data[32:96], data[96:128], data[128:160]
    if any(ip[:16]) or int.from_bytes(port, "big") > 65535:
        raise DecodeError("an entry's address or port is out of range")
    if not any(identity):
        return None
    return identity, endorsement, ip[16:], int.from_bytes(port, "big")


def _decode_stake(value: object) -> int:
    data = decode_data(value)
    if len(data) != 64:
        raise DecodeError(f"a stake has 64 bytes, not {len(data)}")
    return int.from_bytes(data[:32], "big")


def _decode_page(value: object) -> list[Listing]:
    return abi.decode_page(decode_data(value))


def _decode_word(value: object) -> int:
    return abi.decode_word(decode_data(value))
