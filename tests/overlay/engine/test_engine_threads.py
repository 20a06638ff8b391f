"""The native engine with several threads: circuits whose links are on different ones, and bad days."""

import os
import socket
import struct

import pytest
import trio
from engine_chain import HAS_NATIVE, Chain, open_chain
from engine_net import CLIENT, ROOTS, tcp4, udp4
from udp_relay import udp_relay

from circuits.params import UNIT
from overlay.engine.interface import FlowFault, InnerAddresses, Price
from overlay.engine.meters import Meter
from overlay.engine.native import NativeEngine, NativeEngineError
from overlay.links.io import udp

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
OUT = bytes([93, 184, 216, 34])


def thread_of(node, link) -> int:
    return node.engine.crate.thread_of(link.name)


def is_across(chain: Chain, at: int = 1) -> bool:
    """Whether a relay's two links are on different threads."""
    node = chain.nodes[at]
    return thread_of(node, chain.links[at - 1][1]) != thread_of(node, chain.links[at][0])


async def put(node, packets):
    for packet in packets:
        while True:
            try:
                node.tun.send(packet)
                break
            except BlockingIOError:
                await trio.sleep(0.001)
        await trio.lowlevel.checkpoint()


async def take(chain, node, count):
    found = []

    def there():
        found.extend(node.read_tun())
        return len(found) >= count

    await chain.until(there)
    return found


def stream(source, destination, count, first=0):
    return [tcp4(source, destination, 80, bytes([n % 256]) * 1300, n) for n in range(first, first + count)]


def test_the_kernel_gives_packets_to_the_socket_that_their_connection_id_names():
    factor = int.from_bytes(os.urandom(4), "big") | 1
    count = 5
    group = udp.bind_group("127.0.0.1", 0, count, factor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            for n in range(60):
                cid = os.urandom(8)
                owner = ((struct.unpack_from(">I", cid)[0] * factor & 0xFFFFFFFF) >> 16) % count
                head = b"\x40" if n % 2 else b"\xc0\0\0\0\1\x08"
                sender.sendto(head + cid + bytes(40), group[0].address)
                assert group[owner].socket.recv(100)[len(head) :][:8] == cid
            # Too short to say: the first one's.
            sender.sendto(b"\x40\1", group[0].address)
            assert group[0].socket.recv(100) == b"\x40\1"
            # Nobody else gets in between, not even another node of the same user.
            with pytest.raises(OSError, match="in use"):
                udp.bind_group(*group[0].address, count, factor)
            with pytest.raises(OSError, match="in use"):
                udp.UdpSocket(*group[0].address)
        finally:
            for sock in group:
                sock.close()


def test_numbers_of_threads_that_cannot_be_are_refused():
    for threads in (0, 65):
        with pytest.raises(ValueError, match="1 to 64"):
            NativeEngine(None, memory_limit_bytes=1 << 20, threads=threads)  # type: ignore[arg-type]


async def test_a_circuit_crosses_threads_and_everything_is_counted_once():
    """Two threads: the second link of a relay is always on the one that the first is not on."""
    async with open_chain(("python", "threads", "threads", "python"), threads=2) as chain:
        assert is_across(chain, 1) and is_across(chain, 2)
        chain.add_circuit()
        client, leave = chain.nodes[0], chain.nodes[-1]
        client.engine.echo(chain.client, b"12345678")
        await chain.until(lambda: client.echoes)
        out = stream(CLIENT.v4, OUT, 300)
        back = stream(OUT, CLIENT.v4, 300)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, client, out)
            nursery.start_soon(put, leave, back)
            assert await take(chain, leave, 300) == out
            assert await take(chain, client, 300) == back
        small = [udp4(CLIENT.v4, OUT, 53, b"x" * n) for n in (0, 10, 500, 1200)]
        await put(client, small)
        assert await take(chain, leave, 4) == small
        answers = [udp4(OUT, CLIENT.v4, 7, b"y" * n) for n in (1, 700, 1200)]
        await put(leave, answers)
        assert await take(chain, client, 3) == answers
        await chain.until(lambda: len({meter.packets for meter in chain.meters[:3]}) == 1)
        await chain.until(lambda: [m.packets for m in chain.onward[1:3]] == [chain.meters[1].packets] * 2)
        for relay in chain.relays:
            counters = relay.counters
            assert counters.forward.failures == counters.backward.failures == 0
            assert counters.forward.packets + counters.backward.packets == chain.meters[1].packets
        for node in chain.nodes[1:3]:
            assert min(crossed for _, crossed, _ in node.engine.crate.thread_figures()) > 0
            await chain.until(lambda node=node: node.engine.budget.used_bytes == 0)
        assert [node.lost for node in chain.nodes] == [[]] * 4


async def test_the_end_of_a_link_on_another_thread_ends_the_circuit_once_under_full_load():
    async with open_chain(("python", "threads", "python"), threads=2) as chain:
        client, relay, leave = chain.nodes
        assert is_across(chain)
        near, far = chain.links[0][1], chain.links[1][0]
        price = Price(Meter(), 0)
        chain.add_circuit()
        idle = relay.engine.relay(ROOTS[0], 2, near, 9, price, far, 9, price)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def fill(node, source, destination):
                    while True:
                        await put(node, stream(source, destination, 64))

                nursery.start_soon(fill, client, CLIENT.v4, OUT)
                nursery.start_soon(fill, leave, OUT, CLIENT.v4)
                await take(chain, leave, 500)
                chain.links[1][1].close(0, "going")
                leave.endpoint.flush()
                await chain.until(lambda: len(relay.lost) >= 2)
                # The client learns it by the reset of its stream.
                await chain.until(lambda: client.lost)
                scope.cancel()
        lost = {flow.name: fault for flow, fault in relay.lost}
        assert lost == {chain.relays[0].name: FlowFault.LINK_CLOSED, idle.name: FlowFault.LINK_CLOSED}
        assert len(relay.lost) == 2 and relay.closed
        assert not relay.engine.circuit_id_in_use(near, 1) and not relay.engine.circuit_id_in_use(near, 9)
        await chain.until(lambda: relay.engine.budget.used_bytes == 0)


async def test_the_end_of_the_client_s_link_ends_the_outpost_on_the_other_thread():
    async with open_chain(("python", "threads", "python"), threads=2) as chain:
        client, relay, leave = chain.nodes
        chain.add_circuit()
        await put(client, stream(CLIENT.v4, OUT, 10))
        await take(chain, leave, 10)
        chain.links[0][0].close(0, "going")
        client.endpoint.flush()
        await chain.until(lambda: leave.lost)
        assert leave.lost[0][1] is FlowFault.STREAM_RESET
        assert [fault for _, fault in relay.lost] == [FlowFault.LINK_CLOSED]
        far = chain.links[1][0]
        assert far.end is None and not relay.engine.circuit_id_in_use(far, 1)


async def test_circuit_ids_are_free_again_at_once_whichever_thread_had_them():
    async with open_chain(("python", "threads", "python"), threads=2) as chain:
        client, relay, leave = chain.nodes
        near, far = chain.links[0][1], chain.links[1][0]
        price = Price(Meter(), 0)
        chain.add_circuit()
        await put(client, stream(CLIENT.v4, OUT, 3))
        await take(chain, leave, 3)
        for _ in range(200):
            # The same ids, with the home on the one thread and on the other.
            for front, back in ((near, far), (far, near)):
                flow = relay.engine.relay(ROOTS[0], 2, front, 50, price, back, 51, price)
                relay.engine.drop(flow)
                flow = relay.engine.relay(ROOTS[0], 2, front, 51, price, front, 50, price)
                relay.engine.drop(flow)
        last = relay.engine.relay(ROOTS[0], 2, far, 50, price, near, 51, price)
        await put(client, stream(CLIENT.v4, OUT, 3))
        await take(chain, leave, 3)
        assert relay.lost == [] and not last.closed


@pytest.mark.parametrize("is_steered", [True, False], ids=["steered", "by address"])
async def test_a_client_that_moves_in_mid_download_keeps_its_link(is_steered, monkeypatch):
    """Without the kernel's program, packets reach whichever thread the addresses' hash names."""
    if not is_steered:

        def refuse(*_):
            raise OSError

        monkeypatch.setattr(udp, "_steer", refuse)
    async with open_chain(("python", "threads", "python"), threads=3) as chain:
        client, relay, leave = chain.nodes
        async with udp_relay(relay.endpoint.addresses[0]) as nat:
            count = len(relay.links)
            ours = await client.endpoint.dial(nat.address, relay.identity.node_id)
            await chain.until(lambda: len(relay.links) > count)
            chain.links[0] = ours, relay.links[-1]
            chain.add_circuit()
            seen = {relay.links[-1].peer_address}
            async with trio.open_nursery() as nursery:

                async def fill():
                    while True:
                        await put(leave, stream(OUT, CLIENT.v4, 64))

                nursery.start_soon(fill)
                for _ in range(6):
                    await take(chain, client, 300)
                    nat.rebind()
                    # What the client says next comes from elsewhere.
                    await put(client, stream(CLIENT.v4, OUT, 1))
                    await chain.until(lambda: relay.links[-1].peer_address not in seen)
                    seen.add(relay.links[-1].peer_address)
                await take(chain, client, 300)
                nursery.cancel_scope.cancel()
        assert [node.lost for node in chain.nodes] == [[]] * 3
        strayed = sum(strayed for *_, strayed in relay.engine.crate.thread_figures())
        assert (strayed == 0) is is_steered


async def test_a_jam_is_held_back_across_threads():
    """The exit takes nothing: the relay holds a window at most, whichever thread holds it."""
    async with open_chain(("python", "threads", "python"), threads=2) as chain:
        client, relay, leave = chain.nodes
        assert is_across(chain)
        chain.add_circuit()
        other = relay.engine.relay(
            ROOTS[0], 2, chain.links[0][1], 5, Price(Meter(), 0), chain.links[1][0], 5, Price(Meter(), 0)
        )
        leave.engine.drop(chain.exit)
        with trio.move_on_after(20), trio.CancelScope() as scope:
            for n in range(3000):
                while True:
                    try:
                        client.tun.send(tcp4(CLIENT.v4, OUT, 80, b"x" * 1300, n))
                        break
                    except BlockingIOError:
                        await trio.sleep(0.001)
                    if relay.lost:
                        scope.cancel()
                if n % 64 == 0:
                    await trio.sleep(0)
                assert relay.engine.budget.used_bytes <= 520 * UNIT + (2 << 20)
        assert not other.closed


async def test_memory_is_one_limit_for_all_threads():
    """Nothing is paid, so that a relay holds what it was granted; the circuits that hold most are ended."""
    limit = 4 << 20
    async with open_chain(("python", "threads", "python"), threads=2, memory_limit_bytes=limit) as chain:
        relay = chain.nodes[1]
        near, far = chain.links[0][1], chain.links[1][0]
        price, poor = Price(Meter(), 0), Price(Meter(credit_wei=0), 1)
        kept = relay.engine.relay(ROOTS[0], 2, near, 1, price, far, 1, price)
        peers = (chain.links[0][0], chain.nodes[0].endpoint), (chain.links[1][1], chain.nodes[2].endpoint)
        for n in range(2, 14):
            # From both sides in turn, so that both threads hold some.
            relay.engine.relay(ROOTS[3], 2, near, n, poor, far, n, price)
            link, endpoint = peers[n % 2]
            link.send_stream(link.open_stream(), n.to_bytes(4, "big") + (b"\x30" + bytes(48 * UNIT)) * 10)
            endpoint.flush()
            await trio.sleep(0)
        await chain.until(lambda: relay.lost)
        assert {fault for _, fault in relay.lost} == {FlowFault.MEMORY}
        await chain.until(lambda: 0 < relay.engine.budget.used_bytes <= limit)
        assert not kept.closed and len(relay.lost) < 12


async def test_a_customer_s_and_an_exit_s_circuits_are_served_by_the_thread_of_their_link():
    async with open_chain(("threads", "threads"), threads=2) as chain:
        client, leave = chain.nodes
        used = {thread_of(client, chain.links[0][0])}
        links = [chain.links[0]]
        served = {thread_of(leave, chain.links[0][1])}
        while len(used) < 2 or len(served) < 2:
            count = len(leave.links)
            link = await client.endpoint.dial(leave.endpoint.addresses[0], leave.identity.node_id)
            await chain.until(lambda count=count: len(leave.links) > count)
            links.append((link, leave.links[-1]))
            used.add(thread_of(client, link))
            served.add(thread_of(leave, leave.links[-1]))
        for n, pair in enumerate(links):
            chain.links[0] = pair
            addresses = InnerAddresses(bytes([100, 64, 7, n + 1]), None)
            for circuit_id in (1, 2):
                # The second takes the address over, and the first one's end does not take it away.
                flow = chain.add_circuit(circuit_id, addresses=addresses)
                if circuit_id == 1:
                    old = flow, chain.exit
            client.engine.drop(old[0])
            leave.engine.drop(old[1])
            out, back = stream(addresses.v4, OUT, 40), stream(OUT, addresses.v4, 40)
            await put(client, out)
            assert await take(chain, leave, 40) == out
            await put(leave, back)
            assert await take(chain, client, 40) == back
        assert client.engine.unknown_packets == leave.engine.unknown_packets == 0
        # An address that nobody has any more.
        client.engine.drop(flow)
        await put(client, stream(addresses.v4, OUT, 1))
        await chain.until(lambda: client.engine.unknown_packets == 1)


async def test_an_address_follows_its_newest_circuit_from_thread_to_thread():
    async with open_chain(("threads", "python"), threads=2) as chain:
        client, leave = chain.nodes
        link = await client.endpoint.dial(leave.endpoint.addresses[0], leave.identity.node_id)
        await chain.until(lambda: len(leave.links) == 2)
        both = [chain.links[0], (link, leave.links[-1])]
        assert {thread_of(client, link) for link, _ in both} == {0, 1}
        for n in range(1, 9):
            chain.links[0] = both[n % 2]
            old = chain.client, chain.exit
            chain.add_circuit(n)
            packet = stream(CLIENT.v4, OUT, 1, n)
            await put(client, packet)
            assert await take(chain, leave, 1) == packet
            await put(leave, [udp4(OUT, CLIENT.v4, 7, bytes([n]))])
            await take(chain, client, 1)
            if old[0] is not None:
                client.engine.drop(old[0])
                leave.engine.drop(old[1])
        assert client.engine.unknown_packets == 0


async def test_a_meter_with_a_limit_belongs_to_the_thread_of_its_link():
    async with open_chain(("python", "threads", "python"), threads=2) as chain:
        relay = chain.nodes[1]
        near, far = chain.links[0][1], chain.links[1][0]
        earning = {link: Meter(credit_wei=5, low_wei=2) for link in (near, far)}
        for meter in earning.values():
            relay.engine.watch_meter(meter)
            relay.engine.add_credit(meter, [], 5)
        owed = Price(Meter(), 1)
        chain.meters[1] = earning[near]
        chain.add_circuit()
        assert chain.relays[0].counters.forward.packets == 0
        # The other way round it has its home on the other thread, with the same meter for what is owed.
        back = relay.engine.relay(ROOTS[0], 2, far, 7, Price(earning[far], 1), near, 7, owed)
        with pytest.raises(ValueError, match="one engine thread only"):
            relay.engine.relay(ROOTS[0], 2, far, 8, Price(earning[far], 1), near, 8, Price(earning[near], 1))
        assert not relay.engine.circuit_id_in_use(far, 8)
        assert [meter.credit_wei for meter in earning.values()] == [10, 10]
        await put(chain.nodes[0], [udp4(CLIENT.v4, OUT, 53, bytes(1000))] * 30)
        assert len(await take(chain, chain.nodes[2], 10)) == 10
        await chain.until(lambda: earning[near].credit_wei == 0)
        await chain.until(lambda: relay.low.count(earning[near]) == 1)
        assert earning[near].packets == 10 and earning[far].credit_wei == 10
        await chain.until(lambda: earning[near].refused_packets > 0)
        relay.engine.add_credit(earning[near], [*chain.relays, back], 4)
        await put(chain.nodes[0], [udp4(CLIENT.v4, OUT, 53, bytes(1000))] * 4)
        assert len(await take(chain, chain.nodes[2], 4)) == 4
        await chain.until(lambda: chain.onward[1].packets == 14)


@pytest.mark.parametrize("thread", [0, 2])
async def test_the_failure_of_any_thread_ends_the_node(thread):
    with pytest.RaisesGroup(
        pytest.RaisesExc(NativeEngineError, match="has failed .asked to fail."), flatten_subgroups=True
    ):
        async with open_chain(("python", "threads", "python"), threads=3) as chain:
            chain.add_circuit()
            chain.nodes[1].engine.crate.fail(thread)
            await trio.sleep(60)


async def test_dials_are_spread_over_threads():
    async with open_chain(("threads", "python"), threads=3) as chain:
        client, leave = chain.nodes
        links = [chain.links[0][0]]
        for _ in range(5):
            links.append(await client.endpoint.dial(leave.endpoint.addresses[0], leave.identity.node_id))
        assert sorted(thread_of(client, link) for link in links) == [0, 0, 1, 1, 2, 2]
        links[0].close()
        client.endpoint.flush()
        assert thread_of(client, links[0]) is None
        again = await client.endpoint.dial(leave.endpoint.addresses[0], leave.identity.node_id)
        assert thread_of(client, again) == 0
