"""The directory on disk: what was known at the last stop is known at the next start.

Owns the file's form: a header line, a BLAKE2b checksum of 32 bytes, and the MessagePack array ``[saved_s,
[descriptor: bin, ...]]``. It is this node's own and private, so the descriptors' signatures, checked when
they came in, are not checked again: ten thousand would take a second.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from overlay.descriptor import MAX_DESCRIPTOR_BYTES
from overlay.errors import FileError
from overlay.io.files import read_private, write_atomic
from overlay.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTORY_FILE = "directory"
MAX_ENTRIES = 65_536
MAX_FILE_BYTES = 128 * 1024 * 1024
_HEADER = b"hopfare directory 1\n"
_SUM_BYTES = 32

log = get_logger("discovery")


class _Body(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    saved_s: int
    descriptors: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_DESCRIPTOR_BYTES)], ...],
        msgspec.Meta(max_length=MAX_ENTRIES),
    ]


_decoder = msgspec.msgpack.Decoder(_Body)


def save_directory(path: Path, descriptors: Iterable[bytes], unix_s: float) -> None:
    """Write the file. Raises FileError, with the old one kept."""
    body = msgspec.msgpack.encode(_Body(int(unix_s), tuple(descriptors)))
    write_atomic(path, _HEADER + hashlib.blake2b(body, digest_size=_SUM_BYTES).digest() + body)


def load_directory_file(path: Path) -> tuple[bytes, ...]:
    """Return the descriptors in the file; none if there is no file, or it is damaged, which is logged.

    A file that cannot be read is treated alike: the directory can be had from others.
    """
    if not path.exists():
        return ()
    try:
        data = read_private(path, "directory", MAX_FILE_BYTES)
    except FileError as error:
        log.warning("the stored directory is not used", reason=str(error))
        return ()
    body = data[len(_HEADER) + _SUM_BYTES :]
    checksum = data[len(_HEADER) : len(_HEADER) + _SUM_BYTES]
    if not data.startswith(_HEADER) or hashlib.blake2b(body, digest_size=_SUM_BYTES).digest() != checksum:
        log.warning("the stored directory is not used", reason=f"{path} is damaged")
        return ()
    try:
        return _decoder.decode(body).descriptors
    except (msgspec.MsgspecError, ValueError, RecursionError):
        log.warning("the stored directory is not used", reason=f"{path} is of another version")
        return ()
