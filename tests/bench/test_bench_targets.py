"""The benchmark's table: what counts as met, and what is left out."""

import importlib.util
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "bench_targets", Path(__file__).resolve().parents[2] / "bench" / "targets.py"
)
assert _spec is not None and _spec.loader is not None
targets = importlib.util.module_from_spec(_spec)
sys.modules["bench_targets"] = targets
_spec.loader.exec_module(targets)


def results(speed: float, **more: Any) -> dict[str, Any]:
    return {
        "down_1": {
            "MB_per_s": {"median": speed},
            "cpu_s_per_GB": {"median": 25.0},
            "cpu_s_per_GB_each": {"relay1": 9.0},
        },
        **more,
    }


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_the_native_engine_is_measured_by_tor() -> None:
    _, _, data = targets.rows({"native": results(160.0), "qh3": results(50.0)}, {"tuned": results(50.0)})
    speed, cpu = by_name(data)["download, one stream"], by_name(data)["CPU, download, one stream"]
    assert speed["met"] and round(speed["ratio_to_tuned_tor"], 2) == 3.2
    assert cpu["met"] is False and cpu["ratio_to_tuned_tor"] == 1.0


def test_the_python_engine_has_limits_of_its_own() -> None:
    _, lines, data = targets.rows({"qh3": results(30.0)}, {})
    assert by_name(data)["download, one stream"]["met"] is False
    assert by_name(data)["CPU, download, one stream"]["met"] is True
    assert any("MISSED by qh3" in cell for line in lines for cell in line)


def test_without_tor_what_is_a_multiple_of_it_is_not_judged() -> None:
    _, _, data = targets.rows({"native": results(160.0)}, {})
    assert {row["met"] for row in data} == {None}


def test_many_streams_are_compared_with_one() -> None:
    many = {"MB_per_s": {"median": 90.0}, "cpu_s_per_GB": {"median": 25.0}}
    _, _, data = targets.rows({"native": results(100.0, down_64=many)}, {})
    row = by_name(data)["download, many streams of one"]
    assert row["values"] == {"native": 0.9} and row["met"] is False


def test_no_failure_means_none() -> None:
    for failed in (0, 1):
        _, _, data = targets.rows({"qh3": results(60.0, parallel={"failed": failed})}, {})
        assert by_name(data)["500 connections, failed"]["met"] is (failed == 0)


def test_the_tables_are_aligned() -> None:
    for head, lines in (
        targets.rows({"qh3": results(60.0)}, {"stock": results(5.0)})[:2],
        targets.cpu_rows({"qh3": results(60.0)}),
    ):
        text = targets.render(head, lines).splitlines()
        assert len({len(line) for line in text}) == 1
        assert all(
            line.count("|") == len(head) + 1
            for line in targets.render(head, lines, markdown=True).splitlines()
        )


def test_a_plot_has_a_bar_for_each_figure() -> None:
    spec = importlib.util.spec_from_file_location("bench_plots", Path(targets.__file__).with_name("plots.py"))
    assert spec is not None and spec.loader is not None
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    results = [
        {
            "controller": name,
            "rate_mbit": 10.0,
            "delay_ms": 25.0,
            "loss": loss,
            "tcp_mbit": 5.0,
            "probe_ms_p99": 9.0,
        }
        for name in ("cubic", "bbr")
        for loss in (0.0, 0.01)
    ]
    root = ElementTree.fromstring(plots.congestion(results, ("cubic", "bbr")))
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == 1 + 2 + 2 * len(results)  # paper, legend, two figures each


def test_new_results_take_the_place_of_the_old_ones() -> None:
    page = f"head\n{targets.BEGIN}\nold\n{targets.END}\ntail\n"
    assert targets.replaced(page, "new\n") == f"head\n{targets.BEGIN}\n\nnew\n\n{targets.END}\ntail\n"
    with pytest.raises(ValueError):
        targets.replaced("head", "new")


def test_the_page_has_the_marks() -> None:
    page = Path(targets.__file__).parents[1] / "docs" / "benchmarks.md"
    assert "figures" in targets.replaced(page.read_text(), "figures")
