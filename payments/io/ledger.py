"""The ledger: purses, claims, transactions and earnings in one SQLite file, safe against a crash at any step.

Owns the schema, durability (WAL, synchronous FULL: a committed call is on disk) and that only one process
uses a ledger: a lock on the file beside it, which the kernel drops with its process, and a generation in
each purse's row, which shows a copied or restored file. Calls block; drivers make them in a thread. One
`Ledger` may be used from several threads, one at a time (it locks itself).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from payments.books import Claim, Domain
from payments.errors import DecodeError, LedgerError, PurseBusyError
from payments.payee import claim_of
from payments.state import (
    EMPTY,
    PurseState,
    decode_payee_state,
    decode_payer_state,
    encode_payee_state,
    encode_payer_state,
)

SCHEMA_VERSION = 1
Side = Literal["payer", "payee"]

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE purses (
    side TEXT NOT NULL, chain INTEGER NOT NULL, contract BLOB NOT NULL, payer BLOB NOT NULL,
    payee BLOB NOT NULL, record BLOB NOT NULL, generation INTEGER NOT NULL,
    claimed_wei TEXT NOT NULL DEFAULT '0',
    PRIMARY KEY (side, chain, contract, payer, payee)) WITHOUT ROWID;
CREATE TABLE books (
    chain INTEGER NOT NULL, contract BLOB NOT NULL, payer BLOB NOT NULL, payee BLOB NOT NULL,
    number BLOB NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (chain, contract, payer, payee, number)) WITHOUT ROWID;
CREATE TABLE transactions (
    chain INTEGER NOT NULL, sender BLOB NOT NULL, nonce INTEGER NOT NULL, kind TEXT NOT NULL,
    hash BLOB NOT NULL, raw BLOB NOT NULL, state TEXT NOT NULL, block INTEGER,
    gas_wei TEXT NOT NULL DEFAULT '0', at_s REAL NOT NULL,
    PRIMARY KEY (chain, sender, nonce)) WITHOUT ROWID;
CREATE TABLE earnings (
    day INTEGER NOT NULL, neighbour BLOB NOT NULL, packets INTEGER NOT NULL, tickets INTEGER NOT NULL,
    earned_wei TEXT NOT NULL, claimed_wei TEXT NOT NULL, gas_wei TEXT NOT NULL,
    PRIMARY KEY (day, neighbour)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class PurseKeyed:
    """Which purse: where, from whom, to whom."""

    domain: Domain
    payer: bytes
    payee: bytes


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """A transaction of ours. `state` is "sent", "mined", "failed" or "replaced"; `raw` can be sent again."""

    chain_id: int
    sender: bytes
    nonce: int
    kind: str
    hash: bytes
    raw: bytes
    state: str
    block: int | None
    gas_wei: int
    at_s: float


@dataclass(frozen=True, slots=True)
class DayEarnings:
    """What one neighbour brought in on one day (days since 1970, UTC)."""

    day: int
    neighbour: bytes
    packets: int
    tickets: int
    earned_wei: int
    claimed_wei: int
    gas_wei: int


class Ledger:
    """An open ledger. Use as a context manager, or call `close`."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`, making it if needed.

        Raises PurseBusyError if another process has it open, LedgerError if it cannot be opened or is of
        another version.
        """
        self._path = path
        self._mutex = threading.Lock()
        self._generations: dict[tuple[object, ...], int] = {}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(f"The ledger {path} cannot be opened: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise PurseBusyError(f"Another hopfare process uses the ledger {path} and its purses.") from None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            with self._write() as db:
                tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name='meta'").fetchone()[0]
                if not tables:
                    for statement in _SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute("INSERT INTO meta VALUES ('version', ?)", (str(SCHEMA_VERSION),))
                found = db.execute("SELECT value FROM meta WHERE name='version'").fetchone()
                if found is None or found[0] != str(SCHEMA_VERSION):
                    raise LedgerError(f"The ledger {self._path} is of another version of hopfare.")
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"The ledger {self._path} cannot be opened: {error}.") from error

    def close(self) -> None:
        """Close the file and let go of it."""
        with self._mutex:
            self._db.close()
            os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, side: Side, purse: PurseKeyed) -> PurseState:
        """Return what is kept of a purse on our `side`; the empty state if nothing is.

        Raises LedgerError if the record is damaged: then nothing must be given or taken on this purse.
        """
        decode = decode_payer_state if side == "payer" else decode_payee_state
        with self._read() as db:
            row = db.execute(
                f"SELECT record, generation FROM purses WHERE {_PURSE}", (side, *_fields(purse))
            ).fetchone()
        if row is None:
            self._generations[(side, *_fields(purse))] = 0
            return EMPTY
        try:
            state = decode(row[0])
        except DecodeError as error:
            raise LedgerError(f"The ledger {self._path} is damaged: {error}.") from error
        self._generations[(side, *_fields(purse))] = row[1]
        return state

    def store(self, side: Side, purse: PurseKeyed, state: PurseState) -> None:
        """Keep `state`, and on the payee's side its newest book as evidence; on disk when this returns.

        Raises PurseBusyError if someone else wrote this purse since it was loaded, LedgerError if the disk is
        full or broken; either way nothing has changed.
        """
        self.store_many([(side, purse, state)])

    def store_many(
        self,
        states: Sequence[tuple[Side, PurseKeyed, PurseState]],
        earnings: Sequence[DayEarnings] = (),
    ) -> None:
        """Keep many states, each as `store` does, and add `earnings`, in one transaction: all or nothing."""
        new_generations: dict[tuple[object, ...], int] = {}
        with self._write() as db:
            for side, purse, state in states:
                key = (side, *_fields(purse))
                new_generations[key] = self._put(db, side, purse, state, new_generations.get(key))
            for entry in earnings:
                _add_earnings(db, entry)
        self._generations.update(new_generations)

    def _put(
        self, db: sqlite3.Connection, side: Side, purse: PurseKeyed, state: PurseState, known: int | None
    ) -> int:
        """Write one state; return the purse's new generation."""
        key = (side, *_fields(purse))
        generation = self._generations.get(key) if known is None else known
        if generation is None:
            raise ValueError("a purse is loaded before it is stored")
        encode = encode_payer_state if side == "payer" else encode_payee_state
        record = encode(state, purse.payee)
        if generation == 0:
            done = db.execute(
                "INSERT INTO purses (side, chain, contract, payer, payee, record, generation) "
                "VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE "
                "SET record=excluded.record, generation=1 WHERE generation=0",
                (*key, record),
            )
        else:
            done = db.execute(
                f"UPDATE purses SET record=?, generation=generation+1 WHERE {_PURSE} AND generation=?",
                (record, *key, generation),
            )
        if done.rowcount != 1:
            raise PurseBusyError(f"The purse of 0x{purse.payer.hex()} was changed by someone else.")
        if side == "payee" and state.book is not None:
            db.execute(
                "INSERT OR REPLACE INTO books VALUES (?, ?, ?, ?, ?, ?)",
                (*_fields(purse), _sortable(state.number), record),
            )
            db.execute(
                "DELETE FROM books WHERE chain=? AND contract=? AND payer=? AND payee=? AND number<?",
                (*_fields(purse), _sortable(max(0, state.number - _KEPT_BOOKS))),
            )
        return generation + 1

    def remember(self, purse: PurseKeyed) -> None:
        """Have a purse that we pay from in the list of `purses`, also before a ticket was given from it."""
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO purses (side, chain, contract, payer, payee, record, generation) "
                "VALUES ('payer', ?, ?, ?, ?, ?, 0)",
                (*_fields(purse), encode_payer_state(EMPTY, purse.payee)),
            )

    def purses(self, side: Side, domain: Domain) -> list[tuple[PurseKeyed, PurseState, int]]:
        """Return every purse on our `side` in `domain`: which, its state, and the wei noted as claimed.

        For showing, not for going on with: a damaged record is left out.
        """
        decode = decode_payer_state if side == "payer" else decode_payee_state
        with self._read() as db:
            rows = db.execute(
                "SELECT payer, payee, record, claimed_wei FROM purses "
                "WHERE side=? AND chain=? AND contract=? ORDER BY payer, payee",
                (side, domain.chain_id, domain.contract),
            ).fetchall()
        found = []
        for payer, payee, record, claimed in rows:
            with suppress(DecodeError):
                found.append((PurseKeyed(domain, payer, payee), decode(record), int(claimed)))
        return found

    def claims(self, domain: Domain, payee: bytes) -> list[tuple[Claim, int]]:
        """Return every claim that the ledger allows `payee`, with the wei that was claimed already."""
        with self._read() as db:
            rows = db.execute(
                "SELECT payer, record, claimed_wei FROM purses "
                "WHERE side='payee' AND chain=? AND contract=? AND payee=?",
                (domain.chain_id, domain.contract, payee),
            ).fetchall()
        found = []
        for payer, record, claimed in rows:
            try:
                claim = claim_of(decode_payee_state(record), payer)
            except DecodeError:
                continue  # Damage is reported when the purse is loaded; the others must still be claimed.
            if claim is not None:
                found.append((claim, int(claimed)))
        return found

    def note_claimed(self, claimed: Sequence[tuple[PurseKeyed, int]]) -> None:
        """Note what the chain says was claimed (wei) from purses that pay us."""
        with self._write() as db:
            db.executemany(
                f"UPDATE purses SET claimed_wei=? WHERE {_PURSE}",
                [(str(wei), "payee", *_fields(purse)) for purse, wei in claimed],
            )

    def put_transaction(self, transaction: StoredTransaction) -> None:
        """Keep a transaction; it replaces one of the same sender and nonce. Call before it is sent."""
        t = transaction
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    t.chain_id,
                    t.sender,
                    t.nonce,
                    t.kind,
                    t.hash,
                    t.raw,
                    t.state,
                    t.block,
                    str(t.gas_wei),
                    t.at_s,
                ),
            )

    def transaction(self, chain_id: int, sender: bytes, nonce: int) -> StoredTransaction | None:
        """Return our newest transaction of `sender` with `nonce`, or None."""
        with self._read() as db:
            row = db.execute(
                "SELECT * FROM transactions WHERE chain=? AND sender=? AND nonce=?", (chain_id, sender, nonce)
            ).fetchone()
        return None if row is None else _transaction(row)

    def newest_block(self, chain_id: int, sender: bytes) -> int:
        """Return the highest block in which a transaction of `sender` was seen; 0 if none was."""
        with self._read() as db:
            found = db.execute(
                "SELECT max(block) FROM transactions WHERE chain=? AND sender=? AND state='mined'",
                (chain_id, sender),
            ).fetchone()[0]
        return int(found or 0)

    def transactions(self, chain_id: int, sender: bytes, state: str | None = None) -> list[StoredTransaction]:
        """Return our transactions of `sender` (in `state`, if given), by nonce."""
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM transactions "
                "WHERE chain=? AND sender=? AND (? IS NULL OR state=?) ORDER BY nonce",
                (chain_id, sender, state, state),
            ).fetchall()
        return [_transaction(row) for row in rows]

    def add_earnings(self, earnings: DayEarnings) -> None:
        """Add to what a neighbour brought in on a day."""
        with self._write() as db:
            _add_earnings(db, earnings)

    def earnings(self, first_day: int = 0, last_day: int = 2**31) -> list[DayEarnings]:
        """Return what came in from `first_day` to `last_day`, by day and neighbour."""
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM earnings WHERE day BETWEEN ? AND ? ORDER BY day, neighbour",
                (first_day, last_day),
            ).fetchall()
        return [DayEarnings(r[0], r[1], r[2], r[3], int(r[4]), int(r[5]), int(r[6])) for r in rows]

    def totals(self, domain: Domain) -> dict[str, float]:
        """Return what was earned, claimed, spent and paid for gas in all, in wei, nearly: for graphs only.

        SQLite adds them as floating point, since wei of some coins are more than its integers hold.
        """
        spent = sum(state.worth_wei for _, state, _ in self.purses("payer", domain))
        with self._read() as db:
            earned, claimed = db.execute(
                "SELECT TOTAL(CAST(earned_wei AS REAL)), TOTAL(CAST(claimed_wei AS REAL)) FROM earnings"
            ).fetchone()
            (gas,) = db.execute("SELECT TOTAL(CAST(gas_wei AS REAL)) FROM transactions").fetchone()
        return {"earned_wei": earned, "claimed_wei": claimed, "spent_wei": float(spent), "gas_wei": gas}

    def get_note(self, name: str) -> str | None:
        """Return a small text kept under `name` (a budget's memory, a block number), or None."""
        with self._read() as db:
            row = db.execute("SELECT value FROM meta WHERE name=?", (f"note {name}",)).fetchone()
        return None if row is None else str(row[0])

    def put_note(self, name: str, value: str) -> None:
        """Keep a small text under `name`."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note {name}", value))

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise LedgerError(f"The ledger {self._path} cannot be read: {error}.") from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise LedgerError(f"The ledger {self._path} cannot be written: {error}.") from error
                raise


_KEPT_BOOKS = 8
"""Books kept as evidence beside the newest, which alone is ever claimed."""
_PURSE = "side=? AND chain=? AND contract=? AND payer=? AND payee=?"


def _transaction(row: tuple[Any, ...]) -> StoredTransaction:
    r = row
    return StoredTransaction(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], int(r[8]), r[9])


def _add_earnings(db: sqlite3.Connection, e: DayEarnings) -> None:
    row = db.execute(
        "SELECT packets, tickets, earned_wei, claimed_wei, gas_wei FROM earnings WHERE day=? AND neighbour=?",
        (e.day, e.neighbour),
    ).fetchone() or (0, 0, "0", "0", "0")
    db.execute(
        "INSERT OR REPLACE INTO earnings VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            e.day,
            e.neighbour,
            row[0] + e.packets,
            row[1] + e.tickets,
            str(int(row[2]) + e.earned_wei),
            str(int(row[3]) + e.claimed_wei),
            str(int(row[4]) + e.gas_wei),
        ),
    )


def _sortable(number: int) -> bytes:
    """SQLite's integers end at 2^63 - 1, a peer's book numbers at 2^64 - 1."""
    return number.to_bytes(8, "big")


def _fields(purse: PurseKeyed) -> tuple[int, bytes, bytes, bytes]:
    return purse.domain.chain_id, purse.domain.contract, purse.payer, purse.payee
