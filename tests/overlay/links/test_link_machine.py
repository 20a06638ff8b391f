"""The control machine as dialogues."""

import pytest
from links_net import ACCEPTOR, DIALLER, STRANGER

from overlay.links.constants import IDENTIFY_CONTEXT, PADDING_BYTES, CloseCode
from overlay.links.framing import ControlReader, encode_control_frame
from overlay.links.limits import LinkLimits
from overlay.links.machine import Deliver, End, LinkMachine, Send, State, Up
from overlay.messages import (
    Destroy,
    Hello,
    Identify,
    Ping,
    Pong,
    Welcome,
    decode_control,
    encode_control,
)

PADDING = bytes(PADDING_BYTES)
LIMITS = LinkLimits()
NONCE = bytes(range(32))


def dialler(signer=DIALLER, limits=LIMITS):
    return LinkMachine(
        is_dialler=True, acceptor_id=ACCEPTOR.node_id, signer=signer, nonce=b"", limits=limits, now=0.0
    )


def acceptor(nonce=NONCE, refusal=None):
    return LinkMachine(
        is_dialler=False,
        acceptor_id=ACCEPTOR.node_id,
        signer=None,
        nonce=nonce,
        limits=LIMITS,
        now=0.0,
        refusal=refusal,
    )


def frame(message):
    return encode_control_frame(encode_control(message))


def said(outputs):
    """The messages among outputs that are sent, decoded; everything else as it is."""
    result = []
    for output in outputs:
        if isinstance(output, Send):
            result += [decode_control(raw) for raw in ControlReader().decode_control_frames(output.data)]
        else:
            result.append(output)
    return result


def identify(node=DIALLER, acceptor_id=ACCEPTOR.node_id, nonce=NONCE, context=IDENTIFY_CONTEXT, name=None):
    return Identify(node.node_id if name is None else name, node.sign(context, acceptor_id + nonce))


def greeted(nonce=NONCE):
    """An acceptor that has heard Hello from a relay."""
    machine = acceptor(nonce)
    machine.handle_connected(None, 0.1)
    assert said(machine.handle_control(frame(Hello(True, PADDING)), 0.2)) == [Welcome(nonce, PADDING)]
    assert machine.state is State.IDENTIFYING
    return machine


def ended(outputs, code):
    assert isinstance(outputs[-1], End)
    assert outputs[-1].code == code
    return outputs[-1].reason


def test_a_relay_dials():
    machine = dialler()
    assert machine.next_timeout() == LIMITS.handshake_timeout_s
    assert said(machine.handle_connected(ACCEPTOR.node_id, 0.1)) == [Hello(True, PADDING)]
    outputs = machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.2)
    assert said(outputs) == [identify(), Up(ACCEPTOR.node_id)]


def test_a_customer_dials_and_says_nothing_of_itself():
    machine = dialler(signer=None)
    assert said(machine.handle_connected(ACCEPTOR.node_id, 0.1)) == [Hello(False, PADDING)]
    assert said(machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.2)) == [Up(ACCEPTOR.node_id)]


@pytest.mark.parametrize("key", [STRANGER.node_id, None, b""])
def test_another_key_than_the_expected_one_ends_the_link(key):
    ended(dialler().handle_connected(key, 0.1), CloseCode.WRONG_IDENTITY)


def test_an_acceptor_and_a_customer():
    machine = acceptor()
    assert machine.handle_connected(None, 0.1) == []
    assert said(machine.handle_control(frame(Hello(False, PADDING)), 0.2)) == [
        Welcome(NONCE, PADDING),
        Up(None),
    ]


def test_an_acceptor_and_a_relay():
    assert greeted().handle_control(frame(identify()), 0.3) == [Up(DIALLER.node_id)]


@pytest.mark.parametrize(
    "proof",
    [
        pytest.param(identify(nonce=bytes(32)), id="a proof for another nonce, replayed"),
        pytest.param(identify(acceptor_id=STRANGER.node_id), id="a proof made for another acceptor"),
        pytest.param(identify(name=STRANGER.node_id), id="somebody else's name"),
        pytest.param(identify(context=b"descriptor"), id="a signature of another purpose"),
        pytest.param(Identify(DIALLER.node_id, bytes(64)), id="no signature"),
        pytest.param(Identify(bytes(32), bytes(64)), id="a point of small order"),
    ],
)
def test_a_false_proof_ends_the_link(proof):
    ended(greeted().handle_control(frame(proof), 0.3), CloseCode.NOT_IDENTIFIED)


def test_a_proof_serves_one_link_only():
    proof = frame(identify())
    assert greeted().handle_control(proof, 0.3) == [Up(DIALLER.node_id)]
    ended(greeted(nonce=b"f" * 32).handle_control(proof, 0.3), CloseCode.NOT_IDENTIFIED)


def test_a_full_node_refuses_after_the_greeting():
    machine = acceptor(refusal="full")
    machine.handle_connected(None, 0.1)
    outputs = machine.handle_control(frame(Hello(False, PADDING)), 0.2)
    assert said(outputs) == [Welcome(NONCE, PADDING), End(CloseCode.REFUSED, "full")]


def test_messages_for_others_are_handed_up_undecoded_only_when_up():
    raw = encode_control(Destroy(5, 1))
    machine = greeted()
    both = frame(identify()) + encode_control_frame(raw) + encode_control_frame(b"\x93\x70junk")
    assert machine.handle_control(both, 0.3) == [
        Up(DIALLER.node_id),
        Deliver(raw),
        Deliver(b"\x93\x70junk"),
    ]
    ended(greeted().handle_control(encode_control_frame(raw), 0.3), CloseCode.PROTOCOL)


@pytest.mark.parametrize(
    "message", [Hello(True, PADDING), Welcome(NONCE, PADDING), Pong(0, PADDING), identify()]
)
def test_messages_out_of_place_end_the_link(message):
    machine = greeted()
    machine.handle_control(frame(identify()), 0.3)
    assert "out of place" in ended(machine.handle_control(frame(message), 0.4), CloseCode.PROTOCOL)
    assert machine.handle_control(frame(message), 0.5) == []
    assert machine.next_timeout() is None
    assert machine.handle_timeout(1e9) == []


def test_a_dialler_takes_no_ping_and_an_acceptor_no_second_hello():
    machine = dialler()
    machine.handle_connected(ACCEPTOR.node_id, 0.1)
    machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.2)
    ended(machine.handle_control(frame(Ping(1, PADDING)), 0.3), CloseCode.PROTOCOL)
    ended(greeted().handle_control(frame(Hello(True, PADDING)), 0.3), CloseCode.PROTOCOL)


def test_a_greeting_without_its_padding_ends_the_link():
    machine = acceptor()
    machine.handle_connected(None, 0.1)
    ended(machine.handle_control(frame(Hello(False, b"")), 0.2), CloseCode.PROTOCOL)
    machine = dialler()
    machine.handle_connected(ACCEPTOR.node_id, 0.1)
    ended(machine.handle_control(frame(Welcome(NONCE, b"")), 0.2), CloseCode.PROTOCOL)


def test_a_handshake_without_end_is_given_up_with_the_right_words():
    machine = dialler()
    assert machine.handle_timeout(LIMITS.handshake_timeout_s - 0.1) == []
    assert ended(machine.handle_timeout(LIMITS.handshake_timeout_s), CloseCode.TIMEOUT) == "no answer in time"
    machine = dialler()
    machine.handle_connected(ACCEPTOR.node_id, 0.1)
    reason = ended(machine.handle_timeout(LIMITS.handshake_timeout_s), CloseCode.PATH_TOO_SMALL)
    assert reason.startswith("path MTU too small")


def test_of_a_relays_pings_only_some_are_full():
    machine = dialler(limits=LinkLimits(full_ping_every=4))
    machine.handle_connected(ACCEPTOR.node_id, 0.0)
    machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.0)
    sizes = []
    for _ in range(8):
        due = machine.next_timeout()
        (ping,) = said(machine.handle_timeout(due))
        sizes.append(len(ping.padding))
        machine.handle_control(frame(Pong(ping.number, ping.padding)), due + 0.1)
    assert sizes == [0, 0, 0, PADDING_BYTES, 0, 0, 0, PADDING_BYTES]


def test_keep_alive():
    machine = dialler()
    machine.handle_connected(ACCEPTOR.node_id, 0.0)
    machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.0)
    due = machine.next_timeout()
    assert due == LIMITS.keepalive_s
    assert machine.handle_timeout(due - 0.01) == []
    assert said(machine.handle_timeout(due)) == [Ping(1, PADDING)]
    assert machine.handle_timeout(due) == []
    assert machine.next_timeout() == due + LIMITS.answer_timeout_s
    assert machine.handle_control(frame(Pong(1, PADDING)), due + 0.1) == []
    assert machine.pongs == 1
    second = machine.next_timeout()
    assert second == due + LIMITS.keepalive_s
    assert said(machine.handle_timeout(second)) == [Ping(2, PADDING)]
    late = machine.handle_timeout(second + LIMITS.answer_timeout_s)
    assert "no answer to a keep-alive" in ended(late, CloseCode.TIMEOUT)


def test_an_answer_to_no_question_ends_the_link():
    machine = dialler()
    machine.handle_connected(ACCEPTOR.node_id, 0.0)
    machine.handle_control(frame(Welcome(NONCE, PADDING)), 0.0)
    ended(machine.handle_control(frame(Pong(0, PADDING)), 1.0), CloseCode.PROTOCOL)


def test_an_acceptor_answers_pings():
    machine = greeted()
    machine.handle_control(frame(identify()), 0.3)
    assert said(machine.handle_control(frame(Ping(9, PADDING)), 1.0)) == [Pong(9, PADDING)]
    assert machine.next_timeout() is None


def test_a_flood_ends_the_link_and_a_steady_rate_does_not():
    raw = encode_control_frame(encode_control(Destroy(5, 1)))
    machine = greeted()
    machine.handle_control(frame(identify()), 0.3)
    now = 1.0
    for _ in range(200):
        now += 0.01
        outputs = machine.handle_control(raw * 40, now)
        assert len(outputs) == 40
    ended(machine.handle_control(raw * 11000, now), CloseCode.FLOOD)


def test_bytes_may_come_in_any_pieces():
    whole = frame(identify()) + encode_control_frame(encode_control(Destroy(5, 1))) * 3
    machine = greeted()
    outputs = []
    for n in range(len(whole)):
        outputs += machine.handle_control(whole[n : n + 1], 1.0)
    assert outputs == [Up(DIALLER.node_id)] + [Deliver(encode_control(Destroy(5, 1)))] * 3
