"""What the benchmarks must reach, where each number is in the results, and the table that shows both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
Read = Callable[[Results], float]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table. `limit` is the least (or, with `lower_is_better`, the most) that will do."""

    name: str
    unit: str
    read: Read
    limit: float | None
    lower_is_better: bool = False
    tor: Read | None = None
    backends: tuple[str, ...] = ("qh3",)  # which back ends the limit is for

    def ratio(self, value: float) -> float | None:
        """How many times over the limit is met; below 1 it is missed. None without a limit."""
        if self.limit is None:
            return None
        if self.lower_is_better:
            return self.limit / value if value else float("inf")
        return value / self.limit


def _at(*keys: str) -> Read:
    def read(results: Results) -> float:
        value: Any = results
        for key in keys:
            value = value[key]
        return float(value)

    return read


def _worst(*reads: Read) -> Read:
    return lambda results: max(read(results) for read in reads)


def _median(key: str, *rest: str) -> Read:
    return _at(key, *rest, "median")


def _relay_mem(results: Results) -> float:
    return max(
        float(memory["VmRSS_MiB"]) * 1.048576
        for name, memory in results["mem_after"].items()
        if name.startswith("relay")
    )


def _idle(results: Results) -> float:
    return max(results["idle_percent"].values())


TARGETS: Sequence[Target] = (
    *(
        Target(
            f"{word} over {streams} {'stream' if streams == 1 else 'streams'}",
            "MB/s",
            _median(f"{part}_{streams}", "MB_per_s"),
            45.0,
            tor=_median(f"{part}_{streams}", "MB_per_s"),
        )
        for word, part in (("download", "down"), ("upload", "up"))
        for streams in (1, 8)
    ),
    *(
        Target(
            f"CPU, {word} over {streams}",
            "s/GB",
            _median(f"{part}_{streams}", "cpu_s_per_GB"),
            30.0,
            lower_is_better=True,
            tor=_median(f"{part}_{streams}", "cpu_s_per_GB"),
        )
        for word, part in (("download", "down"), ("upload", "up"))
        for streams in (1, 8)
    ),
    Target("download, slower back end", "MB/s", _median("down_1", "MB_per_s"), 5.0, backends=("aioquic",)),
    Target("upload, slower back end", "MB/s", _median("up_1", "MB_per_s"), 5.0, backends=("aioquic",)),
    Target(
        "circuit build, median",
        "ms",
        _median("build_ms"),
        15.0,
        lower_is_better=True,
        tor=_median("build_auto_ms"),
    ),
    Target(
        "first byte of a small GET",
        "ms",
        _median("ttfb_ms"),
        8.0,
        lower_is_better=True,
        tor=_median("ttfb_ms"),
    ),
    Target(
        "small GETs, one at a time",
        "1/s",
        _median("requests_seq", "req_per_s"),
        300.0,
        tor=_median("requests_seq", "req_per_s"),
    ),
    Target(
        "small GETs, 32 at once",
        "1/s",
        _median("requests_conc", "req_per_s"),
        1500.0,
        tor=_median("requests_conc", "req_per_s"),
    ),
    Target("500 connections, failed", "", _at("parallel", "failed"), 0.0, lower_is_better=True),
    Target("idle process, at most", "% core", _idle, 1.0, lower_is_better=True),
    Target(
        "relay's memory, at most",
        "MB",
        _relay_mem,
        80.0,
        lower_is_better=True,
        tor=lambda results: (
            max(results["mem_after"][name]["VmRSS_MiB"] for name in ("r1", "r2", "r3")) * 1.048576
        ),
    ),
    Target("relay's memory per circuit", "KB", _at("per_circuit", "worst_KB"), 40.0, lower_is_better=True),
)


def rows(
    hopfare: Mapping[str, Results], tor: Mapping[str, Results]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """The table: its head, its lines as text, and the same as data for the JSON file."""
    head = ["", "target", *hopfare, *("tor " + name for name in tor), "of target", "of tuned tor"]
    lines, data = [], []
    for target in TARGETS:
        values = {name: _value(target.read, results) for name, results in hopfare.items()}
        tors = {name: _value(target.tor, results) for name, results in tor.items()}
        judged = next((values[name] for name in target.backends if values.get(name) is not None), None)
        if all(value is None for value in values.values()) or not any(
            name in hopfare for name in target.backends
        ):
            continue
        ratio = None if judged is None else target.ratio(judged)
        tuned = tors.get("tuned")
        against_tor = None
        if judged and tuned:
            against_tor = tuned / judged if target.lower_is_better else judged / tuned
        limit = (
            "-" if target.limit is None else f"{'<=' if target.lower_is_better else '>='} {target.limit:g}"
        )
        met = ratio is not None and ratio >= 1
        if target.limit == 0:
            met, ratio = judged == 0, None
        lines.append(
            [
                f"{target.name}{f', {target.unit}' if target.unit else ''}",
                limit,
                *(_text(value) for value in values.values()),
                *(_text(value) for value in tors.values()),
                ("" if ratio is None else f"{ratio:.2f} ") + ("met" if met else "MISSED"),
                "-" if against_tor is None else f"{against_tor:.2f}",
            ]
        )
        data.append(
            {
                "name": target.name,
                "unit": target.unit,
                "limit": target.limit,
                "lower_is_better": target.lower_is_better,
                "values": values,
                "tor": tors,
                "judged": judged,
                "ratio_to_target": ratio,
                "ratio_to_tuned_tor": against_tor,
                "met": met,
            }
        )
    return head, lines, data


def render(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A plain table: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


def _value(read: Read | None, results: Results) -> float | None:
    if read is None:
        return None
    try:
        return read(results)
    except (KeyError, TypeError, ValueError):
        return None  # that part was not measured


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"
