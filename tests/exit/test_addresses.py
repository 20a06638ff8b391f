"""Leases of inner addresses: proposals, limits, and the rest after release."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from exit.addresses import (
    DNS_V4_PACKED,
    DNS_V6_PACKED,
    INNER_V4,
    INNER_V6,
    AddressPool,
    Lease,
    is_inner_v4,
    is_inner_v6,
    random_inner,
)

GOOD4, GOOD6 = bytes([100, 100, 7, 9]), bytes.fromhex("fd686f7066610007") + bytes(8)


def pool(**options: object) -> AddressPool:
    return AddressPool(random.Random(7).randbytes, **options)  # type: ignore[arg-type]


def test_a_fit_and_free_proposal_is_taken() -> None:
    addresses = pool()
    assert addresses.lease(GOOD4, GOOD6, 0.0) == Lease(GOOD4, GOOD6)
    second = addresses.lease(GOOD4, GOOD6, 0.0)
    assert second is not None
    assert second.v6 is not None
    assert second.v4 != GOOD4
    assert second.v6 != GOOD6
    assert is_inner_v4(second.v4)
    assert is_inner_v6(second.v6)


@pytest.mark.parametrize(
    "proposal",
    [
        b"",
        b"abc",
        b"\x01\x02\x03\x04",
        DNS_V4_PACKED,
        bytes([100, 64, 0, 77]),
        bytes([100, 65, 1, 0]),
        bytes([100, 65, 1, 255]),
        bytes([100, 128, 1, 1]),
        bytes(16),
        DNS_V6_PACKED,
        b"\xfd" * 16,
        bytes(5000),
    ],
)
def test_an_unfit_proposal_is_replaced(proposal: bytes) -> None:
    lease = pool().lease(proposal, proposal, 0.0)
    assert lease is not None
    assert lease.v6 is not None
    assert is_inner_v4(lease.v4)
    assert is_inner_v6(lease.v6)


def test_released_addresses_rest_for_two_minutes() -> None:
    addresses = pool()
    lease = addresses.lease(GOOD4, GOOD6, 0.0)
    assert lease is not None
    addresses.release(lease, 10.0)
    addresses.release(lease, 10.0)
    assert len(addresses) == 0
    early = addresses.lease(GOOD4, GOOD6, 129.9)
    assert early is not None
    assert early.v4 != GOOD4
    assert addresses.lease(GOOD4, GOOD6, 130.0) == Lease(GOOD4, GOOD6)


def test_a_clock_that_jumps_back_holds_nothing_for_ever() -> None:
    addresses = pool()
    lease = addresses.lease(GOOD4, GOOD6, 1e9)
    assert lease is not None
    addresses.release(lease, 1e9)
    assert addresses.lease(GOOD4, GOOD6, 5.0) == Lease(GOOD4, GOOD6)


def test_a_stale_lease_frees_nobody_else() -> None:
    addresses = pool(quarantine_s=0.0)
    first = addresses.lease(GOOD4, GOOD6, 0.0)
    assert first is not None
    addresses.release(first, 0.0)
    second = addresses.lease(GOOD4, GOOD6, 1.0)
    assert second == first
    addresses.release(first, 2.0)
    assert len(addresses) == 2


def test_limits() -> None:
    addresses = pool(limit=3, resting_limit=4)
    leases = [addresses.lease(b"", b"", 0.0) for _ in range(5)]
    assert [lease is not None for lease in leases] == [True] * 3 + [False] * 2
    for _ in range(100):
        for lease in leases:
            if lease is not None:
                addresses.release(lease, 0.0)
        leases = [addresses.lease(b"", b"", 0.0) for _ in range(3)]
        assert len(addresses._resting) <= 4


def test_without_ipv6() -> None:
    lease = pool(has_ipv6=False).lease(GOOD4, GOOD6, 0.0)
    assert lease == Lease(GOOD4, None)


@given(st.integers(0, 2**32))
def test_random_proposals_are_fit(seed: int) -> None:
    random_source = random.Random(seed)
    v4 = random_inner(random_source.randbytes, 4)
    v6 = random_inner(random_source.randbytes, 6)
    assert is_inner_v4(v4)
    assert is_inner_v6(v6)
    assert int.from_bytes(v4, "big") in range(int(INNER_V4[0]), int(INNER_V4[-1]))
    assert int(INNER_V6[0]) < int.from_bytes(v6, "big") < int(INNER_V6[-1])
    assert v4 != DNS_V4_PACKED


class Leases(RuleBasedStateMachine):
    """No address is ever held twice, or again before it has rested."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool(limit=6)
        self.now = 0.0
        self.live: list[Lease] = []
        self.released: dict[bytes, float] = {}

    @rule(target=held, last=st.integers(1, 4))
    def lease(self, last: int) -> Lease | None:
        found = self.pool.lease(bytes([100, 99, 1, last]), GOOD6[:15] + bytes([last]), self.now)
        if found is not None:
            self.live.append(found)
            for address in (found.v4, found.v6):
                assert address is not None
                assert self.released.get(address, -1000.0) + 120 <= self.now
        return found

    @rule(lease=held)
    def release(self, lease: Lease | None) -> None:
        for index, live in enumerate(self.live):
            if live is lease:
                assert lease is not None
                del self.live[index]
                self.pool.release(lease, self.now)
                for address in (lease.v4, lease.v6):
                    assert address is not None
                    self.released[address] = self.now
                return

    @rule(seconds=st.sampled_from([1, 60, 121]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def no_address_twice(self) -> None:
        every = [address for lease in self.live for address in (lease.v4, lease.v6)]
        assert len(set(every)) == len(every) == len(self.pool)


TestLeases = Leases.TestCase
