"""The benchmark's table: what counts as met, and what is left out."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location(
    "bench_targets", Path(__file__).resolve().parents[2] / "bench" / "targets.py"
)
assert _spec is not None and _spec.loader is not None
targets = importlib.util.module_from_spec(_spec)
sys.modules["bench_targets"] = targets
_spec.loader.exec_module(targets)


def results(speed: float, **more: Any) -> dict[str, Any]:
    return {"down_1": {"MB_per_s": {"median": speed}, "cpu_s_per_GB": {"median": 25.0}}, **more}


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_ratios_say_how_well_a_target_is_met() -> None:
    _, _, data = targets.rows({"qh3": results(60.0)}, {"tuned": results(50.0)})
    rows = by_name(data)
    speed, cpu = rows["download over 1 stream"], rows["CPU, download over 1"]
    assert speed["met"] and round(speed["ratio_to_target"], 3) == 1.333 and speed["ratio_to_tuned_tor"] == 1.2
    assert cpu["met"] and cpu["ratio_to_target"] == 1.2 and cpu["ratio_to_tuned_tor"] == 1.0


def test_a_missed_target_is_said() -> None:
    _, lines, data = targets.rows({"qh3": results(30.0)}, {})
    assert not by_name(data)["download over 1 stream"]["met"]
    assert any("MISSED" in cell for line in lines for cell in line)


def test_the_slower_back_end_has_targets_of_its_own() -> None:
    _, _, data = targets.rows({"aioquic": results(6.0)}, {})
    assert set(by_name(data)) == {"download, slower back end"}
    assert data[0]["met"]


def test_no_failure_means_none() -> None:
    _, _, data = targets.rows({"qh3": results(60.0, parallel={"failed": 1})}, {})
    assert not by_name(data)["500 connections, failed"]["met"]
    _, _, data = targets.rows({"qh3": results(60.0, parallel={"failed": 0})}, {})
    assert by_name(data)["500 connections, failed"]["met"]


def test_the_table_is_aligned() -> None:
    head, lines, _ = targets.rows({"qh3": results(60.0)}, {"stock": results(5.0)})
    text = targets.render(head, lines).splitlines()
    assert len({len(line) for line in text}) == 1
