"""A relay's and an exit's part: open forward packets, wrap or seal backward ones (docs/protocol/onion.md,
"Packets").

A packet has UNIT bytes on the datagram lane and 1 to MAX_TRAIN_UNITS times that on the stream lane. Input is
read, never kept or changed. `now` is the driver's monotonic clock in seconds, looked at once per batch. The
loops are flat because a call costs as much as a tenth of a packet's encryption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from circuits.keychain import EpochKeys, SendChain
from circuits.layers.lane import Command, Lane, Opened, backward_label, checked_receive_chain, forward_label
from circuits.params import (
    BACKWARD_COUNTER_BYTES,
    BACKWARD_HEADER_BYTES,
    BACKWARD_KEPT_BYTES,
    BACKWARD_OVERHEAD_BYTES,
    COUNTER_FIELD_BYTES,
    COUNTER_LIMIT,
    FORWARD_HEADER_BYTES,
    SLOT_BYTES,
    TAG_BYTES,
    UNIT,
)
from circuits.suites import AEAD_NONCE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# An enum's member looked up by name costs as much as a packet's nonce.
_FORWARD, _DELIVER, _DROP = Command.FORWARD, Command.DELIVER, Command.DROP
_COUNTER_MASK = COUNTER_LIMIT - 1
_TAG_AT = COUNTER_FIELD_BYTES + 1
_ZERO_SLOT = bytes(SLOT_BYTES)


class RelayForward(Lane):
    """Opens one layer of forward packets, at any hop."""

    __slots__ = ("_chain",)

    def __init__(self, root: bytes, suite: int, lane: int) -> None:
        """`root` is this hop's, 32 bytes; it is not kept."""
        super().__init__(suite, lane)
        self._chain = checked_receive_chain(root, forward_label(lane), self._suite, lane)

    def expire(self, now: float) -> None:
        """Erase keys that are past their time; `open_many` does so too. May be called any time."""
        self._chain.expire(now)

    def open_many(self, packets: Sequence[bytes], now: float) -> list[Opened | None]:
        """Open packets in order; one entry for each, None for one that was refused (see `failures` and
        `dropped`)."""
        out: list[Opened | None] = []
        chain = self._chain
        chain.expire(now)
        sizes, shift, join, from_bytes = self._sizes, self._suite.stream_shift, b"".join, int.from_bytes
        used: EpochKeys | None = None
        for packet in packets:
            if self.broken:
                out.append(None)
                continue
            if len(packet) not in sizes:
                self._fail()
                out.append(None)
                continue
            head = packet[:_TAG_AT]
            counter = from_bytes(head, "little") & _COUNTER_MASK
            keys = chain.find(counter)
            if keys is None:
                self._refuse(chain, counter)
                out.append(None)
                continue
            if keys is not used:
                used, decrypt = keys, keys.aead.decrypt
                reset, update = keys.stream.reset_nonce, keys.stream.update
            rest = packet[SLOT_BYTES:FORWARD_HEADER_BYTES]
            if len(packet) == UNIT:
                sealed = packet[FORWARD_HEADER_BYTES:] + packet[_TAG_AT:SLOT_BYTES]
            else:  # one copy of a train, not two
                sealed = join((memoryview(packet)[FORWARD_HEADER_BYTES:], packet[_TAG_AT:SLOT_BYTES]))
            try:
                body = decrypt((counter << AEAD_NONCE_SHIFT).to_bytes(12, "little"), sealed, head + rest)
            except InvalidTag:
                self._fail()
                out.append(None)
                continue
            chain.accept(counter, keys, now)
            reset((counter << shift).to_bytes(16, "little"))
            # The command's byte rides behind the header through the same call.
            header = update(join((rest, _ZERO_SLOT, head[COUNTER_FIELD_BYTES:])))
            command = header[FORWARD_HEADER_BYTES]
            if command == _FORWARD:
                out.append(Opened(_FORWARD, join((header[:FORWARD_HEADER_BYTES], body))))
            elif command == _DELIVER:
                out.append(Opened(_DELIVER, body))
            elif command == _DROP:
                out.append(Opened(_DROP, b""))
            else:
                self._fail()
                out.append(None)
        return out


class _BackwardSender(Lane):
    """What relay and exit share backward: a counter for every packet out."""

    __slots__ = ("_chain",)

    def __init__(self, root: bytes, suite: int, lane: int) -> None:
        """`root` is this hop's, 32 bytes; it is not kept."""
        super().__init__(suite, lane)
        self._chain = SendChain(root, backward_label(lane), self._suite)

    def expire(self, now: float) -> None:
        """Leave an epoch that has had its time. May be called any time."""
        self._chain.expire(now)

    def _count(self, wanted: int, now: float) -> tuple[EpochKeys, int, int]:
        """Reserve up to `wanted` counters of one epoch: keys, the first counter, how many. None left breaks
        the lane."""
        chain = self._chain
        count = min(chain.prepare(now), wanted)
        first = chain.counter + 1
        chain.counter += count
        if not count:
            self.broken = True
        return chain.keys, first, count


class RelayBackward(_BackwardSender):
    """Adds a relay's stream layer to backward packets."""

    __slots__ = ()

    def wrap_many(self, packets: Sequence[bytes], now: float) -> list[bytes]:
        """Wrap packets, in order, for the next link towards the client.

        A packet of a wrong length is left out and counted. Once `broken`, nothing comes out.
        """
        sizes, shift, join = self._sizes, self._suite.stream_shift, b"".join
        for packet in packets:
            if len(packet) not in sizes:
                self._fail()
        if self.failures:
            packets = [packet for packet in packets if len(packet) in sizes]
        out: list[bytes] = []
        while len(out) < len(packets) and not self.broken:
            keys, counter, count = self._count(len(packets) - len(out), now)
            reset, update = keys.stream.reset_nonce, keys.stream.update
            for packet in packets[len(out) : len(out) + count]:
                reset((counter << shift).to_bytes(16, "little"))
                head = counter.to_bytes(BACKWARD_COUNTER_BYTES, "little")
                kept = packet[:BACKWARD_KEPT_BYTES]
                if len(packet) == UNIT:
                    out.append(head + update(kept + packet[BACKWARD_HEADER_BYTES:]))
                else:  # a second call costs less than copying a train
                    out.append(join((head, update(kept), update(memoryview(packet)[BACKWARD_HEADER_BYTES:]))))
                counter += 1
        return out


class ExitBackward(_BackwardSender):
    """Seals bodies for the way back to the client, at the last hop."""

    __slots__ = ("_rng",)

    def __init__(self, root: bytes, suite: int, lane: int, rng: Callable[[int], bytes]) -> None:
        """`rng` returns as many bytes as asked for; the system's (os.urandom) outside of tests."""
        super().__init__(root, suite, lane)
        self._rng = rng

    def seal_many(self, bodies: Sequence[bytes], now: float) -> list[bytes]:
        """Seal bodies of exactly `circuits.inner.body_capacity(BACKWARD, units)` bytes, in order.

        Raises ValueError for another length. Once `broken` (counters used up), nothing comes out.
        """
        sizes, join = self._sizes, b"".join
        for body in bodies:
            if len(body) + BACKWARD_OVERHEAD_BYTES not in sizes:
                raise ValueError(f"a backward body of {len(body)} bytes")
        out: list[bytes] = []
        filler = self._rng(BACKWARD_KEPT_BYTES * len(bodies)) if bodies else b""
        at = 0
        while len(out) < len(bodies) and not self.broken:
            keys, counter, count = self._count(len(bodies) - len(out), now)
            encrypt = keys.aead.encrypt
            for body in bodies[len(out) : len(out) + count]:
                head = counter.to_bytes(BACKWARD_COUNTER_BYTES, "little")
                nonce = (counter << AEAD_NONCE_SHIFT).to_bytes(12, "little")
                sealed = memoryview(encrypt(nonce, body, head))
                following = at + BACKWARD_KEPT_BYTES
                out.append(join((head, filler[at:following], sealed[-TAG_BYTES:], sealed[:-TAG_BYTES])))
                at = following
                counter += 1
        return out
