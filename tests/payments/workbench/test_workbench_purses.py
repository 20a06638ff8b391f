"""A purse's whole life on a real node, by eth-brownie: deploy, pay, claim, unlock, withdraw, reorganise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from brownie import accounts, chain, project, reverts, web3

from payments.books import Book, Domain
from payments.chains import build_chain
from payments.digest import book_digest, domain_separator
from payments.keys import PurseKey

NOTICE = 3600
ETHER = 10**18
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def isolated(fn_isolation):
    """Everything is undone after each test."""


@pytest.fixture
def contracts():
    return project.get_loaded_projects()[0]


@pytest.fixture
def purses(contracts):
    return accounts[0].deploy(contracts.purses, NOTICE)


@pytest.fixture
def payer():
    key = PurseKey(b"\x21" * 32)
    account = accounts.add(key.secret.hex())
    accounts[1].transfer(account, 10 * ETHER)
    return key, account


def make_claim(purses, key, payee, index, number=1, base=0):
    domain = Domain(chain.id, bytes.fromhex(purses.address[2:]))
    words = build_chain(b"\x07" * 32, 100)
    book = Book(bytes.fromhex(payee.address[2:]), number, base, ETHER // 1000, 100, words[0])
    signature = key.sign(book_digest(domain_separator(domain), book))
    fields = (payee.address, number, base, book.value_wei, 100, words[0])
    return (
        "0x" + key.address.hex(),
        fields,
        index,
        words[index],
        signature[64],
        signature[:32],
        signature[32:64],
    )


def test_brownie_compiles_what_is_shipped(contracts):
    for name in ("purses", "registry"):
        shipped = json.loads((ROOT / "payments" / "contracts" / "artifacts" / f"{name}.json").read_text())
        container = getattr(contracts, name)
        assert "0x" + container.bytecode.removeprefix("0x") == shipped["bytecode"]
        names = [{e.get("name", e["type"]) for e in abi} for abi in (container.abi, shipped["abi"])]
        names = [found - {"constructor"} for found in names]
        assert names[0] == names[1]


def test_the_whole_life_of_a_purse(purses, payer):
    key, account = payer
    payee, stranger = accounts[2], accounts[3]
    purses.open(payee, {"from": account, "value": ETHER})
    claim = make_claim(purses, key, payee, 40)
    transaction = purses.claim(claim, {"from": stranger})
    assert transaction.events["Claimed"]["amount"] == 40 * ETHER // 1000
    with reverts("purses: nothing due"):
        purses.claim(claim, {"from": stranger})
    purses.unlock(payee, {"from": account})
    with reverts("vault: notice not over"):
        purses.withdraw(payee, {"from": account})
    purses.claim_many([claim, make_claim(purses, key, payee, 60)], {"from": stranger})
    chain.sleep(NOTICE)
    chain.mine()
    purses.withdraw(payee, {"from": account})
    assert purses.balance() == purses.earned(payee) == 60 * ETHER // 1000
    before = accounts[4].balance()
    purses.cash_out(accounts[4], purses.earned(payee), {"from": payee})
    assert accounts[4].balance() - before == 60 * ETHER // 1000
    assert purses.balance() == 0


def test_a_reorganisation_drops_a_claim_and_it_can_be_sent_again(purses, payer):
    key, account = payer
    payee = accounts[2]
    purses.open(payee, {"from": account, "value": ETHER})
    claim = make_claim(purses, key, payee, 40)
    purses.claim(claim, {"from": accounts[3]})
    assert purses.earned(payee) == 40 * ETHER // 1000
    answer = web3.provider.make_request("anvil_reorg", [1, []])
    assert "error" not in answer, answer
    assert purses.earned(payee) == 0
    # From another account: brownie counts nonces itself and waits for ever for the one that was undone.
    purses.claim(claim, {"from": accounts[5]})
    assert purses.earned(payee) == 40 * ETHER // 1000


def test_the_registry_on_a_real_node(contracts):
    registry = accounts[0].deploy(contracts.registry, ETHER, 7200)
    entry = (b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, 2**80, 4433)
    with reverts("registry: stake too small"):
        registry.join(entry, {"from": accounts[2], "value": 1})
    registry.join(entry, {"from": accounts[2], "value": ETHER})
    assert registry.count() == 1
    assert registry.page(0, 10)[0][0] == accounts[2]
    registry.leave({"from": accounts[2]})
    with reverts("stakes: unbonding"):
        registry.take_stake({"from": accounts[2]})
    chain.sleep(7200)
    chain.mine()
    registry.take_stake({"from": accounts[2]})
    assert registry.balance() == 0
