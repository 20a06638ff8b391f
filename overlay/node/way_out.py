"""The way out of programs that run in a customer's namespace (`hopfare exec`): the current circuit.

They choose no source address, so the namespace's default route has one; connections made before it changed
stay on their circuit.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from overlay.node.client_leases import LEASE_TIMEOUT_S
from overlay.socks.circuits import NO_ISOLATION, Destination, NoCircuit

if TYPE_CHECKING:
    from exit.io.namespace import Namespace
    from overlay.node.client_leases import Leases
    from overlay.node.lease import Circuit, Lease

DEFAULT_IDLE_S = 120.0
"""A circuit that programs in the namespace have left, and that nothing has used for so long, is given
back.
"""


class WayOut:
    """Of one namespace. `run` in a nursery."""

    def __init__(self, leases: Leases, namespace: Namespace) -> None:
        """None until the first program asks."""
        self._leases = leases
        self._namespace = namespace
        self._lease: Lease | None = None
        self._wanted = trio.Event()
        self._leaving: list[Lease] = []

    @property
    def is_open(self) -> bool:
        """Whether programs have a circuit now."""
        return self._lease is not None

    def want(self) -> None:
        """Keep a circuit as the way out from now on."""
        self._wanted.set()

    def note_closed(self, circuit: Circuit) -> None:
        """A circuit is gone; if it was the way out there is none now."""
        if self._lease is not None and self._lease.circuit is circuit:
            self._lease = None

    async def run(self) -> None:
        """Give programs of `hopfare exec` the current circuit as their way out, from the first one on."""
        await self._wanted.wait()
        while True:
            lease: Lease | None = None
            with suppress(NoCircuit):
                lease = await self._leases.lease(NO_ISOLATION, Destination("", 0, 0))
            if lease is not None and self._lease is not None and lease.circuit is self._lease.circuit:
                lease.release()
            else:
                if self._lease is not None:
                    self._leaving.append(self._lease)
                self._lease = lease
                await self._namespace.set_default_source(
                    lease.source_v4 if lease is not None else None,
                    lease.source_v6 if lease is not None else None,
                )
            now = trio.current_time()
            for old in list(self._leaving):
                if old.circuit.is_closed or now - old.circuit.moved_s > DEFAULT_IDLE_S:
                    self._leaving.remove(old)
                    old.release()
            changed = self._leases.changed
            with trio.move_on_after(5.0):
                await changed.wait()

    async def info(self) -> dict[str, Any]:
        """What `hopfare exec` needs, once programs have a way out."""
        self.want()
        if self._lease is None:
            with suppress(NoCircuit):  # raised the sooner if no guard can be reached
                (await self._leases.lease(NO_ISOLATION, Destination("", 0, 0))).release()
                with trio.move_on_after(LEASE_TIMEOUT_S):
                    while self._lease is None:
                        await trio.sleep(0.02)
        return {"helper_pid": self._namespace.helper_pid, "circuit": self._lease is not None}
