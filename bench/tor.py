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
_HEADER_LINES = 3  # of our copy of load.py; the rest is the same
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


def same_load(folder: Path) -> bool:
    """Whether that folder's load generator is the one we use."""
    ours = (ROOT / "bench" / "load.py").read_text().splitlines()[_HEADER_LINES:]
    try:
        theirs = (folder / "load.py").read_text().splitlines()[1:]
    except OSError:
        return False
    return ours == theirs


def measure(folder: Path, options: Mapping[str, float], parts: list[str]) -> dict[str, Any]:
    """Run the folder's variants `stock` and `tuned`; their results by name. Raises RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="hopfare-bench-") as scratch:
        output = Path(scratch) / "tor.json"
        command = [sys.executable, str(folder / "run.py"), "--json", str(output), "--parts", ",".join(parts)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        done = subprocess.run(command, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0 or not output.exists():
            raise RuntimeError(f"{folder / 'run.py'} ended with {done.returncode}")
        results: dict[str, Any] = json.loads(output.read_text())
    return results
