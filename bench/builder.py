"""Put into a client that `bench/run` starts: circuits on demand, by the node's own code.

Not part of hopfare: a customer builds the circuits that its pool wants, and nobody can ask it for more.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from overlay.node import run_client, switch
from overlay.node.lease import Circuit

METHOD = "bench-builds"


async def _build_many(node: Any, count: int, at_once: int) -> dict[str, Any]:
    """Build `count` circuits over the path of one that stands, `at_once` at a time; each is given up."""
    path = next(iter(node.circuits.values())).path
    left, times_s, failures = count, [], []

    async def build() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            outcome = await node.builds.build(0, path)
            if isinstance(outcome, Circuit):
                times_s.append(outcome.build_s)
                node.give_up(outcome)
            else:
                failures.append(outcome.sentence)

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(build)
    return {"times_s": times_s, "failures": failures, "seconds": time.perf_counter() - begun}


def install() -> None:
    """Serve METHOD on a client's control socket, and lift a relay's limit of builds per neighbour."""
    switch.MAX_BUILDS_PER_S = switch.BUILD_BURST = 1e6
    plain = run_client._Local.handle

    async def handle(self: Any, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == METHOD:
            return await _build_many(self._node, params["count"], params["at_once"])
        return await plain(self, method, params)

    run_client._Local.handle = handle  # type: ignore[method-assign]
