"""Relays and clients that die, links that lose packets, addresses that change; and a machine left clean."""

import pytest
from labkit import CLIENT, SystemLab, wait_until
from watching import circuit_in_use, path_of

from overlay.demo.fleet import Node
from overlay.demo.shaping import Conditions

pytestmark = pytest.mark.system

URL = "http://www.demo.test/ip"


def path_of_the_next_page(lab: SystemLab) -> list[Node]:
    return path_of(lab, circuit_in_use(lab))


def test_everything_comes_back_after_all_relays_were_gone(lab: SystemLab) -> None:
    node = lab.client()
    for relay in lab.relays:
        relay.kill()
    wait_until(lambda: not node.status()["ready"], 60, "the client's notice")
    assert node.status()["problems"]
    for relay in lab.relays:
        relay.start()
    for relay in lab.relays:
        relay.wait_ready()
    wait_until(lambda: lab.client_curl(URL, timeout_s=5).returncode == 0, 90, "a page")


def test_an_exit_killed_with_9_is_clean_after_its_next_start(lab: SystemLab) -> None:
    leave = lab.exits[0]

    def state() -> tuple[str, str]:
        rules = lab.run_in(leave.host, ["nft", "list", "tables"]).text
        return rules, lab.run_in(leave.host, ["ip", "-br", "-4", "rule"]).text

    running = state()
    leave.kill()
    leave.start()
    leave.wait_ready()
    assert state() == running
    leave.stop()
    assert lab.run_in(leave.host, ["nft", "list", "tables"]).text == ""
    devices = lab.run_in(leave.host, ["ip", "-br", "link"]).text
    assert {line.split()[0].split("@")[0] for line in devices.splitlines()} == {"lo", "eth0"}
    forwarding = lab.run_in(leave.host, ["cat", "/proc/sys/net/ipv4/ip_forward"]).text
    assert forwarding == "0"


def test_a_client_killed_with_9_leaves_no_process_and_starts_again(lab: SystemLab) -> None:
    node = lab.client()
    assert node.process is not None
    session = node.process.inner_pid
    node.kill()

    def alone() -> bool:
        listing = lab.run_in(CLIENT, ["ps", "-eo", "sid=,stat=,args="]).text
        return not any(
            line.split()[0] == str(session) and not line.split()[1].startswith("Z")
            for line in listing.splitlines()
        )

    wait_until(alone, 30, "the end of the client's helper")
    node.start()
    node.wait_ready()
    assert lab.client_curl(URL).returncode == 0


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(delay_ms=40, jitter_ms=20),
        Conditions(delay_ms=5, reorder=0.05, duplicate=0.02, loss=0.02),
        Conditions(rate_bit_per_s=10e6, queue_ms=100),
    ],
    ids=["far away", "unruly", "slow"],
)
def test_pages_arrive_whole_over_bad_links(lab: SystemLab, conditions: Conditions) -> None:
    lab.client()
    guard = path_of_the_next_page(lab)[0].host
    seed = lab.links.shape(guard, conditions, seed=20261122)
    print(f"seed {seed}")
    size = 1_000_000
    got = lab.client_curl(f"http://www.demo.test/big/{size}", timeout_s=120).check()
    assert len(got.stdout) == size


def test_a_client_whose_address_changes_goes_on(lab: SystemLab) -> None:
    node = lab.client()
    lab.client_curl(URL).check()
    try:
        lab.links.readdress(CLIENT, "10.200.0.77")
        wait_until(
            lambda: lab.client_curl(URL, timeout_s=5).returncode == 0, 60, "a page from the new address"
        )
        assert node.running
    finally:
        lab.links.readdress(CLIENT, "10.200.0.1")
        lab.stop_client()
