"""One world for all system tests of a run: six relays, two of them exits, a client, a small internet."""

from collections.abc import Iterator
from typing import Any

import pytest
from labkit import SystemLab

from overlay.demo.lab import missing_for_lab
from overlay.demo.world import World

RELAYS, EXITS = 6, 2


@pytest.fixture(scope="session")
def running_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    reason = missing_for_lab()
    if reason is not None:
        pytest.skip(reason)
    with World(relays=RELAYS, exits=EXITS, parent=tmp_path_factory.mktemp("w")) as world:
        yield SystemLab(world)


@pytest.fixture
def lab(running_world: SystemLab, request: pytest.FixtureRequest) -> Iterator[SystemLab]:
    """The world, with every relay running and every link sound; a client if an earlier test left one."""
    running_world.put_right()
    yield running_world
    report = getattr(request.node, "report_of_call", None)
    if report is not None and report.failed:
        request.node.add_report_section("call", "logs of the nodes", running_world.logs())
        running_world.stop_client()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.report_of_call = report  # type: ignore[attr-defined]
    return report
