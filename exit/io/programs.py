"""The system programs that change networks, `ip` and `nft`: how they are started and what they answer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import trio

from exit.errors import EnvError, PrivilegeError
from exit.io.privileges import find_program

#: No program of ours takes longer than milliseconds; a machine that hangs is told apart from a slow one by
#: this.
PROGRAM_TIMEOUT_S = 20.0
_MAX_OUTPUT_CHARS = 300


async def run_program(program: str, words: Sequence[str], stdin: str = "") -> str:
    """Run a system program and return what it printed; raises EnvError with its first words of complaint."""
    path = find_program(program)
    if path is None:
        raise PrivilegeError(f"the program `{program}` is missing: install iproute2 and nftables")
    try:
        with trio.fail_after(PROGRAM_TIMEOUT_S):
            done = await trio.run_process(
                [path, *words],
                stdin=stdin.encode(),
                capture_stdout=True,
                check=False,
                capture_stderr=True,
                env={**os.environ, "LC_ALL": "C"},
            )
    except trio.TooSlowError:
        raise EnvError(f"`{program}` did not end within {PROGRAM_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise EnvError(f"cannot run `{program}`: {error.strerror}") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())[:_MAX_OUTPUT_CHARS]
        raise EnvError(f"`{program} {' '.join(words)}` failed: {said}")
    return str(done.stdout.decode(errors="replace"))


async def run_nft(script: str) -> None:
    """Have `nft` carry out a script, whole or not at all; raises EnvError."""
    await run_program("nft", ["-f", "-"], script)


async def list_with_ip(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `ip -j` lists. Any: iproute2's own shapes, used by name only."""
    text = await run_program("ip", ["-j", *words])
    found = json.loads(text) if text.strip() else []
    return [item for item in found if item]
