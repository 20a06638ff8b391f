"""Money over a path of real relays: a download paid ticket by ticket, another price, a budget that ends.

With a gigabyte: HOPFARE_MONEY_BYTES=1000000000 pytest -s tests/system/test_money_system.py -k claims
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest
from paid_download import PaidDownload, show

from overlay.demo.box import wait_until
from overlay.demo.fleet import Node
from overlay.demo.lab import missing_for_lab, python_environment
from overlay.demo.world import World
from overlay.errors import LocalControlError

pytestmark = pytest.mark.system

SIZE = int(os.environ.get("HOPFARE_MONEY_BYTES", "8000000"))
# A window is to be a small part of what is claimed; at most 0.3 coins per GB are paid.
WINDOW_WEI = max(SIZE // 100, 1_000_000) * 3 * 10**8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    reason = missing_for_lab()
    if reason is not None:
        pytest.skip(reason)
    settings = {"": {"payments": {"max_window": f"{WINDOW_WEI} wei", "claim_interval": "1d"}}}
    with World(
        relays=3, exits=1, money=True, overrides=settings, parent=tmp_path_factory.mktemp("m")
    ) as world:
        yield world


def client_settings(world: World) -> dict[str, dict[str, object]]:
    return {
        "client": {"hops": 3, "guards": [world.relays[0].id], "circuits_ready": 1},
        "payments": {"max_window": f"{WINDOW_WEI} wei"},
    }


def test_claims_on_the_chain_add_up_to_what_a_capture_counts(world: World) -> None:
    client = world.fleet.client(client_settings(world))
    world.curl("http://www.demo.test/ip").check()
    counts = PaidDownload(world, client).run(SIZE, timeout_s=60 + SIZE / 500_000)
    print(show(counts))
    for count in counts:
        assert abs(count.difference) <= count.tolerance, count
        assert count.charged <= count.claimed, "nothing was carried unpaid"
        assert count.claimed <= count.paid + 1
        assert count.claimed <= count.captured * (1 + count.tolerance) + count.window, count
    assert counts[0].price_wei > counts[1].price_wei > counts[2].price_wei
    assert world.money is not None
    assert world.money.balance().is_even


HOPFARE = (sys.executable, "-c", "from overlay.cli.main import main; main()")


def type_command(world: World, node: Node, *arguments: str) -> str:
    """Type a `hopfare` command where a node runs; what it prints."""
    argv = [*HOPFARE, *arguments, "--config", str(node.config_path)]
    done = world.lab.run(node.host, argv, env=python_environment(), timeout_s=120.0)
    assert done.returncode == 0, done.stderr
    return done.text


def test_a_relay_that_changes_its_price(world: World) -> None:
    client = world.fleet.client(client_settings(world))
    middle = world.relays[1]
    world.curl("http://www.demo.test/ip").check()
    before = old_price(middle)
    said = type_command(world, middle, "pricing", "set", "0.2 per GB")
    assert "0.2 demo per GB" in said
    assert "The running relay asks it for new circuits" in said
    # What stands keeps its price; who knows only the old one is refused, and told so.
    world.curl("http://www.demo.test/ip").check()
    refused = middle.status()["builds"]["refused"]
    client.call("newnym")
    wait_until(lambda: middle.status()["builds"]["refused"] > refused, 60, "a refusal")
    # From the next descriptor on customers pay it.
    world.fleet.publish()
    world.fleet.client({**client_settings(world), "node": {"log_level": "debug"}})
    world.curl("http://www.demo.test/ip").check()
    rows = [row for row in middle.call("tabs")["tabs"] if row["side"] == "earning" and row["open"]]
    first = rows[-1]
    world.curl("-o", "/dev/null", "http://www.demo.test/big/300000").check()

    def price() -> int:
        """What a packet has cost since; too little while the books are behind the meter."""
        later = next(
            row
            for row in middle.call("tabs")["tabs"]
            if row["peer"] == first["peer"] and row["side"] == "earning"
        )
        packets = later["packets"] - first["packets"]
        return (later["spent_wei"] - first["spent_wei"]) // packets if packets else 0

    wanted = 0.2 * 10**18 * 1384 // 10**9
    assert wanted > before
    wait_until(lambda: price() >= wanted, 30, "the new price in the books")


def old_price(node: Node) -> int:
    return int(node.call("tabs")["price_wei_per_packet"])


def test_a_spent_budget_stops_traffic_and_says_so_also_after_a_restart(world: World) -> None:
    for node in world.fleet.clients:
        node.stop()
    settings = client_settings(world)
    settings["payments"]["budget_per_hour"] = "0.0006"  # about two megabytes
    client = world.fleet.client(settings, name="saver")
    world.curl("http://www.demo.test/ip").check()
    cut = world.curl("-o", "/dev/null", "http://www.demo.test/big/4000000")
    assert cut.returncode != 0, "more came through than the budget allows"
    status = wait_until(lambda: stopped(client), 30, "a word in the status")
    assert "The budget of 0.0006 per hour is spent; traffic goes on in about" in status
    assert "budget reached" in client.log_text()
    after = world.curl("http://www.demo.test/ip")
    assert after.returncode == 97, (after.returncode, after.stderr)  # refused by the proxy
    client.kill()
    client.start()
    wait_until(lambda: stopped(client), 30, "the same after a restart")
    spent = client.call("wallet")["purses"][0]["paid_wei"]
    assert spent <= 0.0006 * 10**18


def stopped(client: Node) -> str:
    with contextlib.suppress(LocalControlError):
        return next((text for text in client.status()["problems"] if "budget" in text), "")
    return ""
