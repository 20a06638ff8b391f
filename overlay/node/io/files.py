"""A node's files: identity, onion keys, seed list, the lock that makes one process own them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.building.onion_keys import OnionKeys, decode_onion_keys
from circuits.errors import DecodeError as CircuitsDecodeError
from overlay.directory import Directory
from overlay.errors import ConfigError, DecodeError, FileError
from overlay.identity import Identity
from overlay.io.files import read_bounded, read_private, write_atomic
from overlay.seedlist import MAX_SEED_LIST_BYTES, SeedList, decode_seed_list, find_list_staleness

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.config.model import Config

IDENTITY_FILE = "identity"
ONION_KEYS_FILE = "onion-keys.json"
ONION_KEYS_LIMIT_BYTES = 4096


def load_identity(config: Config) -> Identity:
    """The node's identity. Raises FileError with a sentence when there is none or it is not private."""
    path = config.state_dir / IDENTITY_FILE
    if not path.exists():
        raise FileError(f"{path} does not exist: run `hopfare init` first")
    return Identity.load(path)


def load_onion_keys(config: Config, unix_s: float, rng: Callable[[int], bytes]) -> OnionKeys:
    """The relay's onion keys, made or rotated as due, and stored before they are returned.

    Raises FileError when the file cannot be read or written, or holds something else.
    """
    path = config.state_dir / ONION_KEYS_FILE
    if path.exists():
        try:
            keys = decode_onion_keys(read_private(path, "the onion keys", ONION_KEYS_LIMIT_BYTES))
        except CircuitsDecodeError as error:
            raise FileError(
                f"{path} is damaged ({error}): restore it from a backup, or remove it for new keys"
            ) from None
        rotated = keys.rotated(unix_s, rng, config.relay.onion_key_rotation_s)
        if rotated is keys:
            return keys
        keys = rotated
    else:
        keys = OnionKeys.generate(unix_s, rng)
    write_atomic(path, keys.encode())
    return keys


def load_directory(config: Config, unix_s: float) -> tuple[Directory, SeedList]:
    """The directory of the configured seed list. Raises as `load_seed_list` does."""
    seed_list = load_seed_list(config, unix_s)
    return Directory.from_seed_list(seed_list, unix_s), seed_list


def load_seed_list(config: Config, unix_s: float) -> SeedList:
    """The configured seed list.

    Raises ConfigError when none is configured or the list cannot be trusted, FileError when it cannot be
    read.
    """
    if config.seed_list is None or config.network.seed_list_key is None:
        raise ConfigError(
            "no seed list is configured: set network.seed_list and network.seed_list_key to the file and the "
            "key of your network"
        )
    data = read_bounded(config.seed_list, "the seed list", MAX_SEED_LIST_BYTES)
    try:
        seed_list = decode_seed_list(data, config.network.seed_list_key)
    except DecodeError as error:
        raise ConfigError(f"{config.seed_list}: {error}") from None
    if config.network.name and config.network.name != seed_list.network:
        raise ConfigError(
            f"{config.seed_list} is of the network {seed_list.network}, not {config.network.name}"
        )
    stale = find_list_staleness(seed_list, unix_s)
    if stale is not None:
        raise ConfigError(
            f"{config.seed_list} is {stale.value}: get the current one, and check this machine's clock"
        )
    return seed_list
