import json
import subprocess
import sys
import threading
import time
import tomllib

import pytest
import trio

from exit.errors import PrivilegeError
from overlay.cli import errors
from overlay.cli.main import COMMANDS, hopfare, main
from overlay.descriptor import decode_descriptor
from overlay.errors import AlreadyRunningError, ConfigError, FileError, NotRunningError
from overlay.identity import Identity, parse_node_id
from overlay.node.io.local import lock_state, serve_local
from overlay.seedlist import decode_seed_list


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    monkeypatch.setenv("HOPFARE_NODE__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def node(home):
    """A running node that answers in a thread; its answers can be changed."""
    answers = {"status": {"role": "client", "ready": True, "problems": [], "uptime_s": 75.0}, "stop": {}}
    started = threading.Event()
    ended = threading.Event()

    async def handle(method, params):
        if method not in answers:
            raise LookupError(f"a client has no {method}")
        if method == "stop":
            scope.cancel()
        return answers[method]

    async def serve():
        with lock_state(home / "state"):
            async with trio.open_nursery() as nursery:
                nonlocal scope
                scope = nursery.cancel_scope
                token.append(trio.lowlevel.current_trio_token())
                await nursery.start(serve_local, home / "state", handle)
                started.set()
        ended.set()

    scope = trio.CancelScope()
    token = []
    (home / "hopfare.toml").write_text("")
    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    yield answers
    if not ended.is_set():
        token[0].run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


def every_command():
    found = [()]
    for name in COMMANDS:
        found.append((name,))
        command = hopfare.get_command(None, name)
        found += [(name, part) for part in getattr(command, "_table", {})]
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_explains_itself(run, path):
    status, out, err = run(*path, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: hopfare")
    is_group = not path or (len(path) == 1 and hasattr(hopfare.get_command(None, path[0]), "_table"))
    assert ("Exit status:" in out) != is_group
    assert all(len(line) <= 110 for line in out.splitlines())


def test_help_is_quick_to_come_since_nothing_heavy_is_imported():
    code = "import sys; from overlay.cli.main import hopfare; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"trio", "rich", "stem", "qh3", "aioquic", "cryptography", "nacl"} & set(modules) == set()


def test_a_typing_error_gets_a_guess(run):
    status, _, err = run("stauts")
    assert status == 2
    assert "do you mean 'status'?" in err
    assert run("status", "--jsn")[0] == 2


def test_init_makes_what_a_node_needs_and_overwrites_nothing(run, home):
    status, out, _ = run("init", "--set", "relay.advertise=192.0.2.1:4433", "--set", "client.hops=2")
    assert status == 0
    toml = tomllib.loads((home / "hopfare.toml").read_text())
    assert toml == {
        "node": {}, "exit": {}, "network": {}, "payments": {}, "client": {"hops": 2},
        "relay": {"advertise": "192.0.2.1:4433"},
    }  # fmt: skip
    identity = Identity.load(home / "state" / "identity")
    assert identity.name in out
    assert (home / "state").stat().st_mode & 0o777 == 0o700
    keys = (home / "state" / "onion-keys.json").read_bytes()
    status, out, _ = run("init", "--set", "client.hops=4")
    assert status == 0
    assert out.count("is there already and is kept") == 2
    assert tomllib.loads((home / "hopfare.toml").read_text()) == toml
    assert Identity.load(home / "state" / "identity") == identity
    assert (home / "state" / "onion-keys.json").read_bytes() == keys


def test_init_prints_the_documented_file(run, home):
    status, out, _ = run("init", "--print", "--seed-list-key", Identity(b"s" * 32).name)
    assert status == 0
    assert tomllib.loads(out)["network"] == {"seed_list_key": Identity(b"s" * 32).name}
    assert list(home.iterdir()) == []
    assert run("init", "--print", "--seed-list-key", "nonsense")[0] == 2


def test_a_network_is_made_with_the_commands_alone(run, home):
    (home / "hopfare.toml").write_text("")
    for number in (1, 2):
        run("init", "--state-dir", f"node{number}", "--config", f"node{number}.toml")
        arguments = ("--state-dir", f"node{number}", "--set", f"relay.advertise=192.0.2.{number}:4433")
        flags = ("--exit", "--set", "exit.ipv6=on", "--set", "exit.policy=accept *:443,reject *:*")
        status, out, err = run(
            "descriptor", "export", *arguments, *(flags if number == 2 else ()), "-o", f"{number}.d"
        )
        assert (status, err) == (0, "")
    entry = decode_descriptor((home / "2.d").read_bytes())
    assert entry.descriptor.is_exit
    assert entry.descriptor.has_ipv6
    assert entry.descriptor.exit_policy_summary == "accept 443"
    assert str(entry.descriptor.addresses[0]) == "192.0.2.2:4433"
    status, out, _ = run("descriptor", "show", "1.d", "2.d")
    assert status == 0
    assert "accept 443, IPv4 and IPv6" in out
    status, out, err = run("descriptor", "show", "1.d", "hopfare.toml", "--json")
    assert status == 1
    assert json.loads(out)[0]["roles"] == ["relay"]
    assert "hopfare.toml" in err

    status, out, _ = run("seedlist", "key", "net.key")
    assert status == 0
    name = tomllib.loads(out.splitlines()[-1])["seed_list_key"]
    sign = ("seedlist", "sign", "--key", "net.key", "--network", "lab", "-o", "net.seeds")
    status, out, _ = run(*sign, "1.d", "2.d")
    assert status == 0
    assert out.startswith("net.seeds: lab, 2 nodes, 1 of them exits, until ")
    assert len(decode_seed_list((home / "net.seeds").read_bytes(), parse_node_id(name)).descriptors) == 2
    assert "accept 443" in run("seedlist", "show", "net.seeds", "--key-name", name)[1]
    shown = json.loads(run("seedlist", "show", "net.seeds", "--key-name", name, "--json")[1])
    assert [node["roles"] for node in shown["nodes"]] == [["relay"], ["relay", "exit"]]
    status, _, err = run("seedlist", "show", "net.seeds", "--key-name", Identity(b"x" * 32).name)
    assert status == 1
    assert "not signed by the key" in err
    assert "twice" in run(*sign, "1.d", "1.d")[2]
    assert run(*sign, "--lifetime", "10", "1.d")[0] == 2
    assert run(*sign, "net.key")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("client",), "no network is named: either network.seed_list and network.seed_list_key"),
        (("client", "--set", "network.seed_list=x"), "network.seed_list_key is not set"),
        (("relay",), "or a chain and its registry"),
        (("exit", "--set", "exit.policy=accept *:80"), "--set exit.policy=accept *:80: exit.policy: "),
        (("client", "--hops", "5"), "--hops 5: client.hops = 5: must be a whole number from 1 to 4"),
        (("client", "--socks", "1080"), 'for this machine only: "127.0.0.1:1080"'),
        (("client", "--set", "hops"), "must be SECTION.KEY=VALUE"),
        (("client", "--config", "none.toml"), "there is no configuration file at"),
        (("client", "--log-level", "loud"), 'must be "debug", "info", "warning" or "error"'),
    ],
)
def test_what_cannot_run_is_refused_with_status_2(run, home, arguments, complaint):
    (home / "hopfare.toml").write_text("")
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert all(line.startswith("hopfare: ") for line in err.splitlines())


def test_nobody_running_is_status_3(run, home):
    (home / "hopfare.toml").write_text("")
    for command in ("status", "circuits", "stop"):
        status, _, err = run(command)
        assert status == 3
        assert "no hopfare is running with the state folder" in err
    assert run("exec", "--", "true")[0] == 125


def test_status_of_a_node_that_works(run, node):
    status, out, _ = run("status")
    assert status == 0
    assert out.splitlines() == ["client works", "  uptime  1 min 15 s"]
    status, out, _ = run("status", "--json")
    assert json.loads(out) == node["status"]


def test_status_of_a_node_that_does_not(run, node):
    node["status"] |= {"ready": False, "problems": ["No exit in the directory allows port 443."]}
    status, out, _ = run("status")
    assert status == 4
    assert out.splitlines()[:2] == ["client does not work", "  - No exit in the directory allows port 443."]


def test_circuits_and_new_ones(run, node):
    assert "a client has no circuits" in run("circuits")[2]
    row = {"id": 7, "state": "ready", "path": ["a" * 52, "b", "c"], "countries": ["IS", "??"], "rtt_ms": 3.25}
    node["circuits"] = {
        "circuits": [{**row, "age_s": 61, "isolated": True, "build_ms": 9.5, "addresses": []}]
    }
    status, out, _ = run("circuits")
    assert status == 0
    assert out.splitlines() == [
        "id  state  path                     rtt      loss  build   age        connections  notes",
        "7   ready  aaaaaaaaaaaa IS > b > c  3.25 ms  -     9.5 ms  1 min 1 s  -            isolated",
    ]
    assert json.loads(run("circuits", "--json")[1]) == node["circuits"]
    node["newnym"] = {}
    assert run("circuits", "--renew")[0] == 0


def test_exec_tells_what_the_client_says(run, node):
    status, _, err = run("exec", "--", "true")
    assert status == 125
    assert "a client has no exec-info" in err


def test_stop_waits_for_the_end(run, node):
    assert run("stop") == (0, "stopped\n", "")
    # The node is a thread of this very process, which a lock cannot tell apart: it may take a moment yet.
    deadline = time.monotonic() + 30
    while (status := run("status")[0]) != 3:
        assert time.monotonic() < deadline, status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (NotRunningError("x"), 3),
        (AlreadyRunningError("x"), 5),
        (FileError("x"), 1),
        (PrivilegeError("x"), 6),
        (BaseExceptionGroup("g", [ExceptionGroup("h", [PrivilegeError("x")]), KeyboardInterrupt()]), 6),
    ],
)
def test_errors_become_a_sentence_and_a_status(error, status):
    assert errors.explain(error) == ("x", status)


def test_a_bug_stays_a_bug():
    assert errors.explain(ExceptionGroup("g", [ConfigError("x"), ZeroDivisionError()])) is None
    assert errors.explain(KeyboardInterrupt()) == ("interrupted", 130)
