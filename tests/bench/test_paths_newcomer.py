"""A market needs newcomers: they are chosen nearly as those that are known, and looked at first."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from circuits.path_index import PathIndex


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    return importlib.import_module("bench.paths_newcomer")


def test_a_newcomer_weighs_nearly_what_it_will_weigh_when_it_is_known(bench: Any) -> None:
    honest, fresh = bench.honest_market(), bench.newcomers()
    now = bench.due(PathIndex([*honest, *fresh]))
    later = bench.due(PathIndex([*honest, *(bench.known(one) for one in fresh)]))
    assert len(now) == 3
    for position, part in now.items():
        assert part > 0.8 * later[position], position


def test_newcomers_are_looked_at_within_the_hour(bench: Any) -> None:
    joined = PathIndex([*bench.honest_market(), *bench.newcomers()])
    assert bench.first_looks(joined, clients=3, hours=1.0) > 20, "of a thousand customers, at each"
