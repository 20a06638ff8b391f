"""Trains on a circuit's QUIC stream: `k (1) | packet (k * UNIT)`, repeated (docs/protocol/onion.md,
"Trains").

The stream's first four bytes, the circuit id, are the link's (overlay.engine.lanes): a reader starts after
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.errors import DecodeError
from circuits.params import MAX_TRAIN_UNITS, UNIT

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIECES_LIMIT = 128
"""Pieces of one train that are held apart; a peer that sends single bytes must not cost an object for
each."""


def encode_frame(packet: bytes) -> bytes:
    """Frame one packet of 1 to MAX_TRAIN_UNITS whole units. Raises ValueError for any other length."""
    units, odd = divmod(len(packet), UNIT)
    if odd or not 0 < units <= MAX_TRAIN_UNITS:
        raise ValueError(f"{len(packet)} bytes are not 1 to {MAX_TRAIN_UNITS} units of {UNIT}")
    return b"".join((bytes((units,)), packet))


class TrainReader:
    """Cuts one stream's bytes into packets. Holds at most one unfinished packet."""

    __slots__ = ("_held", "_missing", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._missing = 0
        """Bytes that the packet begun still lacks; 0 between frames."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished packet."""
        return self._held

    def feed(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Take the stream's next bytes, in any number of chunks; return the packets that they complete, in
        order.

        A packet is joined from its chunks once, when it is whole. Raises DecodeError when a frame claims 0 or
        more than MAX_TRAIN_UNITS units. The stream is of no use then, and packets completed by the same call
        are lost with it: the circuit ends.
        """
        packets: list[bytes] = []
        pieces, missing = self._pieces, self._missing
        for chunk in chunks:
            size = len(chunk)
            if not size:
                continue
            if size < missing:
                pieces.append(chunk)
                missing -= size
                continue
            at = 0
            while at < size:
                if not missing:
                    units = chunk[at]
                    if not 0 < units <= MAX_TRAIN_UNITS:
                        raise DecodeError(f"a train of {units} units")
                    missing = units * UNIT
                    at += 1
                end = at + missing
                if end > size:
                    if at < size:
                        pieces.append(chunk[at:])
                        missing -= size - at
                    break
                if pieces or end - at != size:
                    pieces.append(chunk[at:end])
                packets.append(b"".join(pieces) if pieces else chunk)
                pieces, missing = [], 0
                at = end
        if len(pieces) >= _PIECES_LIMIT:
            pieces = [b"".join(pieces)]
        self._pieces, self._missing = pieces, missing
        self._held = sum(map(len, pieces)) if pieces else 0
        return packets
