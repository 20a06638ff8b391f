"""What hostile relays, customers and exits do, for nets in memory (engine_net)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from engine_net import CLIENT, Net, tcp4, udp4

from circuits.inner import Direction, body_capacity
from circuits.params import UNIT

SERVER = bytes([203, 0, 113, 7])
Event = tuple
Mischief = Callable[[random.Random, Event, deque], list[Event]]


# -- what a hostile relay does to what it carries ----


def damage(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip(rng: random.Random, event: Event, _: deque) -> list[Event]:
    if event[0] == "datagrams":
        return [("datagrams", [damage(rng, frame) for frame in event[1]])]
    if event[0] == "stream":
        return [(*event[:2], damage(rng, event[2]), event[3])]
    return [event]


def drop(rng: random.Random, event: Event, _: deque) -> list[Event]:
    if event[0] == "datagrams":
        return [("datagrams", [frame for frame in event[1] if rng.random() < 0.5])]
    return [] if rng.random() < 0.5 else [event]


def duplicate(rng: random.Random, event: Event, _: deque) -> list[Event]:
    return [event] * rng.randint(2, 4)


def reorder(rng: random.Random, event: Event, kept: deque) -> list[Event]:
    kept.append(event)
    if len(kept) < 4:
        return []
    out = list(kept)
    kept.clear()
    rng.shuffle(out)
    return out


def replay(rng: random.Random, event: Event, kept: deque) -> list[Event]:
    kept.append(event)
    return [event, rng.choice(kept)]


def cut(rng: random.Random, event: Event, _: deque) -> list[Event]:
    if event[0] != "stream" or not event[2]:
        return [event]
    at = rng.randrange(len(event[2]))
    return [(*event[:2], event[2][:at], event[3]), (*event[:2], event[2][at + rng.randint(0, 3) :], event[3])]


def shorten(rng: random.Random, event: Event, _: deque) -> list[Event]:
    return [(*event[:2], event[2][: -rng.randint(1, 900)], event[3])]


def pad(_rng: random.Random, event: Event, _: deque) -> list[Event]:
    return [(*event[:2], event[2] + b"\0", event[3])]


def lengthen(rng: random.Random, event: Event, _: deque) -> list[Event]:
    if event[0] != "stream":
        return [event]
    return [(*event[:2], event[2] + rng.randbytes(rng.choice([1, UNIT, 49 * UNIT])), event[3])]


def garbage(rng: random.Random, event: Event, _: deque) -> list[Event]:
    circuit = rng.choice([b"\0\0\0\0", b"\0\0\0\1", rng.randbytes(4)])
    noise = [
        ("datagrams", [circuit + rng.randbytes(UNIT) for _ in range(rng.randint(1, 20))]),
        (
            "stream",
            4 * rng.randrange(64) + 2,
            circuit + rng.randbytes(rng.randrange(3000)),
            rng.random() < 0.3,
        ),
        ("stream", 4 * rng.randrange(64) + 2, rng.randbytes(rng.randrange(4)), rng.random() < 0.5),
        ("stream", event[1] if event[0] == "stream" else 2, rng.randbytes(rng.randrange(1, 2000)), False),
    ]
    return [rng.choice(noise), event]


def give_up(rng: random.Random, event: Event, _: deque) -> list[Event]:
    stream_id = event[1] if event[0] == "stream" else 4 * rng.randrange(8) + 2
    ending = rng.choice(["reset", "stop", "fin"])
    if ending == "fin":
        return [event, ("stream", stream_id, b"", True)]
    return [event, (ending, stream_id)]


def grants(rng: random.Random, event: Event, _: deque) -> list[Event]:
    """Credits of every size, also for circuits that are not there, on one stream or on many."""
    units = rng.choice([0, 1, 600, 1 << 20, (1 << 64) - 1])
    record = rng.choice([1, rng.getrandbits(32)]).to_bytes(4, "big") + units.to_bytes(8, "big")
    stream_id = 4 * rng.choice([900, 901]) + 2
    return [("stream", stream_id, b"\0\0\0\0" + record * 3 + record[: rng.randrange(12)], False), event]


MISCHIEF: list[Mischief] = [
    flip,
    drop,
    duplicate,
    reorder,
    replay,
    cut,
    lengthen,
    garbage,
    give_up,
    grants,
]


def close_what_was_closed(net: Net) -> None:
    for pair in net.links:
        if any(link.closed is not None for link in pair):
            for link in pair:
                if not link.is_gone:
                    link.is_gone = True
                    link.outbox.clear()
                    link.owner.engine.on_link_closed(link, 1, "test")


def exchange(net: Net, rng: random.Random, rounds: int) -> set[bytes]:
    """Traffic both ways; what was sent."""
    sent: set[bytes] = set()
    for n in range(rounds):
        up = [
            udp4(CLIENT.v4, SERVER, 53, rng.randbytes(rng.randint(1, 1200))) for _ in range(rng.randint(1, 9))
        ]
        up += [tcp4(CLIENT.v4, SERVER, 443, rng.randbytes(rng.randint(0, 1300)), n) for _ in range(9)]
        down = [udp4(SERVER, CLIENT.v4, 40000, rng.randbytes(rng.randint(1, 1200))) for _ in range(5)]
        down += [tcp4(SERVER, CLIENT.v4, 40000, rng.randbytes(rng.randint(0, 1300)), n) for _ in range(9)]
        sent.update(up, down)
        net.nodes[0].engine.on_tun_packets(up)
        net.nodes[-1].engine.on_tun_packets(down)
        net.run()
        close_what_was_closed(net)
        net.run()
    return sent


# -- what a hostile customer or exit puts into its own circuit ----


def vnet(rng: random.Random) -> bytes:
    """A virtio_net_hdr of hostile figures."""
    flags, kind = rng.choice([0, 1, 2, 255]), rng.choice([0, 1, 3, 4, 5, 0x81, 255])
    numbers = [rng.choice([0, 1, 20, 34, 40, 54, 1400, 65535, rng.getrandbits(16)]) for _ in range(4)]
    return bytes([flags, kind]) + b"".join(number.to_bytes(2, "little") for number in numbers)


def hostile_item(rng: random.Random, packet: bytes) -> bytes:
    kind = rng.randrange(8)
    flags = rng.choice([0, 0, 0, rng.randrange(256)])
    packet = damage(rng, packet) if rng.random() < 0.5 else packet
    length = rng.choice([len(packet), len(packet), rng.getrandbits(16), 0])
    head = vnet(rng) if kind == 2 else b""
    if kind in (4, 5):
        packet, length = rng.randbytes(rng.choice([8, 8, 7, 900])), rng.choice([8, 8, 7, 900])
    return bytes([kind, flags]) + length.to_bytes(2, "big") + head + packet


def hostile_body(rng: random.Random, packet: bytes, direction: Direction, units: int) -> bytes:
    room = body_capacity(direction, units)
    if rng.random() < 0.2:
        return rng.randbytes(room)
    body = b"".join(hostile_item(rng, packet) for _ in range(rng.randint(1, 5)))
    return body[:room].ljust(room, b"\0")
