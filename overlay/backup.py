"""A node's backup: one encrypted file with all that cannot be made again.

Owns the file's form: a header, and a tar archive sealed under a passphrase. Does not own which files of a
node go into it, nor the disk: `overlay.node.io.backup` does.

========  =====  ===================================================================================
at        bytes  what
========  =====  ===================================================================================
0         16     ``hopfare backup\\0\\x01``; the last byte is the version
16        16     salt of Argon2id (RFC 9106)
32        4      Argon2id passes, big-endian
36        4      Argon2id memory in KiB, big-endian
40        24     nonce of XSalsa20-Poly1305
64        n+16   the tar archive (POSIX pax, xz), sealed (libsodium secretbox)
========  =====  ===================================================================================
"""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
from collections.abc import Callable, Mapping

from nacl import pwhash, secret
from nacl.exceptions import CryptoError

from overlay.errors import DecodeError

MAGIC = b"hopfare backup\0\x01"
SALT_BYTES = pwhash.argon2id.SALTBYTES
NONCE_BYTES = secret.SecretBox.NONCE_SIZE
MAX_BACKUP_BYTES = 256 * 1024 * 1024
MAX_FILES = 64
MAX_CONTENT_BYTES = 512 * 1024 * 1024
PASSES = pwhash.argon2id.OPSLIMIT_MODERATE
MEMORY_KIB = pwhash.argon2id.MEMLIMIT_MODERATE // 1024
MAX_PASSES = 64
MAX_MEMORY_KIB = 1024 * 1024
"""What a file may ask of the machine that opens it."""

_HEAD = struct.Struct(f">{len(MAGIC)}s{SALT_BYTES}sII")


def encode_backup(
    files: Mapping[str, bytes],
    passphrase: bytes,
    rng: Callable[[int], bytes],
    *,
    passes: int = PASSES,
    memory_kib: int = MEMORY_KIB,
) -> bytes:
    """Seal `files` (plain names to contents) under `passphrase`; takes about a second and 256 MiB."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    salt = rng(SALT_BYTES)
    box = _box(passphrase, salt, passes, memory_kib)
    sealed: bytes = box.encrypt(lzma.compress(archive.getvalue()), rng(NONCE_BYTES))
    return _HEAD.pack(MAGIC, salt, passes, memory_kib) + sealed


def decode_backup(data: bytes, passphrase: bytes) -> dict[str, bytes]:
    """Return the files of a backup.

    Raises DecodeError if `data` is no backup, is damaged, or the passphrase is another.
    """
    if len(data) < _HEAD.size + NONCE_BYTES + secret.SecretBox.MACBYTES or len(data) > MAX_BACKUP_BYTES:
        raise DecodeError("it is no backup of hopfare, or it is cut short")
    magic, salt, passes, memory_kib = _HEAD.unpack_from(data)
    if magic[:-1] != MAGIC[:-1]:
        raise DecodeError("it is no backup of hopfare")
    if magic != MAGIC:
        raise DecodeError(f"it was made by a version of hopfare that this one does not know ({magic[-1]})")
    if not (1 <= passes <= MAX_PASSES and 8 <= memory_kib <= MAX_MEMORY_KIB):
        raise DecodeError("it asks for more work than any backup does: it is damaged")
    try:
        packed = _box(passphrase, salt, passes, memory_kib).decrypt(data[_HEAD.size :])
    except CryptoError:
        raise DecodeError("the passphrase is wrong, or the file is damaged") from None
    return _unpack(packed)


def _unpack(packed: bytes) -> dict[str, bytes]:
    """Read the archive. Whoever wrote it knew the passphrase, which is no reason to trust its names."""
    files: dict[str, bytes] = {}
    try:
        unpacker = lzma.LZMADecompressor(memlimit=MAX_CONTENT_BYTES)
        archive = unpacker.decompress(packed, MAX_CONTENT_BYTES)
        if not unpacker.eof:
            raise DecodeError("it holds more than a node's files")
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None or not is_plain_name(entry.name) or len(files) >= MAX_FILES:
                    raise DecodeError("it holds what no backup of hopfare holds")
                files[entry.name] = content.read()
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise DecodeError(f"it is damaged ({error})") from None
    return files


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is a file's name and no path, and not hidden."""
    return 0 < len(name) <= 64 and "/" not in name and "\0" not in name and not name.startswith(".")


def _box(passphrase: bytes, salt: bytes, passes: int, memory_kib: int) -> secret.SecretBox:
    key = pwhash.argon2id.kdf(
        secret.SecretBox.KEY_SIZE, passphrase, salt, opslimit=passes, memlimit=memory_kib * 1024
    )
    return secret.SecretBox(key)
