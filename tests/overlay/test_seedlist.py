import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.descriptor import Address, Descriptor, Staleness, sign_descriptor
from overlay.envelope import sign_envelope
from overlay.errors import DecodeError
from overlay.gossip.roots import Member, root_list_of_seed_list
from overlay.identity import Identity
from overlay.seedlist import MAX_NODES, ListedMember, decode_seed_list, find_list_staleness, sign_seed_list

NOW_S = 1_800_000_000
SIGNER = Identity(b"s" * 32)
OTHER = Identity(b"o" * 32)


def node(number):
    identity = Identity(bytes([number]) * 32)
    return sign_descriptor(
        identity,
        Descriptor(
            identity=identity.node_id,
            sequence=1,
            published_s=NOW_S,
            expires_s=NOW_S + 3600,
            addresses=(Address(f"10.{number}.0.1", 4433),),
            onion_key=b"k" * 32,
        ),
    )


NODES = (node(1), node(2), node(3))


def make(descriptors=NODES, *, signer=SIGNER, network="test-net", expires_s=NOW_S + 1000):
    return sign_seed_list(signer, network, descriptors, sequence=5, published_s=NOW_S, expires_s=expires_s)


def body(**changes):
    fields = {"version": 2, "network": "test", "sequence": 1, "published": NOW_S, "expires": NOW_S + 9}
    return msgspec.msgpack.encode(list({**fields, "nodes": [], "members": [], **changes}.values()))


def test_a_list_carries_descriptors_unchanged():
    seed_list = decode_seed_list(make(), SIGNER.node_id)
    assert seed_list.descriptors == NODES
    assert seed_list.network == "test-net"
    assert seed_list.refused == ()
    assert find_list_staleness(seed_list, NOW_S) is None
    assert find_list_staleness(seed_list, NOW_S + 1000) is Staleness.EXPIRED
    assert find_list_staleness(seed_list, NOW_S - 7200) is Staleness.FROM_THE_FUTURE


def test_a_list_names_members_without_descriptors():
    member = ListedMember(OTHER.node_id, b"$" * 20, (Address("10.9.0.1", 4433),))
    encoded = sign_seed_list(
        SIGNER, "net", NODES[:1], sequence=1, published_s=NOW_S, expires_s=NOW_S + 9, members=[member]
    )
    seed_list = decode_seed_list(encoded, SIGNER.node_id)
    assert seed_list.members == (member,)
    roots = root_list_of_seed_list(seed_list)
    assert len(roots) == 2
    assert roots.get(OTHER.node_id) == Member(OTHER.node_id, b"$" * 20, 0, member.addresses)
    assert NODES[0].descriptor.identity in roots
    assert roots.get(b"x" * 32) is None


def test_only_the_named_key_counts():
    with pytest.raises(DecodeError, match="not signed by the key"):
        decode_seed_list(make(signer=OTHER), SIGNER.node_id)
    with pytest.raises(DecodeError, match="not signed by the key"):
        decode_seed_list(sign_envelope(SIGNER, b"descriptor", body()), SIGNER.node_id)


def test_a_descriptor_that_cannot_be_read_costs_only_itself():
    bad = NODES[0].encoded[:-1] + bytes([NODES[0].encoded[-1] ^ 1])
    nodes = [bad, NODES[1].encoded, NODES[1].encoded, b""]
    seed_list = decode_seed_list(sign_envelope(SIGNER, b"seed list", body(nodes=nodes)), SIGNER.node_id)
    assert seed_list.descriptors == (NODES[1],)
    assert len(seed_list.refused) == 3
    assert "listed twice" in seed_list.refused[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1}, {"network": "Test"}, {"network": ""}, {"network": "a" * 33}, {"sequence": -1},
        {"expires": NOW_S}, {"expires": NOW_S + 10**8}, {"nodes": [b"x" * 2049]}, {"nodes": [b""] *
        (MAX_NODES + 1)}, {"nodes": 5}, {"more": 1}, {"members": [[b"i" * 31, b"", []]]},
        {"members": [[b"i" * 32, b"p", []]]}, {"members": [[b"i" * 32, b"", [["0.0.0.0", 1]]]]},
        {"members": [[b"i" * 32, b"", []]] * 2}, {"members": [[b"i" * 32, b""]]},
    ],
)  # fmt: skip
def test_a_signed_list_out_of_range_is_refused(changes):
    with pytest.raises(DecodeError):
        decode_seed_list(sign_envelope(SIGNER, b"seed list", body(**changes)), SIGNER.node_id)


def test_signing_refuses_what_reading_would():
    with pytest.raises(ValueError, match="twice"):
        make((NODES[0], NODES[0]))
    with pytest.raises(ValueError, match="network name"):
        make(network="no good")
    with pytest.raises(ValueError, match="lives longer"):
        make(expires_s=NOW_S + 10**8)


@given(st.data())
def test_any_changed_byte_is_refused(data):
    encoded = bytearray(make())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        decode_seed_list(bytes(encoded), SIGNER.node_id)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_harm(data):
    for attempt in (data, sign_envelope(SIGNER, b"seed list", data)):
        with pytest.raises(DecodeError):
            decode_seed_list(attempt, SIGNER.node_id)
