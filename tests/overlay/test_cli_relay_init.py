import io
import json
import socket
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.cli.main import main
from overlay.duty import WIRE_BYTES_PER_PACKET
from overlay.estimate import MONTH_S, USE_PERCENT, estimate_months
from overlay.identity import Identity


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    monkeypatch.setenv("HOPFARE_NODE__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.seeds").write_bytes(b"")
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


def network(home):
    name = Identity.generate().name
    return ["--set", f"network.seed_list={home / 'net.seeds'}", "--set", f"network.seed_list_key={name}"]


def given_answers(port):
    return [
        *["--yes", "--address", f"203.0.113.7:{port}", "--capacity", "80 Mbit/s"],
        *["--monthly-cap", "2 TB", "--country", "de", "--family", "mine"],
    ]


def test_a_relay_is_set_up_without_questions(run, home):
    port = free_port()
    listen = ["--set", f"relay.listen=127.0.0.1:{port}"]
    status, out, error = run("relay", "init", *given_answers(port), *network(home), *listen)
    assert status == 0, out + error
    relay = tomllib.loads((home / "hopfare.toml").read_text())["relay"]
    assert relay["advertise"] == [f"203.0.113.7:{port}"]
    assert relay["capacity"] == "80 Mbit/s"
    assert relay["monthly_cap"] == "2 TB"
    assert relay["country"].lower() == "de"
    name = Identity.load(home / "state" / "identity").name
    assert name in out
    assert "forward UDP port" in out
    assert "50 %" in out
    before = (home / "hopfare.toml").read_text()
    status, out, error = run("relay", "init", "--check", *network(home), *listen)
    assert status == 0, out + error
    assert name in out
    assert (home / "hopfare.toml").read_text() == before
    # Again, with other answers: the identity stays.
    status, out, error = run("relay", "init", "--yes", "--capacity", "1 Gbit/s", *network(home), *listen)
    assert status == 0, out + error
    relay = tomllib.loads((home / "hopfare.toml").read_text())["relay"]
    assert relay["capacity"] == "1 Gbit/s"
    assert relay["advertise"] == [f"203.0.113.7:{port}"]
    assert Identity.load(home / "state" / "identity").name == name


def test_what_stands_in_the_way_is_said(run, home):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        status, out, _ = run(
            *["relay", "init", "--json", *given_answers(port), "--set", f"relay.listen=127.0.0.1:{port}"]
        )
    assert status == 1
    findings = {one["what"]: one for one in json.loads(out)["findings"] if not one["fine"]}
    assert "cannot be listened on" in findings["port"]["text"]
    assert "network.seed_list" in findings["settings"]["text"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--address", "0.0.0.0:4433", "wildcard"),
        ("--address", "nowhere", "must be"),
        ("--capacity", "fast", "must be"),
        ("--monthly-cap", "1 potato", "must"),
        ("--country", "Germany", "must be"),
    ],
)
def test_answers_that_cannot_be_are_refused(run, option, value, words):
    arguments = given_answers(4433)
    if option in arguments:
        arguments[arguments.index(option) + 1] = value
    status, _, error = run("relay", "init", *arguments)
    assert status == 2
    assert option in error
    assert words in error


def test_questions_are_asked_again_until_the_answer_can_be(run, home, monkeypatch):
    answers = iter(["nonsense", "203.0.113.9:5000", "", "2 TB", "xx1", "se", "", "n"])
    asked = []

    def prompt(text, default=None, **_):
        asked.append(text)
        return next(answers) or default

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr("click.confirm", lambda *_, **__: next(answers) == "y")
    _, _out, error = run("relay", "init", *network(home), "--set", "relay.listen=127.0.0.1:5000")
    relay = tomllib.loads((home / "hopfare.toml").read_text())["relay"]
    assert relay["advertise"] == ["203.0.113.9:5000"]
    assert relay["capacity"] == "100 Mbit/s"
    assert relay["country"] == "se"
    assert "must be" in error
    assert asked[0] == asked[1]
    assert next(answers, None) is None


def test_help_tells_of_both(run):
    status, out, _ = run("relay", "--help")
    assert status == 0
    assert "init" in out
    assert "run" in out


@given(st.integers(0, 10**10), st.integers(0, 10**16), st.integers(0, 10**15))
def test_estimates_stay_under_cap_and_capacity(capacity, cap, price):
    for month, percent in zip(estimate_months(capacity, cap, price), USE_PERCENT, strict=True):
        assert month.use_percent == percent
        assert month.carried_bytes <= 2 * capacity * MONTH_S
        if cap:
            assert month.carried_bytes <= cap
        assert month.is_capped is (0 < cap < 2 * capacity * MONTH_S * percent // 100)
        assert month.earned_wei == month.carried_bytes // (2 * WIRE_BYTES_PER_PACKET) * price


def test_where_nobody_answers_it_says_what_to_give(run, home, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, error = run("relay", "init", *network(home))
    assert status == 2
    assert "nobody answers here: give --address" in error
    monkeypatch.setattr("overlay.cli.relay_init._propose_address", lambda: "")
    status, _, error = run("relay", "init", "--yes", *network(home))
    assert status == 2
    assert "no public address of its own: say where others reach it with --address" in error
