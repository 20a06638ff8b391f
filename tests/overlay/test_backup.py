import io
import itertools
import os
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.backup import MAGIC, decode_backup, encode_backup
from overlay.cli.main import main
from overlay.errors import DecodeError
from overlay.node.io.local import lock_state

CHEAP = {"passes": 1, "memory_kib": 8}


def seal(files, passphrase=b"correct horse"):
    return encode_backup(files, passphrase, os.urandom, **CHEAP)


NAMES = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=5))
@settings(max_examples=30)
def test_what_goes_in_comes_out(files):
    assert decode_backup(seal(files), b"correct horse") == files


def test_another_passphrase_opens_nothing():
    with pytest.raises(DecodeError, match="passphrase is wrong"):
        decode_backup(seal({"identity": b"x"}), b"wrong horse")


@given(st.data())
@settings(max_examples=40)
def test_one_changed_byte_is_noticed(data):
    sealed = bytearray(seal({"identity": b"secret" * 20}))
    # The costs of the key derivation are left alone: a large valid one would only cost time.
    at = data.draw(st.sampled_from([*range(32), *range(40, len(sealed))]))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        decode_backup(bytes(sealed), b"correct horse")


@given(st.binary(max_size=300))
def test_anything_else_is_refused(noise):
    with pytest.raises(DecodeError):
        decode_backup(noise, b"p")


def test_a_file_that_asks_for_too_much_work_is_refused():
    sealed = bytearray(seal({}))
    sealed[len(MAGIC) + 16 : len(MAGIC) + 24] = b"\xff" * 8
    with pytest.raises(DecodeError, match="more work"):
        decode_backup(bytes(sealed), b"correct horse")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", ".hidden", "a/b"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(DecodeError, match="no backup of hopfare holds"):
        decode_backup(seal({name: b"x"}), b"correct horse")


# -- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hopfare.toml").write_text(f'[node]\nstate_dir = "{tmp_path / "state"}"\n')
    key = tmp_path / "key"
    key.write_text("correct horse battery\n")
    key.chmod(0o600)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


def test_a_node_comes_back_on_another_machine(place, run):
    assert run("init")[0] == 0
    state = place / "state"
    (state / "network.json").write_text("this machine's own")
    kept = {path.name: path.read_bytes() for path in state.iterdir() if path.name != "network.json"}
    status, _, error = run("backup", "--passphrase-file", "key", "node.backup")
    assert status == 0, error
    assert (place / "node.backup").stat().st_mode & 0o777 == 0o600
    configuration = (place / "hopfare.toml").read_bytes()
    for path in [*state.iterdir(), place / "hopfare.toml"]:
        path.unlink()
    state.rmdir()
    status, out, error = run(
        "restore", "--passphrase-file", "key", "--state-dir", state, place / "node.backup"
    )
    assert status == 0, error
    assert {path.name: path.read_bytes() for path in state.iterdir() if path.name != "lock"} == kept
    assert all(path.stat().st_mode & 0o77 == 0 for path in state.iterdir())
    assert (place / "hopfare.toml").read_bytes() == configuration
    assert "restored" in out


def test_nothing_is_overwritten_and_nothing_runs_meanwhile(place, run):
    run("init")
    assert run("backup", "--passphrase-file", "key", "node.backup")[0] == 0
    status, _, error = run("restore", "--passphrase-file", "key", "node.backup")
    assert status == 1
    assert "nothing is overwritten" in error
    status, _, error = run("backup", "--passphrase-file", "key", "node.backup")
    assert status == 1
    assert "already exists" in error
    with lock_state(place / "other"):
        pass
    holder, done = threading.Event(), threading.Event()

    # A lock of this very process would not keep it out.
    pid = os.fork()
    if pid == 0:
        with lock_state(place / "other"):
            (place / "held").touch()
            while not (place / "done").exists():
                done.wait(0.01)
        os._exit(0)
    try:
        for _ in itertools.count():
            if (place / "held").exists():
                break
            holder.wait(0.01)
        status, _, error = run(
            "restore", "--passphrase-file", "key", "--state-dir", place / "other", "node.backup"
        )
        assert status == 5
        assert "is running" in error
    finally:
        (place / "done").touch()
        os.waitpid(pid, 0)


def test_a_database_is_copied_while_it_is_written(place, run):
    run("init")
    with sqlite3.connect(place / "state" / "ledger.sqlite3") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (42)")
        database.commit()
        # The row is in the write-ahead log, which is no file of the backup.
        assert (place / "state" / "ledger.sqlite3-wal").stat().st_size > 0
        assert run("backup", "--passphrase-file", "key", "node.backup")[0] == 0
    status, out, _ = run("restore", "--list", "--passphrase-file", "key", "node.backup")
    assert status == 0
    assert "ledger.sqlite3\n" in out
    assert "-wal" not in out
    status, _, error = run("restore", "--passphrase-file", "key", "--state-dir", place / "new", "node.backup")
    assert status == 0, error
    with sqlite3.connect(place / "new" / "ledger.sqlite3") as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(42,)]


def test_short_passphrases_and_open_passphrase_files_are_refused(place, run):
    run("init")
    (place / "key").write_text("short\n")
    assert "longer one" in run("backup", "--passphrase-file", "key", "b")[2]
    (place / "key").chmod(0o644)
    assert "chmod 600" in run("backup", "--passphrase-file", "key", "b")[2]


def test_without_a_node_there_is_nothing_to_back_up(place, run):
    status, _, error = run("backup", "--passphrase-file", "key", "b")
    assert status == 1
    assert "nothing to back up" in error


def test_where_nobody_can_be_asked_it_says_what_to_give(run, monkeypatch):
    run("init")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, error = run("backup", "node.backup")
    assert status == 2
    assert "give --passphrase-file, or run this at a terminal" in error
