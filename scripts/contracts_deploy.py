"""Deploy both contracts to a chain and write the record of it, or check a record against its chain."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from pathlib import Path

import trio

from payments.books import Domain
from payments.errors import PaymentsError
from payments.io.chain.client import Chain
from payments.io.chain.deploy import check_deployment, deploy, read_record, write_record
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.keystore import read_key_file
from payments.io.ledger import Ledger
from payments.keys import checksum_address
from payments.pricing import parse_coin

RECORDS = Path(__file__).resolve().parent.parent / "payments" / "contracts" / "deployments"


async def run(options: argparse.Namespace) -> None:
    """Do what the options say. Raises PaymentsError."""
    async with Rpc(options.rpc, options.chain_id) as rpc:
        path = options.records / f"{options.chain_id}.json"
        if options.check:
            record = read_record(path)
            await check_deployment(Chain(rpc, record.domain, record.registry), record)
            print(f"the contracts of {path} stand on chain {options.chain_id}")
            return
        if path.exists():
            raise PaymentsError(f"{path} is there already: contracts are deployed once for a chain.")
        passphrase = os.environ.get("HOPFARE_PASSPHRASE") or getpass.getpass("Passphrase of the key file: ")
        key = read_key_file(options.key_file, passphrase)
        # Nothing of a domain is used to deploy; the purses' address is only known afterwards.
        chain = Chain(rpc, Domain(options.chain_id, bytes(20)))
        with Ledger(options.key_file.with_suffix(".deploy.db")) as ledger:
            sender = Sender(chain, key, ledger, time.time)
            for old in await sender.resume():
                await sender.wait(old)
            record = await deploy(
                sender, chain, options.notice_s, parse_coin(options.min_stake), options.unbonding_s
            )
        await check_deployment(Chain(rpc, record.domain, record.registry), record)
        write_record(record, options.records)
        print(f"purses   {checksum_address(record.purses)}")
        print(f"registry {checksum_address(record.registry)}")
        print(f"record   {path}")


def main() -> int:
    """Parse the command line and run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rpc", action="append", required=True, help="an endpoint; may be given several times"
    )
    parser.add_argument("--chain-id", type=int, required=True)
    parser.add_argument("--key-file", type=Path, help="keystore v3 file of the account that pays")
    parser.add_argument("--notice-s", type=int, default=3 * 86400, help="notice period (default: three days)")
    parser.add_argument("--min-stake", default="1", help="least stake of a relay, in coins")
    parser.add_argument("--unbonding-s", type=int, default=14 * 86400, help="(default: two weeks)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    parser.add_argument("--check", action="store_true", help="check the record instead of deploying")
    options = parser.parse_args()
    if options.key_file is None and not options.check:
        parser.error("--key-file is needed to deploy")
    try:
        trio.run(run, options)
    except PaymentsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
