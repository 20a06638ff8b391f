"""Real processes and a development chain: every packet is paid for, and a bad day costs a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from paid_lab import CHEAT_PROXY, ETHER, PRICE_WEI, PaidLab, tabs

from circuits.building.messages import price_chain
from overlay.demo.box import LabError, wait_until
from overlay.demo.fleet import Node
from overlay.demo.lab import missing_for_lab
from overlay.errors import LocalControlError

pytestmark = pytest.mark.system

SIZE_BYTES = 8_000_000
WAIT_S = 60.0
WINDOW_WEI = 10**16
"""payments.max_window's default, which every node here has."""
PATH_PRICES_WEI = [price for price, _ in price_chain([PRICE_WEI] * 3)]


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaidLab]:
    reason = missing_for_lab()
    if reason is not None:
        pytest.skip(reason)
    # One order of relays only: r1 is the guard, r3 the exit, so the middle is r2.
    with PaidLab(tmp_path_factory.mktemp("paid")) as lab:
        yield lab


@pytest.fixture(autouse=True)
def show_logs(paid: PaidLab, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    report = getattr(request.node, "report_of_call", None)
    if report is not None and report.failed:
        print(paid.logs())


def download(paid: PaidLab, size: int = SIZE_BYTES, **options: float) -> None:
    url = f"http://www.demo.test/big/{size}"
    done = paid.world.curl("-f", "-o", "/dev/null", "-w", "%{size_download}", url, **options).check()
    assert done.text == str(size)


def the_client(paid: PaidLab) -> Node:
    return paid.client({"client": {"guards": [paid.relay("r1").id], "hops": 3, "circuits_ready": 1}})


def worth(paid: PaidLab, name: str, payer: str) -> int:
    """What a relay says it has got from a payer's purse."""
    account = paid.keys[payer].address.hex()
    rows = [row for row in tabs(paid.relay(name), "earning") if row["payer"].lower() == f"0x{account}"]
    return max((row["worth_wei"] for row in rows), default=0)


def test_a_download_is_paid_hop_by_hop_and_claims_add_up(paid: PaidLab) -> None:
    client = the_client(paid)
    download(paid)
    hops = [("client", "r1"), ("r1", "r2"), ("r2", "r3")]

    def earned(payer: str, payee: str) -> dict[str, Any]:
        [row] = [
            row
            for row in tabs(paid.relay(payee), "earning")
            if row["payer"].lower() == f"0x{paid.keys[payer].address.hex()}"
        ]
        return row

    def paid_out(payer: str, payee: str) -> dict[str, Any]:
        node = client if payer == "client" else paid.relay(payer)
        account = f"0x{paid.keys[payee].address.hex()}"
        [row] = [row for row in tabs(node, "paying") if row["payee"].lower() == account]
        return row

    # Independently of any tab: what the client's own circuits carried, by the engine's counters of its flows.
    rows = client.call("circuits")["circuits"]
    packets = sum(row["packets_up"] + row["packets_down"] for row in rows)
    assert packets * 1384 > SIZE_BYTES

    def settled() -> bool:
        # Tabs hear of packets a little later than the client that counts them.
        return all(
            abs(spent - packets * price) <= packets * price // 20
            and abs(spent - paid_out(*hop)["spent_wei"]) <= spent // 50
            for hop, price in zip(hops, PATH_PRICES_WEI, strict=True)
            for spent in [earned(*hop)["spent_wei"]]
        )

    with suppress(LabError):  # what does not agree by then is told below
        wait_until(settled, WAIT_S, "both sides' counts to agree with the client's")
    for (payer, payee), price in zip(hops, PATH_PRICES_WEI, strict=True):
        row = earned(payer, payee)
        expected = packets * price
        print(f"{payer} -> {payee}: {row['packets']} packets, {row['spent_wei']} wei of {expected} expected")
        assert abs(row["spent_wei"] - expected) <= expected // 20
        assert row["spent_wei"] <= row["worth_wei"] <= row["spent_wei"] + WINDOW_WEI
    wait_until(
        lambda: all(paid.purse(payer, payee)["claimed_wei"] for payer, payee in hops),
        WAIT_S,
        "claims on chain",
    )
    for payer, payee in hops:
        purse = paid.purse(payer, payee)
        earned = worth(paid, payee, payer)
        assert 0 < purse["claimed_wei"] <= earned
        assert purse["earned_wei"] >= purse["claimed_wei"]
        assert purse["deposited_wei"] == ETHER, "opened once, and big enough"
    # Nobody else was paid, and no neighbour's neighbour is known.
    assert paid.purse("client", "r2")["deposited_wei"] == paid.purse("client", "r3")["deposited_wei"] == 0


def test_a_relay_killed_and_restarted_claims_what_it_had_earned(paid: PaidLab) -> None:
    the_client(paid)
    download(paid)
    middle = paid.relay("r2")
    earned = worth(paid, "r2", "r1")
    middle.kill()
    middle.start()
    middle.wait_ready()
    # What was not on its disk yet, at most a window, its payer shows again when it comes back.
    wait_until(lambda: _works(paid), WAIT_S, "service over the relay that came back")
    wait_until(lambda: worth(paid, "r2", "r1") >= earned, WAIT_S, "the payer to show what it gave")

    def claims_all() -> bool:
        with suppress(LocalControlError):  # the chain may take longer than a caller waits
            middle.call("wallet-redeem")
        return paid.purse("r1", "r2")["claimed_wei"] >= earned

    # The ledger is written at least once a second, and claims are made from it.
    wait_until(claims_all, WAIT_S, "claims of all that was earned before kill -9", every_s=1.0)


def _works(paid: PaidLab) -> bool:
    done = paid.world.curl("-f", "-o", "/dev/null", "http://www.demo.test/ip", timeout_s=20.0)
    return done.returncode == 0


def test_a_customer_killed_in_mid_traffic_goes_on_with_its_purse(paid: PaidLab) -> None:
    client = the_client(paid)
    download(paid, 2_000_000)
    before = worth(paid, "r1", "client")
    client.kill()
    client.start()
    client.wait_ready()
    wait_until(lambda: _works(paid), WAIT_S, "service after the crash")
    wait_until(lambda: worth(paid, "r1", "client") > 0, WAIT_S, "the purse to be attached again")
    assert worth(paid, "r1", "client") >= before
    assert "used elsewhere" not in client.log_text()


def test_a_customer_that_stops_paying_is_stopped_within_its_credit(paid: PaidLab) -> None:
    limit_wei = 500 * PATH_PRICES_WEI[0]
    settings = {"client": {"guards": [paid.relay("r1").id], "hops": 3, "circuits_ready": 1}}
    cheat = paid.cheat(limit_wei, settings)
    cheat.wait_ready()
    url = f"http://www.demo.test/big/{10 * SIZE_BYTES}"
    done = paid.world.curl("-o", "/dev/null", url, proxy=CHEAT_PROXY, timeout_s=WAIT_S)
    assert done.returncode != 0
    account = f"0x{paid.keys['cheat'].address.hex()}"
    [row] = [row for row in tabs(paid.relay("r1"), "earning") if row["payer"].lower() == account]
    print(f"paid {row['worth_wei']} wei, carried for {row['spent_wei']} wei, price {PATH_PRICES_WEI[0]} wei")
    assert row["spent_wei"] <= row["worth_wei"]
    assert row["worth_wei"] <= limit_wei + WINDOW_WEI
    wait_until(lambda: "not paid in time" in cheat.log_text(), WAIT_S, "the cheat to be told")
    assert "no tickets came within 10 s" in paid.relay("r1").log_text()
    cheat.stop()
