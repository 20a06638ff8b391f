"""A relay's node and what neighbours say to it, over links that are fake: counted, bounded, never raised."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hostile_nodes import Peer, StubLink, builds_on, deliver, make_peers, relay_node, until
from hypothesis import given
from hypothesis import strategies as st

from circuits.building.client import BuildFailed, ClientBuild
from circuits.building.messages import ExitHere
from overlay.config.model import Config
from overlay.errors import FileError
from overlay.messages import Build, Built, Destroy, Goodbye, Hello, Ping, encode_control
from overlay.node.relay import BAD_MESSAGES_LIMIT, MAX_DIALS, refresh_onion_keys
from overlay.node.switch import DESTROY_REFUSED


def client_build(path: list[Peer], now: float) -> ClientBuild:
    import os
    import time

    from circuits.building.client import BuildHop

    hops = [
        BuildHop(peer.identity.node_id, peer.keys.current.public, (f"10.{n}.0.1", 4433), 0)
        for n, peer in ((peer.identity.seed[0], peer) for peer in path)
    ]
    return ClientBuild(hops, ExitHere(), suite=2, lifetime_s=600, rng=os.urandom, now=now, unix_s=time.time())


async def test_messages_that_cannot_be_read_are_counted_and_then_cost_the_link() -> None:
    async with relay_node(make_peers()) as node:
        bad, good = StubLink(), StubLink()
        for link in (bad, good):
            node.engine.on_link_up(link)
        for n in range(BAD_MESSAGES_LIMIT):
            assert bad.closed is None, n
            node.engine.on_control(bad, [b"", b"\xff" * 9, b"\x93\x10", bytes(20_000)][n % 4])
        assert bad.closed == (1, "too many messages that cannot be read")
        assert good.closed is None
        node.engine.on_link_closed(bad, 1, "closed")
        assert node._bad_messages == {}
        assert [link["peer"] for link in node.status()["links"]] == ["customer"]


async def test_messages_that_only_links_use_are_bad_here() -> None:
    async with relay_node(make_peers()) as node:
        link = StubLink()
        node.engine.on_link_up(link)
        for _ in range(BAD_MESSAGES_LIMIT):
            node.on_control(link, encode_control(Hello(False, b"")))
        assert link.closed is not None
        other = StubLink()
        node.engine.on_link_up(other)
        for _ in range(BAD_MESSAGES_LIMIT):
            node.on_control(other, encode_control(Ping(1, b"")))
        assert other.closed is not None


async def test_answers_and_ends_of_circuits_that_are_not_there_change_nothing() -> None:
    peers = make_peers()
    async with relay_node(peers) as node:
        link = StubLink(peers[1].identity.node_id)
        node.engine.on_link_up(link)
        for circuit_id in (0, 1, 7, 1 << 31, 0xFFFF_FFFF):
            deliver(node, link, Built(circuit_id, bytes(5952)))
            deliver(node, link, Built(circuit_id, b""))
            deliver(node, link, Destroy(circuit_id, 65535))
        assert link.sent == []
        assert link.closed is None
        assert node.switch.circuit_count == 0


async def test_a_goodbye_keeps_new_circuits_off_the_link_and_the_old_ones_on() -> None:
    peers = make_peers()
    async with relay_node(peers) as node:
        link = StubLink(peers[1].identity.node_id)
        node.engine.on_link_up(link)
        assert node.find_link(link.peer) is link
        deliver(node, link, Goodbye(0, "maintenance"))
        deliver(node, link, Goodbye(0, "maintenance"))
        assert node.find_link(link.peer) is None
        assert link.closed is None


async def test_a_link_lost_at_every_stage_of_a_build_leaves_nothing() -> None:
    peers = make_peers()
    for stage in ("dialling", "waiting", "standing"):
        for side in ("front", "back"):
            async with relay_node(peers) as node:
                front = StubLink()
                node.engine.on_link_up(front)
                node.endpoint.answers = {  # type: ignore[attr-defined]
                    peer.identity.node_id: StubLink() for peer in peers
                }
                now = trio.current_time()
                build = client_build([peers[0], peers[1], peers[4]], now)
                deliver(node, front, Build(7, build.records))
                if stage == "dialling" and side == "front":
                    node.engine.on_link_closed(front, 0, "gone")
                (back,) = await until(lambda: node.endpoint.links, "the dial")  # type: ignore[attr-defined]
                await trio.testing.wait_all_tasks_blocked()
                if stage == "dialling":
                    assert (len(builds_on(back)) == 0) == (side == "front")
                else:
                    (onward,) = builds_on(back)
                    if stage == "standing":
                        outcome = peers[1].build.handle_build(onward.records, now, build_time())
                        answer = peers[1].build.refuse(outcome.pending, 1, "")  # type: ignore[union-attr]
                        assert answer is not None
                        deliver(node, back, Built(onward.circuit_id, answer.records))
                        assert node.switch.circuit_count == 1
                    lost = front if side == "front" else back
                    node.engine.on_link_closed(lost, 7, "gone")
                    if side == "back":
                        answers = [m for m in front.sent if isinstance(m, Built | Destroy)]
                        assert answers, "the previous neighbour is told"
                    else:
                        assert any(isinstance(m, Destroy) for m in back.sent), "the next neighbour is told"
                for link in (front, back):
                    if link in node._all_links:
                        node.engine.on_link_closed(link, 0, "end of test")
                assert node.switch.circuit_count == 0
                assert node.switch._by_pending == {}
                assert node._meters == {}
                assert node._links == {}
                assert node.engine._lanes == {}
                assert peers[0].build.pending_count == 0


def build_time() -> float:
    import time

    return time.time()


async def test_a_relay_that_cannot_be_dialled_is_named_and_dials_are_bounded() -> None:
    peers = make_peers()
    async with relay_node(peers) as node:
        front = StubLink()
        node.engine.on_link_up(front)
        build = client_build([peers[0], peers[1], peers[4]], trio.current_time())
        deliver(node, front, Build(7, build.records))
        (answer,) = await until(lambda: front.sent, "an answer")
        assert isinstance(answer, Built)
        failed = build.handle_built(answer.records)
        assert isinstance(failed, BuildFailed)
        assert "no answer in time" in failed.sentence
        node._dials.update(bytes([n % 256, n // 256]) * 16 for n in range(MAX_DIALS))
        build = client_build([peers[0], peers[2], peers[4]], trio.current_time())
        deliver(node, front, Build(8, build.records))
        failed = build.handle_built(front.sent[-1].records)  # type: ignore[union-attr]
        assert isinstance(failed, BuildFailed)
        assert "too many dials" in failed.sentence


async def test_a_next_relay_that_answers_nonsense_or_twice_harms_its_circuit_only() -> None:
    peers = make_peers()
    async with relay_node(peers) as node:
        front = StubLink()
        back = StubLink(peers[1].identity.node_id, True)
        for link in (front, back):
            node.engine.on_link_up(link)
        build = client_build([peers[0], peers[1], peers[4]], trio.current_time())
        deliver(node, front, Build(7, build.records))
        (onward,) = builds_on(back)
        deliver(node, front, Built(7, bytes(5952)))  # from the wrong side
        deliver(node, back, Built(onward.circuit_id, b"short"))
        assert isinstance(front.sent[-1], Built)
        failed = build.handle_built(front.sent[-1].records)
        assert isinstance(failed, BuildFailed)
        assert "wrong length" in failed.sentence
        assert back.sent[-1] == Destroy(onward.circuit_id, DESTROY_REFUSED)
        sent = len(front.sent), len(back.sent)
        deliver(node, back, Built(onward.circuit_id, bytes(5952)))
        deliver(node, back, Destroy(onward.circuit_id, 0))
        assert (len(front.sent), len(back.sent)) == sent
        assert node.switch.circuit_count == 0


def noise(rng: random.Random, seen: list[bytes]) -> Iterator[bytes]:
    while True:
        kind = rng.randrange(6)
        circuit_id = rng.choice([0, 7, 8, 1 << 31 | 7, rng.getrandbits(32)])
        if kind == 0:
            yield rng.randbytes(rng.randrange(40))
        elif kind == 1:
            yield encode_control(Build(circuit_id, rng.choice([*seen, rng.randbytes(5952), b""])))
        elif kind == 2:
            yield encode_control(Built(circuit_id, rng.choice([*seen, rng.randbytes(5952), b""])))
        elif kind == 3:
            yield encode_control(Destroy(circuit_id, rng.randrange(100)))
        elif kind == 4:
            yield encode_control(Goodbye(rng.randrange(9), "x" * rng.randrange(200)))
        else:
            raw = bytearray(encode_control(Build(circuit_id, rng.randbytes(60))))
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            yield bytes(raw)


@given(seed=st.integers(0, 2**32))
def test_any_messages_and_packets_on_any_links_raise_nothing(seed: int) -> None:
    trio.run(chaos, seed)


async def chaos(seed: int) -> None:
    rng = random.Random(seed)
    peers = make_peers()
    async with relay_node(peers) as node:
        node.endpoint.answers = {  # type: ignore[attr-defined]
            peer.identity.node_id: StubLink() for peer in peers[:3]
        }
        links: list[StubLink] = []
        seen = [client_build([peers[0], *rng.sample(peers[1:], 2)], 0.0).records for _ in range(3)]
        source = noise(rng, seen)
        for _ in range(120):
            what = rng.randrange(10)
            if what == 0 or not links:
                peer = rng.choice([None, *peers[1:]])
                link = StubLink(peer.identity.node_id if peer else None, rng.random() < 0.5)
                links.append(link)
                node.engine.on_link_up(link)
            elif what == 1:
                gone = rng.choice(links)
                links.remove(gone)
                gone.end = (0, "")
                node.engine.on_link_closed(gone, rng.choice([0, 1]), "gone")
            elif what <= 6:
                node.engine.on_control(rng.choice(links), next(source))
            elif what == 7:
                frames = [rng.choice([b"\0\0\0\7", rng.randbytes(4)]) + rng.randbytes(1384) for _ in range(3)]
                node.engine.on_datagrams(rng.choice(links), frames)
            elif what == 8:
                data = rng.choice([b"\0\0\0\0", b"\0\0\0\7", rng.randbytes(4)]) + rng.randbytes(99)
                node.engine.on_stream(rng.choice(links), rng.randrange(9) * 4 + 2, [data], rng.random() < 0.3)
            else:
                await trio.lowlevel.checkpoint()
                node.switch.handle_timeout(trio.current_time() + rng.choice([0, 9]))
            for link in [link for link in links if link.closed is not None]:
                links.remove(link)
                node.engine.on_link_closed(link, *link.closed)  # type: ignore[misc]
            node.engine.on_batch_end()
            node.status()
        await trio.testing.wait_all_tasks_blocked()
        for link in list(node._all_links):
            node.engine.on_link_closed(link, 0, "end")
        await trio.testing.wait_all_tasks_blocked()
        for link in list(node._all_links):
            node.engine.on_link_closed(link, 0, "end")
        assert node.switch.circuit_count == 0
        assert node.switch._by_pending == {}
        assert node.engine.budget.used_bytes == 0
        assert node._meters == {}
        assert node._bad_messages == {}
        assert node._dials == set()


@pytest.mark.parametrize("count", [5])
async def test_many_links_of_one_peer_leave_the_last_in_use(count: int) -> None:
    peers = make_peers()
    async with relay_node(peers) as node:
        links = [StubLink(peers[1].identity.node_id) for _ in range(count)]
        for link in links:
            node.engine.on_link_up(link)
        assert node.find_link(peers[1].identity.node_id) is links[-1]
        node.engine.on_link_closed(links[0], 1, "old one")
        assert node.find_link(peers[1].identity.node_id) is links[-1]
        node.engine.on_link_closed(links[-1], 1, "the one in use")
        assert node.find_link(peers[1].identity.node_id) in links[1:-1], "another one that is up"
        for link in links[1:-1]:
            node.engine.on_link_closed(link, 1, "the others")
        assert node.find_link(peers[1].identity.node_id) is None


async def test_a_full_disk_leaves_a_relay_with_the_keys_it_has_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FileError("cannot write onion-keys.json: No space left on device")

    config = replace(Config(), state_dir=tmp_path)
    async with relay_node(make_peers()) as node:
        monkeypatch.setattr("overlay.node.io.files.write_atomic", full)
        refresh_onion_keys(node, config)
        (problem,) = node.status()["problems"]
        assert "No space left" in problem
        monkeypatch.undo()
        refresh_onion_keys(node, config)
        assert node.status()["problems"] == []
        (tmp_path / "onion-keys.json").write_text("{")
        refresh_onion_keys(node, config)
        assert "damaged" in node.status()["problems"][0]
