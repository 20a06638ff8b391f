"""Key files: Ethereum keystore v3, one key a file, readable by every wallet and by no other user.

Owns the file's form, its permissions and that it is never half written or overwritten. eth-account writes
them; they are opened without it, because each start of a node does that and importing it takes most of a
second.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from payments.errors import KeyFileError
from payments.hashing import keccak256
from payments.io.ethereum import eth_account
from payments.keys import PurseKey

SCRYPT_N = 2**17
"""Work factor of scrypt, a power of two: about half a second and 128 MiB, as geth's "light" times 32."""
_SCRYPT_LIMIT_BYTES = 1 << 30
_SCRYPT_LIMIT_P = 16
_PBKDF2_LIMIT = 10_000_000
"""What opening a file may cost: more than any wallet's files ask for."""
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
        secret = _decrypt(content, passphrase)
    except _WrongPassphraseError:
        raise KeyFileError(f"The key file {name} cannot be opened: the passphrase is wrong.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        raise KeyFileError(f"The key file {name} cannot be opened: it is damaged.") from None
    key = PurseKey(secret)
    named = content.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") != key.address.hex():
        raise KeyFileError(f"The key file {name} names another address than its key has.")
    return key


class _WrongPassphraseError(Exception):
    """The content's code does not match."""


def _decrypt(content: Mapping[str, Any], passphrase: str) -> bytes:
    """Return the 32 secret bytes. Raises ValueError, KeyError or TypeError if the content is damaged."""
    crypto = content["crypto"] if "crypto" in content else content["Crypto"]
    parameters = crypto["kdfparams"]
    salt, length = bytes.fromhex(parameters["salt"]), int(parameters["dklen"])
    if crypto["cipher"] != "aes-128-ctr" or length != 32:
        raise ValueError("another cipher")
    if crypto["kdf"] == "scrypt":
        n, r, p = int(parameters["n"]), int(parameters["r"]), int(parameters["p"])
        if not 0 < 128 * n * r <= _SCRYPT_LIMIT_BYTES or not 0 < p <= _SCRYPT_LIMIT_P:
            raise ValueError("scrypt would take too much")
        memory = 128 * r * (n + p + 2) + 1024 * 1024
        derived = hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length)
    elif crypto["kdf"] == "pbkdf2" and parameters["prf"] == "hmac-sha256":
        rounds = int(parameters["c"])
        if not 0 < rounds <= _PBKDF2_LIMIT:
            raise ValueError("pbkdf2 would take too long")
        derived = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, rounds, length)
    else:
        raise ValueError("another way to derive keys")
    cipher = bytes.fromhex(crypto["ciphertext"])
    code = bytes.fromhex(crypto["mac"].removeprefix("0x"))
    if not hmac.compare_digest(keccak256(derived[16:] + cipher), code):
        raise _WrongPassphraseError
    counter = bytes.fromhex(crypto["cipherparams"]["iv"])
    return Cipher(AES(derived[:16]), CTR(counter)).decryptor().update(cipher)


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
