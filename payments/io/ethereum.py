"""eth-account, imported on first use and kept from changing the process.

Importing it (through py_ecc) raises Python's recursion limit to 100,000. With that limit a peer's deeply
nested JSON overflows the C stack and ends the process where it would have raised RecursionError; so the
limit is put back.
"""

from __future__ import annotations

import sys
from types import ModuleType


def eth_account() -> ModuleType:
    """Return the module eth_account; the first call takes half a second."""
    limit = sys.getrecursionlimit()
    try:
        import eth_account as module
        import eth_account.typed_transactions.typed_transaction
    finally:
        sys.setrecursionlimit(limit)
    return module


def transaction_fields(raw: bytes) -> dict[str, object]:
    """Return the fields of a signed typed transaction. Raises ValueError or TypeError if it is not one."""
    module = eth_account()
    from hexbytes import HexBytes

    parsed = module.typed_transactions.typed_transaction.TypedTransaction.from_bytes(HexBytes(raw))
    return dict(parsed.as_dict())
