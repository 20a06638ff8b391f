"""A relay that lies, garbles and floods on real links: the customer goes on, and the others stay up."""

import secrets
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from hostile_lab import Watch, hostile, page, page_works, pages, wait_until
from labkit import CLIENT, SystemLab
from watching import counts_down, grown_most

from exit.denied import DenyList
from overlay.demo.fleet import Node
from overlay.demo.lab import INTERNET_RANGES

pytestmark = pytest.mark.system

EVIL_NAMES = ["loopback", "private", "metadata", "mapped", "inner", "nat64", "alias"]
CARRYING = ["reorder", "delay", "duplicate", "drop", "flip"]
ATTACKS = [
    *("flood datagrams", "garbage streams", "wrong sizes"),
    *("flood control", "garbage control", "oversized control", "unreadable control"),
]


@pytest.fixture(scope="module")
def bad(running_world: SystemLab) -> Iterator[dict[str, Node]]:
    """Relays that do as they are told: r1, r3 (guards), r2 (middle), r5 (exit); r4 and r6 are honest."""
    lab = running_world
    lab.put_right()
    names = {"guard": "r1", "other guard": "r3", "middle": "r2", "exit": "r5"}
    nodes = {place: lab.relay(name) for place, name in names.items()}
    try:
        hostile(lab, list(nodes.values()))
        yield nodes
    finally:
        lab.stop_client()
        for node in nodes.values():
            node.kill()
        lab.put_right()


@pytest.fixture(autouse=True)
def honest_again(bad: dict[str, Node]) -> Iterator[None]:
    behave(bad)
    yield
    behave(bad)


def behave(nodes: dict[str, Node]) -> None:
    for node in nodes.values():
        node.call("mischief", {"mode": ""})


def done(node: Node, mode: str) -> int:
    return int(node.status()["done"].get(mode, 0))


def guard_in_use(lab: SystemLab, bad: dict[str, Node]) -> Node:
    def used() -> dict[str, Any] | None:
        before = counts_down(lab)
        return grown_most(lab, before, 2) if page(lab).returncode == 0 else None

    row = wait_until(used, 60, "a page")
    return next(node for node in (bad["guard"], bad["other guard"]) if node.id == row["path"][0])


@pytest.mark.parametrize("mode", CARRYING)
def test_a_guard_that_mistreats_packets(lab: SystemLab, bad: dict[str, Node], mode: str) -> None:
    client = lab.client({"client": {"guards": [bad["guard"].id, bad["other guard"].id], "circuits_ready": 4}})
    page_works(lab)
    guard = guard_in_use(lab, bad)
    watch = Watch(lab, [*lab.relays, client])
    before = done(guard, mode)
    guard.call("mischief", {"mode": mode, "rate": 0.8})
    if mode in ("reorder", "delay"):
        assert pages(lab, [f"{mode}{n}" for n in range(4)], 60) == [0] * 4
        assert page(lab, "http://www.demo.test/big/200000", timeout_s=90).returncode == 0
        assert "passed over" not in watch.said(client)
    else:
        # New connections fail until the guard is passed over, each with an end; then all is well.
        for n in range(30):
            if "guard passed over" in watch.said(client):
                break
            pages(lab, [f"{mode}{n}{i}" for i in range(6)], 5)
        assert "guard passed over" in watch.said(client)
        page_works(lab, 60)
        # A circuit that was built over the guard before it was passed over may still be handed out once.
        wait_until(
            lambda: pages(lab, [f"{mode}after{i}" for i in range(3)], 20) == [0, 0, 0],
            120,
            "sound circuits only",
        )
        assert "circuit died" in watch.said(client)
    assert done(guard, mode) > before
    watch.check()
    # It is in memory only: the next test's client begins anew.
    lab.stop_client()


@pytest.mark.parametrize("place", ["middle", "exit"])
def test_a_relay_further_on_that_mistreats_packets(lab: SystemLab, bad: dict[str, Node], place: str) -> None:
    client = lab.client(
        {"client": {"guards": [lab.relay("r4").id], "circuits_ready": 4}}
        if place == "exit"
        else {"client": {"guards": [lab.relay("r4").id], "exits": [lab.relay("r6").id], "circuits_ready": 4}}
    )
    page_works(lab)
    watch = Watch(lab, [*lab.relays, client])
    for mode in CARRYING:
        bad[place].call("mischief", {"mode": mode, "rate": 0.8})
        pages(lab, [f"{mode}{n}" for n in range(5)], 5)
        page_works(lab, 60)
    behave(bad)
    page_works(lab, 60)
    assert "passed over" not in watch.said(client), "nobody is moved off the guard by it"
    watch.check()


def test_a_guard_that_replays_builds_and_answers_with_noise(lab: SystemLab, bad: dict[str, Node]) -> None:
    client = lab.client({"client": {"guards": [bad["guard"].id], "circuits_ready": 2}})
    page_works(lab)
    guard = bad["guard"]
    watch = Watch(lab, [*lab.relays, client])
    rejected = sum(node.status()["builds"]["rejected"] for node in lab.relays)
    circuits = sum(node.status()["circuits"] for node in lab.relays)
    guard.call("mischief", {"mode": "replay"})
    pages(lab, [f"replay{n}" for n in range(4)], 5)
    replayed = done(guard, "replay")
    assert replayed >= 40
    wait_until(
        lambda: sum(node.status()["builds"]["rejected"] for node in lab.relays) >= rejected + replayed * 0.9,
        60,
        "rejections",
    )
    guard.call("mischief", {"mode": "wrong built"})
    # The client may be waiting between its attempts.
    for n in range(10):
        pages(lab, [f"noise{n}{i}" for i in range(4)], 2)
        if done(guard, "wrong built"):
            break
    assert done(guard, "wrong built") > 0
    behave(bad)
    page_works(lab, 60)
    # Each circuit stands at most once on each of its relays.
    grown = sum(node.status()["circuits"] for node in lab.relays) - circuits
    assert grown <= 3 * 24
    watch.check()


def test_floods_and_garbage_at_every_place_of_the_path(lab: SystemLab, bad: dict[str, Node]) -> None:
    """r2 attacks guard, middle and exit of paths over r4, r1 or r3, and r6, over links that it makes."""
    client = lab.client(
        {
            "client": {
                "guards": [lab.relay("r4").id],
                "exits": [lab.relay("r6").id],
                "exclude": [bad["middle"].id],
                "circuits_ready": 2,
            }
        }
    )
    page_works(lab)
    attacker = bad["middle"]
    watch = Watch(lab, [node for node in (*lab.relays, client) if node is not attacker])
    begun = time.monotonic()
    for mode in ATTACKS:
        attacker.call("mischief", {"mode": mode})
        wait_until(lambda mode=mode: done(attacker, mode) > 20, 60, f"{mode}")
        got = pages(lab, [f"{mode.replace(' ', '')}{n}" for n in range(4)], 60)
        assert got == [0] * 4, mode
        behave(bad)
    for relay in (lab.relay("r4"), lab.relay("r6")):
        # Five a minute, by the rule that no peer may flood a log.
        assert "link closed" in watch.said(relay), "the operator is told"
        assert watch.said(relay).count("link closed") <= 5 * (2 + (time.monotonic() - begun) / 60)
    watch.check()


DENIED = """
import socket, sys, time
def ask(kind, address, port=80):
    s = socket.create_connection(("127.0.0.1", 1080), 10)
    s.settimeout(25)
    s.sendall(b"\\x05\\x01\\x00\\x05\\x01\\x00" + kind + address + port.to_bytes(2, "big"))
    s.recv(2)
    return s
asked = []
for line in sys.stdin.read().split():
    if ":" in line:
        asked.append((line, ask(b"\\x04", socket.inet_pton(socket.AF_INET6, line))))
    elif line[0].isalpha():
        asked.append((line, ask(b"\\x03", bytes([len(line)]) + line.encode())))
    else:
        asked.append((line, ask(b"\\x01", socket.inet_pton(socket.AF_INET, line))))
end = time.monotonic() + 8
for name, s in asked:
    s.settimeout(max(0.01, end - time.monotonic()))
    try:
        print(name, s.recv(10)[1], flush=True)
    except TimeoutError:
        print(name, "silence", flush=True)
"""


def test_no_denied_range_is_reached_by_address_by_name_or_by_redirect(lab: SystemLab) -> None:
    lab.client()
    page_works(lab, 30)
    deny = DenyList()
    lifted = [ip_network(network) for network in INTERNET_RANGES]
    targets = [f"{name}.evil.test" for name in EVIL_NAMES]
    targets += [host.ipv4 for host in lab.lab.relays] + [host.ipv6 for host in lab.lab.relays]
    targets += ["::ffff:10.1.0.1", "::ffff:127.0.0.1", "64:ff9b::cb00:710a", "2002:cb00:710a::1"]
    for version in (4, 6):
        for network in deny.networks(version):
            for address in (network.network_address + 1, network.broadcast_address - 1):
                if not any(address in net for net in lifted if net.version == version):
                    targets.append(str(address))
    got = lab.lab.run(
        CLIENT, [sys.executable, "-c", DENIED], stdin="\n".join(targets).encode(), timeout_s=120
    )
    replies = dict(line.rsplit(" ", 1) for line in got.check().text.splitlines())
    assert len(replies) > 60
    print(replies)
    reached = [name for name, reply in replies.items() if reply == "0"]
    assert reached == []
    for target in ("http://10.1.0.1/", "http://[::1]/", "http://loopback.evil.test/"):
        moved = lab.client_curl("-L", f"http://www.demo.test/redirect?to={target}", timeout_s=20)
        assert moved.returncode != 0


def test_a_customer_side_guard_that_floods_its_customer(lab: SystemLab, bad: dict[str, Node]) -> None:
    client = lab.client({"client": {"guards": [bad["guard"].id, bad["other guard"].id], "circuits_ready": 2}})
    page_works(lab)
    for mode in ATTACKS:
        watch = Watch(lab, [client])
        guard = guard_in_use(lab, bad)
        before = done(guard, mode)
        guard.call("mischief", {"mode": mode})
        wait_until(lambda mode=mode, guard=guard, before=before: done(guard, mode) > before, 60, mode)
        page_works(lab, 60)
        guard.call("mischief", {"mode": ""})
        watch.check()
        page_works(lab, 60)


def test_relays_that_allow_no_streams_cost_nobody_else_anything(lab: SystemLab, bad: dict[str, Node]) -> None:
    honest = {"guards": [lab.relay("r4").id], "circuits_ready": 4}
    # Left to itself the client may pass by relays that it has met misbehaving in the tests before.
    pinned = {**honest, "middles": [bad["middle"].id], "exits": [lab.relay("r6").id]}
    client = lab.client({"client": pinned})
    watch = Watch(lab, [*lab.relays, client])
    relays = Watch(lab, lab.relays)
    page_works(lab, 60)
    for place in ("middle", "exit"):
        bad[place].call("mischief", {"mode": "no streams"})

    def met() -> bool:
        pages(lab, [secrets.token_hex(4) for _ in range(6)], 4)
        return "rules of flow control" in watch.said(client)

    wait_until(met, 90, "a circuit over a relay that allows no streams")
    watch.check()
    lab.client({"client": honest})
    page_works(lab, 60)
    behave(bad)
    page_works(lab, 60)
    relays.check()
