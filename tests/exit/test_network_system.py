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
    async with open_network(settings(name="other-1.x"), FOLDER):
        during = state()
        assert "hopfare_exit" not in during["nft"] and "hopfare_other-1.x" in during["nft"]
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


def test_a_user_with_two_capabilities_is_enough(tmp_path: Path) -> None:
    """What the systemd unit gives: no root, CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, and /dev/net/tun."""
    out = program(
        tmp_path,
        """
import ctypes
start()
before = state()
policy = settings()
from exit.dns.rules import Rules
from exit.dns.upstream import Upstream
from exit.io.dns import open_dns
from exit.denied import DenyList
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS: the device file below is seen by nobody else
for words in ("mount --make-rprivate /", "mount -t tmpfs none /dev/net", "mknod /dev/net/tun c 10 200"):
    subprocess.run(words.split(), check=True)
os.chmod("/dev/net/tun", 0o666)
folder = Path("/dev/net/state")
folder.mkdir()
os.chown(folder, 65534, 65534)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
both = 1 << 12 | 1 << 10
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(both, both, both)) == 0
for one in (10, 12):
    assert libc.prctl(47, 2, one, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
async def main():
    async with open_network(policy, folder) as network:
        during = state()
        assert during["net/ipv4/conf/up0/forwarding"] == "1" and "hopfare_exit" in during["nft"]
        async with open_dns([str(DNS_V4), str(DNS_V6)], Rules(has_ipv6=True), DenyList, [Upstream(SERVER4)]):
            print("up")
trio.run(main)
assert state() == before, state()
print(os.getuid(), list(folder.glob("*.json")))
""",
    )
    assert out.splitlines() == ["up", "65534 []"]


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
        deadline = time.monotonic() + 30
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
    for attempt in range(20):
        # the server's first large answer over IPv6 only teaches it the path's MTU
        u.sendto(b"u" * size, ({{server!r}}, 7))
        try:
            answer = u.recv(70000)
            while not answer.endswith(b" " + b"u" * size):  # of an earlier try
                answer = u.recv(70000)
            echoes.append(len(answer) - size)
            break
        except TimeoutError:
            pass
ping = subprocess.run(["ping", "-c", "1", "-W", "20", {{server!r}}], capture_output=True).returncode
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
print(list(dict.fromkeys(syns)))  # a SYN that is sent again is the same
heads = [one for one in map(bytes.fromhex, frames) if one[0] >> 4 == 4 and one[9] in (1, 6, 17)]
# Segments count up from the first one's, so of TCP only the SYN tells.
whole = [one for one in heads if one[6] & 0x40 and (one[9] != 6 or one[33] & 2)]
others = [one[4:6] for one in heads if not one[6] & 0x40]
print(sorted(set(one[4:6].hex() for one in whole)), bytes(2) in others)
""",
    )
    lines = out.splitlines()
    v4, v6 = json.loads(lines[0]), json.loads(lines[1])
    assert v4 == ["50.0.0.2", True, 1360, [9, 9, 9], 0]
    assert v6 == ["2600:50::2", True, 1340, [11, 11, 11], 0]
    assert lines[2] == f"{exit_offload or client_offload} [] 0 0"
    assert lines[3] == "[(1360, False), (1340, False)]", "the MSS is one value and the timestamps are gone"
    assert lines[4] == "['0000'] False", "nothing of the sender's IPv4 identification"


def test_our_segments_are_the_kernels(tmp_path: Path) -> None:
    """A super-packet goes into one TUN and comes out of a plain one, cut by the kernel; we cut the same."""
    out = program(
        tmp_path,
        """
import random, select
from exit.packets import addresses
from exit.tun.segment import to_packets
own_namespace()
one, two = Tun.open("one", True, mtu=1500), Tun.open("two", False, mtu=1500)
Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
for tun, v4, v6 in ((one, "10.1.0.1/24", "fd01::1/64"), (two, "10.2.0.1/24", "fd02::1/64")):
    Path(f"/proc/sys/net/ipv6/conf/{tun.name}/addr_gen_mode").write_text("1")
    ip("addr", "add", v4, "dev", tun.name)
    ip("addr", "add", v6, "dev", tun.name, "nodad")
    ip("link", "set", tun.name, "up")
seed = random.randrange(2**32)
print("seed", seed)
rng = random.Random(seed)
checked = 0
for round in range(60):
    version = rng.choice((4, 6))
    pair = ("10.1.0.5", "10.2.0.5") if version == 4 else ("fd01::5", "fd02::5")
    flags = rng.choice((0x10, 0x18, 0x11, 0x98, 0x50, 0xD8))
    options = rng.choice((b"", bytes([1, 1, 8, 10]) + rng.randbytes(8)))
    size, length = rng.randint(500, 1400), rng.choice((rng.randint(1500, 20000), rng.randint(1500, 64000)))
    raw = wire.super_packet(version, rng.randbytes(length), size, flags=flags, options=options,
                            sequence=rng.randrange(2**32), pair=pair)
    assert one.write(raw), one.refused
    lower = bytearray(raw)
    lower[10 + (8 if version == 4 else 7)] -= 1
    expected = to_packets(bytes(lower))
    got = []
    while len(got) < len(expected):
        assert select.select([two], [], [], 20)[0], (len(got), len(expected))
        # TCP only: the kernel itself reports multicast groups
        got += [packet for packet in two.read_batch(200) if addresses(packet)[1] == 6]
    assert got == expected, (version, flags, size, length)
    checked += len(got)
print(checked > 500)
""",
    )
    assert out.splitlines()[-1] == "True", out


def test_dns_through_the_tun(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        SHUTTLE
        + """
from exit.dns.rules import Rules
from exit.dns.upstream import Upstream
from exit.io.dns import open_dns
world = start()
world.run('''
import dns.message, dns.rrset
def dns_server():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((SERVER4, 53))
    while True:
        data, peer = s.recvfrom(4096)
        reply = dns.message.make_response(dns.message.from_wire(data))
        name = reply.question[0].name
        address = "10.9.8.7" if name.labels[0] == b"inside" else SERVER4
        if reply.question[0].rdtype == 1:
            reply.answer = [dns.rrset.from_text(name, 60, "IN", "A", address)]
        s.sendto(reply.to_wire(), peer)
threading.Thread(target=dns_server, daemon=True).start()
result = True
''')
client, fd = start_client()
async def main():
    tun = Tun.from_fd(fd, True, 1400)
    async with open_network(settings(), FOLDER) as network, trio.open_nursery() as nursery:
        nursery.start_soon(shuttle, tun, network.tun)
        nursery.start_soon(shuttle, network.tun, tun)
        hosts = (str(DNS_V4), str(DNS_V6))
        rules = Rules(has_ipv6=True)
        async with open_dns(hosts, rules, lambda: network.deny, [Upstream(SERVER4)]):
            print(json.dumps(await trio.to_thread.run_sync(client.run, '''
import dns.message, dns.query, socket
result = []
for server in ("100.64.0.1", "fd68:6f70:6661::1"):
    for ask in (dns.query.udp, dns.query.tcp):
        for name in ("www.example.", "inside.example.", "printer.local."):
            reply = ask(dns.message.make_query(name, "A"), server, timeout=10)
            result.append([reply.rcode(), [str(one) for rrset in reply.answer for one in rrset]])
for port in (22, 80, 54):
    try:
        socket.create_connection(("100.64.0.1", port), timeout=0.3)
        result.append(port)
    except OSError:
        pass
''')))
            # nobody but circuits reaches the DNS
            print(world.run('''
ip("route", "add", "100.64.0.1/32", "via", EXIT4)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
s.sendto(dns.message.make_query("www.example.", "A").to_wire(), ("100.64.0.1", 53))
try:
    s.recv(1000)
    result = "answered"
except TimeoutError:
    result = "silent"
'''))
        nursery.cancel_scope.cancel()
trio.run(main)
""",
    )
    lines = out.splitlines()
    assert json.loads(lines[0]) == [[0, ["60.0.0.1"]], [5, []], [3, []]] * 4
    assert lines[1] == "silent"


def test_one_circuits_flows_are_bounded(tmp_path: Path) -> None:
    out = program(
        tmp_path,
        """
world = start()
async def main():
    async with open_network(settings(flows_per_circuit=20), FOLDER) as network:
        for own in (CLIENT4, "100.64.5.6"):
            for port in range(1000, 1100):
                packet = wire.udp(4, own.encode(), ports=(port, 5000), pair=(own, SERVER4))
                assert network.tun.write(bytes(10) + packet)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            owns = (CLIENT4.encode(), b"100.64.5.6")
            counts = world.run(f"result = [sum(own in one for one in seen) for own in {owns!r}]")
            if min(counts) >= 20:
                break
        print(counts)
trio.run(main)
""",
    )
    assert out == "[20, 20]"


def test_a_refused_customer_is_told_at_once(tmp_path: Path) -> None:
    """The engine's gate as it will be used: parse, source, verdict, and an ICMP error back."""
    out = program(
        tmp_path,
        SHUTTLE
        + """
from exit.icmp import IcmpErrors
world = start()
client, fd = start_client()
async def gate(tun, network):
    errors = IcmpErrors(DNS_V4_PACKED, DNS_V6_PACKED)
    own = {4: socket.inet_pton(socket.AF_INET, CLIENT4), 6: socket.inet_pton(socket.AF_INET6, CLIENT6)}
    while True:
        await trio.lowlevel.wait_readable(tun.fileno())
        for raw in tun.read_batch():
            packet = parse(raw, 10)
            if packet is None or packet.source != own[packet.version] or validate_offload(raw, packet):
                continue
            verdict = network.table.verdict(
                packet.version, packet.protocol, packet.destination, packet.destination_port)
            if verdict is Verdict.ACCEPT:
                network.tun.write(raw)
            elif (answer := errors.refused(raw, 10, packet, verdict, trio.current_time())) is not None:
                tun.write(PLAIN_HEADER + answer)
async def main():
    tun = Tun.from_fd(fd, True, 1400)
    policy = settings("accept *:80, reject *:*")
    async with open_network(policy, FOLDER) as network, trio.open_nursery() as nursery:
        nursery.start_soon(gate, tun, network)
        nursery.start_soon(shuttle, network.tun, tun)
        print(json.dumps(await trio.to_thread.run_sync(client.run, '''
import errno, socket, time
result = []
for host in (SERVER4, SERVER6, "10.1.2.3", "2001:db8::1", "fd00::1"):
    for port in (80, 81):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        s = socket.socket(family, socket.SOCK_STREAM)
        s.settimeout(20)
        # with this the reason itself can be read: type and code of the ICMP error
        s.setsockopt(*((socket.IPPROTO_IPV6, 25, 1) if ":" in host else (socket.IPPROTO_IP, 11, 1)))
        try:
            s.connect((host, port))
            result.append("ok")
        except OSError as error:
            _, control, _, _ = s.recvmsg(100, 500, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            # struct sock_extended_err: errno(4) origin(1) type(1) code(1)
            result.append([errno.errorcode[error.errno], *control[0][2][4:7]])
''')))
        nursery.cancel_scope.cancel()
trio.run(main)
""",
    )
    v4, v6 = ["EHOSTUNREACH", 2, 3, 13], ["EACCES", 3, 1, 1]
    assert json.loads(out) == ["ok", v4, "ok", v6, v4, v4, v6, v6, v6, v6]
