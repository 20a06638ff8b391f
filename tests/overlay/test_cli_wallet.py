"""`hopfare wallet`, `redeem` and `earnings` against a development chain on loopback."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import trio
from chain_world import ETHER, NOTICE_S, ChainWorld

from overlay.cli.main import main
from overlay.config.io.load import load_config
from overlay.node.io.account import LEDGER_FILE, open_account
from overlay.node.io.local import serve_local
from overlay.node.io.wallet import open_wallet
from payments import abi
from payments.books import Book, SignedBook
from payments.chains import build_chain
from payments.digest import book_digest, domain_separator
from payments.io import keystore
from payments.io.chain.devchain import advance_time
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed
from payments.keys import PurseKey, checksum_address
from payments.state import PurseState

VALUE = 10**12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with ChainWorld(tmp_path_factory.mktemp("chain")) as world:
        yield world


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, world):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_PASSPHRASE", "correct horse")
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**4)
    monkeypatch.setattr(keystore.write_key_file, "__defaults__", (2**4,))
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, world)
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    return tmp_path


def write_config(folder, world, **changes):
    settings = {
        "chain_id": world.dev.chain_id,
        "rpc": [world.dev.url],
        "purses": "0x" + world.deployment.purses.hex(),
        "coin": "TEST",
        "confirmations": 0,
        **changes,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (folder / "hopfare.toml").write_text(
        f'# mine\n[node]\nstate_dir = "{folder}/state"\n[payments]\n' + "\n".join(lines) + "\n"
    )


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return json.loads(output.out) if "--json" in arguments else output.out + output.err

    return run


@pytest.fixture
def account(run, world, home):
    """A new key with ten coins; its address."""
    address = run("wallet", "new", "--json")["address"]
    world.fund(bytes.fromhex(address[2:]))
    return address


def key_of(home):
    with open_account(load_config(home / "hopfare.toml")) as key:
        return key


def give_tickets(world, home, payer, count, *, deposit=ETHER):
    """Have `payer` open a purse towards the account and give it `count` tickets, as a node would."""
    key = key_of(home)
    sender = world.sender(payer)
    words = build_chain(b"w" * 32, 1024)
    book = Book(key.address, 1, 0, VALUE, 1024, words[0])
    signed = SignedBook(book, payer.sign(book_digest(domain_separator(world.deployment.domain), book)))

    async def open_purse():
        data = abi.encode_call("open(address)", "0x" + key.address.hex())
        await sender.wait(await sender.send(world.deployment.purses, data, kind="open", value_wei=deposit))

    world.fund(payer.address)
    world.do(open_purse)
    with Ledger(home / "state" / LEDGER_FILE) as ledger:
        keyed = PurseKeyed(world.deployment.domain, payer.address, key.address)
        ledger.load("payee", keyed)
        ledger.store("payee", keyed, PurseState(signed, count, words[count], count * VALUE))
        today = int(time.time() // 86400)
        ledger.add_earnings(DayEarnings(today, payer.address, count, count, count * VALUE, 0, 0))
        ledger.add_earnings(DayEarnings(today - 2, payer.address, 10, 10, 10 * VALUE, 0, 0))


def test_the_life_of_an_account(run, world, account, home):
    payee = checksum_address(b"\x77" * 20)
    shown = run("wallet")
    assert account in shown and "10 TEST" in shown
    assert "to cash out  0 TEST" in shown
    opened = run("wallet", "open", payee.lower(), "0.5", "--json")
    assert opened["deposited_wei"] == str(ETHER // 2)
    assert opened["transaction"].startswith("0x")
    assert "already: add to it with `hopfare wallet top-up`" in run("wallet", "open", payee, "1", status=2)
    assert "0.75 TEST in all" in run("wallet", "top-up", payee, "250000000 gwei")
    purse = run("wallet", "--json")["purses"]
    assert [(row["payee"], row["left_wei"], row["state"]) for row in purse] == [
        (payee, str(3 * ETHER // 4), "open")
    ]
    assert "start its notice" in run("wallet", "withdraw", payee, status=2)
    assert "can be withdrawn from" in run("wallet", "unlock", payee)
    assert "unlocking until" in run("wallet")
    assert "is not over: it can be withdrawn in" in run("wallet", "withdraw", payee, status=2)
    assert "is being unlocked already: it can be withdrawn in" in run("wallet", "unlock", payee, status=2)
    world.do(advance_time, world.chain.rpc, NOTICE_S + 60)
    assert run("wallet", "--json")["purses"][0]["state"] == "withdrawable"
    assert "0.75 TEST came back" in run("wallet", "withdraw", payee)
    assert "there is no money in the purse" in run("wallet", "unlock", payee, status=2)
    assert "there is no money in the purse" in run("wallet", "withdraw", payee, status=2)
    balance = int(run("wallet", "--json")["balance_wei"])
    assert 9.9 * ETHER < balance < 10 * ETHER


def test_earning_claiming_and_cashing_out(run, world, account, home):
    payer = PurseKey(os.urandom(32))
    give_tickets(world, home, payer, 1000)
    earned = 1000 * VALUE
    shown = run("wallet", "--json")["paying_us"]
    assert [(row["payer"], row["unclaimed_wei"]) for row in shown] == [
        (checksum_address(payer.address), str(earned))
    ]
    assert "0.001 TEST not claimed" in run("redeem", "--dry-run")
    assert run("redeem", "--dry-run", "--json")["claims"] == 0
    claimed = run("redeem", "--json")
    assert (claimed["claims"], claimed["claimed_wei"]) == (1, str(earned))
    assert "There is nothing to claim." in run("redeem")
    assert run("wallet", "--json")["cash_out_wei"] == str(earned)

    answer = run("earnings", "--json")
    assert answer["unclaimed_wei"] == "0"
    assert sum(int(row["earned_wei"]) for row in answer["days"]) == 1010 * VALUE
    assert sum(int(row["claimed_wei"]) for row in answer["days"]) == earned
    assert sum(int(row["gas_wei"]) for row in answer["days"]) == int(claimed["gas_wei"]) > 0
    today = time.strftime("%Y-%m-%d", time.gmtime())
    table = run("earnings", "--csv").splitlines()
    assert table[0] == "date,neighbour,packets,tickets,earned,claimed,gas,coin"
    assert table[2].startswith(f"{today},{checksum_address(payer.address)},1000,1000,0.001,0.001,0.")
    plot = run("earnings")
    assert f"{today}  {'█' * 40}" in plot and "all" in plot
    assert checksum_address(payer.address) in run("earnings", "--by", "neighbour", "--no-plot")
    [row] = run("earnings", "--json", "--days", "1")["days"]
    assert row["neighbour"] == checksum_address(payer.address), "earned and claimed from the same"
    with pytest.raises(SystemExit, match="2"):
        main(["earnings", "--json", "--csv"])

    assert "can be cashed out, not 1 TEST" in run("wallet", "cash-out", "1", status=2)
    assert f"0.001 TEST went to {account}" in run("wallet", "cash-out")
    assert "there is nothing to cash out" in run("wallet", "cash-out", status=2)


def test_a_release_claims_first(run, world, account, home):
    payer = PurseKey(os.urandom(32))
    give_tickets(world, home, payer, 50)
    shown = checksum_address(payer.address)
    assert f"{shown} can withdraw the rest" in run("wallet", "release", shown)
    purse = world.do(world.chain.purse, payer.address, key_of(home).address)
    assert purse.claimed_wei == 50 * VALUE
    assert purse.unlock_at_s > 0
    nobody = checksum_address(b"\x12" * 20)
    assert "there is no money in the purse" in run("wallet", "release", nobody, status=2)


def test_funding_shows_a_code(run, account, world):
    shown = run("wallet", "fund", "0.5")
    assert account in shown
    assert shown.count("█") > 50
    told = run("wallet", "fund", "0.5", "--json")
    assert told["uri"] == f"ethereum:{account}@{world.dev.chain_id}?value={ETHER // 2}"
    assert "must be an amount" in run("wallet", "fund", "many", status=2)


def test_keys_are_made_once_and_imported(run, home, tmp_path):
    made = run(
        "wallet", "new", "--make-passphrase", "--set", f"payments.passphrase_file={home}/words", "--json"
    )
    key_file = Path(made["key_file"])
    assert key_file == home / "state" / "key.json"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert (home / "words").stat().st_mode & 0o777 == 0o600
    assert "is already there: a key is never overwritten" in run("wallet", "new", status=1)
    passphrase = (home / "words").read_text().strip()
    assert checksum_address(keystore.read_key_file(key_file, passphrase).address) == made["address"]
    key_file.unlink()
    secret = home / "secret"
    secret.write_text("0x" + "11" * 32 + "\n")
    assert run("wallet", "import", secret, "--json")["address"] == checksum_address(
        PurseKey(b"\x11" * 32).address
    )
    key_file.unlink()
    secret.write_text("eleven")
    assert "neither a key file (keystore v3) nor a secret key" in run("wallet", "import", secret, status=1)


def test_what_is_missing_is_said_in_one_sentence(run, world, home, monkeypatch):
    payee = checksum_address(b"\x77" * 20)

    def complaint(*arguments, status):
        text = run(*arguments, status=status)
        assert len(text.strip().splitlines()) == 1, text
        return text

    assert "make one with `hopfare wallet new`" in complaint("wallet", "open", payee, "1", status=1)
    assert "There is no key file" in complaint("wallet", status=1)
    address = run("wallet", "new", "--json")["address"]
    assert "It has no coins: `hopfare wallet fund`" in run("wallet")
    told = complaint("wallet", "open", payee, "1", status=1)
    assert f"The account {address} has 0 TEST, and this needs 1 TEST and gas" in told
    monkeypatch.setenv("HOPFARE_PASSPHRASE", "wrong horse")
    assert "the passphrase is wrong" in complaint("wallet", "open", payee, "1", status=1)
    monkeypatch.delenv("HOPFARE_PASSPHRASE")
    assert "is not known: name a file that has it" in complaint("wallet", "open", payee, "1", status=2)
    monkeypatch.setenv("HOPFARE_PASSPHRASE", "correct horse")
    mistyped = address[:-1] + ("1" if address[-1] != "1" else "2")
    assert "is mistyped" in complaint("wallet", "open", mistyped, "1", status=2)
    assert "neither an account" in complaint("wallet", "open", "bob", "1", status=2)
    write_config(home, world, rpc=["http://127.0.0.1:9"])
    assert "No endpoint answered" in complaint("wallet", status=1)
    write_config(home, world, chain_id=5)
    assert "No endpoint serves chain 5" in complaint("wallet", status=1)
    write_config(home, world, purses="0x" + "45" * 20)
    assert "there is no purses contract of ours" in complaint("wallet", status=1)
    write_config(home, world, chain_id=0)
    assert "payments are off" in complaint("wallet", status=2)
    write_config(home, world, claim_batch=0)
    assert "must be a whole number from 1 to 64" in complaint("wallet", status=2)


def test_one_process_has_the_account(run, world, account, home):
    payee = checksum_address(b"\x79" * 20)
    # Another state folder, the same key.
    with open_account(load_config(home / "hopfare.toml")):
        assert "uses the key" in run("wallet", "open", payee, "1", status=5)
    # The same ledger: a command that is at work elsewhere.
    with Ledger(home / "state" / LEDGER_FILE):
        assert "Another hopfare process uses the ledger" in run("wallet", "open", payee, "1", status=5)
    assert "0.1 TEST in all" in run("wallet", "open", payee, "0.1")


def test_a_running_node_is_asked(run, world, account, home):
    """The same commands while a node has the account: through its control socket, with its own wallet."""
    payee = checksum_address(b"\x7a" * 20)
    started = threading.Event()
    found = {}

    async def node():
        async with open_wallet(load_config(home / "hopfare.toml")) as wallet, trio.open_nursery() as nursery:
            found["scope"], found["token"] = nursery.cancel_scope, trio.lowlevel.current_trio_token()
            await nursery.start(serve_local, home / "state", wallet.handle)
            started.set()

    thread = threading.Thread(target=trio.run, args=(node,))
    thread.start()
    try:
        assert started.wait(30)
        assert "0.2 TEST in all" in run("wallet", "open", payee, "0.2")
        assert run("wallet", "--json")["purses"][0]["payee"] == payee
        assert "is locked" in run("wallet", "withdraw", payee, status=1)
        assert "no money" not in run("earnings")
        assert "There is nothing to claim" in run("redeem")
        assert "has 0" not in run("wallet")
        too_much = run("wallet", "top-up", payee, "1000", status=1)
        assert "and this needs 1000 TEST and gas" in too_much
    finally:
        trio.from_thread.run_sync(found["scope"].cancel, trio_token=found["token"])
        thread.join(30)
