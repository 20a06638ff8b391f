"""Where the root list comes from: a signed seed list in a file, or the registry on the chain."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from overlay.errors import OverlayError
from overlay.gossip.roots import RootList, root_list_of_seed_list
from overlay.logs import get_logger
from overlay.node.io.files import load_seed_list

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.config.model import Config

FILE_CHECK_S = 5.0

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


def make_source(config: Config) -> SeedListSource:
    """Return the source that the configuration asks for."""
    return SeedListSource(config)
