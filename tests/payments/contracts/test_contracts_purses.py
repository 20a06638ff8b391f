"""Every rule of the purses contract: one use that works and one that is refused."""

from __future__ import annotations

import boa
import pytest
from contracts_kit import (
    ETHER,
    NOTICE,
    ZERO,
    account,
    deployer,
    domain_of,
    load,
    make_book,
    make_claim,
    text,
)
from eth.exceptions import Revert
from hypothesis import given, settings
from hypothesis import strategies as st

from payments.books import Book, Domain
from payments.digest import book_digest, domain_separator
from payments.keys import CURVE_ORDER

PAYER, PAYEE, OTHER = 101, 102, 103


@pytest.fixture
def people(world):
    return account(PAYER), account(PAYEE), account(OTHER)


@pytest.fixture
def filled(purses, people):
    payer, payee, _ = people
    purses.open(text(payee.address), value=ETHER, sender=text(payer.address))
    return purses


def amounts(purses, payer, payee):
    purse = purses.purse(text(payer.address), text(payee.address))
    return purse[0], purse[1], purse[2]


def test_the_notice_period_has_bounds(world):
    for good in (60, 90 * 86400):
        assert load("purses", good).NOTICE() == good
    for bad in (0, 59, 90 * 86400 + 1):
        with boa.reverts("purses: bad notice"):
            deployer("purses").deploy(bad)


def test_open_and_top_up_add_to_the_deposit(purses, people):
    payer, payee, other = people
    purses.open(text(payee.address), value=5, sender=text(payer.address))
    purses.top_up(text(payer.address), text(payee.address), value=7, sender=text(other.address))
    assert amounts(purses, payer, payee) == (12, 0, 0)
    assert boa.env.get_balance(purses.address) == 12


def test_open_and_top_up_refuse_nothing_nobody_and_too_much(purses, people):
    payer, payee, _ = people
    with boa.reverts("vault: no money"):
        purses.open(text(payee.address), value=0, sender=text(payer.address))
    for nobody in (ZERO, purses.address):
        with boa.reverts("purses: no payee"):
            purses.open(nobody, value=1, sender=text(payer.address))
    with boa.reverts("purses: no payer"):
        purses.top_up(ZERO, text(payee.address), value=1, sender=text(payer.address))
    boa.env.set_balance(text(payer.address), 2**120)
    purses.open(text(payee.address), value=2**104 - 1, sender=text(payer.address))
    with boa.reverts("vault: too much money"):
        purses.open(text(payee.address), value=1, sender=text(payer.address))


def test_plain_money_is_refused(purses, people):
    with pytest.raises(Revert):
        boa.env.raw_call(to_address=purses.address, value=1, sender=text(people[0].address))
    assert boa.env.get_balance(purses.address) == 0


@settings(max_examples=50, deadline=None)
@given(
    st.binary(min_size=20, max_size=20),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**96 - 1),
    st.integers(0, 65535),
    st.binary(min_size=32, max_size=32),
)
def test_the_digest_is_the_one_packed_by_hand(payee, number, base, value, length, tip):
    purses = load("purses", NOTICE)
    book = Book(payee, number, base, value, length, tip)
    separator = domain_separator(domain_of(purses))
    assert purses.domain_separator() == separator
    fields = (text(payee), number, base, value, length, tip)
    assert purses.book_digest(fields) == book_digest(separator, book)


def test_a_claim_pays_what_the_ticket_proves_and_once(filled, people):
    payer, payee, other = people
    book, words = make_book(payee.address)
    claim = make_claim(domain_of(filled), payer, book, 4, words[4])
    filled.claim(claim, sender=text(other.address))
    assert filled.earned(text(payee.address)) == 4 * book.value_wei
    assert amounts(filled, payer, payee) == (ETHER, 4 * book.value_wei, 0)
    with boa.reverts("purses: nothing due"):
        filled.claim(claim, sender=text(payee.address))
    with boa.reverts("purses: nothing due"):
        filled.claim(make_claim(domain_of(filled), payer, book, 3, words[3]))
    filled.claim(make_claim(domain_of(filled), payer, book, 10, words[10]))
    assert filled.earned(text(payee.address)) == 10 * book.value_wei


def test_a_new_book_settles_the_old_and_the_old_pays_no_more(filled, people):
    payer, payee, _ = people
    domain = domain_of(filled)
    old, old_words = make_book(payee.address)
    new, new_words = make_book(payee.address, number=2, base_wei=10 * old.value_wei, seed=b"\x44" * 32)
    filled.claim(make_claim(domain, payer, new, 0, new_words[0]))
    assert filled.earned(text(payee.address)) == 10 * old.value_wei, "index 0 pays the base, with no walk"
    with boa.reverts("purses: nothing due"):
        filled.claim(make_claim(domain, payer, old, 10, old_words[10]))


def test_a_claim_never_pays_more_than_the_deposit(filled, people):
    payer, payee, _ = people
    book, words = make_book(payee.address, value_wei=ETHER, length=1024)
    filled.claim(make_claim(domain_of(filled), payer, book, 1024, words[1024]))
    assert filled.earned(text(payee.address)) == ETHER
    filled.open(text(payee.address), value=3, sender=text(payer.address))
    filled.claim(make_claim(domain_of(filled), payer, book, 1024, words[1024]))
    assert filled.earned(text(payee.address)) == ETHER + 3, "the debt stands, and is paid when there is money"


def test_the_largest_amounts_do_not_overflow(filled, people):
    payer, payee, _ = people
    book, words = make_book(
        payee.address, base_wei=2**128 - 1, value_wei=2**96 - 1, length=1024, number=2**64 - 1
    )
    filled.claim(make_claim(domain_of(filled), payer, book, 1024, words[1024]))
    assert filled.earned(text(payee.address)) == ETHER


def test_what_a_claim_refuses(filled, people):
    payer, payee, other = people
    domain = domain_of(filled)
    book, words = make_book(payee.address)
    good = make_claim(domain, payer, book, 5, words[5])

    def refused(reason, claim):
        with boa.reverts(f"purses: {reason}"):
            filled.claim(claim)

    refused("bad index", make_claim(domain, payer, book, 11, words[10]))
    longer, longer_words = make_book(payee.address, length=1025)
    refused("bad index", make_claim(domain, payer, longer, 1, longer_words[1]))
    refused("bad word", make_claim(domain, payer, book, 5, words[4]))
    refused("bad word", make_claim(domain, payer, book, 5, words[6]))
    refused("bad word", make_claim(domain, payer, book, 0, words[1]))
    refused("bad signature", make_claim(domain, other, book, 5, words[5], payer=payer.address))
    refused("nothing due", make_claim(domain, other, book, 5, words[5]))
    elsewhere = Domain(domain.chain_id, b"\x01" * 20)
    refused("bad signature", make_claim(elsewhere, payer, book, 5, words[5]))
    another_chain = Domain(domain.chain_id + 1, domain.contract)
    refused("bad signature", make_claim(another_chain, payer, book, 5, words[5]))
    stolen = (good[0], (text(other.address), *good[1][1:]), *good[2:])
    refused("bad signature", stolen)
    for place in range(1, 6):
        fields = list(good[1])
        fields[place] = fields[place] + 1 if isinstance(fields[place], int) else b"\x01" * 32
        refused("bad signature", (good[0], tuple(fields), *good[2:]))
    s = CURVE_ORDER - int.from_bytes(good[6], "big")
    refused("bad signature", (*good[:4], 55 - good[4], good[5], s.to_bytes(32, "big")))
    for v in (0, 1, 26, 29, 255):
        refused("bad signature", (*good[:4], v, *good[5:]))
    refused("bad signature", (ZERO, good[1], good[2], good[3], 27, b"\0" * 32, b"\0" * 32))
    filled.claim(good)


def test_a_batch_skips_what_pays_nothing_and_pays_the_rest(filled, people):
    payer, payee, other = people
    domain = domain_of(filled)
    filled.open(text(payer.address), value=ETHER, sender=text(other.address))
    book, words = make_book(payee.address)
    own, own_words = make_book(payer.address)
    good = make_claim(domain, payer, book, 5, words[5])
    batch = [
        make_claim(domain, payer, book, 11, words[10]),
        good,
        good,
        make_claim(domain, other, book, 5, words[5], payer=payer.address),
        make_claim(domain, other, own, 2, own_words[2]),
        make_claim(domain, payer, book, 7, words[6]),
        make_claim(domain, payer, book, 6, words[6]),
    ]
    filled.claim_many(batch, sender=text(other.address))
    reasons = [e.reason for e in filled.get_logs() if type(e).__name__ == "Skipped"]
    assert reasons == [1, 2, 3, 4]
    assert filled.earned(text(payee.address)) == 6 * book.value_wei
    assert filled.earned(text(payer.address)) == 2 * own.value_wei
    filled.claim_many([], sender=text(other.address))


def test_a_batch_is_bounded(filled, people):
    payer, payee, _ = people
    book, words = make_book(payee.address)
    with boa.reverts():
        filled.claim_many([make_claim(domain_of(filled), payer, book, 1, words[1])] * 65)


def test_unlock_notice_and_withdraw(filled, people):
    payer, payee, _ = people
    book, words = make_book(payee.address)
    with boa.reverts("vault: locked"):
        filled.withdraw(text(payee.address), sender=text(payer.address))
    filled.unlock(text(payee.address), sender=text(payer.address))
    with boa.reverts("vault: already unlocking"):
        filled.unlock(text(payee.address), sender=text(payer.address))
    boa.env.time_travel(seconds=NOTICE - 1)
    with boa.reverts("vault: notice not over"):
        filled.withdraw(text(payee.address), sender=text(payer.address))
    filled.claim(make_claim(domain_of(filled), payer, book, 4, words[4]))
    boa.env.time_travel(seconds=1)
    before = boa.env.get_balance(text(payer.address))
    filled.withdraw(text(payee.address), sender=text(payer.address))
    assert boa.env.get_balance(text(payer.address)) - before == ETHER - 4 * book.value_wei
    assert amounts(filled, payer, payee) == (4 * book.value_wei, 4 * book.value_wei, 0)
    with boa.reverts("vault: locked"):
        filled.withdraw(text(payee.address), sender=text(payer.address))


def test_topping_up_cancels_no_unlock(filled, people):
    payer, payee, other = people
    filled.unlock(text(payee.address), sender=text(payer.address))
    unlock_at = amounts(filled, payer, payee)[2]
    filled.top_up(text(payer.address), text(payee.address), value=1, sender=text(other.address))
    assert amounts(filled, payer, payee) == (ETHER + 1, 0, unlock_at)


def test_a_withdrawn_purse_can_be_filled_again_and_totals_go_on(filled, people):
    payer, payee, _ = people
    domain = domain_of(filled)
    book, words = make_book(payee.address)
    filled.claim(make_claim(domain, payer, book, 4, words[4]))
    filled.unlock(text(payee.address), sender=text(payer.address))
    boa.env.time_travel(seconds=NOTICE)
    filled.withdraw(text(payee.address), sender=text(payer.address))
    with boa.reverts("vault: nothing to unlock"):
        filled.unlock(text(payee.address), sender=text(payer.address))
    with boa.reverts("purses: nothing due"):
        filled.claim(make_claim(domain, payer, book, 5, words[5]))
    filled.open(text(payee.address), value=ETHER, sender=text(payer.address))
    filled.claim(make_claim(domain, payer, book, 5, words[5]))
    assert filled.earned(text(payee.address)) == 5 * book.value_wei


def test_only_the_payee_can_release(filled, people):
    payer, payee, other = people
    for stranger in (payer, other):
        with boa.reverts("vault: nothing to release"):
            filled.release(text(payer.address), sender=text(stranger.address))
    filled.release(text(payer.address), sender=text(payee.address))
    filled.withdraw(text(payee.address), sender=text(payer.address))
    assert boa.env.get_balance(filled.address) == 0


def test_only_the_payer_can_unlock_and_withdraw(filled, people):
    payer, payee, other = people
    for stranger in (payee, other):
        with boa.reverts("vault: nothing to unlock"):
            filled.unlock(text(payee.address), sender=text(stranger.address))
    filled.unlock(text(payee.address), sender=text(payer.address))
    boa.env.time_travel(seconds=NOTICE)
    for stranger in (payee, other):
        with boa.reverts("vault: locked"):
            filled.withdraw(text(payee.address), sender=text(stranger.address))


def test_cashing_out(filled, people):
    payer, payee, other = people
    book, words = make_book(payee.address)
    filled.claim(make_claim(domain_of(filled), payer, book, 4, words[4]))
    earned = 4 * book.value_wei
    before = boa.env.get_balance(text(other.address))
    filled.cash_out(text(other.address), earned - 1, sender=text(payee.address))
    assert boa.env.get_balance(text(other.address)) - before == earned - 1
    with boa.reverts("earnings: not earned"):
        filled.cash_out(text(other.address), 2, sender=text(payee.address))
    with boa.reverts("earnings: not earned"):
        filled.cash_out(text(other.address), 1, sender=text(other.address))
    with boa.reverts("earnings: no amount"):
        filled.cash_out(text(other.address), 0, sender=text(payee.address))
    with boa.reverts("earnings: no receiver"):
        filled.cash_out(ZERO, 1, sender=text(payee.address))


ATTACKER = """
# pragma version 0.4.3
interface Purses:
    def open(payee: address): payable
    def unlock(payee: address): nonpayable
    def withdraw(payee: address): nonpayable
    def cash_out(to: address, amount: uint256): nonpayable

target: Purses
payee: address
mode: uint256

@deploy
def __init__(target: address, payee: address):
    self.target = Purses(target)
    self.payee = payee

@payable
@external
def fill():
    extcall self.target.open(self.payee, value=msg.value)

@external
def unlock():
    extcall self.target.unlock(self.payee)

@external
def attack(mode: uint256):
    self.mode = mode
    extcall self.target.withdraw(self.payee)

@payable
@external
def __default__():
    if self.mode == 1:
        extcall self.target.withdraw(self.payee)
    if self.mode == 2:
        extcall self.target.cash_out(self, 1)
    if self.mode == 3:
        raise "no money please"
"""


def test_a_receiver_cannot_come_back_in(purses, people):
    payer, payee, _ = people
    purses.open(text(payee.address), value=ETHER, sender=text(payer.address))
    thief = boa.loads(ATTACKER, purses.address, text(payee.address))
    thief.fill(value=ETHER, sender=text(payer.address))
    thief.unlock()
    boa.env.time_travel(seconds=NOTICE)
    for mode in (1, 2, 3):
        with boa.reverts():
            thief.attack(mode)
    assert boa.env.get_balance(purses.address) == 2 * ETHER
    thief.attack(0)
    assert boa.env.get_balance(purses.address) == ETHER
    assert boa.env.get_balance(thief.address) == ETHER
