"""The folder of one running lab: logs, configurations, handles; and what an ended one left behind.

A folder is held by a lock that the kernel releases when its process ends, however it ends. So whoever finds a
folder whose lock is free may undo what its journal says and remove it: every lab does so as it starts.
Almost everything a lab makes ends with its processes (see `keeper.py`); the journal holds the rest, which is
what joining the real internet changes on the machine itself (`uplink.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PREFIX = "hopfare-lab-"
_LOCK = "lock"
_JOURNAL = "journal.json"


class LabFolder:
    """A locked folder `PREFIX<uid>-<pid>-<random>` (0700) in the temporary folder. Context manager."""

    def __init__(self, *, parent: Path | None = None, keep: bool = False) -> None:
        """Make and lock it. With `keep` it stays on the disk after `close`, unlocked."""
        new = Path(tempfile.mkdtemp(prefix="hopfare-new-", dir=parent or tempfile.gettempdir()))
        self._keep = keep
        self._lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Under its real name, where a sweep looks, it is never without its lock.
        name = f"{PREFIX}{os.getuid()}-{os.getpid()}-{new.name.removeprefix('hopfare-new-')}"
        self.path = new.rename(new.with_name(name))
        self._entries: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """Nothing more to do: it was made by the constructor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Release and (unless kept) remove it; harmless twice."""
        if self._lock >= 0:
            if not self._keep:
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def note(self, entry: dict[str, Any]) -> None:
        """Write into the journal, before doing it, what has to be undone; on disk when this returns."""
        self._entries.append(entry)
        self._write()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What the journal holds, the latest first."""
        return self._entries[::-1]

    def noted_by_others(self, kind: str) -> list[dict[str, Any]]:
        """Entries of that kind in the journals of this user's other labs."""
        folders = self.path.parent.glob(f"{PREFIX}{os.getuid()}-*")
        entries = [entry for path in folders if path != self.path for entry in _journal(path)]
        return [entry for entry in entries if entry.get("kind") == kind]

    def forget(self, entry: dict[str, Any]) -> None:
        """Take an undone entry out of the journal."""
        self._entries.remove(entry)
        self._write()

    def _write(self) -> None:
        new = self.path / f"{_JOURNAL}.new"
        new.write_text(json.dumps(self._entries))
        new.replace(self.path / _JOURNAL)


def sweep(undo: Callable[[dict[str, Any]], None], *, parent: Path | None = None) -> list[Path]:
    """Remove the folders of this user's labs that have ended without tidying up; the removed ones.

    `undo` is called for each journal entry, the latest first, and must not mind what is already undone.
    """
    removed = []
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}{os.getuid()}-*"):
        try:
            about = path.lstat()
            if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o077:
                continue  # the temporary folder is everybody's: what is not surely ours gives no orders
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another sweep was faster
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for entry in reversed(_journal(path)):
                undo(entry)
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        finally:
            os.close(lock)
    return removed


def _journal(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((path / _JOURNAL).read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
