import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.cli.render import format_bytes, format_seconds, render_status, render_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (18120, "5 h 2 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_times(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")]
)
def test_sizes(size, text):
    assert format_bytes(size) == text


def test_a_status_with_problems_figures_and_tables():
    status = {
        "role": "relay",
        "ready": True,
        "problems": ["The directory is old."],
        "uptime_s": 3700,
        "queued_bytes": 2048,
        "builds": {"seen": 3, "lost": 0},
        "links": [{"peer": "abc", "rtt_ms": 1.5}, {"peer": "customer", "circuits": 2}],
        "note": None,
        "ok": True,
    }
    assert render_status(status) == [
        "relay works, with problems",
        "  - The directory is old.",
        "  uptime  1 h 1 min",
        "  queued  2.0 kB",
        "  builds  seen 3, lost 0",
        "  note    -",
        "  ok      yes",
        "",
        "links (2)",
        "  peer      rtt     circuits",
        "  abc       1.5 ms  -",
        "  customer  -       2",
    ]


def test_a_node_that_starts_says_so():
    assert render_status({"ready": False}) == ["hopfare does not work", "  - it is still starting"]


def test_text_from_elsewhere_cannot_drive_the_terminal():
    (_, row) = render_table([{"peer": "a\x1b[31mb\nc"}])
    assert row == "a?[31mb?c"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=6))
def test_any_status_is_shown(status):
    status.pop("problems", None)
    assert render_status(status)


def test_money_is_shown_in_tables_of_its_own():
    peer, account = "a" * 52, "0x" + "5" * 40
    tab = {
        "side": "earning",
        "peer": peer,
        "payer": account,
        "open": True,
        "waiting": False,
        "worth_wei": 2 * 10**15,
        "spent_wei": 10**15,
        "unclaimed_wei": 10**15,
        "tickets": 7,
        "packets": 5,
    }
    money = {"account": account, "price_wei_per_packet": 9, "tabs": [tab], "disputes": 1, "counters": {}}
    text = "\n".join(render_status({"role": "relay", "ready": True, "problems": [], "money": money}))
    assert f"account {account}, price 9 wei per packet, earned 0.002 on these links, paid 0" in text
    assert "1 disputes" in text
    assert "tabs of those who pay it (1)" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("aaaaaaaaaaaa"))
    assert row.split() == ["a" * 12, "0x5555555555", "yes", "5", "7", "0.002", "0.001", "0.001"]


def test_discovery_is_one_line():
    status = {
        "role": "relay",
        "ready": True,
        "discovery": {
            "members": 6,
            "descriptors": 5,
            "source": "the registry",
            "neighbours": 4,
            "published": True,
            "addresses": ["192.0.2.1:4433", "[2001:db8::1]:4433"],
            "reachability": {"192.0.2.1:4433": "reachable"},
        },
    }
    assert render_status(status)[1] == (
        "  discovery  5 of 6 members known (the registry); 4 neighbours; published: "
        "192.0.2.1:4433 (reachable), [2001:db8::1]:4433 (not tested)"
    )
    status["discovery"] = {"members": 0, "descriptors": 0, "published": False}
    assert "not published yet" in render_status(status)[1]
