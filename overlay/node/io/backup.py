"""What of a node's state folder goes into a backup, and how it comes back.

Everything in the folder but what this machine or this process made for itself: locks, the control socket, the
journal of network changes. Databases are copied as of one moment, also while the node writes to them.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from exit.io.journal import JOURNAL_NAME
from exit.io.journal import LOCK_NAME as JOURNAL_LOCK_NAME
from overlay.backup import MAX_CONTENT_BYTES, MAX_FILES, is_plain_name
from overlay.errors import FileError
from overlay.io.files import make_private_directory, read_bounded, write_atomic
from overlay.node.io.files import IDENTITY_FILE
from overlay.node.io.local import LOCK_NAME, SOCKET_NAME, lock_state

CONFIG_ENTRY = "+configuration.toml"
"""The configuration file's name in a backup; a plus sign, which no file of a state folder begins with."""
MAX_CONFIG_BYTES = 1024 * 1024
_SQLITE_MAGIC = b"SQLite format 3\0"
_BELONGS_HERE = {LOCK_NAME, SOCKET_NAME, f"{SOCKET_NAME}.new", JOURNAL_NAME, JOURNAL_LOCK_NAME}
_DATABASE_PARTS = ("-wal", "-shm", "-journal")


def collect_state(state_dir: Path, config_file: Path | None) -> dict[str, bytes]:
    """Read all files of a node that a backup holds, by name; the node may be running.

    Raises FileError if there is no node, or a file cannot be read or is longer than a backup may be.
    """
    if not (state_dir / IDENTITY_FILE).exists():
        raise FileError(f"there is no identity in {state_dir}: there is nothing to back up")
    files: dict[str, bytes] = {}
    left = MAX_CONTENT_BYTES
    try:
        for path in sorted(state_dir.iterdir()):
            if _belongs(path):
                files[path.name] = _read_whole(path, left)
                left -= len(files[path.name])
    except OSError as error:
        raise FileError(f"cannot read {state_dir}: {error.strerror}") from error
    if config_file is not None:
        files[CONFIG_ENTRY] = read_bounded(config_file, "configuration", MAX_CONFIG_BYTES)
    if len(files) > MAX_FILES:
        raise FileError(f"{state_dir} holds {len(files)} files: move away what is not hopfare's")
    return files


def restore_configuration(files: Mapping[str, bytes], config_file: Path) -> bool:
    """Write a backup's configuration, unless it has none or one is there; tell whether it was written.

    Raises FileError if it cannot be written.
    """
    if CONFIG_ENTRY not in files or config_file.exists():
        return False
    make_private_directory(config_file.parent)
    write_atomic(config_file, files[CONFIG_ENTRY], mode=0o644, replace=False)
    return True


def restore_state(state_dir: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write a backup's state files and return their paths.

    Raises AlreadyRunningError if a node runs with the folder, FileError if one of the files is there already
    (nothing is overwritten) or cannot be written.
    """
    if IDENTITY_FILE not in files:
        raise FileError("the backup holds no identity: it is not a node's")
    names = [name for name in files if name != CONFIG_ENTRY]
    with lock_state(state_dir):
        taken = [name for name in names if (state_dir / name).exists()]
        if taken:
            raise FileError(
                f"{state_dir} has {', '.join(sorted(taken))} already and nothing is overwritten: restore "
                "into an empty state folder (--state-dir)"
            )
        # The identity comes last: a restore that was cut short is no node yet.
        names.sort(key=lambda name: (name == IDENTITY_FILE, name))
        for name in names:
            write_atomic(state_dir / name, files[name], replace=False)
    return [state_dir / name for name in names]


def _belongs(path: Path) -> bool:
    return (
        path.name not in _BELONGS_HERE
        and is_plain_name(path.name)
        and not path.name.endswith(_DATABASE_PARTS)
        and stat.S_ISREG(path.lstat().st_mode)
    )


def _read_whole(path: Path, left_bytes: int) -> bytes:
    with path.open("rb") as file:
        is_database = file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    if not is_database:
        return read_bounded(path, "state file", left_bytes)
    try:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as source,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            data = copy.serialize()
    except sqlite3.Error as error:
        raise FileError(f"cannot copy the database {path}: {error}") from error
    if len(data) > left_bytes:
        raise FileError(f"{path} is too long for a backup ({len(data)} bytes)")
    return data
