"""Progress while circuits come up: one line that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """Shows what is being done. Use as a context manager; standard error is the place."""

    def __init__(self, first: str) -> None:
        """Start with the sentence `first`."""
        self._last = first
        self._status: Status | None = None
        self._ended = False

    def __enter__(self) -> Self:
        """Begin to show."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status as RichStatus

            self._status = RichStatus(self._last, console=Console(stderr=True, highlight=False, markup=False))
            self._status.start()
        else:
            self._print(self._last)
        return self

    def step(self, text: str) -> None:
        """Show `text` as what is being done now; the same text twice is shown once."""
        if text == self._last or self._ended:
            return
        self._last = text
        if self._status is not None:
            self._status.update(text)
        else:
            self._print(text)

    def finish(self, *lines: str) -> None:
        """End the display, leaving `lines`; later steps are not shown.

        May be called again, for more lines.
        """
        self._stop()
        for line in lines:
            self._print(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display."""
        self._stop()

    def _stop(self) -> None:
        self._ended = True
        if self._status is not None:
            self._status.stop()
            self._status = None

    @staticmethod
    def _print(text: str) -> None:
        print(f"hopfare: {text}", file=sys.stderr, flush=True)
