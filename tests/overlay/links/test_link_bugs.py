"""An error of ours above a link costs that link, not the endpoint and not its other links."""

import pytest
import trio
from links_net import ACCEPTOR, DIALLER, Recorder

from overlay.links.constants import CloseCode
from overlay.links.io.endpoint import open_endpoint
from overlay.messages import Goodbye, encode_control

HOST = ("127.0.0.1", 0)
FINE, FATAL = encode_control(Goodbye(1, "fine")), encode_control(Goodbye(2, "fatal"))


class Brittle(Recorder):
    def on_control(self, link, message):
        if message == FATAL:
            raise RuntimeError("a bug")
        super().on_control(link, message)


@pytest.mark.parametrize("backend", ["qh3", "aioquic"])
async def test_a_bug_above_a_link_costs_that_link_alone(backend):
    brittle, first, second = Brittle(), Recorder(), Recorder()
    async with (
        open_endpoint(HOST, ACCEPTOR, brittle, backend=backend) as acceptor,
        open_endpoint(HOST, None, first, backend=backend, role="customer") as one,
        open_endpoint(HOST, DIALLER, second, backend=backend) as other,
    ):
        with trio.fail_after(20):
            address = acceptor.addresses[0]
            victim = await one.dial(address, ACCEPTOR.node_id)
            bystander = await other.dial(address, ACCEPTOR.node_id)
            victim.send_control(FATAL)
            one.flush()
            while not first.closes:
                await trio.testing.wait_all_tasks_blocked()
            bystander.send_control(FINE)
            other.flush()
            while not brittle.controls:
                await trio.testing.wait_all_tasks_blocked()
        assert first.closes[0][0] == CloseCode.INTERNAL
        assert bystander.is_up
        assert acceptor.counters.bugs == 1
