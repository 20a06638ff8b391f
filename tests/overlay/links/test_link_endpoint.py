"""Endpoints on real sockets of the loopback."""

import contextlib
import errno
import hashlib
import os
import random
import socket

import pytest
import trio
from links_net import ACCEPTOR, DIALLER, PAIR_IDS, PAIRS, STRANGER, Recorder
from udp_relay import udp_relay

from overlay.identity import Identity
from overlay.links.constants import LINK_FRAME, CloseCode
from overlay.links.io import endpoint as endpoint_module
from overlay.links.io.endpoint import DialError, open_endpoint
from overlay.links.io.udp import TooLargeError, UdpSocket
from overlay.links.limits import LinkLimits
from overlay.messages import Goodbye, encode_control

pairs = pytest.mark.parametrize("backends", PAIRS, ids=PAIR_IDS)
backs = pytest.mark.parametrize("backend", ["qh3", "aioquic"])
CONTROL = encode_control(Goodbye(1, "see you"))
HOST = ("127.0.0.1", 0)
QUICK = LinkLimits(handshake_timeout_s=4)


class Watch(Recorder):
    """A recorder that can be waited on."""

    def __init__(self):
        super().__init__()
        self._bell = trio.Event()

    def on_batch_end(self):
        super().on_batch_end()
        self.ring()

    def on_link_closed(self, link, code, reason):
        super().on_link_closed(link, code, reason)
        self.ring()

    def ring(self):
        self._bell.set()
        self._bell = trio.Event()

    async def until(self, done, limit_s=60):
        with trio.fail_after(limit_s):
            while not done():
                await self._bell.wait()


@contextlib.asynccontextmanager
async def two(backends, *, role="relay", limits=None, acceptor_limits=None, host=HOST):
    """A dialling and an accepting endpoint with their watches."""
    watches = Watch(), Watch()
    identity = DIALLER if role == "relay" else None
    async with (
        open_endpoint(host, ACCEPTOR, watches[1], backend=backends[1], limits=acceptor_limits) as acceptor,
        open_endpoint(host, identity, watches[0], backend=backends[0], role=role, limits=limits) as dialler,
    ):
        yield dialler, acceptor, *watches


def send_all(endpoint, watch, link, stream_id, data):
    position = 0

    def feed(_=None):
        nonlocal position
        while position < len(data) and link.stream_backlog() < 512 * 1024:
            chunk = data[position : position + 65536]
            position += len(chunk)
            link.send_stream(stream_id, chunk, position == len(data))

    watch.on_room = feed
    feed()
    endpoint.flush()


@pairs
@pytest.mark.parametrize("role", ["relay", "customer"])
@pytest.mark.parametrize("host", [HOST, ("::1", 0)], ids=["v4", "v6"])
async def test_dial_control_datagrams_streams(backends, role, host):
    async with two(backends, role=role, host=host) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            assert ours.ups == [ACCEPTOR.node_id]
            link.send_control(CONTROL)
            await theirs.until(lambda: theirs.controls)
            assert theirs.ups == [DIALLER.node_id if role == "relay" else None]
            assert link.send_datagrams([bytes(LINK_FRAME)] * 10) == 10
            await theirs.until(lambda: len(theirs.frames) == 10)
            data = random.Random(1).randbytes(3_000_000)
            stream_id = link.open_stream()
            send_all(dialler, ours, link, stream_id, data)
            await theirs.until(lambda: theirs.finished)
            assert theirs.streams[stream_id] == data
            assert 0 < link.rtt_s < 30
            link.close(99, "done")
            await theirs.until(lambda: theirs.closes)
            assert theirs.closes == [(99, "done")]
            assert ours.closes == [(99, "done")]
        assert dialler.links == acceptor.links == []


@pairs
async def test_ten_megabytes_through_a_lossy_relay(backends):
    async with two(backends) as (dialler, acceptor, ours, theirs), udp_relay(acceptor.addresses[0]) as relay:
        relay.lose(0.01, seed=4)
        with trio.fail_after(60):
            link = await dialler.dial(relay.address, ACCEPTOR.node_id)
            data = random.Random(2).randbytes(10 * 1024 * 1024)
            stream_id = link.open_stream()
            send_all(dialler, ours, link, stream_id, data)
            await theirs.until(lambda: theirs.finished, 60)
        assert hashlib.sha256(theirs.streams[stream_id]).digest() == hashlib.sha256(data).digest()
        assert relay.dropped > 20


@pairs
async def test_a_nat_that_forgets_does_not_cost_the_link(backends):
    async with (
        two(backends, role="customer") as (dialler, acceptor, ours, theirs),
        udp_relay(acceptor.addresses[0]) as relay,
    ):
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        await theirs.until(lambda: theirs.ups)
        before = acceptor.links[0].peer_address
        relay.rebind()
        data = random.Random(3).randbytes(2_000_000)
        stream_id = link.open_stream()
        send_all(dialler, ours, link, stream_id, data)
        await theirs.until(lambda: theirs.finished)
        assert theirs.streams[stream_id] == data
        back = acceptor.links[0].open_stream()
        send_all(acceptor, theirs, acceptor.links[0], back, data)
        await ours.until(lambda: ours.finished)
        assert ours.streams[back] == data
        assert acceptor.links[0].peer_address != before
        assert ours.closes == theirs.closes == []


@backs
async def test_reasons_of_failed_dials_are_sentences(backend):
    async with two((backend, backend), limits=QUICK) as (dialler, acceptor, _, _):
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


@backs
async def test_another_link_version_is_named(backend):
    watch = Watch()
    async with (
        open_endpoint(HOST, ACCEPTOR, watch, backend=backend, alpn="hopfare/2") as acceptor,
        open_endpoint(HOST, DIALLER, watch, backend=backend) as dialler,
    ):
        with trio.fail_after(60), pytest.raises(DialError, match="another version") as error:
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        assert error.value.code == CloseCode.VERSION


async def test_a_path_too_small_is_named():
    async def dial(backends):
        async with (
            two(backends, limits=QUICK) as (dialler, acceptor, ours, _),
            udp_relay(acceptor.addresses[0]) as relay,
        ):
            relay.passes = lambda data: len(data) <= 1400
            with trio.fail_after(60), pytest.raises(DialError, match="path MTU too small") as error:
                await dialler.dial(relay.address, ACCEPTOR.node_id)
            assert error.value.code == CloseCode.PATH_TOO_SMALL
            assert ours.ups == []
            named.append(backends)

    named = []
    async with trio.open_nursery() as nursery:  # all at once: each takes as long as a handshake may
        for pair in PAIRS:
            nursery.start_soon(dial, pair)
    assert len(named) == len(PAIRS)


@backs
async def test_a_cancelled_dial_leaves_nothing(backend):
    async with two((backend, backend)) as (dialler, _, ours, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(HOST)
            with trio.move_on_after(0.2) as scope:
                await dialler.dial(silent.getsockname(), ACCEPTOR.node_id)
        assert scope.cancelled_caught
        dialler.flush()
        assert dialler.links == []
        assert ours.closes == []


@pairs
async def test_retry_under_load(backends):
    limits = LinkLimits(retry_half_open=0)
    async with (
        two(backends, acceptor_limits=limits) as (dialler, acceptor, _, theirs),
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(60):
            for _ in range(5):
                nursery.start_soon(dialler.dial, acceptor.addresses[0], ACCEPTOR.node_id)
            await theirs.until(lambda: len(theirs.ups) == 5)
        assert acceptor.acceptor_counters.retries >= 5
        assert acceptor.acceptor_counters.accepted == 5


@backs
async def test_half_open_handshakes_are_bounded_and_give_way(backend):
    """Diallers that never go on fill the places; one with a proven address still gets in."""
    limits = LinkLimits(
        handshake_timeout_s=2,
        retry_half_open=8,
        max_half_open_per_address=20,
        handshake_burst_per_address=1000,
    )
    backends = (backend, backend)
    async with two(backends, acceptor_limits=limits) as (dialler, acceptor, _, theirs):
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


@backs
async def test_a_full_node_says_so(backend):
    limits = LinkLimits(max_links_per_address=2)
    async with two((backend, backend), acceptor_limits=limits) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60):
            links = [await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id) for _ in range(2)]
            await theirs.until(lambda: len(theirs.ups) == 2)
            with contextlib.suppress(DialError):
                await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
                await ours.until(lambda: ours.closes)
                assert ours.closes[0] == (CloseCode.REFUSED, "this node has as many links as it takes")
            assert len(theirs.ups) == 2
            links[0].close()
            await theirs.until(lambda: theirs.closes)
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            await theirs.until(lambda: len(theirs.ups) == 3)


@backs
async def test_garbage_at_the_socket(backend):
    rng = random.Random(9)
    async with two((backend, backend)) as (dialler, acceptor, _, theirs):
        with trio.fail_after(60):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            link.send_control(CONTROL)
            await theirs.until(lambda: theirs.controls)
            known = [cid for cid, owner in acceptor._cids.items() if not owner.is_dialler]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(acceptor.addresses[0])
                for n in range(600):
                    size = rng.choice([0, 1, 2, 7, 20, 100, 1199, 1200, 1452, 9000])
                    body = bytearray(rng.randbytes(size))
                    if size > 30:
                        kind = n % 6
                        if kind == 0:  # an Initial of version 1
                            body[:6] = b"\xc3\0\0\0\1\x08"
                            body[14] = 8
                        elif kind == 1:  # another version
                            body[:6] = b"\xc3\x1a\x2a\x3a\x4a\x08"
                        elif kind == 2:  # a short header of a live link
                            body[:9] = b"\x43" + known[0][:8]
                        elif kind == 3:  # a long header of a live link
                            body[:14] = b"\xe3\0\0\0\1\x08" + known[0][:8]
                        elif kind == 4:  # an Initial with a false token
                            body[:24] = b"\xc3\0\0\0\1\x08" + bytes(8) + b"\0" + b"\x40\x50" + bytes(7)
                    sock.send(body)
                    if n % 50 == 0:
                        await trio.lowlevel.checkpoint()
                sock.send(b"")
            link.send_control(CONTROL)
            await theirs.until(lambda: len(theirs.controls) == 2)
            assert link.is_up
            assert acceptor.counters.unknown_packets > 0
            assert acceptor.acceptor_counters.ignored_packets > 0
            assert acceptor.acceptor_counters.version_negotiations > 0
            assert len(acceptor.links) == 1  # noise holds no place
            again = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            assert again.is_up


@backs
async def test_a_lost_close_is_repeated(backend):
    async with (
        two((backend, backend)) as (dialler, acceptor, ours, theirs),
        udp_relay(acceptor.addresses[0]) as relay,
    ):
        link = await dialler.dial(relay.address, ACCEPTOR.node_id)
        await theirs.until(lambda: theirs.ups)
        relay.passes = lambda _: False
        acceptor.links[0].close(55, "going")
        acceptor.flush()
        relay.passes = lambda _: True
        link.send_control(CONTROL)
        dialler.flush()
        await ours.until(lambda: ours.closes)
        assert ours.closes == [(55, "going")]


async def test_a_customer_accepts_nothing():
    watch = Watch()
    async with (
        open_endpoint([HOST], None, watch, role="customer") as customer,
        open_endpoint(HOST, DIALLER, watch, limits=LinkLimits(handshake_timeout_s=1)) as dialler,
    ):
        with trio.fail_after(60), pytest.raises(DialError, match="no answer in time"):
            await dialler.dial(customer.addresses[0], ACCEPTOR.node_id)
        assert customer.links == []
        assert customer.counters.unknown_packets > 0
        assert customer.acceptor_counters.version_negotiations == 0


async def test_misuse_is_refused():
    watch = Watch()
    with pytest.raises(ValueError, match="needs an identity"):
        async with open_endpoint(HOST, None, watch):
            pass
    with pytest.raises(ValueError, match="no QUIC back end"):
        async with open_endpoint(HOST, ACCEPTOR, watch, backend="other"):
            pass
    with pytest.raises(OSError, match="assign"):
        async with open_endpoint(("192.0.2.1", 0), ACCEPTOR, watch):
            pass


@backs
async def test_both_families_at_once(backend):
    watch, other = Watch(), Watch()
    both = [("127.0.0.1", 0), ("::1", 0)]
    async with (
        open_endpoint(both, ACCEPTOR, watch, backend=backend) as acceptor,
        open_endpoint(both, DIALLER, other, backend=backend) as dialler,
    ):
        with trio.fail_after(60):
            for address in acceptor.addresses:
                assert (await dialler.dial(address, ACCEPTOR.node_id)).is_up
        assert len(dialler.links) == 2


@backs
async def test_two_nodes_that_dial_each_other_from_the_same_sockets(backend):
    """Both links share all four address parts, so that one received buffer may hold packets of both."""
    async with two((backend, backend)) as (first, second, ours, theirs):
        with trio.fail_after(60):
            forth = await first.dial(second.addresses[0], ACCEPTOR.node_id)
            back = await second.dial(first.addresses[0], DIALLER.node_id)
            data = random.Random(6).randbytes(2_000_000)
            streams = forth.open_stream(), back.open_stream()
            send_all(first, ours, forth, streams[0], data)
            send_all(second, theirs, back, streams[1], data)
            await theirs.until(lambda: theirs.finished)
            await ours.until(lambda: ours.finished)
        assert theirs.streams[streams[0]] == ours.streams[streams[1]] == data


@backs
async def test_a_full_socket_buffer_holds_packets_back_and_loses_none(backend):
    async with two((backend, backend)) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            udp = dialler._sockets[0].udp
            original, calls = udp.send, 0

            def stingy(packets, control):
                nonlocal calls
                calls += 1
                return 0 if calls % 3 == 1 else original(packets[: max(1, len(packets) // 2)], control)

            udp.send = stingy
            data = random.Random(8).randbytes(3_000_000)
            stream_id = link.open_stream()
            send_all(dialler, ours, link, stream_id, data)
            await theirs.until(lambda: theirs.finished, 60)
        assert theirs.streams[stream_id] == data
        assert link._connection.packets_lost() == 0


@backs
async def test_without_gso_it_works_all_the_same(backend):
    async with two((backend, backend)) as (dialler, acceptor, ours, theirs):
        with trio.fail_after(60):
            link = await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            udp = dialler._sockets[0].udp

            class NoGso:
                def __init__(self, sock):
                    self._sock = sock

                def sendmsg(self, parts, *rest):
                    if len(parts) > 1:
                        raise OSError(errno.EIO, "no checksum offload")
                    return self._sock.sendmsg(parts, *rest)

                def __getattr__(self, name):
                    return getattr(self._sock, name)

            real, udp.socket = udp.socket, NoGso(udp.socket)
            data = random.Random(8).randbytes(1_000_000)
            stream_id = link.open_stream()
            send_all(dialler, ours, link, stream_id, data)
            udp.socket = real
            assert not udp.gso
            await theirs.until(lambda: theirs.finished, 60)
        assert theirs.streams[stream_id] == data


def test_errors_of_the_network_count_as_loss():
    udp = UdpSocket("127.0.0.1", 0)
    try:
        # Nothing routes 127/8 traffic of a bound loopback socket to the outside: EINVAL or ENETUNREACH.
        assert udp.send([(b"x" * 100, ("192.0.2.1", 9))]) == 1
        assert udp.send([(b"x" * 100, ("192.0.2.1", 9))] * 5) == 5
        assert udp.send_failures >= 2
        with pytest.raises(TooLargeError, match="70000"):
            udp.send([(bytes(70000), ("127.0.0.1", 9))])
        assert udp.receive() is None
    finally:
        udp.close()
    udp.close()


@backs
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_answers_leave_from_the_address_that_was_addressed(backend, host):
    watches = Watch(), Watch()
    async with (
        open_endpoint((host, 0), ACCEPTOR, watches[1], backend=backend) as acceptor,
        open_endpoint((host, 0), DIALLER, watches[0], backend=backend) as dialler,
    ):
        port = acceptor.addresses[0][1]
        target = ("127.0.0.77" if host == "0.0.0.0" else "::1", port)
        with trio.fail_after(60):
            link = await dialler.dial(target, ACCEPTOR.node_id)
            assert link.peer_address == target
            data = random.Random(8).randbytes(300_000)
            stream_id = link.open_stream()
            send_all(dialler, watches[0], link, stream_id, data)
            await watches[1].until(lambda: watches[1].finished)
            back = acceptor.links[0].open_stream()
            send_all(acceptor, watches[1], acceptor.links[0], back, data)
            await watches[0].until(lambda: watches[0].finished)
        assert watches[0].streams[back] == data


async def test_endpoints_close_their_links_when_they_go():
    watches = Watch(), Watch()
    async with open_endpoint(HOST, ACCEPTOR, watches[1]) as acceptor:
        async with open_endpoint(HOST, DIALLER, watches[0]) as dialler:
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
            await watches[1].until(lambda: watches[1].ups)
        assert watches[0].closes == [(CloseCode.SHUTDOWN, "the node stops")]
        await watches[1].until(lambda: watches[1].closes)
        assert watches[1].closes == [(CloseCode.SHUTDOWN, "the node stops")]


@backs
async def test_an_idle_node_hardly_wakes(backend, autojump_clock):
    """Ten idle links, with time skipped: wake-ups are the housekeeping's and the keep-alive's."""
    async with two((backend, backend)) as (dialler, acceptor, ours, theirs):
        for _ in range(10):
            await dialler.dial(acceptor.addresses[0], ACCEPTOR.node_id)
        await theirs.until(lambda: len(theirs.ups) == 10)
        autojump_clock.autojump_threshold = 0.02
        await trio.sleep(5)
        before = dialler.counters.wakeups
        await trio.sleep(60)
        assert dialler.counters.wakeups - before < 60 + 10 * 4 * 6
        assert len(dialler.links) == 10
        assert ours.closes == []


def test_seeds_do_not_show():
    identity = Identity(os.urandom(32))
    from overlay.links.backends.base import BackendSettings
    from overlay.links.certificate import make_certificate

    settings = BackendSettings(*make_certificate(identity.seed), 10.0, "x")
    assert "PRIVATE" not in repr(settings)
    assert endpoint_module.open_endpoint is open_endpoint


async def test_a_dialler_without_a_route_is_told_at_once(monkeypatch):
    """The kernel's own answer, not what others claim by ICMP."""

    class Cut:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            return getattr(self._sock, name)

        def sendmsg(self, *arguments):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    async with open_endpoint(HOST, None, Watch(), role="customer") as endpoint:
        udp = endpoint._sockets[0].udp
        monkeypatch.setattr(udp, "socket", Cut(udp.socket))
        begun = trio.current_time()
        with pytest.raises(DialError, match="no route") as caught:
            await endpoint.dial(("192.0.2.1", 4433), ACCEPTOR.node_id)
        assert caught.value.code == CloseCode.NO_ROUTE
        assert trio.current_time() - begun < QUICK.handshake_timeout_s
        assert endpoint.links == []
