"""Circuits that grow old, die in mid-download, or lose packets."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from labkit import CLIENT, PROXY, SystemLab, wait_until
from watching import (
    IP_PAGE,
    begin_visit,
    circuit_in_use,
    circuit_under_way,
    path_of,
    wait_still,
)

from overlay.demo.box import Process
from overlay.demo.web import checksum

pytestmark = pytest.mark.system

ROTATION_S = 10  # the least that the configuration takes
RECOVERY_LIMIT_S = 20.0
"""Two to eight seconds on a quiet machine; a busy one has less time for the echoes that find a death."""


def row_of(lab: SystemLab, circuit_id: int) -> dict | None:
    return next((row for row in lab.circuits() if row["id"] == circuit_id), None)


def test_old_connections_stay_and_new_ones_move(lab: SystemLab, tmp_path: Path) -> None:
    lab.client({"client": {"rotation": f"{ROTATION_S}s"}})
    size, go = 30_000_000, tmp_path / "go"
    # A download that its reader holds up for as long as this test wants.
    download = begin_visit(lab, "long", "slow", "www.demo.test", "80", f"/big/{size}", str(go))
    wait_until(lambda: "stalled" in lab.lab.log_text("long"), 60, "the first bytes")
    (old,) = [row for row in lab.circuits() if row["connections"]]

    def kept_and_drained() -> dict | None:
        row = row_of(lab, old["id"])
        assert row is not None, "the circuit is kept for its connection"
        assert row["connections"] >= 1
        # Its connection alone is left on it once it takes no new ones.
        return row if (row["state"], row["connections"]) == ("draining", 1) else None

    kept = wait_until(kept_and_drained, ROTATION_S + 60, "the circuit's retirement", every_s=0.1)
    new = circuit_in_use(lab)
    assert new["id"] != old["id"]
    assert new["inner_ipv4"] != old["inner_ipv4"]

    counted = kept["packets_down"]
    go.touch()
    assert download.wait(120) == 0
    answer = json.loads(lab.lab.log_text("long").splitlines()[-1])
    assert answer == {"bytes": size, "sha256": checksum(size)}
    last = row_of(lab, old["id"])
    assert last is None or last["packets_down"] > counted
    wait_until(lambda: row_of(lab, old["id"]) is None, 60, "the end of the old circuit")
    assert circuit_in_use(lab)["id"] != old["id"]


@contextmanager
def endless_download(lab: SystemLab) -> Iterator[tuple[Process, dict[str, Any]]]:
    """A download that runs, through the proxy, and the circuit that it is on."""
    lab.lab.log_path("endless").unlink(missing_ok=True)
    argv = ["curl", "-sS", "-o", "/dev/null", "-m", "200", "-x", f"socks5h://{PROXY}"]
    before = wait_still(lab)
    download = lab.lab.spawn(CLIENT, [*argv, "http://www.demo.test/big/20000000000"], log="endless")
    try:
        yield download, circuit_under_way(lab, before, 3000, "the download")
    finally:
        download.kill()


@pytest.mark.parametrize("place", [0, 1, 2], ids=["guard", "middle", "exit"])
def test_a_relay_killed_in_mid_download_costs_seconds(lab: SystemLab, place: int) -> None:
    lab.client()
    with endless_download(lab) as (download, row):
        victim = path_of(lab, row)[place]
        lab.kill(victim)
        begun = time.monotonic()
        tries = 0
        while lab.client_curl(IP_PAGE, timeout_s=2).returncode != 0:
            tries += 1
            assert time.monotonic() - begun < 60
        needed_s = time.monotonic() - begun
        print(f"{victim.name} killed: new connections after {needed_s:.2f} s, {tries} lost")
        assert needed_s <= RECOVERY_LIMIT_S
        # The download itself is lost, and its program is told.
        assert download.wait(60) in (18, 56)
    wait_until(lambda: row_of(lab, row["id"]) is None, 60, "the end of the dead circuit")
    for _ in range(5):
        assert lab.client_curl(IP_PAGE, timeout_s=10).returncode == 0


def speed(lab: SystemLab, size: int) -> float:
    """Bytes per second of one download."""
    command = ("-f", "-o", "/dev/null", "-w", "%{speed_download}", f"http://www.demo.test/big/{size}")
    return float(lab.client_curl(*command, timeout_s=120).check().text)


def test_one_percent_of_loss_costs_less_than_half_of_the_speed(lab: SystemLab) -> None:
    """On the customer's own link, which is one link between neighbours; a relay's carries two."""
    lab.client({"client": {"circuits_ready": 1}})
    size, most_turns, lost = 12_000_000, 8, 0
    ratios = [0.0]
    # In turns, so that what else this machine does meets both alike; the turn it spoils least counts.
    while len(ratios) <= most_turns and (lost <= 300 or max(ratios) <= 0.5):
        lab.links.segment(CLIENT)  # so that only the loss differs
        sound = speed(lab, size)
        lab.links.lose(CLIENT, 1.0)
        lossy = max(speed(lab, size), speed(lab, size))
        ratios.append(lossy / sound)
        print(f"{sound / 1e6:.1f} MB/s, with loss {lossy / 1e6:.1f} MB/s")
        lost += lab.links.lost(CLIENT)
        lab.links.restore(CLIENT)
    assert lost > 300
    assert max(ratios) > 0.5, ratios
