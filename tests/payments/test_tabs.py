"""Both tabs of a link together: normal traffic, loss, and every way of cheating or failing by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payments_net import DOMAIN, KEY, NODE, PAYEE, PRICE, VIEW, Net

from payments import formats
from payments.books import Book, SignedBook
from payments.chains import build_chain
from payments.digest import attach_digest, book_digest, domain_separator
from payments.keys import PurseKey
from payments.payee_tab import PayeeLimits, PayeeTab
from payments.payer_tab import PayerLimits, PayerTab
from payments.refusals import FAULT_LIMIT, Refusal
from payments.state import PurseState
from payments.tab import (
    CloseReason,
    Concern,
    Counts,
    Credit,
    CutOff,
    Load,
    Output,
    Ready,
    Send,
    Store,
)
from payments.validator import PurseView


def sent(outputs: list[Output]) -> list[formats.Message]:
    return [formats.decode_message(o.message, PAYEE) for o in outputs if isinstance(o, Send)]


def cuts(outputs: list[Output]) -> list[CloseReason]:
    return [o.reason for o in outputs if isinstance(o, CutOff)]


def test_the_dialogue_of_a_first_attachment() -> None:
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    [terms] = payee.start(0)
    assert isinstance(terms, Send)
    [attach] = payer.on_message(terms.message, 0)
    assert isinstance(attach, Send)
    assert payee.on_message(attach.message, 0) == [Load(KEY.address)]
    state, ready = payee.on_loaded(PurseState(), VIEW, 0)
    assert ready == Ready()
    assert isinstance(state, Send)
    assert payer.on_message(state.message, 0) == [Ready()]
    assert payer.is_open
    assert payee.is_open
    messages = payer.set_price(1000, 0)
    assert [type(m).__name__ for m in sent(messages)] == ["SignedBook", "Ticket"]
    outputs: list[Output] = []
    for output in messages:
        if isinstance(output, Send):
            outputs += payee.on_message(output.message, 0)
    assert Credit(64_000) in outputs, "slow start: 64 packets"
    assert any(isinstance(o, Store) for o in outputs), "a book is stored"


def test_traffic_flows_and_the_window_grows_to_what_is_needed() -> None:
    net = Net()
    net.start()
    assert net.payer.window_wei == 64 * PRICE
    net.payer.set_need(1500 * PRICE, net.now)
    net.run(40, forward=5, backward=5)
    assert net.payer.window_wei > 64 * PRICE
    net.run(100, forward=20, backward=30)
    held = net.held_up
    net.run(600, forward=30, backward=60)
    assert net.held_up == held, "no packet waits once the window has grown"
    assert net.payer.window_wei == 1500 * PRICE
    assert net.most_prepaid <= net.limit_wei
    assert not (net.disputes or net.closed or net.cut)
    assert net.payee.spent_wei <= net.payee.worth_wei


@given(st.integers(0, 2**32), st.sampled_from([0.001, 0.005, 0.01, 0.015]), st.integers(1, 10))
def test_loss_is_tolerated_and_the_bill_follows_the_payee(seed: int, loss: float, delay: int) -> None:
    net = Net(seed=seed, loss=loss, delay_steps=delay)
    net.start()
    net.run(60, forward=4, backward=4)
    net.run(400, forward=10, backward=20)
    assert not (net.disputes or net.closed or net.cut)
    assert net.most_prepaid <= net.limit_wei
    carried = net.paid_forward + net.paid_backward
    assert net.payee.spent_wei == carried * PRICE
    net.run(300)
    assert abs(net.payer.owed_wei - net.payee.spent_wei) <= PRICE, "the last report settles the rest"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("loss", [0.03, 0.045, 0.06])
def test_a_bad_wireless_link_is_no_dispute_and_the_loss_is_shared(seed: int, loss: float) -> None:
    net = Net(seed=seed, loss=loss, limit_packets=800)
    net.start()
    net.run(60, forward=4, backward=4)
    net.run(3000, forward=1, backward=12)
    assert not (net.disputes or net.closed or net.cut)
    carried = (net.paid_forward + net.paid_backward) * PRICE
    assert carried > 25_000 * PRICE, "service goes on"
    assert net.payee.written_off_wei or loss < 0.05
    assert net.payee.written_off_wei <= carried // 20
    assert net.payee.spent_wei == carried - net.payee.written_off_wei
    assert net.payee.spent_wei <= net.payee.worth_wei, "still prepaid"
    net.run(500)
    assert net.payer.owed_wei <= net.payer.spent_wei + net.payer.spent_wei // 50, "2 % are paid for"


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_payer_that_counts_too_little_gains_no_more_than_a_bad_link_would(share: float) -> None:
    net = Net()
    net.start()
    net.run(100, forward=5, backward=5)
    honest = net.payer.on_meter
    cheated = Counts()

    def cheat(counts: Counts, now: float) -> list[Output]:
        nonlocal cheated
        cheated = Counts(counts.forward, counts.backward, int(counts.spent_wei * share))
        return honest(cheated, now)

    net.payer.on_meter = cheat  # type: ignore[method-assign]
    net.run(2000, forward=5, backward=5)
    carried = (net.paid_forward + net.paid_backward) * PRICE
    assert carried <= net.payee.worth_wei + net.payee.written_off_wei
    assert net.payee.written_off_wei <= carried // 20


def test_a_customer_that_stops_paying_is_stopped_within_its_credit() -> None:
    net = Net()
    net.start()
    net.run(100, forward=5, backward=5)
    net.payer_answers = False
    net.to_payee.clear()
    worth = net.payee.worth_wei
    net.run(500, forward=20, backward=20)
    assert net.payee.spent_wei <= worth, "nothing is carried unpaid"
    assert worth - net.payee.spent_wei < PRICE, "and all that was paid is carried"
    assert not net.closed
    net.run(700, forward=20)
    assert [c.reason for c in net.closed] == [CloseReason.UNPAID]
    assert "10 s" in net.closed[0].detail


def test_a_payee_that_takes_the_money_and_runs_keeps_one_window() -> None:
    net = Net(limit_packets=300)
    net.start()
    net.run(300, forward=5, backward=5)
    net.run(1000, forward=5)  # The payee's packets no longer come back, nor is anything known to be carried.
    assert net.most_prepaid <= 300 * PRICE


def test_upload_alone_does_not_grow_the_window() -> None:
    net = Net()
    net.start()
    net.run(200, forward=2)
    assert net.payer.window_wei == 64 * PRICE, "nothing came back: nothing shows that anything was delivered"


def test_an_exit_that_floods_junk_spends_one_window() -> None:
    net = Net(limit_packets=300)
    net.start()
    net.run(100, forward=5, backward=5)
    spent = net.payee.spent_wei
    worth_before = net.payer.worth_wei
    net.run(400, backward=100, junk=True)
    flying, tolerance = 2 * 3 * 10 * PRICE, spent // 50
    assert net.payee.spent_wei - spent <= 300 * PRICE + flying + tolerance
    assert net.payer.worth_wei - worth_before <= 300 * PRICE + tolerance
    assert net.cut == [] or net.cut[0].reason is CloseReason.DISPUTE


@pytest.mark.parametrize("limit_packets", [300, 5000])
def test_after_a_flood_of_junk_service_goes_on_with_a_small_window(limit_packets: int) -> None:
    net = Net(limit_packets=limit_packets)
    net.start()
    net.run(150, forward=10, backward=10)
    carried, worth, window = net.payer.spent_wei, net.payer.worth_wei, net.payer.window_wei
    assert window > 200 * PRICE
    net.run(50, backward=100, junk=True)
    assert net.waiting, "nothing is left"
    net.payer.on_junk(net.now)  # The circuit that brought the junk was ended; another one goes on.
    net.run(300, forward=1, backward=5)
    assert len(net.gave_up) == 1
    assert net.gave_up[0] <= window
    assert not (net.disputes or net.closed or net.cut)
    assert not net.waiting
    assert net.paid_backward * PRICE > carried // 2 + window + 1000 * PRICE
    assert net.payer.worth_wei - worth <= window + (300 * 6 + 128) * PRICE
    assert net.payer.spent_wei >= net.payee.spent_wei - net.payee.spent_wei // 50


def test_without_a_circuit_that_broke_nothing_is_given_up() -> None:
    net = Net()
    net.start()
    net.run(150, forward=10, backward=10)
    net.run(50, backward=100, junk=True)
    net.run(1500, backward=5)
    assert not net.gave_up
    assert [c.reason for c in net.closed] == [CloseReason.UNPAID]


def test_a_payee_that_makes_junk_itself_gains_a_window_for_each_circuit_that_breaks() -> None:
    net = Net(limit_packets=500)
    net.start()
    net.run(100, forward=5, backward=5)
    for _ in range(20):
        net.run(50, backward=100, junk=True)
        net.payer.on_junk(net.now)
        net.payer.on_junk(net.now)
        net.run(200, forward=1, backward=4)
    carried = (net.payer_counts.forward + net.payer_counts.backward) * PRICE
    assert 500 * PRICE < sum(net.gave_up) <= 500 * PRICE + carried // 20
    assert net.payer.worth_wei <= carried + 500 * PRICE + carried // 20 + carried // 50 + 64 * PRICE


def test_a_relay_that_inflates_its_count_is_found() -> None:
    net = Net()
    net.start()
    net.run(200, forward=10, backward=10)
    net.change_report = lambda r: replace(r, spent_wei=r.spent_wei * 2)
    net.run(300, forward=10, backward=10)
    assert len(net.disputes) == 1
    assert [c.reason for c in net.cut] == [CloseReason.DISPUTE]


def test_a_relay_that_inflates_its_count_a_little_gains_the_tolerance_at_most() -> None:
    net = Net()
    net.start()
    net.run(1, forward=1, backward=1)
    net.change_report = lambda r: replace(r, spent_wei=r.spent_wei + r.spent_wei // 60)
    net.run(3000, forward=10, backward=10)
    own = net.payer.spent_wei
    assert net.payer.owed_wei <= own + own // 50 + net.payer.window_wei


def test_credit_beyond_one_window_waits_for_the_ledger() -> None:
    net = Net(store_steps=10**9, payee_window_packets=100)
    net.start()
    net.payer.set_need(2000 * PRICE, net.now)
    net.run(300, forward=10, backward=10)
    given = net.credit + net.payee.spent_wei
    assert given == 100 * PRICE, "worth is higher, but nothing is on disk"
    assert net.payee.worth_wei >= given
    net.stores = type(net.stores)((net.step, s) for _, s in net.stores)
    net.run(2)
    assert net.credit + net.payee.spent_wei > given


@given(st.integers(0, 300), st.sampled_from([1, 5, 40]), st.booleans(), st.booleans())
def test_a_crash_at_any_step_loses_at_most_one_window(
    steps: int, store_steps: int, payee_crashes: bool, payer_crashes: bool
) -> None:
    net = Net(store_steps=store_steps, payee_window_packets=200, limit_packets=400)
    net.start()
    net.run(steps, forward=4, backward=6)
    worth, spent, given = net.payee.worth_wei, net.payee.spent_wei, net.payer.worth_wei
    if not payee_crashes:
        net.payee_ledger = net.payee.state
    if not payer_crashes:
        net.payer_ledger = net.payer.state
    again = Net(
        payer_state=net.payer_ledger,
        payee_state=net.payee_ledger,
        payee_window_packets=200,
        limit_packets=400,
    )
    again.start()
    kept = again.payee.worth_wei
    assert kept >= worth - 200 * PRICE, "tickets lost"
    if not payer_crashes:
        assert kept >= worth, "a payer that remembers sends again what the payee forgot"
        assert again.payer.worth_wei >= given
    assert again.payee.spent_wei >= spent - 200 * PRICE, "at most one window was carried for nothing"
    again.run(300, forward=4, backward=6)
    assert not (again.cut or again.disputes or again.closed or again.warnings)
    assert again.most_prepaid <= again.limit_wei + 200 * PRICE, "the payee has forgotten a window at most"
    assert again.paid_backward > 1000


def test_a_payee_that_lost_everything_starts_at_the_newest_base() -> None:
    net = Net()
    net.start()
    net.run(300, forward=10, backward=10)
    again = Net(payer_state=net.payer.state)
    again.start()
    assert again.payee.worth_wei >= net.payer.worth_wei
    again.run(200, forward=5, backward=5)
    assert not (again.cut or again.disputes)


def test_a_purse_used_by_two_processes_is_noticed_by_the_older() -> None:
    net = Net()
    net.start()
    first_memory = net.payer.state
    net.run(400, forward=30, backward=60)
    assert net.payer.worth_wei > first_memory.worth_wei + net.limit_wei
    other = Net(payer_state=replace(first_memory, book=first_memory.book), payee_state=net.payee.state)
    other.start()
    if first_memory.book is not None:
        assert [w.concern for w in other.warnings] == [Concern.PURSE_ELSEWHERE]


def test_a_purse_that_is_busy_elsewhere_is_refused() -> None:
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    [terms] = payee.start(0)
    assert isinstance(terms, Send)
    [attach] = payer.on_message(terms.message, 0)
    assert isinstance(attach, Send)
    payee.on_message(attach.message, 0)
    outputs = payee.on_busy()
    assert cuts(outputs) == [CloseReason.PURSE_BUSY]
    assert isinstance(outputs[0], Send)
    assert cuts(payer.on_message(outputs[0].message, 0)) == [CloseReason.PURSE_BUSY]


def test_a_challenge_passed_on_by_another_relay_is_worth_nothing() -> None:
    # The relay M shows the customer P's challenge as its own, to attach the customer's purse at P.
    digest = attach_digest(domain_separator(DOMAIN), PAYEE, b"\x0f" * 32, b"\x77" * 32)
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    outputs = payee.on_message(formats.encode_attach(formats.Attach(KEY.address, KEY.sign(digest))), 0)
    assert cuts(outputs) == [CloseReason.FORGERY]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"domain": replace(DOMAIN, chain_id=1)}, CloseReason.OTHER_CHAIN),
        ({"domain": replace(DOMAIN, contract=b"\xc1" * 20)}, CloseReason.OTHER_CHAIN),
        ({"payee": b"\x03" * 20}, CloseReason.OTHER_PAYEE),
    ],
)
def test_terms_that_are_not_the_expected_ones(changes: dict[str, object], reason: CloseReason) -> None:
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    terms = replace(formats.Terms(DOMAIN, PAYEE, b"\x77" * 32, 0, 1), **changes)  # type: ignore[arg-type]
    assert cuts(payer.on_message(formats.encode_terms(terms), 0)) == [reason]


def opened_payee(purse: PurseView = VIEW) -> PayeeTab:
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    payee.start(0)
    digest = attach_digest(domain_separator(DOMAIN), PAYEE, NODE, b"\x77" * 32)
    payee.on_message(formats.encode_attach(formats.Attach(KEY.address, KEY.sign(digest))), 0)
    payee.on_loaded(PurseState(), purse, 0)
    return payee


def test_a_flood_of_forged_books_is_cut_off_after_three() -> None:
    payee = opened_payee()
    words = build_chain(b"\x33" * 32, 10)
    forger = PurseKey(b"\x12" * 32)
    outputs: list[Output] = []
    checked = 0
    for number in range(1, 1000):
        book = SignedBook(Book(PAYEE, number, 0, 5, 10, words[0]), forger.sign(b"\x01" * 32))
        answer = payee.on_message(formats.encode_book(book), 0)
        checked += bool(answer)
        outputs += answer
    assert checked == 3, "two refusals, then the link is cut and nothing more is looked at"
    assert cuts(outputs) == [CloseReason.FORGERY]


def test_a_flood_of_wrong_words_is_cut_off() -> None:
    payee = opened_payee()
    words = build_chain(b"\x33" * 32, 10)
    book = Book(PAYEE, 1, 0, 5, 10, words[0])
    signed = SignedBook(book, KEY.sign(book_digest(domain_separator(DOMAIN), book)))
    payee.on_message(formats.encode_book(signed), 0)
    refused = 0
    for _ in range(100):
        outputs = payee.on_message(formats.encode_ticket(1, 10, b"\x09" * 32), 0)
        refused += bool(outputs)
        if cuts(outputs):
            break
    assert refused == FAULT_LIMIT // 2
    assert not payee.is_open


@given(st.lists(st.binary(max_size=150), max_size=8), st.booleans())
def test_any_bytes_are_survived(chunks: list[bytes], attached: bool) -> None:
    payee = opened_payee() if attached else PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(1), b"\x77" * 32)
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    for chunk in chunks:
        for kind in (b"", b"\x11", b"\x12", b"\x13", b"\x14", b"\x21", b"\x22", b"\x23", b"\x24"):
            for machine in (payee, payer):
                outputs = machine.on_message(kind + chunk, 0.0)
                assert not any(isinstance(o, Credit) for o in outputs)
    payee.handle_timeout(1e9)
    payer.handle_timeout(1e9)


def test_a_message_before_the_attachment_or_of_the_other_side_is_refused() -> None:
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    [refused] = sent(payee.on_message(formats.encode_ticket(1, 1, bytes(32)), 0))
    assert refused == formats.Refused(Refusal.NOT_ATTACHED, 1, 1)
    report = formats.encode_report(formats.Report(0, 0, 0, 0, 0))
    assert cuts(payee.on_message(report, 0)) == [CloseReason.FORGERY]
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    assert cuts(payer.on_message(formats.encode_ticket(1, 1, bytes(32)), 0)) == [CloseReason.FORGERY]
    assert payer.on_message(report, 0) == [], "closed is closed"


def test_a_purse_that_is_too_small_asks_for_a_top_up_and_goes_on() -> None:
    small = PurseView(deposited_wei=100 * PRICE)
    net = Net(payer_view=small, payee_view=small)
    net.start()
    net.run(300, forward=3, backward=3)
    assert len(net.top_ups) == 1
    assert net.payee.spent_wei <= 100 * PRICE
    assert not net.cut
    net.payee.on_purse(VIEW)
    net.from_payer(net.payer.on_purse(VIEW, net.now))
    spent = net.payee.spent_wei
    net.run(300, forward=3, backward=3)
    assert net.payee.spent_wei > spent + 500 * PRICE


def test_a_deposit_that_the_payee_does_not_see_yet_is_shown_again() -> None:
    net = Net(payee_view=PurseView())
    net.start()
    net.run(200, forward=3, backward=3)
    assert net.payee.worth_wei == 0
    assert not net.cut
    net.payee.on_purse(VIEW)
    net.run(1200, forward=1, backward=1)
    assert net.payee.worth_wei > 0
    net.run(200, forward=3, backward=3)
    assert not (net.cut or net.disputes)
    assert net.payee.spent_wei > 500 * PRICE


def test_a_purse_that_stays_empty_closes_the_circuits() -> None:
    net = Net(payer_view=PurseView(deposited_wei=10 * PRICE), payee_view=PurseView(deposited_wei=10 * PRICE))
    net.start()
    net.run(13_000, forward=1)
    reasons = [c.reason for c in net.closed]
    assert CloseReason.PURSE_EMPTY in reasons
    assert CloseReason.UNPAID in reasons


def test_start_credit_carries_the_first_packets() -> None:
    net = Net(
        payer_view=PurseView(),
        payee_view=PurseView(start_credit_wei=50 * PRICE),
        start_credit_wei=50 * PRICE,
    )
    net.start()
    net.run(100, forward=5)
    assert net.payee.spent_wei == 50 * PRICE
    assert net.top_ups


def test_a_budget_holds_to_the_ticket() -> None:
    net = Net()
    net.start()
    net.from_payer(net.payer.allow(500 * PRICE, net.now))
    net.run(500, forward=3, backward=3)
    assert net.payer.worth_wei == 500 * PRICE
    assert net.payee.spent_wei == 500 * PRICE
    net.from_payer(net.payer.allow(None, net.now))
    net.run(100, forward=3, backward=3)
    assert net.payee.spent_wei > 500 * PRICE


def test_circuits_of_different_prices_share_a_link() -> None:
    net = Net()
    net.start()
    for price in (1000, 3500, 27, 1000):
        net.price = price
        net.from_payer(net.payer.set_price(price, net.now))
        net.run(150, forward=3, backward=3)
    assert not (net.disputes or net.cut or net.closed)
    assert net.payee.spent_wei <= net.payee.worth_wei


def test_timeouts_may_come_early_and_twice() -> None:
    net = Net()
    net.start()
    net.run(50, forward=3, backward=3)
    assert net.payee.handle_timeout(net.now - 100) == []
    due = net.payee.next_timeout()
    if due is not None:
        assert net.payee.handle_timeout(due) != []
        assert net.payee.handle_timeout(due) == []


def test_no_price_means_nothing_is_prepaid() -> None:
    net = Net()
    net.price = 0
    net.start()
    net.run(50)
    assert net.payer.worth_wei == 0


def test_a_large_least_ticket_does_not_widen_the_first_window() -> None:
    payer = PayerTab(KEY, DOMAIN, PAYEE, NODE, PayerLimits(10**6), purse=VIEW)
    payer.on_message(formats.encode_terms(formats.Terms(DOMAIN, PAYEE, b"\x77" * 32, 0, 10_000)), 0)
    payer.on_message(formats.encode_state(formats.State(None, 0, bytes(32), 0)), 0)
    assert payer.is_open
    payer.set_price(1000, 0)
    assert payer.ticket_wei == 10_000
    assert 0 < payer.prepaid_wei <= 64_000


def test_good_books_that_nobody_uses_end_the_link() -> None:
    payee = PayeeTab(DOMAIN, PAYEE, NODE, PayeeLimits(10**6), b"\x77" * 32)
    payee.start(0)
    digest = attach_digest(domain_separator(DOMAIN), PAYEE, NODE, b"\x77" * 32)
    payee.on_message(formats.encode_attach(formats.Attach(KEY.address, KEY.sign(digest))), 0)
    payee.on_loaded(PurseState(), VIEW, 0)
    outputs: list[Output] = []
    number = 0
    while not cuts(outputs) and number < 100:
        number += 1
        book = Book(PAYEE, number, 0, 1000, 1, build_chain(bytes(32), 1)[0])
        signed = SignedBook(book, KEY.sign(book_digest(domain_separator(DOMAIN), book)))
        outputs = payee.on_message(formats.encode_book(signed), 0)
    assert cuts(outputs) == [CloseReason.FORGERY]
    assert 2 < number <= FAULT_LIMIT
