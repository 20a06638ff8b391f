"""Keeps a relay to its operator's wishes: the monthly cap, and the draining stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from overlay.duty import MAX_USAGE_BYTES, Duty, DutyRoster, Usage, decode_usage
from overlay.errors import DecodeError, FileError
from overlay.io.files import read_private, write_atomic
from overlay.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from overlay.config.model import Config

USAGE_FILE = "usage.json"
STORE_EVERY_S = 60.0
"""A crash forgets at most so much of the month's count."""
MAX_DRAIN_S = 24 * 3600.0

log = get_logger("relay")


class DutyKeeper:
    """A relay's duty over time, with its file."""

    def __init__(self, config: Config, *, is_exit: bool) -> None:
        """Reads the month's count; a damaged file counts from zero and is said. Raises FileError for one
        that cannot be read.
        """
        self._file: Path = config.state_dir / USAGE_FILE
        # What an exit carries crosses its line once more, to and from the internet.
        self._crossings = 2 if is_exit else 1
        self._stored_at_s = trio.current_time()
        self._stored_bytes = -1
        self._problem = ""
        self.roster = DutyRoster(self._load(), config.relay.monthly_cap_bytes)
        self._duty = Duty.OPEN

    def _load(self) -> Usage:
        if not self._file.exists():
            return Usage()
        try:
            return decode_usage(read_private(self._file, "the month's usage", MAX_USAGE_BYTES))
        except DecodeError:
            log.error("the month's count is damaged and begins anew", file=str(self._file))
            return Usage()

    def tick(self, total_packets: int, change: Callable[[Duty], None]) -> None:
        """Count, store when it is time, and call `change` if the duty is another than before."""
        self.roster.note_carried(total_packets * self._crossings, time.time())
        now = trio.current_time()
        if now >= self._stored_at_s + STORE_EVERY_S:
            self.store()
        duty = self.roster.duty
        if duty is not self._duty:
            self._duty = duty
            log.warning("duty changed", duty=duty.value, reason=self.roster.explain())
            change(duty)

    def store(self) -> None:
        """Write the month's count, if it has changed; a full disk is said once and tried again."""
        self._stored_at_s = trio.current_time()
        if self.roster.usage.carried_bytes == self._stored_bytes:
            return
        try:
            write_atomic(self._file, self.roster.usage.encode())
        except FileError as error:
            if not self._problem:
                log.error("the month's count is not stored", reason=str(error))
            self._problem = f"the month's count is not stored: {error}"
        else:
            self._stored_bytes, self._problem = self.roster.usage.carried_bytes, ""

    def problems(self) -> list[str]:
        """Sentences for `hopfare status`."""
        return [sentence for sentence in (self.roster.explain(), self._problem) if sentence]

    def status(self) -> dict[str, Any]:
        """Figures for `hopfare status`."""
        usage = self.roster.usage
        figures: dict[str, Any] = {"month": usage.month, "bytes": usage.carried_bytes}
        if self.roster.cap_bytes:
            figures["cap_bytes"] = self.roster.cap_bytes
        return figures
