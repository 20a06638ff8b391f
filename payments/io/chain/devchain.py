"""A development chain of our own: anvil when it can be had, else the pyrevm-backed server in this package.

Owns the child process and its port. Its accounts' keys are public knowledge; it listens on the loopback
address, or on one of a lab's own network, and must never hold real money.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from payments.errors import ChainError
from payments.io.chain.rpc import Rpc
from payments.keys import PurseKey

CHAIN_ID = 31337
_START_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class DevChain:
    """A running development chain. `bank` is an account with ten thousand coins."""

    url: str
    chain_id: int
    bank: PurseKey
    kind: str
    """"anvil" or "pyrevm"."""


ANVIL_VARIABLE = "HOPFARE_ANVIL"


def find_anvil() -> str | None:
    """Return anvil's path: $HOPFARE_ANVIL, the PATH, or a source tree's workbench; or None, also if the
    variable says "off".
    """
    named = os.environ.get(ANVIL_VARIABLE)
    if named:
        return None if named == "off" else named
    found = shutil.which("anvil")
    if found:
        return found
    beside = Path(__file__).resolve().parents[3] / ".venv-contracts" / "node" / "bin" / "anvil"
    return str(beside) if beside.exists() else None


@asynccontextmanager
async def open_devchain(
    *, kind: str = "any", port: int = 0, block_time_s: int | None = 1, host: str = "127.0.0.1"
) -> AsyncIterator[DevChain]:
    """Run a development chain while the context is open; it ends with it, also after an error.

    `kind` is "anvil", "pyrevm" or "any". `block_time_s` None makes a block for each transaction (anvil then
    stalls after a burst of thousands). `host` is the IPv4 address to listen
    on. Raises ChainError if it cannot be had or does not start.
    """
    anvil = find_anvil() if kind in ("any", "anvil") else None
    if kind == "anvil" and anvil is None:
        raise ChainError("anvil is not installed; the built-in chain (pyrevm) can be used instead.")
    if port == 0:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    if anvil is not None:
        # Pruned history would stop reads at confirmed blocks; 64 states are enough for those.
        command = [anvil, "--host", host, "--port", str(port), "--chain-id", str(CHAIN_ID)]
        command += ["--quiet", "--accounts", "1"]
        command += ["--prune-history", "64"]
        if block_time_s is not None:
            command += ["--block-time", str(block_time_s)]
    else:
        command = [sys.executable, "-m", "payments.io.chain.devserver", str(port), str(CHAIN_ID), host]
    url = f"http://{host}:{port}"
    try:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise ChainError(f"The development chain does not start: {error}.") from None
    try:
        with trio.move_on_after(_START_TIMEOUT_S) as scope:
            while process.poll() is None and not await _answers(host, port):
                await trio.sleep(0.02)
        if process.poll() is not None or scope.cancelled_caught:
            raise ChainError(f"The development chain does not start: {await _last_words(process)}")
        yield DevChain(url, CHAIN_ID, PurseKey(BANK_SECRET), "anvil" if anvil else "pyrevm")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            if process.stderr is not None:
                await process.stderr.aclose()


async def advance_time(rpc: Rpc, seconds: int) -> None:
    """Let the development chain's time pass by `seconds` and make a block."""
    await rpc.call("evm_increaseTime", hex(seconds), decode=lambda value: value)
    await rpc.call("evm_mine", decode=lambda value: value)


async def _answers(host: str, port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def _last_words(process: trio.Process) -> str:
    if process.stderr is None:
        return "no reason given"
    with trio.move_on_after(0.5):
        return (await process.stderr.receive_some(2000)).decode(errors="replace").strip() or "no reason given"
    return "no answer in time"


BANK_WEI = 10_000 * 10**18
BANK_SECRET = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first of anvil's published test keys; the pyrevm-backed server gives the same account its coins."""
