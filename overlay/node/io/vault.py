"""The ledger's writer in a running node: states in, one thread that writes them, word when they are on disk.

Owns the order of writes and reads of a purse, and that what cannot be written is tried again and said once. A
purse that waits to be written holds only its newest state, so what waits is bounded by the number of purses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import trio

from overlay.logs import get_logger
from payments.errors import LedgerError, PurseBusyError
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed, Side
from payments.state import PurseState

RETRY_S = 1.0
"""After the disk refused: it may be full only for a moment, and service goes on for a window meanwhile."""

log = get_logger("money")

Key = tuple[Side, PurseKeyed]


@dataclass(slots=True)
class _Waiting:
    state: PurseState
    tokens: list[Hashable] = field(default_factory=list)


class Vault:
    """One node's ledger."""

    def __init__(
        self,
        ledger: Ledger,
        on_written: Callable[[list[Hashable]], None],
        on_busy: Callable[[Side, PurseKeyed], None],
    ) -> None:
        """`on_written` gets the tokens of states that are on disk; `on_busy` purses that others changed."""
        self.ledger = ledger
        self.problem = ""
        """A sentence while nothing can be written, else empty."""
        self._on_written = on_written
        self._on_busy = on_busy
        self._waiting: dict[Key, _Waiting] = {}
        self._earnings: dict[tuple[int, bytes], DayEarnings] = {}
        self._wake = trio.Event()
        self._written = trio.Event()
        self._busy = False

    def put(self, side: Side, purse: PurseKeyed, state: PurseState, token: Hashable = None) -> None:
        """Have `state` written; `token` is given to `on_written` then."""
        waiting = self._waiting.setdefault((side, purse), _Waiting(state))
        waiting.state = state
        if token is not None:
            waiting.tokens.append(token)
        self._wake.set()

    def add_earnings(self, more: DayEarnings) -> None:
        """Have a neighbour's earnings of a day added with the next write."""
        key = (more.day, more.neighbour)
        old = self._earnings.get(key)
        if old is not None:
            more = DayEarnings(
                more.day,
                more.neighbour,
                old.packets + more.packets,
                old.tickets + more.tickets,
                old.earned_wei + more.earned_wei,
                old.claimed_wei + more.claimed_wei,
                old.gas_wei + more.gas_wei,
            )
        self._earnings[key] = more

    async def load(self, side: Side, purse: PurseKeyed) -> PurseState:
        """Return what is kept of a purse, after what waits for it has been written. Raises LedgerError."""
        while (side, purse) in self._waiting or self._busy:
            await self._written.wait()
        return await trio.to_thread.run_sync(self.ledger.load, side, purse)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            batch, self._waiting = self._waiting, {}
            earnings, self._earnings = self._earnings, {}
            self._busy = True
            try:
                # Not to be abandoned half way: a write that happened must be known to have happened.
                with trio.CancelScope(shield=True):
                    left, lost = await trio.to_thread.run_sync(self._write, batch, list(earnings.values()))
            finally:
                self._busy = False
            for key in lost:
                self._on_busy(*key)
            if left:
                all_left = len(left) == len(batch)
                self._put_back({key: batch[key] for key in left}, earnings if all_left else {})
            written, self._written = self._written, trio.Event()
            written.set()
            gone = {*left, *lost}
            self._on_written([t for key, old in batch.items() if key not in gone for t in old.tokens])
            if left:
                await trio.sleep(RETRY_S)
                self._wake.set()

    def close(self) -> None:
        """Write what is left, at once. A disk that refuses is logged; payers' memories then fill the gap."""
        batch, self._waiting = self._waiting, {}
        earnings, self._earnings = list(self._earnings.values()), {}
        if batch or earnings:
            self._write(batch, earnings)

    def _write(self, batch: dict[Key, _Waiting], earnings: list[DayEarnings]) -> tuple[list[Key], list[Key]]:
        """Write, in a thread; return the purses that must be tried again, and those that others changed."""
        states = [(side, purse, waiting.state) for (side, purse), waiting in batch.items()]
        try:
            self.ledger.store_many(states, earnings)
        except PurseBusyError:
            return self._write_each(states, earnings)
        except LedgerError as error:
            self._say(str(error))
            return list(batch), []
        self.problem = ""
        return [], []

    def _write_each(
        self, states: list[tuple[Side, PurseKeyed, PurseState]], earnings: list[DayEarnings]
    ) -> tuple[list[Key], list[Key]]:
        """One of them was changed by someone else: find it, and write the others."""
        left: list[Key] = []
        lost: list[Key] = []
        for side, purse, state in states:
            try:
                self.ledger.store_many([(side, purse, state)], earnings)
                earnings = []
            except PurseBusyError:
                lost.append((side, purse))
            except LedgerError as error:
                self._say(str(error))
                left.append((side, purse))
        return left, lost

    def _put_back(self, batch: dict[Key, _Waiting], earnings: dict[tuple[int, bytes], DayEarnings]) -> None:
        for key, old in batch.items():
            newer = self._waiting.setdefault(key, old)
            if newer is not old:
                newer.tokens[:0] = old.tokens
        for entry in earnings.values():
            self.add_earnings(entry)

    def _say(self, reason: str) -> None:
        if not self.problem:
            log.error("the ledger is not written", reason=reason)
        self.problem = f"what was paid is not written to disk, and service stops at one window: {reason}"
