"""The shipped contracts, compiled. scripts/contracts-build makes them, and a test compares them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: what is sent to deploy it, and what then stands on the chain."""

    bytecode: bytes
    runtime: bytes


def load_artifact(name: str) -> Artifact:
    """Return the shipped contract `name` ("purses" or "registry")."""
    text = resources.files("payments.contracts").joinpath(f"artifacts/{name}.json").read_text()
    content = json.loads(text)
    return Artifact(bytes.fromhex(content["bytecode"][2:]), bytes.fromhex(content["runtime"][2:]))
