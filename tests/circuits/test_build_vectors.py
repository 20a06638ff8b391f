"""The checked-in vectors of the build, byte for byte."""

import json
import runpy
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "vectors"


def test_vectors_are_reproduced():
    stored = json.loads((VECTORS / "build.json").read_text())
    made = runpy.run_path(str(VECTORS / "generate_build.py"))["make_file"](stored)
    assert json.loads(json.dumps(made)) == stored
