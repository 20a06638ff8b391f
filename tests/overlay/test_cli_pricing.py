import json

import pytest

from overlay.cli.earnings import plot_bars
from overlay.cli.main import main
from overlay.cli.money import money, show_json
from overlay.config.io.load import load_config
from overlay.errors import ConfigError, FileError
from overlay.node.io.account import read_passphrase


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    monkeypatch.setenv("HOPFARE_NODE__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return json.loads(output.out) if "--json" in arguments else output.out + output.err

    return run


def test_setting_the_price_keeps_the_rest_of_the_file(run, home):
    run("init")
    before = (home / "hopfare.toml").read_text()
    assert "0.05 coin per GB   (69200000000 wei per packet of 1384 bytes)" in run(
        "pricing", "set", "0.05 per GB"
    )
    after = (home / "hopfare.toml").read_text()
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed == ['price = "0.05 per GB"']
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []
    shown = run("pricing", "--json")
    assert (shown["price_wei"], shown["per_gb"], shown["charged"]) == ("69200000000", "0.05", False)
    assert "Nothing is charged: payments are off" in run("pricing")
    run("pricing", "set", "7 wei per packet")
    assert run("pricing", "show", "--json")["price_wei"] == "7"
    run("pricing", "set", "0")
    assert run("pricing", "show", "--json")["price_wei"] == "0"


def test_prices_that_cannot_be(run, home, monkeypatch):
    assert "there is no configuration file" in run("pricing", "set", "1 per GB", status=1)
    run("init")
    assert 'do you mean "0.05 per GB"?' in run("pricing", "set", "0.05", status=2)
    said = run("pricing", "set", "0.3 per TB", status=2)
    assert "must be a price such as" in said
    assert "do you mean" not in said
    assert "must be at most" in run("pricing", "set", "10 per packet", status=2)
    monkeypatch.setenv("HOPFARE_RELAY__PRICE", "9 wei per packet")
    assert "which wins: remove HOPFARE_RELAY__PRICE" in run("pricing", "set", "1 per GB", status=2)


@pytest.mark.parametrize(
    ("wei", "text"),
    [
        (0, "0 X"),
        (1, "1 wei"),
        (69_200_000, "0.0692 gwei"),
        (10**15, "0.001 X"),
        (1_234_567_890_123_456, "0.00123456 X"),
        (25 * 10**17, "2.5 X"),
        (123_456_789_012_345_678_901, "123.456789 X"),
    ],
)
def test_amounts_for_people(wei, text):
    assert money(wei, "X") == text


def test_json_has_exact_amounts():
    shown = json.loads(show_json({"wei": 2**70, "rows": [{"gas_wei": 5, "packets": 5}]}))
    assert shown == {"wei": str(2**70), "rows": [{"gas_wei": "5", "packets": 5}]}


def test_bars_are_in_proportion():
    bars = plot_bars([("a", 10**18), ("b", 5 * 10**17), ("c", 0)], "X")
    assert [bar.count("█") for bar in bars] == [40, 20, 0]


def test_where_a_passphrase_comes_from(home, monkeypatch):
    (home / "hopfare.toml").write_text("")
    monkeypatch.setenv("HOPFARE_PASSPHRASE", "from the environment")
    assert read_passphrase(load_config()) == "from the environment"
    (home / "hopfare.toml").write_text('[payments]\npassphrase_file = "words"\n')
    (home / "words").touch(mode=0o600)
    with pytest.raises(ConfigError, match="no passphrase in its first line"):
        read_passphrase(load_config())
    (home / "words").write_text("from the file\nnot this")
    assert read_passphrase(load_config()) == "from the file"
    (home / "words").chmod(0o644)
    with pytest.raises(FileError, match="chmod 600"):
        read_passphrase(load_config())
    (home / "hopfare.toml").write_text("")
    monkeypatch.delenv("HOPFARE_PASSPHRASE")
    assert read_passphrase(load_config(), lambda question: "typed") == "typed"
    with pytest.raises(ConfigError, match="is not known: name a file"):
        read_passphrase(load_config())
