"""The DNS server on loopback, against resolvers that behave, and that do not."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio

import exit.dns.upstream
import exit.io.dns as server_module
from exit.denied import DenyList
from exit.dns.rules import Rules
from exit.dns.upstream import Upstream
from exit.errors import EnvError
from exit.io.dns import DnsServer, Quota, open_dns

HOST = "127.0.0.1"
ZONE = {
    ("www.example.", "A"): ["9.9.9.9"],
    ("www.example.", "AAAA"): ["2606::9"],
    ("inside.example.", "A"): ["10.0.0.1"],
    ("big.example.", "TXT"): [f'"{"x" * 250}"'] * 20,
    ("alias.example.", "CNAME"): ["www.example."],
}


@dataclass
class Fake:
    """A resolver of the zone above. `spoil` may change or swallow its UDP responses."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    tcp_asked: int = 0
    spoil: Callable[[bytes], list[bytes]] = lambda wire: [wire]
    gate: trio.Event | None = None

    def respond(self, wire: bytes, limit: int) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(query)
        found = ZONE.get((name, kind))
        alias = ZONE.get((name, "CNAME"))
        if found:
            texts = (
                list(dict.fromkeys(found))
                if kind != "TXT"
                else [f'"{index}" {text}' for index, text in enumerate(found)]
            )
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *texts))
        elif alias:
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", *alias))
        elif not any(known == name for known, _ in ZONE):
            reply.set_rcode(dns.rcode.NXDOMAIN)
            reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA", "ns. root. 1 2 3 4 60"))
        with contextlib.suppress(dns.exception.DNSException):
            return reply.to_wire(max_size=limit)
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire()

    async def serve_udp(self, sock: trio.socket.SocketType) -> None:
        while True:
            wire, peer = await sock.recvfrom(65535)
            if self.gate is not None:
                await self.gate.wait()
            for response in self.spoil(self.respond(wire, 512)):
                await sock.sendto(response, peer)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = await stream.receive_some(2)
            wire = await stream.receive_some(int.from_bytes(head, "big"))
            self.tcp_asked += 1
            response = self.respond(wire, 65535)
            await stream.send_all(struct.pack(">H", len(response)) + response)


@contextlib.asynccontextmanager
async def fake_resolver() -> AsyncIterator[Fake]:
    fake = Fake()
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        fake.port = listener.socket.getsockname()[1]
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await sock.bind((HOST, fake.port))
        nursery.start_soon(fake.serve_udp, sock)
        nursery.start_soon(trio.serve_listeners, fake.serve_tcp, [listener])
        with sock:
            yield fake
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def serving(*upstreams: Upstream, has_ipv6: bool = True, **options: object) -> AsyncIterator[DnsServer]:
    rules = Rules(has_ipv6=has_ipv6)
    with trio.fail_after(60):
        async with open_dns([HOST], rules, DenyList, upstreams, port=0, **options) as server:  # type: ignore[arg-type]
            yield server


async def ask(server: DnsServer, name: str, kind: str = "A", **options: object) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.connect((HOST, server.port))
        await sock.send(query.to_wire())
        reply = dns.message.from_wire(await sock.recv(65535))
    assert reply.id == query.id
    return reply


async def ask_tcp(server: DnsServer, *queries: dns.message.Message) -> list[dns.message.Message]:
    replies = []
    async with await trio.open_tcp_stream(HOST, server.port) as stream:
        for query in queries:
            wire = query.to_wire()
            await stream.send_all(struct.pack(">H", len(wire)) + wire)
            buffer = b""
            while len(buffer) < 2 or len(buffer) < 2 + int.from_bytes(buffer[:2], "big"):
                piece = await stream.receive_some(65535)
                assert piece
                buffer += piece
            replies.append(dns.message.from_wire(buffer[2:]))
    return replies


def addresses(reply: dns.message.Message) -> list[str]:
    return [rdata.to_text() for rrset in reply.answer for rdata in rrset]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let silent resolvers cost milliseconds."""
    monkeypatch.setattr(exit.dns.upstream, "PATIENCE_S", (0.05, 0.1))


async def test_answers_and_cache() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        for _ in range(3):
            assert addresses(await ask(server, "www.example")) == ["9.9.9.9"]
            assert addresses(await ask(server, "WWW.example", "AAAA")) == ["2606::9"]
            assert (await ask(server, "none.example")).rcode() == dns.rcode.NXDOMAIN
            assert addresses(await ask(server, "alias.example")) == ["www.example.", "9.9.9.9"]
        # the alias's target is asked about, since this resolver does not follow aliases
        assert sorted(fake.asked) == [
            ("alias.example.", "A"),
            ("none.example.", "A"),
            ("www.example.", "A"),
            ("www.example.", "A"),
            ("www.example.", "AAAA"),
        ]
        wire = dns.message.make_query("www.example", "A").to_wire()
        known = server.resolver.try_wire(wire)
        assert known is not None
        assert addresses(dns.message.from_wire(known)) == ["9.9.9.9"]
        assert server.resolver.try_wire(wire.replace(b"www", b"xyz")) is None
        assert server.resolver.try_wire(b"garbage") is None


async def test_refusals_need_no_resolver() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port), has_ipv6=False) as server:
        assert (await ask(server, "printer.local")).rcode() == dns.rcode.NXDOMAIN
        assert (await ask(server, "1.0.0.10.in-addr.arpa", "PTR")).rcode() == dns.rcode.REFUSED
        assert (await ask(server, "www.example", "ANY")).rcode() == dns.rcode.REFUSED
        empty = await ask(server, "www.example", "AAAA")
        assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])
        assert fake.asked == []


async def test_answers_into_denied_ranges_are_refused() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        reply = await ask(server, "inside.example", use_edns=0)
        assert reply.rcode() == dns.rcode.REFUSED
        assert reply.answer == []
        assert "EDE 15" in reply.to_text()


async def test_large_answers_go_over_tcp_both_ways() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        reply = await ask(server, "big.example", "TXT", use_edns=0, payload=4096)
        assert reply.flags & dns.flags.TC
        assert reply.answer == []
        assert fake.tcp_asked == 1
        big, small = await ask_tcp(
            server, dns.message.make_query("big.example", "TXT"), dns.message.make_query("www.example", "A")
        )
        assert len(addresses(big)) == 20
        assert addresses(small) == ["9.9.9.9"]
        assert fake.tcp_asked == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wire: [],
        lambda wire: [b"", b"x", wire[:11], b"\0\0" + wire[2:]],
        lambda wire: [wire[:3] + bytes([wire[3] & 0xF0 | 2]) + wire[4:]],
        lambda wire: [wire[:3] + bytes([wire[3] & 0xF0 | 5]) + wire[4:]],
        lambda wire: [wire[:-20]],
        lambda wire: [wire.replace(b"\x09\x09\x09\x09", b"\x09\x09"), wire.replace(b"www", b"xyz")],
    ],
)
@pytest.mark.usefixtures("hurry")
async def test_the_next_resolver_is_asked(spoil: Callable[[bytes], list[bytes]]) -> None:
    async with fake_resolver() as bad, fake_resolver() as good:
        bad.spoil = spoil
        async with serving(Upstream(HOST, bad.port), Upstream(HOST, good.port)) as server:
            assert addresses(await ask(server, "www.example")) == ["9.9.9.9"]
            assert len(bad.asked) == 1


@pytest.mark.usefixtures("hurry")
async def test_forgeries_before_the_answer_are_passed_over() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        forged = b"\x06\x06\x06\x06"
        fake.spoil = lambda wire: [b"\0\0" + wire[2:].replace(b"\x09\x09\x09\x09", forged), wire]
        assert addresses(await ask(server, "www.example")) == ["9.9.9.9"]
        assert len(fake.asked) == 1


@pytest.mark.usefixtures("hurry")
async def test_without_any_answer_the_customer_is_told() -> None:
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind((HOST, 0))
    port = closed.getsockname()[1]
    closed.close()
    async with fake_resolver() as silent:
        silent.spoil = lambda wire: []
        async with serving(Upstream(HOST, port), Upstream(HOST, silent.port)) as server:
            reply = await ask(server, "www.example", use_edns=0)
            assert reply.rcode() == dns.rcode.SERVFAIL
            assert "EDE 22" in reply.to_text()
            assert server.resolver.failures == 1
            asked = len(silent.asked)
            assert (await ask(server, "www.example")).rcode() == dns.rcode.SERVFAIL
            # known to fail for a few seconds; the question with EDNS has the same key
            assert len(silent.asked) == asked


async def test_a_bug_in_a_lookup_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import exit.io.resolver

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(exit.io.resolver, "finish_answer", broken)
            assert (await ask(server, "www.example")).rcode() == dns.rcode.SERVFAIL
        assert addresses(await ask(server, "www.example", "AAAA")) == ["2606::9"]


async def test_the_same_question_is_looked_up_once() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        fake.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, server, "www.example")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(server.resolver._lookups) == 1
            fake.gate.set()
        assert fake.asked == [("www.example.", "A")]
        assert server._waiting.total == 0


async def test_one_customer_cannot_wait_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_WAITING_PER_CLIENT", 5)
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        fake.gate = trio.Event()
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect((HOST, server.port))
            for number in range(50):
                await sock.send(dns.message.make_query(f"n{number}.example", "A").to_wire())
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert server.dropped == 45
            # what needs no lookup is answered all the same
            assert (await ask(server, "x.local")).rcode() == dns.rcode.NXDOMAIN
            fake.gate.set()
            for _ in range(5):
                await sock.recv(1000)


async def test_garbage_gets_format_errors_or_nothing() -> None:
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect((HOST, server.port))
            for wire in (
                b"",
                b"x",
                bytes(5000),
                b"\xff" * 100,
                dns.message.make_query("a.", "A").to_wire()[:-1],
            ):
                await sock.send(wire)
            await sock.send(dns.message.make_query("x.local", "A").to_wire())
            codes = []
            while not codes or codes[-1] != dns.rcode.NXDOMAIN:
                reply = await sock.recv(65535)
                codes.append(reply[3] & 15)
        assert codes == [dns.rcode.FORMERR, dns.rcode.FORMERR, dns.rcode.NXDOMAIN]
        assert fake.asked == []


async def test_tcp_garbage_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_PER_CLIENT", 3)
    monkeypatch.setattr(server_module, "IDLE_S", 0.2)
    async with fake_resolver() as fake, serving(Upstream(HOST, fake.port)) as server:
        for wire in (b"", b"\0", b"\0\0", b"\xff\xff" + bytes(100), b"\0\x05hello", b"\0\x20abc"):
            async with await trio.open_tcp_stream(HOST, server.port) as stream:
                await stream.send_all(wire)
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(100) == b""
        streams = [await trio.open_tcp_stream(HOST, server.port) for _ in range(3)]
        async with await trio.open_tcp_stream(HOST, server.port) as stream:
            assert await stream.receive_some(1) == b""
        assert server.dropped == 1
        for stream in streams:
            assert await stream.receive_some(1) == b"", "idle connections are closed"
            await stream.aclose()
        [reply] = await ask_tcp(server, dns.message.make_query("www.example", "A"))
        assert addresses(reply) == ["9.9.9.9"]


async def test_the_systems_resolvers_are_read_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exit.io.resolver

    monkeypatch.setattr(exit.io.resolver, "RELOAD_S", 0.0)
    path = tmp_path / "resolv.conf"
    with pytest.raises(EnvError, match="no DNS resolver"):
        async with serving(resolv_conf=path):
            pass
    path.write_text("nameserver 192.0.2.1\n")
    async with serving(resolv_conf=path) as server:
        order = server.resolver._order
        assert order.attempts(0.0)[0][0] == Upstream("192.0.2.1")
        path.write_text("nameserver 192.0.2.22\n")
        server.resolver._reload()
        assert order.attempts(0.0)[0][0] == Upstream("192.0.2.22")
        path.write_text("")
        server.resolver._reload()
        path.unlink()
        server.resolver._reload()
        assert order.attempts(0.0)[0][0] == Upstream("192.0.2.22")


async def test_an_address_in_use_is_named() -> None:
    async with fake_resolver() as fake:
        rules = Rules(has_ipv6=True)
        with pytest.raises(EnvError, match=f"cannot serve DNS on {HOST}"):
            async with open_dns([HOST], rules, DenyList, [Upstream(HOST, fake.port)], port=fake.port):
                pass


def test_quota() -> None:
    quota = Quota(2, 3)
    assert [quota.take("a"), quota.take("a"), quota.take("a"), quota.take("b"), quota.take("b")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    quota.give_back("a")
    assert quota.take("b")
    for client in ("a", "b", "b"):
        quota.give_back(client)
    assert (quota.total, quota._counts) == (0, {})
