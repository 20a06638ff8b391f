"""A customer's limits, counted where they count: at the relays. And what is typed to see and set them."""

import json
from collections.abc import Iterator

import pytest
from labkit import SystemLab, wait_until
from watching import IP_PAGE, hopfare

pytestmark = pytest.mark.system

CHEAP, DEAR = "0.01 per GB", "0.5 per GB"
CIRCUITS = 200


@pytest.fixture(scope="module")
def prices(running_world: SystemLab) -> Iterator[None]:
    """r4 and the exit r6 are dear, the others cheap; the exits are in CH and FI."""
    running_world.put_right()
    running_world.stop_client()
    price(running_world, {"r4": DEAR, "r6": DEAR}, CHEAP)
    yield
    running_world.stop_client()
    price(running_world, {}, "0")


@pytest.fixture
def priced(prices: None, lab: SystemLab) -> SystemLab:
    return lab


def price(lab: SystemLab, special: dict[str, str], usual: str) -> None:
    """Put prices into the descriptors. Running relays ask for less, so nothing else changes."""
    for node in lab.relays:
        node.configure({"relay": {"price": special.get(node.name, usual)}})
    lab.world.fleet.publish()


def built(lab: SystemLab) -> dict[str, int]:
    """Circuits that each relay says it took part in."""
    return {node.name: node.status()["builds"]["built"] for node in lab.relays}


def ready_ids(lab: SystemLab) -> set[int]:
    return {row["id"] for row in lab.circuits() if row["state"] == "ready"}


def new_ids(lab: SystemLab, seen: set[int]) -> set[int]:
    wait_until(lambda: len(ready_ids(lab) - seen) >= 2, 30, "new circuits", every_s=0.02)
    return ready_ids(lab)


def build_many(lab: SystemLab, count: int) -> dict[str, int]:
    """Have the client build `count` circuits or a few more; what the relays counted meanwhile."""
    before = settled(lab)
    seen: set[int] = set()
    while len(seen) < count:
        lab.client_node().call("newnym")
        seen |= new_ids(lab, seen)
    return {name: number - before[name] for name, number in settled(lab).items()}


def settled(lab: SystemLab) -> dict[str, int]:
    """What the relays have counted, when nothing is being built any more."""
    wait_until(lambda: all(row["state"] != "building" for row in lab.circuits()), 30, "the last builds")
    last: dict[str, int] = {}

    def is_stable() -> bool:  # a build is counted at each relay in turn
        nonlocal last
        last, earlier = built(lab), last
        return last == earlier

    wait_until(is_stable, 30, "the relays' counts to settle", every_s=0.3)
    return last


def test_limits_are_obeyed_over_two_hundred_circuits(priced: SystemLab) -> None:
    lab = priced
    lab.client({"client": {"hops": 3, "exit_country": "CH"}, "payments": {"budget_per_gb": "0.05"}})
    counted = build_many(lab, CIRCUITS)
    assert counted["r5"] >= CIRCUITS
    assert counted["r4"] == counted["r6"] == 0, "too dear, or in another country"
    assert sum(counted.values()) == 3 * counted["r5"], "three relays on every path"
    row = max(lab.circuits(), key=lambda row: row["id"])
    assert row["price_wei_per_packet"] * 10**9 / 1384 <= 0.05 * 10**18

    # Other limits while it runs; the last answers are from before, so count afresh.
    for key, value in (("hops", "2"), ("max-price", "1"), ("exit-country", "FI")):
        assert "until the client stops" in hopfare(lab, "set", key, value).check().text
    wait_until(lambda: all(len(row["path"]) == 2 for row in lab.circuits()), 30, "circuits of two relays")
    counted = build_many(lab, 20)
    assert counted["r6"] >= 20
    assert counted["r5"] <= counted["r6"] // 5, "as a guard at most, and exits are rarely guards"
    assert sum(counted.values()) == 2 * counted["r6"]
    assert lab.client_curl(IP_PAGE).check().text in {lab.lab.hosts["r6"].ipv4, lab.lab.hosts["r6"].ipv6}


def test_what_a_customer_sees_and_sets(priced: SystemLab) -> None:
    lab = priced
    lab.client({"client": {"circuits_ready": 1}})
    lab.client_curl(IP_PAGE).check()
    shown = json.loads(hopfare(lab, "market", "--json", "--sort", "price").check().text)
    assert [row["price_per_gb"] for row in shown["rows"]] == sorted(
        (row["price_per_gb"] for row in shown["rows"]), key=float
    )
    assert {row["name"] for row in shown["rows"]} == {node.id for node in lab.relays}
    used = lab.circuits()[0]["path"]
    assert all(row["quality"] is not None for row in shown["rows"] if row["name"] in used)
    table = hopfare(lab, "market", "--role", "exit", "--country", "FI").check().text
    assert table.splitlines()[0].split()[:3] == ["name", "role", "country"]
    assert "1 of 6 relays, from the running client" in table
    assert lab.relay("r6").id[:12] in table

    why = hopfare(lab, "circuits", "--why").check().text
    assert "drawn by weight from 2 exits that fit" in why
    assert "6  in the directory" in why

    nobody = hopfare(lab, "set", "max-price", "0.00001").check()
    assert "max-price = 0.00001, until the client stops" in nobody.text
    wait_until(lambda: lab.client_node().call("circuits")["no_path"], 30, "the rule that left nobody")
    assert "0  asks at most 0.00001 per GB" in hopfare(lab, "circuits", "--why").check().text
    status = lab.client_node().status()
    assert any("asks at most" in problem or "costs at most" in problem for problem in status["problems"])
    lab.client_node().call("choose", {"key": "max-price", "value": None})
    lab.client_node().wait_ready()

    assert "kept for the next starts" in hopfare(lab, "set", "hops", "2", "--keep").check().text
    assert "New connections use new circuits." in hopfare(lab, "newnym").check().text
    lab.client_node().restart()
    assert lab.client_node().status()["hops"] == 2
    assert "as the configuration says" in hopfare(lab, "set", "hops", "--reset").check().text
    lab.stop_client()
    offline = hopfare(lab, "market").check().text
    assert "6 of 6 relays, from the directory on disk" in offline
