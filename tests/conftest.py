"""What all tests share: hypothesis profiles, and the rule for tests that need root."""

import os

import pytest
import structlog
from hypothesis import HealthCheck, settings

# No deadline: a machine with two busy cores is slow at times, and a test says nothing about speed.
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_COMMON)
settings.register_profile("ci", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "system: starts real processes in network namespaces of its own; needs root"
    )


def pytest_runtest_teardown():
    # A command that a test runs in this process sends events to what was standard error then, and is closed.
    structlog.reset_defaults()


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("system") is not None)  # the quick ones first
    if os.geteuid() == 0:
        return
    needs_root = pytest.mark.skip(reason="system tests make network namespaces and TUNs: run as root")
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(needs_root)
