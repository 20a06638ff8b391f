"""The core against the checked-in vectors, and those against the known answers of the design."""

import hashlib
import json
import runpy
from pathlib import Path

import pytest

from circuits.keychain import derive_chain, expand
from circuits.onion import ClientBackward, ClientForward, Command, ExitBackward, RelayBackward, RelayForward
from circuits.params import EPOCH_AGE_S

VECTORS = Path(__file__).parents[1] / "vectors"
STORED = json.loads((VECTORS / "onion.json").read_text())

# From the project's design, made with a prototype that is neither the core nor the reference.
KNOWN_CHAIN = "b76113e9306992b27fbbcf6fa17dad48803b82d6d422ac942234c5e836bb30b6"
KNOWN_CTR0 = 106739428402317
KNOWN_START = "8ea4b6351461001a"
KNOWN_FORWARD = [
    "6eadd764e2fad18cf38436898f59bcd66090d4f9036e99ee34315e4760701133",
    "7b1c499a079fcd6c0691bad9440c3639d9126a5ee8cdd71adf43da69bc20e364",
    "4afbc72c395ad4cfa8db6507f046424560f1a3d8dcccfd2972cf0e90cc1a9f6c",
]
KNOWN_BACKWARD = [
    "3d21d118e5839fa45a06c3941c5156f0f053502b4e20267b1cdb860e853cd3dc",
    "c63aa1502f5f7334c0476721772b049bfa6617844da3852724074508dbf236da",
    "8d9c15f1b55c185cacc583cbebca13ecb598395d279a722725014e357c79c16f",
]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def case_name(case):
    return "suite{suite}-lane{lane}-hops{hops}-units{units}-{packet}".format(**case)


def test_the_reference_still_makes_the_file():
    made = runpy.run_path(str(VECTORS / "generate_onion.py"))["make_file"]()
    assert json.loads(json.dumps(made)) == STORED


def test_known_answers_are_in_the_file():
    chain = STORED["chains_of_hop_1"][0]
    assert (chain["label"], chain["chain"], chain["first_counter"]) == ("fwd", KNOWN_CHAIN, KNOWN_CTR0 + 1)
    (case,) = (case for case in STORED["packets"] if case_name(case) == "suite1-lane1-hops3-units1-first")
    assert case["forward_starts"] == KNOWN_START
    assert case["forward_links"] == KNOWN_FORWARD
    assert case["backward_links"] == KNOWN_BACKWARD


@pytest.mark.parametrize("case", STORED["chains_of_hop_1"], ids=lambda case: case["label"])
def test_chains(case):
    chain, before_first = derive_chain(b"\1" * 32, case["label"])
    assert (chain.hex(), before_first + 1) == (case["chain"], case["first_counter"])
    assert expand(chain, "keys", 64).hex() == case["aead_key"] + case["header_key"]
    following = expand(expand(chain, "ratchet", 32), "keys", 64).hex()
    assert following == case["next_epoch_aead_key"] + case["next_epoch_header_key"]


@pytest.mark.parametrize("case", STORED["packets"], ids=case_name)
def test_packets(case):
    suite, lane, hops, units = case["suite"], case["lane"], case["hops"], case["units"]
    roots = [bytes((hop,)) * 32 for hop in range(1, hops + 1)]
    client = ClientForward(roots, suite, lane, lambda size: b"\xaa" * size)
    relays = [RelayForward(root, suite, lane) for root in roots]
    last = ExitBackward(roots[-1], suite, lane, lambda size: b"\xbb" * size)
    wraps = [RelayBackward(root, suite, lane) for root in roots[:-1]]
    opener = ClientBackward(roots, suite, lane)
    payload = bytes(i % 256 for i in range(1384 * units - 96))
    answer = bytes(7 * i % 256 for i in range(1384 * units - 48))

    def travel(now):
        forward = client.seal_many([payload], now)
        for relay in relays[:-1]:
            (opened,) = relay.open_many(forward[-1:], now)
            assert opened.command is Command.FORWARD
            forward.append(opened.data)
        (opened,) = relays[-1].open_many(forward[-1:], now)
        assert (opened.command, opened.data) == (Command.DELIVER, payload)
        backward = last.seal_many([answer], now)
        for wrap in reversed(wraps):
            backward += wrap.wrap_many(backward[-1:], now)
        assert opener.open_many(backward[-1:], now) == [answer]
        return forward, backward[::-1]

    forward, backward = travel(0.0)
    if case["packet"] == "jump":
        forward, backward = travel(EPOCH_AGE_S)
    assert forward[0][:8].hex() == case["forward_starts"]
    assert [digest(packet) for packet in forward] == case["forward_links"]
    assert [digest(packet) for packet in backward] == case["backward_links"]
