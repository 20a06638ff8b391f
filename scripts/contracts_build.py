"""Compile the Vyper contracts and keep, or compare, their ABI and bytecode. Runs in .venv-contracts."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import vyper
from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle

SOURCES = Path(__file__).resolve().parent.parent / "payments" / "contracts"
ARTIFACTS = SOURCES / "artifacts"
CONTRACTS = ("purses", "registry")


def build(name: str) -> str:
    """Return the JSON text of one contract's artifact."""
    bundle = FilesystemInputBundle([SOURCES])
    source = bundle.load_file(f"{name}.vy")
    output = compile_from_file_input(
        source, input_bundle=bundle, output_formats=["abi", "bytecode", "bytecode_runtime"]
    )
    parts = [SOURCES / f"{name}.vy", *sorted((SOURCES / "modules").glob("*.vy"))]
    artifact = {
        "contract": name,
        "compiler": f"vyper {vyper.__version__}",
        "sources": {str(p.relative_to(SOURCES)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts},
        "abi": output["abi"],
        "bytecode": output["bytecode"],
        "runtime": output["bytecode_runtime"],
    }
    return json.dumps(artifact, indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write the artifacts, or with --check compare them; return 1 if any differs."""
    check = sys.argv[1:] == ["--check"]
    different = []
    for name in CONTRACTS:
        text = build(name)
        path = ARTIFACTS / f"{name}.json"
        if check:
            if not path.exists() or path.read_text() != text:
                different.append(name)
        else:
            ARTIFACTS.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"{path.name}: {len(json.loads(text)['runtime']) // 2 - 1} bytes of code")
    if different:
        print(f"shipped artifacts differ from a fresh compile: {', '.join(different)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
