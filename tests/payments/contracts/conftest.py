"""The contracts in titanoboa. Runs in the contracts' workbench only: see scripts/contracts-test."""

from __future__ import annotations

import pytest

try:
    import boa
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    from contracts_kit import NOTICE, load

    @pytest.fixture
    def world():
        """A fresh chain state for each test: everything is undone after it."""
        with boa.env.anchor():
            yield boa.env

    @pytest.fixture
    def purses(world):
        return load("purses", NOTICE)
