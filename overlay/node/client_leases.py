"""What the proxy asks of a customer's node: circuits to use (the seam `overlay.socks.circuits.Circuits`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from circuits.pool.types import Leased, Need, Refused, Trouble, Waiting
from overlay.node.lease import Lease
from overlay.socks.circuits import Destination, Isolation, NoCircuit, NoCircuitKind

if TYPE_CHECKING:
    from overlay.node.client import ClientNode

LEASE_TIMEOUT_S = 30.0
OFFLINE_TIMEOUT_S = 8.0
"""While no guard can be reached: a program had better be told than wait for a cable to be plugged in."""
CUT_OFF_TIMEOUT_S = 1.0
"""While this machine itself says that it has no way to any guard."""
ASK_AGAIN_S = 1.0
"""How often a program that waits for a circuit looks at why there is none."""
MAX_REFUSED = 1024

_KIND: dict[Trouble, NoCircuitKind] = {
    Trouble.BUILDING: NoCircuitKind.NOT_READY,
    Trouble.FAILING: NoCircuitKind.NOT_READY,
    Trouble.CLOSED: NoCircuitKind.NOT_READY,
    Trouble.OFFLINE: NoCircuitKind.OFFLINE,
    Trouble.NOT_ALLOWED: NoCircuitKind.NOT_ALLOWED,
    Trouble.NO_PATH: NoCircuitKind.NOT_ALLOWED,
    Trouble.NO_IPV6: NoCircuitKind.NO_IPV6,
    Trouble.OVERLOADED: NoCircuitKind.OVERLOADED,
}


class Leases:
    """Lends the circuits of one customer's node out, and has programs wait while there is none."""

    def __init__(self, node: ClientNode) -> None:
        """Nobody waits."""
        self._node = node
        self._changed = trio.Event()
        self._refused: dict[Need, tuple[Trouble, str]] = {}

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of what circuits there are; another one from then on."""
        return self._changed

    def announce(self) -> None:
        """Have all that wait look again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def note_ready(self) -> None:
        """A circuit stands."""
        self._refused.clear()
        self.announce()

    def note_refused(self, need: Need, trouble: Trouble, sentence: str) -> None:
        """The pool has no circuit for a need, and why."""
        if len(self._refused) < MAX_REFUSED:
            self._refused[need] = (trouble, sentence)
        self.announce()

    def lease_now(self, isolation: Isolation, destination: Destination) -> Lease | None:
        """A lease if a circuit is ready."""
        outcome = self._lease(self._need(isolation, destination))
        return outcome if isinstance(outcome, Lease) else None

    async def lease(self, isolation: Isolation, destination: Destination) -> Lease:
        """A lease, waiting up to LEASE_TIMEOUT_S. Raises NoCircuit with a sentence."""
        if self._node.purse is not None and self._node.purse.stopped:
            raise NoCircuit(NoCircuitKind.NOT_ALLOWED, self._node.purse.stopped)
        need = self._need(isolation, destination)
        self._refused.pop(need, None)  # an earlier waiter's
        begun = trio.current_time()
        deadline = begun + LEASE_TIMEOUT_S
        while True:
            outcome = self._lease(need)
            if isinstance(outcome, Lease):
                return outcome
            if isinstance(outcome, Refused):
                raise NoCircuit(_KIND[outcome.trouble], outcome.sentence)
            if outcome.trouble is Trouble.OFFLINE:
                patience_s = OFFLINE_TIMEOUT_S if self._node.links.has_route else CUT_OFF_TIMEOUT_S
                deadline = min(deadline, begun + patience_s)
            changed = self._changed
            # Asked again now and then: that no guard can be reached is noticed while others wait, too.
            with trio.move_on_at(min(deadline, trio.current_time() + ASK_AGAIN_S)):
                await changed.wait()
            if trio.current_time() >= deadline:
                raise NoCircuit(_KIND[outcome.trouble], outcome.sentence)
            refused = self._refused.get(need)
            if refused is not None:
                raise NoCircuit(_KIND[refused[0]], refused[1])

    def _lease(self, need: Need) -> Lease | Waiting | Refused:
        outcome, actions = self._node.pool.lease(need, trio.current_time())
        self._node.act(actions)
        if isinstance(outcome, Leased):
            return Lease(self._node, self._node.circuits[outcome.circuit_id])
        self._node.wake()
        return outcome

    def _need(self, isolation: Isolation, destination: Destination) -> Need:
        rules = self._node.config.client.isolation
        key = isolation.key if "user" in rules else b""
        if "destination" in rules:
            key += b"\0" + destination.host.encode()
        if "port" in rules:
            key += destination.port.to_bytes(2, "big")
        return Need(key, destination.port, destination.ip_version == 6)
