"""Rows of the market: filters, order, what is shown; the choices' names, values and file."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.quality import QualityBook
from overlay.choices import (
    CHOICES,
    apply_choice,
    decode_choices,
    encode_choices,
    find_name,
    reset_choice,
    show_choices,
)
from overlay.config.model import Config
from overlay.descriptor import Address, Descriptor, sign_descriptor
from overlay.errors import ConfigError, DecodeError
from overlay.identity import Identity
from overlay.market import SORTS, Wanted, choose_rows, list_rows, shorten_rows

NOW = int(time.time())
COIN = 10**18


def node(number, *, is_exit=False, **changes):
    identity = Identity(bytes([number]) * 32)
    values = {
        "identity": identity.node_id,
        "sequence": 1,
        "published_s": NOW,
        "expires_s": NOW + 3600,
        "addresses": (Address(f"10.{number}.0.1", 4433),),
        "onion_key": bytes([number]) * 32,
        "role_bits": 3 if is_exit else 1,
        "exit_policy_summary": "accept 80,443" if is_exit else "reject 1-65535",
        "suites": (1, 2),
        **changes,
    }
    return sign_descriptor(identity, Descriptor(**values))


NODES = [
    node(1, price_wei_per_packet=100, country="DE", payee=b"\xaa" * 20),
    node(2, price_wei_per_packet=50, country="NL", family="pears", capacity_bytes_per_s=10**7),
    node(3, is_exit=True, price_wei_per_packet=200, country="DE"),
    node(4, is_exit=True, price_wei_per_packet=10, country="FR", exit_policy_summary="accept 22"),
    node(5, price_wei_per_packet=1, expires_s=NOW + 10, published_s=NOW - 100),
]


def rows(book=None, unix_s=NOW + 60.0, stakes=None):
    return list_rows(NODES, book or QualityBook(), unix_s, stakes)


def numbers(found):
    order = [entry.descriptor.name for entry in NODES]
    return [order.index(row["name"]) + 1 for row in found]


def test_expired_descriptors_are_not_on_offer():
    assert numbers(rows()) == [1, 2, 3, 4]
    assert 5 in numbers(rows(unix_s=NOW + 1.0))


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({}, [4, 2, 1, 3]),
        ({"role": "exit"}, [4, 3]),
        ({"role": "relay"}, [2, 1]),
        ({"countries": frozenset({"DE", "FR"})}, [4, 1, 3]),
        ({"most_wei_per_gb": 50 * 10**9 // 1384 + 1}, [4, 2]),
        ({"port": 443}, [3]),
        ({"port": 22}, [4]),
        ({"port": 25}, []),
        ({"operator": "0x" + "AA" * 20}, [1]),
        ({"operator": "Pears"}, [2]),
        ({"least_quality": 0.9}, [2]),
    ],
)
def test_filters(wanted, left):
    book = QualityBook()
    for _ in range(50):
        book.note_works([NODES[1].descriptor.identity], NOW)
    book.note_failed([NODES[0].descriptor.identity], NOW)
    assert numbers(choose_rows(rows(book), Wanted(**wanted))) == left


def test_orders_with_the_unknown_last():
    book = QualityBook()
    for number, works in ((0, 50), (2, 2)):
        for _ in range(works):
            book.note_works([NODES[number].descriptor.identity], NOW)
        book.note_round_trip([NODES[number].descriptor.identity], 0.2 - number / 20, NOW)
        book.note_rate([NODES[number].descriptor.identity], 1e6 * (number + 1), NOW)
    stakes = {NODES[1].descriptor.identity: 5 * COIN, NODES[3].descriptor.identity: 9 * COIN}
    found = rows(book, stakes=stakes)
    expected = {
        "price": [4, 2, 1, 3],
        "quality": [1, 3],
        "stake": [4, 2],
        "measured": [3, 1],
        "capacity": [2],
        "round-trip": [3, 1],
        "country": [1, 3, 4, 2],
    }
    for sort, first in expected.items():
        ordered = numbers(choose_rows(found, Wanted(), sort))
        assert sorted(ordered) == [1, 2, 3, 4]
        if sort == "country":
            assert set(ordered[:2]) == {1, 3}
        else:
            assert ordered[: len(first)] == first, sort
    assert set(expected) | {"name"} == set(SORTS)
    assert numbers(choose_rows(found, Wanted(), "price", 2)) == [4, 2]


def test_rows_have_prices_for_people_and_for_programs():
    (first,) = choose_rows(
        rows(stakes={NODES[0].descriptor.identity: 3 * COIN // 2}), Wanted(operator="pears")
    )
    assert first["price_wei_per_packet"] == 50
    assert first["price_per_gb"] == "0.000000000036127168"
    assert first["stake"] is None
    (shown,) = shorten_rows([first], "xDAI")
    assert shown["xDAI/GB"] == "3.613e-11"
    assert shown["quality"] == "new"
    (staked,) = choose_rows(
        rows(stakes={NODES[0].descriptor.identity: 3 * COIN // 2}), Wanted(operator="0x" + "aa" * 20)
    )
    assert (staked["stake_wei"], staked["stake"]) == (3 * COIN // 2, "1.5")


# --- choices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hops", "HOPS", "client.hops", "hops "])
def test_names_however_they_are_written(text):
    assert find_name(text) == "hops"
    assert find_name("budget_per_gb") == find_name("payments.budget_per_gb") == "max-price"
    assert find_name("exclude_countries") == "exclude-countries"


def test_every_choice_can_be_made_and_taken_back():
    name = Identity(b"\x07" * 32).name
    values = {
        "hops": "2",
        "exit-country": "de",
        "max-price": "0.05",
        "exits": name,
        "exit-operators": "pears,0x" + "ab" * 20,
        "guards": f"{name}",
        "guard-countries": "SE,FI",
        "guard-operators": "plums",
        "middles": name,
        "middle-countries": "NL",
        "middle-operators": "figs",
        "exclude": name,
        "exclude-countries": "XX",
        "exclude-operators": "0x" + "CD" * 20,
        "distinct-countries": "true",
        "probes-per-hour": "0",
    }
    assert set(values) == set(CHOICES)
    for choice, value in values.items():
        changed = apply_choice(Config(), choice, value)
        assert changed != Config(), choice
        assert show_choices(changed)[choice] not in (None, [], "", show_choices(Config())[choice])
        assert reset_choice(changed, Config(), choice) == Config()
        assert decode_choices(encode_choices({choice: value})) == {choice: value}
    shown = show_choices(apply_choice(Config(), "exclude-operators", values["exclude-operators"]))
    assert shown["exclude-operators"] == ["cd" * 20]


def test_an_empty_value_lifts_a_rule():
    german = apply_choice(Config(), "exit-country", "DE")
    assert apply_choice(german, "exit-country", "").client.exit_country == ""
    priced = apply_choice(Config(), "max-price", "1")
    assert apply_choice(priced, "max-price", "").payments.budget_per_gb_wei is None


@given(st.binary(max_size=200))
def test_garbage_choices_are_refused(data):
    try:
        choices = decode_choices(data)
    except DecodeError:
        return
    assert set(choices) <= set(CHOICES)


@pytest.mark.parametrize("data", [b'{"socks": "x"}', b'{"hops": 3}', b"[]", b" " * 300_000])
def test_wrong_choices_files_are_refused(data):
    with pytest.raises(DecodeError):
        decode_choices(data)


@given(st.text(max_size=30))
def test_no_name_raises_anything_but_a_sentence(text):
    try:
        assert find_name(text) in CHOICES
    except ConfigError as error:
        assert "cannot be changed" in str(error)
