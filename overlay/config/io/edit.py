"""Change single settings in a configuration file and keep all else in it as its owner wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overlay.config.parse import MAX_FILE_BYTES
from overlay.errors import ConfigError
from overlay.io.files import read_bounded, write_atomic


def edit_settings(file: Path, changes: Mapping[tuple[str, str], Any]) -> None:
    """Set `changes`, by section and key, to values of TOML's types.

    Raises ConfigError if the file is not TOML, FileError if it cannot be read or written.
    """
    # Imported on demand: only commands that change the file need it.
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    text = read_bounded(file, "configuration file (`hopfare init` writes one)", MAX_FILE_BYTES)
    try:
        document = tomlkit.parse(text.decode("utf-8-sig"))
        for (section, key), value in changes.items():
            document.setdefault(section, tomlkit.table())[key] = value
        changed = tomlkit.dumps(document)
    except (UnicodeDecodeError, TOMLKitError, TypeError) as error:
        raise ConfigError(f"{file} cannot be changed: {error}") from None
    write_atomic(file, changed.encode(), mode=file.stat().st_mode & 0o777)
