"""`bench/run`: measures hopfare, and Tor beside it, and says which targets are met.

Prints a table, and CPU seconds per gigabyte for every process; `--json` writes everything that was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import chain
import load
import targets
import tor

from overlay.demo.lab import missing_for_lab
from overlay.errors import OverlayError

QUICK = {"reps": 2, "size_mb": 30, "ttfb_samples": 20, "seq_requests": 150, "conc_requests": 600}
SLOW_BACKENDS = {"aioquic"}  # a tenth of the volume is enough to see their speed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, rougher numbers")
    parser.add_argument("--backends", default="native,qh3,aioquic", help="what carries (default: all)")
    parser.add_argument("--hops", type=int, default=3, help="relays in the chain (default: 3)")
    parser.add_argument("--circuits", type=int, default=300, help="circuits for the memory figure")
    parser.add_argument(
        "--tor", type=Path, default=tor.DEFAULT_FOLDER, metavar="DIR", help="the Tor benchmark"
    )
    parser.add_argument("--no-tor", dest="tor", action="store_const", const=None, help="measure hopfare only")
    parser.add_argument(
        "--parts", default="down,up,req", help="of: down, up, req (small requests and the rest)"
    )
    load.add_options(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 if all targets that were measured are met, 1 if not, 2 if nothing could be."""
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
    if arguments.quick:
        options |= {name: value for name, value in QUICK.items() if options[name] == load.DEFAULTS[name]}
    parts = arguments.parts.split(",")
    begun = time.monotonic()
    report: dict[str, Any] = {"facts": _facts(), "options": options, "hopfare": {}, "tor": {}}
    print(_headline(report["facts"]))
    failed = False
    for backend in arguments.backends.split(","):
        print(f"\nhopfare on {backend}: client and {arguments.hops} relays")
        try:
            failed |= not _hopfare(
                backend, arguments, options, parts, report["hopfare"].setdefault(backend, {})
            )
        except (OverlayError, RuntimeError, OSError) as error:
            failed = True
            print(f"  could not be measured: {error}")
    why_not = tor.why_not(arguments.tor)
    if why_not is None:
        if not tor.same_load(arguments.tor):
            print("\nnote: the Tor folder's load.py is not the same as bench/load.py")
        print("\nTor, the same load under the same conditions", flush=True)
        try:
            patience = {"quiet_limit": arguments.quiet_limit, "quiet_wait": arguments.quiet_wait}
            report["tor"] = tor.measure(arguments.tor, options | patience, parts)["variants"]
        except (RuntimeError, OSError) as error:
            failed = True
            print(f"  could not be measured: {error}")
    else:
        print(f"\nTor was not measured: {why_not}")
    head, lines, data = targets.rows(report["hopfare"], report["tor"])
    report |= {"targets": data, "seconds": round(time.monotonic() - begun, 1)}
    print(f"\n{targets.render(head, lines)}")
    if any(part in parts for part in ("down", "up")):
        print(f"\n{_cpu_table(report)}")
    print(f"\ntook {report['seconds']:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1))
        print(f"everything is in {arguments.json}")
    return 2 if failed else int(not all(row["met"] for row in data))


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
    quiet = load.Quiet(arguments.quiet_limit, arguments.quiet_wait)
    fine = chain.measure(result, backend, arguments.hops, options, parts, quiet, _say)
    if "req" in parts and backend not in SLOW_BACKENDS:
        result["per_circuit"] = chain.per_circuit(backend, arguments.hops, arguments.circuits, _say)
    return fine


def _cpu_table(report: dict[str, Any]) -> str:
    head, lines = ["CPU s/GB", "all"], []
    columns: list[str] = []
    measured = {**report["hopfare"], **{f"tor {name}": results for name, results in report["tor"].items()}}
    for results in measured.values():
        for key in ("down_1", "down_8", "up_1", "up_8"):
            for process in results.get(key, {}).get("cpu_s_per_GB_each", {}):
                if process not in columns:
                    columns.append(process)
    for name, results in measured.items():
        for key in ("down_1", "down_8", "up_1", "up_8"):
            if key in results and "cpu_s_per_GB" in results[key]:
                each = results[key]["cpu_s_per_GB_each"]
                lines.append(
                    [
                        f"{name} {key}",
                        f"{results[key]['cpu_s_per_GB']['median']:.1f}",
                        *(f"{each[column]:.1f}" if column in each else "-" for column in columns),
                    ]
                )
    return targets.render([*head, *columns], lines)


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
