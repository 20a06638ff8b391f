"""Writing TOML: sections of plain values, as `tomllib` (which only reads) would read them back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Value = str | int | float | bool | Sequence[str | int]
Settings = Mapping[str, Mapping[str, Value]]


def render(settings: Settings) -> str:
    """A TOML document of `settings`: section, key, value."""
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def merge(*layers: Settings) -> dict[str, dict[str, Value]]:
    """One set of settings of several, later ones first in rank."""
    merged: dict[str, dict[str, Value]] = {}
    for layer in layers:
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
    return merged


def _value(value: Value) -> str:
    # JSON's strings are TOML's basic strings, as long as non-ASCII characters stay as they are and the
    # one control character that JSON leaves alone is escaped.
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(_value(item) for item in value)}]"
