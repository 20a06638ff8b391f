"""The documented configuration file: every setting with its meaning and default, ready to be edited."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from overlay.config.model import SECTIONS, list_settings

_HEAD = """\
# hopfare configuration (TOML). A line that starts with # is off: remove the # to change a setting.
# Times and sizes have units: "10m", "1h 30m", "256 KiB". Any setting can also come from the environment
# (HOPFARE_CLIENT__HOPS=2) or the command line (--set client.hops=2).
"""


def render_config(given: Mapping[tuple[str, str], str] | None = None) -> str:
    """Return the file's text; settings in `given`, by section and key, are on with that TOML as value."""
    given = given or {}
    parts = [_HEAD]
    for section, kind in SECTIONS.items():
        purpose = (kind.__doc__ or "").partition(": ")[2].rstrip(".")
        parts.append(f"\n[{section}]  # {purpose}\n")
        for key, (_attribute, setting) in list_settings(section).items():
            parts.append(
                "\n" + textwrap.fill(setting.text, 100, initial_indent="# ", subsequent_indent="# ") + "\n"
            )
            if (section, key) in given:
                parts.append(f"{key} = {given[section, key]}\n")
            else:
                parts.append(textwrap.indent(f"{key} = {setting.default}", "#", lambda _line: True) + "\n")
    return "".join(parts)


def render_manual() -> str:
    """Return the reference of all settings in Markdown, as it stands in docs/operations/configuration.md."""
    parts = []
    for section, kind in SECTIONS.items():
        purpose = (kind.__doc__ or "").partition(": ")[2]
        parts.append(f"### [{section}]\n\n{purpose[:1].upper()}{purpose[1:]}\n\n")
        parts.append("| key | default | meaning |\n|---|---|---|\n")
        for key, (_attribute, setting) in list_settings(section).items():
            default = "see below" if "\n" in setting.default else f"`{setting.default}`"
            # A row of a table is one line.
            text = setting.text.replace("\n", " ")
            parts.append(f"| `{key}` | {default} | {text} |\n")
        parts.append("\n")
    policy = list_settings("exit")["policy"][1].default.strip("'\n")
    parts.append(f"The default of `exit.policy`:\n\n```\n{policy}\n```\n")
    return "".join(parts)
