"""A world in which packets cost money: a development chain in the hub, every node with an account."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from overlay.demo.box import Process, wait_until
from overlay.demo.fleet import Node
from overlay.demo.lab import CLIENT, HUB, python_environment, sys_executable
from overlay.demo.toml import Settings, merge
from overlay.demo.world import World
from payments.hashing import keccak256
from payments.io.chain.devchain import BANK_SECRET, CHAIN_ID
from payments.io.keystore import write_key_file
from payments.keys import PurseKey, checksum_address

PORT = 8545
URL = f"http://10.200.0.254:{PORT}"
ETHER = 10**18
PRICE_WEI = 10**12
PASSPHRASE = "lab"
CHEAT_PROXY = "127.0.0.1:1081"
CHAIN_TOOL = str(Path(__file__).with_name("chain_tool.py"))


def first_contract() -> bytes:
    """The address of the bank's first contract: Keccak-256 of the RLP of [sender, nonce 0]."""
    sender = PurseKey(BANK_SECRET).address
    return keccak256(b"\xd6\x94" + sender + b"\x80")[12:]


class PaidLab:
    """Context manager; on entry the chain runs, everybody has coins, and the relays are ready."""

    def __init__(
        self,
        folder: Path,
        *,
        relays: int = 3,
        exits: int = 1,
        payments: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Settings] | None = None,
        notice_s: int = 3600,
    ) -> None:
        self.folder = folder
        self.keys: dict[str, PurseKey] = {}
        self.contract = first_contract()
        self.chain: Process | None = None
        self._notice_s = notice_s
        self._payments: dict[str, Any] = {
            "chain_id": CHAIN_ID,
            "rpc": [URL],
            "purses": checksum_address(self.contract),
            "passphrase_file": str(folder / "passphrase"),
            "confirmations": 1,
            "claim_interval": "2s",
            "purse_deposit": "1",
            "max_in_purses": "100",
            **(payments or {}),
        }
        secret = folder / "passphrase"
        secret.write_text(PASSPHRASE + "\n")
        secret.chmod(0o600)
        names = [f"r{number}" for number in range(1, relays + 1)]
        settings: dict[str, Settings] = {}
        for name in names:
            settings[name] = merge(
                {"relay": {"price": f"{PRICE_WEI} wei per packet"}},
                self.payments_of(name),
                (overrides or {}).get(name, {}),
            )
        self.world = World(relays=relays, exits=exits, overrides=settings, parent=folder)

    def payments_of(self, name: str) -> dict[str, dict[str, Any]]:
        """The settings of a node with an account of its own, which is made."""
        file = self.folder / f"{name}.json"
        if name not in self.keys:
            self.keys[name] = PurseKey.generate(os.urandom)
            write_key_file(file, self.keys[name], PASSPHRASE, scrypt_n=1024)
        found: dict[str, dict[str, Any]] = {"payments": {**self._payments, "key_file": str(file)}}
        if name.startswith("r"):
            found["relay"] = {"payee": checksum_address(self.keys[name].address)}
        return found

    def __enter__(self) -> Self:
        try:
            self.client_settings: Settings = self.payments_of("client")
            self.cheat_settings: Settings = self.payments_of("cheat")
            self.world.open(start=False)
            self.chain = self.world.lab.python(
                HUB, "payments.io.chain.devserver", str(PORT), str(CHAIN_ID), "0.0.0.0", log="chain"
            )
            accounts = ["0x" + key.address.hex() for key in self.keys.values()]
            wait_until(self._chain_answers, 30.0, "the chain")
            made = self.tool("setup", str(self._notice_s), str(100 * ETHER), *accounts)
            assert made["purses"] == "0x" + self.contract.hex()
            self.world.fleet.start()
        except BaseException:
            self.world.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def _chain_answers(self) -> bool:
        assert self.chain is not None
        if not self.chain.running:
            raise AssertionError(self.world.lab.log_text("chain"))
        probe = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 1)"
        return self.world.lab.run(HUB, [sys_executable(), "-c", probe]).returncode == 0

    def tool(self, command: str, *arguments: str) -> Any:
        """Run the bank's program in the hub."""
        argv = [sys_executable(), CHAIN_TOOL, f"http://127.0.0.1:{PORT}", command, *arguments]
        done = self.world.lab.run(HUB, argv, env=python_environment(), timeout_s=60.0).check()
        return json.loads(done.text)

    def purse(self, payer: str, payee: str) -> dict[str, int]:
        """What the chain says of a purse, by the nodes' names."""
        pair = f"0x{self.keys[payer].address.hex()}:0x{self.keys[payee].address.hex()}"
        found: dict[str, int] = self.tool("purses", "0x" + self.contract.hex(), pair)[0]
        return found

    def client(self, overrides: Settings | None = None, **options: Any) -> Node:
        """The customer, with its account."""
        return self.world.fleet.client(merge(self.client_settings, overrides or {}), **options)

    def cheat(self, limit_wei: int, overrides: Settings) -> Node:
        """A client, on another port, that pays no more than `limit_wei`; started, not waited for."""
        settings = merge(self.cheat_settings, {"client": {"socks": [CHEAT_PROXY]}}, overrides)
        node = self.world.fleet.client(settings, name="cheat", wait=False)
        node.stop()
        program = str(Path(__file__).with_name("cheating_client.py"))
        argv = [sys_executable(), program, str(limit_wei), "client", "--config", str(node.config_path)]
        node.process = self.world.lab.spawn(
            CLIENT, argv, log="cheat", env=python_environment(), cwd=node.folder
        )
        return node

    def relay(self, name: str) -> Node:
        return next(node for node in self.world.relays if node.name == name)

    def logs(self, last_chars: int = 3000) -> str:
        nodes = (*self.world.fleet.clients, *self.world.relays)
        return "\n".join(f"--- {node.name}\n{node.log_text()[-last_chars:]}" for node in nodes)


def tabs(node: Node, side: str) -> list[dict[str, Any]]:
    """The node's rows of one side, open ones only."""
    return [row for row in node.call("tabs")["tabs"] if row["side"] == side and row["open"]]
