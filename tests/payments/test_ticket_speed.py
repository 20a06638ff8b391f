"""The speed targets: 20,000 tickets with one book signature per 1,024, issued and accepted."""

from __future__ import annotations

import time

import pytest

from payments import formats
from payments.books import Domain
from payments.hashing import BACKEND
from payments.keys import PurseKey
from payments.payee import Payee
from payments.payer import Payer
from payments.validator import PurseView

TICKETS = 20_000
PAYEE = b"\x02" * 20


@pytest.mark.skipif(BACKEND != "safe-pysha3", reason="the targets are for the fast keccak")
@pytest.mark.parametrize("per_message", [1, 1024])
def test_twenty_thousand_tickets_take_a_tenth_of_a_second_each_way(per_message: int) -> None:
    key, domain, view = PurseKey(b"\x11" * 32), Domain(31337, b"\xc0" * 20), PurseView(10**12)
    best_issue = best_accept = 1e9
    for _ in range(5):  # The best of five processor times: another process may take the core away.
        payer = Payer(key, domain, PAYEE, purse=view, tickets_per_message=per_message)
        payee = Payee(domain, PAYEE, key.address, purse=view)
        begin = time.process_time()
        messages = payer.issue(TICKETS * 100, 100)
        issued = time.process_time()
        for data in messages:
            if data[0] == formats.KIND_TICKET:
                result = payee.accept_ticket(*formats.decode_ticket(data))
            else:
                message = formats.decode_message(data, PAYEE)
                assert isinstance(message, formats.SignedBook)
                result = payee.accept_book(message)
            assert type(result) is int
        accepted = time.process_time()
        assert payee.worth_wei == TICKETS * 100
        best_issue = min(best_issue, issued - begin)
        best_accept = min(best_accept, accepted - issued)
    print(f"{per_message} tickets a message: issue {best_issue:.3f} s, accept {best_accept:.3f} s")
    assert best_issue < 0.1
    assert best_accept < 0.1
