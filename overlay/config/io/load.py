"""Find and read the configuration: which file, the environment, the user's home."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlay.config.model import Config
from overlay.config.parse import MAX_FILE_BYTES, Override, Surroundings, parse_config
from overlay.errors import ConfigError, FileError
from overlay.io.files import read_bounded

FILE_VARIABLE = "HOPFARE_CONFIG"


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the configuration file is unless the user says otherwise."""
    if environ.get(FILE_VARIABLE):
        return Path(environ[FILE_VARIABLE])
    if os.geteuid() == 0:
        return Path("/etc/hopfare/hopfare.toml")
    config_home = environ.get("XDG_CONFIG_HOME")
    return (Path(config_home) if config_home else Path.home() / ".config") / "hopfare" / "hopfare.toml"


def load_config(
    file: Path | None = None,
    overrides: Sequence[Override] = (),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Read the configuration from `file` (None: the default place, which may be missing) with its overrides.

    With payments on, an empty `relay.payee` becomes the address that the key file names. Raises ConfigError
    with all problems, or if a file that was asked for cannot be read.
    """
    asked_for = file is not None or bool(environ.get(FILE_VARIABLE))
    location = (file or default_file(environ)).absolute()
    found: Path | None = None
    toml = ""
    if asked_for or location.exists():
        try:
            toml = read_bounded(location, "configuration file", MAX_FILE_BYTES).decode("utf-8-sig")
        except FileError as error:
            raise ConfigError(f"{error}; `hopfare init` writes one") from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{location}, line {line}: not UTF-8 text; save the file as UTF-8") from None
        found = location
    config = parse_config(
        toml,
        surroundings=read_surroundings(found.parent if found else Path.cwd(), environ),
        file=found,
        environ=environ,
        overrides=overrides,
    )
    if not config.payments.is_on:
        return config
    from overlay.node.io.account import with_payee

    return with_payee(config)


def read_surroundings(folder: Path, environ: Mapping[str, str] = os.environ) -> Surroundings:
    """Return what paths and defaults depend on, relative paths being read against `folder`."""
    state_home = environ.get("XDG_STATE_HOME")
    return Surroundings(
        home=Path.home(),
        is_root=os.geteuid() == 0,
        folder=folder.absolute(),
        state_home=Path(state_home) if state_home else None,
    )
