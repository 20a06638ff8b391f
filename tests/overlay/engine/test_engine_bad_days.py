"""Bad days of an engine on real links: what goes first, what is too much, and what is given up."""

import pytest
import trio
from engine_chain import HAS_NATIVE, open_chain
from engine_net import tcp4

from overlay.engine.interface import InnerAddresses
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
    async with open_chain(kinds, relayed=True) as chain, trio.open_nursery() as nursery:
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
        await chain.until(lambda: client.engine.budget.used_bytes > 1 << 20)
        chain.links[0][0].send_control(CONTROL)
        await trio.sleep(0.1)
        full = 0

        def pass_few(data):
            nonlocal full
            full += len(data) > 1000
            return full <= 40

        chain.relay.passes = pass_few
        await chain.until(lambda: leave.controls)
        assert leave.controls == [CONTROL]
        nursery.cancel_scope.cancel()
