"""Bad days of an engine on real links: what goes first, what is too much, and what is given up."""

import contextlib
import random

import pytest
import trio
from engine_chain import HAS_NATIVE, open_chain
from engine_net import CLIENT, tcp4
from mischief import damage, vnet

from overlay.engine.interface import InnerAddresses
from overlay.links.limits import LinkLimits
from overlay.messages import Goodbye, encode_control

OUT = bytes([93, 184, 216, 34])
native = pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
CIRCUITS = 100
"""Their streams take turns: a control message that took turns with them would come after so many packets."""
CONTROL = encode_control(Goodbye(1, "first of all"))


@native
@pytest.mark.parametrize("kinds", [("native", "native"), ("native", "python")], ids="-".join)
async def test_control_messages_go_before_circuits(kinds):
    """The path stands still until all queues are full; a control message is then among the first."""
    # However long a slow machine lets the path stand still.
    patient = LinkLimits(answer_timeout_s=300, idle_timeout_s=300, keepalive_s=300)
    async with open_chain(kinds, relayed=True, limits=patient) as chain, trio.open_nursery() as nursery:
        sources = [bytes([100, 64, 9, n]) for n in range(CIRCUITS)]
        for number, source in enumerate(sources, 1):
            chain.add_circuit(number, addresses=InnerAddresses(source, None))
        client, leave = chain.nodes
        carried = 0

        async def fill():
            while True:
                for source in sources:
                    try:
                        client.tun.send(tcp4(source, OUT, 80, b"x" * 1300))
                    except BlockingIOError:
                        await trio.sleep(0.001)
                await trio.lowlevel.checkpoint()

        def has_carried():
            nonlocal carried
            carried += len(leave.read_tun())
            return carried > 20 * CIRCUITS

        nursery.start_soon(fill)
        await chain.until(has_carried)
        chain.relay.passes = lambda _: False
        await chain.until(lambda: client.engine.budget.used_bytes > 1 << 18)
        dropped = -1
        while chain.relay.dropped != dropped:
            # What was under way when the path began to stand still must not count below.
            dropped = chain.relay.dropped
            await trio.sleep(0.3)
        chain.links[0][0].send_control(CONTROL)
        await trio.sleep(0.1)
        full = 0

        def pass_few(data):
            nonlocal full
            full += len(data) > 1000
            return full <= CIRCUITS * 2 // 3

        chain.relay.passes = pass_few
        await chain.until(lambda: leave.controls)
        assert leave.controls == [CONTROL]
        nursery.cancel_scope.cancel()


def super_packet(source, target, rng):
    """A TCP packet as a TUN with offloads gives it: larger than any link, its checksum half made."""
    packet = tcp4(source, target, 80, rng.randbytes(rng.randrange(1, 20_000)))
    header = bytes([1, 1]) + b"".join(n.to_bytes(2, "little") for n in (40, 1300, 20, 16))
    return header, packet


@native
@pytest.mark.parametrize("where", ["client", "exit"])
async def test_malformed_super_packets_of_a_tun_harm_nobody(where):
    """A kernel, or whoever feeds it, that gives headers of any kind, and packets that do not fit them."""
    rng = random.Random(20)
    async with open_chain(("native", "native", "native"), has_offload=True) as chain:
        chain.add_circuit()
        node, far = (
            (chain.nodes[0], chain.nodes[-1]) if where == "client" else (chain.nodes[-1], chain.nodes[0])
        )
        source, target = (CLIENT.v4, OUT) if where == "client" else (OUT, CLIENT.v4)
        for n in range(1500):
            header, packet = super_packet(source, target, rng)
            kind = n % 5
            if kind == 0:
                header = vnet(rng)
            elif kind == 1:
                packet = damage(rng, packet)
            elif kind == 2:
                packet = packet[: rng.randrange(len(packet))]
            elif kind == 3:
                header, packet = vnet(rng), damage(rng, packet)[: rng.randrange(60)]
            else:
                header, packet = header[: rng.randrange(10)], b""
            with contextlib.suppress(BlockingIOError):
                node.tun.send(header + packet or b"\0")
            if n % 20 == 0:
                await trio.sleep(0)
                far.read_tun()
        last = bytes(10) + tcp4(source, target, 80, b"the last one")

        def arrived():
            with contextlib.suppress(BlockingIOError):
                node.tun.send(last)
            return any(packet[10:] == last[10:] for packet in far.read_tun())

        await chain.until(arrived)
        assert [node.lost for node in chain.nodes] == [[]] * 3
        await chain.until(lambda: chain.nodes[1].engine.budget.used_bytes == 0)
