"""What a customer may change while the client runs, and what is kept of it for the next start. Pure.

Owns the names, the check of a value, the form of the file. A kept choice counts over configuration file and
environment, and under the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

import msgspec

from overlay.config.check import check_client
from overlay.config.model import Config, list_settings
from overlay.config.parse import Override, Surroundings, parse_config
from overlay.errors import ConfigError, DecodeError

FILE_NAME = "choices.json"
MAX_FILE_BYTES = 256 * 1024

CHOICES: dict[str, tuple[str, str]] = {
    "hops": ("client", "hops"),
    "exit-country": ("client", "exit_country"),
    "max-price": ("payments", "budget_per_gb"),
    "exits": ("client", "exits"),
    "exit-operators": ("client", "exit_operators"),
    "guards": ("client", "guards"),
    "guard-countries": ("client", "guard_countries"),
    "guard-operators": ("client", "guard_operators"),
    "middles": ("client", "middles"),
    "middle-countries": ("client", "middle_countries"),
    "middle-operators": ("client", "middle_operators"),
    "exclude": ("client", "exclude"),
    "exclude-countries": ("client", "exclude_countries"),
    "exclude-operators": ("client", "exclude_operators"),
    "distinct-countries": ("client", "distinct_countries"),
    "probes-per-hour": ("client", "probes_per_hour"),
}
"""The settings by the names that `hopfare set` takes."""

_Stored = dict[str, str]


def find_name(text: str) -> str:
    """Return the name of a choice as in CHOICES, however it was written.

    Raises ConfigError with the nearest name.
    """
    wanted = text.strip().lower().replace("_", "-")
    for name, (section, key) in CHOICES.items():
        if wanted in (name, key.replace("_", "-"), f"{section}.{key}".replace("_", "-")):
            return name
    near = difflib.get_close_matches(wanted, CHOICES, 1, 0.5)
    hint = f"do you mean {near[0]}?" if near else f"there are: {', '.join(CHOICES)}"
    raise ConfigError(f"{text} cannot be changed while the client runs; {hint}")


def override_of_choice(name: str, value: str) -> Override:
    """Return a choice as an override of the configuration."""
    section, key = CHOICES[name]
    return Override(f"{name} = {value}", section, key, value)


def apply_choice(config: Config, name: str, value: str) -> Config:
    """Return the configuration with a choice made. Raises ConfigError for a value that is refused, or does
    not go with the rest.
    """
    here = Surroundings(home=Path("/"), is_root=False, folder=Path("/"))
    parsed = parse_config("", surroundings=here, overrides=[override_of_choice(name, value)])
    section, key = CHOICES[name]
    return _with(config, name, getattr(getattr(parsed, section), list_settings(section)[key][0]))


def reset_choice(config: Config, configured: Config, name: str) -> Config:
    """Return the configuration with a choice taken back to what `configured` says."""
    section, key = CHOICES[name]
    return _with(config, name, getattr(getattr(configured, section), list_settings(section)[key][0]))


def show_choices(config: Config) -> dict[str, object]:
    """Return what each choice is now, in values for JSON."""
    from overlay.identity import format_node_id
    from payments.pricing import format_coin

    shown: dict[str, object] = {}
    for name, (section, key) in CHOICES.items():
        value = getattr(getattr(config, section), list_settings(section)[key][0])
        if isinstance(value, tuple):
            value = [format_node_id(part) if isinstance(part, bytes) else part for part in value]
        elif name == "max-price":
            value = None if value is None else format_coin(value)
        shown[name] = value
    return shown


def encode_choices(choices: dict[str, str]) -> bytes:
    """Return the form for the disk (JSON)."""
    return msgspec.json.format(msgspec.json.encode(choices), indent=2)


def decode_choices(data: bytes) -> dict[str, str]:
    """Read what `encode_choices` wrote. Raises DecodeError for anything else."""
    if len(data) > MAX_FILE_BYTES:
        raise DecodeError("choices: the file is too long")
    try:
        stored = msgspec.json.decode(data, type=_Stored)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError("choices: not the expected JSON") from error
    unknown = set(stored) - set(CHOICES)
    if unknown:
        raise DecodeError(f"choices: {sorted(unknown)[0][:40]} is no choice")
    return stored


def _with(config: Config, name: str, value: object) -> Config:
    section, key = CHOICES[name]
    attribute = list_settings(section)[key][0]
    changed = dataclasses.replace(getattr(config, section), **{attribute: value})
    result = dataclasses.replace(config, **{section: changed})
    before = set(check_client(config))
    problems = [problem for problem in check_client(result) if problem not in before]
    if problems:
        raise ConfigError("\n".join(problems))
    return result
