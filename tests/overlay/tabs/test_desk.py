"""Desks of customer, guard, middle and exit together: who pays whom, and every way of cheating by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from desk_net import DEPOSIT_WEI, DOMAIN, Circuit, DeskNet, DeskNode, End

from overlay.tabs import earning
from overlay.tabs.desk import SILENT_S
from overlay.tabs.types import Fund
from payments import formats
from payments.books import Book, SignedBook
from payments.chains import build_chain
from payments.keys import PurseKey
from payments.tab import CloseCircuits, CloseReason, Concern, CutOff, Dispute, Warn
from payments.validator import PurseView

PRICES = [3300, 2200, 1100]


class Path:
    """A customer and three relays, linked, with one circuit."""

    def __init__(self, **options: object) -> None:
        self.net = DeskNet()
        self.customer = self.net.node(1, price=0, **options)
        self.guard = self.net.node(2, price=1000, start_credit_wei=10**6)
        self.middle = self.net.node(3, price=1000, start_credit_wei=10**6)
        self.exit = self.net.node(4, price=1000, start_credit_wei=10**6)
        self.links = [
            self.net.link(self.customer, self.guard, customer=True),
            self.net.link(self.guard, self.middle),
            self.net.link(self.middle, self.exit),
        ]
        self.circuit = self.build()
        self.net.run(30)

    def build(self) -> Circuit:
        return self.net.circuit(self.links, PRICES)

    def pairs(self) -> list[tuple[DeskNode, DeskNode, End, End]]:
        return [(near.owner, far.owner, near, far) for near, far in self.links]


def worth(node: DeskNode, end: End) -> int:
    tabs = node.desk.links[end]
    assert tabs.earning is not None
    return tabs.earning.tab.worth_wei


def test_each_hop_pays_the_next_and_nobody_else() -> None:
    path = Path()
    got = path.net.run(300, path.circuit, 3, 3)
    assert got > 1500
    path.net.run(200)
    for price, (payer, payee, near, far) in zip(PRICES, path.pairs(), strict=True):
        tabs = payee.desk.links[far].earning
        assert tabs is not None
        assert tabs.tab.payer == payer.key.address
        assert tabs.tab.spent_wei == far.counts["earning"][2] == got * price
        assert tabs.tab.worth_wei >= tabs.tab.spent_wei, "prepaid"
        paying = payer.desk.links[near].paying
        assert paying is not None
        assert paying.worth_wei == tabs.tab.worth_wei
    assert not any(node.reasons() for node in path.net.nodes)
    assert [type(e) for n in path.net.nodes for e in n.log if isinstance(e, Dispute)] == []


def test_circuits_of_different_prices_share_a_link() -> None:
    path = Path()
    dear = path.net.circuit(path.links, [9900, 6600, 3300])
    free = path.net.circuit(path.links[:1], [1])
    a = b = c = 0
    for _ in range(200):
        a += path.net.run(1, path.circuit, 2, 1)
        b += path.net.carry(dear, 1, 1)
        c += path.net.carry(free, 1, 0)
    assert min(a, b, c) > 100
    far = path.links[0][1]
    assert far.counts["earning"][2] == a * 3300 + b * 9900 + c
    path.net.drop(dear)
    path.net.run(50, path.circuit, 2, 2)
    assert not any(node.reasons() for node in path.net.nodes)


def test_nothing_is_given_for_links_without_paid_circuits() -> None:
    net = DeskNet()
    one, two = net.node(1, price=1000), net.node(2, price=1000)
    near, far = net.link(one, two)
    net.circuit([(near, far)], [0])
    net.run(100)
    assert not net.chain.purses
    paying = one.desk.links[near].paying
    assert paying is not None
    assert not paying.is_wanted
    assert two.desk.explain(far, 0) is None


def test_a_customer_that_stops_paying_is_stopped_within_its_credit_in_both_directions() -> None:
    path = Path()
    path.net.run(100, path.circuit, 2, 2)
    guard_end = path.links[0][1]
    path.net.tamper = lambda end, data: b"" if end is guard_end else data
    path.net.tamper = lambda end, data: (
        formats.encode_counts(formats.Counts(0, 0, 10**12))
        if end is guard_end and data[0] in (formats.KIND_TICKET, formats.KIND_BOOK)
        else data
    )
    paid = worth(path.guard, guard_end)
    path.net.run(900, path.circuit, 5, 5)
    assert guard_end.counts["earning"][2] <= paid, "nothing is carried unpaid"
    assert paid - guard_end.counts["earning"][2] < PRICES[0], "and all that was paid is carried"
    assert path.circuit.up
    path.net.run(300, path.circuit, 5, 5)
    assert not path.circuit.up
    [closed] = [e for e in path.guard.log if isinstance(e, CloseCircuits)]
    assert closed.reason is CloseReason.UNPAID
    assert "10 s" in closed.detail


def test_who_never_shows_a_purse_is_told_after_a_time() -> None:
    net = DeskNet()
    free_rider = net.node(1, price=0)
    guard = net.node(2, price=1000)
    near, far = net.link(free_rider, guard, customer=True)
    net.tamper = lambda end, data: b"\x13" if end is far else data
    circuit = net.circuit([(near, far)], [1000])
    free_rider.desk.links[near].paying = None
    net.run(900, circuit, 1, 0)
    assert circuit.up
    net.run(200, circuit, 1, 0)
    assert not circuit.up
    [closed] = [e for e in guard.log if isinstance(e, CloseCircuits)]
    assert closed.reason is CloseReason.UNPAID
    assert far.counts["earning"][2] == 0


def test_a_middle_that_keeps_the_downstream_share_gains_one_window() -> None:
    path = Path()
    path.net.run(100, path.circuit, 2, 2)
    far = path.links[2][1]
    kept = far.counts["earning"][2]
    path.net.tamper = lambda end, data: (
        formats.encode_counts(formats.Counts(0, 0, 10**12))
        if end is far and data[0] in (0x12, 0x13)
        else data
    )
    path.net.run(1500, path.circuit, 2, 2)
    assert not path.circuit.up, "the exit ended it"
    middle = path.links[1][1]
    carried_for_exit = far.counts["earning"][2] - kept
    assert path.exit.reasons(CloseCircuits) == [CloseReason.UNPAID]
    paying = path.guard.desk.links[path.links[1][0]].paying
    assert paying is not None
    assert paying.tab is not None
    assert worth(path.middle, middle) - middle.counts["earning"][2] <= paying.tab.window_wei
    assert carried_for_exit >= 0


def test_an_exit_that_floods_junk_backwards_spends_no_more_than_a_window() -> None:
    path = Path()
    path.net.run(100, path.circuit, 2, 2)
    near, far = path.links[0]
    paying = path.customer.desk.links[near].paying
    assert paying is not None
    assert paying.tab is not None
    before_worth, before_spent = paying.worth_wei, far.counts["earning"][2]
    window = paying.tab.window_wei
    for _ in range(300):
        for _ in range(50):
            meter = far.counts["earning"]
            if meter[3] < PRICES[0]:
                meter[4] += 1
                break
            meter[3] -= PRICES[0]  # the guard carries it, the customer cannot use it
            meter[2] += PRICES[0]
            meter[1] += 1
        path.net.run(1)
    tolerance = before_spent // 50 + 64 * PRICES[0]
    assert far.counts["earning"][2] - before_spent <= window + tolerance
    assert paying.worth_wei - before_worth <= window + tolerance


@pytest.mark.parametrize("broke", [True, False])
def test_other_circuits_go_on_after_one_that_was_flooded_with_junk(broke: bool) -> None:
    path = Path()
    other = path.net.circuit(path.links, PRICES)
    for _ in range(200):
        path.net.carry(other, 2, 4)
        path.net.run(1, path.circuit, 2, 4)
    near, far = path.links[0]
    paying = path.customer.desk.links[near].paying
    assert paying is not None
    assert paying.tab is not None
    window, worth = paying.tab.window_wei, paying.worth_wei
    meter = far.counts["earning"]
    for _ in range(30):
        junk = meter[3] // PRICES[0]
        meter[3] -= junk * PRICES[0]
        meter[2] += junk * PRICES[0]
        meter[1] += junk
        path.net.run(1, other, 0, 1)
    # The customer saw the first of it, and ended the circuit.
    path.net.drop(path.circuit)
    if broke:
        path.customer.desk.on_junk(near, path.net.step * 0.01)
    path.net.run(100, other, 0, 3)
    carried = path.net.run(500, other, 0, 3)
    assert (carried == 1500) is broke
    assert path.customer.reasons() == path.guard.reasons() == []
    assert paying.worth_wei - worth <= window + (1805 + 2 * 64) * PRICES[0]


def test_a_relay_that_inflates_its_count_is_cut_off_and_remembered() -> None:
    path = Path()
    path.net.run(100, path.circuit, 3, 3)
    near = path.links[0][0]

    def inflate(end: End, data: bytes) -> bytes:
        if end is near and data[0] == formats.KIND_REPORT:
            report = formats.decode_message(data, path.guard.payee)
            assert isinstance(report, formats.Report)
            return formats.encode_report(replace(report, spent_wei=2 * report.spent_wei))
        return data

    path.net.tamper = inflate
    path.net.run(300, path.circuit, 3, 3)
    assert path.customer.reasons() == [CloseReason.DISPUTE]
    assert not path.circuit.up
    near, _ = path.net.link(path.customer, path.guard, customer=True)
    assert "disagreed about money" in (path.customer.desk.explain(near, path.customer.now) or "")


def test_a_relay_that_charges_more_than_the_price_is_not_paid_more() -> None:
    path = Path()
    path.net.run(100, path.circuit, 3, 3)
    near, far = path.links[0]
    path.net.inflate[far] = 1.5
    path.net.run(1500, path.circuit, 3, 3)
    paying = path.customer.desk.links[near].paying
    own = near.counts["paying"][2]
    assert paying is not None
    assert paying.tab is not None
    assert paying.worth_wei <= own + own // 50 + paying.tab.window_wei


def test_a_payer_that_counts_less_is_cut_off_by_the_payee() -> None:
    path = Path()
    path.net.run(200, path.circuit, 3, 3)
    far = path.links[0][1]

    def deflate(end: End, data: bytes) -> bytes:
        if end is far and data[0] == formats.KIND_COUNTS:
            counts = formats.decode_message(data, path.guard.payee)
            assert isinstance(counts, formats.Counts)
            return formats.encode_counts(replace(counts, spent_wei=counts.spent_wei // 1000))
        return data

    path.guard.desk.links[far].earning.tab.set_window(10**5, 0.0)  # type: ignore[union-attr]
    path.net.tamper = deflate
    path.net.run(1000, path.circuit, 3, 3)
    assert CloseReason.DISPUTE in path.guard.reasons()


def test_an_old_book_or_ticket_is_refused_and_too_many_end_the_link() -> None:
    path = Path()
    far = path.links[0][1]
    seen: list[bytes] = []

    def record(end: End, data: bytes) -> bytes:
        if end is far and data[0] in (formats.KIND_BOOK, formats.KIND_TICKET):
            seen.append(data)
        return data

    path.net.tamper = record
    path.net.run(200, path.circuit, 4, 4)
    before = worth(path.guard, far)
    old = next(data for data in seen if data[0] == formats.KIND_TICKET)
    for _ in range(20):
        path.guard.do(path.guard.desk.on_message(far, old, path.guard.now))
        if far.closed:
            break
        assert worth(path.guard, far) == before
    assert far.closed
    assert path.guard.reasons() == [CloseReason.FORGERY]


def signed(key: PurseKey, payee: bytes, number: int, base: int = 0, length: int = 10) -> SignedBook:
    from payments.digest import book_digest, domain_separator

    words = build_chain(bytes(32), length)
    book = Book(payee, number, base, 1000, length, words[0])
    return SignedBook(book, key.sign(book_digest(domain_separator(DOMAIN), book)))


def test_two_books_with_the_same_number_pay_once() -> None:
    path = Path()
    path.net.run(50, path.circuit, 2, 2)
    far = path.links[0][1]
    tab = path.guard.desk.links[far].earning
    assert tab is not None
    number = tab.tab.state.number
    other = signed(path.customer.key, path.guard.payee, number, base=tab.tab.worth_wei, length=20)
    path.guard.do(path.guard.desk.on_message(far, formats.encode_book(other), path.guard.now))
    assert tab.tab.state.book != other


def test_a_flood_of_forged_books_costs_three_signatures() -> None:
    path = Path()
    far = path.links[0][1]
    forger = PurseKey(b"\x66" * 32)
    handled = 0
    for number in range(1000, 1200):
        if far.closed:
            break
        handled += 1
        forged = formats.encode_book(signed(forger, path.guard.payee, number, base=10**8))
        path.guard.do(path.guard.desk.on_message(far, forged, path.guard.now))
    assert handled <= 3
    assert path.guard.reasons() == [CloseReason.FORGERY]
    assert path.guard.desk.standing.is_barred(path.customer.key.address, path.guard.now)


def test_a_purse_that_is_too_small_pays_for_what_it_holds_and_no_more() -> None:
    path = Path()
    path.customer.funds = False
    pair = (path.customer.key.address, path.guard.payee)
    path.net.chain.purses[pair] = PurseView(300_000)
    net = DeskNet()
    net.chain = path.net.chain
    customer = net.node(1, price=0)
    customer.funds = False
    guard = net.node(2, price=1000)
    near, far = net.link(customer, guard, customer=True)
    net.run(10)
    circuit = net.circuit([(near, far)], [1000])
    got = net.run(1000, circuit, 1, 1)
    assert 200 <= got <= 300
    assert worth(guard, far) <= 300_000
    assert any(isinstance(e, Fund) for e in customer.log), "it asks for more"
    net.run(1500, circuit, 1, 1)
    assert not circuit.up


def test_a_purse_is_filled_before_it_runs_dry() -> None:
    net = DeskNet()
    customer = net.node(1, price=0, window_wei=DEPOSIT_WEI // 8)
    guard = net.node(2, price=1000)
    price = DEPOSIT_WEI // 4000
    near, far = net.link(customer, guard, customer=True)
    circuit = net.circuit([(near, far)], [price])
    got = net.run(2000, circuit, 3, 3)
    assert got >= 11_000, "it never waits for long"
    deposited = net.chain.view(customer.key.address, guard.payee).deposited_wei
    assert deposited >= 3 * DEPOSIT_WEI
    asked = [e for e in customer.log if isinstance(e, Fund)]
    assert len(asked) <= 8, "once each"
    assert not customer.reasons()


def test_a_purse_that_is_unlocked_pays_for_nothing_more() -> None:
    path = Path()
    path.net.run(50, path.circuit, 2, 2)
    far = path.links[0][1]
    pair = (path.customer.key.address, path.guard.payee)
    view = path.net.chain.purses[pair]
    path.guard.desk.on_purse(pair[0], replace(view, unlocking=True))
    before = worth(path.guard, far)
    path.net.run(300, path.circuit, 5, 5)
    assert far.closed or worth(path.guard, far) == before


def test_one_purse_on_two_links_is_refused_while_the_first_is_heard() -> None:
    path = Path()
    path.net.run(50, path.circuit, 2, 2)
    thief = path.net.node(9, price=0, key=path.customer.key)
    near, far = path.net.link(thief, path.guard, customer=True)
    path.net.circuit([(near, far)], [3300])
    path.net.run(50, path.circuit, 1, 1)
    assert far.closed
    assert path.circuit.up
    assert CloseReason.PURSE_BUSY in path.guard.reasons()


def test_a_customer_that_comes_back_after_a_crash_takes_its_purse_along() -> None:
    path = Path()
    path.net.run(100, path.circuit, 2, 2)
    old_near, old_far = path.links[0]
    path.customer.ends.remove(old_near)
    path.customer.ledger.clear()  # and its disk is gone, too
    path.customer.make_desk()
    before = worth(path.guard, old_far)
    path.net.run(int(SILENT_S / 0.01) + 5)
    path.links[0] = path.net.link(path.customer, path.guard, customer=True)
    near, far = path.links[0]
    path.net.drop(path.circuit)
    path.net.run(3)
    path.circuit = path.build()
    path.net.run(100, path.circuit, 2, 2)
    assert old_far.closed
    assert worth(path.guard, far) > before
    paying = path.customer.desk.links[near].paying
    assert paying is not None
    assert paying.is_open
    assert not [e for e in path.customer.log if isinstance(e, Warn)], "one window is explained by the crash"


def test_what_was_prepaid_before_a_link_was_lost_is_carried_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earning, "WINDOW_PACKETS", 64)
    net = DeskNet()
    customer, guard = net.node(1, price=0), net.node(2, price=1000)
    pair = net.link(customer, guard, customer=True)
    circuit = net.circuit([pair], [9000])
    net.run(400, circuit, 4, 4)
    paying = customer.desk.links[pair[0]].paying
    assert paying is not None
    prepaid = paying.worth_wei - pair[1].counts["earning"][2]
    assert prepaid > 200 * 9000, "much more than the guard risks"
    net.close(pair[0])
    pair = net.link(customer, guard, customer=True)
    net.run(10)
    circuit = net.circuit([pair], [9000])
    before = pair[1].counts["earning"][2]
    assert before == 0
    assert net.run(400, circuit, 2, 2) > 1200
    assert not guard.reasons(CloseCircuits)


def test_an_old_ledger_warns() -> None:
    path = Path(window_wei=400_000)
    early = dict(path.customer.ledger)
    path.net.run(600, path.circuit, 3, 3)
    path.net.close(path.links[0][0])
    path.customer.ledger = early
    path.customer.make_desk()
    path.links[0] = path.net.link(path.customer, path.guard, customer=True)
    path.circuit = path.build()
    path.net.run(50)
    assert [e.concern for e in path.customer.log if isinstance(e, Warn)] == [Concern.PURSE_ELSEWHERE]


def test_start_credit_carries_while_an_opening_confirms_and_no_further() -> None:
    net = DeskNet()
    middle = net.node(2, price=1000)
    middle.funds = False
    last = net.node(3, price=1000, start_credit_wei=200_000)
    near, far = net.link(middle, last)
    circuit = net.circuit([(near, far)], [1000])
    got = net.run(300, circuit, 1, 1)
    assert 150 <= got <= 200
    middle.net.chain.deposit(middle.key.address, last.payee, DEPOSIT_WEI)
    view = net.chain.view(middle.key.address, last.payee)
    middle.do(middle.desk.on_own_purse(last.payee, view, middle.now))
    assert net.run(300, circuit, 1, 1) > 300


def test_a_relay_pays_an_account_over_one_link_only() -> None:
    net = DeskNet()
    one = net.node(1, price=1000)
    two = net.node(2, price=1000)
    first, second = net.link(one, two), net.link(one, two)
    net.circuit([first], [1000])
    net.run(20)
    assert one.desk.explain(first[0], one.now) is None
    assert "another link" in (one.desk.explain(second[0], one.now) or "")
    net.close(first[0])
    assert one.desk.explain(second[0], one.now) is None


def test_keys_that_never_paid_leave_nothing_in_the_ledger() -> None:
    net = DeskNet()
    guard = net.node(2, price=1000)
    for number in range(5):
        customer = net.node(20 + number, price=0)
        customer.funds = False
        near, far = net.link(customer, guard, customer=True)
        net.circuit([(near, far)], [1000])
        net.run(20)
        assert guard.desk.links[far].earning.tab.is_open  # type: ignore[union-attr]
        net.close(near)
    assert not guard.ledger


def test_terms_that_were_not_asked_for_harm_nobody() -> None:
    net = DeskNet()
    relay, guard = net.node(1, price=1000), net.node(2, price=1000)
    near, _ = net.link(relay, guard)
    net.run(20)
    assert not near.closed
    terms = formats.Terms(DOMAIN, guard.payee, bytes(32), 0, 1)
    relay.do(relay.desk.on_message(near, formats.encode_terms(terms), relay.now))
    assert near.closed, "twice is no honest mistake"


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 192, b"\x13" * 43, b"\x21" * 114, b"\x22" * 187])
def test_junk_closes_a_link_and_never_raises(data: bytes) -> None:
    for attached in (False, True):
        net = DeskNet()
        one, two = net.node(1, price=1000), net.node(2, price=1000)
        near, far = net.link(one, two)
        if attached:
            net.circuit([(near, far)], [1000])
            net.run(20)
        for end in (near, far):
            for _ in range(20):
                if not end.closed:
                    end.owner.do(end.owner.desk.on_message(end, data, net.step * 0.01))
        assert [e for n in net.nodes for e in n.log if isinstance(e, CutOff)]
