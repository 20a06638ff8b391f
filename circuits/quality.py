"""What this node has seen of each relay: builds, round trip, loss, throughput, uptime, disputes, lies.

A pure book: notes with the time of day go in, figures and one number for path choice come out. Everything
decays, so that a relay that was bad can become good. Only what this node saw itself is in it: nothing that
anybody claims. Bounded (MAX_RELAYS), with a form for the disk. Specification: docs/protocol/quality.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from circuits.errors import DecodeError
from circuits.handshake import NODE_ID_BYTES

HALF_LIFE_S = 2 * 86_400.0
"""Of every count: what happened a week ago counts for a tenth."""
RATE_HALF_LIFE_S = 7 * 86_400.0
"""Of the highest throughput seen: circuits are seldom used to the full."""
MAX_RELAYS = 4096
"""Relays in the book; the one not heard of for longest makes room."""
MAX_QUALITY_BYTES = 1 << 20
"""Of the file, well over MAX_RELAYS records."""
PRIOR_GOOD, PRIOR_BAD = 3.0, 1.0
"""What a relay that nobody knows is taken for: three builds that worked and one that did not."""
EXPLAINING = 1.5
"""A relay whose throughput is at most so many times a path's explains that path's."""
GAP_S = 3600.0
"""Time that two sights of a relay vouch for at most."""
RTT_SLACK_S = 0.05  # slower than usual by so much is nobody's concern
RTT_FACTOR = 0.5  # and however slow it is, it counts for half
_RTT_WEIGHT = 1 / 8
_LOSS_WEIGHT = 1 / 8
_LIE_FACTOR = 0.5
_DISPUTE_FACTOR = 0.7
MAX_LIES = 3.0  # an exit that lost its IPv6 for a day must not be lost for a fortnight
_FILE_VERSION = 1


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One relay. Counts decay from `at_s` on; times are seconds since 1970."""

    node_id: bytes
    at_s: float
    good: float = 0.0
    bad: float = 0.0
    up_s: float = 0.0
    down_s: float = 0.0
    rtt_s: float = 0.0
    loss: float = 0.0
    rate_bytes_per_s: float = 0.0
    rate_at_s: float = 0.0
    disputes: float = 0.0
    lies: float = 0.0
    seen_s: float = 0.0
    was_up: bool = False


class _Stored(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    relays: list[_Record]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one relay. `score` (0 to 1) is what path choice uses; None means not measured.

    `builds` is the decayed number of builds it took part in, `success` the part of them that it did not
    spoil; `uptime` the part of the time watched in which it answered. `round_trip_s` is that of whole
    circuits over it.
    """

    score: float
    builds: float
    success: float
    uptime: float | None
    round_trip_s: float | None
    loss: float
    rate_bytes_per_s: int
    disputes: float
    lies: float
    seen_s: float | None


class QualityBook:
    """The book. Times of day (`unix_s`) may jump: nothing decays backwards."""

    __slots__ = ("_changed", "_records", "_usual_rtt_s")

    def __init__(self, records: Iterable[_Record] = ()) -> None:
        """Start empty; `decode_quality` makes one from a file."""
        self._records = {record.node_id: record for record in records}
        self._changed = False
        self._usual_rtt_s: float | None = None

    def __len__(self) -> int:
        """Return the number of relays in the book."""
        return len(self._records)

    # --- what was seen -----------------------------------------------------------------------------------

    def note_works(self, node_ids: Sequence[bytes], unix_s: float) -> None:
        """A circuit over these relays was built."""
        for node_id in node_ids:
            record = self._touch(node_id, unix_s)
            record.good += 1.0
            self._note_sight(record, unix_s, up=True)

    def note_alive(self, node_ids: Sequence[bytes], unix_s: float) -> None:
        """A circuit over these relays answered: they are up."""
        for node_id in node_ids:
            self._note_sight(self._touch(node_id, unix_s), unix_s, up=True)

    def note_failed(self, suspects: Sequence[bytes], unix_s: float) -> None:
        """One of these relays made a build fail, or broke a circuit, and nobody knows which.

        The blame is shared by how often each has failed so far. So a relay that spoils everything next to
        honest ones soon carries nearly all of it, and cannot ruin others by being beside them.
        """
        records = [self._touch(node_id, unix_s) for node_id in suspects]
        odds = [_failure_rate(record) for record in records]
        for record, odd in zip(records, odds, strict=True):
            record.bad += odd / sum(odds)
            if len(records) == 1:
                self._note_sight(record, unix_s, up=False)

    def note_round_trip(self, node_ids: Sequence[bytes], rtt_s: float, unix_s: float) -> None:
        """An echo came back over these relays after `rtt_s`."""
        for node_id in node_ids:
            record = self._touch(node_id, unix_s)
            record.rtt_s += (rtt_s - record.rtt_s) * _RTT_WEIGHT if record.rtt_s else rtt_s
        self._usual_rtt_s = None

    def note_loss(self, node_ids: Sequence[bytes], lost: int, sent: int, unix_s: float) -> None:
        """Of `sent` echoes over these relays `lost` were: each is charged by how lossy it was so far."""
        if sent <= 0:
            return
        records = [self._touch(node_id, unix_s) for node_id in node_ids]
        part = min(1.0, lost / sent)
        odds = [record.loss + 0.01 for record in records]
        for record, odd in zip(records, odds, strict=True):
            share = min(1.0, part * odd * len(records) / sum(odds))
            record.loss += (share - record.loss) * _LOSS_WEIGHT

    def note_rate(self, node_ids: Sequence[bytes], rate_bytes_per_s: float, unix_s: float) -> None:
        """These relays carried so much: each can do it. The highest is kept, and decays."""
        for node_id in node_ids:
            record = self._touch(node_id, unix_s)
            record.rate_bytes_per_s = max(_rate(record, unix_s), rate_bytes_per_s)
            record.rate_at_s = unix_s

    def note_probe_rate(self, node_ids: Sequence[bytes], rate_bytes_per_s: float, unix_s: float) -> None:
        """A burst over these relays was answered at that rate: none is much slower, one may be no faster.

        Unlike `note_rate` it also lowers: a relay's figure moves half of the way down, unless another one on
        the path is known to be about so slow, and so explains it.
        """
        records = [self._touch(node_id, unix_s) for node_id in node_ids]
        known = [_rate(record, unix_s) for record in records]
        is_explained = any(0 < old <= EXPLAINING * rate_bytes_per_s for old in known)
        for record, old in zip(records, known, strict=True):
            is_cause = not is_explained or old <= EXPLAINING * rate_bytes_per_s
            lower = (old + rate_bytes_per_s) / 2 if is_cause else old
            record.rate_bytes_per_s = max(rate_bytes_per_s, lower)
            record.rate_at_s = unix_s

    def note_dispute(self, node_id: bytes, unix_s: float) -> None:
        """The relay's account and ours differed."""
        self._touch(node_id, unix_s).disputes += 1.0

    def note_lie(self, node_id: bytes, unix_s: float) -> None:
        """The relay does not do what its descriptor says: an exit that refuses a port it lists, say."""
        record = self._touch(node_id, unix_s)
        record.lies = min(MAX_LIES, record.lies + 1.0)

    def forget(self, node_ids: Iterable[bytes]) -> None:
        """Remove relays from the book."""
        for node_id in node_ids:
            self._changed |= self._records.pop(node_id, None) is not None

    # --- what comes of it --------------------------------------------------------------------------------

    def knows(self, node_id: bytes) -> bool:
        """Tell whether anything is known of a relay."""
        return node_id in self._records

    def figures(self, node_id: bytes, unix_s: float) -> Figures:
        """Return what is known of a relay now."""
        record = self._records.get(node_id) or _Record(node_id, unix_s)
        fade = _fade(unix_s - record.at_s, HALF_LIFE_S)
        good, bad = record.good * fade, record.bad * fade
        watched_s = record.up_s + record.down_s
        uptime = record.up_s / watched_s if watched_s else None
        score = (good + PRIOR_GOOD) / (good + bad + PRIOR_GOOD + PRIOR_BAD)
        score *= (1.0 - record.loss) ** 2
        if uptime is not None:
            # A day's sight before it counts in full.
            score *= 1 - (1 - uptime) * min(1.0, watched_s * fade / 86_400.0)
        usual = self._usual_round_trip()
        if record.rtt_s and usual:
            score *= min(1.0, max(RTT_FACTOR, (usual + RTT_SLACK_S) / record.rtt_s))
        score *= _DISPUTE_FACTOR ** (record.disputes * fade) * _LIE_FACTOR ** (record.lies * fade)
        return Figures(
            score,
            good + bad,
            good / (good + bad) if good + bad else 1.0,
            uptime,
            record.rtt_s or None,
            record.loss,
            int(_rate(record, unix_s)),
            record.disputes * fade,
            record.lies * fade,
            record.seen_s or None,
        )

    def score(self, node_id: bytes, unix_s: float) -> float:
        """Return the one number (0 to 1) that path choice uses."""
        return self.figures(node_id, unix_s).score

    def measured_at(self, node_id: bytes) -> float:
        """Return when a relay's throughput was last measured (seconds since 1970), 0 if never."""
        record = self._records.get(node_id)
        return record.rate_at_s if record is not None else 0.0

    def failure_rate(self, node_id: bytes, unix_s: float) -> tuple[float, float]:
        """Return the part of a relay's builds that it spoiled, and the (decayed) number of them."""
        figures = self.figures(node_id, unix_s)
        return 1 - figures.success, figures.builds

    # --- the disk ----------------------------------------------------------------------------------------

    def take_changed(self) -> bool:
        """Tell whether there is something new to write to disk since the last call."""
        changed, self._changed = self._changed, False
        return changed

    def encode(self) -> bytes:
        """Return the form for the disk (msgpack).

        It tells which relays this node has used, within hours: keep it private.
        """
        coarse = [
            msgspec.structs.replace(
                record,
                at_s=record.at_s - record.at_s % 3600,
                seen_s=record.seen_s - record.seen_s % 3600,
                rate_at_s=record.rate_at_s - record.rate_at_s % 3600,
            )
            for record in self._records.values()
        ]
        return msgspec.msgpack.encode(_Stored(_FILE_VERSION, coarse))

    # --- inside ------------------------------------------------------------------------------------------

    def _touch(self, node_id: bytes, unix_s: float) -> _Record:
        """Return a relay's record, its counts decayed to now."""
        self._changed = True
        record = self._records.pop(node_id, None)
        if record is None:
            if len(self._records) >= MAX_RELAYS:
                # The order is that of the last touch.
                del self._records[next(iter(self._records))]
            record = _Record(node_id, unix_s)
        self._records[node_id] = record
        fade = _fade(unix_s - record.at_s, HALF_LIFE_S)
        if fade < 1.0:
            record.good *= fade
            record.bad *= fade
            record.up_s *= fade
            record.down_s *= fade
            record.disputes *= fade
            record.lies *= fade
        record.at_s = unix_s
        return record

    @staticmethod
    def _note_sight(record: _Record, unix_s: float, *, up: bool) -> None:
        """Count the time since the last sight as up if it was up at both ends, else half of it as down."""
        span_s = min(GAP_S, max(0.0, unix_s - record.seen_s)) if record.seen_s else 0.0
        if up and record.was_up:
            record.up_s += span_s
        elif up or record.was_up:
            record.up_s += span_s / 2
            record.down_s += span_s / 2
        else:
            record.down_s += span_s
        record.seen_s, record.was_up = unix_s, up

    def _usual_round_trip(self) -> float:
        if self._usual_rtt_s is None:
            known = [record.rtt_s for record in list(self._records.values()) if record.rtt_s]
            self._usual_rtt_s = median(known) if known else 0.0
        return self._usual_rtt_s


def decode_quality(data: bytes, unix_s: float) -> QualityBook:
    """Read what `QualityBook.encode` wrote. Times later than now, from a clock that was ahead, become now.

    Raises DecodeError for anything else, and for more than MAX_QUALITY_BYTES.
    """
    if len(data) > MAX_QUALITY_BYTES:
        raise DecodeError("quality: the file is too long")
    try:
        stored = msgspec.msgpack.decode(data, type=_Stored)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError("quality: not the expected form") from error
    if stored.version != _FILE_VERSION or len(stored.relays) > MAX_RELAYS:
        raise DecodeError("quality: version or number of relays")
    for record in stored.relays:
        if len(record.node_id) != NODE_ID_BYTES or not _is_sane(record):
            raise DecodeError("quality: an identity or a figure out of range")
        record.at_s = min(record.at_s, unix_s)
        record.rate_at_s = min(record.rate_at_s, unix_s)
        record.seen_s = min(record.seen_s, unix_s)
    if len({record.node_id for record in stored.relays}) != len(stored.relays):
        raise DecodeError("quality: a relay twice")
    return QualityBook(stored.relays)


def _is_sane(record: _Record) -> bool:
    counts = (
        record.at_s, record.good, record.bad, record.up_s, record.down_s, record.rtt_s,
        record.rate_bytes_per_s, record.rate_at_s, record.disputes, record.lies, record.seen_s,
    )  # fmt: skip
    return all(0.0 <= count < 1e15 for count in counts) and 0.0 <= record.loss <= 1.0


def _failure_rate(record: _Record) -> float:
    return (record.bad + PRIOR_BAD) / (record.good + record.bad + PRIOR_GOOD + PRIOR_BAD)


def _rate(record: _Record, unix_s: float) -> float:
    return record.rate_bytes_per_s * _fade(unix_s - record.rate_at_s, RATE_HALF_LIFE_S)


def _fade(passed_s: float, half_life_s: float) -> float:
    return 1.0 if passed_s <= 0 else float(0.5 ** (passed_s / half_life_s))
