"""What the demo says of money."""

from overlay.demo import view_money
from overlay.demo.lab import relay_host
from overlay.demo.money import Balance
from overlay.demo.view import Place

PLACES = [Place(f"r{n}", "relay", relay_host(n), f"id{n}", "SE") for n in (1, 2)]
TAB = {"packets": 100, "tickets": 120, "worth_wei": 12 * 10**15, "spent_wei": 10**16, "claimed_wei": 10**15}
STATUS = {"money": {"tabs": [{"side": "earning", **TAB}, {"side": "paying", **TAB, "worth_wei": 5 * 10**15}]}}
WALLET = {"paying_us": [{"claimed_wei": 10**16, "unclaimed_wei": 2 * 10**15}], "gas_wei": 7 * 10**9}


def test_a_nodes_money_is_read_from_what_it_tells() -> None:
    found = view_money.read_account(STATUS, WALLET)
    assert (found.packets, found.tickets, found.paid_wei, found.onward_wei) == (
        100,
        120,
        12 * 10**15,
        5 * 10**15,
    )
    assert (found.claimed_wei, found.unclaimed_wei, found.gas_wei) == (10**16, 2 * 10**15, 7 * 10**9)
    assert view_money.read_account({}, {}) == view_money.Account()


def test_each_hop_has_a_row() -> None:
    account = view_money.read_account(STATUS, WALLET)
    rows = [(PLACES[0], "guard"), (PLACES[1], "exit")]
    lines = view_money.money_table(rows, {"r1": account}, account)
    assert lines[1].split() == ["r1", "guard", "100", "120", "0.012", "0.005", "0.007", "0.01", "0.000000007"]
    assert lines[2].split()[:2] == ["you", "100"]
    assert "you paid 0.005 demo coins in tickets: 0.01 for 100 packets" in view_money.spending(account)
    assert view_money.spending(view_money.Account()) == "you paid nothing yet"


def test_the_live_view_leaves_out_who_has_no_money() -> None:
    rows = view_money.money_rows(PLACES, {"r1": STATUS, "r2": {}}, STATUS)
    assert rows == [
        ("r1", "120", "0.012", "0.005", "0.007", "0.001"),
        ("you", "-", "-", "0.005", "-", "-"),
    ]
    assert view_money.money_rows(PLACES, {}, None) == []


def test_the_balance_says_whether_it_is_even() -> None:
    even = Balance(9, 100, {"0xbank": 60, "0xr1": 20}, 15, 0, 5, 100)
    lines = view_money.balance_lines(even, {"0xr1": "r1"})
    assert [line.split()[0] for line in lines[1:]] == ["the", "r1", "in", "gas,", "sum", "before"]
    assert lines[-1].endswith("equal, to the wei")
    odd = Balance(9, 100, {"0xbank": 61}, 15, 0, 5, 101)
    assert "NOT EQUAL" in view_money.balance_lines(odd, {})[-1]
