"""A stateful machine over every function of both contracts, beside a model that says what must happen.

Payers and payees do as they like, in any order: books of any number, base and value, tickets right and wrong,
claims by anyone, unlocking, releasing, withdrawing, time. The model is a few lines of arithmetic; the
contract must agree with it call by call, and money in must equal money out plus balances after every step.

HOPFARE_CONTRACT_STEPS sets the least number of steps in all (CI: 10,000).
"""

from __future__ import annotations

import os
from collections import defaultdict

import boa
from contracts_kit import (
    ETHER,
    NOTICE,
    account,
    chain_of,
    domain_of,
    load,
    make_claim,
    text,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from payments.books import Book

STEPS = int(os.environ.get("HOPFARE_CONTRACT_STEPS", "1500"))
PER_RUN = 100
UNBONDING = 7200
STAKE = 50

payers = st.integers(0, 2)
payees = st.integers(0, 2)
amounts = st.integers(0, 1000)
counted = {"steps": 0}


class Contracts(RuleBasedStateMachine):
    """Purses 0..2 x 0..2; the model's dictionaries are keyed by (payer, payee)."""

    @initialize()
    def begin(self):
        self.purses = load("purses", NOTICE)
        self.registry = load("registry", STAKE, UNBONDING)
        self.domain = domain_of(self.purses)
        self.payers = [account(200 + n) for n in range(3)]
        self.payees = [account(300 + n) for n in range(3)]
        self.deposited = defaultdict(int)
        self.claimed = defaultdict(int)
        self.unlock_at = defaultdict(int)
        self.earned = defaultdict(int)
        self.signed = []
        self.money_in = self.money_out = 0
        self.stakes = {}
        self.leaving = {}

    def teardown(self):
        if hasattr(self, "purses"):
            self.everybody_gets_everything_back()

    def call(self, expected, function, *arguments, **options):
        """Call, and hold the contract to what the model expects: a reason, or None for success."""
        counted["steps"] += 1
        if expected is None:
            return function(*arguments, **options)
        with boa.reverts(expected):
            function(*arguments, **options)
        return None

    @property
    def now(self):
        return boa.env.timestamp

    def rest(self, key):
        return self.deposited[key] - self.claimed[key]

    @rule(payer=payers, payee=payees, amount=amounts)
    def opens(self, payer, payee, amount):
        who, whom = self.payers[payer], self.payees[payee]
        reason = None if amount else "vault: no money"
        self.call(reason, self.purses.open, text(whom.address), value=amount, sender=text(who.address))
        self.deposited[payer, payee] += amount
        self.money_in += amount

    @rule(payer=payers, payee=payees, giver=payees, amount=amounts)
    def tops_up(self, payer, payee, giver, amount):
        reason = None if amount else "vault: no money"
        people = (text(self.payers[payer].address), text(self.payees[payee].address))
        giver = text(self.payees[giver].address)
        self.call(reason, self.purses.top_up, *people, value=amount, sender=giver)
        self.deposited[payer, payee] += amount
        self.money_in += amount

    @rule(
        payer=payers,
        payee=payees,
        number=st.integers(0, 3),
        base=amounts,
        value=st.sampled_from([0, 1, 7, 100, 2**96 - 1]),
        length=st.sampled_from([0, 1, 5, 40, 1024, 1025]),
    )
    def signs(self, payer, payee, number, base, value, length):
        """Any book at all, also several with one number, and totals that go back."""
        seed = bytes((payer, payee, number)).ljust(32, b"\x05")
        book = Book(self.payees[payee].address, number, base, value, length, chain_of(seed, length)[0])
        self.signed.append((payer, payee, book, seed))

    def pick(self, data):
        """A signed book, a ticket of it, and perhaps one thing wrong; return the claim and the outcome."""
        payer, payee, book, seed = data.draw(st.sampled_from(self.signed))
        words = chain_of(seed, book.length)
        index = data.draw(st.sampled_from(sorted({0, 1, min(3, book.length), book.length, book.length + 1})))
        word = words[min(index, book.length)]
        wrong = data.draw(st.sampled_from(["", "", "", "word", "signer", "payee", "payer"]))
        claim = make_claim(self.domain, self.payers[payer], book, index, word)
        key = (payer, payee)
        reason = None
        if wrong == "word":
            claim = (*claim[:3], b"\x66" * 32, *claim[4:])
            reason = 4
        elif wrong == "signer":
            thief = self.payers[(payer + 1) % 3]
            claim = make_claim(self.domain, thief, book, index, word, payer=self.payers[payer].address)
            reason = 3
        elif wrong == "payee":
            fields = (text(self.payees[(payee + 1) % 3].address), *claim[1][1:])
            claim = (claim[0], fields, *claim[2:])
            reason = 3
        elif wrong == "payer":
            claim = (text(self.payers[(payer + 1) % 3].address), *claim[1:])
            reason = 3
        if index > book.length or book.length > 1024:
            reason = 1
        worth = min(book.worth_wei(index), self.deposited[key])
        due = worth - self.claimed[key]
        if reason is None and due <= 0:
            reason = 2
        return claim, key, due if reason is None else 0, reason

    def pays(self, key, due):
        self.claimed[key] += due
        self.earned[key[1]] += due

    @rule(data=st.data(), caller=payees)
    def claims(self, data, caller):
        if not self.signed:
            return
        claim, key, due, reason = self.pick(data)
        texts = {1: "bad index", 2: "nothing due", 3: "bad signature", 4: "bad word"}
        expected = None if reason is None else "purses: " + texts[reason]
        self.call(expected, self.purses.claim, claim, sender=text(self.payees[caller].address))
        self.pays(key, due)

    @rule(data=st.data(), count=st.integers(0, 4), caller=payers)
    def claims_many(self, data, count, caller):
        if not self.signed:
            return
        claims, reasons = [], []
        for _ in range(count):
            claim, key, due, reason = self.pick(data)
            self.pays(key, due)
            claims.append(claim)
            if reason is not None:
                reasons.append(reason)
        self.call(None, self.purses.claim_many, claims, sender=text(self.payers[caller].address))
        logs = self.purses.get_logs()
        assert [e.reason for e in logs if type(e).__name__ == "Skipped"] == reasons

    @rule(payer=payers, payee=payees)
    def unlocks(self, payer, payee):
        key = (payer, payee)
        reason = None
        if not self.rest(key):
            reason = "vault: nothing to unlock"
        elif self.unlock_at[key]:
            reason = "vault: already unlocking"
        people = text(self.payees[payee].address), text(self.payers[payer].address)
        self.call(reason, self.purses.unlock, people[0], sender=people[1])
        if reason is None:
            self.unlock_at[key] = self.now + NOTICE

    @rule(payer=payers, payee=payees)
    def releases(self, payer, payee):
        key = (payer, payee)
        reason = None if self.rest(key) else "vault: nothing to release"
        people = text(self.payers[payer].address), text(self.payees[payee].address)
        self.call(reason, self.purses.release, people[0], sender=people[1])
        if reason is None:
            self.unlock_at[key] = self.now

    @rule(payer=payers, payee=payees)
    def withdraws(self, payer, payee):
        key = (payer, payee)
        reason = None
        if not self.unlock_at[key]:
            reason = "vault: locked"
        elif self.now < self.unlock_at[key]:
            reason = "vault: notice not over"
        who = text(self.payers[payer].address)
        before = boa.env.get_balance(who)
        self.call(reason, self.purses.withdraw, text(self.payees[payee].address), sender=who)
        got = boa.env.get_balance(who) - before
        if reason is None:
            assert got == self.rest(key)
            self.money_out += got
            self.deposited[key] = self.claimed[key]
            self.unlock_at[key] = 0
        else:
            assert got == 0

    @rule(payee=payees, amount=amounts, to=payers)
    def cashes_out(self, payee, amount, to):
        reason = None
        if not amount:
            reason = "earnings: no amount"
        elif amount > self.earned[payee]:
            reason = "earnings: not earned"
        who, whom = text(self.payees[payee].address), text(self.payers[to].address)
        self.call(reason, self.purses.cash_out, whom, amount, sender=who)
        if reason is None:
            self.earned[payee] -= amount
            self.money_out += amount

    @rule(seconds=st.sampled_from([1, 59, NOTICE // 2, NOTICE, UNBONDING]))
    def waits(self, seconds):
        counted["steps"] += 1
        boa.env.time_travel(seconds=seconds)

    @rule(payee=payees, stake=st.sampled_from([0, STAKE - 1, STAKE, 80]), number=st.integers(0, 2))
    def joins(self, payee, stake, number):
        reason = None
        if payee in self.leaving:
            reason = "stakes: unbonding"
        elif self.stakes.get(payee, 0) + stake < STAKE:
            reason = "registry: stake too small"
        elif payee in self.stakes:
            reason = "entries: listed already"
        elif number == 0:
            reason = "entries: no identity"
        entry = (bytes((number,)) * 32, b"\1" * 32, b"\2" * 32, 7, 9)
        who = text(self.payees[payee].address)
        self.call(reason, self.registry.join, entry, value=stake, sender=who)
        if reason is None:
            self.stakes[payee] = stake

    @rule(payee=payees, amount=amounts)
    def adds_stake(self, payee, amount):
        reason = None if payee in self.stakes else "registry: not listed"
        who = text(self.payees[payee].address)
        self.call(reason, self.registry.add_stake, value=amount, sender=who)
        if reason is None:
            self.stakes[payee] += amount

    @rule(payee=payees)
    def leaves(self, payee):
        reason = None if payee in self.stakes else "entries: not listed"
        self.call(reason, self.registry.leave, sender=text(self.payees[payee].address))
        if reason is None:
            self.leaving[payee] = (self.stakes.pop(payee), self.now + UNBONDING)

    @rule(payee=payees)
    def takes_stake(self, payee):
        reason = None
        if payee not in self.leaving:
            reason = "stakes: bound"
        elif self.now < self.leaving[payee][1]:
            reason = "stakes: unbonding"
        who = text(self.payees[payee].address)
        before = boa.env.get_balance(who)
        self.call(reason, self.registry.take_stake, sender=who)
        expected = self.leaving.pop(payee)[0] if reason is None else 0
        assert boa.env.get_balance(who) - before == expected

    @invariant()
    def money_in_is_money_out_and_balances(self):
        if not hasattr(self, "purses"):
            return
        held = sum(self.deposited.values()) - sum(self.claimed.values()) + sum(self.earned.values())
        balance = boa.env.get_balance(self.purses.address)
        assert balance == held == self.money_in - self.money_out
        staked = sum(self.stakes.values()) + sum(amount for amount, _ in self.leaving.values())
        assert boa.env.get_balance(self.registry.address) == staked

    @rule(payer=payers, payee=payees)
    def the_model_agrees(self, payer, payee):
        counted["steps"] += 1
        key = (payer, payee)
        people = text(self.payers[payer].address), text(self.payees[payee].address)
        assert tuple(self.purses.purse(*people)) == (
            self.deposited[key],
            self.claimed[key],
            self.unlock_at[key],
        )
        assert self.claimed[key] <= self.deposited[key]
        assert self.purses.earned(people[1]) == self.earned[payee]
        assert self.registry.count() == len(self.stakes)
        assert {row[0] for row in self.registry.page(0, 10)} == {
            text(self.payees[n].address) for n in self.stakes
        }

    def everybody_gets_everything_back(self):
        """Whatever happened: payers get every rest after notice, payees all they earned; nothing is left."""
        for (payer, payee), unlock_at in list(self.unlock_at.items()):
            if not unlock_at and self.rest((payer, payee)):
                self.unlocks(payer, payee)
        for payer in range(3):
            for payee in range(3):
                if self.rest((payer, payee)) and not self.unlock_at[payer, payee]:
                    self.unlocks(payer, payee)
        boa.env.time_travel(seconds=NOTICE)
        for payer in range(3):
            for payee in range(3):
                if self.rest((payer, payee)):
                    self.withdraws(payer, payee)
        for payee in range(3):
            if self.earned[payee]:
                self.cashes_out(payee, self.earned[payee], 0)
        assert boa.env.get_balance(self.purses.address) == 0
        assert self.money_in == self.money_out


def test_both_contracts_against_the_model():
    counted["steps"] = 0
    rounds = 0
    while counted["steps"] < STEPS and rounds < 20:
        rounds += 1
        with boa.env.anchor():
            run_state_machine_as_test(
                Contracts,
                settings=settings(
                    max_examples=max(5, STEPS // PER_RUN),
                    stateful_step_count=PER_RUN,
                    deadline=None,
                    print_blob=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
    print(f"{counted['steps']} steps in {rounds} rounds")
    assert counted["steps"] >= STEPS
    assert ETHER == 10**18
