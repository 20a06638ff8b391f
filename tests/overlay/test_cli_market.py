"""`hopfare market`, `set` and `newnym` typed without and with a running client."""

import json
import threading
import time

import pytest
import trio

from overlay.cli.main import main
from overlay.cli.render import render_why
from overlay.descriptor import Address, Descriptor, sign_descriptor
from overlay.identity import Identity
from overlay.node.choices import load_choices, load_overrides
from overlay.node.io.directory_file import DIRECTORY_FILE, save_directory
from overlay.node.io.local import lock_state, serve_local
from overlay.seedlist import sign_seed_list


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    monkeypatch.setenv("HOPFARE_NODE__STATE_DIR", str(tmp_path / "state"))

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


def nodes():
    now = int(time.time())
    found = []
    for number, (is_exit, country, price) in enumerate(
        ((False, "DE", 13840000000), (False, "NL", 2768000000), (True, "DE", 69200000000)), start=1
    ):
        identity = Identity(bytes([number]) * 32)
        found.append(
            sign_descriptor(
                identity,
                Descriptor(
                    identity=identity.node_id,
                    sequence=1,
                    published_s=now,
                    expires_s=now + 3600,
                    addresses=(Address(f"10.{number}.0.1", 4433),),
                    onion_key=bytes([number]) * 32,
                    role_bits=3 if is_exit else 1,
                    exit_policy_summary="accept 80,443" if is_exit else "reject 1-65535",
                    country=country,
                    price_wei_per_packet=price,
                    suites=(1, 2),
                ),
            )
        )
    return found


@pytest.fixture
def listed(tmp_path):
    """A configuration with a seed list of three nodes."""
    signer = Identity(b"\x77" * 32)
    now = int(time.time())
    (tmp_path / "seeds").write_bytes(
        sign_seed_list(signer, "net", nodes(), sequence=1, published_s=now, expires_s=now + 3600)
    )
    (tmp_path / "hopfare.toml").write_text(
        f'[network]\nseed_list = "seeds"\nseed_list_key = "{signer.name}"\ndiscovery = "list"\n'
        '[payments]\ncoin = "xDAI"\n'
    )
    return tmp_path


@pytest.fixture
def client(tmp_path):
    """A running client's socket, answered in a thread; what it was asked."""
    asked = []
    answers = {"market": {"rows": [], "coin": "xDAI"}, "newnym": {}, "choices": {"choices": {}, "kept": []}}
    started = threading.Event()

    async def handle(method, params):
        asked.append((method, params))
        if method not in answers:
            raise LookupError(f"a relay has no {method}")
        return answers[method]

    async def serve():
        nonlocal scope, token
        with lock_state(tmp_path / "state"):
            async with trio.open_nursery() as nursery:
                scope, token = nursery.cancel_scope, trio.lowlevel.current_trio_token()
                await nursery.start(serve_local, tmp_path / "state", handle)
                started.set()

    scope = token = None
    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(30)
    yield answers, asked
    token.run_sync_soon(scope.cancel)
    thread.join(30)
    assert not thread.is_alive()


def test_the_market_of_a_seed_list(run, listed):
    status, out, err = run("market")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["name", "role", "country", "xDAI/GB", "quality"]
    assert [line.split()[3] for line in lines[1:4]] == ["0.002", "0.01", "0.05"]
    assert all("new" in line for line in lines[1:4])
    assert lines[-1] == "3 of 3 relays, from the directory on disk"


def test_filters_and_json(run, listed):
    status, out, _ = run("market", "--role", "exit", "--country", "de", "--json")
    answer = json.loads(out)
    assert status == 0
    assert [row["price_per_gb"] for row in answer["rows"]] == ["0.05"]
    assert (answer["coin"], answer["source"]) == ("xDAI", "the directory on disk")
    assert run("market", "--max-price", "0.001")[1] == "none of 3 relays fits\n"
    assert len(run("market", "--limit", "1")[1].splitlines()) == 4
    status, _, err = run("market", "--max-price", "cheap")
    assert status == 2
    assert "must be an amount in the chain's coin" in err


def test_the_market_of_a_stored_directory(run, listed):
    config = (listed / "hopfare.toml").read_text().replace('"list"', '"gossip"')
    (listed / "hopfare.toml").write_text(config)
    status, _, err = run("market")
    assert status == 1
    assert "no directory is on disk yet: start the client once" in err
    (listed / "state").mkdir(exist_ok=True)
    save_directory(listed / "state" / DIRECTORY_FILE, [entry.encoded for entry in nodes()], time.time())
    assert "3 of 3 relays, from the directory on disk" in run("market")[1]


def test_the_running_client_is_asked_first(run, listed, client):
    answers, asked = client
    assert run("market")[1] == "the directory is empty\n"
    assert asked == [("market", {})]
    del answers["market"]
    assert "3 of 3 relays, from the directory on disk" in run("market")[1], "a relay has no market"


def test_newnym_is_what_renew_is(run, listed, client):
    _, asked = client
    assert run("newnym") == (0, "New connections use new circuits.\n", "")
    assert run("circuits", "--renew")[1] == "New connections use new circuits.\n"
    assert asked == [("newnym", {}), ("newnym", {})]


def test_a_choice_goes_to_the_client_and_says_how_long_it_holds(run, listed, client):
    answers, asked = client
    answers["choose"] = {"name": "hops", "value": 2, "kept": False, "no_path": None}
    assert run("set", "hops", "2") == (0, "hops = 2, until the client stops (--keep keeps it)\n", "")
    answers["choose"]["kept"] = True
    assert run("set", "hops", "2", "--keep")[1] == "hops = 2, from now on, and kept for the next starts\n"
    answers["choose"] = {"name": "hops", "value": 3, "kept": False, "no_path": {"sentence": "no exit"}}
    status, out, err = run("set", "client.hops", "--reset")
    assert (status, out) == (0, "hops = 3, as the configuration says; nothing is kept\n")
    assert err == "but: no exit\n"
    assert [params for method, params in asked if method == "choose"] == [
        {"key": "hops", "value": "2", "keep": False},
        {"key": "hops", "value": "2", "keep": True},
        {"key": "hops", "value": None, "keep": False},
    ]
    answers["choices"] = {"choices": {"hops": 2, "exclude": ["a", "b"], "max-price": None}, "kept": ["hops"]}
    lines = run("set")[1].splitlines()
    assert lines[0].split() == ["hops", "2", "(kept)"]
    assert lines[1].split() == ["exclude", "a,", "b"]
    assert lines[2].split() == ["max-price", "-"]


def test_without_a_client_a_choice_can_be_kept(run, listed):
    state = listed / "state"
    status, _, err = run("set", "hops", "2")
    assert status == 3
    assert "with --keep the change counts from the next start on" in err
    assert run("set", "hops", "2", "--keep") == (0, "hops = 2, counts from the next start on\n", "")
    assert run("set", "max-price", "0.05", "--keep")[0] == 0
    assert load_choices(state) == {"hops": "2", "max-price": "0.05"}
    assert [(o.section, o.key, o.value) for o in load_overrides(state)] == [
        ("client", "hops", "2"),
        ("payments", "budget_per_gb", "0.05"),
    ]
    assert (state / "choices.json").stat().st_mode & 0o777 == 0o600
    assert run("set", "hops", "--reset")[0] == 0
    assert load_choices(state) == {"max-price": "0.05"}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["hops"], "a value is missing"),
        (["hops", "2", "--reset"], "either a value or --reset"),
        (["hopps", "2"], "do you mean hops?"),
        (["hops", "9", "--keep"], "must be a whole number from 1 to 4"),
    ],
)
def test_what_is_wrong_with_a_choice(run, listed, arguments, hint):
    status, out, err = run("set", *arguments)
    assert (status, out) == (2, "")
    assert hint in err


def test_a_damaged_choices_file_is_named(run, listed):
    (listed / "state").mkdir()
    (listed / "state" / "choices.json").write_text("{")
    (listed / "state" / "choices.json").chmod(0o600)
    status, _, err = run("set", "hops", "2", "--keep")
    assert status == 1
    assert "choices.json is damaged" in err


def test_why_is_told_in_words_and_numbers():
    rows = [
        {
            "id": 4,
            "path": ["a" * 52, "b" * 52],
            "why": ["the first of our guards", "drawn by weight from 2 exits that fit"],
            "rules": [[{"rule": "in the directory", "left": 6}], []],
            "price_wei_per_packet": 69200000000,
        }
    ]
    no_path = {"sentence": "nobody\x1b[2J", "steps": [{"rule": "is in DE", "left": 0}]}
    assert render_why(rows, no_path) == [
        "",
        "circuit 4, 0.05 per GB:",
        "  1. aaaaaaaaaaaa  the first of our guards",
        "            6  in the directory",
        "  2. bbbbbbbbbbbb  drawn by weight from 2 exits that fit",
        "",
        "no path for the last wish: nobody?[2J",
        "            0  is in DE",
    ]
