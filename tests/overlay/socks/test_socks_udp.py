"""UDP associations on loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
import trio.testing
from socks_lab import UDP_ASSOCIATE, Lab, open_lab, receive_all

from overlay.socks.circuits import NO_ISOLATION, Transport
from overlay.socks.io.server import ProxyLimits
from overlay.socks.udp import encode_header

ZERO = "0.0.0.0"


@asynccontextmanager
async def udp_socket(host: str = "127.0.0.1") -> AsyncIterator[trio.socket.SocketType]:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((host, 0))
        yield sock


@asynccontextmanager
async def udp_echo(host: str = "127.0.0.1") -> AsyncIterator[int]:
    async def serve(sock: trio.socket.SocketType) -> None:
        while True:
            data, sender = await sock.recvfrom(65535)
            await sock.sendto(b"echo " + data, sender)

    async with udp_socket(host) as sock, trio.open_nursery() as nursery:
        nursery.start_soon(serve, sock)
        yield sock.getsockname()[1]
        nursery.cancel_scope.cancel()


async def associate(lab: Lab, host: str = ZERO, port: int = 0) -> tuple[trio.SocketStream, tuple[str, int]]:
    stream, reply = await lab.ask(UDP_ASSOCIATE, host, port)
    assert reply[1] == 0, reply
    return stream, (str(ip_address(reply[4:-2])), int.from_bytes(reply[-2:], "big"))


async def exchange(
    client: trio.socket.SocketType, relay: tuple[str, int], datagram: bytes, patience_s: float = 20.0
) -> bytes | None:
    """Send a datagram; return what comes back."""
    await client.sendto(datagram, relay)
    with trio.move_on_after(patience_s):
        data, sender = await client.recvfrom(65535)
        assert sender == relay
        return data
    return None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_echo(host: str) -> None:
    async with open_lab() as lab, udp_echo(host) as port, udp_socket() as client:
        _stream, relay = await associate(lab)
        header = encode_header(host, port)
        assert await exchange(client, relay, header + b"hello") == header + b"echo hello"
        assert await exchange(client, relay, header) == header + b"echo "
        big = b"x" * 20000
        assert await exchange(client, relay, header + big) == header + b"echo " + big
        assert lab.circuits.asked[0][0] == NO_ISOLATION
        assert lab.circuits.asked[0][1].transport is Transport.UDP


async def test_names_are_resolved_while_datagrams_wait() -> None:
    async with open_lab() as lab, udp_echo() as port, udp_socket() as client:
        asked = trio.Event()
        answered = trio.Event()

        class Names:
            queries = 0

            def known(self, *_: object) -> None:
                return None

            async def addresses(self, *_: object) -> list[str]:
                asked.set()
                await answered.wait()
                return ["127.0.0.1"]

        lab.server.resolver = Names()  # type: ignore[assignment]
        _stream, relay = await associate(lab)
        for number in range(100):
            await client.sendto(encode_header("a.example", port) + b"%d" % number, relay)
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        answered.set()
        received = {await client.recv(100) for _ in range(32)}
        assert received == {encode_header("127.0.0.1", port) + b"echo %d" % number for number in range(32)}
        with trio.move_on_after(0.1) as scope:
            await client.recv(100)
        assert scope.cancelled_caught


async def test_only_the_client_may_use_it() -> None:
    async with open_lab() as lab, udp_echo() as port, udp_socket() as client, udp_socket() as other:
        header = encode_header("127.0.0.1", port)
        _stream, relay = await associate(lab)
        assert await exchange(client, relay, header + b"mine") is not None
        assert await exchange(other, relay, header + b"not mine", 0.2) is None
        # One that announced its port is held to it from the start.
        _second, relay = await associate(lab, "127.0.0.1", client.getsockname()[1])
        assert await exchange(other, relay, header + b"not mine", 0.2) is None
        assert await exchange(client, relay, header + b"mine") is not None
        # One from another address than the TCP connection's never may.
        async with udp_socket("127.0.0.2") as stranger:
            _third, relay = await associate(lab)
            assert await exchange(stranger, relay, header + b"not mine", 0.2) is None


async def test_bad_datagrams_are_dropped() -> None:
    async with open_lab() as lab, udp_echo() as port, udp_socket() as client:
        _stream, relay = await associate(lab)
        header = encode_header("127.0.0.1", port)
        for bad in (
            b"",
            b"x",
            header[:5],
            b"\0\0\1" + header[3:] + b"fragment",
            encode_header("127.0.0.1", 0),
        ):
            assert await exchange(client, relay, bad, 0.2) is None
        lab.circuits.source_v6 = None
        _second, relay_v4 = await associate(lab)
        async with udp_socket() as other:
            assert await exchange(other, relay_v4, encode_header("::1", port) + b"x", 0.2) is None
        assert await exchange(client, relay, header + b"good") is not None


async def test_it_ends_with_its_connection_and_with_its_circuit() -> None:
    async with open_lab() as lab, udp_echo() as port, udp_socket() as client:
        header = encode_header("127.0.0.1", port)
        stream, relay = await associate(lab)
        await stream.send_all(b"ignored")
        assert await exchange(client, relay, header) is not None
        await stream.aclose()
        await lab.until_idle()
        assert lab.server.associations == 0
        stream, _ = await associate(lab)
        lab.circuits.leases[-1].die()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stream)
        await lab.until_idle()


async def test_their_number_is_bounded() -> None:
    async with open_lab(ProxyLimits(max_associations=2)) as lab:
        held = [await associate(lab) for _ in range(2)]
        _, reply = await lab.ask(UDP_ASSOCIATE, ZERO, 0)
        assert reply[1] == 1
        await held[0][0].aclose()
        with trio.fail_after(30):
            while lab.server.associations == 2:
                await trio.sleep(0.005)
        await associate(lab)
