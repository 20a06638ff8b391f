"""The small pure parts of links: framing, packet heads, Retry tokens, admission, buckets, certificates."""

import contextlib
import random
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st
from links_net import ACCEPTOR

from overlay.errors import DecodeError
from overlay.links import admission
from overlay.links.admission import Admission, Verdict, address_prefix
from overlay.links.bucket import Bucket
from overlay.links.certificate import decode_certificate_key, make_certificate
from overlay.links.framing import ControlReader, encode_control_frame
from overlay.links.limits import LinkLimits
from overlay.links.packets import (
    LongHeader,
    decode_long_header,
    encode_version_negotiation,
    encode_version_probe,
)
from overlay.links.redial import FIRST_DELAY_S, LONGEST_DELAY_S, STABLE_S, Redialer
from overlay.links.retry import TOKEN_LIFETIME_S, RetryTokens
from overlay.messages import MAX_MESSAGE_BYTES

# -- framing --


@given(st.lists(st.binary(min_size=1, max_size=600), max_size=20), st.randoms(use_true_random=False))
def test_frames_survive_any_cutting(messages, rng):
    stream = b"".join(map(encode_control_frame, messages))
    reader, got, start = ControlReader(), [], 0
    while start < len(stream):
        end = start + rng.randint(1, 700)
        got += reader.decode_control_frames(stream[start:end])
        start = end
    assert got == messages


def test_lengths_out_of_range_are_refused():
    for length in (0, MAX_MESSAGE_BYTES + 1, 0xFFFF):
        with pytest.raises(DecodeError):
            ControlReader().decode_control_frames(length.to_bytes(2, "big"))
    for length in (0, MAX_MESSAGE_BYTES + 1):
        with pytest.raises(ValueError, match="control message"):
            encode_control_frame(bytes(length))


# -- packet heads --


@given(st.binary(max_size=80))
def test_any_bytes_give_a_header_or_a_decode_error(data):
    try:
        header = decode_long_header(data)
    except DecodeError:
        return
    assert data[0] & 0x80
    assert header.destination_cid in data


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=70))
def test_initials_are_read(destination, source, token):
    length = len(token).to_bytes(1, "big") if len(token) < 64 else (0x4000 | len(token)).to_bytes(2, "big")
    packet = b"".join(
        (
            b"\xc3\0\0\0\1",
            bytes((len(destination),)),
            destination,
            bytes((len(source),)),
            source,
            length,
            token,
            bytes(30),
        )
    )
    assert decode_long_header(packet) == LongHeader(1, True, destination, source, token)
    if token:
        with pytest.raises(DecodeError):
            decode_long_header(packet[: -30 - 1])


def test_version_negotiation_swaps_ids_and_is_no_invitation():
    probe = encode_version_probe(b"destination", b"source", 1200)
    assert len(probe) == 1200
    header = decode_long_header(probe)
    assert not header.is_initial
    answer = encode_version_negotiation(header, 0xFF)
    assert decode_long_header(answer) == LongHeader(0, False, b"source", b"destination", b"")
    assert answer.endswith(b"\0\0\0\1")
    assert len(answer) < len(probe) / 3


# -- Retry tokens --

ADDRESS = ("192.0.2.7", 5555)


def test_tokens_prove_one_address_one_retry_and_a_short_time():
    tokens = RetryTokens(b"k" * 16)
    token = tokens.create(ADDRESS, b"original", b"retrycid", b"n" * 12, 100.0)
    assert tokens.decode_token(token, ADDRESS, b"retrycid", 100.5) == b"original"
    for address, cid, now in (
        (("192.0.2.8", 5555), b"retrycid", 100.5),
        (("192.0.2.7", 5556), b"retrycid", 100.5),
        (ADDRESS, b"othercid", 100.5),
        (ADDRESS, b"retrycid", 100.0 + TOKEN_LIFETIME_S + 1),
        (ADDRESS, b"retrycid", 90.0),
    ):
        with pytest.raises(DecodeError):
            tokens.decode_token(token, address, cid, now)
    with pytest.raises(DecodeError):
        RetryTokens(b"j" * 16).decode_token(token, ADDRESS, b"retrycid", 100.5)


@given(st.binary(max_size=150))
def test_forged_tokens_are_refused(token):
    with pytest.raises(DecodeError):
        RetryTokens(b"k" * 16).decode_token(token, ADDRESS, b"retrycid", 1.0)


# -- admission --

A, B = address_prefix("192.0.2.1"), address_prefix("192.0.2.2")


def test_prefixes():
    assert address_prefix("192.0.2.1") == bytes([192, 0, 2, 1])
    assert address_prefix("::ffff:192.0.2.1") == bytes([192, 0, 2, 1])
    assert address_prefix("2001:db8:1:2:3:4:5:6") == address_prefix("2001:db8:1:2::9")
    assert address_prefix("2001:db8:1:3::9") != address_prefix("2001:db8:1:2::9")


def test_half_open_limits():
    limits = LinkLimits(max_half_open=4, max_half_open_per_address=2, retry_half_open=3)
    gate = Admission(limits, 0.0)
    for _ in range(2):
        assert gate.decide(A, False, 0.0) is Verdict.ACCEPT
        gate.opened(A)
    assert gate.decide(A, False, 0.0) is Verdict.RETRY
    assert gate.decide(A, True, 0.0) is Verdict.DROP
    assert gate.decide(B, False, 0.0) is Verdict.ACCEPT
    gate.opened(B)
    assert gate.decide(B, False, 0.0) is Verdict.RETRY
    assert gate.decide(B, True, 0.0) is Verdict.ACCEPT
    gate.opened(B)
    assert gate.half_open == 4
    assert gate.decide(address_prefix("192.0.2.3"), True, 0.0) is Verdict.DROP
    gate.abandoned(A)
    gate.established(A)
    assert gate.links == 1
    assert gate.decide(address_prefix("192.0.2.3"), False, 0.0) is Verdict.ACCEPT


def test_link_limits_refuse_in_words():
    gate = Admission(LinkLimits(max_links=3, max_links_per_address=2), 0.0)
    for prefix in (A, A, B):
        gate.opened(prefix)
        gate.established(prefix)
    assert gate.decide(A, False, 0.0) is Verdict.REFUSE
    assert gate.decide(B, False, 0.0) is Verdict.REFUSE
    gate.closed(A)
    assert gate.decide(A, False, 0.0) is Verdict.ACCEPT


def test_rates():
    limits = LinkLimits(
        handshakes_per_address_per_s=1,
        handshake_burst_per_address=3,
        handshakes_per_s=100,
        handshake_burst=5,
    )
    gate = Admission(limits, 0.0)
    assert [gate.decide(A, True, 0.0) for _ in range(4)] == [Verdict.ACCEPT] * 3 + [Verdict.DROP]
    assert [gate.decide(B, True, 0.0) for _ in range(3)] == [Verdict.ACCEPT] * 2 + [Verdict.DROP]
    assert gate.decide(A, True, 1.1) is Verdict.ACCEPT
    assert gate.decide(A, False, 1.1) is Verdict.RETRY


def test_remembered_addresses_are_bounded(monkeypatch):
    monkeypatch.setattr(admission, "MAX_BUCKETS", 10)
    gate = Admission(LinkLimits(), 0.0)
    for n in range(100):
        gate.decide(n.to_bytes(4, "big"), False, n * 0.001)
        assert len(gate._buckets) <= 10


def test_counts_return_to_nothing():
    gate = Admission(LinkLimits(), 0.0)
    rng = random.Random(3)
    prefixes = [bytes([n]) * 4 for n in range(5)]
    half, up = [], []
    for _ in range(2000):
        draw = rng.random()
        if draw < 0.4:
            half.append(rng.choice(prefixes))
            gate.opened(half[-1])
        elif half and draw < 0.6:
            up.append(half.pop())
            gate.established(up[-1])
        elif half and draw < 0.8:
            gate.abandoned(half.pop())
        elif up:
            gate.closed(up.pop())
    for prefix in half:
        gate.abandoned(prefix)
    for prefix in up:
        gate.closed(prefix)
    assert gate.links == gate.half_open == 0
    assert not gate._half_open_by
    assert not gate._links_by


def test_a_bucket():
    bucket = Bucket(10, 5, 100.0)
    assert [bucket.take(1, 100.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(1, 50.0)  # a clock that goes back gives nothing
    assert not bucket.is_full(100.0)
    assert bucket.take(1, 100.15)
    assert bucket.is_full(200.0)
    assert not bucket.take(6, 200.0)


# -- redialling --


def test_redialling_backs_off_with_jitter_and_forgets_after_a_stable_link():
    redialer = Redialer(random.Random(1), 10.0)
    assert redialer.next_dial() == 10.0
    now, expected = 10.0, FIRST_DELAY_S
    for _ in range(20):
        redialer.handle_dialling()
        assert redialer.next_dial() is None
        redialer.handle_failed(now)
        delay = redialer.next_dial() - now
        assert expected / 2 <= delay <= expected
        now, expected = redialer.next_dial(), min(LONGEST_DELAY_S, expected * 2)
    redialer.handle_dialling()
    redialer.handle_up(now)
    assert redialer.next_dial() is None
    redialer.handle_closed(now + 1)  # it did not last: keep backing off
    assert redialer.next_dial() - now > LONGEST_DELAY_S / 2
    redialer.handle_up(now)
    redialer.handle_closed(now + STABLE_S)
    assert redialer.next_dial() <= now + STABLE_S + FIRST_DELAY_S
    assert redialer.failures == 1


# -- certificates --


def test_the_certificate_holds_the_identity_and_nothing_else():
    pem, key = make_certificate(ACCEPTOR.seed)
    certificate = load_pem_x509_certificate(pem)
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert decode_certificate_key(der) == ACCEPTOR.node_id
    assert len(der) < 400
    assert make_certificate(ACCEPTOR.seed) == (pem, key)
    with pytest.raises(ValueError, match="32 bytes"):
        make_certificate(b"short")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(der):
    with pytest.raises(DecodeError):
        decode_certificate_key(der)


@given(st.data())
def test_damaged_certificates_are_refused_or_read(data):
    der = bytearray(
        load_pem_x509_certificate(make_certificate(ACCEPTOR.seed)[0]).public_bytes(serialization.Encoding.DER)
    )
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DecodeError):
        assert len(decode_certificate_key(bytes(der))) == 32


def test_other_keys_are_refused():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2040, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(DecodeError, match="Ed25519"):
        decode_certificate_key(certificate.public_bytes(serialization.Encoding.DER))
    with pytest.raises(DecodeError, match="too long"):
        decode_certificate_key(bytes(5000))
