"""How fast circuits are built on a chain of real nodes: one after the other and several at once, with
the CPU of each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chain
import load

from overlay.demo import fleet
from overlay.demo.box import LabError
from overlay.node.io.local import call_local

METHOD = "bench-builds"  # builder.METHOD, which is not imported here: it is for the nodes
AT_ONCE = 16
WARM_UP = 20
TIMEOUT_S = 100.0


@contextmanager
def _with_builder() -> Iterator[None]:
    """Start nodes that build circuits on demand, which is no setting: nobody but a benchmark wants it."""
    plain = fleet._HOPFARE
    folder = str(Path(__file__).resolve().parent)
    fleet._HOPFARE = f"import sys; sys.path.append({folder!r}); import builder; builder.install(); {plain}"
    try:
        yield
    finally:
        fleet._HOPFARE = plain


def measure(backend: str, hops: int, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Build `count` circuits one after the other, and as many AT_ONCE at a time.

    Each is given up as soon as it stands; the CPU is of all that, addresses in the client's namespace
    included. Raises LabError when a build fails.
    """
    with _with_builder(), chain.Chain(backend, hops, client={"max_circuits": 200}) as running:
        processes = running.processes()

        def build(number: int, at_once: int) -> dict[str, Any]:
            params = {"count": number, "at_once": at_once}
            got = call_local(running.client.state_dir, METHOD, params, timeout_s=TIMEOUT_S)
            if got["failures"]:
                raise LabError(f"{len(got['failures'])} of {number} builds failed: {got['failures'][0]}")
            return got

        build(WARM_UP, 1)
        result: dict[str, Any] = {"count": count, "at_once": AT_ONCE}
        for name, at_once in (("one_by_one", 1), ("at_once", AT_ONCE)):
            before = {process: chain._cpu_ns(pid) for process, pid in processes.items()}
            got = build(count, at_once)
            each = {
                process: round((chain._cpu_ns(pid) - before[process]) / 1e6 / count, 3)
                for process, pid in processes.items()
            }
            times_ms = [1000 * time_s for time_s in got["times_s"]]
            result[name] = {
                "ms": load.summary(times_ms, 2),
                "per_s": round(count / got["seconds"], 1),
                "cpu_ms": round(sum(each.values()), 2),
                "cpu_ms_each": each,
            }
            told = result[name]
            say(
                f"  builds x{at_once:<3} {told['per_s']:8.1f} /s  median {told['ms']['median']:.2f} ms "
                f"[{told['ms']['min']:.2f} .. {told['ms']['max']:.2f}]  {told['cpu_ms']:.2f} CPU ms each"
            )
    return result
