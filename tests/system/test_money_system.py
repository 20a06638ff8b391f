"""Money over a path of real relays: a download paid ticket by ticket, another price, a budget that ends.

With a gigabyte: HOPFARE_MONEY_BYTES=1000000000 pytest -s tests/system/test_money_system.py -k claims
"""

import os
from collections.abc import Iterator

import pytest
from paid_download import PaidDownload, show

from overlay.demo.lab import missing_for_lab
from overlay.demo.world import World

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
