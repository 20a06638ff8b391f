"""Where the root list comes from: a signed seed list in a file, or the registry on the chain."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from overlay.errors import FileError, OverlayError
from overlay.gossip.roots import EndorsedListings, RootList, root_list_of_seed_list
from overlay.io.files import read_private, write_atomic
from overlay.logs import get_logger
from overlay.node.io.files import load_seed_list
from payments.errors import ChainError, DecodeError
from payments.io.chain.registry import RegistryFollower
from payments.io.chain.rpc import Rpc
from payments.registry_index import MAX_INDEX_BYTES, RegistryIndex, decode_index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from overlay.config.model import Config

FILE_CHECK_S = 5.0
POLL_S = 2.0
MAX_POLL_S = 12.0
"""Between two looks at the chain: about a block, whatever a block's time is there."""
FIRST_POLL_S = 10.0
HOLD_S = 600.0
SMALL_LIST = 8
"""A list of fewer may well lose half of them."""
REGISTRY_FILE = "registry"
MAX_REGISTRY_BYTES = 2 * MAX_INDEX_BYTES

log = get_logger("discovery")


class SeedListSource:
    """The seed list's file, read again when it changes."""

    def __init__(self, config: Config) -> None:
        """Nothing is read yet."""
        self._config = config
        self._seen = self._stamp()
        self.problem = ""

    async def load(self) -> RootList:
        """Return the list's members. Raises ConfigError and FileError as `load_seed_list` does."""
        self._seen = self._stamp()
        return root_list_of_seed_list(load_seed_list(self._config, time.time()))

    async def run(self, changed: Callable[[RootList], None]) -> None:
        """Read the file again whenever it is another one; one that cannot be used is said and passed over."""
        while True:
            await trio.sleep(FILE_CHECK_S)
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                roots = root_list_of_seed_list(load_seed_list(self._config, time.time()))
            except OverlayError as error:
                log.error("the new seed list is not used", reason=str(error))
                self.problem = f"the new seed list is not used: {error}"
                continue
            self.problem = ""
            changed(roots)

    def _stamp(self) -> tuple[int, int]:
        if self._config.seed_list is None:
            return 0, 0
        try:
            status = self._config.seed_list.stat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_size


class _Stored(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The registry's file: an index, and the payees whose endorsements did not hold when it was written."""

    index: bytes
    refused: tuple[bytes, ...]


class RegistrySource:
    """The registry, followed on the chain; what was read is kept on disk and used when nothing answers."""

    def __init__(self, config: Config) -> None:
        """Nothing is read yet."""
        payments = config.payments
        self._config = config
        self._path = config.state_dir / REGISTRY_FILE
        self._listings = EndorsedListings(payments.chain_id, payments.registry)
        self._index = RegistryIndex(payments.chain_id, payments.registry)
        self._disk_problem = ""
        self._chain_problem = ""
        self._given = 0
        """Members of the list in use."""
        self._held_since: float | None = None

    @property
    def problem(self) -> str:
        """Why the list may be old or cannot be kept."""
        return self._chain_problem or self._disk_problem

    async def load(self) -> RootList:
        """Return what is on disk; where nothing is, what the chain says within FIRST_POLL_S."""
        await trio.to_thread.run_sync(self._read)
        if self._index.tip is None:
            async with self._follow() as follower:
                with trio.move_on_after(FIRST_POLL_S):
                    await self._poll(follower)
            await self._save()
        roots = self._listings.root_list(self._index.listings.values())
        self._given = len(roots)
        return roots

    async def run(self, changed: Callable[[RootList], None]) -> None:
        """Follow the registry until cancelled."""
        async with self._follow() as follower:
            poll_s = POLL_S
            while True:
                before = self._index.tip
                is_changed = await self._poll(follower)
                if is_changed or self._held_since is not None:
                    roots = self._listings.root_list(self._index.listings.values())
                    if self._listings.refused and is_changed:
                        log.info("registry entries ignored", count=self._listings.refused)
                    if not self._is_held(roots):
                        self._given = len(roots)
                        changed(roots)
                        await self._save()
                # Twice as long after a look that found no new block, half as long after one that did.
                poll_s = poll_s * 2 if self._index.tip == before else poll_s / 2
                poll_s = min(max(poll_s, POLL_S), MAX_POLL_S)
                await trio.sleep(poll_s)

    def _is_held(self, roots: RootList) -> bool:
        """Whether a list that lost most of its members waits, in case an endpoint lies or is broken."""
        if self._given < SMALL_LIST or 2 * len(roots) >= self._given:
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = trio.current_time()
            log.warning("the registry lost most of its relays", members=len(roots), before=self._given)
        self._chain_problem = (
            f"the registry has {len(roots)} relays instead of {self._given}: the old list is used for ten "
            "minutes, in case an endpoint (payments.rpc) is wrong"
        )
        if trio.current_time() < self._held_since + HOLD_S:
            return True
        self._held_since, self._chain_problem = None, ""
        return False

    @asynccontextmanager
    async def _follow(self) -> AsyncIterator[RegistryFollower]:
        config = self._config
        async with Rpc(config.payments.rpc, config.payments.chain_id) as rpc:
            yield RegistryFollower(
                rpc,
                self._index,
                start_block=config.network.registry_start,
                confirmations=config.payments.confirmations,
            )

    async def _poll(self, follower: RegistryFollower) -> bool:
        before = follower.reorganisations
        try:
            changed = await follower.poll()
        except ChainError as error:
            if not self._chain_problem:
                log.warning("the registry is not read", reason=str(error))
            known = "what was known before is used" if self._index.tip is not None else "nobody is known"
            self._chain_problem = f"the registry cannot be read, and {known}: {error}"
            return False
        self._chain_problem = ""
        if follower.disputed:
            self._chain_problem = (
                f"the chain's endpoints (payments.rpc) do not agree on {follower.disputed} relays of the "
                "registry: what was known before is used"
            )
        if follower.reorganisations > before:
            log.warning("the chain was reorganised", tip=self._index.tip.number if self._index.tip else 0)
        return changed

    def _read(self) -> None:
        if not self._path.exists():
            return
        try:
            stored = _stored_decoder.decode(read_private(self._path, "registry's copy", MAX_REGISTRY_BYTES))
            payments = self._config.payments
            self._index = decode_index(stored.index, payments.chain_id, payments.registry)
        except (FileError, DecodeError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("the registry's stored copy is not used", reason=str(error))
            return
        self._listings.trust(self._index.listings.values(), frozenset(stored.refused))

    async def _save(self) -> None:
        if self._index.tip is None:
            return
        refused = tuple(sorted(self._listings.refused_payees()))
        data = msgspec.msgpack.encode(_Stored(self._index.encode(), refused))
        try:
            await trio.to_thread.run_sync(write_atomic, self._path, data)
        except FileError as error:
            if not self._disk_problem:
                log.error("the registry's copy is not stored", reason=str(error))
            self._disk_problem = f"the registry's copy is not stored: {error}"
        else:
            self._disk_problem = ""


_stored_decoder = msgspec.msgpack.Decoder(_Stored)


def make_source(config: Config) -> SeedListSource | RegistrySource:
    """Return the source that the configuration asks for."""
    return RegistrySource(config) if config.uses_registry else SeedListSource(config)
