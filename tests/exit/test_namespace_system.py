"""The customer's namespace on this kernel, as root and as a user without privileges."""

import importlib.util
import json
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "namespace_runner", Path(__file__).with_name("namespace_runner.py")
)
assert _spec is not None and _spec.loader is not None
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)

pytestmark = pytest.mark.system

Run = Callable[[str], list[dict[str, Any]]]


def _may_make_namespaces() -> bool:
    flags = ["--net", "--mount"] if os.geteuid() == 0 else ["--user", "--net", "--mount"]
    return subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode == 0


if not _may_make_namespaces():
    pytest.skip("this machine lets us make no namespaces", allow_module_level=True)


@pytest.fixture(params=["root", "user"])
def as_user(request: pytest.FixtureRequest) -> bool:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    return bool(request.param == "user")


@pytest.fixture
def run(as_user: bool) -> Run:
    def run_script(script: str) -> list[dict[str, Any]]:
        body = "\n".join("        " + line for line in script.strip("\n").splitlines())
        text = f"async def main():\n    async with open_namespace() as ns:\n{body}\ntrio.run(main)"
        done = runner.run(text, as_user=as_user)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run_script


def test_connections_come_out_of_the_tun_with_the_circuit_s_address(run: Run, as_user: bool) -> None:
    said = run("""
say(user=ns.is_user_namespace, offload=ns.tun.has_offload, mtu=ns.tun.mtu)
await ns.add_addresses(V4, V6)
for family, address, to in ((socket.AF_INET, V4, "9.9.9.9"), (socket.AF_INET6, V6, "2620:fe::fe")):
    sock = ns.take_socket(family, socket.SOCK_STREAM)
    sock.bind((address, 0))
    code = connect(sock, (to, 443))
    packets = await sent(ns, lambda packet: packet[9] == 6 or packet[6] == 6)
    say(code=code, source=source(packets[0]))
sock = await ns.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((V4, 0))
sock.sendto(b"hello", ("9.9.9.9", 53))
packets = await sent(ns, lambda packet: packet.endswith(b"hello"))
say(source=source(packets[0]))
""")
    assert said == [
        {"user": as_user, "offload": True, "mtu": 1400},
        {"code": "Operation now in progress", "source": "100.64.3.7"},
        {"code": "Operation now in progress", "source": "fd68:6f70:6661::307"},
        {"source": "100.64.3.7"},
    ]


def test_unbound_sockets_use_the_default_source_or_are_refused_at_once(run: Run) -> None:
    said = run("""
def tries():
    answers = []
    for family, to in ((socket.AF_INET, "9.9.9.9"), (socket.AF_INET6, "2620:fe::fe")):
        with ns.take_socket(family, socket.SOCK_STREAM) as sock:
            answers.append((connect(sock, (to, 443)), sock.getsockname()[0]))
    return answers
say(none=tries())
await ns.add_addresses(V4, V6)
await ns.add_addresses(OTHER_V4, OTHER_V6)
say(no_default=tries())
await ns.set_default_source(V4, V6)
say(both=tries())
await ns.set_default_source(OTHER_V4, None)
say(changed=tries())
await ns.remove_addresses(OTHER_V4, OTHER_V6)
say(removed=tries())
await ns.remove_addresses(OTHER_V4, OTHER_V6)
""")
    refused = [["No route to host", "0.0.0.0"], ["No route to host", "::"]]
    going = "Operation now in progress"

    def outcomes(name: str) -> list[list[str]]:
        return next(list(one[name]) for one in said if name in one)

    for name in ("none", "no_default", "removed"):
        assert [code for code, _ in outcomes(name)] in (
            [code for code, _ in refused],
            ["No route to host", "Network is unreachable"],
            ["No route to host", "Cannot assign requested address"],
        ), name
    assert outcomes("both") == [[going, "100.64.3.7"], [going, "fd68:6f70:6661::307"]]
    assert outcomes("changed")[0] == [going, "100.64.9.9"]
    assert outcomes("changed")[1][0] != going


def test_all_machines_sockets_have_the_same_congestion_control(run: Run) -> None:
    if "cubic" not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
        pytest.skip("this kernel has no cubic")
    said = run("""
for family in (socket.AF_INET, socket.AF_INET6):
    with await ns.new_socket(family, socket.SOCK_STREAM) as sock:
        say(used=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode())
""")
    assert said == [{"used": "cubic"}] * 2


def test_removing_an_address_ends_its_connections_and_no_others(run: Run) -> None:
    said = run("""
await ns.add_addresses(V4, V6)
await ns.add_addresses(OTHER_V4, OTHER_V6)
socks = []
for address in (V4, OTHER_V4):
    socks.append(ns.take_socket(socket.AF_INET, socket.SOCK_STREAM))
    socks[-1].bind((address, 0))
    connect(socks[-1], ("9.9.9.9", 443))
await ns.remove_addresses(V4, V6)
say(errors=[os.strerror(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) for sock in socks])
""")
    assert said == [{"errors": ["Software caused connection abort", "Success"]}]


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_connections_that_are_the_only_ones_of_their_family_end_with_their_address(
    run: Run, family: str
) -> None:
    kind, source, target = (
        ("AF_INET", "V4", "9.9.9.9") if family == "v4" else ("AF_INET6", "V6", "2620:fe::fe")
    )
    said = run(f"""
await ns.add_addresses(V4, V6)
sock = ns.take_socket(socket.{kind}, socket.SOCK_STREAM)
sock.bind(({source}, 0))
connect(sock, ("{target}", 443))
await ns.remove_addresses(V4, V6)
say(error=os.strerror(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
""")
    assert said == [{"error": "Software caused connection abort"}]


def test_sockets_come_from_a_pool_that_refills(run: Run) -> None:
    said = run("""
taken = [ns.take_socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(300)]
taken += [await ns.new_socket(socket.AF_INET6, socket.SOCK_STREAM) for _ in range(300)]
say(different=len({sock.fileno() for sock in taken}), blocking=any(sock.getblocking() for sock in taken))
before = len(os.listdir("/proc/self/fd"))
for sock in taken:
    sock.close()
say(closed=before - len(os.listdir("/proc/self/fd")))
""")
    assert said == [{"different": 600, "blocking": False}, {"closed": 600}]


def test_a_helper_that_dies_is_noticed(run: Run) -> None:
    said = run("""
os.kill(ns.helper_pid, signal.SIGINT)
await ns.add_addresses(V4)
os.kill(ns.helper_pid, signal.SIGKILL)
with trio.fail_after(20):
    await ns.closed.wait()
for action in (ns.add_addresses, ns.remove_addresses, ns.set_default_source):
    try:
        await action(V4)
    except EnvError as error:
        say(error=str(error))
for _ in range(1000):
    try:
        ns.take_socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except EnvError as error:
        say(error=str(error))
        break
""")
    assert len(said) == 4
    assert all("namespace helper ended" in one["error"] for one in said)


def test_without_the_device_the_user_is_told_how_to_allow_it() -> None:
    if os.geteuid() != 0 or Path("/dev/net/tun").stat().st_mode & 0o006 == 0o006:
        pytest.skip("needs root and a /dev/net/tun that is root's alone")
    done = runner.run(
        """
async def main():
    try:
        async with open_namespace():
            pass
    except EnvError as error:
        say(error=str(error))
trio.run(main)
""",
        as_user=True,
        open_tun=False,
    )
    assert "chmod 0666 /dev/net/tun" in done.stdout, done.stderr


# The device goes when the kernel has closed the last of the client's descriptors, in whatever order it does.
WATCH = """
echo ready; read line; turns=0
while grep -q hopfare0 /proc/net/dev && [ $turns -lt 1000 ]; do turns=$((turns + 1)); sleep 0.02; done
cat /proc/net/dev
"""
HOLD = f"""
WATCH = {WATCH!r}
async def main():
    async with open_namespace() as ns:
        await ns.add_addresses(V4, V6)
        await ns.set_default_source(V4, V6)
        inside = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", EXEC, "100.64.0.1", str(ns.helper_pid),
             "sh", "-c", WATCH],
            stdin=subprocess.PIPE, stdout=sys.stdout)
        say(helper=ns.helper_pid, inside=inside.pid)
        await trio.sleep_forever()
trio.run(main)
"""


def test_kill_9_of_the_client_leaves_nothing_behind(as_user: bool) -> None:
    client = subprocess.Popen(
        runner.command(HOLD, as_user=as_user), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert client.stdout is not None and client.stderr is not None
    try:
        line = client.stdout.readline()
        assert line, client.stderr.read()
        told = json.loads(line)
        assert client.stdout.readline() == "ready\n"
        helper = os.pidfd_open(told["helper"])
        # The shell inside ends its `read` when the client's end of its input closes.
        inside = os.pidfd_open(told["inside"])
        client.send_signal(signal.SIGKILL)
        rest = client.stdout.read()
        for process in (helper, inside):
            assert select.select([process], [], [], 30)[0]
            os.close(process)
        assert "lo:" in rest
        assert "hopfare0" not in rest
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
        client.stderr.close()
