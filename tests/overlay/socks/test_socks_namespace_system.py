"""The proxy on a real namespace: what an exit's answers on the TUN become in SOCKS5."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from ipaddress import ip_address

import pytest
import trio
from socks_lab import CONNECT, FakeCircuits, FakeLease, Lab, receive

from exit.io.namespace import Namespace, open_namespace
from overlay.socks.io.listeners import open_listeners
from overlay.socks.io.server import ProxyServer, serve_proxy

pytestmark = pytest.mark.system

V4, V6 = "100.64.3.7", "fd68:6f70:6661::307"
VNET_HEADER = bytes(10)


def _may_make_namespaces() -> bool:
    flags = ["--net", "--mount"] if os.geteuid() == 0 else ["--user", "--net", "--mount"]
    done = subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False)
    return done.returncode == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)


if not _may_make_namespaces():
    pytest.skip("this machine lets us make no namespaces or no TUN", allow_module_level=True)


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + target + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + source + target
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


class Syn:
    """A SYN read from the TUN, and the answers to it."""

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        is_v6 = packet[0] >> 4 == 6
        self.source, self.target = (packet[8:24], packet[24:40]) if is_v6 else (packet[12:16], packet[16:20])
        self.tcp = packet[40:] if is_v6 else packet[20:]
        self.is_v6 = is_v6

    def icmp(self, kind: int, code: int) -> bytes:
        protocol = 58 if self.is_v6 else 1
        body = struct.pack("!BBHI", kind, code, 0, 0) + self.packet
        pseudo = self.target + self.source + struct.pack("!II", len(body), 58) if self.is_v6 else b""
        body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
        return ip_packet(self.target, self.source, protocol, body)

    def segment(self, flags: int, sequence: int = 1000, payload: bytes = b"") -> bytes:
        source_port, target_port, received = struct.unpack_from("!HHI", self.tcp)
        head = struct.pack(
            "!HHIIBBHHH", target_port, source_port, sequence, received + 1, 0x50, flags, 65535, 0, 0
        )
        size = len(head + payload)
        pseudo = self.target + self.source
        pseudo += struct.pack("!II", size, 6) if self.is_v6 else struct.pack("!HH", 6, size)
        check = checksum(pseudo + head + payload)
        return ip_packet(
            self.target, self.source, 6, head[:16] + struct.pack("!H", check) + head[18:] + payload
        )


Answers = dict[str, Callable[[Syn], bytes]]


async def answer(ns: Namespace, answers: Answers, seen: list[Syn]) -> None:
    while True:
        for raw in ns.tun.read_batch():
            packet = raw[10:]
            protocol = packet[6] if packet[0] >> 4 == 6 else packet[9]
            if protocol != 6:
                continue
            syn = Syn(packet)
            if syn.tcp[13] == 0x02:
                seen.append(syn)
                ns.tun.write(VNET_HEADER + answers[str(ip_address(syn.target))](syn))
        await trio.lowlevel.wait_readable(ns.tun.fileno())


class InnerCircuits(FakeCircuits):
    def _lend(self) -> FakeLease:
        lease = FakeLease(self.circuit, V6)
        lease.source_v4 = V4
        self.leases.append(lease)
        return lease


ANSWERS: Answers = {
    "198.51.100.1": lambda syn: syn.segment(0x14),  # RST, ACK
    "198.51.100.2": lambda syn: syn.icmp(3, 0),
    "198.51.100.3": lambda syn: syn.icmp(3, 1),
    "198.51.100.4": lambda syn: syn.icmp(3, 13),
    "198.51.100.5": lambda syn: syn.icmp(11, 0),
    "198.51.100.6": lambda syn: syn.icmp(3, 3),
    "198.51.100.7": lambda syn: syn.segment(0x12),  # SYN, ACK
    "2001:db8::1": lambda syn: syn.segment(0x14),
    "2001:db8::2": lambda syn: syn.icmp(1, 0),
    "2001:db8::3": lambda syn: syn.icmp(1, 3),
    "2001:db8::4": lambda syn: syn.icmp(1, 1),
    "2001:db8::5": lambda syn: syn.icmp(3, 0),
    "2001:db8::6": lambda syn: syn.icmp(1, 4),
    "2001:db8::7": lambda syn: syn.segment(0x12),
}
REPLIES = {1: 5, 2: 3, 3: 4, 4: 2, 5: 6, 6: 5, 7: 0}


async def test_what_the_exit_answers_decides_the_reply() -> None:
    circuits = InnerCircuits()
    seen: list[Syn] = []
    with open_listeners([("127.0.0.1", 0)])[0] as listener:
        async with open_namespace() as ns, trio.open_nursery() as nursery:
            await ns.add_addresses(V4, V6)
            nursery.start_soon(answer, ns, ANSWERS, seen)

            async def serve(task_status: trio.TaskStatus[ProxyServer]) -> None:
                await serve_proxy([listener], circuits, ns, task_status=task_status)

            lab = Lab(await nursery.start(serve), circuits, ns)  # type: ignore[arg-type]
            with trio.fail_after(60):
                for host in ANSWERS:
                    _, reply = await lab.ask(CONNECT, host, 443)
                    assert reply[1] == REPLIES[int(host[-1])], host
            assert {str(ip_address(syn.source)) for syn in seen} == {V4, V6}
            # MSS, no-op, no-op, SACK, no-op, window scale; no timestamps, whatever the machine does.
            assert {syn.tcp[20] for syn in seen} == {2}
            assert all(b"\x08\x0a" not in syn.tcp[20:] for syn in seen)
            nursery.cancel_scope.cancel()
    assert all(lease.is_released for lease in circuits.leases)


async def test_a_server_that_speaks_first_and_circuit_loss() -> None:
    circuits = InnerCircuits()
    seen: list[Syn] = []
    with open_listeners([("127.0.0.1", 0)])[0] as listener:
        async with open_namespace() as ns, trio.open_nursery() as nursery:
            await ns.add_addresses(V4, V6)
            nursery.start_soon(answer, ns, ANSWERS, seen)

            async def serve(task_status: trio.TaskStatus[ProxyServer]) -> None:
                await serve_proxy([listener], circuits, ns, task_status=task_status)

            lab = Lab(await nursery.start(serve), circuits, ns)  # type: ignore[arg-type]
            with trio.fail_after(60):
                stream, _ = await lab.ask(CONNECT, "198.51.100.7", 22)
                ns.tun.write(VNET_HEADER + seen[-1].segment(0x18, 1001, b"SSH-2.0-x\r\n"))
                assert await receive(stream, 11) == b"SSH-2.0-x\r\n"
                # The circuit's address goes away before anybody says that the circuit is dead.
                await ns.remove_addresses(V4, V6)
                with pytest.raises(trio.BrokenResourceError):
                    await receive(stream, 1)
            nursery.cancel_scope.cancel()


async def test_a_connect_survives_an_empty_pool() -> None:
    circuits = InnerCircuits()
    seen: list[Syn] = []
    pool = {(socket.AF_INET, socket.SOCK_STREAM): 2, (socket.AF_INET6, socket.SOCK_STREAM): 1}
    with open_listeners([("127.0.0.1", 0)])[0] as listener:
        async with open_namespace(pool=pool) as ns, trio.open_nursery() as nursery:
            await ns.add_addresses(V4, V6)
            nursery.start_soon(answer, ns, ANSWERS, seen)

            async def serve(task_status: trio.TaskStatus[ProxyServer]) -> None:
                await serve_proxy([listener], circuits, ns, task_status=task_status)

            lab = Lab(await nursery.start(serve), circuits, ns)  # type: ignore[arg-type]

            async def client() -> None:
                _, reply = await lab.ask(CONNECT, "198.51.100.7", 22)
                assert reply[1] == 0

            with trio.fail_after(60):
                async with trio.open_nursery() as clients:
                    for _ in range(100):
                        clients.start_soon(client)
            nursery.cancel_scope.cancel()
