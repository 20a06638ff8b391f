"""The client's part: seal all layers of forward packets, open all layers of backward ones
(docs/protocol/onion.md, "Packets").

Lengths, `now` and ownership as in circuits.layers.relay. Headers are handled as little-endian integers: their
fields are then shifts and masks, and one exclusive-or does a whole header.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from circuits.keychain import EpochKeys, ReceiveChain, SendChain
from circuits.layers.lane import Command, Lane, backward_label, checked_receive_chain, forward_label
from circuits.params import (
    BACKWARD_COUNTER_BYTES,
    BACKWARD_HEADER_BYTES,
    COUNTER_BITS,
    FORWARD_HEADER_BYTES,
    FORWARD_OVERHEAD_BYTES,
    N_MAX,
    REST_BYTES,
    SLOT_BYTES,
    STREAM_HEADER_BYTES,
    TAG_BYTES,
)
from circuits.suites import AEAD_NONCE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COUNTER = struct.Struct("<Q")
_ZERO_STREAM = bytes(STREAM_HEADER_BYTES)
_ZERO_COUNTER = bytes(BACKWARD_COUNTER_BYTES)
_REST_MASK = (1 << 8 * REST_BYTES) - 1
_COMMAND_SHIFT = 8 * FORWARD_HEADER_BYTES


def _check_roots(roots: Sequence[bytes]) -> None:
    if not 1 <= len(roots) <= N_MAX:
        raise ValueError(f"a path has 1 to {N_MAX} hops, not {len(roots)}")


class ClientForward(Lane):
    """Seals bodies for a path of 1 to N_MAX hops."""

    __slots__ = ("_chains", "_rng")

    def __init__(self, roots: Sequence[bytes], suite: int, lane: int, rng: Callable[[int], bytes]) -> None:
        """`roots`: the guard's first. `rng` returns as many bytes as asked for; os.urandom outside of
        tests."""
        super().__init__(suite, lane)
        _check_roots(roots)
        self._chains = [SendChain(root, forward_label(lane), self._suite) for root in roots]
        self._rng = rng

    def expire(self, now: float) -> None:
        """Leave epochs that have had their time. May be called any time."""
        for chain in self._chains:
            chain.expire(now)

    def seal_many(
        self,
        bodies: Sequence[bytes],
        now: float,
        hop: int | None = None,
        command: Command = Command.DELIVER,
    ) -> list[bytes]:
        """Seal bodies of exactly `circuits.inner.body_capacity(FORWARD, units)` bytes, in order, for the
        first link.

        `hop`, 1 for the guard, is where `command` is carried out: the last one unless given. Cover traffic is
        DROP at any. Raises ValueError for another length or no such hop. Once `broken` (counters used up),
        nothing comes out.
        """
        for body in bodies:
            if len(body) + FORWARD_OVERHEAD_BYTES not in self._sizes:
                raise ValueError(f"a forward body of {len(body)} bytes")
        hops = len(self._chains) if hop is None else hop
        if not 1 <= hops <= len(self._chains):
            raise ValueError(f"hop {hop} of {len(self._chains)}")
        chains = self._chains[:hops]
        out: list[bytes] = []
        while len(out) < len(bodies) and not self.broken:
            wanted = len(bodies) - len(out)
            count = min(wanted, *(chain.prepare(now) for chain in chains))
            if not count:
                self.broken = True
                break
            out += self._seal_run(chains, bodies[len(out) : len(out) + count], command)
        return out

    def _seal_run(
        self, chains: Sequence[SendChain], bodies: Sequence[bytes], command: Command
    ) -> list[bytes]:
        """Seal bodies whose counters are all in the present epochs."""
        join, shift, from_bytes = b"".join, self._suite.stream_shift, int.from_bytes
        last = len(chains) - 1
        random_bytes = SLOT_BYTES * (N_MAX - 1 - last)
        filler = self._rng(random_bytes * len(bodies)) if random_bytes else b""
        layers = []
        for index, chain in enumerate(chains):
            stream = chain.keys.stream
            # Of hop i's stream, the last 24i bytes continue the filler of hop i + 1.
            filler_shift = 8 * (FORWARD_HEADER_BYTES - SLOT_BYTES * (index + 1))
            filler_mask = (1 << 8 * SLOT_BYTES * (index + 1)) - 1
            layers.append((chain.counter + 1, stream.reset_nonce, stream.update, filler_shift, filler_mask))
        encrypts = [chain.keys.aead.encrypt for chain in chains]
        out = []
        for offset, body in enumerate(bodies):
            streams = []
            phi = 0
            for first, reset, update, filler_shift, filler_mask in layers:
                reset((first + offset << shift).to_bytes(16, "little"))
                keystream = from_bytes(update(_ZERO_STREAM), "little")
                streams.append(keystream)
                if len(streams) <= last:
                    phi ^= keystream >> filler_shift & filler_mask
            tail = from_bytes(filler[random_bytes * offset : random_bytes * (offset + 1)], "little")
            rest = (tail | phi << 8 * random_bytes).to_bytes(REST_BYTES, "little")
            data: bytes | memoryview = body
            at = last
            ordered = command
            while True:
                counter = layers[at][0] + offset
                keystream = streams[at]
                slot = counter | (ordered ^ keystream >> _COMMAND_SHIFT) << COUNTER_BITS
                head = slot.to_bytes(8, "little")
                sealed = memoryview(
                    encrypts[at]((counter << AEAD_NONCE_SHIFT).to_bytes(12, "little"), data, head + rest)
                )
                data = sealed[:-TAG_BYTES]
                if at == 0:
                    break
                at -= 1
                ordered = Command.FORWARD
                header = from_bytes(join((head, sealed[-TAG_BYTES:], rest)), "little")
                rest = ((header ^ streams[at]) & _REST_MASK).to_bytes(REST_BYTES, "little")
            out.append(join((head, sealed[-TAG_BYTES:], rest, data)))
        for chain in chains:
            chain.counter += len(bodies)
        return out


class ClientBackward(Lane):
    """Opens packets that come back over a path of 1 to N_MAX hops."""

    __slots__ = ("_exit", "_relays")

    def __init__(self, roots: Sequence[bytes], suite: int, lane: int) -> None:
        """`roots`: the guard's first."""
        super().__init__(suite, lane)
        _check_roots(roots)
        label = backward_label(lane)
        # Only the exit's packets are authentic in themselves: a relay's counter is proved by what it decrypts
        # to.
        self._relays = [ReceiveChain(root, label, self._suite) for root in roots[:-1]]
        self._exit = checked_receive_chain(roots[-1], label, self._suite, lane)

    def expire(self, now: float) -> None:
        """Erase keys that are past their time; `open_many` does so too. May be called any time."""
        for chain in self._relays:
            chain.expire(now)
        self._exit.expire(now)

    def open_many(self, packets: Sequence[bytes], now: float) -> list[bytes | None]:
        """Open packets in order; one body for each, None for one that was refused (see `failures` and
        `dropped`)."""
        self.expire(now)
        return [self._open(packet, now) for packet in packets]

    def _open(self, packet: bytes, now: float) -> bytes | None:
        if self.broken:
            return None
        if len(packet) not in self._sizes:
            self._fail()
            return None
        shift = self._suite.stream_shift
        counter: int = _COUNTER.unpack_from(packet)[0]
        words = packet[BACKWARD_COUNTER_BYTES:BACKWARD_HEADER_BYTES]
        tail: bytes | memoryview = memoryview(packet)[BACKWARD_HEADER_BYTES:]
        found: list[tuple[ReceiveChain, int, EpochKeys]] = []
        for chain in self._relays:
            keys = chain.find(counter)
            if keys is None:
                self._refuse(chain, counter)
                return None
            found.append((chain, counter, keys))
            stream = keys.stream
            stream.reset_nonce((counter << shift).to_bytes(16, "little"))
            words = stream.update(words)
            tail = stream.update(tail)
            counter = _COUNTER.unpack_from(words)[0]
            # The relay dropped the last 8 bytes that it got. They stay unknown, and no later hop's counter is
            # among them.
            words = words[BACKWARD_COUNTER_BYTES:] + _ZERO_COUNTER
        keys = self._exit.find(counter)
        if keys is None:
            self._refuse(self._exit, counter)
            return None
        try:
            body = keys.aead.decrypt(
                (counter << AEAD_NONCE_SHIFT).to_bytes(12, "little"),
                b"".join((memoryview(tail)[TAG_BYTES:], tail[:TAG_BYTES])),
                counter.to_bytes(BACKWARD_COUNTER_BYTES, "little"),
            )
        except InvalidTag:
            self._fail()
            return None
        self._exit.accept(counter, keys, now)
        for chain, counter, keys in found:
            chain.accept(counter, keys, now)
        return body
