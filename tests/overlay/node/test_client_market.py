"""The customer's part in the market, in a node between fake links: choices, lies, clocks, looks, the book."""

import time
from pathlib import Path
from typing import Any

import pytest
import trio
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

from circuits.building.client import BuildFailed, FailureKind
from circuits.building.messages import Refusal
from circuits.pool.prober import BURST_ECHOES, BURST_WAIT_S
from circuits.quality import QualityBook
from overlay.errors import ConfigError, FileError
from overlay.identity import format_node_id
from overlay.messages import Build, Built, Destroy
from overlay.node.choices import load_choices
from overlay.node.client import ClientNode
from overlay.node.lease import Circuit, Lease
from overlay.node.market import QUALITY_FILE, load_quality
from payments.tab import CloseReason


async def stand(peers: list[Peer], node: ClientNode, endpoint: StubEndpoint, circuits: int = 2) -> None:
    """Answer builds honestly until so many circuits stand."""
    done: set[int] = set()
    while len(node.circuits) < circuits:
        link, build = await until(lambda: next_build(endpoint, done), "a build")
        done.add(build.circuit_id)
        deliver(node, link, Built(build.circuit_id, answer_build(peers, build.records)))
        await trio.sleep(0.01)


def next_build(endpoint: StubEndpoint, done: set[int]) -> tuple[StubLink, Build] | None:
    for link in endpoint.links:
        for build in builds_on(link):
            if link.end is None and build.circuit_id not in done:
                return link, build
    return None


def any_lease(node: ClientNode) -> tuple[Lease, Circuit]:
    circuit = next(iter(node.circuits.values()))
    return Lease(node, circuit), circuit


async def test_choices_hold_at_once_and_are_kept_if_asked(tmp_path: Path, autojump_clock: object) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        answer = node.market.choose("hops", "2", keep=False)
        assert (answer["name"], answer["value"], answer["kept"]) == ("hops", 2, False)
        assert node.config.client.hops == node.market.constraints().hops == 2
        assert load_choices(tmp_path) == {}
        node.market.choose("client.hops", "4", keep=True)
        assert load_choices(tmp_path) == {"hops": "4"}
        node.market.choose("max_price", "0.05", keep=True)
        assert node.market.constraints().max_price_wei_per_packet == 5 * 10**16 * 1384 // 10**9
        bad = format_node_id(peers[0].identity.node_id)
        node.market.choose("exclude", f"{bad}", keep=False)
        assert node.market.constraints().banned.nodes == {peers[0].identity.node_id}
        shown = node.market.list_choices()
        assert shown["choices"]["exclude"] == [bad]
        assert shown["kept"] == ["hops", "max-price"]
        node.market.choose("hops", None, keep=False)
        assert load_choices(tmp_path) == {"max-price": "0.05"}
        assert node.config.client.hops == 3


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("hops", "9", "from 1 to 4"),
        ("hps", "3", "do you mean hops?"),
        ("socks", "127.0.0.1:9", "cannot be changed while the client runs"),
        ("exit-country", "Germany", "two letters"),
        ("max-price", "cheap", "an amount"),
        ("exclude", "nobody", "a node's name"),
        ("exit-operators", "0x12 34", "an account"),
    ],
)
async def test_wrong_choices_change_nothing_and_say_what_is_right(
    tmp_path: Path, autojump_clock: object, key: str, value: str, hint: str
) -> None:
    async with client_node(make_peers(), tmp_path) as (node, _):
        before = node.config
        with pytest.raises(ConfigError, match=hint):
            node.market.choose(key, value, keep=True)
        assert node.config == before
        assert load_choices(tmp_path) == {}


async def test_choices_that_contradict_are_refused(tmp_path: Path, autojump_clock: object) -> None:
    async with client_node(make_peers(), tmp_path) as (node, _):
        node.market.choose("exit-country", "DE", keep=False)
        with pytest.raises(ConfigError, match="exit_country"):
            node.market.choose("exclude-countries", "DE", keep=False)
        assert node.config.client.exclude_countries == ()


async def test_rules_that_leave_nobody_are_told_with_counts(tmp_path: Path, autojump_clock: object) -> None:
    async with client_node(make_peers(), tmp_path) as (node, _):
        answer = node.market.choose("exit-country", "DE", keep=False)
        assert answer["no_path"]["sentence"] == "no exit in the directory is in DE (there are: unknown)"
        assert answer["no_path"]["steps"][-1] == {"rule": "is in DE", "left": 0}
        assert any("is in DE" in problem for problem in node.status()["problems"])


async def test_an_exit_that_refuses_what_it_lists_is_found_out(
    tmp_path: Path, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        lease, circuit = any_lease(node)
        leaves = circuit.path.exit.node_id
        for host in ("10.0.0.1", "127.0.0.1", "192.168.1.1", "fe80::1"):
            lease.note_refused(host, 443)  # refused by every exit, as it should be
        for host in ("8.8.8.1", "8.8.8.2"):
            lease.note_refused(host, 443)
        lease.note_opened(443)
        lease.note_refused("8.8.8.3", 443)
        assert node.market.book.figures(leaves, time.time()).lies == 0
        lease.note_refused("8.8.8.4", 443)
        lease.note_refused("8.8.8.5", 443)
        assert node.market.book.figures(leaves, time.time()).lies == pytest.approx(1, abs=0.01)
        assert all(
            row.state.value == "draining" or row.relays[-1].node_id != leaves
            for row in node.pool.status(trio.current_time())
        )


async def test_two_relays_that_call_our_clock_wrong_are_believed(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with client_node(make_peers(), tmp_path) as (node, _):
        failed = BuildFailed(FailureKind.REFUSED, 1, (1,), Refusal.CLOCK, "hop 2: its clock and ours differ")
        for relay in (b"a" * 32, b"a" * 32):
            assert node.market.note_build_failed((b"g" * 32, relay, b"e" * 32), failed)
        assert not any("clock" in problem for problem in node.market.problems())
        assert node.market.note_build_failed((b"g" * 32, b"b" * 32, b"e" * 32), failed)
        assert any("clock is wrong" in problem for problem in node.market.problems())
        await trio.sleep(700)
        assert not any("clock" in problem for problem in node.market.problems())
        other = BuildFailed(FailureKind.REFUSED, 1, (1,), Refusal.BUSY, "hop 2: it has too much to do")
        assert not node.market.note_build_failed((b"g" * 32, b"a" * 32, b"e" * 32), other)


async def test_the_market_lists_what_is_offered_and_what_was_seen(
    tmp_path: Path, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        rows = {row["name"]: row for row in (await node.market.rows())["rows"]}
        assert set(rows) == {peer.identity.name for peer in peers}
        _, circuit = any_lease(node)
        for node_id in circuit.path.node_ids:
            assert rows[format_node_id(node_id)]["builds"] >= 1
        unused = [row for row in rows.values() if row["quality"] is None]
        assert all(row["success"] is None for row in unused)
        assert node.status()["relays_measured"] == len(node.market.book) >= 3


async def test_a_guard_with_a_poor_record_is_named(tmp_path: Path, autojump_clock: object) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        (guard,) = node.list_guards()
        assert node.market.problems() == []
        for _ in range(40):
            node.market.book.note_failed((guard,), time.time())
        assert any(format_node_id(guard) in problem for problem in node.market.problems())
        link = node.links.find(guard)
        assert link is not None
        node.market.note_unpayable(link, CloseReason.PURSE_EMPTY)
        assert node.market.book.figures(guard, time.time()).disputes == 0
        node.market.note_unpayable(link, CloseReason.DISPUTE)
        assert node.market.book.figures(guard, time.time()).disputes == pytest.approx(1, abs=0.01)


async def test_a_full_disk_costs_the_book_and_not_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FileError("cannot write quality: No space left on device")

    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        monkeypatch.setattr("overlay.node.market.write_atomic", full)
        node.market.save()
        assert any("No space left" in problem for problem in node.status()["problems"])
        monkeypatch.undo()
        node.market.book.note_works([b"x" * 32], time.time())
        node.market.save()
        assert not any("No space left" in problem for problem in node.status()["problems"])
        file = tmp_path / QUALITY_FILE
        assert file.stat().st_mode & 0o777 == 0o600
        assert len(load_quality(file, time.time())) == len(node.market.book)


def test_a_damaged_book_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / QUALITY_FILE
    assert len(load_quality(file, 0.0)) == 0
    file.write_bytes(b"nonsense")
    file.chmod(0o600)
    assert len(load_quality(file, 0.0)) == 0
    assert not file.exists()
    assert (tmp_path / "quality.damaged").read_bytes() == b"nonsense"
    file.write_bytes(QualityBook().encode())
    file.chmod(0o644)
    with pytest.raises(FileError, match="chmod 600"):
        load_quality(file, 0.0)


async def test_looks_are_taken_while_nothing_goes_on_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    peers = make_peers(relays=6)
    async with client_node(peers, tmp_path) as (node, endpoint):
        burst: list[tuple[Any, bytes]] = []
        soon = trio.lowlevel.current_trio_token().run_sync_soon

        def echo(flow: Any, token: bytes) -> None:
            if flow in node._by_flow:
                soon(node.on_echo_reply, flow, token)
            else:
                burst.append((flow, token))

        monkeypatch.setattr(node.engine, "echo", echo)
        await stand(peers, node, endpoint)
        node.ready.set()
        node._nursery.start_soon(node.market.run)
        links = list(endpoint.links)
        done = {build.circuit_id for link in links for build in builds_on(link)}
        node.market.choose("probes-per-hour", "60", keep=False)
        await trio.sleep(58.0)
        assert next_build(endpoint, done) is None
        link, build = await until(lambda: next_build(endpoint, done), "a look's build", 20.0)
        assert endpoint.links == links, "over the guard that is there"
        deliver(node, link, Built(build.circuit_id, answer_build(peers, build.records)))
        await until(lambda: len(burst) == BURST_ECHOES, "the burst of echoes")
        await trio.sleep(0.05)
        for flow, token in burst[:-2]:
            node.on_echo_reply(flow, token)
        await trio.sleep(BURST_WAIT_S + 0.1)
        ended = [message.circuit_id for message in link.sent if isinstance(message, Destroy)]
        assert ended == [build.circuit_id]
        assert len(node.circuits) == 2
        assert not node.market._looks
        assert node.status()["looks"] == 1
        measured = [row for row in (await node.market.rows())["rows"] if row["measured_bytes_per_s"]]
        assert len(measured) >= 3
        assert all(row["loss"] > 0 for row in measured)

        # The next one fails, and then the customer is busy.
        done.add(build.circuit_id)
        await trio.sleep(50.0)
        link, build = await until(lambda: next_build(endpoint, done), "another look", 20.0)
        deliver(node, link, Destroy(build.circuit_id, 2))
        lease, circuit = any_lease(node)
        lease.watch(lambda: None)
        looks = node.status()["looks"]
        for _ in range(40):
            await trio.sleep(5.0)
            node.market.note_moved(circuit, trio.current_time())
        assert node.status()["looks"] == looks


async def test_an_error_of_ours_in_the_market_does_not_end_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        monkeypatch.setattr("overlay.node.market.SMALL", 1)
        used: list[Any] = []
        failed: list[str] = []
        monkeypatch.setattr(node.pool, "set_index", lambda index, now: used.append(index) or [])
        rightly = node.market._build_index

        def fail_once() -> Any:
            if "index" in failed:
                return rightly()
            failed.append("index")
            raise KeyError("a bug")

        async def fail(now: float) -> None:
            failed.append("look")
            raise KeyError("a bug")

        monkeypatch.setattr(node.market, "_build_index", fail_once)
        monkeypatch.setattr(node.market, "_look", fail)
        node._nursery.start_soon(node.market.run)
        node.market.renew_index()
        # The virtual clock does not wait for threads.
        deadline_s = time.monotonic() + 60
        while not used and time.monotonic() < deadline_s:
            await trio.to_thread.run_sync(time.sleep, 0.01)
        assert used, "what was asked for when it failed is made later"
        await trio.sleep(200.0)
        assert failed.count("look") > 1, "begun again"


async def test_a_large_directory_is_indexed_beside_the_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    peers = make_peers()
    async with client_node(peers, tmp_path) as (node, endpoint):
        await stand(peers, node, endpoint)
        node._nursery.start_soon(node.market.run)
        used: list[Any] = []
        monkeypatch.setattr(node.pool, "set_index", lambda index, now: used.append(index) or [])
        node.market.renew_index()
        assert len(used) == 1, "a small one at once"
        monkeypatch.setattr("overlay.node.market.SMALL", 1)
        node.market.renew_index()
        node.market.renew_index()
        assert len(used) == 1
        # The virtual clock does not wait for threads.
        deadline_s = time.monotonic() + 60
        while len(used) < 2 and time.monotonic() < deadline_s:
            await trio.to_thread.run_sync(time.sleep, 0.01)
        assert len(used[1]) == len(peers)
