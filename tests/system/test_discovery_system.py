"""A network on gossip: real nodes in namespaces, a signed list that names them, and nothing more."""

from collections.abc import Iterator

import pytest
from labkit import SystemLab, wait_until

from overlay.demo.fleet import Node
from overlay.demo.lab import missing_for_lab
from overlay.demo.world import World

pytestmark = pytest.mark.system

RELAYS, EXITS = 5, 2
FIREWALL = """
table inet test {
    chain in {
        type filter hook input priority 0;
        udp dport 4433 ct state new drop
    }
}
"""


@pytest.fixture(scope="module")
def gossip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    reason = missing_for_lab()
    if reason is not None:
        pytest.skip(reason)
    parent = tmp_path_factory.mktemp("g")
    with World(relays=RELAYS, exits=EXITS, parent=parent, discovery="gossip") as world:
        lab = SystemLab(world)
        yield lab
        print(lab.logs())


def known(node: Node) -> int:
    return int(node.status()["directory"])


def test_relays_know_each_other_and_have_tested_their_addresses(gossip: SystemLab) -> None:
    for node in gossip.relays:
        status = node.status()
        assert status["directory"] == RELAYS
        assert status["discovery"]["published"]
        tested = status["discovery"]["reachability"]
        assert {ip[0] == "[": finding for ip, finding in tested.items()}[False] == "reachable"
        assert len(status["discovery"]["addresses"]) == 2, "IPv4 and IPv6"
        assert status["problems"] == []


def test_a_client_that_knows_nobody_has_a_circuit_and_keeps_the_directory(gossip: SystemLab) -> None:
    client = gossip.client()
    status = client.status()
    assert status["directory"] == RELAYS
    assert status["discovery"]["synced"]
    assert gossip.client_curl("http://www.demo.test/ip").stdout.strip()
    client.stop()
    assert (client.state_dir / "directory").exists()
    client.restart()
    assert known(client) == RELAYS
    assert gossip.client_curl("http://www.demo.test/ip").stdout.strip()
    gossip.stop_client()


def test_who_leaves_the_list_is_forgotten_and_who_joins_is_found(gossip: SystemLab) -> None:
    gone, others = gossip.relays[0], gossip.relays[1:]
    gone.stop()
    gossip.world.fleet.publish(others)
    wait_until(lambda: all(known(node) == RELAYS - 1 for node in others), 60, "the relay to be forgotten")
    client = gossip.client()
    assert known(client) == RELAYS - 1
    gossip.world.fleet.publish()
    gone.start()
    gone.wait_ready()
    everybody = [*gossip.relays, client]
    wait_until(lambda: all(known(node) == RELAYS for node in gossip.relays), 60, "the relay to be found")
    client.restart()
    wait_until(lambda: all(known(node) == RELAYS for node in everybody), 60, "the client to find it")
    gossip.stop_client()


def test_a_firewall_is_found_out_and_told(gossip: SystemLab) -> None:
    node = gossip.relays[1]
    node.stop()
    gossip.run_in(node.host, ["nft", "-f", "-"], stdin=FIREWALL.encode())
    try:
        node.start()
        node.wait_ready()
        wait_until(
            lambda: any("let UDP port 4433 in" in problem for problem in node.status()["problems"]),
            60,
            "the relay to notice",
        )
        assert not node.status()["discovery"]["published"]
        assert known(node) >= RELAYS - 1, "it takes part all the same"
    finally:
        gossip.run_in(node.host, ["nft", "delete", "table", "inet", "test"])
    node.restart()
    wait_until(lambda: bool(node.status()["discovery"]["published"]), 60, "the relay to publish")


def test_a_relay_behind_a_wrong_address_is_told(gossip: SystemLab) -> None:
    node = gossip.relays[2]
    listen = node.settings["relay"]["listen"]
    node.configure({"relay": {"advertise": ["10.77.0.1:4433"]}})
    try:
        node.restart()
        wait_until(
            lambda: any("see this machine as" in problem for problem in node.status()["problems"]),
            60,
            "the relay to notice",
        )
    finally:
        node.configure({"relay": {"advertise": listen}})
        node.restart()


def test_a_relay_that_is_told_no_address_finds_its_own(gossip: SystemLab) -> None:
    """It listens everywhere. The last test here: it stays so."""
    node = gossip.relays[1]
    host = gossip.lab.hosts[node.host]
    node.configure({"relay": {"listen": ["0.0.0.0:4433", "[::]:4433"]}})
    node.restart()

    def addresses() -> list[str]:
        return list(node.status()["discovery"]["addresses"])

    wait_until(lambda: f"{host.ipv4}:4433" in addresses(), 90, "the relay to find its address")
