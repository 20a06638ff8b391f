"""Links of the native engine, with one another and with the Python engine's on both libraries."""

import contextlib
import os
import random
import socket
import subprocess
import sys

import pytest
import trio
from engine_chain import HAS_NATIVE
from links_net import ACCEPTOR, DIALLER, STRANGER
from native_endpoints import HOST, Watch, two
from udp_relay import udp_relay

from overlay.engine.io import native_links
from overlay.engine.io.native_links import open_native_links
from overlay.engine.native import NativeEngine, NativeEngineError
from overlay.links.constants import LINK_FRAME, CloseCode
from overlay.links.framing import encode_control_frame
from overlay.links.io.endpoint import DialError
from overlay.links.io.udp import has_route
from overlay.links.limits import LinkLimits
from overlay.messages import Goodbye, encode_control

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
PAIRS = [
    ("native", "native"),
    ("threads", "threads"),
    ("native", "qh3"),
    ("qh3", "native"),
    ("native", "aioquic"),
    ("aioquic", "native"),
]
pairs = pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
CONTROL = encode_control(Goodbye(1, "see you"))
QUICK = LinkLimits(handshake_timeout_s=4)


@pairs
@pytest.mark.parametrize("role", ["relay", "customer"])
@pytest.mark.parametrize("host", [HOST, ("::1", 0)], ids=["v4", "v6"])
async def test_greeting_control_and_close(kinds, role, host):
    async with two(kinds, role=role, host=host) as (dialler, acceptor, ours, theirs):
        link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert ours.ups == [ACCEPTOR.node_id]
        await theirs.until(lambda: theirs.ups)
        assert theirs.ups == [DIALLER.node_id if role == "relay" else None]
        messages = [encode_control(Goodbye(n, "x" * (n % 200))) for n in range(300)]
        for message in messages:
            link.send_control(message)
            acceptor.links[0].send_control(message)
        dialler.flush()
        acceptor.flush()
        await theirs.until(lambda: len(theirs.controls) == 300)
        await ours.until(lambda: len(ours.controls) == 300)
        assert ours.controls == theirs.controls == messages
        assert 0 < link.rtt_s < 30
        assert link.peer_address == acceptor.addresses[0]
        link.close(99, "done")
        dialler.flush()
        await theirs.until(lambda: theirs.closes)
        assert ours.closes == theirs.closes == [(99, "done")]
        assert dialler.links == acceptor.links == []


async def test_reasons_of_failed_dials_are_sentences():
    async with two(("native", "qh3"), limits=LinkLimits(handshake_timeout_s=2)) as (dialler, acceptor, _, _):
        address = acceptor.addresses[0]
        with pytest.raises(DialError, match="not the expected one") as wrong:
            await dialler.dial(address, STRANGER.node_id)
        assert wrong.value.code == CloseCode.WRONG_IDENTITY
        with pytest.raises(DialError, match="this node itself"):
            await dialler.dial(address, DIALLER.node_id)
        with pytest.raises(DialError, match="no IPv6 socket"):
            await dialler.dial(("::1", 1), ACCEPTOR.node_id)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(HOST)
            with trio.fail_after(60), pytest.raises(DialError, match="no answer in time") as nobody:
                await dialler.dial(silent.getsockname(), ACCEPTOR.node_id)
        assert nobody.value.code == CloseCode.TIMEOUT
        assert dialler.links == []


@pairs
async def test_another_link_version_is_named(kinds):
    async with two(kinds, alpns=("hopfare/1", "hopfare/2")) as (dialler, acceptor, _, _):
        with trio.fail_after(60), pytest.raises(DialError, match="another version") as error:
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert error.value.code == CloseCode.VERSION


async def test_a_path_too_small_is_named():
    async def dial(kinds):
        async with (
            two(kinds, limits=QUICK) as (dialler, acceptor, ours, _),
            udp_relay(acceptor.addresses[0]) as relay,
        ):
            relay.passes = lambda data: len(data) <= 1400
            with trio.fail_after(60), pytest.raises(DialError, match="path MTU too small") as error:
                await dialler.dial(relay.address, ACCEPTOR.node_id)
            assert error.value.code == CloseCode.PATH_TOO_SMALL
            assert ours.ups == []

    async with trio.open_nursery() as nursery:  # all at once: each takes as long as a handshake may
        for pair in PAIRS:
            nursery.start_soon(dial, pair)


async def test_a_cancelled_dial_leaves_nothing():
    async with two(("native", "native")) as (dialler, _, ours, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(HOST)
            with trio.move_on_after(0.2) as scope:
                await dialler.dial(silent.getsockname(), ACCEPTOR.node_id)
        assert scope.cancelled_caught
        dialler.flush()
        assert dialler.links == []
        assert ours.closes == []


@pairs
async def test_retry_under_load(kinds):
    limits = LinkLimits(retry_half_open=0)
    async with two(kinds, acceptor_limits=limits) as (dialler, acceptor, _, theirs):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(dialler.dial, acceptor.addresses[0], ACCEPTOR.node_id)
            await theirs.until(lambda: len(theirs.ups) == 5)
        assert acceptor.acceptor_counters.retries >= 5
        assert acceptor.acceptor_counters.accepted == 5


async def test_half_open_handshakes_are_bounded_and_give_way():
    """Diallers that never go on fill the places; one with a proven address still gets in."""
    limits = LinkLimits(
        handshake_timeout_s=2,
        retry_half_open=8,
        max_half_open_per_address=20,
        handshake_burst_per_address=4000,
    )
    async with two(("qh3", "native"), acceptor_limits=limits) as (dialler, acceptor, _, theirs):
        initials = []
        sock = dialler._sockets[0].udp
        original = sock.send
        sock.send = lambda packets, _: initials.extend(p[0] for p in packets) or len(packets)
        for _ in range(60):
            with trio.move_on_after(0.005):
                await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        sock.send = original
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for packet in initials:
                flood.sendto(packet, acceptor.addresses[0])
        await theirs.until(lambda: acceptor.acceptor_counters.retries > 0)
        assert len(acceptor.links) <= 20
        with trio.fail_after(60):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert link.is_up
        await theirs.until(lambda: len(acceptor.links) == 1, 60)  # the rest has timed out


@pairs
async def test_a_full_node_says_so(kinds):
    limits = LinkLimits(max_links_per_address=2)
    async with two(kinds, acceptor_limits=limits) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60):
            links = [await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id) for _ in range(2)]
            await theirs.until(lambda: len(theirs.ups) == 2)
            with contextlib.suppress(DialError):
                await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
                await ours.until(lambda: ours.closes)
                assert ours.closes[0] == (CloseCode.REFUSED, "this node has as many links as it takes")
            assert len(theirs.ups) == 2
            links[0].close()
            dialler.flush()
            await theirs.until(lambda: theirs.closes)
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            await theirs.until(lambda: len(theirs.ups) == 3)


async def test_garbage_at_the_socket():
    rng = random.Random(9)
    async with two(("native", "native")) as (dialler, acceptor, _, theirs):
        link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(acceptor.addresses[0])
            for n in range(600):
                body = bytearray(rng.randbytes(rng.choice([0, 1, 2, 7, 20, 100, 1199, 1200, 1452, 9000])))
                if len(body) > 30:
                    kind = n % 4
                    if kind == 0:  # an Initial of version 1
                        body[:6] = b"\xc3\0\0\0\1\x08"
                        body[14] = 8
                    elif kind == 1:  # another version
                        body[:6] = b"\xc3\x1a\x2a\x3a\x4a\x08"
                    elif kind == 2:  # a Version Negotiation packet
                        body[:6] = b"\xc3\0\0\0\0\x08"
                    elif kind == 3:  # an Initial with a false token
                        body[:24] = b"\xc3\0\0\0\1\x08" + bytes(8) + b"\0" + b"\x40\x50" + bytes(7)
                sock.send(body)
                if n % 50 == 0:
                    await trio.lowlevel.checkpoint()
        link.send_control(CONTROL)
        await theirs.until(lambda: theirs.controls)
        await theirs.until(lambda: len(acceptor.links) == 1)  # noise holds no place
        assert (await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)).is_up


@pairs
async def test_a_lost_close_is_repeated(kinds):
    async with two(kinds) as (dialler, acceptor, ours, theirs), udp_relay(acceptor.addresses[0]) as relay:
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        await theirs.until(lambda: theirs.ups)
        relay.passes = lambda _: False
        acceptor.links[0].close(55, "going")
        acceptor.flush()
        await theirs.until(lambda: theirs.closes)
        await trio.sleep(0.05)  # the packet that is to be lost is on its way
        relay.passes = lambda _: True
        link.send_control(CONTROL)
        dialler.flush()
        await ours.until(lambda: ours.closes)
        assert ours.closes == [(55, "going")]


@pytest.mark.parametrize("kind", ["native", "threads"])
async def test_a_peer_that_has_forgotten_the_link_ends_it(kind):
    async with (
        two((kind, kind)) as (dialler, acceptor, ours, theirs),
        udp_relay(acceptor.addresses[0]) as relay,
    ):
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        await theirs.until(lambda: theirs.ups)
        relay.passes = lambda _: False
        acceptor.links[0].close(55, "going")
        await theirs.until(lambda: theirs.closes)
        await trio.sleep(1.5)  # QUIC's closing period, of which nothing tells
        relay.passes = lambda _: True
        link.send_control(CONTROL)
        await ours.until(lambda: ours.closes, 9)  # before the answer to a keep-alive can be missed
        # On a slow machine the period may not be over.
        assert ours.closes[0] in (
            (CloseCode.TRANSPORT, "QUIC: the other node has started anew"),
            (55, "going"),
        )
        assert dialler.links == []


@pytest.mark.parametrize("kind", ["qh3", "aioquic"])
async def test_what_breaks_the_rules_of_a_link_ends_it(kind):
    """Datagrams of a wrong size, an end of the control stream, messages that cannot be read, or too many."""

    async def broken(act, reason):
        async with two((kind, "native"), role="customer") as (dialler, acceptor, _, theirs):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            await theirs.until(lambda: theirs.ups)
            act(link, link._connection)
            dialler.mark_dirty(link)
            dialler.flush()
            await theirs.until(lambda: theirs.closes)
            code, said = theirs.closes[0]
            assert code in (CloseCode.PROTOCOL, CloseCode.FLOOD)
            assert reason in said

    def wrong_size(link, connection):
        connection.send_datagrams([bytes(LINK_FRAME - 1)] * 17)

    def control_ends(link, connection):
        connection.send_stream(0, b"", True)

    def unreadable(link, connection):
        connection.send_stream(0, b"\xff\xff\xff\xff", False)

    def flood(link, connection):
        connection.send_stream(0, encode_control_frame(CONTROL) * 20_000, False)

    await broken(wrong_size, "wrong size")
    await broken(control_ends, "control stream was ended")
    await broken(unreadable, "is announced")
    await broken(flood, "too many control messages")


async def test_links_that_flap_leave_nothing():
    async with two(("native", "native")) as (dialler, acceptor, ours, theirs):

        async def flap(times):
            for _ in range(times):
                link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
                link.close(0, "")
                dialler.flush()

        limits = LinkLimits()
        assert limits.handshake_burst_per_address >= 40
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(flap, 5)
        await ours.until(lambda: len(ours.closes) == 40)
        await theirs.until(lambda: len(acceptor.links) == 0)
        assert len(theirs.ups) == len(theirs.closes)
        assert (await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)).is_up


async def test_a_peer_that_stops_answering_loses_the_link():
    limits = LinkLimits(answer_timeout_s=1.5, keepalive_s=0.5)
    async with (
        two(("native", "native"), limits=limits) as (dialler, acceptor, ours, _),
        udp_relay(acceptor.addresses[0]) as relay,
    ):
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        await trio.sleep(1.0)
        assert link.is_up
        relay.passes = lambda _: False
        await ours.until(lambda: ours.closes)
        assert ours.closes[0][0] == CloseCode.TIMEOUT
        assert link.unanswered_s(trio.current_time()) == 0.0  # it has ended


async def test_an_idle_link_is_not_taken_for_a_dead_one():
    limits = LinkLimits(answer_timeout_s=0.5, keepalive_s=60)
    async with two(("native", "native"), limits=limits, acceptor_limits=limits) as (
        dialler,
        acceptor,
        ours,
        theirs,
    ):
        link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        await trio.sleep(2.5)
        assert link.is_up
        assert ours.closes == theirs.closes == []


async def test_a_bug_above_a_link_costs_that_link_alone():
    async with two(("native", "native")) as (dialler, acceptor, _, theirs):
        first = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        second = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        await theirs.until(lambda: len(theirs.ups) == 2)
        original = theirs.on_control

        def broken(link, message):
            raise RuntimeError("a bug")

        theirs.on_control = broken
        first.send_control(CONTROL)
        await theirs.until(lambda: theirs.closes)
        theirs.on_control = original
        assert theirs.closes[0][0] == CloseCode.INTERNAL
        second.send_control(CONTROL)
        await theirs.until(lambda: theirs.controls)
        assert acceptor.counters.bugs == 1


async def test_a_thread_that_panics_ends_the_node():
    with pytest.RaisesGroup(pytest.RaisesExc(NativeEngineError, match=r"failed \(asked to fail\)")):
        engine = NativeEngine(Watch(), memory_limit_bytes=1 << 24)
        async with open_native_links([HOST], ACCEPTOR, engine):
            engine.crate.fail()
            with trio.fail_after(30):
                await trio.sleep_forever()


async def test_an_address_in_use_and_a_relay_without_identity_are_refused():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(HOST)
        engine = NativeEngine(Watch(), memory_limit_bytes=1 << 24)
        with pytest.raises(OSError, match="in use"):
            async with open_native_links([taken.getsockname()], ACCEPTOR, engine):
                pass
        with pytest.raises(ValueError, match="identity"):
            async with open_native_links([HOST], None, engine):
                pass


async def test_a_dialler_without_a_route_is_told_at_once(monkeypatch):
    async with two(("native", "native")) as (dialler, acceptor, *_):
        monkeypatch.setattr(native_links, "has_route", lambda address: False)
        with pytest.raises(DialError, match="no route") as caught:
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert caught.value.code == CloseCode.NO_ROUTE
        assert dialler.links == []


def test_the_routing_table_is_asked_without_sending():
    assert has_route(HOST)
    ask = "has_route(('192.0.2.1', 9)), has_route(('2001:db8::1', 9))"
    script = f"from overlay.links.io.udp import has_route; print({ask})"
    if os.geteuid() == 0:
        # A namespace of its own, in which there is no network at all.
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False", "False"]
