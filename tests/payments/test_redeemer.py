"""When to claim (pure), and the task on a real development chain."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from payments import abi
from payments.abi import OnChainPurse
from payments.books import Book, Claim, Domain, SignedBook, Ticket
from payments.chains import build_chain
from payments.digest import book_digest, domain_separator
from payments.errors import LedgerError
from payments.fees import AVERAGE_HALF_LIFE_S, Fees, GasAverage, choose_fees
from payments.io.chain.client import Block, Chain
from payments.io.chain.deploy import deploy
from payments.io.chain.devchain import advance_time, open_devchain
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger, PurseKeyed, Side
from payments.io.redeemer import Redeemer, RoundResult
from payments.keys import PurseKey
from payments.redeemer import IDLE_READS, MAX_BATCH, Claimable, RedeemLimits, choose_reads, decide
from payments.state import PurseState

GWEI = 10**9
ETHER = 10**18
LIMITS = RedeemLimits(worth_multiple=20, deadline_margin_s=3600, max_batch=3)


def claimable(
    number: int, due: int, index: int = 0, unlock_at_s: int = 0, deposited: int = ETHER
) -> Claimable:
    book = Book(b"\x02" * 20, 1, due, 1, 1024, bytes(32))
    claim = Claim(bytes([number]) * 20, SignedBook(book, bytes(65)), Ticket(1, index, bytes(32)))
    return Claimable(claim, deposited, 0, unlock_at_s)


def payers(batches: list[object]) -> list[list[int]]:
    return [[c.payer[0] for c in b.claims] for b in batches]  # type: ignore[attr-defined]


def test_nothing_is_claimed_that_costs_more_than_it_brings() -> None:
    cost = 64_000 * GWEI
    assert decide([], GWEI, False, 0, LIMITS) == []
    assert decide([claimable(1, 19 * cost)], GWEI, False, 0, LIMITS) == []
    assert payers(decide([claimable(1, 20 * cost)], GWEI, False, 0, LIMITS)) == [[1]]
    assert decide([claimable(1, 20 * cost, deposited=5)], GWEI, False, 0, LIMITS) == [], (
        "no deposit, no claim"
    )


def test_a_batch_shares_the_fixed_cost() -> None:
    share = 17_000 * GWEI * 20
    many = [claimable(n, share * 3) for n in range(1, 8)]
    assert decide(many[:1], GWEI, False, 0, LIMITS) == [], "one alone is not worth a transaction"
    batches = decide(many, GWEI, False, 0, LIMITS)
    assert [len(b.claims) for b in batches] == [3, 3, 1]
    assert decide([*many, claimable(9, share // 2)], GWEI, False, 0, LIMITS) == batches, "dust stays out"


def test_dear_gas_waits_but_never_past_a_deadline() -> None:
    rich = claimable(1, ETHER)
    assert decide([rich], GWEI, True, 0, LIMITS) == []
    leaving = claimable(2, ETHER, unlock_at_s=10_000)
    assert decide([leaving], GWEI, True, 6000, LIMITS) == [], "the deadline is far"
    batches = decide([leaving], GWEI, True, 6500, LIMITS)
    assert payers(batches) == [[2]]
    assert batches[0].urgent
    assert payers(decide([leaving], GWEI, True, 10**9, LIMITS)) == [[2]], "late is better than never"
    poor = claimable(3, 10_000 * GWEI, unlock_at_s=10_000)
    assert decide([poor], GWEI, False, 9999, LIMITS) == [], "not even then at a loss"


def test_urgent_claims_take_the_others_along() -> None:
    purses = [
        claimable(1, ETHER),
        claimable(2, ETHER // 2, unlock_at_s=5000),
        claimable(3, ETHER, unlock_at_s=4000),
    ]
    batches = decide(purses, GWEI, False, 3000, LIMITS)
    assert payers(batches) == [[3, 2, 1]]
    assert payers(decide(purses, GWEI, True, 3000, LIMITS)) == [[3, 2]]


@given(
    st.lists(
        st.builds(
            claimable,
            st.integers(1, 200),
            st.integers(0, ETHER),
            st.integers(0, 1024),
            st.sampled_from([0, 10, 10**6]),
            st.integers(0, ETHER),
        ),
        max_size=12,
    ),
    st.integers(0, 10**12),
    st.booleans(),
    st.integers(0, 2 * 10**6),
)
def test_every_batch_brings_more_than_its_claims_cost(
    purses: list[Claimable], price: int, dear: bool, now: int
) -> None:
    batches = decide(purses, price, dear, now, LIMITS)
    due = {id(p.claim): p for p in purses}
    for batch in batches:
        assert 0 < len(batch.claims) <= min(LIMITS.max_batch, MAX_BATCH)
        found = [due[id(c)] for c in batch.claims]
        assert all(p.due_wei > p.gas * price for p in found)
        assert batch.due_wei == sum(p.due_wei for p in found)
        assert batch.gas_limit > sum(p.gas for p in found)
    sent = [id(c) for b in batches for c in b.claims]
    assert len(sent) == len(set(sent))
    for purse in purses:
        near = purse.unlock_at_s and now >= purse.unlock_at_s - LIMITS.deadline_margin_s
        if near and purse.due_wei > purse.gas * price:
            assert id(purse.claim) in sent, "an unlock deadline is never missed"


def owed(number: int, due: int, claimed: int = 0) -> tuple[Claim, int]:
    claim = claimable(0, due).claim
    return replace(claim, payer=number.to_bytes(20, "big")), claimed


def test_dust_is_looked_at_a_few_purses_at_a_time_and_all_get_their_turn() -> None:
    dust = 17_000 * GWEI - 1
    purses = [owed(number, dust) for number in range(1000)]
    purses += [owed(2000, dust + 1), owed(2001, ETHER), owed(2002, ETHER, ETHER), owed(2003, 0)]
    watched = {purses[-1][0].payer}
    read_at: dict[bytes, int] = {}
    for number in range(11):
        places = choose_reads(purses, GWEI, watched, read_at)
        assert places[:3] == [1001, 1000, 1003], "worth it, just worth it, watched"
        assert len(places) == 3 + IDLE_READS
        read_at |= {purses[place][0].payer: number for place in places}
    assert len(read_at) == len(purses)
    assert choose_reads(purses, 0, (), {})[0] == 1001, "gas that costs nothing makes no dust"


def test_of_more_purses_than_can_be_looked_at_none_is_forgotten() -> None:
    purses = [owed(number, ETHER + number) for number in range(500)]
    read_at: dict[bytes, int] = {}
    for number in range(9):
        places = choose_reads(purses, GWEI, (), read_at, most=100)
        assert len(places) == len(set(places)) == 100
        assert places[:50] == list(range(499, 449, -1)), "the worthiest always"
        read_at |= {purses[place][0].payer: number for place in places}
    assert len(read_at) == len(purses)
    assert len(choose_reads(purses, GWEI, (), read_at, most=None)) == 500


@given(
    st.lists(st.tuples(st.integers(0, 10**14), st.integers(0, 10**14)), max_size=30),
    st.integers(0, 10**10),
    st.sampled_from([0, 10]),
)
def test_what_is_not_looked_at_would_not_have_been_claimed(
    amounts: list[tuple[int, int]], price: int, unlock_at_s: int
) -> None:
    purses = [owed(number, worth, claimed) for number, (worth, claimed) in enumerate(amounts)]
    chosen = set(choose_reads(purses, price, (), {})[: len(purses)])
    worth = {
        place for place, (claim, claimed) in enumerate(purses) if claim.worth_wei - claimed >= 17_000 * price
    }
    assert {place for place in worth if purses[place][0].worth_wei > purses[place][1]} <= chosen
    every = [Claimable(claim, ETHER, min(claimed, ETHER), unlock_at_s) for claim, claimed in purses]
    sent = {id(claim) for batch in decide(every, price, False, 5.0, LIMITS) for claim in batch.claims}
    assert sent <= {id(purses[place][0]) for place in chosen}


class FakeChain:
    """Counts requests; every purse has a deposit of one coin."""

    domain = Domain(31337, b"\xc0" * 20)

    def __init__(self) -> None:
        self.read: list[int] = []

    async def block(self) -> Block:
        return Block(1, bytes(32), 1000, GWEI)

    async def fees(self) -> Fees:
        return Fees(2 * GWEI, 1)

    async def purses(self, pairs: list[tuple[bytes, bytes]], confirmations: int = 0) -> list[OnChainPurse]:
        self.read.append(len(pairs))
        return [OnChainPurse(ETHER, 0, 0) for _ in pairs]


async def test_thousands_of_dust_purses_cost_few_reads(tmp_path: Path) -> None:
    """Somebody opens purses by the thousand, each with a ticket or two in it."""
    chain: Any = FakeChain()
    sender: Any = None
    payee = b"\x02" * 20
    with Ledger(tmp_path / "ledger") as ledger:
        states: list[tuple[Side, PurseKeyed, PurseState]] = []
        for number in range(3000):
            keyed = PurseKeyed(chain.domain, number.to_bytes(20, "big"), payee)
            ledger._generations["payee", *_key_fields(keyed)] = 0
            book = Book(payee, 1, 10 if number else ETHER // 10_000, 1, 1024, bytes(32))
            states.append(("payee", keyed, PurseState(SignedBook(book, bytes(65)), 1, bytes(32))))
        ledger.store_many(states)
        seen: list[bytes] = []
        redeemer = Redeemer(
            chain,
            sender,
            ledger,
            payee,
            replace(LIMITS, worth_multiple=10**6),
            lambda: 1000.0,
            on_purse=lambda payer, purse: seen.append(payer),
            watched=lambda: {(7).to_bytes(20, "big")},
        )
        for _ in range(3):
            await redeemer.round()
        assert chain.read == [2 + IDLE_READS] * 3
        assert [payer for payer in seen if payer == bytes(20)] == [bytes(20)] * 3
        assert seen[0] == bytes(20), "the worthiest first"
        assert len(set(seen)) == 2 + 3 * IDLE_READS


def _key_fields(keyed: PurseKeyed) -> tuple[object, ...]:
    return keyed.domain.chain_id, keyed.domain.contract, keyed.payer, keyed.payee


def test_fees_and_the_gas_average() -> None:
    assert choose_fees(100, [5, 1, 9]) == Fees(205, 5)
    assert choose_fees(0, []) == Fees(1, 1)
    fees = Fees(1000, 100).bumped()
    assert fees.max_wei >= 1100
    assert fees.tip_wei >= 110
    average = GasAverage()
    assert not average.is_dear(10**12)
    average.observe(100, 0)
    average.observe(300, AVERAGE_HALF_LIFE_S)
    assert average.average_wei == pytest.approx(200)
    assert average.is_dear(301)
    assert not average.is_dear(299)
    average.observe(10**9, -86400)
    assert average.average_wei == pytest.approx(200), "a clock that went back changes nothing"


async def test_a_purse_that_unlocks_is_claimed_before_it_is_empty(tmp_path: Path) -> None:
    """Ledger, chain and task together; the built-in chain, so it runs everywhere."""
    key, relay_key = PurseKey(b"\x31" * 32), PurseKey(b"\x32" * 32)
    with trio.fail_after(90):
        async with open_devchain(kind="pyrevm") as dev, Rpc([dev.url], dev.chain_id) as rpc:
            with Ledger(tmp_path / "ledger.db") as ledger:
                nowhere = Chain(rpc, Domain(dev.chain_id, b"\x01" * 20))
                bank = Sender(nowhere, dev.bank, ledger, time.time)
                deployment = await deploy(bank, nowhere, 86400, ETHER, 7200)
                chain = Chain(rpc, deployment.domain)
                for who in (key, relay_key):
                    await bank.wait(await bank.send(who.address, b"", kind="fund", value_wei=10 * ETHER))
                payer = Sender(chain, key, ledger, time.time)
                to = "0x" + relay_key.address.hex()
                sent = await payer.send(
                    deployment.purses, abi.encode_call("open(address)", to), kind="open", value_wei=ETHER
                )
                await payer.wait(sent)
                words = build_chain(b"\x44" * 32, 100)
                book = Book(relay_key.address, 1, 0, 10**12, 100, words[0])
                signed = SignedBook(book, key.sign(book_digest(domain_separator(deployment.domain), book)))
                keyed = PurseKeyed(deployment.domain, key.address, relay_key.address)
                ledger.load("payee", keyed)
                ledger.store("payee", keyed, PurseState(signed, 90, words[90]))
                seen = []
                redeemer = Redeemer(
                    chain,
                    Sender(chain, relay_key, ledger, time.time),
                    ledger,
                    relay_key.address,
                    replace(LIMITS, worth_multiple=100),
                    time.time,
                    confirmations=1,
                    on_purse=lambda who, purse: seen.append((who, purse)),
                )
                assert (await redeemer.round()).claims == 0, "not worth it yet"
                sent = await payer.send(
                    deployment.purses, abi.encode_call("unlock(address)", to), kind="unlock"
                )
                await payer.wait(sent)
                assert (await redeemer.round()).claims == 0, "there is time"
                await advance_time(rpc, 86400 - 1800)
                result = await redeemer.round()
                assert result.claims == 1
                assert result.claimed_wei == 90 * 10**12
                assert result.gas_wei > 0
                assert await chain.earned(relay_key.address) == 90 * 10**12
                assert seen[0][0] == key.address
                assert seen[-1][1].unlock_at_s > 0
                assert (await redeemer.round(force=True)).claims == 0, "nothing is claimed twice"
                [(_, claimed)] = ledger.claims(deployment.domain, relay_key.address)
                assert claimed == 90 * 10**12


async def test_a_ledger_that_is_not_written_ends_a_round_and_not_the_task(autojump_clock: object) -> None:
    nothing: Any = None
    redeemer = Redeemer(nothing, nothing, nothing, bytes(20), LIMITS, time.time, interval_s=1.0)
    rounds = []

    async def fail(force: bool = False) -> RoundResult:
        rounds.append(force)
        raise LedgerError("disk full")

    async def resumed() -> None:
        pass

    redeemer.round = fail  # type: ignore[method-assign]
    redeemer._finish_old = resumed  # type: ignore[method-assign]
    with trio.move_on_after(5.5):
        await redeemer.run()
    assert len(rounds) == 6
