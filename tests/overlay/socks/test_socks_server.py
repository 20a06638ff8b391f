"""The proxy on loopback: connections from their first byte to their last."""

import hashlib
import os
import random
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from socks_lab import (
    CONNECT,
    echo,
    open_lab,
    open_server,
    receive,
    receive_all,
    reset,
)
from structlog.testing import capture_logs

from exit.errors import EnvError
from overlay.socks.circuits import NO_ISOLATION, Destination, NoCircuit, NoCircuitKind, isolation_of
from overlay.socks.io.leaks import MAX_REMEMBERED, LeakWatch
from overlay.socks.io.listeners import ListenError, open_listeners, systemd_descriptors
from overlay.socks.io.pipe import BUFFER_BYTES
from overlay.socks.io.server import ProxyLimits
from overlay.socks.outcome import Reply

# Greeting and a CONNECT to 127.0.0.1, up to the port.
HANDSHAKE = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_connects_and_carries_bytes_both_ways(host: str) -> None:
    async with open_lab() as lab, open_server(echo, host) as port:
        stream = await lab.connect(host, port, early=b"early ")
        await stream.send_all(b"late")
        assert await receive(stream, 10) == b"early late"
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await lab.until_idle()
        status = lab.server.status()
        assert (status["established"], status["bytes_up"], status["bytes_down"]) == (1, 10, 10)


async def test_the_lease_learns_what_the_exit_lets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_lab() as lab, open_server(echo) as port:
        await (await lab.connect("127.0.0.1", port)).aclose()
        assert (lab.circuits.leases[0].opened, lab.circuits.leases[0].refused) == ([port], [])
        with socket.create_server(("127.0.0.1", 0)) as gone:
            closed = gone.getsockname()[1]
        _, reply = await lab.ask(CONNECT, "127.0.0.1", closed)
        assert reply[1] == 5
        assert lab.circuits.leases[1].refused == [], "the host refused, not the exit"
        # What "administratively prohibited" means; only an exit sends it.
        monkeypatch.setattr("overlay.socks.io.connect._reply_of", lambda sock, code: Reply.NOT_ALLOWED)
        _, reply = await lab.ask(CONNECT, "127.0.0.1", closed)
        assert reply[1] == 2
        assert lab.circuits.leases[2].refused == [("127.0.0.1", closed)]


async def test_isolation_and_destination_reach_the_circuits() -> None:
    async with open_lab() as lab, open_server(echo) as port:
        await (await lab.connect("127.0.0.1", port)).aclose()
        await (await lab.connect("127.0.0.1", port, user="alice")).aclose()
        destination = Destination("127.0.0.1", port, 4)
        assert lab.circuits.asked == [
            (NO_ISOLATION, destination),
            (isolation_of(b"alice", b"p"), destination),
        ]


async def test_http_connect_with_early_data() -> None:
    async with open_lab() as lab, open_server(echo) as port:
        stream = await lab.dial()
        await stream.send_all(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
        expected = b"HTTP/1.1 200 Connection established\r\n\r\nearly"
        assert await receive(stream, len(expected)) == expected


@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize("is_empty", [True, False])
async def test_waits_for_circuit_and_socket(is_ready: bool, is_empty: bool) -> None:
    async with open_lab() as lab, open_server(echo) as port, trio.open_nursery() as nursery:
        lab.circuits.is_ready = is_ready
        lab.sockets.is_empty = is_empty

        async def client() -> None:
            stream = await lab.connect("127.0.0.1", port, early=b"hello")
            assert await receive(stream, 5) == b"hello"

        nursery.start_soon(client)
        await trio.testing.wait_all_tasks_blocked()
        lab.circuits.gate.set()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NoCircuitKind.NOT_READY, 1),
        (NoCircuitKind.OVERLOADED, 1),
        (NoCircuitKind.NOT_ALLOWED, 2),
        (NoCircuitKind.NO_IPV6, 3),
        (NoCircuitKind.OFFLINE, 3),
    ],
)
async def test_no_circuit_is_told_by_its_kind(kind: NoCircuitKind, code: int) -> None:
    async with open_lab() as lab:
        lab.circuits.refusal = NoCircuit(kind, "because")
        stream, reply = await lab.ask(CONNECT, "192.0.2.1", 80)
        assert reply[1] == code
        assert await receive_all(stream) == b""
        stream = await lab.dial()
        await stream.send_all(b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"because" in await receive_all(stream)


async def test_what_a_failed_connect_is_told() -> None:
    async with open_lab() as lab:
        closed = socket.create_server(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        assert (await lab.ask(CONNECT, "127.0.0.1", port))[1][1] == 5
        lab.circuits.source_v6 = None
        assert (await lab.ask(CONNECT, "::1", port))[1][1] == 3
        assert (await lab.ask(CONNECT, "printer.local", 80))[1][1] == 4
        assert (await lab.ask(CONNECT, "duskgytldkxiuqc6.onion", 80))[1][1] == 4
        lab.sockets.is_empty = True
        lab.sockets.failure = EnvError("the namespace is gone")
        assert (await lab.ask(CONNECT, "127.0.0.1", port))[1][1] == 1
        # A fault of the circuits' own is answered, and harms nobody else.
        lab.circuits.is_ready = False
        lab.circuits.gate.set()
        lab.circuits.refusal = RuntimeError("a bug")  # type: ignore[assignment]
        assert (await lab.ask(CONNECT, "127.0.0.1", port))[1][1] == 1


async def test_both_directions_close_on_their_own() -> None:
    async def answers_after_the_end(stream: trio.SocketStream) -> None:
        await stream.send_all(b"got %d" % len(await receive_all(stream)))

    async def ends_first(stream: trio.SocketStream) -> None:
        await stream.send_all(b"that is all")
        await stream.send_eof()
        ended.append(await receive_all(stream))
        done.set()

    ended: list[bytes] = []
    done = trio.Event()
    async with open_lab() as lab, open_server(answers_after_the_end) as one, open_server(ends_first) as two:
        stream = await lab.connect("127.0.0.1", one)
        await stream.send_all(b"x" * 100_000)
        await stream.send_eof()
        assert await receive_all(stream) == b"got 100000"
        stream = await lab.connect("127.0.0.1", two)
        assert await receive_all(stream) == b"that is all"
        await stream.send_all(b"still talking")
        await stream.send_eof()
        await done.wait()
        assert ended == [b"still talking"]
        # Everything in one go, the end included, before the connection stands.
        stream = await lab.dial()
        await stream.send_all(HANDSHAKE + one.to_bytes(2, "big") + b"12345")
        await stream.send_eof()
        assert (await receive_all(stream))[12:] == b"got 5"
        await lab.until_idle()


async def test_resets_are_passed_on() -> None:
    seen: list[str] = []
    done = trio.Event()

    async def listens(stream: trio.SocketStream) -> None:
        try:
            await receive_all(stream)
        except trio.BrokenResourceError:
            seen.append("reset")
        done.set()

    async def resets(stream: trio.SocketStream) -> None:
        await receive(stream, 1)
        reset(stream)

    async with open_lab() as lab, open_server(listens) as one, open_server(resets) as two:
        reset(await lab.connect("127.0.0.1", one))
        await done.wait()
        assert seen == ["reset"]
        stream = await lab.connect("127.0.0.1", two)
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stream)
        await lab.until_idle()


async def test_a_dead_circuit_ends_its_connections() -> None:
    async with open_lab() as lab, open_server(echo) as port:
        stream = await lab.connect("127.0.0.1", port)
        other = await lab.connect("127.0.0.1", port, user="other")
        lab.circuits.leases[0].die()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stream)
        await other.send_all(b"fine")
        assert await receive(other, 4) == b"fine"


async def test_a_circuit_that_dies_while_connecting_is_replaced() -> None:
    with _black_hole() as hole:
        async with open_lab() as lab, trio.open_nursery() as nursery:
            replies: list[int] = []

            async def client() -> None:
                replies.append((await lab.ask(CONNECT, "127.0.0.1", hole))[1][1])

            nursery.start_soon(client)
            for number in range(3):
                with trio.fail_after(30):
                    while len(lab.circuits.leases) <= number:
                        await trio.sleep(0.005)
                await trio.testing.wait_all_tasks_blocked(0.01)
                lab.circuits.leases[number].die()
    assert replies == [1]
    assert len(lab.circuits.leases) == 3


async def test_a_client_that_leaves_while_waiting_frees_everything() -> None:
    with _black_hole() as hole:
        async with open_lab() as lab:
            stream = await lab.dial()
            await stream.send_all(HANDSHAKE + hole.to_bytes(2, "big"))
            await receive(stream, 2)
            reset(stream)
            await lab.until_idle()
            lab.circuits.is_ready = False
            stream = await lab.dial()
            await stream.send_all(HANDSHAKE + b"\x00\x50")
            await receive(stream, 2)
            reset(stream)
            await lab.until_idle()


async def test_connecting_takes_no_longer_than_its_limit(autojump_clock: trio.testing.MockClock) -> None:
    with _black_hole() as hole:
        async with open_lab() as lab:
            _, reply = await lab.ask(CONNECT, "127.0.0.1", hole)
            assert reply[1] == 6
            assert 60 <= trio.current_time() < 63


@pytest.mark.parametrize("start", [b"", b"\x05", b"\x05\x02\x00\x02\x01\x09", b"CONNECT a:1 HTTP/1.1\r\nX: "])
async def test_slow_clients_are_closed(start: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with open_lab() as lab:
        stream = await lab.dial()
        await stream.send_all(start)
        await receive_all(stream)
        assert 30 <= trio.current_time() < 33


async def test_idle_connections_are_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_lab(ProxyLimits(idle_timeout_s=1000)) as lab, open_server(echo) as port:
        stream = await lab.connect("127.0.0.1", port)
        await trio.sleep(900)
        await stream.send_all(b"x")
        assert await receive(stream, 1) == b"x"
        await receive_all(stream)
        assert 1899 <= trio.current_time() < 1905


async def test_refused_clients_read_the_refusal_even_when_they_still_send() -> None:
    async with open_lab() as lab:
        stream = await lab.dial()
        await stream.send_all(b"POST http://x.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n")
        await stream.send_all(b"x" * 30000)
        assert b"501" in await receive_all(stream)
        await stream.aclose()
        await lab.until_idle()


async def test_a_slow_reader_holds_back_the_sender_and_loses_nothing() -> None:
    size = 30 << 20
    sent = 0

    async def sender(stream: trio.SocketStream) -> None:
        nonlocal sent
        chunk = bytes(range(256)) * 256
        while sent < size:
            await stream.send_all(chunk)
            sent += len(chunk)
        await stream.send_eof()

    async with open_lab() as lab, open_server(sender) as port:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.setblocking(False)
        sock = trio.socket.from_stdlib_socket(raw)
        await sock.connect(("127.0.0.1", lab.port))
        stream = trio.SocketStream(sock)
        await stream.send_all(HANDSHAKE + port.to_bytes(2, "big"))
        await receive(stream, 12)
        held = -1
        while held != sent:
            held = sent
            await trio.testing.wait_all_tasks_blocked(0.1)
        # Kernel buffers of two connections and one of ours.
        assert held < 24 << 20
        for connection in lab.server._connections:  # none on the native proxy
            assert len(connection._down._pending) <= BUFFER_BYTES
        expected = hashlib.sha256()
        for _ in range(size // 65536):
            expected.update(bytes(range(256)) * 256)
        actual = hashlib.sha256()
        while data := await stream.receive_some(1 << 20):
            actual.update(data)
        assert actual.digest() == expected.digest()


async def test_bulk_in_both_directions_at_once() -> None:
    size = 8 << 20
    data = random.Random(7).randbytes(size)

    async with open_lab() as lab, open_server(echo) as port, trio.open_nursery() as nursery:
        stream = await lab.connect("127.0.0.1", port)

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        received = bytearray()
        while more := await stream.receive_some(1 << 20):
            received += more
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def test_500_connections_at_once() -> None:
    async with open_lab() as lab, open_server(echo) as port, trio.open_nursery() as nursery:
        gathered = trio.Event()
        count = 0

        async def client(number: int) -> None:
            nonlocal count
            stream = await lab.connect("127.0.0.1", port)
            await stream.send_all(b"%d" % number)
            assert await receive(stream, len(str(number))) == b"%d" % number
            count += 1
            if count == 500:
                gathered.set()
            await gathered.wait()
            await stream.aclose()

        for number in range(500):
            nursery.start_soon(client, number)
        await gathered.wait()
        assert lab.server.status()["connections"] == 500


async def test_more_clients_than_allowed_wait_their_turn() -> None:
    async with open_lab(ProxyLimits(max_connections=8)) as lab, open_server(echo) as port:
        streams = [await lab.connect("127.0.0.1", port) for _ in range(8)]
        late = await lab.dial()
        await late.send_all(b"\x05\x01\x00")
        with trio.move_on_after(0.1) as scope:
            await receive(late, 2)
        assert scope.cancelled_caught
        await streams[0].aclose()
        with trio.fail_after(30):
            assert await receive(late, 2) == b"\x05\x00"


async def test_garbage_hurts_nobody(seed: int = 20240607) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    async with open_lab() as lab, open_server(echo) as port:
        for _ in range(200):
            stream = await lab.dial()
            start = rng.choice([b"", b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03", b"GET ", b"\x04"])
            try:
                await stream.send_all(start + rng.randbytes(rng.randrange(1, 400)))
                if rng.random() < 0.5:
                    await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            if rng.random() < 0.5:
                reset(stream)
            else:
                await stream.aclose()
        stream = await lab.connect("127.0.0.1", port, early=b"alive")
        assert await receive(stream, 5) == b"alive"


async def test_a_fault_in_one_connection_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_lab() as lab, open_server(echo) as port:
        good = await lab.connect("127.0.0.1", port)

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(lab.circuits, "lease_now", broken)
            stream = await lab.dial()
            await stream.send_all(HANDSHAKE + b"\x00\x50")
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(stream)
        await good.send_all(b"fine")
        assert await receive(good, 4) == b"fine"


def test_listening_says_what_is_wrong() -> None:
    (taken,) = open_listeners([("127.0.0.1", 0)])
    with taken:
        with pytest.raises(ListenError, match=r"127\.0\.0\.1 port \d+: Address already in use"):
            open_listeners([taken.getsockname()])
        with pytest.raises(ListenError, match="cannot listen on 192"):
            open_listeners([("192.0.2.1", 1080)])
    with pytest.raises(ListenError, match="is no socket"), Path(os.devnull).open() as file:
        open_listeners([], [file.fileno()])
    with socket.socket() as unready, pytest.raises(ListenError, match="no listening TCP socket"):
        open_listeners([], [unready.fileno()])


async def test_listening_sockets_can_be_handed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as made:
        (listener,) = open_listeners([], [os.dup(made.fileno())])
        assert listener.getsockname() == made.getsockname()
        assert not listener.getblocking()
        listener.close()
    assert systemd_descriptors({"LISTEN_PID": "77", "LISTEN_FDS": "2"}, 77) == [3, 4]
    for environment in ({}, {"LISTEN_PID": "78", "LISTEN_FDS": "2"}, {"LISTEN_PID": "77", "LISTEN_FDS": "x"}):
        assert systemd_descriptors(environment, 77) == []


class _black_hole:  # noqa: N801 - used like a function
    """A port on loopback that answers no SYN: its queue is full."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        for sock in [*self._fillers, self._listener]:
            sock.close()


async def test_a_server_that_speaks_first_need_not_wait_for_the_client() -> None:
    """The end of TCP's handshake waits for the client's first data, but not for long."""

    async def greets(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await receive_all(stream)

    async with open_lab() as lab, open_server(greets) as port:
        begun = trio.current_time()
        streams = [await lab.connect("127.0.0.1", port) for _ in range(3)]
        for stream in streams:
            assert await receive(stream, 11) == b"220 ready\r\n"
        assert trio.current_time() - begun < 30
        for stream in streams:
            await stream.aclose()
        await lab.until_idle()


async def test_addresses_that_were_not_learned_here_are_counted_and_told_of_once() -> None:
    watch = LeakWatch()
    watch.note(Destination("example.org", 443, 0), 10.0)
    assert watch.by_address == 0
    with capture_logs() as events:
        for n in range(5):
            watch.note(Destination("192.0.2.7", 443, 4), 10.0 + n)
    watch.learned("192.0.2.8")
    watch.note(Destination("192.0.2.8", 443, 4), 20.0)
    assert watch.by_address == 5
    assert [event["event"] for event in events] == ["names may leak"]
    assert "192.0.2.7" not in str(events)
    for n in range(2 * MAX_REMEMBERED):
        watch.learned(f"2001:db8::{n:x}")
    watch.note(Destination("192.0.2.8", 443, 4), 21.0)
    assert watch.by_address == 6, "bounded: the oldest is forgotten"


async def test_connections_by_address_are_in_the_status() -> None:
    async with open_lab() as lab, open_server(echo) as port:
        stream = await lab.connect("127.0.0.1", port)
        assert lab.server.status()["by_address"] == 1
        await stream.aclose()
        await lab.until_idle()
