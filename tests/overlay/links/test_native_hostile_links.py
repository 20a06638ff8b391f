"""Peers that do not do as they should, and bad days, on links of the native engine."""

import contextlib
import os

import pytest
import trio
from engine_chain import HAS_NATIVE
from links_net import ACCEPTOR, PAIR_IDS, PAIRS, Pair
from native_endpoints import HOST, Watch, open_one, two
from udp_relay import udp_relay

from overlay.engine.io.native_links import open_native_links
from overlay.engine.native import NativeEngine
from overlay.links.backends import aioquic_backend, qh3_backend
from overlay.links.constants import CloseCode
from overlay.links.framing import encode_control_frame
from overlay.links.io.endpoint import DialError
from overlay.links.limits import LinkLimits
from overlay.links.machine import LinkMachine
from overlay.messages import Goodbye, encode_control

native = pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
BACKENDS = {"qh3": qh3_backend, "aioquic": aioquic_backend}
LONG = encode_control(Goodbye(1, "x" * 200))
FRAME = encode_control_frame(LONG)
LAST = encode_control(Goodbye(2, "the last"))
MIB = 1 << 20


@native
@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("dials", ["native", "other"])
async def test_a_peer_without_datagrams_is_refused_with_a_sentence(kind, dials, monkeypatch):
    monkeypatch.setattr(BACKENDS[kind], "UDP_PAYLOAD", 1300)  # the largest frame that the library announces
    kinds = ("native", kind) if dials == "native" else (kind, "native")
    async with two(kinds) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60), contextlib.suppress(DialError):
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            await ours.until(lambda: ours.closes)
        if dials == "native":
            assert ours.ups == []
        await theirs.until(lambda: not acceptor.links)
        assert theirs.ups == []


@pytest.mark.parametrize("backends", PAIRS, ids=PAIR_IDS)
def test_a_peer_without_datagrams_is_refused_by_the_python_engine(backends, monkeypatch):
    monkeypatch.setattr(BACKENDS[backends[1]], "UDP_PAYLOAD", 1300)
    pair = Pair(backends)
    pair.run_until(lambda: pair.sides[0].reported)
    assert pair.dialler.end.code == CloseCode.PROTOCOL
    assert "datagrams of" in pair.dialler.end.reason and "1388 are needed" in pair.dialler.end.reason
    assert not any(side.was_up for side in pair.sides)


@native
async def test_the_sentence_about_datagrams(monkeypatch):
    monkeypatch.setattr(qh3_backend, "UDP_PAYLOAD", 1300)
    async with two(("native", "qh3")) as (dialler, acceptor, _, _):
        with trio.fail_after(60), pytest.raises(DialError, match="datagrams of 1291 bytes at most") as error:
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert error.value.code == CloseCode.PROTOCOL


@native
async def test_forged_packets_are_no_answer():
    """Somebody on the path sends packets with the right connection id: the silent peer is still silent."""
    limits = LinkLimits(answer_timeout_s=1.5, keepalive_s=60)
    answers: list[bytes] = []
    async with (
        two(("native", "native"), limits=limits) as (dialler, acceptor, ours, _),
        udp_relay(acceptor.addresses[0]) as relay,
    ):
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        relay.on_answer = answers.append
        link.send_control(LONG)
        await ours.until(lambda: any(not data[0] & 0x80 for data in answers))
        genuine = next(data for data in answers if not data[0] & 0x80)
        relay.passes = lambda _: False
        await trio.sleep(0.1)  # what was under way has come
        before = link.last_receive_s
        link.send_control(LONG)
        forged = 0
        with trio.fail_after(60):
            while not ours.closes:
                await relay.inject(genuine[:9] + os.urandom(60))
                forged += 1
                await trio.sleep(0.02)
        assert ours.closes[0] == (CloseCode.TIMEOUT, "the peer stopped answering")
        assert forged > 10
        assert abs(link.last_receive_s - before) < 0.1


class Blind:
    """The crate's engine, of which Python hears nothing while it is told to."""

    def __init__(self, real):
        self.real = real
        self.is_blind = False

    def __getattr__(self, name):
        return getattr(self.real, name)

    def take_events(self):
        return [] if self.is_blind else self.real.take_events()


@contextlib.asynccontextmanager
async def open_blind():
    """A native acceptor that can be made blind, and a dialler that sends as much as QUIC takes."""
    limits = LinkLimits(
        control_messages_per_s=1e9, control_burst=1e9, max_control_backlog_bytes=64 * MIB, answer_timeout_s=60
    )
    watch = Watch()
    engine = NativeEngine(watch, memory_limit_bytes=1 << 24)
    engine.crate = Blind(engine.crate)
    async with (
        open_native_links([HOST], ACCEPTOR, engine, limits=limits) as acceptor,
        open_one("qh3", HOST, None, Watch(), role="customer", limits=limits) as dialler,
    ):
        yield acceptor.addresses[0], dialler, engine.crate, watch


@native
async def test_control_messages_that_python_does_not_read_are_held_back_by_flow_control():
    async with open_blind() as (address, dialler, crate, watch):
        link = await dialler.dial(address, ACCEPTOR.node_id)
        await watch.until(lambda: watch.ups)
        crate.is_blind = True
        count = 8 * MIB // len(FRAME)
        for _ in range(count):
            link.send_control(LONG)
        dialler.flush()
        await watch.until(lambda: crate.waiting_control >= MIB)
        await watch.until(lambda: link._connection.stream_backlog(0) < 4 * MIB)  # QUIC's window is full, too
        assert crate.waiting_control < 3 * MIB
        assert link._connection.stream_backlog(0) > MIB
        crate.is_blind = False
        await watch.until(lambda: len(watch.controls) == count)
        assert crate.waiting_control == 0
        assert watch.closes == []


@native
async def test_links_that_flood_together_are_closed():
    async with open_blind() as (address, dialler, crate, watch):
        links = [await dialler.dial(address, ACCEPTOR.node_id) for _ in range(20)]
        await watch.until(lambda: len(watch.ups) == 20)
        crate.is_blind = True
        burst = [LONG] * (2 * MIB // len(FRAME))
        most = 0
        for link in links:
            for message in burst:
                link.send_control(message)
            dialler.flush()
            await trio.sleep(0)
            most = max(most, crate.waiting_control)
        await watch.until(lambda: crate.waiting_control > 16 * MIB)
        await trio.sleep(0.2)
        assert max(most, crate.waiting_control) < 20 * MIB
        crate.is_blind = False
        await watch.until(lambda: watch.closes)
        assert set(watch.closes) == {(CloseCode.FLOOD, "control messages come faster than they can be read")}
        again = await dialler.dial(address, ACCEPTOR.node_id)
        watch.controls.clear()
        again.send_control(LAST)
        dialler.flush()
        await watch.until(lambda: LAST in watch.controls)


@native
async def test_a_peer_that_ignores_flow_control_loses_the_link_and_no_other():
    """It sends beyond QUIC's windows: of a stream that is not read, and of a link that is not up."""
    async with open_blind() as (address, _, crate, watch):
        honest, liar = Watch(), Watch()
        async with (
            open_one("qh3", HOST, None, honest, role="customer") as bystander,
            open_one("aioquic", HOST, None, liar, role="customer") as dialler,
        ):
            other = await bystander.dial(address, ACCEPTOR.node_id)
            link = await dialler.dial(address, ACCEPTOR.node_id)
            await watch.until(lambda: len(watch.ups) == 2)
            connection = link._connection
            quic = connection._conn
            quic._remote_max_data = 1 << 40
            quic._streams[0].max_stream_data_remote = 1 << 40
            crate.is_blind = True
            connection.send_stream(0, FRAME * (7 * MIB // len(FRAME)), False)
            dialler.mark_dirty(link)
            dialler.flush()
            await liar.until(lambda: liar.closes)
            crate.is_blind = False
            assert liar.closes[0][0] == CloseCode.TRANSPORT
            await watch.until(lambda: watch.closes)
            assert len(watch.closes) == 1
            watch.controls.clear()
            other.send_control(LAST)
            bystander.flush()
            await watch.until(lambda: LAST in watch.controls)


@native
async def test_a_peer_that_sends_much_before_its_greeting_is_held_to_the_small_window(monkeypatch):
    async with two(("aioquic", "native"), role="customer") as (dialler, acceptor, _, theirs):
        mute = LinkMachine.handle_connected

        def greet_by_nothing(machine, key, now):
            return [] if machine._is_dialler else mute(machine, key, now)

        monkeypatch.setattr(LinkMachine, "handle_connected", greet_by_nothing)
        async with trio.open_nursery() as nursery:

            async def dial():
                with contextlib.suppress(DialError):
                    await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)

            nursery.start_soon(dial)
            await theirs.until(lambda: dialler.links and dialler.links[0]._connection._conn._remote_max_data)
            link = dialler.links[0]
            quic = link._connection._conn
            assert quic._remote_max_data == 256 * 1024
            quic._remote_max_data = 1 << 40
            stream = quic.get_next_available_stream_id(is_unidirectional=True)
            quic.send_stream_data(stream, bytes(300 * 1024))
            dialler.mark_dirty(link)
            dialler.flush()
            await theirs.until(lambda: not dialler.links)
        await theirs.until(lambda: not acceptor.links)
        assert theirs.ups == []


@native
async def test_thousands_of_half_built_links_are_bounded_and_gone_in_time():
    """Diallers that hear nothing: places are bounded, another address gets in, and nothing is left."""
    limits = LinkLimits(
        handshake_timeout_s=4, max_half_open_per_address=100, handshake_burst_per_address=5000
    )
    patient = LinkLimits(handshake_timeout_s=5)
    async with (
        two(("native", "native"), limits=patient, acceptor_limits=limits) as (dialler, acceptor, _, theirs),
        open_one("native", ("127.0.0.2", 0), None, Watch(), role="customer") as neighbour,
        udp_relay(acceptor.addresses[0]) as relay,
        trio.open_nursery() as nursery,
    ):
        relay.is_mute = True
        failed = 0

        async def dial():
            nonlocal failed
            try:
                await dialler.dial(relay.address, ACCEPTOR.node_id)
            except DialError:
                failed += 1

        for _ in range(2000):
            nursery.start_soon(dial)
        await theirs.until(lambda: len(acceptor.links) >= 50)
        with trio.fail_after(60):
            link = await neighbour.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert link.is_up
        assert len(acceptor.links) <= 101
        await theirs.until(lambda: failed == 2000)
        await theirs.until(lambda: len(acceptor.links) == 1)
        assert dialler.links == []
        assert acceptor.acceptor_counters.retries + acceptor.acceptor_counters.dropped_handshakes > 0
