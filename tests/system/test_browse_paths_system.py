"""Paths of 1 to 4 relays, seen from every relay; both QUIC libraries, and circuits that mix them."""

import pytest
from labkit import SystemLab, wait_until
from watching import (
    IP_PAGE,
    addresses,
    circuit_in_use,
    circuit_that_carries,
    exit_addresses,
    path_of,
    visit,
)

from overlay.demo.fleet import Node, carrier
from overlay.demo.web import checksum

pytestmark = pytest.mark.system

SIZE = 3_000_000
LEAST_PACKETS = SIZE // 1384
FEW_PACKETS = 300  # echoes, builds' leftovers and other circuits' signs of life


def download(lab: SystemLab, size: int = SIZE) -> None:
    """Fetch a file of the small internet and check it."""
    name = f"http://www.demo.test/big/{size}"
    got = lab.lab.run("client", ["sh", "-c", 'curl -sS -m 100 -x "$0" "$1" | sha256sum', PROXY, name])
    assert got.check().text.split()[0] == checksum(size)


PROXY = "socks5h://127.0.0.1:1080"


def charged(lab: SystemLab) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Packets charged in and out on each link, by relay, peer and the peer's address."""
    return {
        (node.name, link["peer"], link["address"]): (link["packets_in_charged"], link["packets_out_charged"])
        for node in lab.relays
        for link in node.status()["links"]
    }


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_exactly_the_relays_of_the_path_carry_a_download(lab: SystemLab, hops: int) -> None:
    lab.client({"client": {"hops": hops, "circuits_ready": 1}})
    lab.client_curl(IP_PAGE).check()
    before = charged(lab)
    row = circuit_that_carries(lab, lambda: download(lab), least=LEAST_PACKETS)
    path = path_of(lab, row)
    assert len({node.name for node in path}) == hops
    assert path[-1].role == "exit"
    after = charged(lab)
    busy = {}
    for key, (taken, given) in after.items():
        earlier = before.get(key, (0, 0))
        grown = taken - earlier[0], given - earlier[1]
        if sum(grown) > FEW_PACKETS:
            busy[key] = grown
    expected = set()
    for place, node in enumerate(path):
        expected.add((node.name, path[place - 1].id if place else "customer", "in"))
        if place + 1 < hops:
            expected.add((node.name, path[place + 1].id, "out"))
    seen = {(name, peer, "in" if taken else "out") for (name, peer, _), (taken, _) in busy.items()}
    assert seen == expected
    # Every hop is billed for every packet, once: all see the same number, but for what is on its way.
    numbers = [max(grown) for grown in busy.values()]
    assert max(numbers) - min(numbers) < FEW_PACKETS, busy
    assert min(numbers) >= LEAST_PACKETS


def test_a_relay_knows_its_neighbours_only(lab: SystemLab) -> None:
    lab.stop_client()
    customer = addresses(lab, "client")
    # Relays forget an earlier client, which may have had others for guards.
    wait_until(
        lambda: not any(address in str(node.status()) for node in lab.relays for address in customer),
        90,
        "the end of an earlier client's links",
    )
    logged = {node.name: len(node.log_text()) for node in lab.relays}
    lab.client({"client": {"circuits_ready": 1}})
    row = circuit_in_use(lab)
    guard, middle, leave = path_of(lab, row)
    for node in (guard, middle, leave):
        said = str(node.status()) + node.log_text()[logged[node.name] :]
        assert any(address in said for address in customer) == (node is guard)
        assert "demo.test" not in said
        assert "203.0.113.10" not in said
    names = {link["peer"] for link in middle.status()["links"]}
    assert {guard.id, leave.id} <= names


def test_engines_and_quic_libraries_carry_circuits_together(lab: SystemLab) -> None:
    lab.stop_client()
    odd, even = lab.relays[::2], lab.relays[1::2]
    try:
        _restart(odd, "aioquic")
        # Four of six relays, three of each kind: both kinds are on every path.
        _use(lab, "qh3", {"aioquic", "auto"}, {"aioquic": odd, "auto": even})
        _restart(even, "qh3")
        _use(lab, "auto", {"aioquic", "qh3"}, {"aioquic": odd, "qh3": even})
        _restart(odd, "auto")
        _use(lab, "aioquic", {"auto", "qh3"}, {"auto": odd, "qh3": even})
    finally:
        lab.stop_client()
        _restart(lab.relays, "auto")


def _restart(nodes: list[Node], quic: str) -> None:
    for node in nodes:
        node.configure({"node": carrier(quic)})
        if node.process is not None:
            node.process.send_signal(15)
    for node in nodes:
        node.stop()
        node.start()
    for node in nodes:
        node.wait_ready()


def _use(lab: SystemLab, own: str, expected: set[str], kinds: dict[str, list[Node]]) -> None:
    lab.client({"client": {"hops": 4}, "node": carrier(own)})
    row = circuit_that_carries(lab, lambda: download(lab), least=LEAST_PACKETS)
    assert {kind for node in path_of(lab, row) for kind, nodes in kinds.items() if node in nodes} == expected
    assert lab.client_curl("http://v6only.demo.test/ip").check().text in exit_addresses(lab)
    assert visit(lab, "udp", "echo.demo.test", "7", "5")["good"] == 5
