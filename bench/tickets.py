"""Tickets: 20,000 issued and accepted with one signed book per 1,024, processor seconds, best of five.

    python -m bench.tickets

Prints one JSON line for each way of sending: a message per ticket, and one per book.
"""

from __future__ import annotations

import json
import time

from payments import formats
from payments.books import Domain
from payments.hashing import BACKEND
from payments.keys import PurseKey
from payments.payee import Payee
from payments.payer import Payer
from payments.validator import PurseView

TICKETS = 20_000
VALUE_WEI = 100
PAYEE = b"\x02" * 20


def measure(per_message: int) -> tuple[float, float]:
    """Processor seconds to issue and to accept TICKETS tickets, sent `per_message` at a time."""
    key, domain, view = PurseKey(b"\x11" * 32), Domain(31337, b"\xc0" * 20), PurseView(10**12)
    best_issue = best_accept = float("inf")
    for _ in range(5):
        payer = Payer(key, domain, PAYEE, purse=view, tickets_per_message=per_message)
        payee = Payee(domain, PAYEE, key.address, purse=view)
        begin = time.process_time()
        messages = payer.issue(TICKETS * VALUE_WEI, VALUE_WEI)
        issued = time.process_time()
        for data in messages:
            if data[0] == formats.KIND_TICKET:
                payee.accept_ticket(*formats.decode_ticket(data))
            else:
                message = formats.decode_message(data, PAYEE)
                if isinstance(message, formats.SignedBook):
                    payee.accept_book(message)
        accepted = time.process_time()
        if payee.worth_wei != TICKETS * VALUE_WEI:
            raise SystemExit(f"{payee.worth_wei} wei accepted instead of {TICKETS * VALUE_WEI}")
        best_issue = min(best_issue, issued - begin)
        best_accept = min(best_accept, accepted - issued)
    return best_issue, best_accept


def main() -> None:
    for per_message in (1, 1024):
        issue_s, accept_s = measure(per_message)
        row = {"bench": "tickets", "keccak": BACKEND, "tickets": TICKETS, "per_message": per_message}
        print(json.dumps({**row, "issue_s": round(issue_s, 4), "accept_s": round(accept_s, 4)}))


if __name__ == "__main__":
    main()
