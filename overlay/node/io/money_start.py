"""Opens everything that a node's money needs, in the right order: key, ledger, chain, redeemer, wallet."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from overlay.errors import OverlayError
from overlay.logs import get_logger
from overlay.node.io.account import LEDGER_FILE, open_account
from overlay.node.io.wallet import Wallet, check_contract, domain_of, redeem_limits
from overlay.node.money import Money
from payments.errors import PaymentsError, RpcUnavailableError
from payments.io.chain.client import Chain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.io.redeemer import Redeemer

if TYPE_CHECKING:
    from overlay.config.model import Config
    from overlay.engine.interface import Engine
    from overlay.links.link import Link
    from overlay.node.money import MoneyHost
    from payments.abi import OnChainPurse
    from payments.keys import PurseKey

log = get_logger("money")


@asynccontextmanager
async def open_money(
    config: Config, host: MoneyHost, engine: Engine[Link], node_id: bytes | None
) -> AsyncIterator[Money]:
    """Open this node's account and what hangs on it, and run it; `node_id` is None for a customer.

    Raises KeyFileError, PurseBusyError, LedgerError, FileError, ConfigError, and WrongChainError if our
    contract is not where the configuration says. That no endpoint answers at the moment is logged, and said
    in the status: what was paid already goes on being served.
    """
    domain = domain_of(config.payments)
    async with Rpc(config.payments.rpc, domain.chain_id) as rpc:
        chain = Chain(rpc, domain, config.payments.registry or None)
        with ExitStack() as stack:
            key, ledger = await _open_files(config, stack, chain)
            sender = Sender(chain, key, ledger, time.time)
            payee = config.relay.payee or key.address
            money: Money

            def on_purse(payer: bytes, purse: OnChainPurse) -> None:
                money.purses.on_purse(payer, purse)

            redeemer = Redeemer(
                chain,
                sender,
                ledger,
                payee,
                redeem_limits(config.payments),
                time.time,
                confirmations=config.payments.confirmations,
                interval_s=config.payments.claim_interval_s,
                on_purse=on_purse,
                watched=lambda: money.purses.watched(),
            )
            money = Money(
                config.payments,
                host,
                engine,
                node_id=node_id,
                price_wei=config.relay.price_wei_per_packet,
                payee=payee,
                key=key,
                chain=chain,
                ledger=ledger,
                redeemer=None if node_id is None else redeemer,
                sender=sender,
                wallet=Wallet(config.payments, key, chain, sender, ledger, redeemer, payee=payee),
            )
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(money.run)
                    yield money
                    nursery.cancel_scope.cancel()
            finally:
                # After its tasks: an older write must not come after the last one.
                money.close()


async def _open_files(config: Config, stack: ExitStack, chain: Chain) -> tuple[PurseKey, Ledger]:
    """Open key and ledger while the chain is asked for our contract: each takes a good part of a second."""
    opened: list[tuple[PurseKey, Ledger]] = []
    errors: list[Exception] = []

    def open_both() -> None:
        key = stack.enter_context(open_account(config))
        opened.append((key, stack.enter_context(Ledger(config.state_dir / LEDGER_FILE))))

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (PaymentsError, OverlayError) as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async def check() -> None:
        try:
            await check_contract(chain)
        except RpcUnavailableError as error:
            log.warning("the chain does not answer", reason=str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, check)
        nursery.start_soon(run, partial(trio.to_thread.run_sync, open_both))
    if errors:
        raise errors[0]
    return opened[0]
