"""From text to configuration: TOML, then environment variables, then the command line, each over the one
before.

Every value is checked where it was written, and all problems are told at once, each with its file, line and
key (or variable, or option) and with what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exit.errors import PolicyError
from exit.policy import parse_policy
from overlay.config.lines import Place, find_places
from overlay.config.model import SECTIONS, Config, list_settings
from overlay.config.values import show
from overlay.errors import ConfigError

ENVIRONMENT_PREFIX = "HOPFARE_"
MAX_FILE_BYTES = 1 << 20
KEY_FILE_NAME = "key.json"


@dataclass(frozen=True, slots=True)
class Override:
    """A setting from the command line; `label` is the option as the user typed it."""

    label: str
    section: str
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What paths and defaults depend on."""

    home: Path
    is_root: bool
    folder: Path
    """What relative paths of the file are relative to."""
    state_home: Path | None = None
    """XDG_STATE_HOME, if set."""


def parse_config(
    toml: str,
    *,
    surroundings: Surroundings,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[Override] = (),
) -> Config:
    """Return the configuration of a TOML text under the environment's and the command line's overrides.

    Raises ConfigError, one line for each problem.
    """
    reader = _Reader(str(file) if file else "configuration")
    reader.read_toml(toml)
    reader.read_environment(environ or {})
    for override in overrides:
        reader.read_override(override)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    sections = {name: SECTIONS[name](**values) for name, values in reader.values.items()}
    config = Config(**sections, file=file)
    state_dir = config.node.state_dir or _default_state_dir(surroundings)
    folder = _absolute(state_dir, surroundings)
    seed_list = config.network.seed_list
    key_file, passphrase_file = config.payments.key_file, config.payments.passphrase_file
    return dataclasses.replace(
        config,
        state_dir=folder,
        seed_list=_absolute(seed_list, surroundings) if seed_list else None,
        key_file=_absolute(key_file, surroundings) if key_file else folder / KEY_FILE_NAME,
        passphrase_file=_absolute(passphrase_file, surroundings) if passphrase_file else None,
    )


class _Reader:
    """Collects values and problems; a later value of a setting replaces an earlier one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.problems: list[str] = []
        self.values: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}

    def read_toml(self, toml: str) -> None:
        try:
            tables = tomllib.loads(toml)
        except tomllib.TOMLDecodeError as error:
            self.problems.append(self._explain_syntax(str(error), toml))
            return
        places = find_places(toml)
        for section, table in tables.items():
            if section not in SECTIONS:
                where = self._line(places, (section,))
                self.problems.append(f"{where}: {self._explain_unknown_section(section)}")
            elif not isinstance(table, dict):
                where = self._line(places, (section,))
                self.problems.append(f"{where}: {section} is a section; write [{section}] and its keys below")
            else:
                for key, value in table.items():
                    self._take(
                        section, key, value, self._line(places, (section, key)), places.get((section, key))
                    )

    def read_environment(self, environ: Mapping[str, str]) -> None:
        for name in sorted(environ):
            section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")
            if not name.startswith(ENVIRONMENT_PREFIX) or not separator:
                continue
            where = f"environment variable {name}"
            if section.lower() not in SECTIONS:
                self.problems.append(f"{where}: {self._explain_unknown_section(section.lower())}")
            else:
                self._take_text(section.lower(), key.lower(), environ[name], where)

    def read_override(self, override: Override) -> None:
        if override.section not in SECTIONS:
            self.problems.append(f"{override.label}: {self._explain_unknown_section(override.section)}")
        else:
            self._take_text(override.section, override.key, override.value, override.label)

    def _take(self, section: str, key: str, value: object, where: str, place: Place | None = None) -> None:
        settings = list_settings(section)
        if key not in settings:
            self.problems.append(f"{where}: {_explain_unknown_key(section, key)}")
            return
        attribute, setting = settings[key]
        try:
            self.values[section][attribute] = setting.parse(value)
            if (section, key) == ("exit", "policy"):
                parse_policy(str(value))
        except PolicyError as error:
            if place and error.line:
                where = f"{self._source}, line {place.content_line + error.line - 1}"
            self.problems.append(f"{where}: exit.policy: {error.problem}; {error.hint}")
        except ValueError as error:
            self.problems.append(f"{where}: {section}.{key} = {show(value)}: {error}")

    def _take_text(self, section: str, key: str, text: str, where: str) -> None:
        """Take a value that came as plain text: as TOML if it is that and fits, else as it stands."""
        problems = list(self.problems)
        try:
            typed = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            typed = text
        self._take(section, key, typed, where)
        if self.problems != problems and typed != text:
            typed_problems, self.problems = self.problems, problems
            self._take(section, key, text, where)
            if len(self.problems) >= len(typed_problems):
                self.problems = typed_problems

    def _line(self, places: Mapping[tuple[str, ...], Place], path: tuple[str, ...]) -> str:
        while path not in places and path:
            path = path[:-1]
        return f"{self._source}, line {places[path].line}" if path else self._source

    def _explain_syntax(self, message: str, toml: str) -> str:
        match = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", message)
        line = toml.count("\n") + 1
        if match and match[1]:
            line = int(match[1])
        reason = message[: match.start()] if match else message
        lines = toml.splitlines()
        written = lines[line - 1].strip() if line <= len(lines) else ""
        hint = ""
        bare = re.fullmatch(r"([A-Za-z_][\w.-]*)\s*=\s*([^\"'\[{#\s][^#]*?)\s*(#.*)?", written)
        if bare:
            hint = f'; if {bare[2]} is text, put it in quotes: {bare[1]} = "{bare[2]}"'
        elif re.fullmatch(r"[A-Za-z_]\w*\s*:.*", written):
            hint = "; a key and its value are joined by =, not by :"
        return f"{self._source}, line {line}: not valid TOML: {reason[:1].lower()}{reason[1:]}{hint}"

    def _explain_unknown_section(self, section: str) -> str:
        holders = [name for name in SECTIONS if section in list_settings(name)]
        if holders:
            return f"{section} belongs into a section: [{holders[0]}]"
        guess = difflib.get_close_matches(section, SECTIONS, 1, 0.5)
        known = ", ".join(f"[{name}]" for name in SECTIONS)
        return f"there is no section [{section}]" + (
            f"; do you mean [{guess[0]}]?" if guess else f"; there are {known}"
        )


def _explain_unknown_key(section: str, key: str) -> str:
    holders = [name for name in SECTIONS if key in list_settings(name)]
    if holders:
        return f"there is no {key} in [{section}]; it belongs into [{holders[0]}]"
    guess = difflib.get_close_matches(key, list_settings(section), 1, 0.5)
    if guess:
        return f"there is no {key} in [{section}]; do you mean {guess[0]}?"
    return f"there is no {key} in [{section}]; there are {', '.join(list_settings(section))}"


def _default_state_dir(surroundings: Surroundings) -> str:
    if surroundings.is_root:
        return "/var/lib/hopfare"
    return str((surroundings.state_home or surroundings.home / ".local" / "state") / "hopfare")


def _absolute(written: str, surroundings: Surroundings) -> Path:
    if written == "~" or written.startswith("~/"):
        return surroundings.home / written[2:]
    return surroundings.folder / written
