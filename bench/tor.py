"""Tor on this machine, measured in the same run by the scripts of a folder that the user names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = ROOT.parent / "shared" / "bench" / "tor"
TIMEOUT_S = 3600


def why_not(folder: Path | None) -> str | None:
    """None if Tor can be measured, else one clause that says why not."""
    if folder is None:
        return "--no-tor was given"
    if not (folder / "run.py").is_file():
        return f"{folder} has no run.py (name the folder with --tor)"
    if os.geteuid() != 0:
        return "it needs root"
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    for tool in ("tor", "nginx", "curl"):
        if shutil.which(tool, path=path) is None:
            return f"{tool} is not installed"
    return None


def measure(
    folder: Path, options: Mapping[str, float], parts: list[str], *, quick: bool = False
) -> dict[str, Any]:
    """Run the folder's variants `stock` and `tuned` with our load generator; their results by name.

    `quick`: only `tuned`, and few circuits. A variant that fails is left out. Raises RuntimeError when there
    is nothing.
    """
    with tempfile.TemporaryDirectory(prefix="hopfare-bench-") as scratch:
        # Its own load generator is replaced by ours, whichever is newer: one code for both.
        copy = Path(scratch) / "tor"
        copy.mkdir()
        for source in folder.glob("*.py"):
            shutil.copyfile(source, copy / source.name)
        shutil.copyfile(ROOT / "bench" / "load.py", copy / "load.py")
        results: dict[str, Any] = {}
        for variant in ("tuned",) if quick else ("stock", "tuned"):
            output = Path(scratch) / f"{variant}.json"
            command = [sys.executable, str(copy / "run.py"), "--json", str(output), "--no-direct"]
            wanted = [part for part in parts if part in ("down", "up", "req")]
            command += ["--variants", variant, "--parts", ",".join(wanted)]
            command += ["--circuits", "10" if quick else "50"]
            for name, value in options.items():
                command += [f"--{name.replace('_', '-')}", str(value)]
            subprocess.run(command, timeout=TIMEOUT_S, check=False)
            if output.exists():
                results |= json.loads(output.read_text())["variants"]
        if not results:
            raise RuntimeError(f"{folder / 'run.py'} measured nothing, see above")
    return results
