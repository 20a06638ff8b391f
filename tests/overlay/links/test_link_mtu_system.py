"""Links over real paths that are too small: namespaces of the test's own, a router between two of them."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.system

ACCEPT = textwrap.dedent(
    """
    import sys, trio
    from links_net import ACCEPTOR, Recorder
    from overlay.links.io.endpoint import open_endpoint

    async def main():
        async with open_endpoint(("0.0.0.0", 4400), ACCEPTOR, Recorder(), backend=sys.argv[1]):
            print("ready", flush=True)
            await trio.sleep_forever()

    trio.run(main)
    """
)
DIAL = textwrap.dedent(
    """
    import sys, trio
    from links_net import ACCEPTOR, DIALLER, Recorder
    from overlay.links.io.endpoint import DialError, open_endpoint
    from overlay.links.limits import LinkLimits

    async def main():
        limits = LinkLimits(handshake_timeout_s=4)
        here = ("0.0.0.0", 0)
        async with open_endpoint(here, DIALLER, Recorder(), backend=sys.argv[1], limits=limits) as endpoint:
            try:
                with trio.fail_after(20):
                    await endpoint.dial((sys.argv[2], 4400), ACCEPTOR.node_id)
                print("up", flush=True)
            except DialError as error:
                print(int(error.code), error, flush=True)

    trio.run(main)
    """
)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def path(request):
    """Three namespaces in a row, with the MTU of the near and of the far link."""
    near_mtu, far_mtu = request.param
    names = [f"hoplink{os.getpid()}{letter}" for letter in "abc"]
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


def python(namespace, source, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = ("ip", "netns", "exec", namespace, sys.executable, "-c", source, *arguments)
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def dial(names, backend):
    acceptor = python(names[2], ACCEPT, backend)
    try:
        assert acceptor.stdout.readline() == "ready\n"
        dialler = python(names[0], DIAL, backend, "10.77.2.2")
        try:
            return dialler.communicate(timeout=30)[0].strip()
        finally:
            dialler.kill()
    finally:
        acceptor.kill()
        acceptor.wait()


@pytest.mark.parametrize("backend", ["qh3", "aioquic"])
@pytest.mark.parametrize("path", [(1500, 1500), (1500, 1480)], indirect=True, ids=["1500", "1480"])
def test_a_path_of_1480_is_enough(path, backend):
    assert dial(path, backend) == "up"


@pytest.mark.parametrize("backend", ["qh3", "aioquic"])
@pytest.mark.parametrize(
    "path", [(1500, 1300), (1500, 1420), (1300, 1500), (1420, 1420)], indirect=True, ids=str
)
def test_a_smaller_path_is_refused_with_a_sentence(path, backend):
    code, sentence = dial(path, backend).split(" ", 1)
    assert code == "6"
    assert "path MTU too small" in sentence
    assert "10.77.2.2 port 4400" in sentence
