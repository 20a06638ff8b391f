"""The native proxy: what its thread serves by itself, what it hands over, and how long it may."""

import hashlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from socks_lab import CONNECT, FakeCircuit, Lab, echo, open_lab, open_server, receive, receive_all, reset

from exit.errors import EnvError
from overlay.engine.native import NativeEngineError, load_crate
from overlay.socks.circuits import Isolation, isolation_of
from overlay.socks.events import Connect, Send
from overlay.socks.io import native
from overlay.socks.io.native import NativeProxyError, load_proxy
from overlay.socks.io.server import ProxyLimits
from overlay.socks.machine import ProxyMachine
from overlay.socks.socks5 import encode_address

try:
    crate = load_crate()
except NativeEngineError as error:
    pytest.skip(f"no native proxy: {error}", allow_module_level=True)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def open_native(limits: ProxyLimits | None = None) -> AsyncIterator[Lab]:
    async with open_lab(limits or ProxyLimits(), kind="native") as lab:
        yield lab


def handed_over(lab: Lab) -> int:
    return int(lab.server.status()["handed_over"])


async def warm(lab: Lab, port: int, host: str = "127.0.0.1", user: str = "") -> None:
    """Have a request of this kind served once."""
    grants = lab.server.status()["grants"]
    stream = await lab.connect(host, port, user=user)
    await until(lambda: lab.server.status()["grants"] > grants)
    await stream.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_second_of_a_kind_needs_no_python(host: str) -> None:
    async with open_native() as lab, open_server(echo, host) as port:
        await warm(lab, port, host)
        for _ in range(3):
            stream = await lab.connect(host, port, early=b"early ")
            await stream.send_all(b"late")
            assert await receive(stream, 10) == b"early late"
            await stream.send_eof()
            assert await receive_all(stream) == b""
        await lab.until_idle()
        status = lab.server.status()
        assert status["kind"] == "native"
        assert (status["accepted"], status["established"], status["handed_over"]) == (4, 4, 1)
        assert (status["bytes_up"], status["bytes_down"], status["by_address"]) == (30, 30, 4)
        lease = lab.circuits.leases[0]
        assert len(lab.circuits.leases) == 1
        assert lease.opened[0] == port


async def test_what_python_has_made_is_carried_by_the_thread() -> None:
    async with open_native() as lab, open_server(echo) as port:
        streams = []
        for number in range(2):
            stream = await lab.dial()
            await stream.send_all(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
            expected = b"HTTP/1.1 200 Connection established\r\n\r\nearly"
            assert await receive(stream, len(expected)) == expected
            streams.append(stream)
            assert (on_grants(lab), handed_over(lab)) == (number + 1, number + 1)
        assert not lab.server._connections
        assert lab.server.status()["grants"] == 0, "it stands for no kind of request"
        lab.circuits.leases[0].die()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(streams[0])
        await streams[1].send_all(b"late")
        assert await receive(streams[1], 4) == b"late"
        assert not lab.circuits.leases[1].is_released
        await streams[1].send_eof()
        assert await receive_all(streams[1]) == b""
        await until(lambda: lab.circuits.leases[1].is_released)
        status = lab.server.status()
        assert (status["established"], status["connections"]) == (2, 0)
        assert (status["bytes_up"], status["bytes_down"]) == (14, 14)


async def test_users_have_circuits_of_their_own() -> None:
    async with open_native() as lab, open_server(echo) as port:
        for user in ("alice", "bob"):
            await warm(lab, port, user=user)
        for user in ("alice", "bob", "alice"):
            await (await lab.connect("127.0.0.1", port, user=user)).aclose()
        assert handed_over(lab) == 2
        await (await lab.connect("127.0.0.1", port, user="carol")).aclose()
        assert handed_over(lab) == 3
        asked = [isolation for isolation, _ in lab.circuits.asked[:2]]
        assert asked == [isolation_of(b"alice", b"p"), isolation_of(b"bob", b"p")]


async def test_a_grant_that_is_not_used_gives_its_lease_back() -> None:
    async with open_native() as lab, open_server(echo) as port:
        await warm(lab, port)
        stream = await lab.connect("127.0.0.1", port)
        await until(lambda: not lab.server.status()["grants"])
        assert not lab.circuits.leases[0].is_released, "a connection still uses it"
        await stream.send_all(b"x")
        assert await receive(stream, 1) == b"x"
        await stream.aclose()
        await until(lambda: lab.circuits.leases[0].is_released)


async def test_new_connections_follow_the_circuits_choice() -> None:
    async with open_native() as lab, open_server(echo) as port:
        await warm(lab, port)
        old = await lab.connect("127.0.0.1", port)
        lab.circuits.circuit = FakeCircuit()
        with trio.fail_after(60):
            while lab.circuits.leases[-1].circuit is not lab.circuits.circuit:
                await (await lab.connect("127.0.0.1", port)).aclose()
                await trio.sleep(0.01)
        assert handed_over(lab) == 1, "the grant was replaced in its place"
        assert not lab.circuits.leases[0].is_released
        await old.send_all(b"old")
        assert await receive(old, 3) == b"old"
        await old.aclose()
        await until(lambda: lab.circuits.leases[0].is_released)
        # At a word, at once.
        lab.server.revoke_grants()
        before = handed_over(lab)
        await (await lab.connect("127.0.0.1", port)).aclose()
        assert handed_over(lab) == before + 1


async def test_without_a_circuit_nothing_goes_on_as_before() -> None:
    async with open_native() as lab, open_server(echo) as port:
        await warm(lab, port)
        lab.circuits.is_ready = False
        with trio.fail_after(60):
            while lab.server.status()["grants"]:
                with trio.move_on_after(0.2):
                    await (await lab.connect("127.0.0.1", port)).aclose()
        with trio.move_on_after(0.2) as waits:
            await lab.connect("127.0.0.1", port)
        assert waits.cancelled_caught
        lab.circuits.gate.set()


def teach(lab: Lab, host: str, addresses: list[str]) -> None:
    """Tell the thread of a name on the only grant's circuit."""
    front: Any = lab.server.front
    (circuit,) = {grant.circuit for grant in front._grants.values()}
    front._proxy.learn(circuit, host, [ip_address(address).packed for address in addresses], 60.0)


def on_grants(lab: Lab) -> int:
    """How many connections the thread has on grants."""
    front: Any = lab.server.front
    return sum(grant.cell.figures()[0] for grant in front._grants.values())


class black_hole:  # noqa: N801 - used like a function
    """A port on a loopback address that answers no SYN: its queue is full."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._listener = socket.create_server((host, port), backlog=0)
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> tuple[int, Callable[[], None]]:
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)
        return int(self._listener.getsockname()[1]), self._listener.close

    def __exit__(self, *_: object) -> None:
        for sock in [*self._fillers, self._listener]:
            sock.close()


async def test_a_dead_circuit_resets_what_stands_and_tries_the_others_again() -> None:
    async with open_native() as lab, open_server(echo) as port:
        with black_hole("127.0.0.2", port):
            await warm(lab, port)
            standing = await lab.connect("127.0.0.1", port)
            waiting = await lab.dial()
            await waiting.send_all(b"\x05\x01\x00\x05\x01\x00" + encode_address("127.0.0.2", port))
            await until(lambda: on_grants(lab) == 2)
            lab.circuits.leases[0].die()
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(standing)
            await until(lambda: len(lab.circuits.leases) == 2)
            assert await receive(waiting, 2) == b"\x05\x00"
            assert lab.circuits.leases[0].is_released
            reset(waiting)
            await lab.until_idle()


async def test_a_failed_connect_is_explained_by_python() -> None:
    async with open_native() as lab:
        async with open_server(echo) as port:
            await warm(lab, port)
        # Nobody listens there any more.
        stream, reply = await lab.ask(CONNECT, "127.0.0.1", port)
        assert reply[1] == 5
        assert await receive_all(stream) == b""
        assert lab.server.status()["refused"] == {"connection_refused": 1}
        assert lab.server.status()["by_address"] == 2, "counted once each"


async def test_addresses_are_tried_in_turn() -> None:
    async with open_native() as lab, open_server(echo) as port:
        with black_hole("127.0.0.2", port):
            await warm(lab, port)
            # The first does not answer: the thread tries the second beside it.
            teach(lab, "slow.example", ["127.0.0.2", "127.0.0.1"])
            stream = await lab.connect("Slow.example.", port, early=b"hello")
            assert await receive(stream, 5) == b"hello"
            assert handed_over(lab) == 1
            await stream.aclose()
            # The first refuses: Python goes on with what is left, on the same circuit.
            teach(lab, "refuses.example", ["127.0.0.3", "127.0.0.2", "127.0.0.1"])
            stream = await lab.connect("refuses.example", port, early=b"hello")
            assert await receive(stream, 5) == b"hello"
            assert handed_over(lab) == 2
            assert all(lease.is_released for lease in lab.circuits.leases[1:])
            await stream.aclose()
            await lab.until_idle()


async def test_the_limit_for_connecting_holds_for_both_halves() -> None:
    async with open_native(ProxyLimits(connect_timeout_s=0.5)) as lab, open_server(echo) as port:
        with black_hole("127.0.0.2", port):
            await warm(lab, port)
            _, reply = await lab.ask(CONNECT, "127.0.0.2", port)
            assert reply[1] == 6
            assert handed_over(lab) == 2


@pytest.mark.parametrize("start", [b"", b"\x05", b"\x05\x02\x00\x02\x01\x09"])
async def test_slow_and_idle_clients_are_closed(start: bytes) -> None:
    limits = ProxyLimits(handshake_timeout_s=0.2, idle_timeout_s=0.5)
    async with open_native(limits) as lab, open_server(echo) as port:
        await warm(lab, port)
        idle = await lab.connect("127.0.0.1", port)
        slow = await lab.dial()
        await slow.send_all(start)
        with trio.fail_after(30):
            await receive_all(slow)
            assert await receive_all(idle) == b""
        assert handed_over(lab) == 1


async def test_sockets_of_the_namespace_are_waited_for_and_missed() -> None:
    async with open_native() as lab, open_server(echo) as port:
        await warm(lab, port)
        lab.sockets.is_empty = True
        # More than the thread has in store.
        for _ in range(200):
            await (await lab.connect("127.0.0.1", port)).aclose()
        assert handed_over(lab) == 1
        lab.sockets.failure = EnvError("the namespace is gone")
        replies: set[int] = set()
        with trio.fail_after(60):
            while 1 not in replies:
                stream, reply = await lab.ask(CONNECT, "127.0.0.1", port)
                replies.add(reply[1])
                await stream.aclose()
        assert replies <= {0, 1}


async def test_connections_of_both_halves_count_towards_the_limit() -> None:
    async with open_native(ProxyLimits(max_connections=8)) as lab, open_server(echo) as port:
        await warm(lab, port)
        streams = [await lab.connect("127.0.0.1", port, user=user) for user in ["a", "b", *[""] * 6]]
        late = await lab.dial()
        await late.send_all(b"\x05\x01\x00")
        with trio.move_on_after(0.1) as scope:
            await receive(late, 2)
        assert scope.cancelled_caught
        await streams[0].aclose()
        with trio.fail_after(30):
            assert await receive(late, 2) == b"\x05\x00"


async def test_half_closed_connections_stay_so_and_resets_are_passed_on() -> None:
    seen: list[str] = []

    async def answers(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(b"got %d" % len(await receive_all(stream)))
        except trio.BrokenResourceError:
            seen.append("reset")

    async def resets(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        reset(stream)

    async with open_native() as lab, open_server(answers) as one, open_server(resets) as two:
        await warm(lab, one)
        stream = await lab.connect("127.0.0.1", one)
        await stream.send_all(b"x" * 100_000)
        await stream.send_eof()
        assert await receive_all(stream) == b"got 100000"
        # Everything in one go, the end included, before the connection stands.
        stream = await lab.dial()
        await stream.send_all(b"\x05\x01\x00\x05\x01\x00" + encode_address("127.0.0.1", one) + b"12345")
        await stream.send_eof()
        assert (await receive_all(stream))[12:] == b"got 5"
        stream = await lab.connect("127.0.0.1", one)
        await stream.send_all(b"x")
        reset(stream)
        await until(lambda: seen)
        await warm(lab, two)
        stream = await lab.connect("127.0.0.1", two)
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stream)
        await lab.until_idle()
        assert handed_over(lab) == 2


async def test_a_slow_reader_holds_back_the_sender_and_loses_nothing() -> None:
    size = 30 << 20
    sent = 0

    async def sender(stream: trio.SocketStream) -> None:
        nonlocal sent
        if await stream.receive_some(1) != b"b":
            return
        chunk = bytes(range(256)) * 256
        while sent < size:
            await stream.send_all(chunk)
            sent += len(chunk)
        await stream.send_eof()

    async with open_native() as lab, open_server(sender) as port:
        await warm(lab, port)
        stream = await lab.connect("127.0.0.1", port, early=b"b")
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        held = -1
        while held != sent:
            held = sent
            await trio.sleep(0.2)
        assert held < 24 << 20, "kernel buffers of two connections and one of ours"
        expected = hashlib.sha256()
        for _ in range(size // 65536):
            expected.update(bytes(range(256)) * 256)
        actual = hashlib.sha256()
        while data := await stream.receive_some(1 << 20):
            actual.update(data)
        assert actual.digest() == expected.digest()


async def test_bulk_in_both_directions_at_once() -> None:
    data = random.Random(7).randbytes(8 << 20)

    async with open_native() as lab, open_server(echo) as port:
        await warm(lab, port)
        async with trio.open_nursery() as nursery:
            stream = await lab.connect("127.0.0.1", port)

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            received = bytearray()
            while more := await stream.receive_some(1 << 20):
                received += more
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        assert handed_over(lab) == 1


async def test_a_server_that_speaks_first_need_not_wait_for_the_client() -> None:
    async def greets(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await receive_all(stream)

    async with open_native() as lab, open_server(greets) as port:
        await warm(lab, port)
        streams = [await lab.connect("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(30):
            for stream in streams:
                assert await receive(stream, 11) == b"220 ready\r\n"
                await stream.aclose()
        await lab.until_idle()


async def test_a_thread_that_panics_ends_the_proxy_with_a_sentence() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_native() as lab:
            front: Any = lab.server.front
            front._proxy.fail()
            await trio.sleep(60)
    (failure,) = caught.value.exceptions
    while isinstance(failure, ExceptionGroup):
        (failure,) = failure.exceptions
    assert isinstance(failure, NativeProxyError)
    assert "told to fail" in str(failure)
    assert "start the node again" in str(failure)


def test_which_proxy_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_proxy("python") is None
    assert load_proxy("auto") is load_proxy("native") is crate
    monkeypatch.setattr(native, "INTERFACE", 0)
    assert load_proxy("auto") is None
    with pytest.raises(NativeProxyError, match=r"no proxy for this version.*scripts/build-native"):
        load_proxy("native")


_GOOD = st.sampled_from(
    [b"example.org", b"A.B.", b"1.2.3.4", b"1a", b"::1", b"", b"a..b", b"x" * 254, b"\xc3\xa9"]
)
_NAMES = st.one_of(_GOOD, st.binary(max_size=20)).map(
    lambda raw: b"\x03" + bytes((len(raw) % 256,)) + raw[:255]
)
_ADDRESSES = st.one_of(
    _NAMES,
    st.binary(min_size=4, max_size=4).map(lambda raw: b"\x01" + raw),
    st.binary(min_size=16, max_size=16).map(lambda raw: b"\x04" + raw),
    st.binary(min_size=4, max_size=4).map(lambda raw: b"\x04" + bytes(10) + b"\xff\xff" + raw),
)
_HEADS = st.sampled_from(
    [
        b"\x05\x01\x00",
        b"\x05\x02\x00\x02\x01\x01a\x01b",
        b"\x05\x01\x02\x01\x00\x00",
        b"\x05\x00",
        b"\x05\x01\x01",
        b"",
    ]
)
_COMMANDS = st.sampled_from([b"\x05\x01\x00"] * 8 + [b"\x05\x03\x00", b"\x05\xf0\x00", b"\x04\x01\x00"])
_PORTS = st.sampled_from([b"\x01\xbb", b"\x00\x50", b"\x00\x00"])
_TAILS = st.binary(max_size=10)
_HANDSHAKES = st.one_of(
    st.builds(lambda *parts: b"".join(parts), _HEADS, _COMMANDS, _ADDRESSES, _PORTS, _TAILS),
    st.binary(max_size=60),
)


@given(_HANDSHAKES, st.lists(st.integers(0, 60), max_size=5))
def test_the_thread_understands_what_python_does_or_leaves_it(data: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in itertools.pairwise(ends)]
    answer, outcome, request = crate.try_handshake(pieces)
    machine = ProxyMachine()
    events = [event for piece in pieces for event in machine.receive(piece)]
    sent = b"".join(event.data for event in events if isinstance(event, Send))
    connects = [event for event in events if isinstance(event, Connect)]
    # Whatever was answered before a hand-over is what Python answers, too.
    assert sent.startswith(answer)
    if outcome == "more":
        assert (sent, len(events)) == (answer, len([e for e in events if isinstance(e, Send)]))
    elif outcome == "request":
        credentials, host, port, early_at = request
        (connect,) = connects
        assert sent == answer
        assert (connect.destination.host, connect.destination.port) == (host, port)
        size = int.from_bytes(credentials[:2], "big")
        isolation = isolation_of(credentials[2 : 2 + size], credentials[2 + size :])
        assert connect.isolation == (isolation if credentials else Isolation())
        assert machine._inner is not None
        early = bytes(machine._inner._buffer)
        assert data.endswith(early)
        assert len(data) - len(early) == early_at
