"""What a person does with this node's account: look, open purses, take money back, claim, cash out.

`Wallet` does it, wherever the account is in use: inside a running node, which answers `hopfare wallet`
through its control socket (`Wallet.handle`), or in the command itself while no node runs (`open_wallet`).
Amounts that go through the control socket are whole wei. Does not own tickets: the tabs give and take those.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio

from overlay.errors import ConfigError
from overlay.node.io.account import LEDGER_FILE, AskPassphrase, open_account
from overlay.node.io.local import lock_state
from overlay.node.io.stake import METHODS as STAKE_METHODS
from overlay.node.io.stake import StakeDesk
from overlay.node.io.wallet_view import WalletView
from payments import abi
from payments.books import Domain
from payments.errors import ChainError, KeyFileError, NoFundsError, TransactionFailedError, WrongChainError
from payments.io.chain.artifacts import load_artifact
from payments.io.chain.client import Chain
from payments.io.chain.deposits import Deposit, find_deposits
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.keystore import read_address
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed
from payments.io.redeemer import Redeemer
from payments.keys import checksum_address
from payments.redeemer import Claimable, RedeemLimits

if TYPE_CHECKING:
    from overlay.config.model import Config, PaymentsConfig
    from payments.io.chain.sender import Receipt
    from payments.keys import PurseKey

_DAY_S = 86400


def domain_of(payments: PaymentsConfig) -> Domain:
    """Return where this network's books are valid. Raises ConfigError if payments are off."""
    if not payments.is_on:
        raise ConfigError(
            "payments are off: set payments.chain_id, payments.rpc and payments.purses to those of your "
            "network"
        )
    return Domain(payments.chain_id, payments.purses)


def redeem_limits(payments: PaymentsConfig) -> RedeemLimits:
    """Return when to claim, as the operator has set it."""
    return RedeemLimits(
        worth_multiple=payments.claim_multiple,
        deadline_margin_s=payments.claim_margin_s,
        max_batch=payments.claim_batch,
    )


async def check_contract(chain: Chain) -> None:
    """Raise WrongChainError unless our purses contract stands where the configuration says."""
    if not await chain.has_code(chain.domain.contract, load_artifact("purses").runtime):
        address = checksum_address(chain.domain.contract)
        raise WrongChainError(
            f"At {address} on chain {chain.domain.chain_id} there is no purses contract of ours: check "
            "payments.purses and payments.chain_id."
        )


class Wallet(WalletView):
    """One account with its ledger and its chain."""

    def __init__(
        self,
        payments: PaymentsConfig,
        key: PurseKey,
        chain: Chain,
        sender: Sender,
        ledger: Ledger,
        redeemer: Redeemer,
        *,
        payee: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Everything belongs to the account of `key`; `payee` (20 bytes) is who is paid for this node."""
        super().__init__(payments, chain, ledger, address=key.address, payee=payee)
        self._sender = sender
        self._redeemer = redeemer
        self._clock = clock

    async def handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Answer a method of the control socket that begins with "wallet".

        Raises LookupError for one that there is not; PaymentsError and ConfigError, each one sentence.
        """
        match method:
            case "wallet":
                return await self.show()
            case "wallet-open":
                return await self.deposit(_address(params, "payee"), _amount(params), is_new=True)
            case "wallet-top-up":
                return await self.deposit(_address(params, "payee"), _amount(params), is_new=False)
            case "wallet-unlock":
                return await self.unlock(_address(params, "payee"))
            case "wallet-withdraw":
                return await self.withdraw(_address(params, "payee"))
            case "wallet-release":
                return await self.release(_address(params, "payer"))
            case "wallet-cash-out":
                to = _address(params, "to") if params.get("to") else self._address
                return await self.cash_out(to, _amount(params) if "wei" in params else None)
            case "wallet-redeem":
                return await self.redeem(dry_run=bool(params.get("dry_run")))
            case "wallet-earnings":
                return await self.earnings(int(params.get("first_day", 0)))
        if method in STAKE_METHODS:
            desk = StakeDesk(self._payments, self._chain, self._address, self._payee, self._do_registry)
            return await desk.handle(method, params)
        raise LookupError(f"there is no method {method[:40]}")

    async def deposit(self, payee: bytes, wei: int, *, is_new: bool) -> dict[str, Any]:
        """Put `wei` into the purse towards `payee`. `is_new` says whether the caller believes it is new."""
        before = await self._chain.purse(self._address, payee)
        shown = checksum_address(payee)
        if payee == self._address:
            raise ConfigError("a purse towards this account itself would pay nobody")
        if is_new and before.deposited_wei > before.claimed_wei:
            raise ConfigError(
                f"there is a purse towards {shown} already: add to it with `hopfare wallet top-up`"
            )
        if not is_new and before.deposited_wei == 0:
            raise ConfigError(f"there is no purse towards {shown}: open one with `hopfare wallet open`")
        await self._must_have(wei)
        # In the ledger before there is money in it, so that it is never lost sight of.
        keyed = PurseKeyed(self._chain.domain, self._address, payee)
        await _in_thread(self._ledger.remember, keyed)
        arguments = [_hex(payee)] if is_new else [_hex(self._address), _hex(payee)]
        signature = "open(address)" if is_new else "top_up(address,address)"
        receipt = await self._do(signature, *arguments, kind="open" if is_new else "top up", value_wei=wei)
        after = await self._chain.purse(self._address, payee)
        return {"payee": shown, "deposited_wei": after.deposited_wei, **_receipt(receipt)}

    async def unfinished_deposits(self) -> list[Deposit]:
        """Return the deposits that were sent, by this process or an earlier one, and not seen to end."""
        chain_id = self._chain.domain.chain_id
        sent = await _in_thread(self._ledger.transactions, chain_id, self._address, "sent")
        if not sent:
            return []
        await self._sender.prepare()
        return find_deposits(sent, self._chain.domain.contract, self._address)

    async def finish_deposits(self, payee: bytes) -> int:
        """Wait for what was sent into the purse towards `payee` before; return the block in which our newest
        transaction is, which a reading of the purse must not be older than.

        Raises ChainError if it is not mined in time.
        """
        for deposit in await self.unfinished_deposits():
            if deposit.payee == payee:
                with suppress(TransactionFailedError):  # It brought nothing: a new one is right.
                    await self._sender.wait(deposit.transaction)
        newest: int = await _in_thread(self._ledger.newest_block, self._chain.domain.chain_id, self._address)
        return newest

    async def unlock(self, payee: bytes) -> dict[str, Any]:
        """Start the notice after which the rest of a purse can be withdrawn."""
        before = await self._chain.purse(self._address, payee)
        if before.unlock_at_s:
            left_s = before.unlock_at_s - (await self._chain.block()).time_s
            raise ConfigError(
                f"the purse towards {checksum_address(payee)} is being unlocked already: it can be withdrawn "
                + (f"in {_span(left_s)}" if left_s > 0 else "now")
            )
        await self._do("unlock(address)", _hex(payee), kind="unlock", explain={"nothing to unlock": payee})
        purse = await self._chain.purse(self._address, payee)
        return {"payee": checksum_address(payee), "unlock_at_s": purse.unlock_at_s}

    async def withdraw(self, payee: bytes) -> dict[str, Any]:
        """Take back what is left of a purse whose notice is over."""
        purse = await self._chain.purse(self._address, payee)
        now_s = (await self._chain.block()).time_s
        shown = checksum_address(payee)
        if purse.deposited_wei <= purse.claimed_wei and not purse.unlock_at_s:
            raise ConfigError(f"there is no money in the purse towards {shown}")
        if not purse.unlock_at_s:
            raise ConfigError(
                f"the purse towards {shown} is locked: start its notice, `hopfare wallet unlock`"
            )
        if now_s < purse.unlock_at_s:
            raise ConfigError(
                f"the notice of the purse towards {shown} is not over: it can be withdrawn in "
                f"{_span(purse.unlock_at_s - now_s)}"
            )
        receipt = await self._do("withdraw(address)", _hex(payee), kind="withdraw")
        return {
            "payee": shown,
            "withdrawn_wei": purse.deposited_wei - purse.claimed_wei,
            **_receipt(receipt),
        }

    async def release(self, payer: bytes) -> dict[str, Any]:
        """Let `payer` have the rest of its purse towards us at once; what it owes us is claimed first."""
        self._must_be_payee()
        claims = await _in_thread(self._ledger.claims, self._chain.domain, self._payee)
        for claim, _ in claims:
            if claim.payer != payer:
                continue
            purse = await self._chain.purse(payer, self._payee)
            claimable = Claimable(claim, purse.deposited_wei, purse.claimed_wei, purse.unlock_at_s)
            if claimable.due_wei:
                sent = await self._sender.send(
                    self._chain.domain.contract, abi.encode_claims([claim]), kind="claim"
                )
                await self._finish_claim(payer, claimable.due_wei, await self._sender.wait(sent))
        receipt = await self._do(
            "release(address)", _hex(payer), kind="release", explain={"nothing to release": payer}
        )
        return {"payer": checksum_address(payer), **_receipt(receipt)}

    async def cash_out(self, to: bytes, wei: int | None) -> dict[str, Any]:
        """Send `wei` (None: all) of what was claimed to the account `to`."""
        self._must_be_payee()
        earned = await self._chain.earned(self._payee)
        amount = earned if wei is None else wei
        if not earned:
            raise ConfigError(
                "there is nothing to cash out: `hopfare redeem` claims what tickets are worth, then there is"
            )
        if amount > earned:
            raise ConfigError(f"only {self._show(earned)} can be cashed out, not {self._show(amount)}")
        receipt = await self._do("cash_out(address,uint256)", _hex(to), amount, kind="cash out")
        return {"to": checksum_address(to), "wei": amount, **_receipt(receipt)}

    async def redeem(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Claim now all that brings more than its gas; with `dry_run` only say what there is."""
        waiting = await self._paying_us()
        result: dict[str, Any] = {"coin": self._payments.coin, "purses": waiting}
        result |= {"claims": 0, "claimed_wei": 0, "gas_wei": 0}
        if not dry_run:
            done = await self._redeemer.round(force=True)
            result |= {
                "purses": await self._paying_us(),
                "claims": done.claims,
                "claimed_wei": done.claimed_wei,
                "gas_wei": done.gas_wei,
            }
        return result

    async def _must_have(self, wei: int) -> None:
        if wei <= 0:
            raise ConfigError("an amount of 0 does nothing")
        balance = await self._chain.balance(self._address)
        if balance <= wei:
            raise NoFundsError(
                f"The account {checksum_address(self._address)} has {self._show(balance)}, and this "
                f"needs {self._show(wei)} and gas: send it coins (`hopfare wallet fund`)."
            )

    def _must_be_payee(self) -> None:
        if self._payee != self._address:
            raise ConfigError(
                f"what this node earns belongs to relay.payee, {checksum_address(self._payee)}: do this with "
                "the wallet that has its key"
            )

    async def _do(
        self,
        signature: str,
        *arguments: object,
        kind: str,
        value_wei: int = 0,
        explain: dict[str, bytes] | None = None,
    ) -> Receipt:
        await self._sender.prepare()
        data = abi.encode_call(signature, *arguments)
        try:
            sent = await self._sender.send(self._chain.domain.contract, data, kind=kind, value_wei=value_wei)
        except NoFundsError:
            balance = await self._chain.balance(self._address)
            raise NoFundsError(
                f"The account {checksum_address(self._address)} has {self._show(balance)}, too little "
                "for this and its gas: send it coins (`hopfare wallet fund`)."
            ) from None
        except TransactionFailedError as error:
            for reason, address in (explain or {}).items():
                if reason in str(error):
                    raise ConfigError(
                        f"there is no money in the purse of {checksum_address(address)}"
                    ) from None
            raise
        return await self._sender.wait(sent)

    async def _do_registry(self, signature: str, *arguments: object, kind: str, value_wei: int) -> Receipt:
        if value_wei:
            await self._must_have(value_wei)
        data = abi.encode_call(signature, *arguments)
        sent = await self._sender.send(self._payments.registry, data, kind=kind, value_wei=value_wei)
        return await self._sender.wait(sent)

    async def _finish_claim(self, payer: bytes, due_wei: int, receipt: Receipt) -> None:
        purse = await self._chain.purse(payer, self._payee)
        keyed = PurseKeyed(self._chain.domain, payer, self._payee)
        await _in_thread(self._ledger.note_claimed, [(keyed, purse.claimed_wei)])
        day = int(self._clock() // _DAY_S)
        noted = DayEarnings(day, payer, 0, 0, 0, due_wei, receipt.fee_wei)
        await _in_thread(self._ledger.add_earnings, noted)


@asynccontextmanager
async def open_view(config: Config) -> AsyncIterator[WalletView]:
    """Open this node's account for looking at it, while no node runs; no passphrase is needed.

    Raises as `open_wallet` does, and KeyFileError if the key file does not say whose it is.
    """
    domain = domain_of(config.payments)
    address = read_address(config.key_file)
    if address is None:
        raise KeyFileError(f"The key file {config.key_file} does not name its address.")
    with lock_state(config.state_dir), Ledger(config.state_dir / LEDGER_FILE) as ledger:
        async with Rpc(config.payments.rpc, domain.chain_id) as rpc:
            chain = Chain(rpc, domain)
            await check_contract(chain)
            yield WalletView(
                config.payments, chain, ledger, address=address, payee=config.relay.payee or address
            )


@asynccontextmanager
async def open_wallet(config: Config, ask: AskPassphrase | None = None) -> AsyncIterator[Wallet]:
    """Open this node's account for a command, while no node runs with the state folder.

    Raises AlreadyRunningError and PurseBusyError if a process has it, KeyFileError without a key,
    ConfigError if payments are off or the passphrase is not known, LedgerError, and ChainError if the chain
    is not ours or cannot be asked.
    """
    domain = domain_of(config.payments)
    with (
        lock_state(config.state_dir),
        open_account(config, ask) as key,
        Ledger(config.state_dir / LEDGER_FILE) as ledger,
    ):
        async with Rpc(config.payments.rpc, domain.chain_id) as rpc:
            chain = Chain(rpc, domain, config.payments.registry or None)
            await check_contract(chain)
            sender = Sender(chain, key, ledger, time.time)
            for old in await sender.resume():
                with trio.move_on_after(5.0):
                    try:
                        await sender.wait(old)
                    except ChainError:
                        continue  # the ledger knows how it ended; what is asked for now matters
            payee = config.relay.payee or key.address
            redeemer = Redeemer(
                chain,
                sender,
                ledger,
                payee,
                redeem_limits(config.payments),
                time.time,
                confirmations=config.payments.confirmations,
            )
            yield Wallet(config.payments, key, chain, sender, ledger, redeemer, payee=payee)


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} seconds"
    return f"{seconds // 60} minutes" if seconds < 7200 else f"{seconds // 3600} hours"


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {"transaction": "0x" + receipt.hash.hex(), "block": receipt.block, "gas_wei": receipt.fee_wei}


def _address(params: dict[str, Any], name: str) -> bytes:
    value = params.get(name)
    if isinstance(value, str) and len(value) == 42 and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise ConfigError(f"{name} must be an account: 0x and 40 hexadecimal digits")


def _amount(params: dict[str, Any]) -> int:
    value = params.get("wei")
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 104:
        return value
    raise ConfigError("the amount must be whole wei, more than 0")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


async def _in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    return await trio.to_thread.run_sync(function, *arguments)
