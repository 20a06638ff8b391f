"""Makes the lab importable by its name, and has tests that open it run on both proxies."""

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import socks_lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    has_own = "open_native" in metafunc.module.__dict__
    if (
        has_own
        or "open_lab" not in metafunc.module.__dict__
        or not inspect.iscoroutinefunction(metafunc.function)
    ):
        return
    kinds = ["python"]
    # The native proxy's thread does not know a clock that jumps.
    if "autojump_clock" not in metafunc.fixturenames and importlib.util.find_spec("hopfare_dataplane"):
        kinds.append("native")
    metafunc.parametrize("proxy_kind", kinds, indirect=True)


@pytest.fixture(autouse=True)
def proxy_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which proxy `open_lab` opens."""
    kind: str = getattr(request, "param", "auto")
    monkeypatch.setattr(socks_lab, "DEFAULT_KIND", kind)
    return kind
