"""What can be seen on the links: sizes, shared bytes, where packets go; and that nothing goes elsewhere."""

import ipaddress
import itertools
import struct
from collections import Counter
from dataclasses import dataclass

import pytest
from labkit import CLIENT, CapturedPacket, SystemLab
from watching import circuit_that_carries

from overlay.demo.fleet import PORT

pytestmark = pytest.mark.system

UDP = 17
MAX_UDP_PAYLOAD_BYTES = 1452  # protocol constant: the QUIC payload of a full packet
WINDOW_BYTES = 16


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram of a capture."""

    source: str
    destination: str
    ports: tuple[int, int]
    payload: bytes


def datagrams(packets: list[CapturedPacket]) -> list[Datagram]:
    found = []
    for packet in packets:
        ip = packet.ip
        if ip[0] >> 4 == 4:
            if ip[9] != UDP:
                continue
            start = (ip[0] & 15) * 4
            source, destination = ipaddress.ip_address(ip[12:16]), ipaddress.ip_address(ip[16:20])
        else:
            if ip[6] != UDP:
                continue
            start = 40
            source, destination = ipaddress.ip_address(ip[8:24]), ipaddress.ip_address(ip[24:40])
        ports = struct.unpack_from(">HH", ip, start)
        found.append(Datagram(str(source), str(destination), ports, ip[start + 8 :]))
    return found


def between(lab: SystemLab, sent: list[Datagram], one: str, other: str) -> list[Datagram]:
    pair = {address for host in (one, other) for address in _addresses(lab, host)}
    return [d for d in sent if d.source in pair and d.destination in pair]


def _addresses(lab: SystemLab, host: str) -> tuple[str, str]:
    found = lab.lab.hosts[host]
    return found.ipv4, found.ipv6


def test_links_share_no_bytes_and_carry_one_size(lab: SystemLab) -> None:
    lab.client()
    url = "http://www.demo.test/big/2000000"
    with lab.capture_all() as captures:
        row = circuit_that_carries(lab, lambda: lab.client_curl("-o", "/dev/null", url).check(), least=1400)
        path = lab.world.path_of(row["path"])
    seen = {host: datagrams(capture.packets()) for host, capture in captures.items()}
    hops = [CLIENT, *path]
    links = []
    for one, other in itertools.pairwise(hops):
        carried = between(lab, seen[other], one, other)
        assert len(carried) > 1000, f"{one} - {other}"
        assert max(len(d.payload) for d in carried) <= MAX_UDP_PAYLOAD_BYTES
        links.append(carried)
    # Full packets have one size on every link: nothing in a size tells one position on the path from another.
    full = [Counter(len(d.payload) for d in carried).most_common(1)[0][0] for carried in links]
    assert len(set(full)) == 1, full
    for index, carried in enumerate(links):
        for later in links[index + 1 :]:
            assert not _shared(carried, later)


def _shared(one: list[Datagram], other: list[Datagram]) -> set[bytes]:
    """Byte strings that occur in packets of both links."""
    windows = {
        d.payload[i : i + WINDOW_BYTES]
        for d in one
        for i in range(0, len(d.payload) - WINDOW_BYTES + 1, WINDOW_BYTES)
    }
    common = set()
    for d in other:
        for i in range(0, len(d.payload) - WINDOW_BYTES + 1):
            piece = d.payload[i : i + WINDOW_BYTES]
            if piece in windows and piece.strip(b"\0"):
                common.add(piece)
    return common


def test_the_page_is_nowhere_in_clear_but_behind_the_exit(lab: SystemLab) -> None:
    lab.client()
    with lab.capture_all() as captures:
        lab.client_curl("http://www.demo.test/headers", "-H", "X-Mark: in-plain-sight-1234").check()
    for host, capture in captures.items():
        marked = [p for p in capture.packets() if b"in-plain-sight-1234" in p.ip]
        if host in {node.host for node in lab.exits}:
            continue
        assert not marked, host


def _check_only_guard(lab: SystemLab, packets: list[CapturedPacket], guards: set[str]) -> None:
    own = set(_addresses(lab, CLIENT))
    assert packets
    for packet in packets:
        ip = packet.ip
        if ip[0] >> 4 == 6 and ip[6] == 58:  # neighbour discovery and multicast listeners, link-local
            destination = ipaddress.ip_address(ip[24:40])
            source = ipaddress.ip_address(ip[8:24])
            assert (
                destination.is_multicast
                or destination.is_link_local
                or source.is_link_local
                or (str(destination) in own | guards | {lab.lab.hosts[CLIENT].gateway_v6})
            )
            continue
        if ip[0] >> 4 == 4 and ip[9] == 1:  # errors from the hub or a relay whose process is gone
            continue
        (datagram,) = datagrams([packet])
        if datagram.source in own:
            assert datagram.destination in guards
            assert datagram.ports[1] == PORT
