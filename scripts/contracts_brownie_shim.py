"""What eth-brownie 1.22 needs to work with Vyper 0.4, loaded before it (as a pytest plugin, or by `run`).

- Vyper 0.4 returns `sourceMap` as an object where brownie wants text, and needs a search path for the
  modules.
- brownie's compiled test modules raise TypeErrors under this Python: the shipped sources are imported
  instead.
- vvm would ask a download site for a list of compilers: only the installed one exists here.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULES = Path(__file__).resolve().parent.parent / "payments" / "contracts" / "modules"
_AS_SOURCE = ("brownie.test.stateful", "brownie.test.coverage", "brownie.test.output")


class _SourceFinder(importlib.abc.MetaPathFinder):
    """Finds the `.py` beside a compiled module."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name not in _AS_SOURCE or path is None:
            return None
        file = Path(next(iter(path))) / f"{name.rpartition('.')[2]}.py"
        loader = importlib.machinery.SourceFileLoader(name, str(file))
        return importlib.util.spec_from_file_location(name, file, loader=loader)


def _fit_compiler() -> None:
    import vvm
    import vyper.cli.vyper_json as vyper_json

    original = vyper_json.compile_json

    def compile_json(input_json: Any, *arguments: Any, **options: Any) -> Any:
        # The sources choose their own EVM version and optimisation by pragma.
        settings = {"outputSelection": input_json["settings"]["outputSelection"], "search_paths": ["."]}
        # brownie takes every source for a contract, and cannot read one without external functions: modules
        # stay out of its project and are handed to the compiler here.
        sources = dict(input_json["sources"])
        sources |= {f"contracts/modules/{m.name}": {"content": m.read_text()} for m in _MODULES.glob("*.vy")}
        output = original({**input_json, "settings": settings, "sources": sources}, *arguments, **options)
        for kind in ("contracts", "sources"):
            for name in [n for n in output.get(kind, {}) if n not in input_json["sources"]]:
                del output[kind][name]
        for contracts in output.get("contracts", {}).values():
            for contract in contracts.values():
                deployed = contract.get("evm", {}).get("deployedBytecode", {})
                if isinstance(deployed.get("sourceMap"), dict):
                    deployed["sourceMap"] = deployed["sourceMap"]["pc_pos_map_compressed"]
        return output

    vyper_json.compile_json = compile_json
    vvm.get_installed_vyper_versions = list
    vvm.get_installable_vyper_versions = list


sys.meta_path.insert(0, _SourceFinder())
_fit_compiler()


def run() -> None:
    """Be the `brownie` command."""
    from brownie._cli.__main__ import main

    main()


if __name__ == "__main__":
    run()
