"""A relay's life in the market: it joins with a stake, is found, used and paid, drains, leaves, and takes its
stake back.
"""

from collections.abc import Iterator

import pytest
from labkit import wait_until

from overlay.demo.lab import missing_for_lab
from overlay.demo.world import World
from overlay.node.io.local import call_local

pytestmark = pytest.mark.system

UNBONDING_S = 7300  # a little more than the demo's contract asks for


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    reason = missing_for_lab()
    if reason is not None:
        pytest.skip(reason)
    world = World(relays=4, exits=2, discovery="gossip", money=True, parent=tmp_path_factory.mktemp("life"))
    try:
        world.open(start=False)
        yield world
    finally:
        world.close()


def test_a_relay_joins_is_used_earns_drains_leaves_and_gets_its_stake_back(world: World) -> None:
    fleet = world.fleet
    assert world.money is not None
    late, others = fleet.relays[-1], fleet.relays[:-1]
    for node in others:
        node.start()
    for node in others:
        node.wait_ready()
    fleet.join(others)
    fleet.wait_known(others)
    client = fleet.client({"client": {"hops": 3}})
    world.curl("http://www.demo.test/ip", timeout_s=60).check()
    late.start()
    late.wait_ready()
    fleet.join([late])
    names = iter(range(10_000))

    def is_used() -> bool:
        # Every name has a circuit of its own, and so another choice of exit.
        world.curl("http://www.demo.test/big/200000", user=f"u{next(names)}:x", timeout_s=60)
        return any(
            row["packets_down"] and late.id in row["path"] for row in client.call("circuits")["circuits"]
        )

    # Sixty seconds on a quiet machine are meant; a busy one builds circuits slowly.
    wait_until(is_used, 180, "the new exit to be used")

    def earned_wei() -> int:
        return sum(row["worth_wei"] for row in late.status()["money"]["tabs"] if row["side"] == "earning")

    wait_until(lambda: earned_wei() > 0, 30, "the new exit to earn")

    late.call("drain", {"limit_s": 5.0})
    wait_until(lambda: not late.running, 90, "the drained exit to stop by itself")
    world.curl("http://www.demo.test/ip", user="after:x", timeout_s=60).check()

    late.start()
    late.wait_ready()
    left = call_local(late.state_dir, "wallet-stake-leave", timeout_s=90)
    assert not left["listed"]
    assert left["stake_wei"] > 0
    wait_until(
        lambda: all(node.status()["directory"] == len(others) for node in others), 60, "it to be forgotten"
    )
    world.money.advance(UNBONDING_S)
    taken = call_local(late.state_dir, "wallet-stake-take", timeout_s=90)
    assert taken["stake_wei"] == 0
    assert world.money.balance().is_even
