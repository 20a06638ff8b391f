"""The customer's choices on disk: read at the start, written by `hopfare set --keep`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from overlay.choices import (
    FILE_NAME,
    MAX_FILE_BYTES,
    decode_choices,
    encode_choices,
    override_of_choice,
)
from overlay.errors import DecodeError, FileError
from overlay.io.files import make_private_directory, read_private, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from overlay.config.parse import Override


def load_choices(state_dir: Path) -> dict[str, str]:
    """The kept choices by name, or none. Raises FileError for a file that cannot be read or is damaged."""
    path = state_dir / FILE_NAME
    if not path.exists():
        return {}
    try:
        return decode_choices(read_private(path, "choices", MAX_FILE_BYTES))
    except DecodeError as error:
        raise FileError(
            f"{path} is damaged ({error}): remove it, and make the choices again with `hopfare set`"
        ) from None


def load_overrides(state_dir: Path) -> list[Override]:
    """The kept choices as overrides of the configuration."""
    return [override_of_choice(name, value) for name, value in load_choices(state_dir).items()]


def keep_choice(state_dir: Path, name: str, value: str | None) -> None:
    """Keep a choice for the next starts; None forgets it. Raises FileError."""
    make_private_directory(state_dir)
    choices = load_choices(state_dir)
    choices.pop(name, None)
    if value is not None:
        choices[name] = value
    write_atomic(state_dir / FILE_NAME, encode_choices(choices))
