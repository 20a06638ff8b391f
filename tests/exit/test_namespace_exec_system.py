"""Programs inside the customer's namespace (`hopfare exec`), as root and as a user without privileges."""

import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlay.cli.exec import name_service_switch, resolver_configuration

_spec = importlib.util.spec_from_file_location(
    "namespace_runner", Path(__file__).with_name("namespace_runner.py")
)
assert _spec is not None and _spec.loader is not None
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)

pytestmark = pytest.mark.system

Run = Callable[..., list[dict[str, Any]]]


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
    def run_script(script: str, **values: object) -> list[dict[str, Any]]:
        body = "\n".join("        " + line for line in script.strip("\n").splitlines())
        text = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        text += f"async def main():\n    async with open_namespace() as ns:\n{body}\ntrio.run(main)"
        done = runner.run(text, as_user=as_user)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run_script


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """A server of the machine's own, which nothing inside may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_a_program_sees_only_lo_and_the_tun(run: Run, as_user: bool, outside: tuple[str, int]) -> None:
    said = run(
        """
await ns.add_addresses(V4, V6)
await ns.set_default_source(V4, V6)
code = '''
import json, os, socket
def tries(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.05)
        try:
            sock.connect(address)
        except OSError as error:
            return type(error).__name__
    return "connected"
status = open("/proc/self/status").read().split("\\\\n")
print(json.dumps(dict(
    interfaces=sorted(name for _, name in socket.if_nameindex()),
    sys=sorted(os.listdir("/sys/class/net")),
    resolv=open("/etc/resolv.conf").read(),
    user=[os.getuid(), os.geteuid(), os.getgid()],
    folder=os.getcwd(),
    privileges=next(line.split()[1] for line in status if line.startswith("CapEff")),
    server=tries(socket.AF_INET, OUTSIDE),
    far=tries(socket.AF_INET, ("9.9.9.9", 443)),
)))
'''
done = await run_inside(ns, sys.executable, "-c", f"OUTSIDE = {tuple(OUTSIDE)!r}" + dedent(code), cwd="/usr")
assert done.returncode == 0, done.stderr
print(done.stdout.decode(), end="")
packets = await sent(ns, lambda packet: packet[9] == 6)
say(source=source(packets[0]))
""",
        OUTSIDE=outside,
    )
    seen = said[0]
    me = runner.USER_ID if as_user and os.geteuid() == 0 else os.geteuid()
    assert seen["interfaces"] == seen["sys"] == ["hopfare0", "lo"]
    assert seen["resolv"] == resolver_configuration(["100.64.0.1", "fd68:6f70:6661::1"])
    assert seen["user"] == [me] * 3
    assert seen["folder"] == "/usr"
    assert seen["server"] == "ConnectionRefusedError"
    assert seen["far"] == "TimeoutError"
    privileges = int(seen["privileges"], 16)
    assert privileges & (1 << 12 | 1 << 21 | 1 << 19) == 0  # NET_ADMIN, SYS_ADMIN, SYS_PTRACE
    if me != 0:
        assert privileges == 0
    assert said[1] == {"source": "100.64.3.7"}


def test_a_program_cannot_leave(run: Run) -> None:
    said = run("""
for attempt in (
    f"nsenter --target {os.getpid()} --net true",
    "nsenter --target 1 --net true",
    "umount /etc/resolv.conf",
    "ip link set hopfare0 down",
    "ip route add default dev lo",
    "ip address add 10.9.9.9/32 dev lo",
):
    done = await run_inside(ns, *attempt.split())
    say(attempt=attempt, status=done.returncode)
""")
    assert len(said) == 6
    for one in said:
        assert one["status"] not in (0, 125, 126, 127), one


def test_names_are_asked_of_the_exit(run: Run) -> None:
    said = run("""
await ns.add_addresses(V4, V6)
await ns.set_default_source(V4, V6)
code = "import socket; socket.getaddrinfo('a-name.example', 80)"
command = [sys.executable, "-I", "-S", EXEC, "100.64.0.1,fd68:6f70:6661::1", str(ns.helper_pid)]
asking = await trio.lowlevel.open_process([*command, sys.executable, "-c", code], stderr=subprocess.DEVNULL)
packets = await sent(ns, lambda packet: b"a-name" in packet)
say(to=socket.inet_ntop(socket.AF_INET, packets[0][16:20]), port=int.from_bytes(packets[0][22:24], "big"))
asking.kill()
await asking.wait()
""")
    assert said == [{"to": "100.64.0.1", "port": 53}]


def test_services_that_resolve_outside_are_hidden(as_user: bool, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make them")
    # In a mount namespace of its own: /etc/resolv.conf as systemd-resolved has it, and its sockets.
    script = """
async def main():
    async with open_namespace() as ns:
        code = '''
import json, os, socket
found = {}
for path in ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/dbus/system_bus_socket"):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            found[path] = "connected"
        except OSError as error:
            found[path] = type(error).__name__
print(json.dumps([found, open("/etc/resolv.conf").read(), os.path.realpath("/etc/resolv.conf")]))
'''
        done = await run_inside(ns, sys.executable, "-c", dedent(code))
        assert done.returncode == 0, done.stderr
        print(done.stdout.decode())
trio.run(main)
"""
    make = """
import os, socket
for path in ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/dbus/system_bus_socket"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    socket.socket(socket.AF_UNIX).bind(path)
    os.chmod(path, 0o666)
open("/run/systemd/resolve/stub-resolv.conf", "w").write("nameserver 127.0.0.53\\n")
"""
    steps = ["set -e", "mount -t tmpfs -o mode=755 tmpfs /run", f"{runner.sys.executable} -c '{make}'"]
    steps += [f"cp -a /etc {tmp_path}/etc", f"mount --bind {tmp_path}/etc /etc"]
    steps += ["ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf", 'exec "$@"']
    inner = runner.command(script, as_user=as_user)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps), "sh", *inner],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, resolv, real = json.loads(done.stdout)
    assert sorted(found.values()) == ["ConnectionRefusedError", "FileNotFoundError", "FileNotFoundError"]
    assert resolv == resolver_configuration(["100.64.0.1", "fd68:6f70:6661::1"])
    assert real == "/run/systemd/resolve/stub-resolv.conf"


def test_status_and_signals_pass_through(run: Run) -> None:
    said = run("""
for argv in (["sh", "-c", "exit 7"], ["no-such-program"], ["/etc/passwd"], ["sh", "-c", "kill -TERM $$"],
             ["sh", "-c", "grep SigIgn /proc/self/status | grep -q '[02468ace]...$'"]):
    done = await run_inside(ns, *argv)
    say(status=done.returncode, error=done.stderr.decode())
os.kill(ns.helper_pid, signal.SIGKILL)
await ns.closed.wait()
done = await run_inside(ns, "true")
say(status=done.returncode, error=done.stderr.decode())
""")
    assert [one["status"] for one in said] == [7, 127, 126, -signal.SIGTERM, 0, 125]
    assert said[1]["error"] == "hopfare: no-such-program: there is no such program\n"
    assert "Permission denied" in said[2]["error"]
    assert "is `hopfare client` still running?" in said[5]["error"]


def test_a_process_with_threads_can_enter_too(run: Run) -> None:
    said = run("""
code = '''
import sys, threading
sys.path.insert(0, {folder!r})
from overlay.cli.exec import run_exec
threading.Thread(target=threading.Event().wait, daemon=True).start()
run_exec({helper}, ["sh", "-c", "echo /sys/class/net/*; exit 3"])
'''
code = dedent(code).format(folder=os.path.dirname(EXEC) + "/../..", helper=ns.helper_pid)
done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, check=False)
say(status=done.returncode, seen=done.stdout.decode())
""")
    assert said == [{"status": 3, "seen": "/sys/class/net/hopfare0 /sys/class/net/lo\n"}]


def test_ctrl_c_reaches_the_program_and_not_the_client(as_user: bool) -> None:
    script = """
async def main():
    async with open_namespace() as ns:
        command = [sys.executable, "-I", "-S", EXEC, "100.64.0.1", str(ns.helper_pid)]
        # Interactive programs are the foreground of their terminal; the client here ignores its own Ctrl-C.
        signal.signal(signal.SIGINT, lambda *_: None)
        await trio.run_process(
            [*command, "sh", "-c", "trap 'echo caught; exit 5' INT; tty; read line"],
            stdin=sys.stdin, check=False)
        await ns.add_addresses(V4)
        say(helper="alive")
trio.run(main)
"""
    child, terminal = pty.fork()
    if child == 0:
        inner = runner.command(script, as_user=as_user)
        os.execvp(inner[0], inner)
    seen = b""
    try:
        while b"/dev/pts/" not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, b"\x03")
        while b"alive" not in seen:
            seen += os.read(terminal, 1024)
    except OSError:
        pass  # the terminal's other end closed
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert b"caught" in seen
    assert b"alive" in seen


def test_hosts_are_resolved_by_file_and_dns_only() -> None:
    original = (
        "passwd: files sss\nhosts: files mymachines resolve [!UNAVAIL=return] mdns dns\nnetworks: files\n"
    )
    assert name_service_switch(original) == "passwd: files sss\nnetworks: files\nhosts: files dns\n"
    assert name_service_switch("hosts: resolve myhostname dns\n") == "hosts: files myhostname dns\n"
    assert name_service_switch("# empty\n") == "# empty\nhosts: files dns\n"
