"""Names resolved at the exit: what is asked, what is remembered, what is answered."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from socks_lab import CONNECT, RESOLVE, RESOLVE_PTR, FakeCircuit, Lab, echo, open_lab, open_server, receive

from overlay.errors import DecodeError
from overlay.socks.names import (
    AAAA,
    MAX_ADDRESSES,
    MAX_TTL_S,
    MIN_TTL_S,
    NO_SUCH_NAME,
    A,
    Answer,
    NameCache,
    decode_answer,
    encode_query,
    order_addresses,
)
from overlay.socks.outcome import Reply

ZONE = {
    ("both.example", "A"): "127.0.0.1",
    ("both.example", "AAAA"): "::1",
    ("v4.example", "A"): "127.0.0.1",
    ("v6.example", "AAAA"): "::1",
    ("elsewhere.example", "AAAA"): "100::7",
    ("elsewhere.example", "A"): "127.0.0.1",
    ("1.0.0.127.in-addr.arpa", "PTR"): "both.example.",
    ("long.example", "A"): "127.0.0.1",
}


class Zone:
    """A DNS server's mind: answers from ZONE and counts the questions."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.drop_first = 0
        self.ttl_s = 300
        self.before: Callable[[str, str], object] = lambda name, kind: None

    def answer(self, wire: bytes, *, is_tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if self.drop_first:
            self.drop_first -= 1
            return []
        response = dns.message.make_response(query)
        value = ZONE.get((name, kind))
        if name == "long.example" and not is_tcp:
            response.flags |= dns.flags.TC
        elif name == "denied.example":
            response.set_rcode(dns.rcode.REFUSED)
        elif name == "alias.example":
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", "v4.example."))
            if kind == "A":
                response.answer.append(dns.rrset.from_text("v4.example.", 60, "IN", "A", "127.0.0.1"))
        elif value is not None:
            response.answer.append(dns.rrset.from_text(question.name, self.ttl_s, "IN", kind, value))
        elif not any(known == name for known, _ in ZONE):
            response.set_rcode(dns.rcode.NXDOMAIN)
        other = dns.message.make_response(dns.message.make_query("other.example", "A"))
        # First what must be ignored: garbage, and an answer to another question.
        return [b"garbage", other.to_wire(), response.to_wire()]


async def _same_port() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Return a UDP socket and a listening TCP socket on one port that is free for both."""
    while True:
        udp, tcp = trio.socket.socket(type=trio.socket.SOCK_DGRAM), trio.socket.socket()
        await tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        try:
            await udp.bind(tcp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
        else:
            return udp, tcp


@asynccontextmanager
async def open_zone() -> AsyncIterator[tuple[Zone, Lab]]:
    zone = Zone()
    udp, tcp = await _same_port()
    port = udp.getsockname()[1]

    async def serve_udp() -> None:
        while True:
            wire, sender = await udp.recvfrom(65535)
            for answer in zone.answer(wire, is_tcp=False):
                await udp.sendto(answer, sender)

    async def serve_tcp() -> None:
        while True:
            client, _ = await tcp.accept()
            stream = trio.SocketStream(client)
            size = int.from_bytes(await receive(stream, 2), "big")
            answer = zone.answer(await receive(stream, size), is_tcp=True)[-1]
            await stream.send_all(len(answer).to_bytes(2, "big") + answer)

    with udp, tcp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(serve_tcp)
            async with open_lab(dns_port=port) as lab:
                yield zone, lab
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("v4.example", "127.0.0.1"),
        ("v6.example", "::1"),
        ("both.example", "::1"),
        ("both.example", "127.0.0.1"),
        ("elsewhere.example", "127.0.0.1"),
        ("alias.example", "127.0.0.1"),
        ("long.example", "127.0.0.1"),
    ],
)
async def test_connects_to_names(name: str, host: str) -> None:
    async with open_zone() as (_, lab), open_server(echo, host) as port:
        stream = await lab.connect(name, port, early=b"hello")
        assert await receive(stream, 5) == b"hello"


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with open_zone() as (_, lab), open_server(echo) as port:
        # A full queue answers no SYN.
        with trio.socket.socket(trio.socket.AF_INET6) as hole:
            await hole.bind(("::1", port))
            hole.listen(0)
            fillers = [trio.socket.socket(trio.socket.AF_INET6) for _ in range(3)]
            for filler in fillers:
                filler._sock.setblocking(False)  # type: ignore[attr-defined]
                filler._sock.connect_ex(("::1", port))  # type: ignore[attr-defined]
            started = trio.current_time()
            stream = await lab.connect("both.example", port, early=b"hello")
            assert await receive(stream, 5) == b"hello"
            assert 0.2 < trio.current_time() - started < 20  # connecting may take 60
            for filler in fillers:
                filler.close()


async def test_lookups() -> None:
    async with open_zone() as (_, lab):
        _, reply = await lab.ask(RESOLVE, "v4.example", 0)
        assert reply == b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"
        _, reply = await lab.ask(RESOLVE, "192.0.2.7", 0)
        assert reply == b"\x05\x00\x00\x01\xc0\x00\x02\x07\x00\x00"
        _, reply = await lab.ask(RESOLVE, "v6.example", 0)
        assert reply[:4] == b"\x05\x00\x00\x04"
        _, reply = await lab.ask(RESOLVE_PTR, "127.0.0.1", 0)
        assert reply == b"\x05\x00\x00\x03both.example\x00\x00"
        _, reply = await lab.ask(RESOLVE_PTR, "192.0.2.7", 0)
        assert reply[1] == Reply.HOST_UNREACHABLE


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("missing.example", Reply.HOST_UNREACHABLE),
        ("denied.example", Reply.NOT_ALLOWED),
        ("a" * 70 + ".example", Reply.HOST_UNREACHABLE),
        ("localhost", Reply.HOST_UNREACHABLE),
    ],
)
async def test_names_without_an_address(name: str, reply: Reply) -> None:
    async with open_zone() as (_, lab):
        for command in (CONNECT, RESOLVE, CONNECT):
            assert (await lab.ask(command, name, 80))[1][1] == reply


async def test_one_circuit_asks_once_and_tells_no_other() -> None:
    async with open_zone() as (zone, lab), open_server(echo) as port:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(lab.connect, "v4.example", port)
        await lab.connect("v4.example", port)
        await lab.ask(CONNECT, "missing.example", 80)
        await lab.ask(CONNECT, "missing.example", 80)
        assert zone.asked == {
            ("v4.example", "A"): 1,
            ("v4.example", "AAAA"): 1,
            ("missing.example", "A"): 1,
            ("missing.example", "AAAA"): 1,
        }
        lab.circuits.circuit = FakeCircuit()
        lab.server.revoke_grants()
        await lab.connect("v4.example", port)
        assert zone.asked["v4.example", "A"] == 2


async def test_an_exit_without_ipv6_is_not_asked_for_it() -> None:
    async with open_zone() as (zone, lab):
        lab.circuits.source_v6 = None
        assert (await lab.ask(RESOLVE, "both.example", 0))[1][3] == 1
        assert (await lab.ask(CONNECT, "v6.example", 80))[1][1] == Reply.HOST_UNREACHABLE
        assert {kind for _, kind in zone.asked} == {"A"}


async def test_lost_queries_are_repeated(autojump_clock: trio.testing.MockClock) -> None:
    async with open_zone() as (zone, lab):
        zone.drop_first = 2
        _, reply = await lab.ask(RESOLVE, "v4.example", 0)
        assert reply[1] == Reply.SUCCEEDED
        assert zone.asked["v4.example", "A"] == 2


async def test_silence_ends_in_a_refusal(autojump_clock: trio.testing.MockClock) -> None:
    async with open_zone() as (zone, lab):
        zone.drop_first = 1000
        started = trio.current_time()
        _, reply = await lab.ask(CONNECT, "v4.example", 80)
        assert reply[1] == Reply.HOST_UNREACHABLE
        assert trio.current_time() - started < 15


async def test_a_name_outlives_the_client_who_asked_first() -> None:
    async with open_zone() as (zone, lab), open_server(echo) as port, trio.open_nursery() as nursery:
        zone.drop_first = 2
        first = await lab.dial()
        await first.send_all(b"\x05\x01\x00\x05\x01\x00\x03\x0av4.example" + port.to_bytes(2, "big"))
        await receive(first, 2)
        with trio.fail_after(30):
            while not zone.asked:
                await trio.sleep(0.005)
        nursery.start_soon(lab.connect, "v4.example", port)
        await trio.testing.wait_all_tasks_blocked(0.02)
        first.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await first.aclose()


def query(name: str = "a.example", kind: int = A) -> bytes:
    wire = encode_query(name, kind, 7)
    assert wire is not None
    return wire


def respond(wire: bytes, *records: str, name: str = "a.example.", ttl_s: int = 300) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(wire))
    if records:
        response.answer.append(dns.rrset.from_text(name, ttl_s, "IN", "A", *records))
    return response.to_wire()


def test_answers_are_bounded() -> None:
    many = [f"192.0.2.{number}" for number in range(50)]
    answer = decode_answer(respond(query(), *many), query())
    assert len(answer.found) == MAX_ADDRESSES
    assert decode_answer(respond(query(), "192.0.2.1", ttl_s=0), query()).ttl_s == MIN_TTL_S
    assert decode_answer(respond(query(), "192.0.2.1", ttl_s=1 << 30), query()).ttl_s == MAX_TTL_S
    assert decode_answer(respond(query()), query()) == NO_SUCH_NAME
    assert decode_answer(respond(query(), "192.0.2.1", name="b.example."), query()) == NO_SUCH_NAME


def test_what_is_no_answer_is_refused() -> None:
    wire = respond(query(), "192.0.2.1")
    for wrong in (b"", wire[:20], query(), b"\x00\x08" + wire[2:], respond(query("b.example"), "192.0.2.1")):
        with pytest.raises(DecodeError):
            decode_answer(wrong, query())


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_are_an_answer_or_a_decode_error(data: bytes, at: int) -> None:
    wire = respond(query(), "192.0.2.1")
    for mutated in (data, wire[:2] + data, wire[:at] + data + wire[at + len(data) :]):
        try:
            decode_answer(mutated, query())
        except DecodeError:
            continue


@given(st.text(max_size=300))
def test_any_text_is_a_query_or_none(name: str) -> None:
    for kind in (A, AAAA, dns.rdatatype.PTR):
        encode_query(name, kind, 1)


def test_the_cache_forgets() -> None:
    cache = NameCache(limit=2)
    good = Answer(("192.0.2.1",), 10.0)
    cache.put("a", A, good, 100.0)
    assert cache.get("a", A, 109.9) == good
    assert cache.get("a", A, 110.0) is None
    assert cache.get("a", AAAA, 100.0) is None
    cache.put("nothing", A, Answer((), 0.0), 100.0)
    cache.put("b", A, good, 100.0)
    cache.put("c", A, good, 100.0)
    assert cache.get("a", A, 100.0) is None
    assert cache.get("b", A, 100.0) == cache.get("c", A, 100.0) == good


def test_ipv6_first_then_alternating() -> None:
    assert order_addresses(("6a", "6b"), ("4a", "4b", "4c")) == ["6a", "4a", "6b", "4b", "4c"]
    assert order_addresses((), ("4a",)) == ["4a"]
    assert len(order_addresses(("6",) * 8, ("4",) * 8)) == MAX_ADDRESSES
