"""`bench/soak`: what real nodes hold after a long load, and whether it grows.

A client, three relays and a small internet in a lab. The client's programs download at an even rate, make
small requests, send UDP, and begin circuits all the time; money is off. Every few seconds each process's
memory, open files, threads and table sizes are noted; the report fits a line through what came after the
warm-up and calls flat what grows by less than a bound. Status 0: all flat; 1: something grows, or the load
failed; 2: it could not be run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay.demo.box import LabError
from overlay.demo.lab import CLIENT
from overlay.demo.world import World
from overlay.errors import OverlayError

HOPS = 3
LOAD = Path(__file__).with_name("soak_load.py")
WARM_SHARE = 1 / 3
"""Of the run: caches, arenas and Python's own pools fill up first."""
BOUNDS = {
    "rss_kB": (3072.0, 0.04),
    "files": (6.0, 0.0),
    "threads": (1.0, 0.0),
    "circuits": (8.0, 0.0),
    "links": (1.0, 0.0),
    "queued_kB": (1024.0, 0.0),
}
"""Growth over the measured time that still is flat: so much, or this share of the figure itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one process over the measured time."""

    process: str
    figure: str
    first: float
    last: float
    highest: float
    growth: float
    is_flat: bool


def sample(pid: int) -> dict[str, float]:
    """Memory (kB), open files and threads of a process. Raises OSError when it is gone."""
    process = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "rss_kB": float(fields["VmRSS"].split()[0]),
        "files": float(sum(1 for _ in (process / "fd").iterdir())),
        "threads": float(fields["Threads"]),
    }


def tables(status: dict[str, Any]) -> dict[str, float]:
    """Sizes of a node's tables, by its own word."""
    links = status.get("links", status.get("guards", ()))
    return {
        "circuits": float(status["circuits"]),
        "links": float(len(links)),
        "queued_kB": status["queued_bytes"] / 1024,
    }


def fit(process: str, figure: str, times: list[float], values: list[float]) -> Row:
    """A line through the samples; its rise over all of them is the growth."""
    slope = statistics.linear_regression(times, values).slope if len(set(times)) > 1 else 0.0
    growth = slope * (times[-1] - times[0])
    third = max(1, len(values) // 3)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    least, share = BOUNDS[figure]
    # A step that a line makes too much of, or one late outlier, is not growth: both must say so.
    is_flat = min(growth, last - first) <= max(least, share * first)
    return Row(process, figure, first, last, max(values), growth, is_flat)


def judge(samples: list[tuple[float, str, dict[str, float]]]) -> list[Row]:
    """A row for each figure of each process, of what came after the warm-up."""
    begun, ended = samples[0][0], samples[-1][0]
    from_s = begun + WARM_SHARE * (ended - begun)
    series: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for at, process, figures in samples:
        for figure, value in figures.items() if at >= from_s else ():
            times, values = series.setdefault((process, figure), ([], []))
            times.append(at)
            values.append(value)
    return [fit(*key, *columns) for key, columns in series.items()]


def render(rows: list[Row], seconds: float, done: dict[str, int]) -> str:
    """The report as Markdown."""
    count = done.get
    failed = [f"{number} {kind[:-7]}" for kind, number in done.items() if kind.endswith("_failed")]
    lines = [
        f"{seconds / 60:.0f} minutes; {count('download_bytes', 0) / 1e9:.2f} GB in {count('download', 0)} "
        f"downloads, {count('get', 0)} small GETs, {count('udp', 0)} UDP datagrams "
        f"({count('udp_answers', 0)} answered), {count('circuit', 0)} users with circuits of their own; "
        f"failed: {', '.join(failed) or 'none'}.",
        "",
        "| process | figure | first third | last third | highest | growth | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = (f"{value:,.0f}" for value in (row.first, row.last, row.highest))
        verdict = "flat" if row.is_flat else "**GROWS**"
        lines.append(
            f"| {row.process} | {row.figure} | {' | '.join(cells)} | {row.growth:+,.0f} | {verdict} |"
        )
    return "\n".join(lines)


def soak(arguments: argparse.Namespace) -> tuple[list[tuple[float, str, dict[str, float]]], dict[str, int]]:
    """Run the load and the samples; what was seen and what was done. Raises OverlayError, LabError."""
    seconds = arguments.minutes * 60
    samples: list[tuple[float, str, dict[str, float]]] = []
    with World(relays=HOPS, exits=1, quic=arguments.engine) as world:
        client = world.fleet.client({"client": {"hops": HOPS, "rotation": "1m"}})
        nodes = {**{node.name: node for node in world.relays}, CLIENT: client}
        figures = (seconds, arguments.rate, arguments.gets, arguments.circuits)
        load = world.lab.spawn(CLIENT, [sys.executable, str(LOAD), *map(str, figures)], log="load")
        begun = time.monotonic()
        while load.running:
            time.sleep(arguments.every)
            at = time.monotonic() - begun
            for name, node in nodes.items():
                assert node.process is not None
                samples.append((at, name, sample(node.process.pid) | tables(node.status())))
        said = [json.loads(line) for line in world.lab.log_text("load").splitlines() if line.startswith("{")]
        counts = [words for words in said if "failed" not in words]
        if load.poll() != 0 or not counts:
            raise LabError(f"the load ended with {load.poll()}: {world.lab.log_text('load')[-1000:]}")
        for words in [words for words in said if "failed" in words][:20]:
            print(f"failed: {words['failed']}: {words['why']}", file=sys.stderr)
        return samples, counts[-1]


def main() -> int:
    """Run it, print the report, and return the exit status."""
    parser = argparse.ArgumentParser(prog="bench/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--engine", default="native", help="native, or the Python engine on qh3 or aioquic")
    parser.add_argument("--rate", type=float, default=2.0, help="MB per second of the downloads (default: 2)")
    parser.add_argument("--gets", type=float, default=5.0, help="small GETs per second (default: 5)")
    parser.add_argument(
        "--circuits", type=float, default=12.0, help="new users, each with a circuit, per minute"
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report")
    arguments = parser.parse_args()
    try:
        samples, done = soak(arguments)
    except OverlayError as error:
        print(f"bench/soak: {error}", file=sys.stderr)
        return 2
    rows = judge(samples)
    report = render(rows, arguments.minutes * 60, done)
    print(report)
    if arguments.markdown:
        arguments.markdown.write_text(report + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"samples": samples, "done": done}))
    failed = sum(count for kind, count in done.items() if kind.endswith("_failed"))
    return 0 if all(row.is_flat for row in rows) and failed == 0 else 1
