"""Private and atomic files: the only way in which the overlay writes keys and state.

Owns permissions (0600, directories 0700), atomicity (a reader sees the old or the new content, never a part)
and durability (file and directory are synced before a write returns). Does not own any format.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from overlay.errors import FileError

PRIVATE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700


def make_private_directory(path: Path) -> None:
    """Create `path` and its parents, `path` itself readable by its owner only; keep an existing one as is.

    Raises FileError if it cannot be made or is not a directory.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=PRIVATE_DIRECTORY_MODE)
    except OSError as error:
        raise FileError(f"cannot create the directory {path}: {error.strerror}") from error
    if not path.is_dir():
        raise FileError(f"{path} is in the way: hopfare needs a directory of that name")


def write_atomic(path: Path, data: bytes, *, mode: int = PRIVATE_MODE, replace: bool = True) -> None:
    """Put `data` at `path` in one step with permissions `mode`, synced to disk.

    With `replace` false an existing file is kept and FileError raised, also if another process creates it
    at the same moment. Raises FileError if the directory is missing or not writable or the disk is full; then
    `path` is as before.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)  # the umask may have narrowed it below what was asked
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)  # unlike a rename, fails if the name is taken
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise FileError(f"{path} already exists and is not overwritten") from error
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error


def read_bounded(path: Path, what: str, limit_bytes: int) -> bytes:
    """Return the content of `path`, at most `limit_bytes` long.

    Raises FileError, which calls the file by `what` it should be.
    """
    return _read(path, what, limit_bytes, private=False)


def read_private(path: Path, what: str, limit_bytes: int) -> bytes:
    """Return the content of a private file.

    Raises FileError if it is missing, not a regular file, longer than `limit_bytes`, or if anyone but its
    owner may read or write it.
    """
    return _read(path, what, limit_bytes, private=True)


def _read(path: Path, what: str, limit_bytes: int, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileError(f"the {what} {path} is not a regular file")
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if private and stat.S_IMODE(status.st_mode) & 0o077:
                raise FileError(
                    f"the {what} {path} can be read or written by other users (mode "
                    f"{stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {path}"
                )
            data = file.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise FileError(f"there is no {what} at {path}") from error
    except OSError as error:
        raise FileError(f"cannot read the {what} {path}: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise FileError(f"the {what} {path} is longer than {limit_bytes} bytes and is not read")
    return data


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
