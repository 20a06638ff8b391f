"""SOCKS5 and HTTP CONNECT, told as dialogues, split anywhere, and fed with garbage."""

import base64
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.socks.circuits import (
    NO_ISOLATION,
    Destination,
    Isolation,
    NoCircuitKind,
    Transport,
    isolation_of,
    parse_destination,
)
from overlay.socks.events import Associate, Close, Connect, Established, Event, Resolve, Send
from overlay.socks.machine import ProxyMachine
from overlay.socks.outcome import SUCCESS, Outcome, Reply, no_circuit_outcome
from overlay.socks.socks5 import decode_address, encode_address
from overlay.socks.udp import decode_datagram, encode_header

HELLO = b"\x05\x01\x00"
USER = b"\x05\x02\x00\x02" + b"\x01\x05alice\x06secret"
TO_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
EXAMPLE = Destination("example.com", 443, 0)
ALICE = isolation_of(b"alice", b"secret")
ZERO_ADDRESS = b"\x01\x00\x00\x00\x00\x00\x00"


def hear(*messages: bytes) -> list[Event]:
    """Return what a machine does when a client sends these messages."""
    machine = ProxyMachine()
    return [event for message in messages for event in machine.receive(message)]


def answered(request: bytes, outcome: Outcome) -> list[Event]:
    machine = ProxyMachine()
    machine.receive(request)
    return machine.finish(outcome)


def joined(events: list[Event]) -> list[Event]:
    """Put neighbouring sends together."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, Send) and result and isinstance(result[-1], Send):
            event = Send(result.pop().data + event.data)  # type: ignore[union-attr]
        result.append(event)
    return result


def test_connect_to_a_name() -> None:
    machine = ProxyMachine()
    assert machine.receive(HELLO) == [Send(b"\x05\x00")]
    assert machine.receive(TO_NAME) == [Connect(EXAMPLE, NO_ISOLATION)]
    assert machine.receive(b"early") == []
    assert machine.finish(SUCCESS) == [Send(b"\x05\x00\x00" + ZERO_ADDRESS), Established(b"early")]
    assert machine.receive(b"more") == machine.finish(SUCCESS) == []


@pytest.mark.parametrize(
    ("address", "destination"),
    [
        (b"\x01\xc6\x33\x64\x07\x00\x50", Destination("198.51.100.7", 80, 4)),
        (b"\x04" + IPv6Address("2001:db8::7").packed + b"\x00\x50", Destination("2001:db8::7", 80, 6)),
        (b"\x04" + IPv6Address("::ffff:192.0.2.1").packed + b"\x00\x50", Destination("192.0.2.1", 80, 4)),
        (b"\x03\x0c198.51.100.7\x00\x50", Destination("198.51.100.7", 80, 4)),
        (b"\x03\x0b2001:db8::7\x00\x50", Destination("2001:db8::7", 80, 6)),
        (b"\x03\x0d[2001:db8::7]\x00\x50", Destination("2001:db8::7", 80, 6)),
        (b"\x03\x0cEXAMPLE.com.\x00\x50", Destination("example.com", 80, 0)),
        (b"\x03\x073.x.com\x00\x50", Destination("3.x.com", 80, 0)),
    ],
)
def test_connect_understands_every_address_type(address: bytes, destination: Destination) -> None:
    assert hear(HELLO, b"\x05\x01\x00" + address)[1:] == [Connect(destination, NO_ISOLATION)]


def test_credentials_choose_an_isolated_circuit() -> None:
    assert hear(USER, TO_NAME) == [Send(b"\x05\x02"), Send(b"\x01\x00"), Connect(EXAMPLE, ALICE)]
    assert hear(b"\x05\x01\x02", b"\x01\x00\x00", TO_NAME)[-1] == Connect(EXAMPLE, NO_ISOLATION)
    keys = {isolation_of(*pair).key for pair in ((b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"", b"abc"))}
    assert len(keys) == 4
    assert "secret" not in repr(ALICE) + repr(EXAMPLE)
    assert isinstance(ALICE, Isolation)


def test_udp_associate_tells_the_client_s_address() -> None:
    nothing = b"\x05\x03\x00" + ZERO_ADDRESS
    assert hear(HELLO, nothing)[1:] == [Associate(None, NO_ISOLATION)]
    port = b"\x05\x03\x00\x01\x00\x00\x00\x00\x13\x88"
    assert hear(HELLO, port)[1:] == [Associate(Destination("", 5000, 0, Transport.UDP), NO_ISOLATION)]
    both = b"\x05\x03\x00\x01\x7f\x00\x00\x01\x13\x88"
    assert hear(HELLO, both)[1:] == [
        Associate(Destination("127.0.0.1", 5000, 4, Transport.UDP), NO_ISOLATION)
    ]
    relay = Outcome(Reply.SUCCEEDED, host="::1", port=4000)
    assert answered(HELLO + nothing, relay) == [
        Send(b"\x05\x00\x00\x04" + IPv6Address("::1").packed + b"\x0f\xa0"),
        Established(b""),
    ]


def test_tor_s_lookups() -> None:
    forward = b"\x05\xf0\x00\x03\x0bexample.com\x00\x00"
    name = Destination("example.com", 0, 0, Transport.DNS)
    assert hear(HELLO, forward)[1:] == [Resolve(name, NO_ISOLATION, is_reverse=False)]
    found = Outcome(Reply.SUCCEEDED, host="198.51.100.7")
    assert answered(HELLO + forward, found) == [
        Send(b"\x05\x00\x00\x01\xc6\x33\x64\x07\x00\x00"),
        Close("resolved"),
    ]
    reverse = b"\x05\xf1\x00\x01\xc6\x33\x64\x07\x00\x00"
    address = Destination("198.51.100.7", 0, 4, Transport.DNS)
    assert hear(HELLO, reverse)[1:] == [Resolve(address, NO_ISOLATION, is_reverse=True)]
    assert answered(HELLO + reverse, Outcome(Reply.SUCCEEDED, host="example.com"))[0] == Send(
        b"\x05\x00\x00\x03\x0bexample.com\x00\x00"
    )


@pytest.mark.parametrize(
    ("messages", "answer", "reason"),
    [
        ((b"\x05\x01\x01",), b"\x05\xff", "no method in common"),
        ((b"\x05\x00",), b"\x05\xff", "no method in common"),
        ((b"\x05\x01\x02", b"\x05\x01"), b"\x05\x02\x01\x01", "bad credentials message"),
        ((HELLO, b"\x04"), b"\x05\x00\x05\x01\x00" + ZERO_ADDRESS, "bad request version"),
        ((HELLO, b"\x05\x02"), b"\x05\x00\x05\x07\x00" + ZERO_ADDRESS, "command not supported"),
        ((HELLO, b"\x05\x09"), b"\x05\x00\x05\x07\x00" + ZERO_ADDRESS, "command not supported"),
        ((HELLO, b"\x05\x01\x00\x02"), b"\x05\x00\x05\x08\x00" + ZERO_ADDRESS, "address type not supported"),
        ((HELLO, b"\x05\xf1\x00\x03"), b"\x05\x00\x05\x08\x00" + ZERO_ADDRESS, "address type not supported"),
        ((HELLO, b"\x05\x01\x00\x03\x00\x00\x50"), b"\x05\x00\x05\x08\x00" + ZERO_ADDRESS, "not a name"),
        (
            (HELLO, b"\x05\x01\x00\x03\x03a\x00b\x00\x50"),
            b"\x05\x00\x05\x08\x00" + ZERO_ADDRESS,
            "not a name",
        ),
        (
            (HELLO, b"\x05\x01\x00\x03\x02\xff\xfe\x00\x50"),
            b"\x05\x00\x05\x08\x00" + ZERO_ADDRESS,
            "not a name",
        ),
        (
            (HELLO, b"\x05\x01\x00\x01\x01\x01\x01\x01\x00\x00"),
            b"\x05\x00\x05\x05\x00" + ZERO_ADDRESS,
            "port 0",
        ),
        ((b"\x04\x01\x00\x50\x01\x01\x01\x01\x00",), b"\x00\x5b" + bytes(6), "socks4"),
        ((b"\x16\x03\x01",), b"", "unknown protocol"),
    ],
)
def test_what_is_refused_and_how(messages: tuple[bytes, ...], answer: bytes, reason: str) -> None:
    events = joined(hear(*messages, b"ignored"))
    assert events == ([Send(answer)] if answer else []) + [Close(reason)]


@pytest.mark.parametrize("reply", [reply for reply in Reply if reply])
def test_every_reply_code_is_sent_and_the_connection_closed(reply: Reply) -> None:
    assert answered(HELLO + TO_NAME, Outcome(reply)) == [
        Send(bytes((5, reply, 0)) + ZERO_ADDRESS),
        Close(reply.name.lower()),
    ]
    (send, _) = answered(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", Outcome(reply, "Why."))
    assert isinstance(send, Send)
    assert b"Why." in send.data
    assert 400 <= int(send.data.split()[1]) < 600


def test_no_circuit_has_a_code_for_each_kind() -> None:
    replies = {kind: no_circuit_outcome(kind, "no exit allows port 25").reply for kind in NoCircuitKind}
    assert replies[NoCircuitKind.NOT_ALLOWED] is Reply.NOT_ALLOWED
    assert replies[NoCircuitKind.NO_IPV6] is Reply.NETWORK_UNREACHABLE
    assert Reply.SUCCEEDED not in replies.values()


def test_http_connect() -> None:
    machine = ProxyMachine()
    secret = base64.b64encode(b"alice:secret")
    head = (
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic " + secret + b"\r\n\r\n"
    )
    assert machine.receive(head + b"early") == [Connect(EXAMPLE, ALICE)]
    machine.receive(b" data")
    assert machine.finish(SUCCESS) == [
        Send(b"HTTP/1.1 200 Connection established\r\n\r\n"),
        Established(b"early data"),
    ]
    assert hear(b"CONNECT [2001:db8::7]:80 HTTP/1.0\n\n") == [
        Connect(Destination("2001:db8::7", 80, 6), NO_ISOLATION)
    ]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 501),
        (b"CONNECT example.com HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT 2001:db8::7:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT example.com:99999 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT example.com:0 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nX: " + b"a" * 9000, 431),
        (b"CONNECT a:1 HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    ],
)
def test_http_refusals_say_what_to_do(request_bytes: bytes, status: int) -> None:
    send, close = hear(request_bytes)
    assert isinstance(send, Send)
    head, _, body = send.data.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"SOCKS5" in body
    assert close == Close(f"http {status}")


def test_udp_headers() -> None:
    header = b"\x00\x00\x00\x03\x0bexample.com\x00\x35"
    assert decode_datagram(header + b"payload") == (
        Destination("example.com", 53, 0, Transport.UDP),
        len(header),
    )
    assert decode_datagram(encode_header("2001:db8::7", 9) + b"x") == (
        Destination("2001:db8::7", 9, 6, Transport.UDP),
        22,
    )
    fragment = b"\x00\x00\x01" + header[3:]
    for bad in (b"", header[:-1], fragment, b"\x01" + header[1:], header[:-2] + b"\x00\x00", header[:4]):
        assert decode_datagram(bad) is None


STARTS = st.sampled_from(
    [
        b"",
        HELLO,
        HELLO + TO_NAME,
        USER,
        USER + TO_NAME,
        HELLO + b"\x05\xf0\x00",
        HELLO + b"\x05\x03\x00\x04",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ",
        b"CONNECT \n\n",
        b"\x05",
        b"\x04",
    ]
)


@settings(max_examples=500)
@given(start=STARTS, rest=st.binary(max_size=600), data=st.data())
def test_any_bytes_in_any_pieces_give_the_same_events_and_never_raise(
    start: bytes, rest: bytes, data: st.DataObject
) -> None:
    stream = start + rest
    outcome = Outcome(data.draw(st.sampled_from(list(Reply))), "text", data.draw(st.text(max_size=300)), 7)

    def dialogue(pieces: list[bytes]) -> list[Event]:
        machine = ProxyMachine()
        events: list[Event] = []
        for piece in pieces:
            events += machine.receive(piece)
        events += machine.finish(outcome)
        assert machine.finish(outcome) == []
        return joined(events)

    whole = dialogue([stream])
    assert dialogue([stream[i : i + 1] for i in range(len(stream))]) == whole
    cut = data.draw(st.integers(0, len(stream)))
    assert dialogue([stream[:cut], stream[cut:]]) == whole
    ends = [event for event in whole if isinstance(event, Close | Established)]
    assert len(ends) <= 1
    assert not ends or whole[-1] is ends[0]


@given(st.binary(max_size=300))
def test_udp_headers_never_raise(datagram: bytes) -> None:
    decode_datagram(datagram)
    decode_datagram(b"\x00\x00\x00" + datagram)


@given(host=st.one_of(st.ip_addresses().map(str), st.from_regex(r"\A[a-z]{1,9}(\.[a-z]{1,9}){0,3}\Z")))
def test_addresses_round_trip(host: str) -> None:
    expected = parse_destination(host, 80)
    assert expected is not None
    assert decode_address(encode_address(host, 80), 0, Transport.TCP) == (
        expected,
        len(encode_address(host, 80)),
    )


@given(st.text(max_size=300), st.integers(0, 65535))
def test_any_text_is_a_destination_or_none(host: str, port: int) -> None:
    found = parse_destination(host, port)
    assert found is None or 0 < len(found.host) <= 253
    if found is not None and found.ip_version:
        assert str((IPv4Address if found.ip_version == 4 else IPv6Address)(found.host)) == found.host
