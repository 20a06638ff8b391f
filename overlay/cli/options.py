"""Options that all commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from overlay.config.check import check_client, check_network, check_relay
from overlay.config.io.load import load_config
from overlay.config.model import Config
from overlay.config.parse import Override
from overlay.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Common:
    """What the shared options said."""

    file: Path | None
    overrides: tuple[Override, ...]

    def load(self, extra: Sequence[Override | None] = ()) -> Config:
        """Read the configuration with these options over it. Raises ConfigError."""
        return load_config(self.file, [*self.overrides, *(override for override in extra if override)])


def common_options(function: Function) -> Function:
    """Add --config, --set, --state-dir and --log-level; the command receives them as `common`."""

    def decorate(
        *args: Any,
        config_file: Path | None,
        settings: tuple[str, ...],
        state_dir: str | None,
        log_level: str | None,
        **kwargs: Any,
    ) -> Any:
        overrides = [_split(setting) for setting in settings]
        overrides += [
            override
            for override in (
                # Relative to where the user is, not to the configuration's folder.
                override_of(
                    "--state-dir", "node", "state_dir", state_dir and str(Path(state_dir).absolute())
                ),
                override_of("--log-level", "node", "log_level", log_level),
            )
            if override
        ]
        return function(*args, common=Common(config_file, tuple(overrides)), **kwargs)

    decorate.__name__ = function.__name__
    decorate.__doc__ = function.__doc__
    decorate.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error (node.log_level)."),
        click.option("--state-dir", metavar="DIR", help="State folder (node.state_dir)."),
        click.option(
            "--set",
            "settings",
            metavar="SECTION.KEY=VALUE",
            multiple=True,
            help="Override any setting, such as --set client.rotation=5m. May be repeated.",
        ),
        click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file.",
        ),
    ):
        decorate = option(decorate)
    return decorate  # type: ignore[return-value]


def override_of(option: str, section: str, key: str, value: str | None) -> Override | None:
    """Return the override that an option's value means; None if the option was not given."""
    return None if value is None else Override(f"{option} {value}", section, key, value)


def json_option(function: Function) -> Function:
    """Add --json; the command receives it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def require(config: Config, role: str) -> None:
    """Check that the settings fit together for `role` (network, relay or client).

    Raises ConfigError with all problems.
    """
    problems = {"network": check_network, "relay": check_relay, "client": check_client}[role](config)
    if problems:
        where = (
            str(config.file)
            if config.file
            else "the configuration (no file was found; `hopfare init` writes one)"
        )
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))


def _split(setting: str) -> Override:
    name, equals, value = setting.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"--set {setting}: must be SECTION.KEY=VALUE, such as client.hops=2")
    return Override(f"--set {setting}", section, key, value.strip())
