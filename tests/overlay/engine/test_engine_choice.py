"""Which engine a node gets."""

import sys
import types

import pytest
from engine_chain import HAS_NATIVE
from engine_net import Clock, Node

from overlay.engine.io.choice import make_engine
from overlay.engine.native import NativeEngine, NativeEngineError
from overlay.engine.python import PythonEngine

EVENTS = Node("events", Clock())


def make(name):
    return make_engine(name, EVENTS, memory_limit_bytes=1 << 24)


def test_python_is_taken_when_asked_for():
    assert make("python").kind == "python"


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not installed")
@pytest.mark.parametrize("name", ["auto", "native"])
def test_native_is_taken_where_it_is(name):
    engine = make(name)
    assert isinstance(engine, NativeEngine)
    assert engine.kind == "native"


def test_without_the_crate_auto_says_so_and_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "hopfare_dataplane", None)
    engine = make("auto")
    assert isinstance(engine, PythonEngine)
    with pytest.raises(NativeEngineError, match=r"not installed.*scripts/build-native"):
        make("native")


def test_a_crate_for_another_version_is_not_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "hopfare_dataplane", types.SimpleNamespace(INTERFACE=0))
    assert make("auto").kind == "python"
    with pytest.raises(NativeEngineError, match="built for another version"):
        make("native")
