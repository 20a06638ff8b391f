"""Captures on every machine's link during a download: QUIC between relays, cleartext behind the exit."""

import pytest
from labkit import CLIENT, SystemLab
from watching import addresses, circuit_that_carries, path_of
from wire import TCP, UDP, Seen, decode, is_neighbour_talk, is_port_unreachable

from overlay.demo.fleet import PORT
from overlay.demo.lab import INTERNET
from overlay.demo.web import ByteStream

pytestmark = pytest.mark.system

SIZE = 400_000
RUN_BYTES = 16
MAX_UDP_PAYLOAD_BYTES = 1452
MARK = "nobody-on-the-way-reads-this"
QUIC_FIXED_BIT, QUIC_LONG_HEADER = 0x40, 0x80
QUIC_VERSION_1 = b"\0\0\0\x01"


def runs_of(payload: bytes) -> set[bytes]:
    return {payload[at : at + RUN_BYTES] for at in range(0, len(payload) - RUN_BYTES + 1, RUN_BYTES)}


def shared(packets: list[Seen], runs: set[bytes]) -> int:
    """How many packets carry one of these runs of bytes, at any place."""
    found = 0
    for packet in packets:
        data = packet.payload
        found += any(data[at : at + RUN_BYTES] in runs for at in range(len(data) - RUN_BYTES + 1))
    return found


def is_quic(payload: bytes) -> bool:
    if not payload[0] & QUIC_FIXED_BIT:
        return False
    return not payload[0] & QUIC_LONG_HEADER or payload[1:5] == QUIC_VERSION_1


def test_only_the_exits_way_out_carries_what_can_be_read(lab: SystemLab) -> None:
    lab.stop_client()
    lab.client()
    hosts = (CLIENT, *(node.host for node in lab.relays), INTERNET)
    got = b""

    def download() -> None:
        nonlocal got
        header = ("-H", f"X-Mark: {MARK}")
        got = lab.client_curl(f"http://www.demo.test/big/{SIZE}", *header).check().stdout

    with lab.capture_all(*hosts) as captures:
        path = path_of(lab, circuit_that_carries(lab, download, least=SIZE // 1384))
    stream = ByteStream(SIZE)
    payload = b"".join(bytes(stream.next_block()) for _ in range(-(-SIZE // (1 << 18))))
    assert got == payload
    runs = runs_of(payload) | runs_of(MARK.encode())
    relays = set().union(*(addresses(lab, node.host) for node in lab.relays))
    nodes = relays | addresses(lab, CLIENT)

    seen: dict[str, list[Seen]] = {}
    for host, capture in captures.items():
        seen[host] = [
            s for s in (decode(packet.ip) for packet in capture.packets()) if not is_neighbour_talk(s)
        ]
        assert capture.missed == 0
    for host in (CLIENT, *(node.host for node in lab.relays)):
        between = [s for s in seen[host] if {s.source, s.destination} <= nodes]
        outside = [s for s in seen[host] if not {s.source, s.destination} <= nodes]
        # Between nodes there is nothing but QUIC to and from relays' ports, in packets that fit every path.
        for packet in between:
            if is_port_unreachable(packet):
                continue  # for a customer that has just left; what is quoted of QUIC is looked at below
            assert packet.protocol == UDP, packet
            assert (packet.source in relays and packet.ports[0] == PORT) or (
                packet.destination in relays and packet.ports[1] == PORT
            ), packet.ports
            assert is_quic(packet.payload), packet.payload[:8].hex()
            assert len(packet.payload) <= MAX_UDP_PAYLOAD_BYTES
        assert shared(between, runs) == 0, host
        if host in [node.host for node in path[:-1]] or host == CLIENT:
            assert sum(len(s.payload) for s in between) > SIZE
        if host != path[-1].host:
            # A second exit may ask for names that other connections want; nobody else talks to the outside.
            assert host in [node.host for node in lab.exits] or not outside, outside[:3]
            assert shared(outside, runs) == 0, host
    # Behind the exit it is what it was: in clear, from the exit's own address.
    leave = addresses(lab, path[-1].host)
    for host in (path[-1].host, INTERNET):
        web = [s for s in seen[host] if s.protocol == TCP and 80 in s.ports]
        assert {s.source for s in web if s.ports[1] == 80} <= leave
        assert shared(web, runs) >= SIZE // 1500
        assert any(MARK.encode() in s.payload for s in web)
    customer = addresses(lab, CLIENT)
    assert not [s for s in seen[INTERNET] if {s.source, s.destination} & customer]
    # Neither do relays meet customers other than as guards, nor exits them at all on this path.
    for node in lab.relays:
        meets = any({s.source, s.destination} & customer for s in seen[node.host])
        assert not meets or node is path[0], node.name
