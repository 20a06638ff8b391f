"""Which engine a node runs on, and the links that belong to it."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import trio

from circuits.building.crypto import Reference
from overlay.engine.io.native_links import open_native_links
from overlay.engine.native import NativeEngine, NativeEngineError
from overlay.engine.native_build import NativeBuildCrypto
from overlay.engine.python import PythonEngine
from overlay.links.io.endpoint import Endpoint, open_endpoint
from overlay.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from circuits.building.crypto import BuildCrypto
    from overlay.engine.flows import Gatekeeper
    from overlay.engine.interface import EngineEvents, InnerAddresses
    from overlay.identity import Identity
    from overlay.links.backends.base import Address, BackendName
    from overlay.links.limits import LinkLimits

EngineName = Literal["auto", "native", "python"]

MAX_AUTO_THREADS: Final = 8

log = get_logger("engine")


def auto_threads() -> int:
    """How many threads the native engine takes on this machine if it may choose: all cores that this process
    may use but one, which is left to Python and to the kernel; one on a machine with two.
    """
    return max(1, min(MAX_AUTO_THREADS, len(os.sched_getaffinity(0)) - 1))


def make_engine(
    name: EngineName,
    events: EngineEvents[Any],
    *,
    memory_limit_bytes: int,
    threads: int = 1,
    gate: Callable[[InnerAddresses], Gatekeeper] | None = None,
) -> PythonEngine:
    """Make the engine that the configuration asks for; ``auto`` takes the Python one, and says so, where
    there is no native one. ``threads`` is of the native one; 0 lets ``auto_threads`` choose.

    What is returned offers what nodes use of a Python engine. Raises NativeEngineError when ``native`` is
    asked for and cannot be had.
    """
    if name != "python":
        try:
            engine = NativeEngine(
                events, memory_limit_bytes=memory_limit_bytes, threads=threads or auto_threads()
            )
        except NativeEngineError as error:
            if name == "native":
                raise NativeEngineError(
                    f"{error}; build it with scripts/build-native (it needs cargo), or set engine = "
                    '"auto" in [node]'
                ) from error
            log.info("the Python engine is used", reason=str(error))
        else:
            # One is not the other, but offers the node the same.
            return cast(PythonEngine, engine)
    return PythonEngine(
        events, clock=trio.current_time, rng=os.urandom, memory_limit_bytes=memory_limit_bytes, gate=gate
    )


def make_build_crypto(name: EngineName) -> BuildCrypto:
    """Make what does the ciphers of circuit builds: the crate's where the engine is the native one."""
    if name != "python":
        with suppress(NativeEngineError):  # make_engine says why
            return NativeBuildCrypto()
    return Reference(os.urandom)


@asynccontextmanager
async def open_links(
    addresses: Sequence[Address],
    identity: Identity | None,
    engine: PythonEngine,
    *,
    backend: BackendName = "qh3",
    limits: LinkLimits | None = None,
    role: Literal["relay", "customer"] = "relay",
) -> AsyncIterator[Endpoint]:
    """Open the links of either engine, as ``open_endpoint`` does; the native one has a QUIC of its own, for
    which ``backend`` means nothing.
    """
    if isinstance(engine, NativeEngine):
        async with open_native_links(addresses, identity, engine, limits=limits, role=role) as links:
            yield cast(Endpoint, links)
    else:
        async with open_endpoint(
            addresses, identity, engine, backend=backend, limits=limits, role=role
        ) as endpoint:
            yield endpoint
