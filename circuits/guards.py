"""Guards and second-layer relays: the few first and middle hops a client keeps, and their form on disk.

Why: with a fresh first hop for each circuit, whoever runs some of the relays soon sees each customer once
at both ends. With few, kept for months, most customers are never seen. The second layer makes it as slow
to find a customer's guard.

Owns which relays those are, when they expire and in which order they are used. Does not own what makes a
relay suitable (`circuits.path_index`) nor the rest of the path (`circuits.path`). Each filter set (choice
of guards and middles) has a state of its own, so that a filter does not use up the guards of another.
Times are the guards' own (`circuits.guard_time`), but for the back-off's. Specification:
docs/protocol/pool.md, section "Guards".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from circuits.backoff import BackOff
from circuits.candidates import Constraints, Only
from circuits.errors import DecodeError
from circuits.guard_time import GuardTime
from circuits.handshake import NODE_ID_BYTES, Rng
from circuits.path_index import Entry, PathIndex, Selection, uniform

PRIMARY_GUARDS = 3
MAX_GUARDS = 8  # primaries and those added while no primary could be reached
GUARD_LIFE_S = (60 * 86_400.0, 120 * 86_400.0)
UNLISTED_LIFE_S = 7 * 86_400.0  # a guard missing in the directory is kept this long: it may come back
ADD_GUARD_AFTER_S = (
    15.0  # no guard reachable for this long before another is added: a lost uplink must not use up guards
)
ADD_GUARD_EVERY_S = 60.0
MIDDLES = 4
MAX_MIDDLES = 8
MIDDLE_LIFE_S = (86_400.0, 12 * 86_400.0)  # the longer of two draws
UNLISTED_MIDDLE_LIFE_S = 86_400.0
MISSING_GRACE_S = 3600.0
"""A relay missing in the directory for less is not replaced while enough others are there: descriptors come
late, and a directory is filled piece by piece."""
STORE_EVERY_S = 86_400.0
MAX_SETS = 16  # filter sets kept; the least recently used makes room
MAX_STATE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class _Layer:
    """How many relays are kept in a layer, and for how long."""

    wanted: int
    limit: int
    least_listed: int
    """Fewer are filled up also while others are missing only for a moment."""
    unlisted_life_s: float
    life_s: Callable[[Rng], float]


@dataclass(slots=True)
class Kept:
    """A relay kept as guard or middle."""

    node_id: bytes
    added_s: float
    expires_s: float
    unlisted_since_s: float | None = None


class _StoredSet(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    last_used_s: float
    guards: list[Kept] = []
    middles: list[Kept] = []


class _StoredGuards(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    sets: list[_StoredSet]
    time_s: float = 0.0
    seen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """What every choice needs: the directory, who failed lately, randomness, the steady clock and the
    time of day.
    """

    index: PathIndex
    backoff: BackOff
    rng: Rng
    now: float
    unix_s: float


@dataclass(slots=True)
class GuardSet:
    """The guards (in order of use) and the second layer of one filter set."""

    key: str
    last_used_s: float = 0.0
    guards: list[Kept] = field(default_factory=list)
    middles: list[Kept] = field(default_factory=list)
    time: GuardTime = field(default_factory=GuardTime)
    changed: bool = False
    _added_at: float | None = None
    _all_waiting_since: float | None = None

    def choose_guard(
        self, selection: Selection, accept: Callable[[Entry], bool], moment: Moment
    ) -> tuple[Entry, str] | None:
        """Return the guard to use and why it; None if none fits and is reachable (`retry_at` tells when
        next).

        The first guard in order that `accept` takes and that is not waited for. Another one is added
        where all that are kept are unfit (at once), or where all have been unreachable for some time (one
        a minute), up to MAX_GUARDS.
        """
        now = moment.now
        self.last_used_s = self.time.advance(now, moment.unix_s)
        self._refresh(self.guards, selection, moment, _GUARDS)
        fitting = [entry for entry in _listed(self.guards, selection) if accept(entry)]
        # One that breaks circuits is used where there is no other; no new one is added because of it.
        for entry in sorted(fitting, key=lambda e: moment.backoff.is_resting(e.candidate.node_id, now)):
            if not moment.backoff.is_waiting(entry.candidate.node_id, now):
                if not moment.backoff.failures(entry.candidate.node_id):
                    self._all_waiting_since = None
                is_first = entry is fitting[0]
                reason = (
                    "the first of our guards"
                    if is_first
                    else "a guard; those before it are unreachable or break circuits"
                )
                return entry, reason
        if fitting:
            if self._all_waiting_since is None:
                self._all_waiting_since = now
            if now - self._all_waiting_since < ADD_GUARD_AFTER_S:
                return None
            if self._added_at is not None and now - self._added_at < ADD_GUARD_EVERY_S:
                return None
            self._added_at = now
        added = self._add(self.guards, selection, accept, moment, _GUARDS)
        if added is None:
            return None
        return added, "a new guard; all others are " + ("unreachable" if fitting else "unfit for this path")

    def choose_middle(
        self, selection: Selection, accept: Callable[[Entry], bool], moment: Moment
    ) -> tuple[Entry, str] | None:
        """Return a middle and why it: by lot from the second layer, or any other where none of that fits
        and works.
        """
        self.time.advance(moment.now, moment.unix_s)
        self._refresh(self.middles, selection, moment, _MIDDLES)

        def works(entry: Entry) -> bool:
            return accept(entry) and not moment.backoff.is_waiting(entry.candidate.node_id, moment.now)

        fitting = [entry for entry in _listed(self.middles, selection) if works(entry)]
        if fitting:
            return fitting[int(uniform(moment.rng) * len(fitting))], "one of our second layer"
        other = selection.draw(works, moment.rng) or selection.draw(accept, moment.rng)
        return None if other is None else (other, "drawn by weight; no relay of our second layer fits")

    def retry_at(self, moment: Moment) -> float:
        """Return when to ask again after `choose_guard` returned None: a guard may be tried, or another
        be added.
        """
        now = moment.now
        times = [moment.backoff.retry_at(kept.node_id) for kept in self.guards]
        waits = [time for time in times if time is not None and time > now]
        if self._all_waiting_since is not None:
            waits.append(max(self._all_waiting_since + ADD_GUARD_AFTER_S, now + 1.0))
        return min(waits, default=now + 1.0)

    def _refresh(self, kept: list[Kept], selection: Selection, moment: Moment, layer: _Layer) -> None:
        """Drop whose time is over, and fill up."""
        time_s = self.time.time_s
        for k in kept:
            if k.node_id in moment.index.by_id:
                k.unlisted_since_s = None
            elif k.unlisted_since_s is None:
                k.unlisted_since_s = time_s
        live = [k for k in kept if k.expires_s > time_s and self._missing_s(k) < layer.unlisted_life_s]
        if len(live) != len(kept):
            kept[:] = live
            self.changed = True
        while (listed := len(_listed(kept, selection))) < layer.wanted:
            soon_back = sum(0 < self._missing_s(k) < MISSING_GRACE_S for k in kept)
            if listed >= layer.least_listed and listed + soon_back >= layer.wanted:
                return
            if self._add(kept, selection, lambda _: True, moment, layer) is None:
                return

    def _missing_s(self, kept: Kept) -> float:
        """How long a relay has been missing in the directory; 0 if it is there, and more if it is not."""
        since_s = kept.unlisted_since_s
        return 0.0 if since_s is None else max(self.time.time_s - since_s, 0.001)

    def _add(
        self,
        kept: list[Kept],
        selection: Selection,
        accept: Callable[[Entry], bool],
        moment: Moment,
        layer: _Layer,
    ) -> Entry | None:
        """Add a relay that is not kept yet, unrelated to those that are if possible; None if there is
        none.
        """
        known = {k.node_id for k in kept}
        present = _listed(kept, selection)
        unfit = [k for k in kept if k.node_id not in selection.by_id]
        if len(kept) >= layer.limit and not unfit:
            return None

        def is_new(entry: Entry) -> bool:
            return entry.candidate.node_id not in known and accept(entry)

        rng = moment.rng
        found = selection.draw(lambda e: is_new(e) and not any(e.is_related(p) for p in present), rng)
        found = found or selection.draw(is_new, rng)
        if found is None:
            return None
        if len(kept) >= layer.limit:
            kept.remove(unfit[0])
        time_s = self.time.time_s
        kept.append(Kept(found.candidate.node_id, time_s, time_s + layer.life_s(rng)))
        self.changed = True
        return found


class GuardStore:
    """The guard sets of all filter sets in use, and their form on disk."""

    __slots__ = ("_sets", "_stored_s", "_time")

    def __init__(self, sets: list[GuardSet] | None = None, time: GuardTime | None = None) -> None:
        """Start with these sets and their time (`decode_guards` makes them from a file)."""
        self._sets = {guard_set.key: guard_set for guard_set in sets or []}
        self._time = time or GuardTime()
        self._stored_s = self._time.time_s

    def get(self, constraints: Constraints) -> GuardSet:
        """Return the set that belongs to these constraints, a new one if need be.

        Only the choice of guards and middles tells sets apart: with bans in the key, each new ban would
        bring new guards.
        """
        key = _filter_key(constraints.guards, constraints.middles)
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= MAX_SETS:
                del self._sets[min(self._sets, key=lambda k: self._sets[k].last_used_s)]
            found = self._sets[key] = GuardSet(key, time=self._time)
        return found

    def take_changed(self) -> bool:
        """Tell whether there is something new to write to disk since the last call: once a day the time."""
        changed = any(guard_set.changed for guard_set in self._sets.values())
        changed |= self._time.time_s - self._stored_s >= STORE_EVERY_S
        if changed:
            self._stored_s = self._time.time_s
        for guard_set in self._sets.values():
            guard_set.changed = False
        return changed

    def encode(self) -> bytes:
        """Return the form for the disk (JSON). It tells who this customer's guards are: keep it private."""
        return msgspec.json.encode(
            _StoredGuards(
                2,
                [_StoredSet(s.key, s.last_used_s, s.guards, s.middles) for s in self._sets.values()],
                self._time.time_s,
                self._time.seen_s,
            )
        )


def decode_guards(data: bytes) -> GuardStore:
    """Read what `GuardStore.encode` wrote, also in version 1, whose times were those of the day.

    Raises DecodeError for anything else, and for more than MAX_STATE_BYTES.
    """
    if len(data) > MAX_STATE_BYTES:
        raise DecodeError("guards: the file is too long")
    try:
        stored = msgspec.json.decode(data, type=_StoredGuards)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError("guards: not the expected JSON") from error
    if stored.version not in (1, 2) or len(stored.sets) > MAX_SETS:
        raise DecodeError("guards: version or number of sets")
    for guard_set in stored.sets:
        for kept, limit in ((guard_set.guards, MAX_GUARDS), (guard_set.middles, MAX_MIDDLES)):
            ids = {k.node_id for k in kept}
            if len(kept) > limit or len(ids) != len(kept) or any(len(i) != NODE_ID_BYTES for i in ids):
                raise DecodeError("guards: identities or their number")
    time = GuardTime(stored.time_s, stored.seen_s)
    if stored.version == 1:
        known = [s.last_used_s for s in stored.sets]
        known += [k.added_s for s in stored.sets for k in (*s.guards, *s.middles)]
        time = GuardTime(max(known, default=0.0), max(known, default=0.0))
    for s in stored.sets:
        for several, life_s in ((s.guards, GUARD_LIFE_S), (s.middles, MIDDLE_LIFE_S)):
            for one in several:
                one.expires_s = min(one.expires_s, time.time_s + life_s[1])
    return GuardStore([GuardSet(s.key, s.last_used_s, s.guards, s.middles, time) for s in stored.sets], time)


def _listed(kept: list[Kept], selection: Selection) -> list[Entry]:
    return [selection.by_id[k.node_id] for k in kept if k.node_id in selection.by_id]


def _filter_key(*choices: Only) -> str:
    digest = hashlib.sha256()
    for choice in choices:
        for part in (
            sorted(choice.nodes),
            sorted(c.encode() for c in choice.countries),
            sorted(o.encode() for o in choice.operators),
        ):
            for name in part:
                digest.update(len(name).to_bytes(2, "big") + name)
            digest.update(b"\xff\xff")
    return digest.hexdigest()[:32]


def _guard_life(rng: Rng) -> float:
    return GUARD_LIFE_S[0] + uniform(rng) * (GUARD_LIFE_S[1] - GUARD_LIFE_S[0])


def _middle_life(rng: Rng) -> float:
    return MIDDLE_LIFE_S[0] + max(uniform(rng), uniform(rng)) * (MIDDLE_LIFE_S[1] - MIDDLE_LIFE_S[0])


_GUARDS = _Layer(PRIMARY_GUARDS, MAX_GUARDS, 1, UNLISTED_LIFE_S, _guard_life)
_MIDDLES = _Layer(MIDDLES, MAX_MIDDLES, 2, UNLISTED_MIDDLE_LIFE_S, _middle_life)
