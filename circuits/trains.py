"""Trains on a circuit's QUIC stream: `k (1) | packet (k * UNIT)`, repeated (docs/protocol/onion.md,
"Trains").

The stream's first four bytes, the circuit id, are the link's (overlay.engine.lanes): a reader starts after
them.
"""

from circuits.errors import DecodeError
from circuits.params import MAX_TRAIN_UNITS, UNIT

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

    __slots__ = ("_missing", "_pieces")

    def __init__(self) -> None:
        """Start between two frames."""
        self._pieces: list[bytes] = []
        self._missing = 0
        """Bytes that the packet begun still lacks; 0 between frames."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished packet."""
        return sum(map(len, self._pieces))

    def feed(self, data: bytes) -> list[bytes]:
        """Take the stream's next bytes, any number; return the packets that they complete, in order.

        Raises DecodeError when a frame claims 0 or more than MAX_TRAIN_UNITS units. The stream is of no use
        then, and packets completed by the same call are lost with it: the circuit ends.
        """
        packets: list[bytes] = []
        at, end = 0, len(data)
        missing = self._missing
        if missing:
            if end < missing:
                if end:
                    self._keep(data)
                    self._missing = missing - end
                return packets
            self._pieces.append(data[:missing])
            packets.append(b"".join(self._pieces))
            self._pieces = []
            self._missing = 0
            at = missing
        while at < end:
            units = data[at]
            if not 0 < units <= MAX_TRAIN_UNITS:
                raise DecodeError(f"a train of {units} units")
            start = at + 1
            at = start + units * UNIT
            if at <= end:
                packets.append(data[start:at])
            else:
                self._missing = at - end
                if start < end:
                    self._keep(data[start:])
        return packets

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if len(self._pieces) >= _PIECES_LIMIT:
            self._pieces = [b"".join(self._pieces)]
