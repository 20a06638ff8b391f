"""What the benchmarks must reach, where each number is in the results, and the tables that show both.

The Python engine's limits are absolute; the native engine's are ratios to tuned Tor in the same run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
Read = Callable[[Results], float]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table.

    `limits` are, by engine or back end, the least (or, with `lower_is_better`, the most) that will do;
    `times_tor` is how many times better than tuned Tor the native engine must be, `goal` should.
    """

    name: str
    unit: str
    read: Read
    limits: Mapping[str, float]
    lower_is_better: bool = False
    tor: Read | None = None
    times_tor: float | None = None
    goal: float | None = None

    def better(self, value: float, than: float) -> float:
        """How many times better `value` is than the other."""
        if self.lower_is_better:
            return than / value if value else float("inf")
        return value / than if than else float("inf")

    def meets(self, value: float, limit: float) -> bool:
        """Whether a value is as good as the limit."""
        return value <= limit if self.lower_is_better else value >= limit


def _at(*keys: str) -> Read:
    def read(results: Results) -> float:
        value: Any = results
        for key in keys:
            value = value[key]
        return float(value)

    return read


def _median(key: str, *rest: str) -> Read:
    return _at(key, *rest, "median")


def many_streams(results: Results) -> int | None:
    """How many streams were measured at once besides one; None if none were."""
    counts = [int(found[1]) for key in results if (found := re.fullmatch(r"(?:down|up)_(\d+)", key))]
    return max((count for count in counts if count > 1), default=None)


def _many(part: str, *rest: str) -> Read:
    return lambda results: _median(f"{part}_{many_streams(results)}", *rest)(results)


def _many_of_one(part: str) -> Read:
    return lambda results: _many(part, "MB_per_s")(results) / _median(f"{part}_1", "MB_per_s")(results)


def _relay_mem(results: Results) -> float:
    return max(
        float(memory["VmRSS_MiB"]) * 1.048576
        for name, memory in results["mem_after"].items()
        if re.fullmatch(r"relay\d|r\d", name)
    )


def _idle(results: Results) -> float:
    return float(max(results["idle_percent"].values()))


def _streams(part: str, word: str) -> tuple[Target, ...]:
    one, many = _median(f"{part}_1", "MB_per_s"), _many(part, "MB_per_s")
    cpu_one, cpu_many = _median(f"{part}_1", "cpu_s_per_GB"), _many(part, "cpu_s_per_GB")
    speed, cost = {"qh3": 45.0}, {"qh3": 30.0}
    ratio = _many_of_one(part)
    return (
        Target(f"{word}, one stream", "MB/s", one, speed | {"aioquic": 5.0}, False, one, 2.0, 3.0),
        Target(f"{word}, many streams", "MB/s", many, speed, False, many, 2.0, 3.0),
        Target(f"{word}, many streams of one", "", ratio, {"native": 0.95}, False, ratio),
        Target(f"CPU, {word}, one stream", "s/GB", cpu_one, cost, True, cpu_one, 2.0, 3.0),
        Target(f"CPU, {word}, many streams", "s/GB", cpu_many, cost, True, cpu_many, 2.0, 3.0),
    )


def _build(results: Results) -> float:
    # One after the other with nothing else to do, as Tor's are; beside requests if that was not measured.
    if "build_rate" in results:
        return _median("build_rate", "one_by_one", "ms")(results)
    return _median("build_ms")(results)


_FIRST = _median("ttfb_ms")
_BUILD_CPU = _at("build_rate", "one_by_one", "cpu_ms")
_TOR_BUILD_CPU = _at("build_extendcircuit_ms", "cpu_ms_per_circuit")
_ONE_BY_ONE, _AT_ONCE = _median("requests_seq", "req_per_s"), _median("requests_conc", "req_per_s")

TARGETS: Sequence[Target] = (
    *_streams("down", "download"),
    *_streams("up", "upload"),
    Target("first byte of a small GET", "ms", _FIRST, {"qh3": 8.0}, True, _FIRST, 1.0),
    Target("circuit build, median", "ms", _build, {"qh3": 15.0}, True, _median("build_auto_ms"), 1.0),
    Target("CPU, circuit build", "ms", _BUILD_CPU, {}, True, _TOR_BUILD_CPU, 1.0),
    Target("circuit builds, one at a time", "1/s", _at("build_rate", "one_by_one", "per_s"), {}),
    Target("circuit builds, 16 at once", "1/s", _at("build_rate", "at_once", "per_s"), {}),
    Target("small GETs, one at a time", "1/s", _ONE_BY_ONE, {"qh3": 300.0}, False, _ONE_BY_ONE, 1.0),
    Target("small GETs, 32 at once", "1/s", _AT_ONCE, {"qh3": 1500.0}, False, _AT_ONCE, 1.0),
    Target("UDP datagrams, under 1 % lost", "1/s", _at("udp", "per_s"), {}),
    Target(
        "500 connections, failed", "", _at("parallel", "failed"), {"qh3": 0.0, "native": 0.0}, True
    ),
    Target("idle process, at most", "% core", _idle, {"qh3": 1.0, "native": 1.0}, True),
    Target("relay's memory, at most", "MB", _relay_mem, {"qh3": 80.0}, True, _relay_mem),
    Target("relay's memory per circuit", "kB", _at("per_circuit", "worst_KB"), {"qh3": 40.0}, True),
)  # fmt: skip


def rows(
    hopfare: Mapping[str, Results], tor: Mapping[str, Results]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """The table: its head, its lines as text, and the same as data for the JSON file.

    A line of data has "met": None where nothing was asked or Tor, of which a multiple was, was not measured.
    """
    head = ["", *hopfare, *("tor " + name for name in tor), "asked", "native is", "times tuned Tor"]
    lines, data = [], []
    for target in TARGETS:
        values = {name: _value(target.read, results) for name, results in hopfare.items()}
        if all(value is None for value in values.values()):
            continue
        tors = {name: _value(target.tor, results) for name, results in tor.items()}
        asked, verdicts = [], []
        for name, limit in target.limits.items():
            value = values.get(name)
            if value is not None:
                asked.append(f"{name} {'<=' if target.lower_is_better else '>='} {limit:g}")
                verdicts.append((name, target.meets(value, limit)))
        native, tuned = values.get("native"), tors.get("tuned")
        times = None
        if native is not None and tuned:
            times = target.better(native, tuned)
            if target.times_tor is not None:
                asked.append(f"native {target.times_tor:g} x Tor")
                verdicts.append(("native", times >= target.times_tor))
        missed = sorted({name for name, fine in verdicts if not fine})
        met = not missed if verdicts else None
        said = "" if met is None else ("met" if met else f"MISSED by {', '.join(missed)}")
        if target.goal is not None and times is not None and times >= target.goal:
            said += f", goal {target.goal:g} too"
        lines.append(
            [
                f"{target.name}{f', {target.unit}' if target.unit else ''}",
                *(_text(value) for value in values.values()),
                *(_text(value) for value in tors.values()),
                "; ".join(asked) or "-",
                said or "-",
                "-" if times is None else f"{times:.2f}",
            ]
        )
        data.append(
            {
                "name": target.name,
                "unit": target.unit,
                "limits": dict(target.limits),
                "times_tor": target.times_tor,
                "goal": target.goal,
                "lower_is_better": target.lower_is_better,
                "values": values,
                "tor": tors,
                "ratio_to_tuned_tor": times,
                "met": met,
            }
        )
    return head, lines, data


def cpu_rows(measured: Mapping[str, Results]) -> tuple[list[str], list[list[str]]]:
    """CPU seconds per GB, all together and of each process."""
    head, lines = ["CPU s/GB", "all"], []
    columns: list[str] = []
    found = [
        (f"{name} {key}", results[key])
        for name, results in measured.items()
        for key in results
        if re.fullmatch(r"(?:down|up)_\d+", key) and "cpu_s_per_GB" in results[key]
    ]
    for _, result in found:
        columns += [name for name in result["cpu_s_per_GB_each"] if name not in columns]
    for name, result in found:
        each = result["cpu_s_per_GB_each"]
        cells = (f"{each[column]:.1f}" if column in each else "-" for column in columns)
        lines.append([name, f"{result['cpu_s_per_GB']['median']:.1f}", *cells])
    return [*head, *columns], lines


def render(head: Sequence[str], lines: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """A table, plain or as Markdown: the first column to the left, the others to the right."""
    if markdown:
        rule = "|---|" + "---:|" * (len(head) - 1)
        body = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([f"| {' | '.join(head)} |", rule, *body])
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


BEGIN, END = "<!-- results: bench/run --docs -->", "<!-- end of results -->"


def replaced(page: str, results: str) -> str:
    """The page with other results between its marks. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{results.strip()}\n\n{end}{after}"


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
