"""The ledger under crashes, rivals, damage and a full disk; key files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from payments.books import Book, Domain, SignedBook
from payments.chains import build_chain
from payments.errors import KeyFileError, LedgerError, PurseBusyError
from payments.io import keystore
from payments.io.ethereum import eth_account
from payments.io.ledger import DayEarnings, Ledger, PurseKeyed, StoredTransaction
from payments.keys import PurseKey
from payments.state import EMPTY, PurseState

DOMAIN = Domain(31337, b"\xc0" * 20)
PURSE = PurseKeyed(DOMAIN, b"\x01" * 20, b"\x02" * 20)
WORDS = build_chain(b"\x33" * 32, 100)


def state(number: int = 1, index: int = 5) -> PurseState:
    book = Book(b"\x02" * 20, number, 1000 * number, 10, 100, WORDS[0])
    return PurseState(SignedBook(book, b"\x07" * 65), index, WORDS[index], 7)


def test_what_is_stored_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.db"
    with Ledger(path) as ledger:
        for side in ("payer", "payee"):
            assert ledger.load(side, PURSE) == EMPTY
            for index in range(5):
                ledger.store(side, PURSE, state(index=index))
    assert path.stat().st_mode & 0o077 == 0
    with Ledger(path) as ledger:
        assert ledger.load("payee", PURSE) == state(index=4)
        [(claim, claimed)] = ledger.claims(DOMAIN, b"\x02" * 20)
        assert claim.worth_wei == 1040
        assert claimed == 0
        ledger.note_claimed([(PURSE, 900)])
        assert ledger.claims(DOMAIN, b"\x02" * 20)[0][1] == 900
        ledger.store("payee", PURSE, state(number=2))
        assert ledger.claims(DOMAIN, b"\x02" * 20)[0][1] == 900, "storing a ticket keeps what was claimed"
        largest = state(number=2**64 - 1)
        ledger.store("payee", PURSE, largest)
        assert ledger.load("payee", PURSE) == largest
        assert ledger.claims(Domain(1, DOMAIN.contract), b"\x02" * 20) == []


def test_totals_for_graphs(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.totals(DOMAIN) == {"earned_wei": 0, "claimed_wei": 0, "spent_wei": 0, "gas_wei": 0}
        for day in range(3):
            ledger.add_earnings(DayEarnings(day, b"\x01" * 20, 10, 5, 10**19, 10**18, 7))
        assert ledger.load("payer", PURSE) == EMPTY
        ledger.store("payer", PURSE, state(index=4))
        ledger.put_transaction(
            StoredTransaction(31337, b"\x05" * 20, 0, "claim", b"\x06" * 32, b"raw", "mined", 9, 10**15, 1.0)
        )
        assert ledger.totals(DOMAIN) == {
            "earned_wei": 3e19,
            "claimed_wei": 3e18,
            "spent_wei": 1040,
            "gas_wei": 1e15,
        }


def test_a_purse_is_remembered_before_its_first_ticket(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        other = PurseKeyed(DOMAIN, b"\x01" * 20, b"\x03" * 20)
        assert ledger.load("payer", PURSE) == EMPTY
        for purse in (PURSE, other):
            ledger.remember(purse)
        assert ledger.purses("payer", DOMAIN) == [(PURSE, EMPTY, 0), (other, EMPTY, 0)]
        assert ledger.purses("payee", DOMAIN) == []
        ledger.store("payer", PURSE, state())
        ledger.remember(PURSE)
        assert ledger.load("payer", PURSE) == state(), "what is known is kept"
        ledger.store("payer", PURSE, state(number=2))
        assert ledger.load("payer", other) == EMPTY


def test_a_second_process_on_the_same_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    code = f"from payments.io.ledger import Ledger; from pathlib import Path; Ledger(Path({str(path)!r}))"
    with Ledger(path):
        with pytest.raises(PurseBusyError, match="Another hopfare process"):
            Ledger(path)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "PurseBusyError" in other.stderr
    Ledger(path).close()


def test_a_ledger_changed_behind_our_back_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.load("payee", PURSE)
        ledger.store("payee", PURSE, state())
        rival = sqlite3.connect(path)
        rival.execute("UPDATE purses SET generation=generation+1")
        rival.commit()
        rival.close()
        with pytest.raises(PurseBusyError, match="someone else"):
            ledger.store("payee", PURSE, state(index=9))
        assert ledger.load("payee", PURSE) == state()
        with pytest.raises(ValueError, match="loaded"):
            ledger.store("payer", PURSE, state())


CRASHER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger_keystore import PURSE, state
from payments.io.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.load("payee", PURSE)
for index in range(1, 90):
    ledger.store("payee", PURSE, state(index=index))
    print(index, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 7, 20])
def test_a_killed_process_loses_nothing_that_was_stored(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "ledger.db"
    arguments = [sys.executable, "-c", CRASHER, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = [int(process.stdout.readline()) for _ in range(lines)][-1]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with Ledger(path) as ledger:
        assert ledger.load("payee", PURSE).index >= last


def test_a_full_disk_changes_nothing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.load("payee", PURSE)
        ledger.store("payee", PURSE, state())
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to run out of room.
        with pytest.raises(LedgerError, match="full"):
            for number in range(2, 200):
                ledger.put_note(f"filler {number}", "x" * 1000)
        kept = ledger.load("payee", PURSE)
        ledger._db.execute("PRAGMA max_page_count=100000")
        ledger.store("payee", PURSE, state(index=50))
        assert kept == state()
        assert ledger.load("payee", PURSE) == state(index=50)


def test_damage_is_found_and_a_foreign_file_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.load("payee", PURSE)
        ledger.store("payee", PURSE, state())
        ledger._db.execute("UPDATE purses SET record=zeroblob(216)")
        with pytest.raises(LedgerError, match="damaged"):
            ledger.load("payee", PURSE)
        assert ledger.claims(DOMAIN, b"\x02" * 20) == []
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(other)
    newer = tmp_path / "newer.db"
    shutil.copy(path, newer)
    database = sqlite3.connect(newer)
    database.execute("UPDATE meta SET value='99' WHERE name='version'")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="another version"):
        Ledger(newer)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "ledger.db" / "below" / "a-file.db")


def test_transactions_and_earnings(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        sent = StoredTransaction(31337, b"\x05" * 20, 3, "claim", b"h" * 32, b"raw", "sent", None, 0, 1.5)
        ledger.put_transaction(sent)
        assert ledger.transactions(31337, b"\x05" * 20) == [sent]
        mined = StoredTransaction(31337, b"\x05" * 20, 3, "claim", b"i" * 32, b"raw", "mined", 7, 10**20, 2.5)
        ledger.put_transaction(mined)
        assert ledger.transactions(31337, b"\x05" * 20, "mined") == [mined]
        assert ledger.transactions(31337, b"\x05" * 20, "sent") == []
        for _ in range(2):
            ledger.add_earnings(DayEarnings(20000, b"n" * 32, 5, 2, 10**30, 0, 1))
        assert ledger.earnings() == [DayEarnings(20000, b"n" * 32, 10, 4, 2 * 10**30, 0, 2)]
        assert ledger.earnings(20001) == []
        assert ledger.get_note("budget") is None
        ledger.put_note("budget", "x")
        assert ledger.get_note("budget") == "x"


def test_key_files(tmp_path: Path) -> None:
    key = PurseKey(b"\x21" * 32)
    path = tmp_path / "keys" / "purse.json"
    keystore.write_key_file(path, key, "correct horse", scrypt_n=2)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keystore.read_key_file(path, "correct horse") == key
    assert keystore.read_address(path) == key.address
    assert key.secret.hex() not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["purse.json"]
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        keystore.read_key_file(path, "battery staple")
    with pytest.raises(KeyFileError, match="never overwritten"):
        keystore.write_key_file(path, key, "x", scrypt_n=2)
    with pytest.raises(KeyFileError, match="empty passphrase"):
        keystore.write_key_file(tmp_path / "b.json", key, "")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        keystore.read_key_file(path, "correct horse")
    with pytest.raises(KeyFileError, match="no key file"):
        keystore.read_key_file(tmp_path / "none.json", "x")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"version": 3}', '{"version": 3, "crypto": {}}', "[" * 9000, "\x00\xff"],
)
def test_damaged_key_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"keystore of version 3|damaged"):
        keystore.read_key_file(path, "x")


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_key_files_of_other_wallets_are_opened_as_eth_account_does(kdf: str) -> None:
    secret = b"\x21" * 32
    content = eth_account().Account.encrypt(secret, "naïve", kdf=kdf, iterations=2)
    text = json.dumps(content)
    assert keystore.decode_key_file(text, "naïve", "it").secret == secret
    assert keystore.decode_key_file(text.replace('"crypto"', '"Crypto"'), "naïve", "it").secret == secret
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        keystore.decode_key_file(text, "naive", "it")
    for name, value in (("cipher", '"aes-256-ctr"'), ("kdf", '"none"'), ("mac", '"zz"')):
        damaged = json.dumps({**content, "crypto": {**content["crypto"], name: json.loads(value)}})
        with pytest.raises(KeyFileError, match="damaged"):
            keystore.decode_key_file(damaged, "naïve", "it")


def test_the_vector_of_the_web3_secret_storage_definition() -> None:
    """From ethereum.org's page of that name: PBKDF2-SHA-256, password "testpassword"."""
    content = {
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
            "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
            "kdf": "pbkdf2",
            "kdfparams": {
                "c": 262144,
                "dklen": 32,
                "prf": "hmac-sha256",
                "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
            },
            "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
        "version": 3,
    }
    key = keystore.decode_key_file(json.dumps(content), "testpassword", "it")
    assert key.secret.hex() == "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"


def test_a_key_file_that_would_eat_all_memory_is_refused() -> None:
    content = eth_account().Account.encrypt(b"\x21" * 32, "x", kdf="scrypt", iterations=2)
    content["crypto"]["kdfparams"]["n"] = 2**40
    with pytest.raises(KeyFileError, match="damaged"):
        keystore.decode_key_file(json.dumps(content), "x", "it")


def test_a_key_file_that_names_another_address_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "purse.json"
    keystore.write_key_file(path, PurseKey(b"\x21" * 32), "x", scrypt_n=2)
    content = json.loads(path.read_text())
    content["address"] = "00" * 20
    path.write_text(json.dumps(content))
    with pytest.raises(KeyFileError, match="another address"):
        keystore.read_key_file(path, "x")
