"""Money in a lab: the chain in its hub, accounts for nodes, and the balance sheet of everybody.

Owns the bank's process and what of [payments] is put into nodes' configurations. What nodes earn and pay
comes from their control sockets; what is on the chain, from the bank, which reads blocks and receipts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay.config.parse import KEY_FILE_NAME
from overlay.demo.box import LabError, Process, wait_until
from overlay.demo.lab import HUB, Lab, python_environment, sys_executable
from overlay.demo.toml import Value
from overlay.errors import LocalControlError
from overlay.node.io.local import call_local
from payments.io.chain.devchain import ANVIL_VARIABLE
from payments.io.keystore import write_key_file
from payments.keys import PurseKey, checksum_address

BANK = "bank"
CHAIN_ADDRESS = "10.255.0.1"
"""On the hub's loopback device; every host's default route leads there."""
COIN = "demo"
PASSPHRASE_FILE = "passphrase"
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 120.0
FUND_WEI = 20 * 10**18
_SCRYPT_N = 2**12
"""Light: these keys are worth nothing, and each start of a node opens one."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the chain's coins are, as of one block."""

    block: int
    first_wei: int
    accounts_wei: Mapping[str, int]
    purses_wei: int
    registry_wei: int
    gas_wei: int
    total_wei: int

    @property
    def is_even(self) -> bool:
        """Whether there is as much money as there was in the beginning."""
        return self.total_wei == self.first_wei


class Money:
    """The chain of one lab. Everything ends with the lab's box."""

    def __init__(self, lab: Lab) -> None:
        """Start nothing yet."""
        self._lab = lab
        self._process: Process | None = None
        self._chain: dict[str, Any] = {}
        self.addresses: dict[str, str] = {}
        """Accounts by node name."""

    @property
    def folder(self) -> Path:
        """Where the bank keeps its ledger and control socket."""
        return self._lab.path / BANK

    @property
    def kind(self) -> str:
        """anvil or pyrevm."""
        return str(self._chain["kind"])

    @property
    def chain_id(self) -> int:
        """The chain's number."""
        return int(self._chain["chain_id"])

    @property
    def first_block(self) -> int:
        """The block from which on there is a registry."""
        return int(self._chain["block"])

    @property
    def running(self) -> bool:
        """Whether the chain is there."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the chain and deploy the contracts; `wait_ready` waits for it. Raises LabError."""
        self.folder.mkdir(mode=0o700)
        self._lab.ip_batch(HUB, [f"addr add {CHAIN_ADDRESS}/32 dev lo"])
        argv = [sys_executable(), "-m", "overlay.demo.bank", str(self.folder), CHAIN_ADDRESS]
        kept = {name: value for name, value in os.environ.items() if name == ANVIL_VARIABLE}
        self._process = self._lab.spawn(HUB, argv, log=BANK, env=python_environment(kept))

    def wait_ready(self) -> None:
        """Wait until the contracts are there. Raises LabError if the chain does not start."""

        def ready() -> bool:
            if not self.running:
                said = self._lab.log_text(BANK).strip()[-1000:]
                raise LabError(f"the development chain ended: {said or 'it said nothing'}")
            try:
                self._chain = call_local(self.folder, "chain")
            except LocalControlError:
                return False
            return True

        wait_until(ready, START_TIMEOUT_S, "the start of the development chain", every_s=0.05)

    def settings(self) -> dict[str, Value]:
        """Return [payments] for a node of this lab, without its account."""
        return {
            "chain_id": self.chain_id,
            "rpc": [str(self._chain["url"])],
            "purses": str(self._chain["purses"]),
            "registry": str(self._chain["registry"]),
            "coin": COIN,
            "confirmations": 1,
            "claim_interval": "2s",
        }

    def make_account(self, name: str, state_dir: Path) -> dict[str, Value]:
        """Make a key in a node's state folder; what of [payments] leads to it. The second call changes
        nothing.
        """
        passphrase_file = state_dir / PASSPHRASE_FILE
        if name not in self.addresses:
            key = PurseKey.generate(os.urandom)
            passphrase = secrets.token_urlsafe(12)
            passphrase_file.touch(mode=0o600)
            passphrase_file.write_text(f"{passphrase}\n")
            write_key_file(state_dir / KEY_FILE_NAME, key, passphrase, _SCRYPT_N)
            self.addresses[name] = checksum_address(key.address)
        return {"passphrase_file": str(passphrase_file)}

    def fund(self, names: Sequence[str], wei: int = FUND_WEI) -> None:
        """Give each of these nodes coins; they are there when this returns. Raises LabError."""
        self._ask("fund", {"accounts": [self.addresses[name] for name in names], "wei": wei})

    def advance(self, seconds: int) -> None:
        """Let the chain's time pass."""
        self._ask("advance", {"seconds": seconds})

    def balance(self) -> Balance:
        """Draw the balance of everybody. Raises LabError."""
        found = self._ask("sheet", {})
        contracts = found["contracts_wei"]
        return Balance(
            found["block"],
            found["first_wei"],
            found["accounts_wei"],
            contracts["purses"],
            contracts["registry"],
            found["gas_wei"],
            found["total_wei"],
        )

    def _ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return call_local(self.folder, method, params, timeout_s=CALL_TIMEOUT_S)
        except LocalControlError as error:
            raise LabError(f"the demo's bank: {error}") from error
