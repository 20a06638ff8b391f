"""Key files: Ethereum keystore v3, one key a file, readable by every wallet and by no other user.

Owns the file's form, its permissions and that it is never half written or overwritten. eth-account (which
takes half a second to import) does the cipher, and is imported on first use.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from payments.errors import KeyFileError
from payments.io.ethereum import eth_account
from payments.keys import PurseKey

SCRYPT_N = 2**17
"""Work factor of scrypt, a power of two: about half a second and 128 MiB, as geth's "light" times 32."""
_FILE_LIMIT_BYTES = 16_384
_OTHERS_BITS = 0o077


def write_key_file(path: Path, key: PurseKey, passphrase: str, scrypt_n: int = SCRYPT_N) -> None:
    """Encrypt `key` with `passphrase` into a new file at `path`, mode 0600, whole or not at all.

    Raises KeyFileError if the file is already there (a key is never overwritten) or cannot be written, or if
    the passphrase is empty.
    """
    if not passphrase:
        raise KeyFileError("An empty passphrase protects nothing: choose one.")
    content = eth_account().Account.encrypt(key.secret, passphrase, kdf="scrypt", iterations=scrypt_n)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # Unlike a rename, refuses to replace a file that is there.
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise KeyFileError(f"{path} is already there: a key is never overwritten.") from None
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be written: {error.strerror}.") from error


def read_key_file(path: Path, passphrase: str) -> PurseKey:
    """Return the key in the file at `path`.

    Raises KeyFileError if the file is missing, can be read by others, is damaged, or the passphrase is wrong.
    """
    return _open(_read(path), passphrase, path)


def decode_key_file(text: str, passphrase: str, name: str) -> PurseKey:
    """Return the key in a key file's `text`; `name` says in errors which one it is.

    Raises KeyFileError if it is damaged or the passphrase is wrong.
    """
    return _open(_parse(text.encode(), name), passphrase, name)


def read_address(path: Path) -> bytes | None:
    """Return the 20-byte address that a key file names, without its passphrase; None if it names none.

    Raises KeyFileError as `read_key_file` does for the file itself.
    """
    named = _read(path).get("address")
    if not isinstance(named, str):
        return None
    try:
        address = bytes.fromhex(named.removeprefix("0x"))
    except ValueError:
        return None
    return address if len(address) == 20 else None


def _open(content: dict[str, object], passphrase: str, name: Path | str) -> PurseKey:
    try:
        secret = bytes(eth_account().Account.decrypt(content, passphrase))
    except ValueError as error:
        reason = "the passphrase is wrong" if "MAC" in str(error) else "it is damaged"
        raise KeyFileError(f"The key file {name} cannot be opened: {reason}.") from None
    except (KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        raise KeyFileError(f"The key file {name} cannot be opened: it is damaged.") from None
    key = PurseKey(secret)
    named = content.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") != key.address.hex():
        raise KeyFileError(f"The key file {name} names another address than its key has.")
    return key


def _read(path: Path) -> dict[str, object]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileError(f"There is no key file {path}.") from None
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}.") from error
    if mode & _OTHERS_BITS:
        raise KeyFileError(f"The key file {path} is open to others: run chmod 600 {path}.")
    return _parse(data, path)


def _parse(data: bytes, name: Path | str) -> dict[str, object]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if len(data) > _FILE_LIMIT_BYTES or not isinstance(content, dict) or content.get("version") != 3:
        raise KeyFileError(f"The key file {name} is not an Ethereum keystore of version 3.")
    return content
