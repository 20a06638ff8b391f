"""The benchmark of money runs, and honest desks do what it expects of them. Says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_relay_between_two_is_paid_and_pays() -> None:
    argv = [sys.executable, "-m", "bench.money", "--rate", "1000", "--seconds", "2"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=120, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["tickets"] for row in rows] == ["ticket_per_packet", "as_nodes_do", 20_000, 20_000]
    for row in rows[2:]:
        assert row["issue_s"] > 0 < row["accept_s"]
    for row in rows[:2]:
        assert 0 < row["accept_us_per_packet"] < row["all_us_per_packet"]
        assert row["held_share"] < 0.5
