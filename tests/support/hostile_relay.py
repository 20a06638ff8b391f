"""An adversarial relay for tests: a real relay process whose links do mischief when they are told to.

    python hostile_relay.py relay|exit --config FILE

It is asked over its control socket: method `mischief` with {"mode": NAME, "rate": share}; mode "" is honest
again. The answer to `mischief` and `status` tells how often something was done (`done`).
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from overlay.engine import lanes
from overlay.links.backends import qh3_backend
from overlay.links.backends.base import MAX_STREAMS, QuicFaultError, StreamLimitError
from overlay.links.constants import CONTROL_STREAM, LINK_FRAME
from overlay.links.io.endpoint import DialError
from overlay.links.link import Link
from overlay.messages import Build, Built, Destroy, encode_control
from overlay.node import relay as relay_module
from overlay.node.relay import RelayNode

SEED = int(os.environ.get("HOSTILE_SEED", "1"))
rng = random.Random(SEED)
done: Counter[str] = Counter()
state: dict[str, Any] = {"mode": "", "rate": 1.0}
known_ids: dict[Link, list[int]] = {}
held: dict[Link, list[bytes]] = {}
delayed: deque[tuple[float, Link, int | None, list[bytes]]] = deque()
DELAY_S = 0.15
NEIGHBOURLY = (
    *("flood datagrams", "wrong sizes", "flood control", "garbage control", "oversized control"),
    *("unreadable control", "garbage streams"),
)

send_datagrams = Link.send_datagrams
send_stream = Link.send_stream
attach = lanes.LinkLanes.attach


def wants(*modes: str) -> bool:
    return state["mode"] in modes and rng.random() < state["rate"]


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(changed) // 2, len(changed))] ^= 1 << rng.randrange(8)
    done["flip"] += 1
    return bytes(changed)


def bad_send_datagrams(self: Link, frames: list[bytes]) -> int:
    mode = state["mode"]
    if not frames or not mode or not self.is_up:
        return send_datagrams(self, frames)
    taken = len(frames)
    if mode == "flip":
        frames = [flipped(frame) if rng.random() < state["rate"] else frame for frame in frames]
    elif mode == "drop":
        kept = [frame for frame in frames if rng.random() >= state["rate"]]
        done["drop"] += taken - len(kept)
        frames = kept
    elif mode == "duplicate":
        frames = [frame for frame in frames for _ in range(3)]
        done["duplicate"] += taken
    elif mode == "reorder":
        waiting = held.setdefault(self, [])
        waiting += frames
        if len(waiting) < 4 and rng.random() < 0.5:
            return taken
        frames, held[self] = waiting, []
        rng.shuffle(frames)
        done["reorder"] += len(frames)
    elif mode == "delay":
        delayed.append((trio.current_time() + DELAY_S, self, None, list(frames)))
        return taken
    send_datagrams(self, frames)
    return taken


def bad_send_stream(self: Link, stream_id: int, data: bytes, fin: bool = False) -> None:
    mode = state["mode"]
    if mode and len(data) > LINK_FRAME - 5:
        if wants("flip"):
            data = flipped(data)
        elif wants("drop"):
            done["drop"] += 1
            return
        elif wants("duplicate"):
            done["duplicate"] += 1
            send_stream(self, stream_id, data)
        elif mode == "delay":
            delayed.append((trio.current_time() + DELAY_S, self, stream_id, [data]))
            return
    send_stream(self, stream_id, data, fin)


async def send_delayed(node: RelayNode) -> None:
    """In order, each DELAY_S after it was given."""
    while True:
        await trio.sleep(0.005)
        while delayed and delayed[0][0] <= trio.current_time():
            _, link, stream_id, parts = delayed.popleft()
            done["delay"] += 1
            if stream_id is None:
                send_datagrams(link, parts)
            else:
                send_stream(link, stream_id, parts[0])
        node.endpoint.flush()


def bad_attach(self: lanes.LinkLanes, circuit_id: int, flow: Any) -> lanes.End:
    end = attach(self, circuit_id, flow)
    ids = known_ids.setdefault(self.link, [])  # type: ignore[arg-type]
    ids.append(circuit_id)
    del ids[:-50]
    return end


original_send = RelayNode.send


def bad_send(self: RelayNode, link: Link, message: Any) -> None:
    original_send(self, link, message)
    if isinstance(message, Build) and state["mode"] == "replay":
        for n in range(20):
            circuit_id = (message.circuit_id + 1 + n) & 0x7FFF_FFFF | message.circuit_id & 0x8000_0000
            original_send(self, link, Build(circuit_id, message.records))
            original_send(self, link, message)
            done["replay"] += 2
    elif isinstance(message, Built) and wants("wrong built"):
        original_send(self, link, Built(message.circuit_id, rng.randbytes(5952)))
        done["wrong built"] += 1


async def keep_neighbours(node: RelayNode) -> None:
    """A link to every relay of the network, whatever they close."""
    while True:
        await trio.sleep(0.1)
        for entry in node.directory if state["mode"] in NEIGHBOURLY else ():
            descriptor = entry.descriptor
            if descriptor.identity not in (node.identity.node_id, *node._links):
                address = descriptor.addresses[0]
                with suppress(DialError):
                    await node.endpoint.dial((address.ip, address.port), descriptor.identity)
                    done["dialled"] += 1


async def pester(node: RelayNode) -> None:
    """What needs no occasion: floods and garbage on every link."""
    while True:
        await trio.sleep(0.02)
        mode = state["mode"]
        links = [link for link in node._all_links if link.is_up]
        for link in links if mode else []:
            with suppress(StreamLimitError, QuicFaultError):
                pester_link(link, mode)
        node.endpoint.flush()


def pester_link(link: Link, mode: str) -> None:
    ids = known_ids.get(link) or [1]
    if mode == "flood datagrams":
        frames = [
            rng.choice([rng.randbytes(4), rng.choice(ids).to_bytes(4, "big")]) + rng.randbytes(LINK_FRAME - 4)
            for _ in range(4)
        ]
        done[mode] += send_datagrams(link, frames * 10)
    elif mode == "wrong sizes":
        link._connection.send_datagrams([b"", b"x", bytes(LINK_FRAME - 1), bytes(LINK_FRAME // 2)])
        link._owner.mark_dirty(link)
        done[mode] += 4
    elif mode == "flood control":
        for _ in range(40):
            circuit_id = rng.choice([rng.getrandbits(32), 0])
            kind = rng.randrange(3)
            message: Any = Destroy(circuit_id, rng.randrange(65536))
            if kind == 1:
                message = Built(circuit_id, rng.randbytes(100))
            elif kind == 2:
                message = Build(circuit_id, rng.randbytes(5952))
            link.send_control(encode_control(message))
            done[mode] += 1
    elif mode == "garbage control":
        done[mode] += 1
        link._connection.send_stream(CONTROL_STREAM, rng.randbytes(3000), False)
        link._owner.mark_dirty(link)
    elif mode == "oversized control":
        done[mode] += 1
        link._connection.send_stream(CONTROL_STREAM, b"\xff\xff\xff\xff" + bytes(4000), False)
        link._owner.mark_dirty(link)
    elif mode == "unreadable control":
        done[mode] += 1
        link.send_control(b"\x93\x20" + rng.randbytes(30))
    elif mode == "garbage streams":
        for _ in range(5):
            head = rng.choice([rng.choice(ids).to_bytes(4, "big"), rng.randbytes(4), bytes(4), b""])
            send_stream(
                link, link.open_stream(), head + rng.randbytes(rng.randrange(2000)), rng.random() < 0.3
            )
            done[mode] += 1


def end_streams(self: lanes.LinkLanes, now: float) -> None:
    if state["mode"] == "no credits":
        self.grants.clear()
        done["no credits"] += 1
    pump(self, now)


pump = lanes.LinkLanes.pump
original_handle = relay_module._Local.handle


async def handle(self: Any, method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "mischief":
        before = state["mode"]
        state["mode"], state["rate"] = str(params.get("mode", "")), float(params.get("rate", 1.0))
        if "no streams" in (before, state["mode"]):
            # What a peer may open is settled with the connection: begin with new ones.
            qh3_backend.MAX_STREAMS = 0 if state["mode"] else MAX_STREAMS  # type: ignore[misc]
            for link in list(self._node._all_links):
                link.close()
            self._node.endpoint.flush()
            done["no streams"] += 1
        return {"done": dict(done)}
    answer = await original_handle(self, method, params)
    if method == "status":
        answer["done"] = dict(done)
    return answer


original_keep = relay_module._keep_time


async def keep_time(node: RelayNode, *rest: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(original_keep, node, *rest)
        nursery.start_soon(pester, node)
        nursery.start_soon(keep_neighbours, node)
        nursery.start_soon(send_delayed, node)


def main() -> None:
    Link.send_datagrams = bad_send_datagrams  # type: ignore[method-assign]
    Link.send_stream = bad_send_stream  # type: ignore[method-assign]
    lanes.LinkLanes.attach = bad_attach  # type: ignore[method-assign]
    lanes.LinkLanes.pump = end_streams  # type: ignore[method-assign]
    RelayNode.send = bad_send  # type: ignore[method-assign]
    relay_module._Local.handle = handle  # type: ignore[method-assign]
    relay_module._keep_time = keep_time
    print(f"hostile relay, seed {SEED}", file=sys.stderr, flush=True)
    from overlay.cli.main import main as hopfare

    hopfare(sys.argv[1:])


if __name__ == "__main__":
    main()
