"""A payer against a payee: every rule for books and tickets; a stateful machine with loss and restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from payments import formats, state
from payments.books import Book, Domain, SignedBook, Ticket
from payments.chains import build_chain, walk
from payments.digest import book_digest, domain_separator
from payments.keys import PurseKey, recover
from payments.payee import Payee
from payments.payer import Payer, Resumed
from payments.refusals import Refusal
from payments.validator import PurseView

DOMAIN = Domain(31337, b"\xc0" * 20)
PAYEE = b"\x02" * 20
KEY = PurseKey(b"\x11" * 32)
VIEW = PurseView(deposited_wei=1_000_000)


def new_payer(**changes: object) -> Payer:
    return Payer(KEY, DOMAIN, PAYEE, **{"purse": VIEW, **changes})  # type: ignore[arg-type]


def new_payee(**changes: object) -> Payee:
    return Payee(DOMAIN, PAYEE, KEY.address, **{"purse": VIEW, **changes})  # type: ignore[arg-type]


def deliver(payee: Payee, messages: list[bytes]) -> list[int | Refusal]:
    results: list[int | Refusal] = []
    for data in messages:
        message = formats.decode_message(data, PAYEE)
        if isinstance(message, SignedBook):
            results.append(payee.accept_book(message))
        else:
            assert isinstance(message, Ticket)
            results.append(payee.accept_ticket(message.number, message.index, message.word))
    return results


def signed(key: PurseKey = KEY, domain: Domain = DOMAIN, **changes: object) -> tuple[SignedBook, list[bytes]]:
    words = build_chain(b"\x33" * 32, 10)
    book = replace(Book(PAYEE, 1, 0, 5, 10, words[0]), **changes)  # type: ignore[arg-type]
    return SignedBook(book, key.sign(book_digest(domain_separator(domain), book))), words


def test_a_payment_in_one_message() -> None:
    payer, payee = new_payer(), new_payee()
    messages = payer.issue(1007, 10)
    assert [m[0] for m in messages] == [formats.KIND_BOOK, formats.KIND_TICKET]
    assert deliver(payee, messages) == [0, 1000]
    assert payer.worth_wei == payee.worth_wei == 1000, "whole tickets, never above what was asked"


@pytest.mark.parametrize(("per_message", "expected"), [(1, 7), (3, 3), (100, 1)])
def test_tickets_per_message(per_message: int, expected: int) -> None:
    payer, payee = new_payer(tickets_per_message=per_message), new_payee()
    messages = payer.issue(70, 10)
    assert len(messages) == 1 + expected
    assert sum(g for g in deliver(payee, messages) if isinstance(g, int)) == 70


def test_books_follow_one_another_and_carry_the_total() -> None:
    payer, payee = new_payer(book_length=4), new_payee()
    assert all(isinstance(r, int) for r in deliver(payee, payer.issue(100, 10)))
    assert payee.worth_wei == 100
    assert payee.state.number == 3
    assert payee.state.book is not None
    assert payee.state.book.book.base_wei == 80
    claim = payee.claim()
    assert claim is not None
    assert claim.worth_wei == 100
    assert walk(claim.ticket.word, claim.ticket.index) == claim.signed.book.tip


def test_a_new_price_opens_a_new_book_on_the_same_total() -> None:
    payer, payee = new_payer(), new_payee()
    deliver(payee, payer.issue(100, 10))
    assert all(isinstance(r, int) for r in deliver(payee, payer.issue(170, 35)))
    assert payee.worth_wei == payer.worth_wei == 170


def test_the_payer_stops_at_its_deposit() -> None:
    payer, payee = new_payer(purse=PurseView(55)), new_payee(purse=PurseView(55))
    messages = payer.issue(1000, 10)
    assert payer.exhausted
    assert all(isinstance(r, int) for r in deliver(payee, messages))
    assert payee.worth_wei == 50
    payer.purse = PurseView(1000, unlocking=True)
    assert payer.issue(100, 10) == []
    assert payer.exhausted


@pytest.mark.parametrize(
    ("refusal", "changes"),
    [
        (Refusal.WRONG_PAYEE, {"payee": b"\x03" * 20}),
        (Refusal.NUMBER, {"number": 0}),
        (Refusal.LENGTH, {"length": 0}),
        (Refusal.LENGTH, {"length": 1025}),
        (Refusal.VALUE, {"value_wei": 0}),
        (Refusal.DEPOSIT, {"value_wei": 100_001}),
        (Refusal.DEPOSIT, {"base_wei": 999_951}),
    ],
)
def test_each_rule_for_a_first_book(refusal: Refusal, changes: dict[str, object]) -> None:
    assert new_payee().accept_book(signed()[0]) == 0
    assert new_payee().accept_book(signed(**changes)[0]) is refusal


def test_rules_that_compare_with_the_last_book() -> None:
    payee = new_payee()
    first, words = signed()
    assert payee.accept_book(first) == 0
    assert payee.accept_ticket(1, 4, words[4]) == 20
    assert payee.accept_book(first) is Refusal.NUMBER, "payer re-uses an old book"
    assert payee.accept_book(signed(value_wei=6)[0]) is Refusal.NUMBER, "two books with the same number"
    assert payee.accept_book(signed(number=2, base_wei=19)[0]) is Refusal.BASE, "payer forgets what it owes"
    payee.purse = replace(VIEW, unlocking=True)
    assert payee.accept_book(signed(number=2, base_wei=20)[0]) is Refusal.UNLOCKING
    payee.purse = VIEW
    assert payee.accept_book(signed(number=2, base_wei=22)[0]) == 2, "a base above counts as paid"


def test_a_book_signed_by_another_key_or_for_another_domain_is_refused() -> None:
    for key, domain in (
        (PurseKey(b"\x12" * 32), DOMAIN),
        (KEY, Domain(1, DOMAIN.contract)),
        (KEY, Domain(31337, b"\xc1" * 20)),
    ):
        assert new_payee().accept_book(signed(key, domain)[0]) is Refusal.SIGNATURE
    good = signed()[0]
    for place in (0, 40, 64):
        bad = bytearray(good.signature)
        bad[place] ^= 1
        assert new_payee().accept_book(SignedBook(good.book, bytes(bad))) is Refusal.SIGNATURE


def test_each_rule_for_tickets() -> None:
    payee = new_payee()
    book, words = signed()
    assert payee.accept_ticket(1, 1, words[1]) is Refusal.FUTURE_BOOK, "no book yet"
    payee.accept_book(book)
    assert payee.accept_ticket(1, 3, words[3]) == 15, "gaps are allowed"
    assert payee.accept_ticket(1, 3, words[3]) is Refusal.BACKWARD, "payer re-uses an old ticket"
    assert payee.accept_ticket(1, 2, words[2]) is Refusal.BACKWARD
    assert payee.accept_ticket(1, 11, words[10]) is Refusal.RANGE
    assert payee.accept_ticket(1, 4, words[5]) is Refusal.WORD
    assert payee.accept_ticket(1, 5, words[4]) is Refusal.WORD
    assert payee.accept_ticket(2, 4, words[4]) is Refusal.FUTURE_BOOK
    second, _ = signed(number=2, base_wei=15)
    payee.accept_book(second)
    assert payee.accept_ticket(1, 4, words[4]) is Refusal.OLD_BOOK
    assert payee.worth_wei == 15


def test_a_purse_that_shrinks_or_unlocks_pays_for_no_more_tickets() -> None:
    payee = new_payee()
    book, words = signed()
    payee.accept_book(book)
    assert payee.accept_ticket(1, 3, words[3]) == 15
    payee.purse = replace(VIEW, unlocking=True)
    assert payee.accept_ticket(1, 4, words[4]) is Refusal.UNLOCKING
    payee.purse = PurseView(deposited_wei=15, claimed_wei=15)
    assert payee.accept_ticket(1, 4, words[4]) is Refusal.DEPOSIT, "payer withdraws and goes on paying"
    payee.purse = PurseView(deposited_wei=20, claimed_wei=15)
    assert payee.accept_ticket(1, 4, words[4]) == 5


def test_start_credit_lets_small_books_in_before_the_deposit_is_confirmed() -> None:
    view = PurseView(0, start_credit_wei=50)
    payer, payee = new_payer(purse=view), new_payee(purse=view)
    assert all(isinstance(r, int) for r in deliver(payee, payer.issue(1000, 10)))
    assert payee.worth_wei == 50
    assert payer.exhausted


def test_a_payer_that_lost_its_memory_goes_on_inside_the_same_book() -> None:
    payer, payee = new_payer(), new_payee()
    deliver(payee, payer.issue(300, 10))
    fresh = new_payer()
    memory = payee.state
    verdict, messages = fresh.resume(memory.book, memory.index, memory.word)
    assert (verdict, messages) == (Resumed.BEHIND, [])
    more = fresh.issue(400, 10)
    assert [m[0] for m in more] == [formats.KIND_TICKET]
    assert deliver(payee, more) == [100]


def test_a_payee_cannot_show_what_was_not_given() -> None:
    payer, payee = new_payer(), new_payee()
    deliver(payee, payer.issue(300, 10))
    memory = payee.state
    assert memory.book is not None
    fresh = new_payer()
    assert fresh.resume(memory.book, 31, memory.word)[0] is Resumed.FALSE
    assert fresh.resume(memory.book, 30, b"\x01" * 32)[0] is Resumed.FALSE
    assert fresh.resume(memory.book, 2000, memory.word)[0] is Resumed.FALSE
    forged, words = signed(PurseKey(b"\x12" * 32))
    assert fresh.resume(forged, 10, words[10])[0] is Resumed.FALSE
    assert fresh.worth_wei == 0


def test_a_payer_with_a_stale_memory_never_signs_the_same_number_twice() -> None:
    payer, payee = new_payer(book_length=5), new_payee()
    deliver(payee, payer.issue(30, 10))
    stale = payer.state
    deliver(payee, payer.issue(120, 10))
    again = new_payer(state=stale, book_length=5)
    memory = payee.state
    assert again.resume(memory.book, memory.index, memory.word)[0] is Resumed.BEHIND
    assert again.worth_wei == 120
    # Its memory says that book 1 is open, but the payee has shown book 3.
    assert all(isinstance(r, int) for r in deliver(payee, again.issue(200, 10)))
    assert payee.worth_wei == 200


def test_a_payer_that_signed_on_without_its_memory_recovers_past_both_books() -> None:
    payer, payee = new_payer(book_length=5), new_payee()
    deliver(payee, payer.issue(30, 10))
    forgetful = new_payer(book_length=5)
    forgetful.issue(20, 4)  # Signed and lost on the way: another book number 1.
    memory = payee.state
    verdict, _ = forgetful.resume(memory.book, memory.index, memory.word)
    assert verdict is Resumed.BEHIND
    assert all(isinstance(r, int) for r in deliver(payee, forgetful.issue(70, 4)))
    assert payee.worth_wei == 70
    assert payee.state.number == 3, "two books of five past the one both knew"


def test_misuse_raises() -> None:
    with pytest.raises(ValueError, match="book_length"):
        new_payer(book_length=1025)
    with pytest.raises(ValueError, match="value"):
        new_payer().issue(10, 0)


class Relation(RuleBasedStateMachine):
    """A purse's two ends over a link that breaks, with crashes on either side and a replaying stranger.

    The control stream is ordered: what breaks is its end. Each end has a ledger that may be behind.
    """

    @initialize(length=st.sampled_from([3, 20, 1024]), per_message=st.sampled_from([1, 4, 1024]))
    def begin(self, length: int, per_message: int) -> None:
        self.options = {"book_length": length, "tickets_per_message": per_message}
        self.deposit = 5_000
        self.payer = new_payer(purse=self.view(), **self.options)
        self.payee = new_payee(purse=self.view())
        self.payer_ledger = self.payer.state
        self.payee_ledger = self.payee.state
        self.wire: list[bytes] = []
        self.seen: list[bytes] = []
        self.signed: dict[tuple[int, bytes], Book] = {}
        self.given = 0
        self.attached = True

    def view(self) -> PurseView:
        return PurseView(self.deposit)

    def send(self, messages: list[bytes]) -> None:
        for data in messages:
            message = formats.decode_message(data, PAYEE)
            if isinstance(message, SignedBook):
                self.signed[message.book.number, message.book.tip] = message.book
        self.wire += messages
        self.given = max(self.given, self.payer.worth_wei)

    @precondition(lambda self: self.attached)
    @rule(amount=st.integers(1, 900), value=st.sampled_from([1, 7, 10, 10, 10]))
    def pay(self, amount: int, value: int) -> None:
        before = self.payer.worth_wei
        self.send(self.payer.issue(before + amount, value))
        assert before <= self.payer.worth_wei <= before + amount
        assert self.payer.exhausted or self.payer.worth_wei > before + amount - value

    @precondition(lambda self: self.attached)
    @rule(count=st.integers(1, 30))
    def arrive(self, count: int) -> None:
        now, self.wire = self.wire[:count], self.wire[count:]
        for result in deliver(self.payee, now):
            assert isinstance(result, int), result
        self.seen = (self.seen + now)[-200:]

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Old messages again, in any order, give nothing."""
        if not self.seen:
            return
        worth = self.payee.worth_wei
        before = self.payee.state
        old = data.draw(st.lists(st.sampled_from(self.seen), max_size=5))
        if self.payee.state.number == 0:
            return
        known = before.worth_wei
        for message in old:
            deliver(self.payee, [message])
        # A payee that lost its ledger's end may gain back what it had already, never more than was given.
        assert known <= self.payee.worth_wei <= max(worth, self.given)

    @rule()
    def payee_keeps(self) -> None:
        self.payee_ledger = state.decode_payee_state(state.encode_payee_state(self.payee.state, PAYEE))

    @rule()
    def payer_keeps(self) -> None:
        self.payer_ledger = state.decode_payer_state(state.encode_payer_state(self.payer.state, PAYEE))

    @rule(who=st.sampled_from(["payer", "payee", "both", "link", "payer forgets all"]))
    def breaks(self, who: str) -> None:
        self.wire = []
        self.attached = False
        if who == "payer forgets all":
            self.payer_ledger = state.EMPTY
        if who in ("payer", "both", "payer forgets all"):
            self.payer = new_payer(state=self.payer_ledger, purse=self.view(), **self.options)
        if who in ("payee", "both"):
            self.payee = new_payee(state=self.payee_ledger, purse=self.view())

    @precondition(lambda self: not self.attached)
    @rule()
    def attach(self) -> None:
        shown = self.payee.state
        verdict, messages = self.payer.resume(shown.book, shown.index, shown.word)
        assert verdict is not Resumed.FALSE
        for result in deliver(self.payee, messages):
            assert isinstance(result, int), result
        self.send([])
        self.attached = True
        assert self.payer.worth_wei >= self.payee.worth_wei

    @rule(more=st.integers(1, 2000))
    def top_up(self, more: int) -> None:
        self.deposit += more
        self.payee.purse = self.payer.purse = self.view()

    @invariant()
    def never_more_than_given_nor_deposited(self) -> None:
        if hasattr(self, "payee"):
            assert self.payee.worth_wei <= self.given
            assert self.payer.worth_wei <= self.deposit
            book = self.payee.state.book
            assert book is None or book.book.full_worth_wei <= self.deposit

    @invariant()
    def what_the_payee_holds_can_be_claimed(self) -> None:
        if not hasattr(self, "payee"):
            return
        claim = self.payee.claim()
        if claim is not None:
            book = claim.signed.book
            assert walk(claim.ticket.word, claim.ticket.index) == book.tip
            digest = book_digest(domain_separator(DOMAIN), book)
            assert recover(digest, claim.signed.signature) == KEY.address

    @invariant()
    def chains_are_never_shared(self) -> None:
        """Two books with one tip are the same book, or tickets of one would pay in the other."""
        tips: dict[bytes, Book] = {}
        for book in getattr(self, "signed", {}).values():
            assert tips.setdefault(book.tip, book) == book


TestRelation = Relation.TestCase
TestRelation.settings = settings(max_examples=40, stateful_step_count=40)
