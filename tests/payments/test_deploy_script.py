"""The deployment script: deploys once, writes the record, checks it, refuses to do it twice."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from payments.io import keystore
from payments.io.chain.deploy import read_record
from payments.io.chain.devchain import open_devchain

ROOT = Path(__file__).resolve().parents[2]


async def test_the_deployment_script(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_devchain(kind="pyrevm") as dev:
            key_file = tmp_path / "key.json"
            keystore.write_key_file(key_file, dev.bank, "word", scrypt_n=2)
            command = [sys.executable, str(ROOT / "scripts" / "contracts_deploy.py")]
            command += ["--rpc", dev.url, "--chain-id", str(dev.chain_id), "--records", str(tmp_path)]
            environment = {**os.environ, "HOPFARE_PASSPHRASE": "word", "PYTHONPATH": str(ROOT)}

            async def run(*more: str) -> tuple[int, str]:
                done = await trio.run_process(
                    [*command, *more], env=environment, capture_stdout=True, capture_stderr=True, check=False
                )
                return done.returncode, (done.stdout + done.stderr).decode()

            status, text = await run("--key-file", str(key_file), "--min-stake", "2.5")
            assert status == 0, text
            record = read_record(tmp_path / f"{dev.chain_id}.json")
            assert record.min_stake_wei == 25 * 10**17
            assert record.notice_s == 3 * 86400
            status, text = await run("--check")
            assert status == 0, text
            status, text = await run("--key-file", str(key_file))
            assert status == 1
            assert "deployed once" in text
