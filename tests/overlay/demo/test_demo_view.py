"""What the demo says: the path, what each hop saw, speeds."""

from typing import Any

import pytest
from rich.console import Console

from overlay.demo import view
from overlay.demo.fetch import Fetched
from overlay.demo.lab import relay_host
from overlay.demo.live import picture
from overlay.demo.view import Place, Traffic

PLACES = [Place(f"r{n}", "exit" if n > 4 else "relay", relay_host(n), f"id{n}", "SE") for n in range(1, 7)]


def link(address: str) -> dict[str, Any]:
    return {"address": address, "packets_in_charged": 3, "packets_out_charged": 4}


STATUSES = {
    "r1": {"ready": True, "circuits": 2, "links": [link("10.200.0.1:5000"), link("[fd00:2::1]:4433")]},
    "r2": {
        "ready": True,
        "circuits": 1,
        "links": [link("10.1.0.1:4433"), link("10.5.0.1:4433"), link("10.4.0.1:1")],
    },
    "r5": {"ready": False, "circuits": 1, "links": [link("10.2.0.1:4433")]},
}
PAGE = Fetched(200, b"10.5.0.1\n", 9, "", 0.002, 0.004, 0.01)


def test_each_hop_is_shown_with_its_neighbours_on_the_path_only() -> None:
    lines = view.story([PLACES[0], PLACES[1], PLACES[4]], STATUSES, PLACES, PAGE)
    assert (
        lines[0]
        == "path   you -> r1 (10.1.0.1, SE) -> r2 (10.2.0.1, SE) -> r5 (10.5.0.1, SE) -> www.demo.test"
    )
    assert lines[3].split() == ["r1", "guard", "r2", "(fd00:2::1)", "and", "you", "(10.200.0.1)"]
    assert lines[4].split() == ["r2", "middle", "r1", "(10.1.0.1)", "and", "r5", "(10.5.0.1)"]
    assert lines[5].startswith("  r5   exit    r2 (10.2.0.1)")
    assert lines[6].split() == ["www.demo.test", "10.5.0.1"]


def test_one_hop_is_the_exit() -> None:
    lines = view.story([PLACES[0]], STATUSES, PLACES, PAGE)
    assert lines[3].startswith("  r1   exit    you (10.200.0.1)")


def test_timings() -> None:
    first, speed = view.timings(PAGE, Fetched(200, b"", 50_000_000, "", 0.0, 0.1, 2.0))
    assert "4.0 ms" in first
    assert "25.0 MB/s" in speed


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.3.0.1:4433", "r3 (10.3.0.1)"),
        ("[fd00:c8::1]:9", "you (fd00:c8::1)"),
        ("192.0.2.1:1", "192.0.2.1"),
    ],
)
def test_who(address: str, words: str) -> None:
    assert view.who(address, PLACES) == words


def test_rates_survive_restarts() -> None:
    assert view.rate_bytes_per_s(Traffic(1.0, 100), Traffic(2.0, 200)) == 138_400
    assert view.rate_bytes_per_s(Traffic(1.0, 100), Traffic(2.0, 50)) == 0
    assert view.rate_bytes_per_s(None, Traffic(2.0, 50)) == 0
    assert view.packets_of(STATUSES["r2"]) == 21


def test_the_live_picture_has_every_relay_and_circuit() -> None:
    circuits = [
        {"id": 7, "path": ["id1", "id2", "stranger"], "state": "ready", "age_s": 3.2, "connections": 1,
         "rtt_ms": None, "packets_down": 1000}
    ]  # fmt: skip
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(picture((STATUSES, None, {"r1": 2e6}, circuits), PLACES))
    text = console.export_text()
    assert all(place.name in text for place in PLACES)
    assert "r1 > r2 > stranger" in text
    assert "2.00 MB/s" in text
    assert "down" in text  # r3, r4 and r6 do not answer
    assert "the client does not answer" in text


def test_next_steps_with_money_look_at_wallet_and_earnings() -> None:
    lines = view.next_steps(("::1", 1), "h", "c", real_internet=False, relay_config="/r")
    assert "  h wallet" in lines and "  h earnings --config /r" in lines


def test_next_steps_name_the_port() -> None:
    lines = view.next_steps(("127.0.0.1", 1234), "hopfare", "/tmp/x.toml", real_internet=True)
    assert any("--socks5-hostname 127.0.0.1:1234" in line for line in lines)
    assert any("example.org" in line for line in lines)
    assert not any(
        "example.org" in line for line in view.next_steps(("::1", 1), "h", "c", real_internet=False)
    )


def test_the_plain_line_says_what_is_wrong() -> None:
    line = view.summary_line(STATUSES, {"ready": False, "problems": ["no guard answers"]}, {})
    assert line.startswith("2 relays up, the client is not ready: no guard answers")
