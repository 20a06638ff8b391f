"""What becomes of packets that belong to no link."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from links_net import ACCEPTOR

from overlay.errors import DecodeError
from overlay.links.acceptor import ANSWERS_PER_S, FULL, Acceptor, Answer, Begin
from overlay.links.backends.base import BackendSettings, load_backend
from overlay.links.certificate import make_certificate
from overlay.links.limits import LinkLimits
from overlay.links.packets import LongHeader, decode_long_header

ADDRESS = ("192.0.2.9", 7777)
INITIAL = LongHeader(1, True, b"original", b"dialler1", b"")
BACKENDS = {
    name: load_backend(name, BackendSettings(*make_certificate(ACCEPTOR.seed), 30.0, "x"))
    for name in ("qh3", "aioquic")
}


def acceptor(limits=None, backend="qh3"):
    rng = random.Random(3)
    return Acceptor(BACKENDS[backend].encode_retry, limits or LinkLimits(), rng.randbytes, bytes(16), 0.0)


def test_an_initial_begins_a_link():
    machine = acceptor()
    assert machine.handle(INITIAL, 1200, ADDRESS, 0.0) == Begin(
        b"original", None, bytes([192, 0, 2, 9]), None
    )
    assert machine.counters.accepted == 1


@pytest.mark.parametrize("backend", ["qh3", "aioquic"])
def test_retry_and_its_token(backend):
    machine = acceptor(LinkLimits(retry_half_open=0), backend)
    answer = machine.handle(INITIAL, 1200, ADDRESS, 0.0)
    assert isinstance(answer, Answer)
    assert len(answer.packet) < 400
    retry = decode_long_header(answer.packet)
    assert retry.destination_cid == b"dialler1"
    assert answer.packet[0] & 0xF0 == 0xF0
    token = answer.packet[7 + len(retry.destination_cid) + len(retry.source_cid) : -16]
    again = LongHeader(1, True, retry.source_cid, b"dialler1", token)
    begin = machine.handle(again, 1200, ADDRESS, 0.1)
    assert begin == Begin(b"original", retry.source_cid, bytes([192, 0, 2, 9]), None)
    for header, address in (
        (again, ("192.0.2.10", 7777)),
        (LongHeader(1, True, b"someother", b"dialler1", token), ADDRESS),
        (LongHeader(1, True, retry.source_cid, b"dialler1", token[:-1]), ADDRESS),
    ):
        assert machine.handle(header, 1200, address, 0.2) is None
    assert machine.counters.refused_tokens == 3


def test_a_full_node_begins_only_to_refuse():
    begin = acceptor(LinkLimits(max_links=0)).handle(INITIAL, 1200, ADDRESS, 0.0)
    assert begin.refusal == FULL


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (INITIAL, 1199),
        (LongHeader(1, False, b"original", b"dialler1", b""), 1200),
        (LongHeader(1, True, b"short", b"dialler1", b""), 1200),
        (LongHeader(0, False, b"original", b"dialler1", b""), 1200),
        (LongHeader(0x1A2A3A4A, False, b"original", b"dialler1", b""), 1199),
    ],
)
def test_what_is_ignored(header, size):
    machine = acceptor()
    assert machine.handle(header, size, ADDRESS, 0.0) is None
    assert machine.counters.ignored_packets == 1


def test_answers_have_a_rate():
    machine = acceptor()
    other = LongHeader(0x1A2A3A4A, False, b"original", b"dialler1", b"")
    answers = [machine.handle(other, 1200, ADDRESS, 0.0) for _ in range(1000)]
    assert sum(answer is not None for answer in answers) == ANSWERS_PER_S
    assert machine.handle(other, 1200, ADDRESS, 1.0) is not None


@given(st.binary(max_size=100), st.integers(0, 1500), st.floats(0, 100))
def test_any_header_is_judged(data, size, now):
    try:
        header = decode_long_header(b"\xc3\0\0\0\1" + data)
    except DecodeError:
        return
    outcome = acceptor().handle(header, size, ADDRESS, now)
    assert outcome is None or (size >= 1200 and isinstance(outcome, Answer | Begin))
