"""The native ciphers of a build and the reference's understand each other, in every mixture on a path."""

import json
import os
import random
import runpy
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.building.client import BuildDone, BuildFailed, BuildHop, ClientBuild, FailureKind
from circuits.building.crypto import Hop, Reference
from circuits.building.messages import ExitAddresses, ExitHere, Refusal, RejectCode
from circuits.building.onion_keys import OnionKeys
from circuits.building.records import MESSAGE_BYTES, RECORD_BYTES
from circuits.building.relay import BecomeExit, Extend, Refuse, Reject, RelayBuild

pytest.importorskip("hopfare_dataplane")

from overlay.engine.native_build import NativeBuildCrypto

UNIX_S = 1_800_000_000.0
ADDRESSES = ExitAddresses(IPv4Address("100.64.3.4"), None, IPv4Address("100.64.0.1"), None)
IDS = [bytes([0x10 + i]) * 32 for i in range(4)]
KEYS = [OnionKeys.generate(UNIX_S - 100, random.Random(40 + i).randbytes) for i in range(4)]
NATIVE = NativeBuildCrypto()


def crypto(native):
    return NATIVE if native else Reference(os.urandom)


def make_client(natives, ids=IDS, keys=KEYS):
    count = len(natives) - 1
    hops = [
        BuildHop(ids[i], keys[i].current.public, (f"10.{i}.0.1", 4000 + i), 100 * (i + 1))
        for i in range(count)
    ]
    return ClientBuild(
        hops,
        ExitHere(),
        suite=2,
        lifetime_s=3600,
        rng=os.urandom,
        now=0.0,
        unix_s=UNIX_S,
        crypto=crypto(natives[0]),
    )


def make_relay(index, native, suites=(1, 2)):
    return RelayBuild(IDS[index], KEYS[index], suites, os.urandom, crypto=crypto(native))


def build(natives, refusing=None, spoil=None):
    """A build with a client and relays of the kinds given; (the client's outcome, the relays' roots).

    The relay `refusing` offers no suite; `spoil` is (relay, byte) of a BUILT to be changed.
    """
    client = make_client(natives)
    records, pendings = client.records, []
    for index, native in enumerate(natives[1:]):
        relay = make_relay(index, native, () if index == refusing else (1, 2))
        outcome = relay.handle_build(records, 0.0, UNIX_S)
        records = None
        if isinstance(outcome, Refuse):
            records = outcome.records
            break
        pendings.append((relay, outcome.pending))
        if isinstance(outcome, BecomeExit):
            break
        assert isinstance(outcome, Extend)
        records = outcome.records
    for index, (relay, pending) in reversed(list(enumerate(pendings))):
        if records is None:
            records = relay.accept_exit(pending, ADDRESSES).records
        else:
            records = relay.handle_built(pending, records).records
        if spoil is not None and spoil[0] == index:
            changed = bytearray(records)
            changed[spoil[1]] ^= 1
            records = bytes(changed)
    return client.handle_built(records), tuple(pending.root for _, pending in pendings)


KINDS = st.lists(st.booleans(), min_size=2, max_size=5)


@settings(max_examples=30, deadline=None)
@given(KINDS)
def test_every_mixture_agrees_on_roots(natives):
    outcome, roots = build(natives)
    assert isinstance(outcome, BuildDone)
    assert outcome.roots == roots
    assert outcome.addresses == ADDRESSES


@settings(max_examples=20, deadline=None)
@given(KINDS, st.data())
def test_a_refusal_is_read_by_either_kind(natives, data):
    refusing = data.draw(st.integers(0, len(natives) - 2))
    outcome, _ = build(natives, refusing)
    assert isinstance(outcome, BuildFailed)
    assert (outcome.kind, outcome.hop, outcome.refusal) == (FailureKind.REFUSED, refusing, Refusal.SUITE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 2), st.integers(0, MESSAGE_BYTES - 1))
def test_a_changed_answer_is_blamed_alike(relays, at, byte):
    """The verdict of the native client is that of the reference, whoever the relays are."""
    verdicts = [build([native, *relays[1:]], spoil=(at, byte))[0] for native in (False, True)]
    verdicts = [
        (verdict.kind, verdict.hop, verdict.suspects, verdict.sentence)
        if isinstance(verdict, BuildFailed)
        else "done"
        for verdict in verdicts
    ]
    assert verdicts[0] == verdicts[1]
    # What drops out on the way is padding and may be anything.
    if byte < (3 - at) * RECORD_BYTES:
        assert verdicts[0] != "done"


@pytest.mark.parametrize("client", [False, True])
def test_a_changed_build_is_rejected_by_the_native_relay(client):
    records = make_client([client, True, True]).records
    for at in (0, 31, 32, 1215, 1216, 1487, 1488, MESSAGE_BYTES - 1):
        changed = bytearray(records)
        changed[at] ^= 1
        outcome = make_relay(0, True).handle_build(bytes(changed), 0.0, UNIX_S)
        assert isinstance(outcome, Reject)
        assert outcome.code is RejectCode.UNREADABLE
    assert isinstance(make_relay(0, True).handle_build(records, 0.0, UNIX_S), Extend)
    assert isinstance(make_relay(1, True).handle_build(records, 0.0, UNIX_S), Reject)


def test_garbage_does_not_open():
    keys = NATIVE.load_keys(IDS[0], KEYS[0])
    for head in (bytes(32), b"\xff" * 32, os.urandom(32)):
        assert NATIVE.open(keys, head + os.urandom(MESSAGE_BYTES - 32)) is None
    with pytest.raises(ValueError, match="5952 bytes"):
        NATIVE.open(keys, b"short")


def test_a_key_that_is_no_key_is_refused_by_the_client():
    for bad in (bytes(32), (1).to_bytes(32, "little"), b"short"):
        with pytest.raises(ValueError):
            NATIVE.seal([Hop(IDS[0], bad, bytes(256))])
    with pytest.raises(ValueError):
        NATIVE.seal([])


def test_the_previous_onion_key_is_read_as_well():
    rotated = KEYS[0].rotated(UNIX_S + 90_000, os.urandom)
    assert rotated.previous is not None
    relay = RelayBuild(IDS[0], KEYS[1], (1, 2), os.urandom, crypto=NATIVE)
    records = make_client([True, True]).records
    assert isinstance(relay.handle_build(records, 0.0, UNIX_S), Reject)
    relay.set_keys(rotated)
    assert isinstance(relay.handle_build(records, 0.0, UNIX_S), BecomeExit)


def test_keys_made_ahead_are_used_once():
    NATIVE.prepare(4)
    NATIVE.prepare(100)
    seen = [NATIVE.seal([Hop(IDS[0], KEYS[0].current.public, bytes(256))]).records[:32] for _ in range(12)]
    assert len(set(seen)) == len(seen)


def test_the_native_relay_goes_on_as_the_vectors_do():
    """What a relay sends on has nothing random of its own: both kinds send the same bytes."""
    vectors = Path(__file__).parents[1] / "vectors"
    stored = json.loads((vectors / "build.json").read_text())
    made = []

    class Recorder(Reference):
        def open(self, keys, build):
            opened = super().open(keys, build)
            native = NATIVE.open(NATIVE.load_keys(*keys), build)
            assert native is not None
            assert native.message == opened.message
            assert native.onward(build) == opened.onward(build)
            made.append(build)
            return opened

    namespace = runpy.run_path(str(vectors / "generate_build.py"))
    relay_build = namespace["RelayBuild"]

    def recording(node_id, keys, suites, rng, *, encapsulate):
        return relay_build(node_id, keys, suites, rng, crypto=Recorder(rng, encapsulate))

    namespace["make_file"].__globals__["RelayBuild"] = recording
    assert json.loads(json.dumps(namespace["make_file"](stored))) == stored
    assert len(made) == sum(case["hops"] for case in stored["cases"])
