"""Configurations for tests, made without a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from overlay.config.model import Config, RelayConfig


def relay_config(folder: Path, **relay: Any) -> Config:
    """Return a relay's configuration with its state in `folder`/state and these attributes of [relay]."""
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    return replace(Config(), relay=replace(RelayConfig(), **relay), state_dir=folder / "state")
