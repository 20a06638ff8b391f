"""Links of both back ends and mixed, joined in memory under a clock of their own."""

import hashlib
import random
import re

import pytest
from links_net import ACCEPTOR, DIALLER, PAIR_IDS, PAIRS, STRANGER, Pair

from overlay.links.certificate import make_certificate
from overlay.links.constants import LINK_FRAME, CloseCode
from overlay.links.limits import LinkLimits
from overlay.messages import Goodbye, encode_control

pairs = pytest.mark.parametrize("backends", PAIRS, ids=PAIR_IDS)
CONTROL = encode_control(Goodbye(1, "see you"))


@pairs
def test_a_relay_is_identified_and_knows_whom_it_dialled(backends):
    pair = Pair(backends).connect()
    assert pair.handlers[0].ups == [ACCEPTOR.node_id]
    assert pair.handlers[1].ups == [DIALLER.node_id]
    assert pair.dialler.is_dialler
    assert not pair.acceptor.is_dialler
    assert pair.dialler.rtt_s == pytest.approx(0.02, rel=0.5)


@pairs
def test_a_customer_stays_anonymous(backends):
    pair = Pair(backends, signer=None).connect()
    assert pair.handlers[1].ups == [None]
    assert pair.acceptor.peer is None


@pairs
def test_the_wrong_node_is_refused(backends):
    pair = Pair(backends, expected=STRANGER.node_id)
    pair.run_until(lambda: pair.dialler.end is not None)
    assert pair.dialler.end.code == CloseCode.WRONG_IDENTITY
    assert "not the expected one" in pair.dialler.end.reason
    pair.run_until(lambda: pair.acceptor.end is not None)
    assert pair.handlers[0].ups == pair.handlers[1].ups == []
    assert pair.handlers[0].closes == pair.handlers[1].closes == []


@pairs
def test_a_stolen_certificate_without_its_key_is_refused(backends):
    certificate, _ = make_certificate(ACCEPTOR.seed)
    _, key = make_certificate(STRANGER.seed)
    pair = Pair(backends, certificate=(certificate, key))
    pair.run_until(lambda: pair.dialler.end is not None)
    assert pair.dialler.end.code == CloseCode.TRANSPORT
    assert pair.handlers[0].ups == []


@pairs
def test_another_version_fails_with_a_sentence(backends):
    pair = Pair(backends, alpn=("hopfare/2", "hopfare/1"))
    pair.run_until(lambda: pair.dialler.end is not None)
    assert pair.dialler.end.code == CloseCode.VERSION
    assert "another version" in pair.dialler.end.reason


@pairs
def test_a_refusal_is_told_in_words(backends):
    pair = Pair(backends, refusal="as many links as it takes")
    pair.run_until(lambda: pair.dialler.end is not None)
    assert pair.dialler.end.code == CloseCode.REFUSED
    assert pair.dialler.end.reason == "as many links as it takes"


@pairs
def test_control_messages_arrive_in_order_both_ways(backends):
    pair = Pair(backends).connect()
    messages = [encode_control(Goodbye(n, "x" * (n % 190))) for n in range(500)]
    for message in messages:
        pair.dialler.send_control(message)
        pair.acceptor.send_control(message)
    pair.flush()
    pair.run_until(lambda: all(len(handler.controls) == 500 for handler in pair.handlers))
    assert pair.handlers[0].controls == pair.handlers[1].controls == messages


@pairs
def test_datagrams_of_the_one_size_arrive_and_others_cannot_be_sent(backends):
    pair = Pair(backends).connect()
    frames = [bytes([n]) * LINK_FRAME for n in range(20)]
    assert pair.dialler.send_datagrams(frames) == 20
    assert pair.acceptor.send_datagrams(frames[:10]) == 10
    pair.flush()
    pair.run_until(lambda: len(pair.handlers[1].frames) == 20 and len(pair.handlers[0].frames) == 10)
    assert pair.handlers[1].frames == frames
    for size in (0, LINK_FRAME - 1, LINK_FRAME + 1):
        with pytest.raises(ValueError, match="1388"):
            pair.dialler.send_datagrams([bytes(size)])


@pairs
def test_datagrams_of_other_sizes_are_dropped_and_then_cost_the_link(backends):
    pair = Pair(backends).connect()
    connection = pair.sides[0].connection
    connection.send_datagrams([bytes(1000), bytes(LINK_FRAME), bytes(1)])
    pair.dialler.send_control(CONTROL)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].frames and pair.handlers[1].controls)
    assert pair.handlers[1].frames == [bytes(LINK_FRAME)]
    assert pair.acceptor.dropped_datagrams == 2
    assert pair.acceptor.end is None
    connection.send_datagrams([bytes(7)] * 20)
    pair.dialler.send_control(CONTROL)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes and pair.handlers[1].closes)
    assert pair.handlers[1].closes == [(CloseCode.PROTOCOL, "datagrams of a wrong size")]
    assert pair.handlers[0].closes == pair.handlers[1].closes


def _send_all(pair, link, data, stream_id):
    """Feed a stream as an engine does: up to a backlog, then when the link is writable."""
    position = 0

    def feed(_=None):
        nonlocal position
        while position < len(data) and link.stream_backlog() < 512 * 1024:
            chunk = data[position : position + 65536]
            position += len(chunk)
            link.send_stream(stream_id, chunk, position == len(data))

    pair.handlers[0 if link.is_dialler else 1].on_room = feed
    feed()
    pair.flush()


@pairs
def test_ten_megabytes_both_ways_with_loss_reordering_and_duplicates(backends):
    rng = random.Random(7)
    pair = Pair(backends, delay_s=0.005).connect()
    held = []

    def trouble(_, datagram):
        draw = rng.random()
        if draw < 0.01:
            return []
        if draw < 0.02:
            return [datagram, datagram]
        if draw < 0.03:
            held.append(datagram)
            return []
        return [datagram, *([held.pop()] if held and draw < 0.5 else [])]

    size = 10 * 1024 * 1024
    data = [rng.randbytes(size), rng.randbytes(size)]
    streams = [pair.dialler.open_stream(), pair.acceptor.open_stream()]
    assert streams[0] & 3 == 2
    assert streams[1] & 3 == 3
    # Reordering within one direction only: a held packet must not change sides.
    pair.filter = lambda index, datagram: trouble(index, datagram) if index == 0 else [datagram]
    _send_all(pair, pair.dialler, data[0], streams[0])
    _send_all(pair, pair.acceptor, data[1], streams[1])
    pair.run_until(lambda: pair.handlers[0].finished and pair.handlers[1].finished, limit_s=300)
    for index in (0, 1):
        received = pair.handlers[1 - index].streams[streams[index]]
        assert hashlib.sha256(received).digest() == hashlib.sha256(data[index]).digest()
    pair.dialler.housekeeping(pair.now)
    assert 0 < pair.dialler.loss < 0.2


@pairs
def test_resets_and_stops_are_reported(backends):
    pair = Pair(backends).connect()
    ours, other = pair.dialler.open_stream(), pair.dialler.open_stream()
    pair.dialler.send_stream(ours, b"abc")
    pair.dialler.send_stream(other, b"def")
    pair.flush()
    pair.run_until(lambda: len(pair.handlers[1].streams) == 2)
    pair.dialler.reset_stream(ours, 33)
    pair.acceptor.stop_stream(other, 44)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].resets and pair.handlers[0].resets)
    assert pair.handlers[1].resets[0] == (ours, 33)
    assert pair.handlers[0].resets == [(other, 44)]
    # What comes after is ignored, not an error.
    for stream_id in (ours, other):
        pair.dialler.send_stream(stream_id, b"late")
        pair.dialler.reset_stream(stream_id, 1)
        pair.acceptor.stop_stream(stream_id, 1)
    pair.flush()
    assert pair.dialler.stream_backlog() == 0
    pair.dialler.send_control(CONTROL)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].controls)
    assert pair.dialler.end is pair.acceptor.end is None


@pairs
def test_a_link_carries_thousands_of_streams_at_once(backends):
    pair = Pair(backends).connect()
    count = 1500
    for n in range(count):
        pair.dialler.send_stream(pair.dialler.open_stream(), n.to_bytes(4, "big"))
    pair.flush()
    pair.run_until(lambda: len(pair.handlers[1].streams) == count)
    values = sorted(int.from_bytes(data, "big") for data in pair.handlers[1].streams.values())
    assert values == list(range(count))


@pairs
def test_streams_that_end_make_room_for_others(backends):
    pair = Pair(backends, limits=LinkLimits(idle_timeout_s=600)).connect()
    for _ in range(40):
        for _ in range(100):
            stream_id = pair.acceptor.open_stream()
            pair.acceptor.send_stream(stream_id, b"x", True)
        pair.flush()
        expected = len(pair.handlers[0].finished) + 100
        pair.run_until(lambda: len(pair.handlers[0].finished) == expected)  # noqa: B023
    assert pair.dialler.end is pair.acceptor.end is None


@pairs
@pytest.mark.parametrize("closer", [0, 1])
def test_a_close_carries_code_and_reason(backends, closer):
    pair = Pair(backends).connect()
    link = pair.sides[closer].link
    link.close(77, "so long")
    link.close(78, "twice")
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes and pair.handlers[1].closes)
    assert pair.handlers[0].closes == pair.handlers[1].closes == [(77, "so long")]
    # A dead link takes everything and does nothing.
    link.send_control(CONTROL)
    assert link.send_datagrams([bytes(LINK_FRAME)]) == 0
    assert link.datagram_room() == 0
    assert link.stream_backlog() == 0
    link.send_stream(2, b"x")
    link.reset_stream(2, 0)
    link.stop_stream(3, 0)
    assert pair.handlers[1 - closer].controls == []


@pairs
def test_noise_and_damage_do_no_harm(backends):
    rng = random.Random(11)
    pair = Pair(backends).connect()
    seen = []
    pair.filter = lambda index, datagram: seen.append((index, datagram)) or [datagram]
    for _ in range(20):
        pair.dialler.send_datagrams([rng.randbytes(LINK_FRAME)])
        pair.acceptor.send_control(CONTROL)
        pair.flush()
        pair.step()
    for index, datagram in list(seen):
        damaged = bytearray(datagram)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        pair.inject(1 - index, bytes(damaged))
        pair.inject(1 - index, datagram[: rng.randrange(1, len(datagram))])
        pair.inject(1 - index, rng.randbytes(rng.randrange(1, 1452)))
        pair.inject(1 - index, datagram[:9] + rng.randbytes(300))
        pair.inject(1 - index, datagram)  # once more, as it was
    pair.run_until(lambda: len(pair.handlers[1].frames) == 20 and len(pair.handlers[0].controls) == 20)
    assert pair.dialler.end is pair.acceptor.end is None


@pairs
def test_damage_during_the_handshake_only_delays_it(backends):
    rng = random.Random(5)
    pair = Pair(backends, start=False)
    damaged = 0

    def damage(_, datagram):
        nonlocal damaged
        if damaged < 12 and rng.random() < 0.5:
            damaged += 1
            bad = bytearray(datagram)
            bad[rng.randrange(7 if damaged % 2 else min(40, len(bad) - 1), len(bad))] ^= 1 << rng.randrange(8)
            return [bytes(bad)] if damaged % 3 else [datagram[: len(datagram) // 2]]
        return [datagram]

    pair.filter = damage
    pair.dialler.connect(pair.now)
    pair.flush()
    pair.run_until(lambda: pair.both_up or pair.dialler.end is not None)
    assert pair.both_up or re.search("no answer|QUIC", pair.dialler.end.reason)


@pairs
def test_a_path_that_loses_full_packets_is_refused(backends):
    pair = Pair(backends, start=False)
    pair.filter = lambda _, datagram: [datagram] if len(datagram) <= 1400 else []
    pair.dialler.connect(pair.now)
    pair.flush()
    pair.run_until(lambda: pair.dialler.end is not None)
    if backends == ("qh3", "qh3"):  # its handshake packets are of 1280 bytes and pass
        assert pair.dialler.end.code == CloseCode.PATH_TOO_SMALL
        assert "path MTU too small" in pair.dialler.end.reason
    else:
        assert pair.dialler.end.code in (CloseCode.PATH_TOO_SMALL, CloseCode.TIMEOUT)
    assert pair.handlers[0].ups == []


@pairs
def test_a_path_that_shrinks_ends_the_link(backends):
    pair = Pair(backends).connect()
    pair.filter = lambda _, datagram: [datagram] if len(datagram) <= 1400 else []
    pair.run_until(lambda: pair.dialler.end is not None, limit_s=40)
    assert pair.dialler.end.code == CloseCode.TIMEOUT


@pairs
def test_an_idle_link_is_kept_alive_and_a_dead_one_ends(backends):
    pair = Pair(backends).connect()
    pair.run_for(300)
    assert pair.dialler.end is pair.acceptor.end is None
    start = pair.now
    pair.filter = lambda *_: []
    pair.run_for(80)
    assert pair.dialler.end.code == CloseCode.TIMEOUT
    assert pair.acceptor.end.code == CloseCode.TIMEOUT
    assert pair.now - start < 81


@pairs
def test_a_silent_peer_is_noticed_within_seconds_while_data_flows(backends):
    pair = Pair(backends).connect()
    stream_id = pair.dialler.open_stream()
    pair.filter = lambda *_: []
    pair.dialler.send_stream(stream_id, bytes(10000))
    pair.flush()
    start = pair.now
    while pair.dialler.end is None and pair.now < start + 20:
        pair.run_for(1)
    assert pair.dialler.end.code == CloseCode.TIMEOUT
    assert pair.now - start < 15


@pairs
def test_a_flood_of_control_messages_ends_the_link(backends):
    limits = LinkLimits(control_messages_per_s=100, control_burst=200)
    pair = Pair(backends, limits=limits).connect()
    for _ in range(1000):
        pair.dialler.send_control(CONTROL)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes)
    assert pair.handlers[1].closes == [(CloseCode.FLOOD, "too many control messages")]
    assert len(pair.handlers[1].controls) <= 201


@pairs
def test_control_messages_that_are_not_read_end_the_link(backends):
    pair = Pair(backends, limits=LinkLimits(max_control_backlog_bytes=100_000)).connect()
    pair.filter = lambda *_: []
    for _ in range(5000):
        pair.dialler.send_control(encode_control(Goodbye(1, "x" * 200)))
    pair.flush()
    assert pair.handlers[0].closes == [(CloseCode.FLOOD, "control messages are not being read")]


@pairs
@pytest.mark.parametrize("raw", [b"\0\0", b"\x40\x01" + bytes(16385), b"\0\1\xff", b"\0\3\x92\x01\xc3"])
def test_a_bad_control_stream_ends_the_link(backends, raw):
    pair = Pair(backends).connect()
    pair.sides[0].connection.send_stream(0, raw, False)
    pair.dirty.add(0)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes)
    assert pair.handlers[1].closes[0][0] == CloseCode.PROTOCOL


@pairs
def test_ending_the_control_stream_ends_the_link(backends):
    pair = Pair(backends).connect()
    pair.sides[0].connection.send_stream(0, b"", True)
    pair.dirty.add(0)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes)
    assert pair.handlers[1].closes == [(CloseCode.PROTOCOL, "the control stream was ended")]


@pairs
def test_a_second_bidirectional_stream_ends_the_link(backends):
    pair = Pair(backends).connect()
    pair.sides[0].connection.send_stream(4, b"hello", False)
    pair.dirty.add(0)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].closes)
    assert pair.handlers[1].closes == [(CloseCode.PROTOCOL, "a stream of a kind that is not used")]


@pairs
def test_stream_data_that_overtakes_the_greeting_waits_and_is_bounded(backends):
    pair = Pair(backends)
    sender = pair.sides[0].connection
    original = pair.dialler._machine.handle_connected

    def first_a_stream(key, now):  # before the Hello
        stream_id = sender.open_stream()
        sender.send_stream(stream_id, b"early bird", True)
        sender.send_datagrams([bytes(LINK_FRAME)])
        return original(key, now)

    pair.dialler._machine = _Proxy(pair.dialler._machine, handle_connected=first_a_stream)
    pair.connect()
    pair.run_until(lambda: pair.handlers[1].finished)
    assert list(pair.handlers[1].streams.values()) == [b"early bird"]

    pair = Pair(backends)
    sender = pair.sides[0].connection

    def only_a_stream(key, now):
        sender.send_stream(sender.open_stream(), bytes(400_000), False)
        return []

    pair.dialler._machine = _Proxy(pair.dialler._machine, handle_connected=only_a_stream)
    pair.run_until(lambda: pair.sides[1].link is not None and pair.acceptor.end is not None)
    assert pair.acceptor.end.reason == "stream data before the greeting"


class _Proxy:
    """A machine with one method replaced."""

    def __init__(self, machine, **replaced):
        self.__dict__.update(replaced)
        self._machine = machine

    def __getattr__(self, name):
        return getattr(self._machine, name)


@pairs
def test_the_datagram_lane_keeps_to_the_window(backends):
    """Into 4 MB/s: without the gate qh3 loses nine of ten frames (measured), with it almost none."""
    pair = Pair(backends, delay_s=0.02, rate_bytes_per_s=4e6, queue_s=0.1).connect()
    sent = 0

    def feed(link):
        nonlocal sent
        while (room := link.datagram_room()) > 0:
            sent += link.send_datagrams([bytes(LINK_FRAME)] * room)

    pair.handlers[0].on_room = feed
    feed(pair.dialler)
    pair.flush()
    start = pair.now
    pair.run_until(lambda: pair.now >= start + 3)
    got = len(pair.handlers[1].frames)
    assert got * LINK_FRAME > 0.8 * 3 * 4e6 * 0.9
    assert got > 0.9 * (sent - 600)


@pairs
def test_datagrams_get_through_while_streams_fill_the_window(backends):
    pair = Pair(backends, delay_s=0.02, rate_bytes_per_s=4e6).connect()
    stream_id = pair.dialler.open_stream()
    _send_all(pair, pair.dialler, bytes(8_000_000), stream_id)
    start = pair.now
    pair.run_until(lambda: pair.now > start + 0.5)
    assert pair.dialler.stream_backlog() > 0
    frames = [n.to_bytes(4, "big") + bytes(LINK_FRAME - 4) for n in range(20)]
    assert pair.dialler.send_datagrams(frames) == 20
    pair.flush()
    sent_at = pair.now
    pair.run_until(lambda: len(pair.handlers[1].frames) == 20)
    assert pair.now - sent_at < 0.4


@pairs
def test_what_is_queued_is_bounded_and_room_is_announced(backends):
    pair = Pair(backends).connect()
    taken = 0
    while count := pair.dialler.send_datagrams([bytes(LINK_FRAME)] * 100):
        taken += count
        assert taken < 2000
    assert pair.dialler.datagram_room() == 0
    assert pair.handlers[0].writable == 0
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].writable > 0)
    assert pair.dialler.datagram_room() > 0
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, bytes(2_000_000))
    assert pair.dialler.stream_backlog() >= 1_900_000
    assert pair.dialler.stream_backlog(stream_id) == pair.dialler.stream_backlog()
    writable = pair.handlers[0].writable
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].writable > writable)
    assert pair.dialler.stream_backlog() < 512 * 1024


@pairs
def test_keys_are_updated_in_time(backends, monkeypatch):
    for module in ("qh3_backend", "aioquic_backend"):
        monkeypatch.setattr(f"overlay.links.backends.{module}.KEY_UPDATE_PACKETS", 500)
    pair = Pair(backends, delay_s=0.001)
    pair.connect()
    pair.sides[0].connection._next_key_update = 500
    updates = []
    conn = pair.sides[0].connection._conn
    original = conn.request_key_update
    conn.request_key_update = lambda: updates.append(pair.now) or original()
    stream_id = pair.dialler.open_stream()
    data = bytes(3_000_000)
    _send_all(pair, pair.dialler, data, stream_id)
    pair.run_until(lambda: pair.handlers[1].finished)
    assert len(updates) >= 3
    assert pair.handlers[1].streams[stream_id] == data


@pairs
def test_a_client_that_changes_its_address_keeps_its_link(backends):
    pair = Pair(backends).connect()
    pair.run_for(1)
    pair.addresses[0] = ("10.9.9.9", 4242)
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, bytes(50_000), True)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].finished)
    pair.acceptor.send_control(CONTROL)
    pair.flush()
    pair.run_until(lambda: pair.handlers[0].controls)
    pair.run_for(30)
    assert pair.acceptor.end is None
    assert pair.sides[1].connection.address() == ("10.9.9.9", 4242)


def test_qh3_uses_the_hybrid_key_exchange_with_itself():
    pair = Pair(("qh3", "qh3")).connect()
    for side in pair.sides:
        assert side.connection._conn.tls._x25519_kyber_768_private_key is not None
