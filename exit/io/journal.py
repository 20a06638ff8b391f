"""The journal of changes to the machine's network. Owns one JSON file, and the undoing of what it lists.

A change is written down, and is on the disk, before it is made; so what a killed process left behind is found
at the next start. Entries are undone last first. A kernel setting is put back only if it still has the value
that we gave it: what somebody changed since is theirs. Entries of another boot or another network namespace
are void, since those changes ended with it. A lock file keeps a second process from using the same folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Literal

import msgspec

from exit.errors import EnvError

JOURNAL_NAME = "network.json"
LOCK_NAME = "network.lock"
_PROC_SYS = Path("/proc/sys")
_MAX_JOURNAL_BYTES = 1 << 20


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change. `kind` "setting": the file `target` under /proc/sys, from `old` to `new`; "table":
    nftables, inet; "rule": a routing rule, the words of `ip`; "routes": all routes of the table `target`.
    """

    kind: Literal["setting", "table", "rule", "routes"]
    target: str
    old: str = ""
    new: str = ""


class Record(msgspec.Struct, frozen=True):
    """The file's content: where the changes were made, and the changes, first one first."""

    version: Literal[1]
    boot_id: str
    namespace: str
    entries: tuple[Entry, ...]


class Journal:
    """The changes of one process. Make it with `Journal.open`, end it with `close`, which undoes nothing."""

    __slots__ = ("_folder", "_lock_fd", "_place", "entries")

    def __init__(
        self, folder: Path, lock_fd: int, place: tuple[str, str], entries: tuple[Entry, ...]
    ) -> None:
        """Use `Journal.open`."""
        self._folder = folder
        self._lock_fd = lock_fd
        self._place = place
        #: What is to be undone, first change first.
        self.entries = entries

    @classmethod
    def open(cls, folder: Path, who: str = "exit") -> Journal:
        """Lock `folder` and read what a former process left in it; the folder is made if missing (0700).
        `who` uses it, for messages.

        Raises EnvError when another process holds it or the folder cannot be used. A damaged journal counts
        as empty after it was moved aside, since nothing in it can be trusted.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvError(f"cannot use the state folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            raise EnvError(
                f"another {who} is running with the state folder {folder}; stop it first"
            ) from None
        place = _place()
        return cls(folder, lock_fd, place, _read(folder / JOURNAL_NAME, place))

    def add(self, entry: Entry) -> None:
        """Write the entry down; when this returns it is on the disk and the change may be made."""
        self._write((*self.entries, entry))

    def remove(self, entry: Entry) -> None:
        """Forget an entry whose change was undone."""
        self._write(tuple(one for one in self.entries if one is not entry))

    def close(self) -> None:
        """Release the folder. What is still listed stays for the next start. Harmless when called twice."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, entries: tuple[Entry, ...]) -> None:
        target = self._folder / JOURNAL_NAME
        if not entries:
            target.unlink(missing_ok=True)
        else:
            fresh = target.with_suffix(".new")
            data = msgspec.json.format(msgspec.json.encode(Record(1, *self._place, entries)))
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            fresh.replace(target)
        folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        self.entries = entries


def read_setting(target: str) -> str | None:
    """Return the value of the kernel setting `target` (a path under /proc/sys), or None where there is no
    such."""
    try:
        return (_PROC_SYS / target).read_text().strip()
    except OSError:
        return None


def write_setting(target: str, value: str) -> None:
    """Give a kernel setting a value; raises EnvError with the setting's name."""
    try:
        (_PROC_SYS / target).write_text(value)
    except OSError as error:
        name = target.replace("/", ".")
        raise EnvError(f"cannot set {name} to {value}: {error.strerror}; it needs CAP_NET_ADMIN") from error


def restore_setting(entry: Entry) -> None:
    """Put a setting back if it still has the value that we gave it; one that is gone or refuses is left."""
    if read_setting(entry.target) == entry.new:
        with contextlib.suppress(EnvError):
            write_setting(entry.target, entry.old)


def _place() -> tuple[str, str]:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    status = Path("/proc/self/ns/net").stat()
    return boot_id, f"{status.st_dev}:{status.st_ino}"


def _read(path: Path, place: tuple[str, str]) -> tuple[Entry, ...]:
    try:
        if path.stat().st_size > _MAX_JOURNAL_BYTES:
            raise msgspec.DecodeError("too long")
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, OSError):
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        return ()
    return record.entries if (record.boot_id, record.namespace) == place else ()
