"""Crashes, full disks, few descriptors, little memory, jumping clocks; a clean machine after each."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
from hostile_lab import (
    Watch,
    arguments_of,
    open_files,
    page,
    page_works,
    replaced,
    start_as,
    wait_until,
)
from labkit import CLIENT, SystemLab
from machines import assert_same, machine, processes_of
from watching import circuit_under_way, path_of, wait_still

from circuits.building.onion_keys import decode_onion_keys
from circuits.guards import decode_guards
from overlay.demo.fleet import Node

pytestmark = pytest.mark.system
BIG = "http://www.demo.test/big/"
HOPFARE = [sys.executable, "-c", "from overlay.cli.main import main; main()"]


def states_are_valid(node: Node) -> None:
    folder = node.state_dir
    guards, keys = folder / "guards.json", folder / "onion-keys.json"
    if guards.exists():
        decode_guards(guards.read_bytes())
    if keys.exists():
        decode_onion_keys(keys.read_bytes())
    left = [path.name for path in folder.iterdir() if path.name.endswith((".damaged", ".new"))]
    assert left == []
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    for path in folder.iterdir():
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("who", ["guard", "middle", "exit", "client"])
def test_killed_with_9_in_mid_traffic_and_clean_after_the_next_start(lab: SystemLab, who: str) -> None:
    client = lab.client()
    page_works(lab)
    machines = {host: machine(lab, host) for host in (CLIENT, *(node.host for node in lab.relays))}
    watch = Watch(lab, [*lab.relays, client])
    counts = wait_still(lab)
    download = lab.lab.spawn(
        CLIENT,
        [*["curl", "-sS", "-o", "/dev/null", "--proxy", "socks5h://127.0.0.1:1080"], f"{BIG}20000000000"],
        log="download",
    )
    path = path_of(lab, circuit_under_way(lab, counts, 500, "traffic"))
    victim = {"guard": path[0], "middle": path[1], "exit": path[-1], "client": client}[who]
    watch.nodes.remove(victim)
    assert victim.process is not None
    session = victim.process.inner_pid
    victim.kill()
    wait_until(lambda: not processes_of(lab, session), 30, "the end of everything it had started")
    assert download.wait(60) not in (0, None), "the download is told that it cannot go on"
    if victim is not client:
        page_works(lab, 60)
    victim.start()
    victim.wait_ready()
    page_works(lab, 60)
    assert_same(lab, victim.host, machines[victim.host])
    states_are_valid(victim)
    watch.check()


def test_the_clients_helper_killed_with_9_ends_the_client_with_a_sentence(lab: SystemLab) -> None:
    client = lab.client()
    page_works(lab)
    before = machine(lab, CLIENT)
    pid = client.call("exec-info")["helper_pid"]
    lab.run_in(CLIENT, ["kill", "-9", str(pid)]).check()
    wait_until(lambda: not client.running, 20, "the client's end")
    said = client.log_text().splitlines()[-1]
    assert said.startswith("hopfare: the namespace helper ended"), client.log_text()[-3000:]
    assert page(lab, timeout_s=5).returncode != 0, "it fails closed"
    lab.stop_client()
    client = lab.client()
    page_works(lab)
    assert_same(lab, CLIENT, before)
    states_are_valid(client)


# -- disks ----------------------------------------------------------------------------------------

FULL_DISK = """
cp -a "$1" "$1.copy" && mount -t tmpfs -o size=24k,mode=700 none "$1" && cp -a "$1.copy/." "$1/" || exit 99
rm -f "$1"/guards.json "$1"/onion-keys.json
dd if=/dev/zero of="$1/fill" bs=1k 2>/dev/null
state="$1"; shift
"$@"; code=$?
cp "$state"/*.json "$state"/identity "$state.copy" 2>/dev/null
exit $code
"""


def test_a_client_on_a_full_disk_works_and_says_what_is_missing(lab: SystemLab) -> None:
    node = lab.client()
    node.stop()
    argv = ["unshare", "-m", "sh", "-c", FULL_DISK, "sh", str(node.state_dir), *HOPFARE, *arguments_of(node)]
    try:
        start_as(lab, node, argv, wait=False)
        page_works(lab, 60)
        wait_until(lambda: "No space left on device" in node.log_text(), 20, "word of it")
        assert "the guards are not stored" in node.log_text()
        assert "Traceback" not in node.log_text()
    finally:
        assert node.process is not None
        node.process.send_signal(signal.SIGKILL, group=True)
        node.process.wait()
        shutil.rmtree(node.folder / "state.copy", ignore_errors=True)
    lab.stop_client()
    states_are_valid(node)


@pytest.mark.parametrize("role", ["relay", "exit"])
def test_a_full_disk_at_the_start_is_told_in_a_sentence(lab: SystemLab, role: str) -> None:
    node = {"relay": lab.relay("r1"), "exit": lab.exits[0]}[role]
    before = machine(lab, node.host)
    node.stop()
    stopped = machine(lab, node.host)
    copy = node.folder / "state.copy"
    said = len(node.log_text())
    argv = ["unshare", "-m", "sh", "-c", FULL_DISK, "sh", str(node.state_dir), *HOPFARE, *arguments_of(node)]
    try:
        start_as(lab, node, argv, wait=False)
        assert node.process is not None
        code = node.process.wait(30)
        words = node.log_text()[said:]
        assert code not in (0, 99, None), words
        last = words.strip().splitlines()[-1]
        assert last.startswith("hopfare: "), words
        assert "No space left on device" in last
        assert "Traceback" not in words
        assert (copy / "identity").read_bytes() == (node.state_dir / "identity").read_bytes()
        assert_same(lab, node.host, stopped)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        node.kill()
    node.start()
    node.wait_ready()
    states_are_valid(node)
    assert_same(lab, node.host, before)


# -- descriptors and memory -----------------------------------------------------------------------


def test_few_descriptors_are_told_and_borne(lab: SystemLab) -> None:
    client = lab.client()
    limited = ["prlimit", "--nofile=700:700", *HOPFARE, *arguments_of(client)]
    with replaced(lab, client, limited):
        watch = Watch(lab, [*lab.relays, client])
        page_works(lab)
        script = (
            "import socket,sys,time\n"
            "held=[]\n"
            "for n in range(900):\n"
            "    s=socket.create_connection(('127.0.0.1',1080))\n"
            "    s.sendall(b'\\x05\\x01\\x00'); held.append(s)\n"
            "print('held', flush=True)\n"
            "sys.stdin.read() if 0 else time.sleep(600)\n"
        )
        crowd = lab.lab.spawn(CLIENT, [sys.executable, "-c", script], log="crowd")
        try:
            wait_until(lambda: open_files(client) > 650, 60, "the want of descriptors")
            wait_until(lambda: "proxy_cannot_accept" in watch.said(client), 30, "word of it")
            assert client.running
        finally:
            crowd.kill()
        page_works(lab, 60)
        wait_until(lambda: open_files(client) < 600, 60, "recovery")
        assert len(watch.said(client)) < 50_000
    lab.stop_client()


def test_too_few_descriptors_to_work_with_are_told_at_once(lab: SystemLab) -> None:
    client = lab.client()
    client.stop()
    start_as(lab, client, ["prlimit", "--nofile=128:128", *HOPFARE, *arguments_of(client)], wait=False)
    assert client.process is not None
    assert client.process.wait(20) not in (0, None)
    last = client.log_text().strip().splitlines()[-1]
    assert last.startswith("hopfare: this process may have 128 files open")
    lab.stop_client()


STALL = """
import socket, sys, time
held = []
for n in range(int(sys.argv[1])):
    s = socket.create_connection(("127.0.0.1", 1080), 20)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    name = b"www.demo.test"
    s.sendall(b"\\x05\\x01\\x00\\x05\\x01\\x00\\x03" + bytes([len(name)]) + name + b"\\x00\\x50")
    s.recv(2); s.recv(10)
    s.sendall(b"GET /big/1000000000 HTTP/1.1\\r\\nHost: www.demo.test\\r\\n\\r\\n")
    held.append(s)
print("stalled", flush=True)
time.sleep(600)
"""


def test_stalled_receivers_fill_nobodys_memory(lab: SystemLab) -> None:
    client = lab.client({"node": {"memory_limit": "16 MiB"}})
    page_works(lab)
    watch = Watch(lab, [*lab.relays, client])
    stalled = lab.lab.spawn(CLIENT, [sys.executable, "-c", STALL, "40"], log="stalled")
    try:
        wait_until(lambda: "stalled" in lab.lab.log_text("stalled"), 60, "forty stalled downloads")
        seen = [sum(row["packets_down"] for row in lab.circuits())]

        def at_rest() -> bool:
            seen.append(sum(row["packets_down"] for row in lab.circuits()))
            return len(seen) > 20 and seen[-1] - seen[-20] < 500

        wait_until(at_rest, 60, "an end of what they take in", every_s=0.05)
        for node in watch.nodes:
            limit = 16 << 20 if node is client else 128 << 20
            assert node.status()["queued_bytes"] <= limit
        watch.check(growth_bytes=64 << 20)
        page_works(lab, 60)
    finally:
        stalled.kill()
    page_works(lab, 60)
    wait_until(lambda: client.status()["queued_bytes"] == 0, 60, "empty queues")
    watch.check(growth_bytes=64 << 20)


# -- clocks ---------------------------------------------------------------------------------------

DAY_S = 86_400


def clock_of(lab: SystemLab, node: Node) -> tuple[list[str], dict[str, str], Path]:
    offset = lab.lab.path / f"{node.name}.clock"
    offset.write_text("0")
    argv = [sys.executable, str(Path(__file__).parents[1] / "support" / "clock_node.py")]
    return [*argv, *arguments_of(node)], {"TEST_CLOCK_FILE": str(offset)}, offset


def test_a_clients_clock_that_jumps_a_day_is_told_and_circuits_that_stand_go_on(lab: SystemLab) -> None:
    client = lab.client()
    argv, env, offset = clock_of(lab, client)
    with replaced(lab, client, argv, env=env):
        watch = Watch(lab, [*lab.relays, client])
        page_works(lab)
        offset.write_text(str(DAY_S))
        assert page(lab).returncode == 0, "what stands is not harmed"
        # Spares that were built before serve the first ones.
        results = []
        while not results or (results[-1] == 0 and len(results) < 8):
            results.append(page(lab, user=f"new{len(results)}:x", timeout_s=3).returncode)
        assert results[-1] != 0, results
        wait_until(lambda: "clock" in watch.said(client), 60, "word of the clock")
        assert page(lab).returncode == 0
        offset.write_text("0")
        wait_until(lambda: page(lab, user="other:circuit", timeout_s=10).returncode == 0, 60, "a new circuit")
        watch.check()
    lab.stop_client()
    states_are_valid(client)


def test_a_relays_clock_that_jumps_a_day_costs_its_circuits_only(lab: SystemLab) -> None:
    relay = lab.relay("r2")
    argv, env, offset = clock_of(lab, relay)
    with replaced(lab, relay, argv, env=env):
        lab.stop_client()
        client = lab.client({"client": {"guards": [lab.relay("r1").id]}})
        watch = Watch(lab, [*lab.relays, client])
        page_works(lab)
        for jump_s in (DAY_S, -DAY_S, 0):
            offset.write_text(str(jump_s))
            for n in range(6):
                wait_until(
                    lambda n=n, jump_s=jump_s: page(lab, user=f"u{n}:{jump_s}").returncode == 0,
                    60,
                    "a page over a new circuit",
                )
        watch.check()
    states_are_valid(relay)
