"""Links over real paths that are too small: namespaces of the test's own, a router between two of them."""

import json
import os
import subprocess
import sys
import textwrap
from contextlib import ExitStack, contextmanager

import pytest

pytestmark = pytest.mark.system

ACCEPT = textwrap.dedent(
    """
    import sys, trio
    from links_net import ACCEPTOR, Recorder
    from overlay.links.io.endpoint import open_endpoint

    async def main():
        async with (
            open_endpoint(("0.0.0.0", 4400), ACCEPTOR, Recorder(), backend="qh3"),
            open_endpoint(("0.0.0.0", 4401), ACCEPTOR, Recorder(), backend="aioquic"),
        ):
            print("ready", flush=True)
            await trio.sleep_forever()

    trio.run(main)
    """
)
DIAL = textwrap.dedent(
    """
    import json, trio
    from links_net import ACCEPTOR, DIALLER, Recorder
    from overlay.links.io.endpoint import DialError, open_endpoint
    from overlay.links.limits import LinkLimits

    async def dial(backend, port):
        limits = LinkLimits(handshake_timeout_s=4)
        here = ("0.0.0.0", 0)
        async with open_endpoint(here, DIALLER, Recorder(), backend=backend, limits=limits) as endpoint:
            try:
                with trio.fail_after(60):
                    await endpoint.dial(("10.77.2.2", port), ACCEPTOR.node_id)
                came[backend] = [0, "up"]
            except DialError as error:
                came[backend] = [int(error.code), str(error)]

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, "qh3", 4400)
            nursery.start_soon(dial, "aioquic", 4401)

    came = {}
    trio.run(main)
    print(json.dumps(came))
    """
)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def path(number, near_mtu, far_mtu):
    """Three namespaces in a row, with the MTU of the near and of the far link."""
    names = [f"hoplink{os.getpid()}{letter}{number}" for letter in "abc"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for left, right, subnet, mtu in ((0, 1, "10.77.1", near_mtu), (1, 2, "10.77.2", far_mtu)):
            ends = f"l{subnet[-1]}", f"r{subnet[-1]}"
            run(
                "ip",
                "-n",
                names[left],
                "link",
                "add",
                ends[0],
                "type",
                "veth",
                "peer",
                ends[1],
                "netns",
                names[right],
            )
            for side, end, host in ((left, ends[0], 1), (right, ends[1], 2)):
                run("ip", "-n", names[side], "addr", "add", f"{subnet}.{host}/24", "dev", end)
                run("ip", "-n", names[side], "link", "set", end, "mtu", str(mtu), "up")
        run("ip", "netns", "exec", names[1], "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "-n", names[0], "route", "add", "default", "via", "10.77.1.2")
        run("ip", "-n", names[2], "route", "add", "default", "via", "10.77.2.1")
        yield names
    finally:
        for name in names:
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)


@contextmanager
def python(namespace, source):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = ("ip", "netns", "exec", namespace, sys.executable, "-c", source)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def dial(*mtus):
    """What dials come to over paths of these MTUs, by path and back end; all at once, for some take long."""
    with ExitStack() as stack:
        paths = [stack.enter_context(path(number, *pair)) for number, pair in enumerate(mtus)]
        acceptors = [stack.enter_context(python(names[2], ACCEPT)) for names in paths]
        for acceptor in acceptors:
            assert acceptor.stdout.readline() == "ready\n"
        diallers = [stack.enter_context(python(names[0], DIAL)) for names in paths]
        came = [json.loads(dialler.communicate(timeout=120)[0]) for dialler in diallers]
    return {
        (*pair, backend): result
        for pair, results in zip(mtus, came, strict=True)
        for backend, result in results.items()
    }


def test_a_path_of_1480_is_enough():
    came = dial((1500, 1500), (1500, 1480))
    assert len(came) == 4
    assert all(result == [0, "up"] for result in came.values()), came


def test_a_smaller_path_is_refused_with_a_sentence():
    came = dial((1500, 1300), (1500, 1420), (1300, 1500), (1420, 1420))
    assert len(came) == 8
    for which, (code, sentence) in came.items():
        assert code == 6, (which, sentence)
        assert "path MTU too small" in sentence
        assert f"10.77.2.2 port {4400 if which[2] == 'qh3' else 4401}" in sentence
