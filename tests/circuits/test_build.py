"""Dialogues of the circuit build: a client and one to four relays, hand to hand, with somebody in between."""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.building.client import BuildDone, BuildFailed, BuildHop, ClientBuild, FailureKind
from circuits.building.messages import ExitAddresses, ExitHere, NextHop, Refusal, RejectCode
from circuits.building.onion_keys import OnionKeys
from circuits.building.records import MESSAGE_BYTES, RECORD_BYTES
from circuits.building.relay import BecomeExit, Built, Extend, Refuse, Reject, RelayBuild

UNIX_S = 1_800_000_000.0
ADDRESSES = ExitAddresses(
    IPv4Address("100.64.3.4"),
    IPv6Address("fd68:6f70:6661::9"),
    IPv4Address("100.64.0.1"),
    IPv6Address("fd68:6f70:6661::1"),
)
IDS = [bytes([0x10 + i]) * 32 for i in range(4)]
KEYS = [OnionKeys.generate(UNIX_S - 100, random.Random(40 + i).randbytes) for i in range(4)]


def make_relays(seed: int = 1, **options) -> list[RelayBuild]:
    return [
        RelayBuild(IDS[i], KEYS[i], {1, 2}, random.Random(100 * seed + i).randbytes, **options)
        for i in range(4)
    ]


def make_hops(count: int) -> list[BuildHop]:
    return [
        BuildHop(IDS[i], KEYS[i].current.public, (f"10.{i}.0.1", 4000 + i), 100 * (i + 1))
        for i in range(count)
    ]


def make_client(count: int, seed: int = 7, **changes) -> ClientBuild:
    options = {"suite": 2, "lifetime_s": 3600, "now": 0.0, "unix_s": UNIX_S, **changes}
    return ClientBuild(make_hops(count), ExitHere(), rng=random.Random(seed).randbytes, **options)


def unchanged(_link: int, records: bytes) -> bytes:
    return records


def walk(client, relays, count, *, forward=unchanged, backward=unchanged):
    """Carry a build to the exit and back. `forward(j, records)` and `backward(j, records)` change what is on
    link j (from 0).

    Returns the client's outcome and the pendings, or the index of the relay that rejected and its code.
    """
    records, pendings = client.records, []
    for index in range(count):
        output = relays[index].handle_build(forward(index, records), 0.0, UNIX_S)
        if isinstance(output, Reject):
            return index, output.code
        if isinstance(output, Refuse):
            records = output.records
            break
        pendings.append(output.pending)
        if isinstance(output, BecomeExit):
            records = relays[index].accept_exit(output.pending, ADDRESSES).records
            break
        records = output.records
    for index in reversed(range(len(pendings) if isinstance(output, Refuse) else count - 1)):
        records = relays[index].handle_built(pendings[index], backward(index + 1, records)).records
    return client.handle_built(backward(0, records)), pendings


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_build_of_every_length(count):
    client = make_client(count)
    outcome, pendings = walk(client, make_relays(), count)
    assert isinstance(outcome, BuildDone)
    assert outcome.roots == tuple(pending.root for pending in pendings)
    assert len(set(outcome.roots)) == count
    assert outcome.addresses == ADDRESSES
    for index, pending in enumerate(pendings):
        request = pending.request
        assert (request.price_in, request.price_out) == client.prices[index]
        assert request.lifetime_s == 3600
        assert request.suite == 2
        if index < count - 1:
            assert request.what == NextHop(IDS[index + 1], (f"10.{index + 1}.0.1", 4001 + index))
        else:
            assert request.what == ExitHere()


def test_wanted_addresses_reach_the_exit():
    wanted = ExitHere(IPv4Address("100.77.1.2"), IPv6Address("fd68:6f70:6661::7"), True)
    client = ClientBuild(
        make_hops(2),
        wanted,
        suite=1,
        lifetime_s=60,
        rng=random.Random(1).randbytes,
        now=0,
        unix_s=UNIX_S,
    )
    _, pendings = walk(client, make_relays(), 2)
    assert pendings[1].request.what == wanted


def test_exit_without_ipv6():
    client, relays = make_client(1), make_relays()
    output = relays[0].handle_build(client.records, 0, UNIX_S)
    bare = ExitAddresses(ADDRESSES.ipv4, None, ADDRESSES.dns_ipv4, None)
    assert client.handle_built(relays[0].accept_exit(output.pending, bare).records).addresses == bare


# --- sizes, shape, position
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_message_on_every_link_has_one_size(count):
    seen = []

    def note(_link, records):
        seen.append(len(records))
        return records

    walk(make_client(count), make_relays(), count, forward=note, backward=note)
    assert seen == [MESSAGE_BYTES] * (2 * count)


def test_a_relay_sees_the_same_from_every_place():
    """What the relay in the middle receives, opens and sends has the same form at place 1, 2, 3 of paths of
    any length.

    Beyond the sizes: the records behind the one it opens never repeat a byte run of another message, are
    never zero, and its output type and request depend only on what the client meant it to know.
    """
    me = IDS[0]
    views = []
    for count in (2, 3, 4):
        for place in range(count - 1):
            order = [*range(1, place + 1), 0, *range(place + 1, count)]
            hops = [make_hops(4)[i] for i in order]
            client = ClientBuild(
                hops,
                ExitHere(),
                suite=2,
                lifetime_s=60,
                rng=random.Random(count * 10 + place).randbytes,
                now=0,
                unix_s=UNIX_S,
            )
            relays, records = make_relays(), client.records
            for index in order:
                output = relays[index].handle_build(records, 0, UNIX_S)
                if IDS[index] == me:
                    views.append((records[RECORD_BYTES:], output))
                    break
                records = output.records
    assert len(views) == 6
    for others, output in views:
        assert type(output) is Extend
        assert len(output.records) == MESSAGE_BYTES
        # Zeros, or a low number of different byte values, would show unused records or a missing layer.
        for text in (others, output.records[RECORD_BYTES:]):
            for start in range(0, len(text), RECORD_BYTES):
                assert len(set(text[start : start + RECORD_BYTES])) > 240
    runs = [others[i : i + 16] for others, _ in views for i in range(0, len(others), 16)]
    assert len(set(runs)) == len(runs)


def test_links_share_no_bytes():
    """Two relays that are not neighbours cannot match a build by its bytes, in either direction."""
    messages = []

    def note(_link, records):
        messages.append(records)
        return records

    walk(make_client(4), make_relays(), 4, forward=note, backward=note)
    chunks = [{m[i : i + 16] for i in range(len(m) - 15)} for m in messages]
    for i, left in enumerate(chunks):
        for right in chunks[i + 1 :]:
            assert not left & right


def test_refusal_and_acceptance_look_alike_to_the_relay_before():
    client, relays = make_client(2), make_relays()
    extend = relays[0].handle_build(client.records, 0, UNIX_S)
    become = relays[1].handle_build(extend.records, 0, UNIX_S)
    refused = relays[1].refuse(become.pending, Refusal.NO_ADDRESS, "none left")
    assert len(refused.records) == MESSAGE_BYTES
    assert b"none left" not in refused.records
    assert isinstance(relays[0].handle_built(extend.pending, refused.records), Built)


# --- tampering
# -----------------------------------------------------------------------------------------------------


def flip(link_to_change, position, change):
    def tamper(link, records):
        if link != link_to_change:
            return records
        changed = bytearray(records)
        changed[position] ^= change
        return bytes(changed)

    return tamper


@settings(max_examples=150, print_blob=True, deadline=None)
@given(st.integers(1, 4), st.data(), st.integers(0, MESSAGE_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_of_build_is_refused_by_the_next_relay(count, data, position, change):
    link = data.draw(st.integers(0, count - 1))
    outcome = walk(make_client(count), make_relays(), count, forward=flip(link, position, change))
    assert outcome == (link, RejectCode.UNREADABLE)


def test_every_byte_of_build_on_the_first_link():
    relays, records = make_relays(), bytearray(make_client(2).records)
    for position in range(MESSAGE_BYTES):
        records[position] ^= 0x80
        output = relays[0].handle_build(bytes(records), 0, UNIX_S)
        assert output == Reject(RejectCode.UNREADABLE), position
        records[position] ^= 0x80
    assert isinstance(relays[0].handle_build(bytes(records), 0, UNIX_S), Extend)


@settings(max_examples=150, print_blob=True, deadline=None)
@given(st.integers(1, 4), st.data(), st.integers(1, 255))
def test_any_changed_byte_of_built_that_can_reach_the_client_is_refused(count, data, change):
    """A change on link j (between hop j and hop j+1) is noticed in hop j+1's answer, unless it falls on a
    record that is dropped.
    """
    link = data.draw(st.integers(0, count - 1))
    position = data.draw(st.integers(0, (4 - link) * RECORD_BYTES - 1))
    outcome, _ = walk(make_client(count), make_relays(), count, backward=flip(link, position, change))
    assert isinstance(outcome, BuildFailed)
    assert outcome.kind is FailureKind.GARBLED
    # Hop j+1's answer shows the change wherever it fell, so one of the two ends of that link did it.
    assert outcome.hop == link
    assert set(outcome.suspects) <= {link - 1, link}
    assert not hasattr(outcome, "roots")


def test_change_of_a_record_that_is_dropped_changes_nothing():
    outcome, _ = walk(make_client(3), make_relays(), 3, backward=flip(2, MESSAGE_BYTES - 1, 1))
    assert isinstance(outcome, BuildDone)


def test_every_byte_of_built_on_the_first_link():
    relays = make_relays()
    for position in range(0, MESSAGE_BYTES, 7):
        client = make_client(1, seed=position + 1000)
        output = relays[0].handle_build(client.records, 0, UNIX_S)
        records = bytearray(relays[0].accept_exit(output.pending, ADDRESSES).records)
        records[position] ^= 1
        assert client.handle_built(bytes(records)).kind is FailureKind.GARBLED, position


def test_answers_of_two_builds_cannot_be_mixed():
    relays = make_relays()
    first, second = make_client(1, seed=1), make_client(1, seed=2)
    outputs = [relays[0].handle_build(client.records, 0, UNIX_S) for client in (first, second)]
    built = [relays[0].accept_exit(output.pending, ADDRESSES).records for output in outputs]
    assert first.handle_built(built[1]).kind is FailureKind.GARBLED


@settings(max_examples=100, print_blob=True, deadline=None)
@given(
    st.binary(max_size=100) | st.integers(0, 2**32).map(lambda s: random.Random(s).randbytes(MESSAGE_BYTES))
)
def test_garbage_raises_nothing(garbage):
    relays, client = make_relays(), make_client(2)
    assert isinstance(relays[0].handle_build(garbage, 0, UNIX_S), Reject)
    extend = relays[0].handle_build(client.records, 0, UNIX_S)
    answer = relays[0].handle_built(extend.pending, garbage)
    outcome = client.handle_built(answer.records)
    assert isinstance(outcome, BuildFailed)
    if len(garbage) == MESSAGE_BYTES:
        assert (outcome.kind, outcome.hop) == (FailureKind.GARBLED, 1)
    else:
        assert (outcome.kind, outcome.refusal, outcome.hop) == (FailureKind.REFUSED, Refusal.NEXT_REFUSED, 0)
    assert make_client(1).handle_built(garbage).kind is FailureKind.GARBLED


# --- refusals
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "failing"), [(1, 0), (2, 0), (2, 1), (3, 1), (4, 0), (4, 2), (4, 3)])
def test_client_reads_which_hop_refused_and_why(count, failing):
    client, relays = make_client(count), make_relays()
    records, pendings = client.records, []
    for index in range(failing + 1):
        output = relays[index].handle_build(records, 0, UNIX_S)
        pendings.append(output.pending)
        records = getattr(output, "records", b"")
    refused = relays[failing].refuse(pendings[failing], Refusal.PRICE, "asks 500 wei")
    assert refused.pending is pendings[failing]
    records = refused.records
    for index in reversed(range(failing)):
        records = relays[index].handle_built(pendings[index], records).records
    outcome = client.handle_built(records)
    assert (outcome.kind, outcome.hop, outcome.refusal) == (FailureKind.REFUSED, failing, Refusal.PRICE)
    assert outcome.suspects == (failing,)
    assert outcome.sentence == (
        f"hop {failing + 1}: the price offered is lower than the one it asks (asks 500 wei)"
    )
    assert all(relay.pending_count == 0 for relay in relays)


def test_unreachable_next_relay_is_named():
    client, relays = make_client(3), make_relays()
    first = relays[0].handle_build(client.records, 0, UNIX_S)
    second = relays[1].handle_build(first.records, 0, UNIX_S)
    refused = relays[1].refuse(second.pending, Refusal.NEXT_UNREACHABLE)
    outcome = client.handle_built(relays[0].handle_built(first.pending, refused.records).records)
    assert (outcome.hop, outcome.suspects, outcome.refusal) == (1, (1, 2), Refusal.NEXT_UNREACHABLE)
    assert outcome.sentence == "hop 2: it could not reach the next relay"


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (RejectCode.UNREADABLE, Refusal.NEXT_UNREADABLE),
        (RejectCode.BUSY, Refusal.NEXT_REFUSED),
        (None, Refusal.NEXT_UNREACHABLE),
    ],
)
def test_destroy_of_the_next_relay_becomes_a_refusal(code, refusal):
    client, relays = make_client(2), make_relays()
    first = relays[0].handle_build(client.records, 0, UNIX_S)
    outcome = client.handle_built(relays[0].handle_next_closed(first.pending, code).records)
    assert (outcome.kind, outcome.hop, outcome.refusal) == (FailureKind.REFUSED, 0, refusal)
    assert outcome.suspects == (0, 1)


def test_silent_next_relay_times_out():
    client, relays = make_client(3), make_relays()
    assert relays[0].next_timeout() is None
    first = relays[0].handle_build(client.records, 5.0, UNIX_S)
    assert relays[0].next_timeout() == 13.0
    assert relays[0].handle_timeout(12.9) == []
    (refused,) = relays[0].handle_timeout(13.0)
    assert refused.pending is first.pending
    assert relays[0].handle_timeout(13.0) == []
    assert relays[0].handle_built(first.pending, bytes(MESSAGE_BYTES)) is None
    assert relays[0].refuse(first.pending, Refusal.BUSY) is None
    outcome = client.handle_built(refused.records)
    assert (outcome.refusal, outcome.suspects) == (Refusal.NEXT_SILENT, (0, 1, 2))


def test_suite_not_offered():
    outcome, _ = walk(make_client(2, suite=9), make_relays(), 2)
    assert outcome.refusal is Refusal.SUITE
    assert outcome.sentence.endswith("(suites offered: 1, 2)")


@pytest.mark.parametrize(("hours", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_clock_difference(hours, accepted):
    outcome, _ = walk(make_client(1, unix_s=UNIX_S + 3600 * hours), make_relays(), 1)
    assert isinstance(outcome, BuildDone) == accepted
    if not accepted:
        assert outcome.refusal is Refusal.CLOCK


def test_relay_does_not_go_on_to_itself():
    hop = make_hops(1)[0]
    twin = BuildHop(IDS[0], KEYS[1].current.public, hop.address, 1)
    with pytest.raises(ValueError, match="twice"):
        ClientBuild(
            [hop, twin], ExitHere(), suite=1, lifetime_s=1, rng=random.Random(1).randbytes, now=0, unix_s=0
        )


# --- replay, room, keys
# --------------------------------------------------------------------------------------------


def test_replayed_build_is_rejected():
    client, relays = make_client(2), make_relays()
    assert isinstance(relays[0].handle_build(client.records, 0, UNIX_S), Extend)
    assert relays[0].handle_build(client.records, 0, UNIX_S) == Reject(RejectCode.REPLAYED)
    # The guard replays what it sent to the second relay.
    onward = make_relays()[0].handle_build(client.records, 0, UNIX_S).records
    assert isinstance(relays[1].handle_build(onward, 0, UNIX_S), BecomeExit)
    assert relays[1].handle_build(onward, 5000, UNIX_S + 3600) == Reject(RejectCode.REPLAYED)


def test_garbage_does_not_fill_the_replay_memory():
    relays = make_relays()
    changed = bytearray(make_client(1).records)
    changed[-1] ^= 1
    assert relays[0].handle_build(bytes(changed), 0, UNIX_S) == Reject(RejectCode.UNREADABLE)
    changed[-1] ^= 1
    assert isinstance(relays[0].handle_build(bytes(changed), 0, UNIX_S), BecomeExit)


def test_too_many_pending_builds_are_rejected_before_any_cipher():
    relays = make_relays(max_pending=2)
    pendings = [relays[0].handle_build(make_client(2, seed=s).records, 0, UNIX_S).pending for s in range(2)]
    assert relays[0].handle_build(bytes(MESSAGE_BYTES), 0, UNIX_S) == Reject(RejectCode.BUSY)
    relays[0].forget(pendings[0])
    relays[0].forget(pendings[0])
    assert relays[0].pending_count == 1
    assert isinstance(relays[0].handle_build(make_client(2, seed=9).records, 0, UNIX_S), Extend)


def test_build_for_the_previous_onion_key_still_opens():
    relays, client = make_relays(), make_client(1)
    tomorrow = KEYS[0].rotated(UNIX_S + 86_400, random.Random(3).randbytes)
    assert tomorrow.current.public != KEYS[0].current.public
    relays[0].set_keys(tomorrow)
    output = relays[0].handle_build(client.records, 0, UNIX_S)
    done = client.handle_built(relays[0].accept_exit(output.pending, ADDRESSES).records)
    assert isinstance(done, BuildDone)
    relays[0].set_keys(tomorrow.rotated(UNIX_S + 3 * 86_400, random.Random(3).randbytes))
    late = make_client(1, seed=99)
    assert relays[0].handle_build(late.records, 0, UNIX_S) == Reject(RejectCode.UNREADABLE)


def test_client_closes_and_times_out():
    client = make_client(3)
    assert client.next_timeout() == 10.0
    assert client.handle_timeout(9.9) is None
    outcome = client.handle_timeout(10.0)
    assert (outcome.kind, outcome.suspects) == (FailureKind.SILENT, (0, 1, 2))
    assert client.next_timeout() is None
    assert client.handle_timeout(11.0) is None
    assert client.handle_built(bytes(MESSAGE_BYTES)) is None
    assert client.handle_closed() is None
    for code in (None, 2, 4, 77):
        assert make_client(1).handle_closed(code).suspects == (0,)


def test_secrets_do_not_show_in_repr():
    outcome, pendings = walk(make_client(2), make_relays(), 2)
    for root in outcome.roots:
        assert repr(root) not in repr(outcome) + repr(pendings)
        assert root.hex() not in repr(outcome) + repr(pendings)
