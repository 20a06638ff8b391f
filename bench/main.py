"""`bench/run`: measures hopfare, and Tor beside it, and says which targets are met.

Prints a table, and CPU seconds per gigabyte for every process; `--json` writes everything that was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builds
import chain
import load
import targets
import tor

from overlay.demo.lab import missing_for_lab
from overlay.errors import OverlayError

QUICK = {"reps": 1, "size_mb": 50, "ttfb_samples": 20, "seq_requests": 100, "conc_requests": 500}
SLOW_BACKENDS = {"aioquic"}  # a tenth of the volume is enough to see their speed
DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
PARTS = ("down", "up", "req", "build", "udp", "hops", "mem")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument(
        "--docs", action="store_true", help="put the tables into docs/benchmarks.md, in place of the old ones"
    )
    parser.add_argument("--quick", action="store_true", help="under two minutes, rougher numbers")
    parser.add_argument(
        "--backends",
        default="native,qh3",
        help="what carries, of: native, and the Python engine on qh3 or aioquic (default: native,qh3)",
    )
    parser.add_argument("--hops", type=int, default=3, help="relays in the chain (default: 3)")
    parser.add_argument("--circuits", type=int, default=300, help="circuits for the memory figure")
    parser.add_argument(
        "--tor", type=Path, default=tor.DEFAULT_FOLDER, metavar="DIR", help="the Tor benchmark"
    )
    parser.add_argument("--no-tor", dest="tor", action="store_const", const=None, help="measure hopfare only")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="of: down, up, req (small requests, builds), build (rate and CPU of builds), udp, "
        "hops (chains of 1 to 4), mem (of circuits)",
    )
    load.add_options(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 if all targets that were measured are met, 1 if not, 2 if a part could not be."""
    arguments = parse_arguments()
    load.on_signals()
    if os.geteuid() != 0:
        print("bench/run needs root: it moves between the network namespaces that it makes")
        return 2
    reason = missing_for_lab()
    if reason is not None or load.nginx_exe() is None:
        print(reason or "bench/run needs nginx: run `apt-get install nginx-light curl`")
        return 2
    options: dict[str, int] = load.taken_options(arguments)
    parts = arguments.parts.split(",")
    if arguments.quick:
        options |= {name: value for name, value in QUICK.items() if options[name] == load.DEFAULTS[name]}
        arguments.quiet_wait = min(arguments.quiet_wait, 5.0)
        parts = [part for part in parts if part not in ("hops", "mem")]
    begun = time.monotonic()
    report: dict[str, Any] = {
        "facts": _facts(),
        "options": options,
        "hopfare": {},
        "tor": {},
        "failures": [],
    }
    print(_headline(report["facts"]))
    try:
        _measure_all(arguments, options, parts, report)
    except (KeyboardInterrupt, SystemExit):
        # What was measured before Ctrl-C is worth its table.
        report["failures"].append("it was interrupted")
    head, lines, data = targets.rows(report["hopfare"], report["tor"])
    report |= {"targets": data, "seconds": round(time.monotonic() - begun, 1)}
    measured = {**report["hopfare"], **{f"tor {name}": results for name, results in report["tor"].items()}}
    tables = [(head, lines), targets.cpu_rows(measured), _hop_rows(report["hopfare"])]
    for table in tables:
        if table[1]:
            print(f"\n{targets.render(*table)}")
    for failure in report["failures"]:
        print(f"\nnot measured: {failure}")
    print(f"\ntook {report['seconds']:.0f} s; others used {_foreign(measured):.2f} cores at worst")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1))
        print(f"everything is in {arguments.json}")
    text = _markdown(report, tables, _foreign(measured))
    if arguments.markdown is not None:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text)
    if arguments.docs:
        DOCS.write_text(targets.replaced(DOCS.read_text(), text))
    return 2 if report["failures"] else int(any(row["met"] is False for row in data))


def _measure_all(
    arguments: argparse.Namespace, options: dict[str, int], parts: list[str], report: dict[str, Any]
) -> None:
    """Fill the report; a part that fails is noted there, and the rest goes on."""

    def guarded(name: str, work: Callable[[], bool | None]) -> None:
        try:
            if work() is False:
                report["failures"].append(f"a part of {name}, see above")
        except (OverlayError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"  could not be measured: {error}")
            report["failures"].append(f"{name}: {error}")

    def measure_tor() -> None:
        why_not = tor.why_not(arguments.tor)
        if why_not is not None:
            print(f"\nTor was not measured: {why_not}")
            return
        print("\nTor, the same load under the same conditions", flush=True)
        patience = {"quiet_limit": arguments.quiet_limit, "quiet_wait": arguments.quiet_wait}
        report["tor"] = tor.measure(arguments.tor, options | patience, parts, quick=arguments.quick)

    for backend in arguments.backends.split(","):
        print(f"\nhopfare on {backend}: client and {arguments.hops} relays")
        result = report["hopfare"].setdefault(backend, {})
        guarded(
            f"hopfare on {backend}",
            lambda backend=backend, result=result: _hopfare(backend, arguments, options, parts, result),
        )
    guarded("Tor", measure_tor)


def _hopfare(
    backend: str,
    arguments: argparse.Namespace,
    options: dict[str, int],
    parts: list[str],
    result: dict[str, Any],
) -> bool:
    """Measure into `result`, which keeps what was measured when something fails; False if a part failed."""
    if backend in SLOW_BACKENDS:
        slower = {"size_mb": 10, "reps": 2, "seq_requests": 100, "conc_requests": 200, "ttfb_samples": 20}
        options = options | {name: min(options[name], value) for name, value in slower.items()}
        parts = [part for part in parts if part not in ("hops", "mem", "udp")]
    quiet = load.Quiet(arguments.quiet_limit, arguments.quiet_wait)
    fine = chain.measure(
        result,
        backend,
        arguments.hops,
        options,
        parts,
        quiet,
        _say,
        idle_s=0.0 if arguments.quick else chain.IDLE_S,
        build_count=15 if arguments.quick else 50,
    )
    if "build" in parts:
        try:
            count = 100 if len(parts) < len(PARTS) else 400
            result["build_rate"] = builds.measure(backend, arguments.hops, count, _say)
        except (OverlayError, RuntimeError, OSError) as error:
            fine = False
            _say(f"  builds could not be measured: {error}")
    if "hops" in parts:
        by_hops = result.setdefault("by_hops", {})
        for hops in range(1, 5):
            if hops == arguments.hops:
                by_hops[hops] = {key: result[key] for key in ("down_1", "up_1") if key in result}
                continue
            try:
                chain.speeds(by_hops.setdefault(hops, {}), backend, hops, options, quiet, _say)
            except (OverlayError, RuntimeError, OSError) as error:
                fine = False
                _say(f"  {hops} hops could not be measured: {error}")
    if "mem" in parts:
        result["per_circuit"] = chain.per_circuit(backend, arguments.hops, arguments.circuits, _say)
    return fine


def _hop_rows(hopfare: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for backend, results in hopfare.items():
        for hops, got in sorted(results.get("by_hops", {}).items()):
            cells = [
                f"{got[key][what]['median']:.1f}" if key in got else "-"
                for key in ("down_1", "up_1")
                for what in ("MB_per_s", "cpu_s_per_GB")
            ]
            lines.append([f"{backend}, {hops} hop{'s' if hops > 1 else ''}", *cells])
    return ["one stream", "down MB/s", "CPU s/GB", "up MB/s", "CPU s/GB"], lines


def _foreign(measured: dict[str, Any]) -> float:
    """The most that others used of the cores in any repetition that was kept."""
    found = [
        cores
        for results in measured.values()
        for key, got in results.items()
        if key.startswith(("down_", "up_")) and isinstance(got, dict)
        for cores in got.get("foreign_cores", [])
    ]
    return max(found, default=0.0)


def _markdown(report: dict[str, Any], tables: list[tuple[list[str], list[list[str]]]], foreign: float) -> str:
    # Names of folders are of this machine only.
    given = [word for word in sys.argv[1:] if "/" not in word]
    command = shlex.join(["bench/run", *given])
    said = [f"`{command}`: {_headline(report['facts'])}; others used {foreign:.2f} cores at worst."]
    said += [targets.render(*table, markdown=True) for table in tables if table[1]]
    said += [f"Not measured: {failure}." for failure in report["failures"]]
    return "\n\n".join(said) + "\n"


def _facts() -> dict[str, Any]:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "machine_speed": round(load.speed(), 2),
    }


def _headline(facts: dict[str, Any]) -> str:
    machine = f"{facts['cpu']} x{facts['cores']}, Linux {facts['kernel']}"
    return f"{machine}, Python {facts['python']}, {facts['date']}"


def _say(text: str) -> None:
    print(text, flush=True)
