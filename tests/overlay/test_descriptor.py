import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.descriptor import (
    FUTURE_TOLERANCE_S,
    MAX_DESCRIPTOR_BYTES,
    MAX_LIFETIME_S,
    MAX_MEMBERS,
    Address,
    Descriptor,
    Role,
    Staleness,
    decode_descriptor,
    find_staleness,
    is_usable_address,
    sign_descriptor,
)
from overlay.envelope import sign_envelope
from overlay.errors import DecodeError
from overlay.identity import Identity
from overlay.payee import prove_payee
from overlay.ports import PortSummary
from payments.keys import PurseKey

VECTORS = Path(__file__).parent.parent / "vectors" / "descriptor.json"
NOW_S = 1_800_000_000
NODE = Identity(b"n" * 32)
OTHER = Identity(b"o" * 32)
PAYEE = PurseKey(b"p" * 32)


def make(**changes):
    fields = {
        "identity": NODE.node_id,
        "sequence": 7,
        "published_s": NOW_S,
        "expires_s": NOW_S + 3600,
        "addresses": (Address("192.0.2.1", 4433), Address("2001:db8::1", 4433)),
        "onion_key": b"k" * 32,
    }
    return Descriptor(**{**fields, **changes})


def encode_unchecked(descriptor, identity=NODE, context=b"descriptor"):
    return sign_envelope(identity, context, msgspec.msgpack.encode(descriptor))


def test_what_a_node_signs_is_what_others_read():
    descriptor = make(
        previous_onion_key=b"p" * 32,
        role_bits=3,
        price_wei_per_packet=12,
        payee=PAYEE.address,
        payee_proof=prove_payee(PAYEE, NODE.node_id),
        members=(b"2" * 32, b"1" * 32),
        onion_key_made_s=NOW_S - 100,
        onion_key_period_s=86400,
        monthly_cap_bytes=10**12,
        is_draining=True,
        link_versions=(2, 1),
        exit_policy_summary="accept 80,443",
        has_ipv6=True,
        country="IS",
        family="north-wind",
        capacity_bytes_per_s=10**8,
        software_version="0.1.0",
        suites=(2, 1),
    )
    signed = sign_descriptor(NODE, descriptor)
    again = decode_descriptor(signed.encoded)
    assert again == signed
    assert again.descriptor == descriptor
    assert again.descriptor.name == NODE.name
    assert again.descriptor.roles == Role.RELAY | Role.EXIT
    assert again.ports == PortSummary(((80, 80), (443, 443)))
    assert [str(address) for address in again.descriptor.addresses] == [
        "192.0.2.1:4433",
        "[2001:db8::1]:4433",
    ]


def test_the_wire_form_stays_the_same():
    body = msgspec.msgpack.decode(msgspec.msgpack.decode(sign_descriptor(NODE, make()).encoded)[0])
    assert body == [
        2, NODE.node_id, 7, NOW_S, NOW_S + 3600, [["192.0.2.1", 4433], ["2001:db8::1", 4433]],
        b"k" * 32, b"", 1, 0, b"", "reject 1-65535", False, "", "", 0, "", [1, 2],
        b"", [], 0, 0, 0, False, [1],
    ]  # fmt: skip


def test_the_longest_descriptor_fits():
    signed = sign_descriptor(
        NODE,
        make(
            sequence=2**62,
            addresses=tuple(
                Address(f"2001:db8:1111:2222:3333:4444:5555:{i:x}666", 65535) for i in range(1, 9)
            ),
            previous_onion_key=b"p" * 32,
            role_bits=3,
            price_wei_per_packet=10**18,
            payee=PAYEE.address,
            payee_proof=prove_payee(PAYEE, NODE.node_id),
            members=tuple(bytes([i]) * 32 for i in range(MAX_MEMBERS)),
            onion_key_made_s=2**40,
            onion_key_period_s=MAX_LIFETIME_S,
            monthly_cap_bytes=2**60,
            is_draining=True,
            link_versions=(252, 253, 254, 255),
            exit_policy_summary=("accept " + ",".join(str(p) for p in range(10001, 10231, 2)))[:702],
            country="IS",
            family="f" * 32,
            capacity_bytes_per_s=2**50,
            software_version="9" * 32,
            suites=tuple(range(248, 256)),
        ),
    )
    assert len(signed.encoded) <= MAX_DESCRIPTOR_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 1}, {"format_version": 3}, {"format_version": 0},
        {"identity": b"x" * 31}, {"sequence": -1},
        {"sequence": 2**63}, {"published_s": -1}, {"expires_s": NOW_S}, {"expires_s": NOW_S - 1},
        {"expires_s": NOW_S + MAX_LIFETIME_S + 1}, {"expires_s": 2**41, "published_s": 2**41 - 5},
        {"addresses": ()}, {"addresses": (Address("192.0.2.1", 1),) * 2}, {"addresses":
        tuple(Address("192.0.2.1", p) for p in range(1, 10))}, {"addresses": (Address("192.0.2.1", 0),)},
        {"addresses": (Address("192.0.2.1", 65536),)}, {"addresses": (Address("example.org", 1),)},
        {"addresses": (Address("224.0.0.1", 1),)}, {"onion_key": b"k" * 31}, {"onion_key": b"k" * 33},
        {"previous_onion_key": b"k"}, {"role_bits": 0}, {"role_bits": 4}, {"price_wei_per_packet": -1},
        {"price_wei_per_packet": 10**18 + 1}, {"payee": b"$"}, {"exit_policy_summary": "accept 80"},
        {"role_bits": 3, "exit_policy_summary": "accept"}, {"has_ipv6": 1}, {"country": "is"}, {"country":
        "ISL"}, {"country": "É!"}, {"family": "a b"}, {"family": "f" * 33}, {"capacity_bytes_per_s": 2**50 +
        1}, {"software_version": "0.1\n"}, {"suites": ()}, {"suites": (1, 1)}, {"suites": (0,)}, {"suites":
        tuple(range(1, 10))}, {"payee": b"$" * 20, "payee_proof": b"p" * 64}, {"payee_proof": b"p" * 65},
        {"members": (b"m" * 31,)}, {"members": (b"m" * 32,) * 2}, {"members": (NODE.node_id,)}, {"members":
        tuple(bytes([i]) * 32 for i in range(MAX_MEMBERS + 1))}, {"onion_key_made_s": NOW_S},
        {"onion_key_made_s": NOW_S, "onion_key_period_s": 1799}, {"onion_key_period_s": -1},
        {"onion_key_period_s": MAX_LIFETIME_S + 1}, {"monthly_cap_bytes": -1}, {"monthly_cap_bytes": 2**61},
        {"is_draining": 1}, {"link_versions": ()}, {"link_versions": (1, 1)}, {"link_versions": (0,)},
        {"link_versions": (1, 2, 3, 4, 5)},
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_refused_even_when_signed(changes):
    with pytest.raises(DecodeError):
        decode_descriptor(encode_unchecked(make(**changes)))
    if "identity" not in changes:
        with pytest.raises(ValueError, match=r"."):
            sign_descriptor(NODE, make(**changes))


def test_a_signature_of_another_or_for_another_purpose_is_refused():
    for data in (encode_unchecked(make(), OTHER), encode_unchecked(make(), context=b"seed list")):
        with pytest.raises(DecodeError, match="does not hold"):
            decode_descriptor(data)
    with pytest.raises(ValueError, match="signed by the identity"):
        sign_descriptor(OTHER, make())


def test_a_payee_must_have_signed_for_this_very_identity():
    proof = prove_payee(PAYEE, NODE.node_id)
    sign_descriptor(NODE, make(payee=PAYEE.address, payee_proof=proof))
    for wrong in (
        make(payee=b"$" * 20, payee_proof=proof),
        make(payee=PAYEE.address, payee_proof=prove_payee(PAYEE, OTHER.node_id)),
        make(payee=PAYEE.address, payee_proof=proof[:64] + b"\x00"),
        make(payee=PAYEE.address, payee_proof=b"\xff" * 65),
    ):
        with pytest.raises(DecodeError, match="did not sign for it"):
            decode_descriptor(encode_unchecked(wrong))
    sign_descriptor(NODE, make(payee=PAYEE.address))  # a root list may vouch for it


def test_the_vectors_are_read_and_written_byte_for_byte():
    for vector in json.loads(VECTORS.read_text())["descriptors"]:
        entry = decode_descriptor(bytes.fromhex(vector["encoded"]))
        assert sign_descriptor(Identity(bytes.fromhex(vector["seed"])), entry.descriptor) == entry
        told = {name: vector["fields"][name] for name in Descriptor.__struct_fields__}
        assert msgspec.json.decode(msgspec.json.encode(msgspec.structs.asdict(entry.descriptor))) == told
    for vector in json.loads(VECTORS.read_text())["refused"]:
        with pytest.raises(DecodeError, match=re.escape(vector["why"])):
            decode_descriptor(bytes.fromhex(vector["encoded"]))


@given(st.data())
def test_any_changed_byte_is_refused(data):
    encoded = bytearray(sign_descriptor(NODE, make()).encoded)
    index = data.draw(st.integers(0, len(encoded) - 1))
    encoded[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        decode_descriptor(bytes(encoded))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_without_harm(data):
    with pytest.raises(DecodeError):
        decode_descriptor(data)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) |
st.text(),
                    lambda inner: st.lists(inner, max_size=20), max_leaves=40))  # fmt: skip
def test_any_signed_value_is_read_or_refused(value):
    with pytest.raises(DecodeError):
        decode_descriptor(sign_envelope(NODE, b"descriptor", msgspec.msgpack.encode(value)))


def test_too_long_too_deep_and_too_much_are_refused():
    for data in (
        b"\0" * (MAX_DESCRIPTOR_BYTES + 1),
        b"\x91" * MAX_DESCRIPTOR_BYTES,
        sign_envelope(NODE, b"descriptor", b"\x91" * 1900),
        sign_envelope(NODE, b"descriptor", b"\xdd\xff\xff\xff\xff"),
        sign_descriptor(NODE, make()).encoded + b"\0",
        sign_envelope(NODE, b"descriptor", msgspec.msgpack.encode([*msgspec.to_builtins(make()), "more"])),
    ):
        with pytest.raises(DecodeError):
            decode_descriptor(data)


def test_age_is_judged_by_the_callers_clock():
    descriptor = make()
    assert find_staleness(descriptor, NOW_S) is None
    assert find_staleness(descriptor, NOW_S - FUTURE_TOLERANCE_S) is None
    assert find_staleness(descriptor, NOW_S - FUTURE_TOLERANCE_S - 1) is Staleness.FROM_THE_FUTURE
    assert find_staleness(descriptor, NOW_S + 3599.9) is None
    assert find_staleness(descriptor, NOW_S + 3600) is Staleness.EXPIRED


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("192.0.2.1", True), ("10.1.2.3", True), ("127.0.0.1", True), ("2001:db8::1", True), ("::1", True),
        ("0.0.0.0", False), ("255.255.255.255", False), ("224.0.0.1", False), ("::", False), ("ff02::1",
        False), ("fe80::1%eth0", False), ("::ffff:192.0.2.1", False), ("2001:DB8::1", False), ("192.0.2.01",
        False), ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_addresses_that_one_can_dial(text, usable):
    assert is_usable_address(text) is usable
