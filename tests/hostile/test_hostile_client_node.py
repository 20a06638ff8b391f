"""A client's node and what guards do to it, over fake links: nothing raises, and the user is told."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hostile_nodes import (
    Peer,
    StubEndpoint,
    StubLink,
    answer_build,
    builds_on,
    client_node,
    deliver,
    make_peers,
    until,
)
from hypothesis import given
from hypothesis import strategies as st

from circuits.building.messages import ExitAddresses
from overlay.engine.interface import FlowFault
from overlay.errors import FileError
from overlay.messages import Build, Built, Destroy, Goodbye, encode_control
from overlay.node.client import ClientNode
from overlay.socks.circuits import NO_ISOLATION, Destination, Isolation, NoCircuit, NoCircuitKind

WEB = Destination("www.example.test", 443, 0)


async def ready_client(peers: list[Peer], node: ClientNode, endpoint: StubEndpoint) -> StubLink:
    """Answer builds honestly until two circuits stand."""
    done: set[int] = set()
    for _ in range(2):
        (link, build) = await until(lambda: next_build(endpoint, done), "a build")
        done.add(build.circuit_id)
        deliver(node, link, Built(build.circuit_id, answer_build(peers, build.records)))
        await until(lambda: len(node.circuits) >= len(done), "the circuit")
    return link


def next_build(endpoint: StubEndpoint, done: set[int]) -> tuple[StubLink, Build] | None:
    for link in endpoint.links:
        for build in builds_on(link):
            if link.end is None and build.circuit_id not in done:
                return link, build
    return None


async def test_answers_to_builds_that_are_not_there_change_nothing(
    tmp_path: Path, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        link = await ready_client(peers, node, endpoint)
        before = len(link.sent)
        for circuit_id in (0, 1, 1 << 31, 0xFFFF_FFFF):
            deliver(node, link, Built(circuit_id, bytes(5952)))
            deliver(node, link, Destroy(circuit_id, 7))
            deliver(node, link, Build(circuit_id, bytes(5952)))
        deliver(node, link, Goodbye(0, "so long"))
        assert len(node.circuits) == 2
        assert len(link.sent) == before
        assert link.closed is None


async def test_a_message_that_cannot_be_read_costs_the_guard_its_link(
    tmp_path: Path, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        link = await ready_client(peers, node, endpoint)
        node.engine.on_control(link, b"\xff\xff\xff")
        assert link.closed is not None
        node.engine.on_link_closed(link, *link.closed)
        assert node.circuits == {}
        status = node.status()
        assert not status["ready"]
        assert any("link to the guard was lost" in problem for problem in status["problems"])


@pytest.mark.parametrize("answer", ["garbage", "short", "twice", "of another"])
async def test_an_answer_that_is_not_the_relays_is_told_and_another_circuit_is_tried(
    tmp_path: Path, answer: str, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        link, build = await until(lambda: next_build(endpoint, set()), "a build")
        records = answer_build(peers, build.records)
        if answer == "garbage":
            deliver(node, link, Built(build.circuit_id, random.Random(1).randbytes(5952)))
        elif answer == "short":
            deliver(node, link, Built(build.circuit_id, records[:-1]))
        elif answer == "of another":
            other, second = await until(lambda: next_build(endpoint, {build.circuit_id}), "a second build")
            deliver(node, link, Built(build.circuit_id, answer_build(peers, second.records)))
            assert other is link
        else:
            deliver(node, link, Built(build.circuit_id, records))
            deliver(node, link, Built(build.circuit_id, bytes(5952)))
            await until(lambda: node.circuits, "the circuit")
            deliver(node, link, Built(build.circuit_id, bytes(5952)))
            assert len(node.circuits) == 1
            return
        await until(lambda: node.last_failure, "word of the failure")
        assert Destroy(build.circuit_id, 0) in link.sent, "its relays are told to forget it"
        assert (link, build.circuit_id) not in node.builds._attempts
        assert (
            any(node.last_failure in problem for problem in node.status()["problems"])
            or (node.status()["problems"])
        )
        seen = {(id(link), build.circuit_id) for link in endpoint.links for build in builds_on(link)}

        def another() -> bool:
            return any(
                (id(link), build.circuit_id) not in seen
                for link in endpoint.links
                for build in builds_on(link)
            )

        await until(another, "another build", 60)


async def test_a_circuit_that_its_relays_destroy_ends_its_connections(
    tmp_path: Path, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        link = await ready_client(peers, node, endpoint)
        lease = node.leases.lease_now(NO_ISOLATION, WEB)
        assert lease is not None
        ended: list[int] = []
        lease.watch(lambda: ended.append(1))
        wire_id = lease.circuit.wire_id
        deliver(node, link, Destroy(wire_id, 66))
        deliver(node, link, Destroy(wire_id, 66))
        assert ended == [1]
        lease.watch(lambda: ended.append(2))
        assert ended == [1, 2], "whoever comes later is told at once"
        lease.release()
        lease.release()
        assert node.engine._by_address.get(lease.circuit.addresses.ipv4.packed) is None
        await trio.testing.wait_all_tasks_blocked()
        assert lease.source_v4 not in node.builds._namespace.addresses  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", list(FlowFault))
async def test_every_fault_of_a_flow_ends_its_circuit(
    tmp_path: Path, fault: FlowFault, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await ready_client(peers, node, endpoint)
        circuit = next(iter(node.circuits.values()))
        circuit.flow.fail(fault)
        assert circuit.is_closed
        circuit.flow.fail(fault)
        node.on_flow_lost(circuit.flow, fault)
        node.on_echo_reply(circuit.flow, b"12345678")
        assert len(node.circuits) == 1


async def test_a_guard_lost_at_every_stage_leaves_nothing_and_is_told(
    tmp_path: Path, autojump_clock: object
) -> None:
    for stage in ("building", "standing"):
        peers = make_peers()
        async with client_node(peers, tmp_path) as (node, endpoint):
            if stage == "building":
                link, _ = await until(lambda: next_build(endpoint, set()), "a build")
            else:
                link = await ready_client(peers, node, endpoint)
            link.end = (7, "cut")
            node.engine.on_link_closed(link, 7, "the peer stopped answering")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert node.circuits == {}
            assert not [key for key in node.builds._attempts if key[0] is link]
            assert node.links.find(link.peer) is not link
            assert node.status()["problems"]


async def test_no_relay_answers_and_the_proxy_says_so(tmp_path: Path, autojump_clock: object) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        endpoint.answers = {}
        with pytest.raises(NoCircuit) as caught:
            with trio.fail_after(60):
                await node.leases.lease(NO_ISOLATION, WEB)
        assert caught.value.kind in (NoCircuitKind.OFFLINE, NoCircuitKind.NOT_READY)
        assert node.status()["problems"]
        assert not node.status()["ready"]


async def test_a_full_disk_costs_the_guards_file_and_not_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FileError("cannot write guards.json: No space left on device")

    monkeypatch.setattr("overlay.node.client.write_atomic", full)
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await ready_client(peers, node, endpoint)
        assert len(node.circuits) == 2
        assert any("No space left" in problem for problem in node.status()["problems"])
        monkeypatch.undo()
        node._nursery.start_soon(node._save_guards, node.guards.encode())
        await until(lambda: (tmp_path / "guards.json").exists(), "the file")
        assert not any("No space left" in problem for problem in node.status()["problems"])


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
async def test_an_exit_that_gives_an_address_twice_gets_no_second_circuit(
    tmp_path: Path, autojump_clock: object, family: str
) -> None:
    """It could tell by it that two isolated circuits are one customer's."""
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        done: set[int] = set()
        given: ExitAddresses | None = None

        def again(wanted: ExitAddresses) -> ExitAddresses:
            nonlocal given
            given = given or wanted
            if family == "IPv4":
                return replace(wanted, ipv4=given.ipv4)
            return replace(wanted, ipv6=given.ipv6)

        for _ in range(2):
            link, build = await until(lambda: next_build(endpoint, done), "a build")
            done.add(build.circuit_id)
            deliver(node, link, Built(build.circuit_id, answer_build(peers, build.records, again)))
        await until(lambda: "another circuit has" in node.last_failure, "word of it")
        assert len(node.circuits) == 1
        assert len(node.builds._namespace.addresses) == 1  # type: ignore[attr-defined]


@given(seed=st.integers(0, 2**32))
def test_any_messages_of_guards_raise_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(chaos, seed, tmp_path_factory.getbasetemp(), clock=clock)


async def chaos(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    peers = make_peers()
    async with client_node(peers, folder) as (node, endpoint):
        leases: list[Any] = []
        for _ in range(80):
            what = rng.randrange(9)
            links = [link for link in endpoint.links if link.end is None]
            builds = [(link, build) for link in links for build in builds_on(link)]
            if what <= 1 and builds:
                link, build = rng.choice(builds)
                try:
                    records = answer_build(peers, build.records)
                except AssertionError:  # answered before: its relays refuse the replay
                    records = rng.randbytes(5952)
                if rng.random() < 0.2:
                    records = records[:100] + rng.randbytes(len(records) - 100)
                node.engine.on_control(link, encode_control(Built(build.circuit_id, records)))
            elif what == 2 and builds:
                link, build = rng.choice(builds)
                node.engine.on_control(link, encode_control(Destroy(build.circuit_id, rng.randrange(99))))
            elif what == 3 and links and rng.random() < 0.3:
                link = rng.choice(links)
                link.end = (1, "gone")
                node.engine.on_link_closed(link, 1, "gone")
            elif what == 4 and links:
                data = rng.choice([b"\0\0\0\0", rng.randbytes(4)]) + rng.randbytes(60)
                node.engine.on_stream(rng.choice(links), rng.randrange(9) * 4 + 3, [data], rng.random() < 0.3)
            elif what == 5 and builds:
                link, build = rng.choice(builds)
                frames = [build.circuit_id.to_bytes(4, "big") + rng.randbytes(1384) for _ in range(9)]
                node.engine.on_datagrams(link, frames)
            elif what == 6:
                lease = node.leases.lease_now(Isolation(rng.choice([b"", b"a", b"b"])), WEB)
                if lease is not None:
                    leases.append(lease)
                    lease.watch(lambda: None)
            elif what == 7 and leases:
                leases.pop(rng.randrange(len(leases))).release()
            else:
                await trio.lowlevel.checkpoint()
            node.engine.on_batch_end()
            node.status()
            node.list_circuits()
            assert len(node.circuits) == len(node._by_flow) == len(node._by_wire)
        for link in endpoint.links:
            if link.closed is not None or link.end is None:
                link.end = (0, "end")
                node.engine.on_link_closed(link, 0, "end")
        assert all(circuit.link.end is None for circuit in node.circuits.values())
        await node_at_rest(node)


async def node_at_rest(node: ClientNode) -> None:
    node.act(node.pool.close())
    await trio.testing.wait_all_tasks_blocked()
    assert node.circuits == node._by_flow == node._by_wire == {}
    assert node.builds._attempts == node._abandoned == {}
    assert node.engine.budget.used_bytes == 0
    assert node.engine._by_address == {}
    assert node.builds._namespace.addresses == set()  # type: ignore[attr-defined]
