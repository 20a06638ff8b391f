"""NAT-PMP against a router on loopback, which answers as it is told to."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import DecodeError
from overlay.node.io import natpmp
from overlay.node.io.natpmp import (
    OP_ADDRESS,
    OP_MAP_UDP,
    NatPmpError,
    NatPmpRouter,
    decode_answer,
    decode_gateway,
)

# RFC 6886, 3.2 and 3.3: version 0, opcode 128 + op, result, seconds since the router's start, and the rest.
ADDRESS = bytes.fromhex("00800000 00000a00 08080404")
MAPPED = bytes.fromhex("00810000 00000a00 1151 c350 00000e10")


class Gateway:
    """Answers each request with what `answers` makes of it: a list of datagrams."""

    def __init__(self, answers):
        self.requests = []
        self._answers = answers
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        while True:
            request, sender = self._socket.recvfrom(64)
            if request == b"end":
                return
            self.requests.append(request)
            for answer in self._answers(request, len(self.requests)):
                self._socket.sendto(answer, sender)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"end", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()


def good(request, _):
    if request == b"\0\0":
        return [ADDRESS]
    _, _, _, inner, outer, lifetime = struct.unpack("!BBHHHI", request)
    return [struct.pack("!BBHIHHI", 0, 129, 0, 9, inner, outer if lifetime else 0, lifetime)]


def test_address_and_port():
    with Gateway(good) as gateway:
        router = NatPmpRouter("127.0.0.1", gateway.port)
        assert router.external_address() == "8.8.4.4"
        assert router.map_udp(4433, 4434, 3600) == (4434, 3600)
        assert router.map_udp(4433, 0, 0) == (0, 0)
    assert gateway.requests == [
        b"\0\0",
        bytes.fromhex("00010000 1151 1152 00000e10"),
        bytes.fromhex("00010000 1151 0000 00000000"),
    ]


def test_a_lost_answer_is_asked_for_again_and_others_are_passed_over():
    def answer(request, number):
        return [] if number == 1 else [b"", b"\0", MAPPED, ADDRESS[:-1], ADDRESS + b"\0", ADDRESS]

    with Gateway(answer) as gateway:
        assert NatPmpRouter("127.0.0.1", gateway.port).external_address() == "8.8.4.4"
    assert len(gateway.requests) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (bytes.fromhex("00810002 00000000"), "not authorised"),
        (bytes.fromhex("00810004 00000000 1151 0000 00000000"), "no ports left"),
        (bytes.fromhex("00810063 00000000"), "code 99"),
        (bytes.fromhex("02810001 00000000"), "does not speak this version"),
        (bytes.fromhex("00810000 00000000 1152 1151 00000e10"), "another port"),
        (bytes.fromhex("00810000 00000000 1151 0000 00000e10"), "another port"),
    ],
)
def test_a_refusal_is_said(answer, words):
    with Gateway(lambda *_: [answer]) as gateway, pytest.raises(NatPmpError, match=words):
        NatPmpRouter("127.0.0.1", gateway.port).map_udp(4433, 4433, 3600)


def test_a_router_that_is_silent_or_does_not_speak_it(monkeypatch):
    monkeypatch.setattr(natpmp, "FIRST_WAIT_S", 0.01)
    with Gateway(lambda *_: []) as gateway, pytest.raises(NatPmpError, match="does not answer"):
        NatPmpRouter("127.0.0.1", gateway.port).external_address()
    assert len(gateway.requests) == natpmp.TRIES
    with pytest.raises(NatPmpError, match="does not speak it"):
        NatPmpRouter("127.0.0.1", gateway.port).external_address()


def test_a_flood_of_nonsense_ends_with_the_wait(monkeypatch):
    monkeypatch.setattr(natpmp, "FIRST_WAIT_S", 0.01)
    with Gateway(lambda *_: [b"nonsense"] * 50) as gateway, pytest.raises(NatPmpError):
        NatPmpRouter("127.0.0.1", gateway.port).external_address()


@given(st.binary(max_size=64), st.sampled_from([OP_ADDRESS, OP_MAP_UDP]))
def test_any_bytes_are_an_answer_or_refused(data, op):
    try:
        body = decode_answer(data, op)
    except (DecodeError, NatPmpError):
        return
    assert len(body) == (4 if op == OP_ADDRESS else 8)


TABLE = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
wlan0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0
eth0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0
tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0
eth0 0002A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0
"""


def test_the_default_router_is_the_one_with_the_least_metric():
    assert decode_gateway(TABLE) == "192.168.2.1"
    assert decode_gateway(TABLE.splitlines()[0]) is None
    assert decode_gateway("") is None


@given(st.text(max_size=300))
def test_any_table_is_read(text):
    decode_gateway("head\n" + text)
