"""What can be bought: weights from capacity, quality, stake, price and chance, exactly."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.candidates import Candidate, Constraints, Position
from circuits.path_index import PathIndex
from circuits.path_weights import (
    CHANCE_SHARE,
    MEASURED_HEADROOM,
    OPERATOR_SHARE,
    PRICE_BEND,
    share_weights,
)


class Everything:
    def allows(self, _port):
        return True


def exit_relay(number, network=None, **changes):
    values = {
        "capacity_bytes_per_s": 10**7,
        "stake_wei": 10**18,
        "payee": number.to_bytes(20, "big"),
        **changes,
    }
    return Candidate(
        number.to_bytes(2, "big") * 16,
        bytes(32),
        ((f"10.{number if network is None else network}.{number // 250}.1", 1),),
        True,
        True,
        Everything(),
        **values,
    )


def shares(candidates, position=Position.EXIT):
    found = PathIndex(candidates).select(position, Constraints())
    parts = {entry.candidate.node_id: part for entry, part in found.shares()}
    assert sum(parts.values()) == pytest.approx(1.0)
    return parts


def share_of(candidates, mine):
    parts = shares([*candidates, *mine])
    return sum(parts[candidate.node_id] for candidate in mine)


HONEST = [exit_relay(number) for number in range(1, 41)]


def test_a_claim_counts_for_nothing_until_it_was_seen():
    """Nobody gets more than the usual relay by saying a number."""
    usual = share_of(HONEST, [exit_relay(100)])
    assert share_of(HONEST, [exit_relay(100, capacity_bytes_per_s=2**50)]) == pytest.approx(usual)
    assert share_of(HONEST, [exit_relay(100, capacity_bytes_per_s=10**6)]) < usual, "a small one is believed"
    seen = exit_relay(100, capacity_bytes_per_s=2**50, measured_bytes_per_s=10**7, stake_wei=10**20)
    assert share_of(HONEST, [seen]) > 2 * usual
    false = exit_relay(100, capacity_bytes_per_s=10**8, measured_bytes_per_s=10**5)
    assert 0.1 * usual < share_of(HONEST, [false]) < 0.5 * usual
    assert MEASURED_HEADROOM > 1


def test_stake_alone_and_capacity_alone_buy_nothing():
    usual = share_of(HONEST, [exit_relay(100)])
    assert share_of(HONEST, [exit_relay(100, stake_wei=10**24)]) == pytest.approx(usual)
    large = {"capacity_bytes_per_s": 10**9, "measured_bytes_per_s": 10**9}
    assert share_of(HONEST, [exit_relay(100, **large)]) == pytest.approx(usual)
    assert share_of(HONEST, [exit_relay(100, **large, stake_wei=5 * 10**18)]) > 2 * usual


def test_splitting_a_stake_gains_nothing_to_speak_of():
    whole = share_of(HONEST, [exit_relay(100 + n) for n in range(4)])
    split = share_of(HONEST, [exit_relay(100 + n, stake_wei=10**18 // 4) for n in range(16)])
    assert split < 1.35 * whole


def test_more_nodes_in_one_network_get_no_more_chance():
    networks = [*range(40), *[40] * 30]
    parts = share_weights([1.0] * 40 + [0.0] * 30, networks, list(range(70)), [1.0] * 70, [], 1.0)
    assert sum(parts[40:]) == pytest.approx(CHANCE_SHARE / 41)


def test_a_low_price_is_worth_half_more_at_most():
    priced = [exit_relay(n, price_wei_per_packet=100) for n in range(1, 41)]
    usual = share_of(priced, [exit_relay(100, price_wei_per_packet=100)])
    assert usual < share_of(priced, [exit_relay(100)]) < (1 + PRICE_BEND) * usual * 1.01
    assert share_of(priced, [exit_relay(100, price_wei_per_packet=10**9)]) == pytest.approx(usual)


@pytest.mark.parametrize("names", [{"payee": b"e" * 20}, {"operator": "evil"}, {"family": "evil"}])
def test_no_operator_gets_more_than_a_tenth(names):
    names = {"payee": b"", **names}
    evil = [
        exit_relay(100 + n, capacity_bytes_per_s=10**9, measured_bytes_per_s=10**9, stake_wei=10**20, **names)
        for n in range(100)
    ]
    assert share_of(HONEST, evil) < 1.02 * OPERATOR_SHARE


def test_no_network_gets_more_than_a_tenth():
    evil = [
        exit_relay(100 + n, network=200, measured_bytes_per_s=10**9, stake_wei=10**20) for n in range(100)
    ]
    assert share_of(HONEST, evil) < 1.05 * OPERATOR_SHARE


def test_in_a_test_network_on_one_machine_all_are_alike():
    everyone = [exit_relay(n, network=1) for n in range(1, 5)]
    assert all(part == pytest.approx(0.25) for part in shares(everyone).values())


columns = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0, 1e6), min_size=n, max_size=n),
        st.lists(st.integers(0, n), min_size=n, max_size=n),
        st.lists(st.integers(0, n), min_size=n, max_size=n),
        st.lists(st.floats(0.01, 1), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.floats(0.02, 1),
    )
)


@settings(print_blob=True, deadline=None)
@given(columns)
def test_parts_are_parts_and_nobody_is_left_out(given_columns):
    weights, networks, operators, backing, exits, spare = given_columns
    parts = share_weights(weights, networks, operators, backing, exits, spare)
    assert len(parts) == len(weights)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= 1 + 1e-9
    by_operator = {}
    for operator, part in zip(operators, parts, strict=True):
        by_operator[operator] = by_operator.get(operator, 0.0) + part
    most = max(OPERATOR_SHARE, 2 / len(by_operator))
    assert max(by_operator.values()) <= most * sum(parts) * (1 + 1e-6)


def test_an_index_made_from_another_weighs_the_same():
    rng = random.Random(3)
    everyone = [exit_relay(n, quality=rng.random(), measured_bytes_per_s=n * 10**5) for n in range(1, 50)]
    first = PathIndex(everyone)
    again = PathIndex(everyone, first)
    wanted = Constraints()
    assert [part for _, part in first.select(Position.EXIT, wanted).shares()] == [
        part for _, part in again.select(Position.EXIT, wanted).shares()
    ]
    moved = exit_relay(1, network=99)
    assert PathIndex([moved, *everyone[1:]], first).by_id[moved.node_id].networks == (b"\x0a\x63",)
