"""Every rule of the registry: one use that works and one that is refused."""

from __future__ import annotations

import boa
import pytest
from contracts_kit import ETHER, account, deployer, load, text

UNBONDING = 7 * 86400


def entry(number: int = 1, port: int = 4433):
    return (
        number.to_bytes(32, "big"),
        b"\x0a" * 32,
        b"\x0b" * 32,
        int.from_bytes(b"\x00" * 10 + b"\xff\xff" + bytes((192, 0, 2, number % 256)), "big"),
        port,
    )


@pytest.fixture
def registry(world):
    return load("registry", ETHER, UNBONDING)


def join(registry, number, stake=ETHER):
    who = text(account(number).address)
    registry.join(entry(number), value=stake, sender=who)
    return who


def test_the_terms_have_bounds(world):
    for stake, unbonding, reason in (
        (0, 60, "registry: bad stake"),
        (1, 59, "registry: bad unbonding"),
        (1, 365 * 86400 + 1, "registry: bad unbonding"),
    ):
        with boa.reverts(reason):
            deployer("registry").deploy(stake, unbonding)
    assert load("registry", 1, 60).UNBONDING() == 60


def test_joining_needs_the_stake_an_identity_and_a_port(registry):
    who = text(account(5).address)
    with boa.reverts("registry: stake too small"):
        registry.join(entry(5), value=ETHER - 1, sender=who)
    with boa.reverts("entries: no identity"):
        registry.join(entry(0), value=ETHER, sender=who)
    with boa.reverts("entries: no port"):
        registry.join(entry(5, port=0), value=ETHER, sender=who)
    registry.join(entry(5), value=ETHER, sender=who)
    with boa.reverts("entries: listed already"):
        registry.join(entry(6), value=ETHER, sender=who)
    assert registry.count() == 1
    assert tuple(registry.entry_of(who)) == entry(5)
    assert tuple(registry.stake_of(who)) == (ETHER, 0)


def test_nobody_can_take_anothers_place_by_its_identity(registry):
    squatter, owner = join(registry, 1), text(account(2).address)
    registry.join(entry(1), value=ETHER, sender=owner)
    assert registry.count() == 2
    assert registry.entry_of(squatter)[0] == registry.entry_of(owner)[0]


def test_adding_stake_and_changing_the_entry_is_for_the_listed(registry):
    stranger = text(account(9).address)
    with boa.reverts("registry: not listed"):
        registry.add_stake(value=1, sender=stranger)
    with boa.reverts("entries: not listed"):
        registry.change(entry(9), sender=stranger)
    who = join(registry, 1)
    registry.add_stake(value=5, sender=who)
    registry.change(entry(77), sender=who)
    assert tuple(registry.stake_of(who)) == (ETHER + 5, 0)
    assert tuple(registry.entry_of(who)) == entry(77)
    with boa.reverts("entries: no port"):
        registry.change(entry(77, port=0), sender=who)


def test_leaving_and_the_unbonding_time(registry):
    who = join(registry, 1)
    with boa.reverts("stakes: bound"):
        registry.take_stake(sender=who)
    registry.leave(sender=who)
    assert registry.count() == 0
    assert tuple(registry.entry_of(who)) == (b"\0" * 32, b"\0" * 32, b"\0" * 32, 0, 0)
    with boa.reverts("entries: not listed"):
        registry.leave(sender=who)
    with boa.reverts("stakes: unbonding"):
        registry.join(entry(1), value=ETHER, sender=who)
    boa.env.time_travel(seconds=UNBONDING - 1)
    with boa.reverts("stakes: unbonding"):
        registry.take_stake(sender=who)
    boa.env.time_travel(seconds=1)
    before = boa.env.get_balance(who)
    registry.take_stake(sender=who)
    assert boa.env.get_balance(who) - before == ETHER
    assert boa.env.get_balance(registry.address) == 0
    with boa.reverts("stakes: bound"):
        registry.take_stake(sender=who)
    registry.join(entry(1), value=ETHER, sender=who)
    assert registry.count() == 1


def test_pages_show_everybody_once(registry):
    people = {join(registry, n) for n in range(1, 8)}
    leaver = text(account(3).address)
    registry.leave(sender=leaver)
    people.remove(leaver)
    found = [row for first in range(0, 9, 2) for row in registry.page(first, 2)]
    assert {row[0] for row in found} == people
    assert len(found) == len(people)
    assert all(tuple(row[1]) == tuple(registry.entry_of(row[0])) for row in found)
    assert all(row[2] == ETHER for row in found)
    assert len(registry.page(0, 2**256 - 1)) == 6
    assert registry.page(6, 10) == []
    assert registry.page(2**256 - 1, 100) == []


def test_a_stake_too_large_to_keep_is_refused(registry):
    who = text(account(4).address)
    boa.env.set_balance(who, 2**130)
    with boa.reverts("stakes: too much money"):
        registry.join(entry(4), value=2**128, sender=who)


REFUSER = """
# pragma version 0.4.3
struct Entry:
    identity: bytes32
    endorsement_r: bytes32
    endorsement_s: bytes32
    ip: uint128
    port: uint16

interface Registry:
    def join(entry: Entry): payable
    def leave(): nonpayable
    def take_stake(): nonpayable

target: Registry
again: bool

@deploy
def __init__(target: address):
    self.target = Registry(target)

@payable
@external
def join(entry: Entry):
    extcall self.target.join(entry, value=msg.value)

@external
def leave():
    extcall self.target.leave()

@external
def take(again: bool):
    self.again = again
    extcall self.target.take_stake()

@payable
@external
def __default__():
    if self.again:
        extcall self.target.take_stake()
"""


def test_a_stake_cannot_be_taken_twice_in_one_call(registry):
    thief = boa.loads(REFUSER, registry.address)
    who = join(registry, 1)
    thief.join(entry(2), value=ETHER, sender=who)
    thief.leave()
    boa.env.time_travel(seconds=UNBONDING)
    with boa.reverts():
        thief.take(True)
    thief.take(False)
    assert boa.env.get_balance(thief.address) == ETHER
    assert boa.env.get_balance(registry.address) == ETHER
