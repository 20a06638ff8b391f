"""A relay's entry in the registry: joining with a stake, changing it, leaving, and taking the stake back.

What `hopfare stake` does, wherever the account is in use (`overlay.node.io.wallet`). The account that sends
is the payee, which the contract proves; the identity's word for it travels along as `endorsement`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Protocol

from overlay.errors import ConfigError
from overlay.identity import NODE_ID_BYTES, SIGNATURE_BYTES, Identity, verify
from payments import abi
from payments.io.chain.rpc import decode_data
from payments.keys import checksum_address
from payments.pricing import format_coin
from payments.registry import (
    ENDORSEMENT_BYTES,
    ENDORSEMENT_CONTEXT,
    decode_ip,
    encode_ip,
    endorsement_message,
)

if TYPE_CHECKING:
    from overlay.config.model import PaymentsConfig
    from overlay.descriptor import Address
    from payments.io.chain.client import Chain
    from payments.io.chain.sender import Receipt

METHODS = ("wallet-stake", "wallet-stake-join", "wallet-stake-add", "wallet-stake-leave", "wallet-stake-take")


class SendToRegistry(Protocol):
    """Sends a call from this node's account and waits for it."""

    async def __call__(self, signature: str, *arguments: object, kind: str, value_wei: int) -> Receipt:
        """Return the receipt. Raises ChainError."""


def join_params(
    identity: Identity, payments: PaymentsConfig, payee: bytes, address: Address, stake_wei: int
) -> dict[str, Any]:
    """Return the parameters of "wallet-stake-join" for a relay: its entry, endorsed by its identity."""
    message = endorsement_message(payments.chain_id, payments.registry, payee)
    return {
        "identity": identity.node_id.hex(),
        "endorsement": identity.sign(ENDORSEMENT_CONTEXT, message).hex(),
        "ip": address.ip,
        "port": address.port,
        "wei": stake_wei,
    }


class StakeDesk:
    """The registry as one account sees it."""

    def __init__(
        self, payments: PaymentsConfig, chain: Chain, address: bytes, payee: bytes, send: SendToRegistry
    ) -> None:
        """`address` (20 bytes) is the account that sends, `payee` who is paid for this node."""
        self._payments = payments
        self._chain = chain
        self._address = address
        self._payee = payee
        self._send = send

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Answer one of METHODS. Raises LookupError, ConfigError and ChainError, each one sentence."""
        if not self._payments.registry:
            raise ConfigError("this network has no registry: payments.registry is not set")
        match method:
            case "wallet-stake":
                return await self.show()
            case "wallet-stake-join":
                return await self._join(params)
            case "wallet-stake-add":
                wei = _whole(params.get("wei"), "wei", 1, 1 << 104)
                return await self._done("add_stake()", kind="add stake", value_wei=wei)
            case "wallet-stake-leave":
                return await self._done("leave()", kind="leave the registry")
            case "wallet-stake-take":
                return await self._done("take_stake()", kind="take the stake")
        raise LookupError(f"there is no method {method[:40]}")

    async def show(self) -> dict[str, Any]:
        """Return what the registry has of this account, and its terms."""
        entry = await self._read("entry_of(address)", "0x" + self._address.hex(), words=5)
        stake = await self._read("stake_of(address)", "0x" + self._address.hex(), words=2)
        least = await self._read("MIN_STAKE()", words=1)
        unbonding = await self._read("UNBONDING()", words=1)
        is_listed = any(entry[:32])
        return {
            "coin": self._payments.coin,
            "account": checksum_address(self._address),
            "listed": is_listed,
            "identity": entry[:32].hex() if is_listed else "",
            "address": decode_ip(entry[112:128]) if is_listed else "",
            "port": int.from_bytes(entry[128:160], "big"),
            "stake_wei": int.from_bytes(stake[:32], "big"),
            "free_at_s": int.from_bytes(stake[32:], "big"),
            "least_wei": int.from_bytes(least, "big"),
            "unbonding_s": int.from_bytes(unbonding, "big"),
        }

    async def _join(self, params: dict[str, Any]) -> dict[str, Any]:
        if self._payee != self._address:
            raise ConfigError(
                "the registry lists the account that joins as the payee: this node's account is "
                f"{checksum_address(self._address)}, relay.payee {checksum_address(self._payee)}. Join with "
                "the wallet that has the payee's key, or leave relay.payee empty"
            )
        identity = _bytes(params.get("identity"), "identity", NODE_ID_BYTES)
        endorsement = _bytes(params.get("endorsement"), "endorsement", ENDORSEMENT_BYTES)
        assert SIGNATURE_BYTES == ENDORSEMENT_BYTES
        message = endorsement_message(self._payments.chain_id, self._payments.registry, self._address)
        if not verify(identity, ENDORSEMENT_CONTEXT, message, endorsement):
            raise ConfigError("the endorsement is not the identity's for this account and registry")
        try:
            ip = encode_ip(str(ipaddress.ip_address(str(params.get("ip")))))
        except ValueError:
            raise ConfigError("ip must be an IP address") from None
        port = _whole(params.get("port"), "port", 1, 65535)
        entry = (identity, endorsement[:32], endorsement[32:], ip, port)
        now = await self.show()
        if now["listed"]:
            return await self._done(f"change({abi.ENTRY_TYPE})", entry, kind="change the entry")
        wei = _whole(params.get("wei"), "wei", 0, 1 << 104)
        if now["stake_wei"] + wei < now["least_wei"]:
            coin = self._payments.coin
            raise ConfigError(
                f"the registry asks for a stake of at least {format_coin(now['least_wei'])} {coin}; "
                f"this would be {format_coin(now['stake_wei'] + wei)} {coin}"
            )
        return await self._done(f"join({abi.ENTRY_TYPE})", entry, kind="join the registry", value_wei=wei)

    async def _done(
        self, signature: str, *arguments: object, kind: str, value_wei: int = 0
    ) -> dict[str, Any]:
        receipt = await self._send(signature, *arguments, kind=kind, value_wei=value_wei)
        return {
            "transaction": "0x" + receipt.hash.hex(),
            "block": receipt.block,
            "gas_wei": receipt.fee_wei,
            **await self.show(),
        }

    async def _read(self, signature: str, *arguments: object, words: int) -> bytes:
        call = {
            "to": "0x" + self._payments.registry.hex(),
            "data": "0x" + abi.encode_call(signature, *arguments).hex(),
        }
        data = await self._chain.rpc.call("eth_call", call, "latest", decode=decode_data)
        if len(data) != 32 * words:
            address = checksum_address(self._payments.registry)
            raise ConfigError(f"at {address} there is no registry of ours: check payments.registry")
        return data


def _bytes(value: object, name: str, size: int) -> bytes:
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if len(found) != size:
        raise ConfigError(f"{name} must be {size} bytes in hexadecimal")
    return found


def _whole(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise ConfigError(f"{name} must be a whole number from {least} to {most}")
