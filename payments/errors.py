"""The exceptions of the package `payments`, under one root.

A peer's fault is never one of them past the function that reads the peer's bytes: `decode_*` functions raise
`DecodeError` and nothing else; machines answer with a `Refusal`.
"""

from __future__ import annotations


class PaymentsError(Exception):
    """Root of everything this package raises on purpose."""


class DecodeError(PaymentsError):
    """Bytes of a peer, of the ledger or of a chain's node do not have the form the protocol gives them."""


class KeyFileError(PaymentsError):
    """A key file is missing, damaged, too open to others, already there, or its passphrase is wrong."""


class LedgerError(PaymentsError):
    """The ledger's file cannot be read or written; the message says what could not be kept."""


class PurseBusyError(LedgerError):
    """Another process works with the same purse (or with a copy of its ledger)."""


class ChainError(PaymentsError):
    """The chain cannot be used: see the subclasses."""


class RpcUnavailableError(ChainError):
    """No endpoint answered within the deadline."""


class RpcRefusedError(ChainError):
    """An endpoint answered with a JSON-RPC error; `code` and `data` are the endpoint's own."""

    def __init__(self, message: str, code: int = 0, data: object = None) -> None:
        """Keep what the endpoint said."""
        super().__init__(message)
        self.code = code
        self.data = data


class WrongChainError(ChainError):
    """An endpoint serves another chain, or the contracts there are not ours."""


class NoFundsError(ChainError):
    """The account cannot pay for the transaction's value and gas."""


class TransactionFailedError(ChainError):
    """A transaction was mined and reverted, or is refused for good; the message has the contract's reason."""
