"""This node's account on the chain: its key file, the passphrase, and that one process has it at a time.

Two processes with one account would take each other's transaction numbers and give the same tickets twice, so
the key file is locked for as long as the key is in use. The kernel drops the lock with its process.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from overlay.errors import ConfigError
from overlay.io.files import read_private
from payments.errors import KeyFileError, PurseBusyError
from payments.io.keystore import read_address, read_key_file

if TYPE_CHECKING:
    from overlay.config.model import Config
    from payments.keys import PurseKey

LEDGER_FILE = "ledger.db"
"""In the state folder: what this account has given and taken (`payments.io.ledger`)."""
PASSPHRASE_VARIABLE = "HOPFARE_PASSPHRASE"
MAX_PASSPHRASE_BYTES = 4096

AskPassphrase = Callable[[str], str]
"""Asks a person; gets the question, returns the passphrase."""


def read_passphrase(config: Config, ask: AskPassphrase | None = None) -> str:
    """Return the key file's passphrase: from its file, the environment, or a person.

    Raises FileError if the file cannot be read, ConfigError if there is neither and nobody to ask.
    """
    if config.passphrase_file is not None:
        data = read_private(config.passphrase_file, "the passphrase", MAX_PASSPHRASE_BYTES)
        try:
            return data.decode().splitlines()[0]
        except (UnicodeDecodeError, IndexError):
            raise ConfigError(f"{config.passphrase_file} has no passphrase in its first line") from None
    if os.environ.get(PASSPHRASE_VARIABLE):
        return os.environ[PASSPHRASE_VARIABLE]
    if ask is not None:
        return ask(f"passphrase of {config.key_file}")
    raise ConfigError(
        f"the passphrase of {config.key_file} is not known: name a file that has it with "
        f"payments.passphrase_file, or set the variable {PASSPHRASE_VARIABLE}"
    )


@contextmanager
def open_account(config: Config, ask: AskPassphrase | None = None) -> Iterator[PurseKey]:
    """Give this node's key, which no other process may use meanwhile. Takes half a second (scrypt).

    Raises KeyFileError if there is no key, or the passphrase is wrong; PurseBusyError if another process uses
    the key; FileError and ConfigError as `read_passphrase` does.
    """
    try:
        descriptor = os.open(config.key_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyFileError(
            f"There is no key file {config.key_file}: make one with `hopfare wallet new`, or name yours with "
            "payments.key_file."
        ) from None
    except OSError as error:
        raise KeyFileError(f"The key file {config.key_file} cannot be read: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PurseBusyError(
                f"Another hopfare process uses the key {config.key_file}: one account, one process. Stop "
                "that one, or give this one a key of its own."
            ) from None
        yield read_key_file(config.key_file, read_passphrase(config, ask))
    finally:
        os.close(descriptor)


def with_payee(config: Config) -> Config:
    """Return `config` with the account to be paid to filled in: the key file's own, unless another is named.

    Unchanged while payments are off, or if there is no key file that could be read.
    """
    if not config.payments.is_on or config.relay.payee:
        return config
    with suppress(KeyFileError):
        address = read_address(config.key_file)
        if address is not None:
            return dataclasses.replace(config, relay=dataclasses.replace(config.relay, payee=address))
    return config
