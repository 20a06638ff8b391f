"""Looks at relays that this node knows little of: which one next, over which path, what comes of it.

A look is an ordinary circuit that carries echoes only: with the usual guard, the usual second layer and as
many relays as a customer's path may have, so that no relay can tell from the build that it is looked at. It
never brings a new guard, and no relay but guards ever sees this node's address. Owns the
budget, the choice of the target and the sums; building and sending are the driver's. Specification:
docs/protocol/quality.md, section "Looks".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from circuits.building.records import RECORDS
from circuits.candidates import Constraints, Only, Position
from circuits.guards import GuardSet, GuardStore, Moment
from circuits.handshake import Rng
from circuits.params import UNIT
from circuits.path import Path, choose_path
from circuits.path_index import Entry, uniform
from circuits.quality import QualityBook

BURST_ECHOES = 32
"""Sent back to back: 44 kB each way, which a link of 10 Mbit/s carries in 35 ms."""
TOKEN_BYTES = 8
BURST_WAIT_S = 3.0
"""An echo that is not back by then is lost."""
LEAST_SPAN_S = 0.001
"""Answers that come closer together than that came in one batch: the rate is at least what that means."""
SAVED_LOOKS = 2
"""Looks that may follow at once after a long busy time."""
CONSIDERED = 16
"""Relays drawn by weight, of which the least known is looked at."""


@dataclass(slots=True)
class Look:
    """One look: the path to build, then the times of its echoes."""

    path: Path
    target: bytes
    sent: dict[bytes, float] = field(default_factory=dict)
    back: list[tuple[float, float]] = field(default_factory=list)

    def start(self, rng: Rng, now: float) -> list[bytes]:
        """Return the tokens of the echoes to send now."""
        tokens = [rng(TOKEN_BYTES) for _ in range(BURST_ECHOES)]
        self.sent = dict.fromkeys(tokens, now)
        return tokens

    def note_echo(self, token: bytes, now: float) -> bool:
        """Take an echo that came back; True when it was the last."""
        sent = self.sent.pop(token, None)
        if sent is not None:
            self.back.append((sent, now))
        return not self.sent

    def note_result(self, book: QualityBook, unix_s: float) -> None:
        """Enter in the book what the echoes say. The build was entered already."""
        node_ids = self.path.node_ids
        lost = len(self.sent)
        book.note_loss(node_ids, lost, lost + len(self.back), unix_s)
        if not self.back:
            return
        book.note_alive(node_ids, unix_s)
        book.note_round_trip(node_ids, min(back - sent for sent, back in self.back), unix_s)
        if len(self.back) >= BURST_ECHOES // 2:
            times = [back for _, back in self.back]
            span_s = max(LEAST_SPAN_S, max(times) - min(times))
            book.note_probe_rate(node_ids, (len(times) - 1) * UNIT / span_s, unix_s)


class Prober:
    """When to look, and at whom. `per_hour` 0 switches it off."""

    __slots__ = ("_left", "_left_at", "_per_hour", "_rng", "looks")

    def __init__(self, per_hour: int, rng: Rng, now: float) -> None:
        """Begin with none saved: a client has other things to do at its start."""
        self._per_hour = per_hour
        self._rng = rng
        self._left = 0.0
        self._left_at = now
        self.looks = 0

    def next_time(self, now: float) -> float | None:
        """Return when the budget allows a look, not before `now`; None if it never does."""
        if not self._per_hour:
            return None
        return now + max(0.0, 1.0 - self._saved(now)) * 3600 / self._per_hour

    def choose(
        self, constraints: Constraints, guards: GuardStore, book: QualityBook, moment: Moment
    ) -> Look | None:
        """Return a look to take now, its budget spent; None if the budget or the directory has none.

        Exits that the customer's rules allow are looked at as exits, other relays as middles. With one hop
        nobody is: each exit would see this node's address.
        """
        if not self._per_hour or self._saved(moment.now) < 1.0 - 1e-9:
            return None
        self._left, self._left_at = self._saved(moment.now) - 1.0, moment.now
        if constraints.hops < 2:
            return None
        kept = guards.get(constraints)
        own = frozenset(guard.node_id for guard in kept.guards)
        target, position = self._choose_target(constraints, own, book, moment)
        if target is None:
            return None
        if own:
            constraints = replace(constraints, guards=replace(constraints.guards, nodes=own))
        path = self._choose_path(target, position, constraints, kept, moment)
        if path is None:
            return None
        self.looks += 1
        return Look(path, target)

    def _saved(self, now: float) -> float:
        return min(SAVED_LOOKS, self._left + (now - self._left_at) * self._per_hour / 3600)

    def _choose_target(
        self, constraints: Constraints, own_guards: Collection[bytes], book: QualityBook, moment: Moment
    ) -> tuple[bytes | None, Position]:
        positions = [Position.EXIT, Position.MIDDLE] if constraints.hops > 2 else [Position.EXIT]
        position = positions[int(uniform(self._rng) * len(positions))]
        selection = moment.index.select(position, constraints)

        def works(entry: Entry) -> bool:
            # Our guards are seen at work; a look at one would take another guard.
            node_id = entry.candidate.node_id
            return node_id not in own_guards and not moment.backoff.is_waiting(node_id, moment.now)

        drawn = [selection.draw(works, self._rng) for _ in range(CONSIDERED)]
        found = {entry.candidate.node_id for entry in drawn if entry is not None}
        if not found:
            return None, position

        def known(node_id: bytes) -> tuple[float, bytes]:
            return book.measured_at(node_id), node_id

        return min(found, key=known), position

    def _choose_path(
        self,
        target: bytes,
        position: Position,
        constraints: Constraints,
        kept: GuardSet,
        moment: Moment,
    ) -> Path | None:
        if position is Position.EXIT:
            wanted = replace(constraints, exits=Only(nodes=frozenset({target})), ports=(), needs_ipv6=False)
            result = choose_path(wanted, kept, moment)
            return result if isinstance(result, Path) else None
        # With one relay more than usual a relay of the second layer stands between the guard and it.
        for hops in dict.fromkeys((min(RECORDS, constraints.hops + 1), constraints.hops)):
            wanted = replace(constraints, hops=hops, ports=(), needs_ipv6=False)
            result = choose_path(wanted, kept, moment, middle=target)
            if isinstance(result, Path):
                return result
        return None
