"""The exit's network on a real kernel: what leaves, as what, what does not, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import exit_world
import pytest

pytestmark = pytest.mark.system

HEAD = """
import json, os, signal, socket, struct, subprocess, sys, time
from pathlib import Path
import trio
import wire, world
from world import *
from exit.addresses import *
from exit.io.network import *
from exit.io.tun import Tun
from exit.policy import *
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else None
def settings(text="accept *:*", **options):
    return NetworkSettings(parse_policy(text), **options)
def state():
    def output(*words):
        return subprocess.run(words, capture_output=True, text=True).stdout
    out = {"nft": output("nft", "list", "ruleset")}
    out["links"] = [link["ifname"] for link in json.loads(output("ip", "-j", "link"))]
    for path in ("net/ipv4/conf/up0/forwarding", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
                 "net/ipv6/conf/up0/force_forwarding", "net/ipv6/conf/up0/accept_ra"):
        file = Path("/proc/sys") / path
        out[path] = file.read_text().strip() if file.exists() else None
    return out
"""


def program(tmp_path: Path, script: str, **options: bool) -> str:
    return exit_world.run_program(f"sys.argv.append({str(tmp_path / 'state')!r})\n{HEAD}{script}", **options)


@pytest.mark.parametrize("user_namespace", [False, True])
def test_up_and_down_leaves_nothing(tmp_path: Path, user_namespace: bool) -> None:
    out = program(
        tmp_path,
        """
start()
before = state()
async def main():
    async with open_network(settings(), FOLDER) as network:
        during = state()
        assert "hopfare_exit" in during["nft"] and "hopfare0" in during["links"], during
        assert network.has_ipv6 and network.tun.has_offload and network.warnings == ()
        assert during["net/ipv4/conf/up0/forwarding"] == "1" and (FOLDER / "network.json").exists()
        assert network.table.verdict(4, 6, bytes([50, 0, 0, 2]), 80) is Verdict.DENIED_ADDRESS  # own
        assert network.table.verdict(4, 6, bytes([50, 0, 0, 1]), 80) is Verdict.DENIED_ADDRESS  # gateway
        assert network.table.verdict(4, 6, bytes([60, 0, 0, 1]), 80) is Verdict.ACCEPT
        await network.set_relays(["60.0.0.1", "2600:60::1"])
        assert network.table.verdict(4, 6, bytes([60, 0, 0, 1]), 80) is Verdict.DENIED_ADDRESS
        assert "60.0.0.1" in state()["nft"] and "2600:60::1" in state()["nft"]
        await network.refresh()
trio.run(main)
assert state() == before, state()
assert not (FOLDER / "network.json").exists()
print("clean")
""",
        user_namespace=user_namespace,
    )
    assert out == "clean"


@pytest.mark.parametrize("global_forwarding", [False, True])
def test_killed_and_started_again_cleans_up(tmp_path: Path, global_forwarding: bool) -> None:
    out = program(
        tmp_path,
        f"""
start()
import exit.io.network as module
if {global_forwarding}:
    real = module.read_setting
    module.read_setting = lambda name: None if "force_forwarding" in name else real(name)
before = state()
if os.fork() == 0:
    async def main():
        async with open_network(settings(), FOLDER) as network:
            os.kill(os.getpid(), signal.SIGKILL)
    trio.run(main)
assert os.waitstatus_to_exitcode(os.wait()[1]) == -9
left = state()
assert "hopfare_exit" in left["nft"] and left["net/ipv4/conf/up0/forwarding"] == "1"
if {global_forwarding}:
    assert left["net/ipv6/conf/all/forwarding"] == "1" and left["net/ipv6/conf/up0/accept_ra"] == "2", left
async def again():
    async with open_network(settings(name="other"), FOLDER):
        during = state()
        assert "hopfare_exit" not in during["nft"] and "hopfare_other" in during["nft"]
trio.run(again)
assert state() == before, (state(), before)
async def recovered():
    print(await recover(FOLDER), end=" ")
trio.run(recovered)
print("clean")
""",
    )
    assert out == "0 clean"


def test_what_another_changed_since_is_left(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
setting = Path("/proc/sys/net/ipv4/conf/up0/forwarding")
async def main():
    async with open_network(settings(), FOLDER):
        subprocess.run(["nft", "delete", "table", "inet", "hopfare_exit"], check=True)
        setting.write_text("0")
trio.run(main)
print(setting.read_text().strip(), state()["nft"] == "")
""",
    )
    assert out == "0 True"


def test_one_exit_per_folder_and_per_namespace(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
async def main():
    async with open_network(settings(), FOLDER):
        for folder, name in ((FOLDER, "a"), (FOLDER / "b", "b")):
            try:
                async with open_network(settings(name=name, tun="other0"), folder):
                    pass
            except Exception as error:
                print(type(error).__name__, error)
        print("hopfare_exit" in state()["nft"], "other0" in state()["links"])
trio.run(main)
""",
    )
    lines = out.splitlines()
    assert "another exit is running with the state folder" in lines[0]
    assert "without another exit" in lines[1]
    assert lines[2] == "True False"


def test_a_step_that_fails_undoes_the_others(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
before = state()
import exit.io.network as module
def refuse(name, value):
    raise EnvError("refused " + name)
from exit.errors import EnvError
module.write_setting = refuse
async def main():
    try:
        async with open_network(settings(), FOLDER):
            pass
    except EnvError as error:
        print(str(error).startswith("refused"), state() == before, (FOLDER / "network.json").exists())
trio.run(main)
""",
    )
    assert out == "True True False"


def test_without_privileges_one_sentence_names_them(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
before = state()
from exit.io.privileges import drop_capabilities
drop_capabilities(keep=())
async def main():
    try:
        async with open_network(settings(), FOLDER):
            pass
    except Exception as error:
        print(type(error).__name__, error)
trio.run(main)
assert state() == before
""",
    )
    assert out.startswith("PrivilegeError the exit cannot start; CAP_NET_ADMIN is missing")
    assert "AmbientCapabilities=CAP_NET_ADMIN" in out


def test_with_net_admin_alone_it_stops_cleanly(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
before = state()
from exit.io.privileges import drop_capabilities
async def main():
    async with open_network(settings(), FOLDER) as network:
        drop_capabilities()
        await network.set_relays(["60.0.0.1"])
        print(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0])
trio.run(main)
print(state() == before)
""",
    )
    assert out.splitlines() == ["0000000000001000", "True"]


def test_a_firewall_of_somebody_elses_is_told_about(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
start()
subprocess.run(["nft", "-f", "-"], check=True, text=True,
    input="table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }")
async def main():
    async with open_network(settings(), FOLDER) as network:
        print(network.warnings[0])
trio.run(main)
""",
    )
    assert "`ip filter FORWARD` drops packets by default" in out
    assert "nft insert rule ip filter FORWARD iifname hopfare0 accept" in out


DENIED = """
from exit.denied import DENIED_RANGES_V4, DENIED_RANGES_V6
import ipaddress
targets = []
for text in (*DENIED_RANGES_V4, *DENIED_RANGES_V6):
    network = ipaddress.ip_network(text)
    for address in {network[0], network[min(5, network.num_addresses - 1)], network[-1]}:
        targets.append(str(address))
targets += ["::ffff:60.0.0.1", "::60.0.0.1", "64:ff9b::60.0.0.1", "2002:3c00:1::1"]
targets += [EXIT4, EXIT6, GATE4, GATE6, "61.0.0.1", "2600:61::1"]
"""


def test_the_firewall_alone_drops_every_denied_destination(tmp_path: Path) -> None:
    """Packets are written to the TUN past the engine's own gate."""
    out = program(
        tmp_path,
        DENIED
        + """
world = start()
async def main():
    async with open_network(settings("reject *:99\\nreject 60.0.0.1:98\\naccept *:*"), FOLDER) as network:
        await network.set_relays(["61.0.0.1", "2600:61::1"])
        write = lambda packet: network.tun.write((bytes(10) if network.tun.has_offload else b"") + packet)
        def send(version, pair, port=5000, ports=None):
            assert write(wire.udp(version, b"secret", ports=(4000, port), pair=pair))
            write(wire.tcp(version, b"", ports=(4000, port), flags=2, pair=pair))
            write(wire.echo(version, b"secret", pair=pair))
        for target in targets:
            version = ipaddress.ip_address(target).version
            send(version, (CLIENT4 if version == 4 else CLIENT6, target))
        for version, own, server in ((4, CLIENT4, SERVER4), (6, CLIENT6, SERVER6)):
            # ports of the policy, denied ports, other protocols, routing headers, strangers' and foreign
            # sources
            for port in (25, 445, 99, *((98,) if version == 4 else ())):
                write(wire.udp(version, b"secret", ports=(4000, port), pair=(own, server)))
                write(wire.tcp(version, b"", ports=(4000, port), flags=2, pair=(own, server)))
            pack = wire.ip4 if version == 4 else wire.ip6
            for protocol in (2, 4, 41, 47, 50, 132):
                write(pack(protocol, b"secret" * 10, pair=(own, server)))
            for source in ("1.2.3.4", EXIT4, SERVER4, "2600::1", EXIT6, "fe80::1", "fd68:6f70:6662::1"):
                if ipaddress.ip_address(source).version == version:
                    send(version, (source, server))
            # answers to nothing
            write(wire.tcp(version, b"secret", flags=0x10, pair=(own, server)))
            write(wire.tcp(version, b"", flags=0x12, pair=(own, server)))
        for header in (0, 43, 60):
            pair = (CLIENT6, SERVER6)
            write(wire.ip6(header, b"\\x11" + bytes(7) + wire.udp(6, b"secret", pair=pair)[40:], pair=pair))
        redirect = b"\\x05\\x01" + bytes(34)
        redirect = redirect[:2] + wire.slow_checksum(redirect).to_bytes(2, "big") + redirect[4:]
        write(wire.ip4(1, redirect, pair=(CLIENT4, SERVER4)))
        # to the exit itself: only DNS and echo
        for dns, version, own in (("100.64.0.1", 4, CLIENT4), ("fd68:6f70:6661::1", 6, CLIENT6)):
            send(version, (own, dns), 80)
        # last, what is allowed, so that everything before has been decided when it arrives
        for version, own, server in ((4, CLIENT4, SERVER4), (6, CLIENT6, SERVER6)):
            write(wire.udp(version, b"allowed", ports=(4000, 5000), pair=(own, server)))
            write(wire.echo(version, b"allowed", pair=(own, server)))
            write(wire.tcp(version, b"", ports=(4000, 5000), flags=2, pair=(own, server)))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            seen = [bytes.fromhex(one) for one in world.run("result = [one.hex() for one in seen]")]
            good = [one for one in seen if b"allowed" in one]
            if len(good) >= 4:
                break
        kinds = sorted((one[0] >> 4, one[9] if one[0] >> 4 == 4 else one[6]) for one in good)
        print(kinds)
        for one in seen:
            version = one[0] >> 4 if one else 0
            if version == 4 and one[9] in (1, 6, 17):
                assert one[12:16] == bytes([50, 0, 0, 2]), one[12:16]
                if one[9] == 6:
                    assert struct.unpack_from(">H", one, 22)[0] == 5000, one
                assert one[8] == 64
            elif version == 6 and one[6] in (6, 17) or (version == 6 and one[6] == 58 and one[40] == 128):
                assert ipaddress.ip_address(one[8:24]) == ipaddress.ip_address(EXIT6)
                assert one[7] == 64
            else:
                # neighbour discovery, ARP
                assert version != 4 and b"secret" not in one, one
            assert b"secret" not in one, one
trio.run(main)
""",
    )
    assert json.loads(out.replace("(", "[").replace(")", "]")) == [[4, 1], [4, 17], [6, 17], [6, 58]]


SHUTTLE = """
async def shuttle(one, other, watch=None):
    while True:
        await trio.lowlevel.wait_readable(one.fileno())
        for raw in one.read_batch():
            if watch is not None:
                watch(raw)
            if one.has_offload and not other.has_offload:
                for packet in to_packets(raw):
                    other.write(packet)
            elif other.has_offload and not one.has_offload:
                other.write(bytes(10) + raw)
            else:
                other.write(raw)
from exit.tun.segment import to_packets
from exit.tun.vnet import *
from exit.packets import parse
"""


@pytest.mark.parametrize(
    ("exit_offload", "client_offload"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_tcp_udp_and_echo_both_ways(tmp_path: Path, exit_offload: bool, client_offload: bool) -> None:
    """The kernel's TCP on both ends, super-packets and plain ones; every header a TUN hands out passes our
    check.
    """
    out = program(
        tmp_path,
        SHUTTLE
        + f"""
world = start()
client, fd = start_client({client_offload})
reasons, supers = [], 0
def watch(raw):
    global supers
    packet = parse(raw, 10)
    if packet is not None:
        reason = validate_offload(raw, packet)
        if reason:
            reasons.append((reason, raw[:10].hex()))
        supers += is_super(raw)
async def main():
    tun = Tun.from_fd(fd, {client_offload}, 1400)
    network_settings = settings(offload={exit_offload})
    async with open_network(network_settings, FOLDER) as network, trio.open_nursery() as nursery:
        assert network.tun.has_offload is {exit_offload}
        nursery.start_soon(shuttle, tun, network.tun, watch if {client_offload} else None)
        nursery.start_soon(shuttle, network.tun, tun, watch if {exit_offload} else None)
        for family, server in (("AF_INET", SERVER4), ("AF_INET6", SERVER6)):
            result = await trio.to_thread.run_sync(client.run, f'''
import os, socket, threading, subprocess
s = socket.create_connection(({{server!r}}, 80), timeout=20)
peer = b""
while not peer.endswith(b"\\\\n"):
    peer += s.recv(1)
data = os.urandom(3_000_000)
def send():
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
back = bytearray()
while True:
    piece = s.recv(1 << 20)
    if not piece:
        break
    back += piece
mss = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
u = socket.socket(socket.{{family}}, socket.SOCK_DGRAM)
u.settimeout(1)
echoes = []
for size in (10, 1200, 5000):
    for attempt in range(10):
        # the server's first large answer over IPv6 only teaches it the path's MTU
        u.sendto(b"u" * size, ({{server!r}}, 7))
        try:
            echoes.append(len(u.recv(70000)) - size)
            break
        except TimeoutError:
            pass
ping = subprocess.run(["ping", "-c", "1", "-W", "5", {{server!r}}], capture_output=True).returncode
result = [peer.decode().strip(), bytes(back) == data, mss, echoes, ping]
''')
            print(json.dumps(result))
        print(supers > 0, reasons, network.tun.refused, tun.refused)
        nursery.cancel_scope.cancel()
trio.run(main)
frames = world.run("result = [one.hex() for one in seen if one[0] >> 4 in (4, 6)]")
syns = []
for one in map(bytes.fromhex, frames):
    start = 20 if one[0] >> 4 == 4 else 40
    if one[9 if one[0] >> 4 == 4 else 6] == 6 and one[start + 13] & 0x12 == 2:
        options = one[start + 20 : start + (one[start + 12] >> 4) * 4]
        syns.append((struct.unpack_from(">H", options, 2)[0], 8 in options[4:]))
print(syns)
""",
    )
    lines = out.splitlines()
    v4, v6 = json.loads(lines[0]), json.loads(lines[1])
    assert v4 == ["50.0.0.2", True, 1360, [9, 9, 9], 0]
    assert v6 == ["2600:50::2", True, 1340, [11, 11, 11], 0]
    assert lines[2] == f"{exit_offload or client_offload} [] 0 0"
    assert lines[3] == "[(1360, False), (1340, False)]", "the MSS is one value and the timestamps are gone"
