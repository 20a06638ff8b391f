"""The native engine's pure parts for differential tests, or a skip where the module was not built."""

import pytest

native = pytest.importorskip("hopfare_dataplane", reason="the native engine is not built (make native)")
testing = getattr(native, "testing", None)
if testing is None:
    pytest.skip("this native engine has no parts for tests", allow_module_level=True)

TICK_NS = 1_953_125
"""1/512 s: its multiples are exact as seconds in a float too, so both sides see the same instants."""


def seconds(ns: int) -> float:
    """The reference's time for a native one."""
    return ns / 1_000_000_000
