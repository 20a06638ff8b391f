"""Commands whose --help reads like a manual page: examples, files and exit status after the options."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import click

from overlay.cli.errors import EXIT_STATUS

Rows = Sequence[tuple[str, str]]
_WIDTH = 100

FILES: Rows = (
    ("/etc/hopfare/hopfare.toml", "The configuration, for root."),
    (
        "~/.config/hopfare/hopfare.toml",
        "The configuration, for others. HOPFARE_CONFIG or --config name another.",
    ),
    ("/var/lib/hopfare", "The state folder, for root: keys, guards, control socket."),
    ("~/.local/state/hopfare", "The state folder, for others. node.state_dir names another."),
)


class ManualCommand(click.Command):
    """A command with examples, files and exit status at the end of its help."""

    def __init__(
        self,
        *args: Any,
        examples: Rows = (),
        files: Rows = FILES,
        exit_status: Rows = EXIT_STATUS,
        notes: Rows = (),
        **kwargs: Any,
    ) -> None:
        """As click's command; each of `examples` is a command line and what it is for."""
        kwargs.setdefault("context_settings", {})
        kwargs["context_settings"].setdefault("max_content_width", _WIDTH)
        super().__init__(*args, **kwargs)
        self._sections = (
            ("Examples", examples),
            ("Notes", notes),
            ("Files", files),
            ("Exit status", exit_status),
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that have something in them."""
        write_sections(formatter, self._sections)


class LazyGroup(click.Group):
    """A group that imports a command only when it is called, so that each process loads just what it
    needs.
    """

    def __init__(
        self,
        *args: Any,
        table: dict[str, tuple[str, str]],
        default: str = "",
        examples: Rows = (),
        files: Rows = (),
        **kwargs: Any,
    ) -> None:
        """`table`: for each command where it is ("module:attribute") and its line in the list. `default` is
        the command that is meant when none is named.
        """
        kwargs.setdefault("context_settings", {})
        kwargs["context_settings"].setdefault("max_content_width", _WIDTH)
        super().__init__(*args, **kwargs)
        self._table = table
        self._default = default
        self._sections = (("Examples", examples), ("Files", files))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of options that stand alone."""
        if self._default and (not args or (args[0].startswith("-") and args[0] != "--help")):
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        name = args[0]
        if name not in self._table and not name.startswith("-"):
            guess = difflib.get_close_matches(name, self._table, 1)
            ctx.fail(f"there is no command {name!r}" + (f"; do you mean {guess[0]!r}?" if guess else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_where, text) in self._table.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that have something in them."""
        write_sections(formatter, self._sections)


def write_sections(formatter: click.HelpFormatter, sections: Sequence[tuple[str, Rows]]) -> None:
    """Write headed lists of terms and what they mean."""
    for heading, rows in sections:
        if not rows:
            continue
        with formatter.section(heading):
            if heading != "Examples":
                formatter.write_dl(list(rows))
                continue
            for command, text in rows:
                formatter.write(f"{'':>{formatter.current_indent}}{command}\n")
                with formatter.indentation():
                    formatter.indent()
                    formatter.write_text(text)
                    formatter.dedent()
