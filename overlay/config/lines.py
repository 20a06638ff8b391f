"""Where each key of a TOML text stands, so that a complaint can name the line.

`tomllib` tells no positions. This scanner runs over a text that `tomllib` has accepted and therefore only
needs to know where strings, comments and brackets end.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands, and the line on which the content of its value begins (for multi-line text)."""

    line: int
    content_line: int


def find_places(toml: str) -> dict[Path, Place]:
    """Return the place of every table header and every key of a valid TOML text; lines count from 1.

    Keys inside an inline table are not listed: their table is.
    """
    return _Scanner(toml.replace("\r\n", "\n")).run()


class _Scanner:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._places: dict[Path, Place] = {}

    def run(self) -> dict[Path, Place]:
        table: Path = ()
        while self._at < len(self._source):
            self._skip(" \t\n")
            line = self._line()
            char = self._peek()
            if not char:
                break
            if char == "#":
                self._skip_comment()
            elif char == "[":
                self._skip("[")
                table = self._key()
                self._skip("] \t")
                self._places.setdefault(table, Place(line, line))
            else:
                key = table + self._key()
                self._skip(" \t=")
                self._places[key] = Place(line, self._content_line())
                self._skip_value()
        return self._places

    def _peek(self, count: int = 1) -> str:
        return self._source[self._at : self._at + count]

    def _line(self) -> int:
        return self._source.count("\n", 0, self._at) + 1

    def _content_line(self) -> int:
        opens_below = self._peek(4) in ('"""\n', "'''\n")
        return self._line() + (1 if opens_below else 0)

    def _skip(self, characters: str) -> None:
        while self._at < len(self._source) and self._source[self._at] in characters:
            self._at += 1

    def _skip_comment(self) -> None:
        end = self._source.find("\n", self._at)
        self._at = len(self._source) if end < 0 else end

    def _key(self) -> Path:
        parts = []
        while True:
            self._skip(" \t")
            quote = self._peek()
            start = self._at
            if quote and quote in "'\"":
                self._skip_string()
                parts.append(tomllib.loads(f"key = {self._source[start : self._at]}")["key"])
            else:
                while self._peek() and self._peek() not in " \t.=]\n":
                    self._at += 1
                parts.append(self._source[start : self._at])
            self._skip(" \t")
            if self._peek() != ".":
                return tuple(parts)
            self._at += 1

    def _skip_string(self) -> None:
        quote = self._peek()
        fence = quote * 3 if self._peek(3) == quote * 3 else quote
        self._at += len(fence)
        while self._at < len(self._source) and self._peek(len(fence)) != fence:
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        self._at += len(fence)
        if len(fence) == 3:  # up to two quotes may stand right before the closing three
            self._skip(quote)

    def _skip_value(self) -> None:
        depth = 0
        while self._at < len(self._source):
            char = self._peek()
            if char == "\n" and depth == 0:
                return
            if char == "#":
                self._skip_comment()
                continue
            if char in "\"'":
                self._skip_string()
                continue
            depth += (char in "[{") - (char in "]}")
            self._at += 1
