"""Deposits into our purses that were sent and whose end is not known: none is made a second time meanwhile.

The ledger's transactions are all that is needed, so a process that died before, while or after sending
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from payments.abi import selector
from payments.errors import LedgerError
from payments.io.ethereum import transaction_fields
from payments.io.ledger import StoredTransaction

_OPEN = selector("open(address)")
_TOP_UP = selector("top_up(address,address)")


@dataclass(frozen=True, slots=True)
class Deposit:
    """A transaction that adds `wei` to our purse towards `payee`."""

    transaction: StoredTransaction
    payee: bytes
    wei: int


def find_deposits(transactions: Iterable[StoredTransaction], contract: bytes, payer: bytes) -> list[Deposit]:
    """Return those of our `transactions` that put money into purses of `payer` at `contract`.

    Raises LedgerError if one cannot be read: what it did is not known then.
    """
    found = []
    for transaction in transactions:
        try:
            fields: dict[str, Any] = transaction_fields(transaction.raw)
        except (ValueError, TypeError) as error:
            raise LedgerError(f"The ledger's transaction {transaction.nonce} is damaged.") from error
        data = bytes(fields["data"])
        if bytes(fields["to"]) != contract:
            continue
        if data[:4] == _OPEN and len(data) == 36:
            found.append(Deposit(transaction, data[16:36], int(fields["value"])))
        elif data[:4] == _TOP_UP and len(data) == 68 and data[16:36] == payer:
            found.append(Deposit(transaction, data[48:68], int(fields["value"])))
    return found
