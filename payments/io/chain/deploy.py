"""Deploying the contracts, once for a chain, and the record that everybody else uses them by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from payments.abi import encode_constructor
from payments.books import Domain
from payments.errors import ChainError, WrongChainError
from payments.io.chain.artifacts import load_artifact
from payments.io.chain.client import Chain
from payments.io.chain.sender import Sender
from payments.keys import checksum_address, parse_address


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the contracts are on a chain, and their terms for ever."""

    chain_id: int
    purses: bytes
    registry: bytes
    notice_s: int
    min_stake_wei: int
    unbonding_s: int
    block: int
    """The first block with both; logs need not be looked for before it."""

    @property
    def domain(self) -> Domain:
        """Where books are valid."""
        return Domain(self.chain_id, self.purses)


async def deploy(
    sender: Sender, chain: Chain, notice_s: int, min_stake_wei: int, unbonding_s: int
) -> Deployment:
    """Deploy both contracts from the sender's account, wait for them, and return the record.

    Raises ChainError as `Sender.send` and `Sender.wait` do.
    """
    terms = (
        ("purses", encode_constructor(["uint256"], notice_s)),
        ("registry", encode_constructor(["uint256", "uint256"], min_stake_wei, unbonding_s)),
    )
    addresses, block = [], 0
    for name, arguments in terms:
        artifact = load_artifact(name)
        sent = await sender.send(None, artifact.bytecode + arguments, kind=f"deploy {name}")
        receipt = await sender.wait(sent)
        if receipt.contract is None:
            raise ChainError(f"The deployment of {name} made no contract.")
        addresses.append(receipt.contract)
        block = receipt.block
    return Deployment(
        chain.rpc.chain_id, addresses[0], addresses[1], notice_s, min_stake_wei, unbonding_s, block
    )


async def check_deployment(chain: Chain, deployment: Deployment) -> None:
    """Raise WrongChainError unless the shipped contracts stand at the record's addresses."""
    for name, address in (("purses", deployment.purses), ("registry", deployment.registry)):
        if not await chain.has_code(address, load_artifact(name).runtime):
            raise WrongChainError(f"At {checksum_address(address)} there is no {name} contract of ours.")


def write_record(deployment: Deployment, folder: Path) -> Path:
    """Write the record as `folder`/CHAIN_ID.json and return its path."""
    d = deployment
    content = {
        "chain_id": d.chain_id,
        "purses": checksum_address(d.purses),
        "registry": checksum_address(d.registry),
        "notice_s": d.notice_s,
        "min_stake_wei": str(d.min_stake_wei),
        "unbonding_s": d.unbonding_s,
        "block": d.block,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{d.chain_id}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def read_record(path: Path) -> Deployment:
    """Return the record in a file. Raises ChainError if there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
        return Deployment(
            int(content["chain_id"]),
            parse_address(content["purses"]),
            parse_address(content["registry"]),
            int(content["notice_s"]),
            int(content["min_stake_wei"]),
            int(content["unbonding_s"]),
            int(content["block"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ChainError(f"The deployment record {path} cannot be used: {error}") from None
